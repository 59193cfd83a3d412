//! The crates that are linked into the program on one platform, and which needs which: as Cargo resolves them
//! without what builds and tests need.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use cargo_metadata::MetadataCommand;

use crate::platform::Platform;
use crate::workspace;

/// A crate by name and version.
pub(crate) type Id = (String, String);

/// What its manifest and the lock file say of a crate.
#[derive(Clone, Debug, Default)]
pub(crate) struct Package {
    pub(crate) license: Option<String>,
    pub(crate) license_file: Option<PathBuf>,
    pub(crate) description: Option<String>,
    pub(crate) repository: Option<String>,
    /// Its folder.
    pub(crate) folder: PathBuf,
    /// SHA-256 of the file that the registry serves; none for crates of this workspace.
    pub(crate) checksum: Option<String>,
}

/// The program's crate, and all that it is linked with.
#[derive(Clone, Debug, Default)]
pub struct Dependencies {
    pub(crate) root: Id,
    pub(crate) packages: BTreeMap<Id, Package>,
    pub(crate) needs: BTreeMap<Id, BTreeSet<Id>>,
}

impl Dependencies {
    /// Asks Cargo. `Cargo.lock` has to be up to date.
    pub fn of(platform: Platform) -> Result<Self> {
        let mut tree = cargo("tree");
        // Macros run in the compiler: nothing of theirs is linked.
        tree.args(["--locked", "--package", "imagewarm", "--edges", "normal,no-proc-macro"])
            .args(["--target", platform.triple(), "--prefix", "depth", "--format", " {p}"]);
        let output = tree.output().context("start cargo tree")?;
        if !output.status.success() {
            bail!("cargo tree: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let mut linked = parse_tree(&String::from_utf8(output.stdout)?)?;
        let lock = std::fs::read_to_string(workspace().join("Cargo.lock"))?;
        let checksums = checksums(&lock);
        let metadata = MetadataCommand::new()
            .current_dir(workspace())
            .other_options(["--locked", "--filter-platform", platform.triple()].map(str::to_owned))
            .exec()?;
        for package in metadata.packages {
            let id = (package.name.to_string(), package.version.to_string());
            let Some(entry) = linked.packages.get_mut(&id) else { continue };
            let manifest = package.manifest_path.into_std_path_buf();
            *entry = Package {
                license: package.license,
                license_file: package.license_file.map(Into::into),
                description: package.description,
                repository: package.repository,
                folder: manifest.parent().map(PathBuf::from).unwrap_or_default(),
                checksum: checksums.get(&id).cloned(),
            };
        }
        Ok(linked)
    }
}

pub(crate) fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg(subcommand).current_dir(workspace()).stdin(Stdio::null());
    command
}

/// Reads lines such as `2 bytes v1.12.0 (*)`: a crate needs those that follow it one level deeper.
fn parse_tree(text: &str) -> Result<Dependencies> {
    let mut tree = Dependencies::default();
    let mut above: Vec<Id> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let depth = words.next().and_then(|depth| depth.parse::<usize>().ok());
        let version = |word: &str| word.strip_prefix('v').map(str::to_owned);
        let (depth, id) = match (depth, words.next(), words.next().and_then(version)) {
            (Some(depth), Some(name), Some(version)) if depth <= above.len() => {
                (depth, (name.to_owned(), version))
            }
            _ => bail!("cargo tree printed a line that is no dependency: {line:?}"),
        };
        above.truncate(depth);
        match above.last() {
            Some(needing) => {
                tree.needs.entry(needing.clone()).or_default().insert(id.clone());
            }
            None => tree.root = id.clone(),
        }
        tree.packages.entry(id.clone()).or_default();
        above.push(id);
    }
    if tree.packages.is_empty() {
        bail!("cargo tree printed no dependency");
    }
    Ok(tree)
}

/// The checksums in a `Cargo.lock`, which Cargo writes one field a line.
fn checksums(lock: &str) -> BTreeMap<Id, String> {
    let of_one = |package: &str| {
        let field = |name: &str| {
            let mut lines = package.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \""))?;
            Some(value.trim_end_matches('"').to_owned())
        };
        Some(((field("name")?, field("version")?), field("checksum")?))
    };
    lock.split("[[package]]").filter_map(of_one).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_tree_of_cargo_is_read() {
        let tree = parse_tree(
            "0 a v1.0.0 (/src)\n1 b v2.0.0\n2 c v3.1.0-rc.1\n1 c v3.1.0-rc.1 (*)\n1 d v4.0.0\n",
        );
        let tree = tree.unwrap();
        let needs = |name: &str| -> Vec<&str> {
            let of = tree.needs.iter().find(|((its, _), _)| its == name);
            of.map(|(_, ids)| ids.iter().map(|(name, _)| name.as_str()).collect())
                .unwrap_or_default()
        };
        assert_eq!(tree.root, ("a".to_owned(), "1.0.0".to_owned()));
        assert_eq!(tree.packages.len(), 4);
        assert_eq!((needs("a"), needs("b"), needs("c")), (vec!["b", "c", "d"], vec!["c"], vec![]));
        for wrong in ["", "1 b v2.0.0", "0 a", "0 a v1.0.0\n\n[build-dependencies]"] {
            assert!(parse_tree(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_linked_is_no_more_than_the_program_needs() {
        for platform in Platform::ALL {
            let linked = Dependencies::of(platform).unwrap();
            let has = |name: &str| linked.packages.keys().any(|(its, _)| its == name);
            assert!(has("tokio") && has("rustls") && has("imagewarm-core"));
            // A macro, a generator, and what tests need.
            assert!(!has("serde_derive") && !has("protox") && !has("insta") && !has("xtask"));
            for (id, package) in &linked.packages {
                let own = package.folder.starts_with(workspace());
                assert!(package.license.is_some(), "{id:?} has no licence");
                assert_eq!(package.checksum.is_none(), own, "{id:?}");
            }
        }
    }
}
