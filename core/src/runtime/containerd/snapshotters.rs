//! Which snapshotter each runtime handler of containerd uses, from its configuration. An image is unpacked
//! for one snapshotter by each pull: one that was unpacked for the default snapshotter does not serve a
//! container of another, which unpacks it again at its start, or fails if the layers were discarded.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::Path;

use serde::Deserialize;

/// The label of an image's configuration that names its snapshot; the snapshotter's name follows.
const SNAPSHOT_LABEL: &str = "containerd.io/gc.ref.snapshot.";
/// What the folder of a snapshotter is called, before the snapshotter's name.
const SNAPSHOTTER_FOLDER: &str = "io.containerd.snapshotter.v1.";

/// The snapshotters of containerd's runtime handlers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshotters {
    /// The handler of Pods without a RuntimeClass.
    default_handler: String,
    /// By handler: its own snapshotter; `None` for the default one.
    own: BTreeMap<String, Option<String>>,
    /// The default one, where its name is known.
    default: Option<String>,
}

/// One of the pulls that unpack an image for all of its handlers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unpacking<'a> {
    /// The snapshotter; `None` for the default one.
    pub snapshotter: Option<&'a str>,
    /// A handler that uses it.
    pub handler: &'a str,
}

/// None of the handlers is one of the runtime's: no Pod of such a RuntimeClass can start on the node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the runtime of this node has no handler {0:?}, which the RuntimeClass names: add it to the runtime's settings, or \
     limit the RuntimeClass to nodes that have it (scheduling.nodeSelector)"
)]
pub struct UnknownHandler(pub String);

#[derive(Deserialize)]
struct Config {
    containerd: Containerd,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Containerd {
    #[serde(default)]
    default_runtime_name: String,
    #[serde(default)]
    runtimes: BTreeMap<String, Runtime>,
}

#[derive(Deserialize)]
struct Runtime {
    #[serde(default)]
    snapshotter: String,
}

impl Snapshotters {
    /// Reads the configuration that containerd reports in its verbose `Status`, under the key `config`; `None`
    /// if it has another form. The folder of images is named after the default snapshotter.
    pub fn parse(config: &str, image_folder: &Path) -> Option<Self> {
        let Config { containerd } = serde_json::from_str(config).ok()?;
        let own = containerd.runtimes.into_iter().map(|(handler, runtime)| {
            (handler, Some(runtime.snapshotter).filter(|name| !name.is_empty()))
        });
        let folder = image_folder.file_name().and_then(OsStr::to_str);
        let default = folder.and_then(|name| name.strip_prefix(SNAPSHOTTER_FOLDER));
        Some(Snapshotters {
            default_handler: containerd.default_runtime_name,
            own: own.collect(),
            default: default.map(str::to_owned),
        })
    }

    /// The pulls that unpack an image for each of these handlers: one for each snapshotter. Handlers that the
    /// runtime does not have are left out beside others, since no Pod of theirs can start here.
    ///
    /// # Errors
    /// None of the handlers is the runtime's.
    pub fn unpackings<'a>(
        &'a self,
        handlers: &'a BTreeSet<String>,
    ) -> Result<Vec<Unpacking<'a>>, UnknownHandler> {
        let mut found: BTreeMap<Option<&str>, &str> = BTreeMap::new();
        for handler in handlers {
            let own = if handler.is_empty() { &self.default_handler } else { handler };
            match self.own.get(own) {
                Some(snapshotter) => {
                    found.entry(snapshotter.as_deref()).or_insert(own);
                }
                // Whatever the configuration calls it.
                None if handler.is_empty() => {
                    found.entry(None).or_insert(handler);
                }
                None => {}
            }
        }
        if let (true, Some(unknown)) = (found.is_empty(), handlers.first()) {
            return Err(UnknownHandler(unknown.clone()));
        }
        let unpackings = found.into_iter();
        Ok(unpackings.map(|(snapshotter, handler)| Unpacking { snapshotter, handler }).collect())
    }

    /// Whether some handler has a snapshotter of its own: an image may then be on the node, and not for all.
    pub fn differ(&self) -> bool {
        self.own.values().any(|own| own.is_some() && *own != self.default)
    }

    /// Whether an image is unpacked for this snapshotter, by the labels of its configuration.
    pub fn is_unpacked<'a>(
        &self,
        snapshotter: Option<&str>,
        labels: impl IntoIterator<Item = &'a str>,
    ) -> bool {
        let mut unpacked =
            labels.into_iter().filter_map(|label| label.strip_prefix(SNAPSHOT_LABEL));
        match snapshotter.or(self.default.as_deref()) {
            Some(name) => unpacked.any(|one| one == name),
            None => unpacked.next().is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// As containerd 2.2 and 1.7 report it, shortened; 1.6 has no such field.
    const CONFIG: &str = r#"{"containerd": {"defaultRuntimeName": "runc", "runtimes": {
        "runc": {"runtimeType": "io.containerd.runc.v2", "snapshotter": ""},
        "gvisor": {"runtimeType": "io.containerd.runsc.v1"},
        "kata": {"runtimeType": "io.containerd.kata.v2", "snapshotter": "devmapper"},
        "kata-qemu": {"runtimeType": "io.containerd.kata.v2", "snapshotter": "devmapper"}}}}"#;

    fn snapshotters(config: &str) -> Snapshotters {
        let folder = Path::new("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs");
        Snapshotters::parse(config, folder).unwrap()
    }

    fn handlers(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn an_image_is_unpacked_once_for_each_snapshotter_of_its_handlers() {
        let snapshotters = snapshotters(CONFIG);
        assert!(snapshotters.differ());
        let (overlay, devmapper) = ((None, "runc"), (Some("devmapper"), "kata"));
        let cases = [
            (vec![""], vec![overlay]),
            (vec!["runc"], vec![overlay]),
            (vec!["gvisor"], vec![(None, "gvisor")]),
            (vec!["kata"], vec![devmapper]),
            (vec!["kata", "kata-qemu"], vec![devmapper]),
            (vec!["", "gvisor", "kata"], vec![overlay, devmapper]),
            (vec!["kata", "none"], vec![devmapper]),
        ];
        for (names, expected) in cases {
            let names = handlers(&names);
            let unpackings = snapshotters.unpackings(&names).unwrap();
            let found: Vec<_> =
                unpackings.iter().map(|one| (one.snapshotter, one.handler)).collect();
            assert_eq!(found, expected, "{names:?}");
        }
        let unknown = handlers(&["none"]);
        assert_eq!(snapshotters.unpackings(&unknown), Err(UnknownHandler("none".into())));
    }

    #[test]
    fn labels_name_the_snapshotters() {
        let known = snapshotters(CONFIG);
        let labels = |names: &[&str]| -> Vec<String> {
            let of_snapshots = names.iter().map(|name| format!("{SNAPSHOT_LABEL}{name}"));
            of_snapshots.chain(["containerd.io/gc.ref.content.0".into()]).collect()
        };
        let is_unpacked = |known: &Snapshotters, snapshotter, names: &[&str]| {
            known.is_unpacked(snapshotter, labels(names).iter().map(String::as_str))
        };
        assert!(is_unpacked(&known, Some("devmapper"), &["overlayfs", "devmapper"]));
        assert!(!is_unpacked(&known, Some("devmapper"), &["overlayfs"]));
        assert!(is_unpacked(&known, None, &["overlayfs"]));
        assert!(!is_unpacked(&known, None, &["devmapper"]));
        assert!(!is_unpacked(&known, None, &[]));
        // A folder of another name: whatever it is unpacked for may be the default one.
        let unnamed = Snapshotters::parse(CONFIG, Path::new("/data/snapshots")).unwrap();
        assert!(is_unpacked(&unnamed, None, &["overlayfs"]));
        assert!(!is_unpacked(&unnamed, None, &[]));
    }

    #[test]
    fn handlers_without_snapshotters_of_their_own_share_one() {
        let one = r#"{"containerd": {"defaultRuntimeName": "runc", "runtimes": {
            "runc": {}, "runsc": {"snapshotter": "overlayfs"}}}}"#;
        assert!(!snapshotters(one).differ());
        assert!(!snapshotters(r#"{"containerd": {"snapshotter": "overlayfs"}}"#).differ());
        for other in ["", "{}", "[]", r#"{"containerd": {"runtimes": []}}"#] {
            assert_eq!(Snapshotters::parse(other, Path::new("/")), None, "{other}");
        }
    }
}
