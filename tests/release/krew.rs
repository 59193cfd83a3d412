//! krew takes the manifest: its own judge installs the archives of all platforms from it.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, Uri};
use imagewarm_release::platform::Platform;
use tokio::net::TcpListener;
use xtask::prerequisites::{Prerequisite, ensure};

use crate::{release, stand_in, tree};

#[tokio::test(flavor = "multi_thread")]
async fn krew_installs_the_archives() {
    let wanted = [Prerequisite::Kubectl, Prerequisite::Krew, Prerequisite::ValidateKrewManifest];
    let programs = ensure(&wanted).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    release(Platform::ALL.map(stand_in).to_vec(), Some(&address))
        .assemble()
        .unwrap()
        .write(folder.path())
        .unwrap();
    // The forge, as far as it serves what was uploaded to a release.
    let files: Arc<BTreeMap<String, Vec<u8>>> = Arc::new(tree(folder.path()));
    let served = move |uri: Uri| {
        let prefix = concat!("/releases/download/v", env!("CARGO_PKG_VERSION"), "/");
        let file = uri.path().strip_prefix(prefix).and_then(|name| files.get(name)).cloned();
        std::future::ready(file.ok_or(StatusCode::NOT_FOUND))
    };
    let forge =
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(served)).await });
    for (program, name) in [(wanted[0], "kubectl"), (wanted[1], "kubectl-krew")] {
        symlink(programs.path(program).unwrap(), folder.path().join(name)).unwrap();
    }
    let validate = programs.path(wanted[2]).unwrap().to_owned();
    let manifest = folder.path().join("imagewarm.yaml");
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    let judged = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(validate);
        // It has the installations there.
        command.arg("-manifest").arg(manifest).env("PATH", path).env("TMPDIR", folder.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stderr).into_owned()
    });
    let judged = judged.await.unwrap();
    assert!(judged.contains("all 2 spec.platforms installed fine"), "{judged}");
    forge.abort();
}
