//! What happens to the cluster: a list of actions that follows from the seed alone, so that a run
//! that failed can be had again.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

/// Namespaces in which things are made.
pub const NAMESPACES: [&str; 3] = ["red", "green", "blue"];
/// Repositories that everybody may pull.
pub const PUBLIC: usize = 5;
/// Repositories that need the password.
pub const PRIVATE: usize = 2;
/// The pull secret, where there is one.
pub const SECRET: &str = "regcred";

/// An image that something names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pick {
    /// `app-N:v1` or `:v2`, by tag.
    Public(usize, u8),
    /// The same by digest.
    PublicDigest(usize, u8),
    /// `secret-N:v1`.
    Private(usize),
    /// Does not exist.
    Missing,
    /// No image at all.
    Empty,
}

/// What the pull secret of a namespace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretIs {
    Absent,
    Wrong,
    Right,
}

/// Taken away from a fake node, or given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeChange {
    Cordon(bool),
    Taint(bool),
    Pool(char),
}

/// One thing that is done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    CreateRevision {
        namespace: usize,
        name: String,
        images: Vec<Pick>,
        pool: Option<char>,
    },
    DeleteRevision {
        namespace: usize,
        name: String,
    },
    Route {
        namespace: usize,
        name: String,
        active: bool,
    },
    /// `revision`: the Image is the digest of that Revision's first image.
    CreateImage {
        namespace: usize,
        name: String,
        image: Pick,
        revision: Option<String>,
    },
    ChangeImage {
        namespace: usize,
        name: String,
        image: Pick,
    },
    DeleteImage {
        namespace: usize,
        name: String,
    },
    SetSecret {
        namespace: usize,
        to: SecretIs,
    },
    HandMade {
        namespace: usize,
        name: String,
        image: Pick,
        node: usize,
    },
    /// Any ImageWarm of the namespace, the one at this place of its list.
    DeleteImageWarm {
        namespace: usize,
        at: usize,
    },
    AddNode(usize),
    DeleteNode(usize),
    ChangeNode(usize, NodeChange),
    StopWarmer(usize),
    StartWarmer(usize),
    /// A fake node's runtime loses whatever it holds.
    LoseImages(usize),
    KillController(usize),
    StartController(usize),
    /// It stops in whatever it does, and goes on later: another may lead by then.
    FreezeController(usize),
    ThawController(usize),
    /// Somebody writes another holder into the Lease, or deletes it.
    StealLease,
    DeleteLease,
    KillRealWarmer(usize),
    StartRealWarmer(usize),
    StopDocker(usize),
    StartDocker(usize),
    CutConnections,
    /// Each call to the API server takes half a second longer.
    SlowApiServer,
    QuickApiServer,
    /// Of the two API servers, the one that the controllers use goes; or comes back.
    StopApiServer,
    StartApiServer,
    CompactEtcd,
    RemoveWebhooks,
    RestoreWebhooks,
}

/// An action, and how long after the one before.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub after: Duration,
    pub action: Action,
}

/// What exists, as far as the script knows.
struct Known {
    random: StdRng,
    revisions: BTreeMap<(usize, String), KnownRevision>,
    images: BTreeMap<(usize, String), bool>,
    nodes: BTreeMap<usize, bool>,
    next_name: usize,
    next_node: usize,
    /// What is put right again, and after how many steps.
    due: Vec<(usize, Action)>,
}

struct KnownRevision {
    images: Vec<Pick>,
    active: bool,
    /// Whether there ever was an Image of it.
    has_image: bool,
}

impl KnownRevision {
    /// The tag that an Image can be the digest of: alone of its repository, so that the Image's
    /// meaning is plain.
    fn open_tag(&self) -> Option<(usize, u8)> {
        let repository = |pick: &Pick| match pick {
            Pick::Public(repository, _) | Pick::PublicDigest(repository, _) => Some(*repository),
            _ => None,
        };
        let Pick::Public(first, tag) = self.images[0] else { return None };
        let alone = self.images.iter().filter(|pick| repository(pick) == Some(first)).count() == 1;
        (alone && !self.has_image).then_some((first, tag))
    }
}

/// The script of a seed: for about `length`, with so many fake nodes at its beginning.
pub fn script(seed: u64, length: Duration, fake_nodes: usize) -> Vec<Step> {
    let mut known = Known {
        random: StdRng::seed_from_u64(seed),
        revisions: BTreeMap::new(),
        images: BTreeMap::new(),
        nodes: (0..fake_nodes).map(|node| (node, true)).collect(),
        next_name: 0,
        next_node: fake_nodes,
        due: Vec::new(),
    };
    let mut steps = Vec::new();
    let mut passed = Duration::ZERO;
    while passed < length {
        let after = Duration::from_millis(known.random.random_range(20..500));
        passed += after;
        let action = known.repair().unwrap_or_else(|| known.act());
        steps.push(Step { after, action });
    }
    let rest = std::mem::take(&mut known.due).into_iter();
    let after = Duration::from_millis(50);
    steps.extend(rest.map(|(_, action)| Step { after, action }));
    steps
}

impl Known {
    /// What was broken some steps ago is put right.
    fn repair(&mut self) -> Option<Action> {
        for (left, _) in &mut self.due {
            *left = left.saturating_sub(1);
        }
        let at = self.due.iter().position(|(left, _)| *left == 0)?;
        Some(self.due.remove(at).1)
    }

    fn breaks(&mut self, breaking: Action, repair: Action) -> Action {
        // One at a time of each kind: else a second repair would meet nothing to put right.
        if self.due.iter().any(|(_, due)| *due == repair) {
            return self.create_revision();
        }
        let steps = self.random.random_range(3..25);
        self.due.push((steps, repair));
        breaking
    }

    fn act(&mut self) -> Action {
        let namespace = self.random.random_range(0..NAMESPACES.len());
        match self.random.random_range(0..110) {
            0..24 => self.create_revision(),
            24..34 => match self.any_revision() {
                Some((namespace, name)) => {
                    self.revisions.remove(&(namespace, name.clone()));
                    Action::DeleteRevision { namespace, name }
                }
                None => self.create_revision(),
            },
            34..42 => match self.any_revision() {
                Some((namespace, name)) => {
                    let key = (namespace, name.clone());
                    let known = self.revisions.get_mut(&key).expect("it is known");
                    known.active = !known.active;
                    Action::Route { namespace, name, active: known.active }
                }
                None => self.create_revision(),
            },
            42..54 => self.create_image(),
            54..60 => match self.any_image() {
                Some(((namespace, name), by_hand)) if by_hand => {
                    Action::ChangeImage { namespace, name, image: self.pick() }
                }
                _ => self.create_image(),
            },
            60..64 => match self.any_image() {
                Some(((namespace, name), _)) => {
                    self.images.remove(&(namespace, name.clone()));
                    Action::DeleteImage { namespace, name }
                }
                None => self.create_image(),
            },
            64..70 => {
                let states = [SecretIs::Absent, SecretIs::Wrong, SecretIs::Right, SecretIs::Right];
                let to = *states.choose(&mut self.random).expect("there are some");
                Action::SetSecret { namespace, to }
            }
            70..73 => Action::HandMade {
                namespace,
                name: self.name("by-hand"),
                image: self.pick_content(),
                node: self.any_node(),
            },
            73..75 => Action::DeleteImageWarm { namespace, at: self.random.random_range(0..1000) },
            75..77 => {
                let node = self.next_node;
                self.next_node += 1;
                self.nodes.insert(node, true);
                Action::AddNode(node)
            }
            77..79 if self.nodes.len() > 10 => {
                let node = self.any_node();
                self.nodes.remove(&node);
                self.due.retain(|(_, due)| *due != Action::StartWarmer(node));
                Action::DeleteNode(node)
            }
            77..85 => {
                let change = match self.random.random_range(0..6) {
                    0..2 => NodeChange::Cordon(self.random.random()),
                    2..4 => NodeChange::Taint(self.random.random()),
                    4 => NodeChange::Pool('a'),
                    _ => NodeChange::Pool('b'),
                };
                Action::ChangeNode(self.any_node(), change)
            }
            85..88 => {
                let node = self.any_node();
                self.breaks(Action::StopWarmer(node), Action::StartWarmer(node))
            }
            88..91 => Action::LoseImages(self.any_node()),
            91..93 => {
                let controller = self.random.random_range(0..2);
                let away = |due: &Action| {
                    *due == Action::StartController(1 - controller)
                        || matches!(due, Action::ThawController(_))
                };
                if self.due.iter().any(|(_, due)| away(due)) {
                    return self.create_revision(); // never both
                }
                self.breaks(Action::KillController(controller), Action::StartController(controller))
            }
            93..95 => {
                let node = self.random.random_range(1..=3);
                self.breaks(Action::KillRealWarmer(node), Action::StartRealWarmer(node))
            }
            95..97 => {
                let node = self.random.random_range(1..=3);
                self.breaks(Action::StopDocker(node), Action::StartDocker(node))
            }
            97..99 => Action::CutConnections,
            99 => self.breaks(Action::RemoveWebhooks, Action::RestoreWebhooks),
            100..102 => {
                let controller = self.random.random_range(0..2);
                let away = |due: &Action| {
                    matches!(due, Action::StartController(_) | Action::ThawController(_))
                };
                if self.due.iter().any(|(_, due)| away(due)) {
                    return self.create_revision(); // never both
                }
                self.breaks(
                    Action::FreezeController(controller),
                    Action::ThawController(controller),
                )
            }
            102 => Action::StealLease,
            103 => Action::DeleteLease,
            104..106 => self.breaks(Action::SlowApiServer, Action::QuickApiServer),
            106..108 => self.breaks(Action::StopApiServer, Action::StartApiServer),
            _ => Action::CompactEtcd,
        }
    }

    fn name(&mut self, prefix: &str) -> String {
        self.next_name += 1;
        format!("{prefix}-{:05}", self.next_name)
    }

    fn create_revision(&mut self) -> Action {
        let namespace = self.random.random_range(0..NAMESPACES.len());
        let name = self.name("app");
        let count = self.random.random_range(1..=3);
        let images: Vec<Pick> = (0..count).map(|_| self.pick_content()).collect();
        let pool = [None, None, Some('a'), Some('b')].choose(&mut self.random).copied().flatten();
        let known = KnownRevision { images: images.clone(), active: true, has_image: false };
        self.revisions.insert((namespace, name.clone()), known);
        Action::CreateRevision { namespace, name, images, pool }
    }

    fn create_image(&mut self) -> Action {
        let of_revision = self.random.random_bool(0.6).then(|| self.any_revision()).flatten();
        let open = of_revision.and_then(|key| {
            let known = self.revisions.get_mut(&key)?;
            let open = known.open_tag()?;
            known.has_image = true;
            Some((key, open))
        });
        let name = self.name("image");
        let (namespace, image, revision) = match open {
            Some(((namespace, revision), (repository, tag))) => {
                // Mostly what the tag says; sometimes the tag has moved meanwhile.
                let tag = if self.random.random_bool(0.8) { tag } else { 3 - tag };
                (namespace, Pick::PublicDigest(repository, tag), Some(revision))
            }
            None => (self.random.random_range(0..NAMESPACES.len()), self.pick(), None),
        };
        self.images.insert((namespace, name.clone()), revision.is_none());
        Action::CreateImage { namespace, name, image, revision }
    }

    fn pick(&mut self) -> Pick {
        if self.random.random_bool(0.1) { Pick::Empty } else { self.pick_content() }
    }

    fn pick_content(&mut self) -> Pick {
        let repository = self.random.random_range(0..PUBLIC);
        let tag = self.random.random_range(1..=2);
        match self.random.random_range(0..10) {
            0..6 => Pick::Public(repository, tag),
            6 => Pick::PublicDigest(repository, tag),
            7..9 => Pick::Private(self.random.random_range(0..PRIVATE)),
            _ => Pick::Missing,
        }
    }

    fn any_revision(&mut self) -> Option<(usize, String)> {
        let all: Vec<_> = self.revisions.keys().cloned().collect();
        all.choose(&mut self.random).cloned()
    }

    fn any_image(&mut self) -> Option<((usize, String), bool)> {
        let all: Vec<_> = self.images.iter().map(|(key, hand)| (key.clone(), *hand)).collect();
        all.choose(&mut self.random).cloned()
    }

    fn any_node(&mut self) -> usize {
        let all: Vec<usize> = self.nodes.keys().copied().collect();
        *all.choose(&mut self.random).expect("there is always a node")
    }
}

/// The same seed makes the same script, and what is broken is put right in it.
pub fn is_repeatable() -> Result<(), String> {
    for seed in 0..20 {
        let script = |seed| self::script(seed, Duration::from_secs(120), 50);
        let steps = script(seed);
        if steps != script(seed) {
            return Err(format!("seed {seed} makes two scripts"));
        }
        let mut down: Vec<Action> = Vec::new();
        for Step { action, .. } in &steps {
            match action {
                Action::KillController(one) => down.push(Action::StartController(*one)),
                Action::FreezeController(one) => down.push(Action::ThawController(*one)),
                Action::StopDocker(node) => down.push(Action::StartDocker(*node)),
                Action::KillRealWarmer(node) => down.push(Action::StartRealWarmer(*node)),
                Action::RemoveWebhooks => down.push(Action::RestoreWebhooks),
                Action::SlowApiServer => down.push(Action::QuickApiServer),
                Action::StopApiServer => down.push(Action::StartApiServer),
                other => {
                    if let Some(at) = down.iter().position(|one| one == other) {
                        down.remove(at);
                    }
                }
            }
            let controllers = down.iter().filter(|one| {
                matches!(one, Action::StartController(_) | Action::ThawController(_))
            });
            if controllers.count() > 1 {
                return Err(format!("seed {seed} takes both controllers away"));
            }
        }
        if !down.is_empty() {
            return Err(format!("seed {seed} leaves something broken: {down:?}"));
        }
    }
    Ok(())
}
