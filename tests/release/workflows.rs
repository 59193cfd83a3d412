//! Workflows of the forge: actionlint takes them, and what they use from others is pinned to commits. Signing and publishing can be tried on the forge alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use xtask::prerequisites::{
    CRIO_VERSION, KNATIVE_VERSION, KUBERNETES_VERSION, Prerequisite, ensure,
};

use crate::run;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn workflows() -> Vec<PathBuf> {
    let files = fs::read_dir(root().join(".github/workflows")).unwrap();
    let files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    assert!(files.len() >= 2);
    files
}

#[tokio::test]
async fn actionlint_takes_them() {
    let programs = ensure(&[Prerequisite::Actionlint]).await.unwrap();
    let actionlint = programs.path(Prerequisite::Actionlint).unwrap();
    // It looks for other programs that judge scripts; whether they are there makes no difference here.
    run(Command::new(actionlint)
        .args(["-no-color", "-shellcheck=", "-pyflakes="])
        .args(workflows()));
}

#[test]
fn what_they_use_is_pinned_and_what_they_may_is_named() {
    for path in workflows() {
        let workflow: Value = serde_saphyr::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(workflow["permissions"]["contents"], "read", "{}", path.display());
        let jobs = workflow["jobs"].as_object().unwrap().values();
        for step in jobs.flat_map(|job| job["steps"].as_array().unwrap()) {
            let Some(uses) = step["uses"].as_str() else { continue };
            let (_, commit) = uses.split_once('@').unwrap();
            let is_commit =
                commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
            assert!(is_commit, "{}: {uses}", path.display());
        }
    }
}

#[test]
fn they_build_with_the_compiler_that_the_crate_asks_for() {
    let version = env!("CARGO_PKG_RUST_VERSION");
    for path in workflows() {
        let workflow: Value = serde_saphyr::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let steps = workflow["jobs"].as_object().unwrap().values();
        let steps = steps.flat_map(|job| job["steps"].as_array().unwrap());
        let named = [&workflow["env"]].into_iter().chain(steps.map(|step| &step["env"]));
        let named: Vec<_> = named.filter_map(|all| all["RUSTUP_TOOLCHAIN"].as_str()).collect();
        assert!(!named.is_empty(), "{}", path.display());
        assert!(named.iter().all(|one| one.starts_with(version)), "{named:?} is not {version}");
    }
}

#[test]
fn the_page_about_upgrades_names_the_versions_of_these_tests() {
    let page = fs::read_to_string(root().join("docs/upgrade.md")).unwrap();
    let minor = |version: &str| {
        let version = version.trim_start_matches('v');
        version.rsplit_once('.').map(|(minor, _)| minor.to_owned()).unwrap()
    };
    for wanted in [
        format!("tested with {} |", minor(KUBERNETES_VERSION)),
        format!("tested with v{} |", minor(KNATIVE_VERSION)),
        format!("CRI-O {},", minor(CRIO_VERSION)),
    ] {
        assert!(page.contains(&wanted), "{wanted}");
    }
}
