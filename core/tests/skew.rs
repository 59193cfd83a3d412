//! Version skew: during an upgrade a leader of one version serves warmers of another, and reads what the
//! other stored. For each version `tests/skew/` has the transcript of a stream, stored ImageWarms and the
//! protocol; this version continues each side of the transcript as that version did, keeps every field of
//! the objects, and has not given a field of the protocol another meaning.
//!
//! `UPDATE_SKEW=1 cargo test -p imagewarm-core --test skew` writes the files of this version; those of a
//! released version are never written again.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use prost::Message as _;

use imagewarm_core::api::{CachedImageWarm, ImageWarm, ImageWarmSpec, Reason};
use imagewarm_core::assignment::{Budget, Effect, Index, Refusal};
use imagewarm_core::clock::Now;
use imagewarm_core::demand::PullIdentity;
use imagewarm_core::demand::pull_context::PullContext;
use imagewarm_core::image::Credential;
use imagewarm_core::node_queue::{Ended, Job, Limits, Queue, Step};
use imagewarm_core::protocol::{
    FromController, FromWarmer, Hello, Progress, PullRequest, from_controller, from_warmer,
};
use imagewarm_core::report::status::{Report, next_status};
use imagewarm_core::runtime::{PresentImage, PulledImage, RuntimeError};

const THIS_VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/skew")
}

fn versions() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    assert!(found.iter().any(|path| path.ends_with(THIS_VERSION)), "no files of {THIS_VERSION}");
    found
}

/// A tag that is pulled, one that does not exist and whose Secret is missing, and a digest that is there.
const IMAGES: [(&str, &str); 3] = [
    ("uid-tag", "r.test/team/app:v1"),
    ("uid-missing", "r.test/team/missing:v1"),
    (
        "uid-digest",
        "r.test/team/app@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ),
];

/// The leader's side of the stream of one node.
struct Leader {
    index: Index,
}

impl Leader {
    fn new() -> Leader {
        let mut index = Index::new(Budget::of_pulls(8), 8_000, 0);
        for (at, (uid, image)) in IMAGES.iter().enumerate() {
            let spec = ImageWarmSpec {
                image: (*image).into(),
                node_name: "node-1".into(),
                ..ImageWarmSpec::default()
            };
            let mut warm = ImageWarm::new(&format!("warm-{at}"), spec);
            warm.metadata.namespace = Some("team".into());
            warm.metadata.uid = Some((*uid).into());
            warm.metadata.generation = Some(1);
            let identity = PullIdentity {
                secrets: vec!["regcred".into()],
                service_account: Some("default".into()),
            };
            let context = PullContext {
                identities: vec![identity],
                priority: 100 - at as i64,
                ..PullContext::default()
            };
            index.apply(Arc::new(CachedImageWarm::from(warm)), context, 0);
        }
        Leader { index }
    }

    fn receive(&mut self, message: FromWarmer) -> Vec<FromController> {
        match message.message.unwrap() {
            from_warmer::Message::Hello(hello) => self.index.open(1, &"node-1".into(), &hello, 0),
            message => self.index.message(1, &message, 0),
        }
        self.perform()
    }

    fn perform(&mut self) -> Vec<FromController> {
        let mut sent = vec![];
        loop {
            let effects = self.index.take_effects();
            if effects.is_empty() {
                return sent;
            }
            for effect in effects {
                match effect {
                    Effect::Send(_, message) => {
                        sent.push(FromController { message: Some(message) })
                    }
                    Effect::Resolve(request) if request.uid == "uid-missing" => {
                        let message = "Secret regcred does not exist".into();
                        let refusal = Refusal { reason: Reason::SecretMissing, message };
                        self.index.resolved(&request, Err(refusal), 0);
                    }
                    Effect::Resolve(request) => {
                        let credential = Credential {
                            username: "user".into(),
                            password: "password".into(),
                            identity_token: String::new(),
                            registry_token: String::new(),
                        };
                        self.index.resolved(&request, Ok(vec![credential]), 0);
                    }
                    Effect::Status(..) => {}
                    other => panic!("unexpected: {other:?}"),
                }
            }
        }
    }

    /// The tag is no longer wanted.
    fn finish(&mut self) -> Vec<FromController> {
        self.index.delete("uid-tag", 0);
        self.perform()
    }
}

/// The node's side.
struct Node {
    queue: Queue,
    jobs: Vec<Job>,
}

const NOW: Now = Now { monotonic_ms: 1_000, unix_ms: 1_800_000_000_000 };

impl Node {
    fn new() -> Node {
        let queue = Queue::new(Limits {
            parallel_pulls: 2,
            pulls_per_registry: 2,
            presence_interval_ms: 60_000,
            assumed_bytes: 1,
        });
        Node { queue, jobs: vec![] }
    }

    fn hello() -> FromWarmer {
        sent(from_warmer::Message::Hello(Hello {
            protocol_version: 1,
            epoch: 7,
            warmer_version: "0.1.0".into(),
            runtime_name: "containerd".into(),
            runtime_version: "2.2.3".into(),
            os: "linux".into(),
            architecture: "amd64".into(),
            pulling: vec![],
            runtime_reports: vec!["progress".into()],
        }))
    }

    fn receive(&mut self, message: FromController) -> Vec<FromWarmer> {
        use from_controller::Message;
        let mut answers = vec![];
        match message.message {
            Some(Message::Welcome(_)) => self.queue.welcome(),
            Some(Message::Assign(assign)) => {
                let report = self.queue.assign(assign, NOW);
                answers.extend(report.map(|report| sent(from_warmer::Message::Outcome(report))));
            }
            Some(Message::Synced(_)) => {
                for uid in self.queue.synced() {
                    let _ = self.queue.withdraw(&uid);
                }
            }
            Some(Message::Withdraw(withdraw)) => {
                let _ = self.queue.withdraw(&withdraw.uid);
            }
            Some(Message::RetryPull(retry)) => self.queue.retry(&retry.uid, NOW),
            Some(Message::PullGrant(grant)) => {
                let at = self.jobs.iter().position(|job| job.uid == grant.uid).unwrap();
                let job = self.jobs.remove(at);
                answers.extend(self.pull(&job, !grant.credentials.is_empty()));
            }
            Some(Message::SuspendPull(_) | Message::ReportProgress(_)) => {
                panic!("no Pod waits in this stream")
            }
            None => {}
        }
        while let Some(job) = self.queue.next(NOW) {
            match job.step {
                Step::CheckPresence => {
                    let found = PresentImage { digest: digest(), size_bytes: 5_000 };
                    let ended = Ended::PresenceChecked(Ok(Some(found)));
                    answers.extend(self.ended(&job, ended));
                }
                Step::Pull | Step::Verify => {
                    let uid = job.uid.to_string();
                    answers.push(sent(from_warmer::Message::PullRequest(PullRequest { uid })));
                    self.jobs.push(job);
                }
            }
        }
        answers
    }

    fn pull(&mut self, job: &Job, has_credentials: bool) -> Vec<FromWarmer> {
        if !has_credentials {
            let message = "manifest unknown".into();
            let failed = RuntimeError { reason: Reason::NotFound, message };
            return self.ended(job, Ended::Pulled(NOW.unix_ms, Err(failed)));
        }
        let progress = sent(from_warmer::Message::Progress(Progress {
            uid: job.uid.to_string(),
            queued: false,
            downloaded_bytes: 2_000,
            total_bytes: 5_000,
            started_at_unix_ms: NOW.unix_ms,
            attempt: job.attempt,
        }));
        let image = PresentImage { digest: digest(), size_bytes: 5_000 };
        let pulled = Ended::Pulled(NOW.unix_ms, Ok(PulledImage { image, downloaded: true }));
        [vec![progress], self.ended(job, pulled)].concat()
    }

    fn ended(&mut self, job: &Job, ended: Ended) -> Vec<FromWarmer> {
        let report = self.queue.ended(job, ended, NOW, 0.5);
        report.map(|report| sent(from_warmer::Message::Outcome(report))).into_iter().collect()
    }
}

fn digest() -> Option<imagewarm_core::image::Digest> {
    format!("sha256:{}", "0a".repeat(32)).parse().ok()
}

fn sent(message: from_warmer::Message) -> FromWarmer {
    FromWarmer { message: Some(message) }
}

/// Both sides of a stream, each in its own order.
#[derive(Debug, PartialEq)]
struct Transcript {
    from_leader: Vec<FromController>,
    from_warmer: Vec<FromWarmer>,
}

/// What two sides of this version say to each other.
fn conversation() -> Transcript {
    let (mut leader, mut node) = (Leader::new(), Node::new());
    let mut transcript = Transcript { from_leader: vec![], from_warmer: vec![Node::hello()] };
    let mut to_leader = vec![Node::hello()];
    while !to_leader.is_empty() {
        let to_node: Vec<_> = to_leader.drain(..).flat_map(|one| leader.receive(one)).collect();
        to_leader = to_node.iter().cloned().flat_map(|one| node.receive(one)).collect();
        transcript.from_leader.extend(to_node);
        transcript.from_warmer.extend(to_leader.iter().cloned());
    }
    let last = leader.finish();
    last.iter().cloned().for_each(|one| assert!(node.receive(one).is_empty()));
    transcript.from_leader.extend(last);
    transcript
}

/// A message without what names the version. What a later version adds to a message goes here as well, for
/// the versions before.
fn without_version(mut message: FromController) -> FromController {
    if let Some(from_controller::Message::Welcome(welcome)) = &mut message.message {
        welcome.controller_version.clear();
    }
    message
}

fn write(transcript: &Transcript) -> String {
    let mut text =
        String::from("# Base64 of the messages of dispatch.proto, each side in its own order.\n");
    for message in &transcript.from_leader {
        writeln!(text, "leader {}", BASE64_STANDARD.encode(message.encode_to_vec())).unwrap();
    }
    for message in &transcript.from_warmer {
        writeln!(text, "warmer {}", BASE64_STANDARD.encode(message.encode_to_vec())).unwrap();
    }
    text
}

fn read(text: &str) -> Transcript {
    let (mut from_leader, mut from_warmer) = (vec![], vec![]);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (side, message) = line.split_once(' ').unwrap();
        let bytes = BASE64_STANDARD.decode(message).unwrap();
        match side {
            "leader" => from_leader.push(FromController::decode(&*bytes).unwrap()),
            _ => from_warmer.push(FromWarmer::decode(&*bytes).unwrap()),
        }
    }
    Transcript { from_leader, from_warmer }
}

/// ImageWarms in every state, as this version stores them.
fn stored() -> Vec<ImageWarm> {
    let mut reports: Vec<Report> = vec![Report::WaitingForWarmer, Report::Queued];
    for message in conversation().from_warmer {
        match message.message.unwrap() {
            from_warmer::Message::Progress(progress) => reports.push(Report::from(&progress)),
            from_warmer::Message::Outcome(outcome) => {
                reports.push(Report::Outcome((&outcome).into()))
            }
            _ => {}
        }
    }
    let now = k8s_openapi::jiff::Timestamp::from_millisecond(NOW.unix_ms).unwrap();
    let stored = reports.iter().enumerate().map(|(at, report)| {
        let spec = ImageWarmSpec {
            image: IMAGES[0].1.into(),
            node_name: "node-1".into(),
            ..ImageWarmSpec::default()
        };
        let mut warm = ImageWarm::new(&format!("warm-{at}"), spec);
        warm.metadata.namespace = Some("team".into());
        warm.status = next_status(&warm, report, now);
        warm
    });
    stored.collect()
}

#[test]
fn files_of_this_version_exist() {
    let folder = folder().join(THIS_VERSION);
    if std::env::var_os("UPDATE_SKEW").is_some() {
        std::fs::create_dir_all(&folder).unwrap();
        let proto =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/dispatch/v1/dispatch.proto");
        std::fs::copy(proto, folder.join("dispatch.proto")).unwrap();
        std::fs::write(folder.join("stream"), write(&conversation())).unwrap();
        let objects = serde_json::to_string_pretty(&stored()).unwrap();
        std::fs::write(folder.join("image-warms.json"), objects + "\n").unwrap();
    }
    for file in ["dispatch.proto", "stream", "image-warms.json"] {
        assert!(folder.join(file).exists(), "no {file}: write it with UPDATE_SKEW=1");
    }
    let said = conversation();
    assert_eq!((said.from_leader.len(), said.from_warmer.len()), (8, 7), "{said:#?}");
}

/// In which order a leader sends assignments is its own.
fn assigns_by_uid(mut said: Vec<FromController>) -> Vec<FromController> {
    let uid = |one: &FromController| match &one.message {
        Some(from_controller::Message::Assign(assign)) => Some(assign.uid.clone()),
        _ => None,
    };
    for run in said.chunk_by_mut(|a, b| uid(a).is_some() && uid(b).is_some()) {
        run.sort_by_key(uid);
    }
    said
}

#[test]
fn a_leader_of_this_version_answers_warmers_of_all() {
    for version in versions() {
        let recorded = read(&std::fs::read_to_string(version.join("stream")).unwrap());
        let mut leader = Leader::new();
        let mut said: Vec<_> =
            recorded.from_warmer.into_iter().flat_map(|one| leader.receive(one)).collect();
        said.extend(leader.finish());
        let comparable = |said: Vec<FromController>| {
            assigns_by_uid(said.into_iter().map(without_version).collect())
        };
        let expected = comparable(recorded.from_leader);
        assert_eq!(comparable(said), expected, "{}", version.display());
    }
}

#[test]
fn a_warmer_of_this_version_obeys_leaders_of_all() {
    for version in versions() {
        let recorded = read(&std::fs::read_to_string(version.join("stream")).unwrap());
        let mut node = Node::new();
        let mut said = vec![Node::hello()];
        said.extend(recorded.from_leader.into_iter().flat_map(|one| node.receive(one)));
        assert_eq!(said, recorded.from_warmer, "{}", version.display());
    }
}

#[test]
fn stored_objects_of_all_versions_are_read_whole_and_not_written_again() {
    for version in versions() {
        let text = std::fs::read_to_string(version.join("image-warms.json")).unwrap();
        let objects: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        assert!(objects.len() > 4);
        for object in objects {
            let warm: ImageWarm = serde_json::from_value(object.clone()).unwrap();
            let cached = CachedImageWarm::from(warm.clone());
            assert!(cached.reason().is_some(), "a reason that nobody knows: {object}");
            assert_eq!(cached.to_image_warm().status, warm.status);
            assert_eq!(serde_json::to_value(&warm).unwrap(), object, "a field is lost or added");
        }
    }
}

/// A field keeps its number, name and type, and is never removed: so messages of this version are read by
/// the others as well.
#[test]
fn fields_of_the_protocol_stay_what_they_are() {
    let current = fields(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/dispatch/v1"));
    for version in versions() {
        for field in fields(&version) {
            assert!(current.contains(&field), "{}: {field} is gone or changed", version.display());
        }
    }
}

fn fields(folder: &Path) -> Vec<String> {
    let files = protox::compile(["dispatch.proto"], [folder]).unwrap();
    let mut found = vec![];
    for message in files.file.iter().flat_map(|file| &file.message_type) {
        for field in &message.field {
            found.push(format!(
                "{}.{} = {} ({:?} {:?} {})",
                message.name(),
                field.name(),
                field.number(),
                field.r#type(),
                field.label(),
                field.type_name(),
            ));
        }
    }
    assert!(found.len() > 40, "{found:?}");
    found
}
