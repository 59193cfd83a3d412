//! What the oracle says of small states that one can check by eye: it must be silent about what is
//! right, and name what is wrong. An oracle that misses a fault would pass everything.

use std::collections::{BTreeMap, BTreeSet};

use imagewarm_core::api::{ImageWarm, KnativeImage, Revision};
use k8s_openapi::api::core::v1::Node;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::fake_nodes::Catalog;
use crate::oracle::{Observed, TAINT, problems};
use crate::script::SecretIs;

const TAG: &str = "r.test/app:v1";
const SECRET: &str = "r.test/private:v1";
const MISSING: &str = "r.test/missing:v1";

fn digest(letter: char) -> String {
    format!("sha256:{}", letter.to_string().repeat(64))
}

/// What `v1` of the repository is.
fn right() -> String {
    format!("r.test/app@{}", digest('a'))
}

/// What it is not.
fn other() -> String {
    format!("r.test/app@{}", digest('b'))
}

/// A state in the making: two nodes with warmers, and nothing else.
struct State {
    revisions: Vec<Revision>,
    images: Vec<KnativeImage>,
    warms: Vec<ImageWarm>,
    nodes: Vec<Node>,
    secrets: BTreeMap<String, SecretIs>,
    connected: BTreeSet<String>,
    held: BTreeSet<(String, String)>,
    by_hand: BTreeSet<(String, String, String, String)>,
}

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("the case is written down rightly")
}

fn nodes() -> State {
    let node = |name: &str| {
        read(json!({"metadata": {"name": name, "labels": {"pool": name}}, "spec": {}}))
    };
    State {
        revisions: vec![],
        images: vec![],
        warms: vec![],
        nodes: vec![node("a"), node("b")],
        secrets: BTreeMap::new(),
        connected: ["a", "b"].map(str::to_owned).into(),
        held: BTreeSet::new(),
        by_hand: BTreeSet::new(),
    }
}

impl State {
    fn revision(self, image: &str) -> Self {
        self.revision_with(image, "active", json!({}))
    }

    fn revision_with(mut self, image: &str, routing: &str, selector: Value) -> Self {
        self.revisions.push(read(json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": {
                "name": "one", "namespace": "ns",
                "labels": {"serving.knative.dev/routingState": routing},
            },
            "spec": {"containers": [{"image": image}], "nodeSelector": selector},
        })));
        self
    }

    /// An Image, of the Revision or its own, that says this of its nodes.
    fn image(mut self, image: &str, of: Option<&str>, ready: &str, counts: [&str; 3]) -> Self {
        let labels = of.map(|name| json!({"serving.knative.dev/revision": name}));
        let mut status = json!({
            "observedGeneration": 1, "conditions": [{"type": "Ready", "status": ready}],
        });
        if !counts[0].is_empty() {
            let [nodes, held, failed] = counts;
            status["annotations"] = json!({
                "caching.knative.dev/nodes": nodes, "caching.knative.dev/nodes-ready": held,
                "caching.knative.dev/nodes-failed": failed,
            });
        }
        self.images.push(read(json!({
            "apiVersion": "caching.internal.knative.dev/v1alpha1", "kind": "Image",
            "metadata": {"name": "i", "namespace": "ns", "generation": 1, "labels": labels},
            "spec": {"image": image}, "status": status,
        })));
        self
    }

    /// An order with this status; a node that pulled it holds it.
    fn warm(mut self, image: &str, node: &str, ready: &str, reason: &str) -> Self {
        let found = match image.split_once('@') {
            Some((_, digest)) => digest.to_owned(),
            None => digest('a'),
        };
        let mut status =
            json!({"conditions": [{"type": "Ready", "status": ready, "reason": reason}]});
        if ready == "True" {
            status["digest"] = json!(found);
            self.held.insert((node.into(), image.into()));
        }
        let name = format!("{}-{node}", self.warms.len());
        self.warms.push(read(json!({
            "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
            "metadata": {
                "name": name, "namespace": "ns",
                "labels": {"app.kubernetes.io/managed-by": "imagewarm"},
            },
            "spec": {"image": image, "nodeName": node}, "status": status,
        })));
        self
    }

    fn warm_everywhere(self, image: &str, ready: &str, reason: &str) -> Self {
        self.warm(image, "a", ready, reason).warm(image, "b", ready, reason)
    }

    fn change(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn spec_of_b(self, spec: Value) -> Self {
        self.change(|state| state.nodes[1].spec = Some(read(spec)))
    }

    fn secret(self, is: SecretIs) -> Self {
        self.change(|state| {
            state.secrets.insert("ns".into(), is);
        })
    }

    fn problems(self) -> Vec<String> {
        let password = || Some("password".to_owned());
        let catalog = Catalog {
            images: BTreeMap::from([
                (TAG.into(), (digest('a'), None)),
                (right(), (digest('a'), None)),
                (other(), (digest('b'), None)),
                (SECRET.into(), (digest('a'), password())),
            ]),
        };
        problems(&Observed {
            revisions: self.revisions,
            images: self.images,
            warms: self.warms,
            nodes: self.nodes,
            secrets: &self.secrets,
            connected: self.connected,
            held: self.held,
            losers: BTreeSet::new(),
            catalog: &catalog,
            by_hand: &self.by_hand,
        })
    }
}

/// Name, state, and the beginnings of what must be said of it, in order.
type Case = (&'static str, State, &'static [&'static str]);

fn orders() -> Vec<Case> {
    let pulled = |image: &str| nodes().revision(image).warm_everywhere(image, "True", "Pulled");
    let pool_a = || nodes().revision_with(TAG, "active", json!({"pool": "a"}));
    vec![
        ("nothing is asked for", nodes(), &[]),
        ("all is warm", pulled(TAG), &[]),
        ("nothing was made", nodes().revision(TAG), &["missing: ", "missing: "]),
        (
            "one node was forgotten",
            nodes().revision(TAG).warm(TAG, "a", "True", "Pulled"),
            &["missing: "],
        ),
        (
            "another image stands for nothing",
            pulled(TAG).warm(MISSING, "a", "False", "NotFound"),
            &["nobody wants: "],
        ),
        ("another pool asks for less", pool_a().warm(TAG, "a", "True", "Pulled"), &[]),
        ("a node that changed its pool keeps its order", pulled(TAG).spec_of_b(json!({})), &[]),
        (
            "a cordon asks for nothing",
            nodes()
                .revision(TAG)
                .warm(TAG, "a", "True", "Pulled")
                .spec_of_b(json!({"unschedulable": true})),
            &[],
        ),
        ("a cordon deletes nothing", pulled(TAG).spec_of_b(json!({"unschedulable": true})), &[]),
        (
            "nor does a taint",
            pulled(TAG).spec_of_b(json!({"taints": [{"key": TAINT, "effect": "NoSchedule"}]})),
            &[],
        ),
        (
            "a node that is gone takes its orders along",
            pulled(TAG).change(|state| drop(state.nodes.pop())),
            &["its node is gone: "],
        ),
        ("reserve asks for nothing", nodes().revision_with(TAG, "reserve", json!({})), &[]),
        (
            "reserve keeps nothing",
            nodes().revision_with(TAG, "reserve", json!({})).warm(TAG, "a", "True", "Pulled"),
            &["nobody wants: "],
        ),
        (
            "an order that is on its way out for ever",
            pulled(TAG).change(|state| {
                let gone = read(json!("2026-01-01T00:00:00Z"));
                state.warms[0].metadata.deletion_timestamp = Some(gone);
            }),
            &["stuck in deletion: "],
        ),
        (
            "a hand-made order stays though nobody asks",
            nodes().warm(TAG, "a", "True", "Pulled").change(by_hand),
            &[],
        ),
        (
            "a hand-made order was deleted",
            nodes().warm(TAG, "a", "True", "Pulled").change(by_hand).change(|s| s.warms.clear()),
            &["hand-made ns/0-a is now None"],
        ),
    ]
}

fn by_hand(state: &mut State) {
    state.warms.iter_mut().for_each(|warm| warm.metadata.labels = None);
    state.by_hand.insert(("ns".into(), "0-a".into(), TAG.into(), "a".into()));
}

fn statuses() -> Vec<Case> {
    let says = |ready, reason| nodes().revision(TAG).warm_everywhere(TAG, ready, reason);
    let private = |is, ready, reason| {
        nodes().revision(SECRET).warm_everywhere(SECRET, ready, reason).secret(is)
    };
    let not_there =
        |ready, reason| nodes().revision(MISSING).warm_everywhere(MISSING, ready, reason);
    let no_warmer = |state: State| state.change(|state| state.connected.clear());
    let lost = |state: State| state.change(|state| state.held.clear());
    let both: &[&str] = &["r.test/", "r.test/"];
    vec![
        ("for ever queued", says("Unknown", "Queued"), both),
        ("for ever pulling", says("Unknown", "Pulling"), both),
        ("found there already", says("True", "AlreadyPresent"), &[]),
        ("Ready without the image", lost(says("True", "Pulled")), both),
        ("Ready, and a reason against it", says("True", "NotFound"), both),
        ("waits for a warmer that is there", says("Unknown", "WaitingForWarmer"), both),
        ("waits for one that is not", no_warmer(says("Unknown", "WaitingForWarmer")), &[]),
        ("what was warm stays warm without", no_warmer(says("True", "Pulled")), &[]),
        ("nobody is there to pull", no_warmer(says("Unknown", "Pulling")), both),
        ("the registry lacks it", not_there("False", "NotFound"), &[]),
        ("it may be hidden for want of the Secret", not_there("False", "SecretMissing"), &[]),
        (
            "a Secret that is there is not missing",
            not_there("False", "SecretMissing").secret(SecretIs::Wrong),
            both,
        ),
        ("a missing Secret keeps no public image away", says("False", "SecretMissing"), both),
        (
            "free for all, and the Secret is there",
            says("False", "SecretMissing").secret(SecretIs::Wrong),
            both,
        ),
        ("free for all, and refused", says("False", "Unauthorized").secret(SecretIs::Wrong), both),
        ("another fault is told", not_there("False", "Unauthorized"), both),
        ("the Secret is right", private(SecretIs::Right, "True", "Pulled"), &[]),
        ("and was not tried", private(SecretIs::Right, "False", "SecretMissing"), both),
        (
            "a hand-made order that names no Secret",
            nodes().warm(SECRET, "a", "False", "Unauthorized").secret(SecretIs::Right).change(
                |state| {
                    by_hand(state);
                    state.by_hand = [("ns".into(), "0-a".into(), SECRET.into(), "a".into())].into();
                },
            ),
            &[],
        ),
        ("no Secret", private(SecretIs::Absent, "False", "SecretMissing"), &[]),
        ("a wrong one", private(SecretIs::Wrong, "False", "Unauthorized"), &[]),
        ("an earlier pull had the right one", private(SecretIs::Wrong, "True", "Pulled"), &[]),
        ("nothing was held", lost(private(SecretIs::Wrong, "True", "Pulled")), both),
        (
            "another content than the registry's",
            says("True", "Pulled").change(|state| {
                let status = state.warms[0].status.as_mut().expect("it has one");
                status.digest = Some(digest('b'));
            }),
            &["r.test/"],
        ),
        (
            "no status at all",
            says("True", "Pulled").change(|state| state.warms[0].status = None),
            &["r.test/"],
        ),
    ]
}

fn images() -> Vec<Case> {
    let warm = || nodes().revision(TAG).warm_everywhere(TAG, "True", "Pulled");
    let of = Some("one");
    let none = ["", "", ""];
    let wrong: &[&str] = &["Image ns/i: "];
    let own = || nodes().warm_everywhere(TAG, "True", "Pulled");
    vec![
        (
            "the tag's digest costs nothing",
            warm().image(&right(), of, "True", ["2", "2", "0"]),
            &[],
        ),
        (
            "a tag that moved costs an order by digest",
            warm().image(&other(), of, "Unknown", ["2", "0", "0"]),
            &["missing: ", "missing: "],
        ),
        (
            "which is there",
            warm().warm_everywhere(&other(), "True", "Pulled").image(
                &other(),
                of,
                "True",
                ["2", "2", "0"],
            ),
            &[],
        ),
        (
            "an order by a digest that no Image names any more",
            warm().warm_everywhere(&other(), "True", "Pulled"),
            &["nobody wants: ", "nobody wants: "],
        ),
        ("it is not Ready as yet", warm().image(&right(), of, "Unknown", ["2", "2", "0"]), wrong),
        ("it counts wrongly", warm().image(&right(), of, "True", ["2", "1", "0"]), wrong),
        (
            "it speaks of an older generation",
            warm()
                .image(&right(), of, "True", ["2", "2", "0"])
                .change(|state| state.images[0].metadata.generation = Some(2)),
            wrong,
        ),
        ("an Image of its own", own().image(TAG, None, "True", ["2", "2", "0"]), &[]),
        (
            "is warmed as well",
            nodes().image(TAG, None, "Unknown", ["2", "0", "0"]),
            &["missing: ", "missing: "],
        ),
        ("nothing is known without content", nodes().image("", None, "Unknown", none), &[]),
        ("without content, and said to be there", nodes().image("", None, "True", none), wrong),
        (
            "never True for want of nodes",
            nodes().change(|s| s.nodes.clear()).image(TAG, None, "True", ["0", "0", "0"]),
            wrong,
        ),
        (
            "of a Revision in reserve",
            nodes().revision_with(TAG, "reserve", json!({})).image(&right(), of, "Unknown", none),
            &[],
        ),
        (
            "one node cannot have it",
            nodes().warm_everywhere(MISSING, "False", "NotFound").image(
                MISSING,
                None,
                "False",
                ["2", "0", "2"],
            ),
            &[],
        ),
        (
            "and says nothing of it",
            nodes().warm_everywhere(MISSING, "False", "NotFound").image(
                MISSING,
                None,
                "Unknown",
                ["2", "0", "0"],
            ),
            wrong,
        ),
        (
            "a Revision's own pool counts",
            nodes()
                .revision_with(TAG, "active", json!({"pool": "a"}))
                .warm(TAG, "a", "True", "Pulled")
                .image(&right(), of, "True", ["1", "1", "0"]),
            &[],
        ),
    ]
}

/// Goes through all cases.
pub fn hold() -> Result<(), String> {
    let mut wrong = Vec::new();
    for (name, state, expected) in [orders(), statuses(), images()].into_iter().flatten() {
        let said = state.problems();
        let fits = |(said, start): (&String, &&str)| said.starts_with(start);
        if said.len() != expected.len() || !said.iter().zip(expected).all(fits) {
            wrong.push(format!("{name}: expected {expected:?}, and it says {said:#?}"));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}
