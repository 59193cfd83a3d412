//! Certificates that somebody else makes and mounts, as cert-manager does, with the API server
//! calling the webhook all the time: replaced under way, and replaced badly.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use imagewarm_webhook_certs::{Bundle, Lifetimes};
use jiff::{SignedDuration, Timestamp};

use crate::world::{World, containers, eventually};

crate::tests![certificates_of_somebody_else_are_served_and_followed];

const FILES: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];

/// A folder as the kubelet mounts a Secret: all its files change at once, by one symlink.
struct Mount {
    folder: tempfile::TempDir,
    versions: AtomicUsize,
}

impl Mount {
    fn new() -> Result<Mount> {
        let folder = tempfile::tempdir()?;
        for file in FILES {
            symlink(Path::new("..data").join(file), folder.path().join(file))?;
        }
        Ok(Mount { folder, versions: AtomicUsize::new(0) })
    }

    fn path(&self) -> &str {
        self.folder.path().to_str().unwrap_or_default()
    }

    fn put(&self, certificate: &Bundle, key: &Bundle, cas: &[&Bundle]) -> Result<()> {
        let number = self.versions.fetch_add(1, Ordering::Relaxed);
        let version = PathBuf::from(format!("..{number}"));
        let folder = self.folder.path();
        std::fs::create_dir(folder.join(&version))?;
        let trusted: String = cas.iter().map(|bundle| bundle.ca_cert_pem.as_str()).collect();
        let contents = [certificate.cert_pem.as_str(), key.key_pem.as_str(), &trusted];
        for (file, content) in FILES.iter().zip(contents) {
            std::fs::write(folder.join(&version).join(file), content)?;
        }
        symlink(&version, folder.join("..data_tmp"))?;
        std::fs::rename(folder.join("..data_tmp"), folder.join("..data"))?;
        Ok(())
    }
}

async fn certificates_of_somebody_else_are_served_and_followed(world: &World) -> Result<()> {
    let namespace = world.namespace("mounted").await?;
    let mount = Mount::new()?;
    let [first, second] = [issue(0)?, issue(1)?];
    mount.put(&first, &first, &[&first])?;
    let flags = ["--tls-cert-dir", mount.path(), "--certificate-check-interval", "200ms"];
    world.controllers.restart_with(&flags).await?;
    world.controllers.admissions_while(followed(world, &mount, &first, &second)).await?;
    // The warmers have followed too.
    let app = world.registries.push("mounted", "v1").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    namespace.all_ready(3).await?;
    Ok(())
}

async fn followed(world: &World, mount: &Mount, first: &Bundle, second: &Bundle) -> Result<()> {
    serves(world, first).await?;
    // The next CA is trusted before anything that it has signed is served.
    mount.put(first, first, &[first, second])?;
    let both = format!("{}{}", first.ca_cert_pem, second.ca_cert_pem);
    let published = async || {
        let there = world.admission_port.ca()? == both.as_bytes()
            && world.installation.ca_bundles_are_right().await?;
        Ok(there.then_some(()))
    };
    eventually("both CAs are published", published).await?;
    mount.put(second, second, &[first, second])?;
    serves(world, second).await?;
    // A key that belongs to another certificate: reported, and never served.
    let faults = "imagewarm_certificate_faults_total";
    let before = world.controllers.metric_sum(faults, "").await?;
    mount.put(first, second, &[first, second])?;
    let reported =
        async || Ok((world.controllers.metric_sum(faults, "").await? > before).then_some(()));
    eventually("the pair is reported to be bad", reported).await?;
    ensure!(is_served(world, second).await?, "a bad pair took the place of a good one");
    mount.put(first, first, &[first, second])?;
    serves(world, first).await
}

fn issue(seconds: i64) -> Result<Bundle> {
    let names = ["imagewarm-webhook", "imagewarm-dispatch"]
        .map(|service| format!("{service}.{}.svc", xtask::cluster::NAMESPACE));
    // CAs are told apart by the second of their making.
    let now = Timestamp::now() - SignedDuration::from_secs(seconds);
    Ok(Bundle::issue(&names, Lifetimes::default(), now)?)
}

async fn serves(world: &World, bundle: &Bundle) -> Result<()> {
    let served = async || Ok(is_served(world, bundle).await?.then_some(()));
    eventually("new connections get the new certificate", served).await
}

/// Whether new connections get a certificate that the bundle's CA has signed.
async fn is_served(world: &World, bundle: &Bundle) -> Result<bool> {
    world.admission_port.serves_certificate_of(&bundle.ca_cert_pem).await
}
