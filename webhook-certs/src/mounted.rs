//! Certificates that another program (such as cert-manager) issues, mounted as a directory:
//! `tls.crt`, `tls.key`, `ca.crt`. Changes are detected by content: the kubelet replaces a symbolic
//! link beside the files, which a watch on the files does not report. A certificate without its key
//! is never served.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::check::{BundleError, Part};
use crate::issue::Bundle;
use crate::keeper::Served;
use crate::rotate::{certificates, end_of};
use crate::serve::Resolver;

/// Maximum size of a file, in bytes; more than any certificate chain needs.
const MAX_FILE_SIZE: u64 = 1 << 20;

/// Why the directory's certificates are not served.
#[derive(Debug, thiserror::Error)]
pub enum MountedError {
    /// A file is absent or cannot be read.
    #[error("cannot read {path}")]
    File {
        /// The file.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// The files do not match; possibly only some of them have been replaced.
    #[error("the certificates in {folder} cannot be served")]
    Bad {
        /// The directory.
        folder: String,
        /// The fault.
        source: BundleError,
    },
}

impl MountedError {
    /// The reason, for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            MountedError::File { .. } => "Unreadable",
            MountedError::Bad { source, .. } => source.reason(),
        }
    }
}

/// Loads and swaps mounted certificates; see [`Mounted::run`].
pub struct Mounted {
    folder: PathBuf,
    names: Vec<String>,
    every: Duration,
    resolver: Arc<Resolver>,
    served: watch::Sender<Option<Served>>,
    /// Hash of the files in use.
    loaded: Option<[u8; 32]>,
    on_fault: Box<dyn Fn(&MountedError) + Send + Sync>,
}

impl Mounted {
    /// Checks `folder` at the interval `every`; the certificate must be valid for `names`.
    pub fn new(folder: &Path, names: Vec<String>, every: Duration) -> Self {
        Mounted {
            folder: folder.to_owned(),
            names,
            every,
            resolver: Arc::default(),
            served: watch::Sender::new(None),
            loaded: None,
            on_fault: Box::new(|_| ()),
        }
    }

    /// Sets the function to call for each failed check; for metrics.
    pub fn on_fault(&mut self, on_fault: impl Fn(&MountedError) + Send + Sync + 'static) {
        self.on_fault = Box::new(on_fault);
    }

    /// The resolver for the TLS server.
    pub fn resolver(&self) -> Arc<Resolver> {
        Arc::clone(&self.resolver)
    }

    /// The served certificate; `None` until the first load.
    pub fn subscribe(&self) -> watch::Receiver<Option<Served>> {
        self.served.subscribe()
    }

    /// Checks once. After an error the previous certificate stays in service.
    pub fn check(&mut self, now: Timestamp) -> Result<(), MountedError> {
        let bundle = Bundle {
            ca_cert_pem: self.read(Part::CaCertificate)?,
            ca_key_pem: String::new(),
            cert_pem: self.read(Part::Certificate)?,
            key_pem: self.read(Part::Key)?,
        };
        let mut hash = Sha256::new();
        for part in [&bundle.ca_cert_pem, &bundle.cert_pem, &bundle.key_pem] {
            hash.update(Sha256::digest(part));
        }
        let hash: [u8; 32] = hash.finalize().into();
        if self.loaded == Some(hash) {
            return Ok(());
        }
        let bad = |source| MountedError::Bad { folder: self.folder.display().to_string(), source };
        let (_, not_after) = bundle.verify_serving(&self.names, now).map_err(bad)?;
        let key = bundle.certified_key().map_err(bad)?;
        self.resolver.swap(key);
        self.loaded = Some(hash);
        let ends = certificates(&bundle.ca_cert_pem).into_iter().filter_map(end_of);
        let ca_not_after = ends.min().unwrap_or(not_after);
        let ca_cert_pem = Arc::from(bundle.ca_cert_pem.as_str());
        self.served.send_replace(Some(Served { ca_cert_pem, not_after, ca_not_after }));
        info!(%not_after, "serving a new certificate from files");
        Ok(())
    }

    fn read(&self, part: Part) -> Result<String, MountedError> {
        let path = self.folder.join(part.key());
        let unreadable = |source| MountedError::File { path: path.display().to_string(), source };
        let size = fs::metadata(&path).map_err(unreadable)?.len();
        if size > MAX_FILE_SIZE {
            return Err(unreadable(io::Error::other("the file is larger than 1 MiB")));
        }
        fs::read_to_string(&path).map_err(unreadable)
    }

    /// Checks until the future is dropped.
    pub async fn run(mut self) {
        let mut logged = None;
        loop {
            match self.check(Timestamp::now()) {
                Ok(()) => logged = None,
                Err(error) => {
                    (self.on_fault)(&error);
                    let text = format!("{error}: {}", Cause(&error));
                    if logged.as_ref() != Some(&text) {
                        let reason = error.reason();
                        let serving = self.loaded.is_some();
                        warn!(reason, error = text, serving, "mounted certificates rejected");
                        logged = Some(text);
                    }
                }
            }
            tokio::time::sleep(self.every).await;
        }
    }
}

struct Cause<'a>(&'a MountedError);

impl std::fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            MountedError::File { source, .. } => source.fmt(f),
            MountedError::Bad { source, .. } => source.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;
    use crate::issue::Lifetimes;
    use crate::serve::tests::shake;
    use std::os::unix::fs::symlink;

    fn bundle() -> Bundle {
        let names = ["localhost".to_owned()];
        Bundle::issue(&names, Lifetimes::default(), Timestamp::now()).unwrap()
    }

    /// A directory as the kubelet mounts it: files link into `..data`, a link that is replaced.
    fn mount(folder: &Path, version: &str, bundle: &Bundle) {
        let data = folder.join(version);
        fs::create_dir(&data).unwrap();
        fs::write(data.join("ca.crt"), &bundle.ca_cert_pem).unwrap();
        fs::write(data.join("tls.crt"), &bundle.cert_pem).unwrap();
        fs::write(data.join("tls.key"), &bundle.key_pem).unwrap();
        symlink(version, folder.join("..data_tmp")).unwrap();
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
        for file in ["ca.crt", "tls.crt", "tls.key"] {
            if !folder.join(file).is_symlink() {
                symlink(Path::new("..data").join(file), folder.join(file)).unwrap();
            }
        }
    }

    #[tokio::test]
    async fn new_connections_follow_kubelets_swap_and_no_half_pair_is_served() {
        let folder = tempfile::tempdir().unwrap();
        let every = Duration::from_secs(60);
        let mut mounted = Mounted::new(folder.path(), vec!["localhost".into()], every);
        let mut served = mounted.subscribe();
        let error = mounted.check(Timestamp::now()).unwrap_err();
        assert_eq!(error.reason(), "Unreadable");

        let (first, second, third) = (bundle(), bundle(), bundle());
        mount(folder.path(), "..1", &first);
        mounted.check(Timestamp::now()).unwrap();
        let resolver = mounted.resolver();
        shake(&resolver, &first.ca_cert_pem, "localhost").await.unwrap();
        assert_eq!(&*served.borrow_and_update().clone().unwrap().ca_cert_pem, first.ca_cert_pem);
        mounted.check(Timestamp::now()).unwrap();
        assert!(!served.has_changed().unwrap(), "unchanged content is not published");

        mount(folder.path(), "..2", &second);
        mounted.check(Timestamp::now()).unwrap();
        shake(&resolver, &second.ca_cert_pem, "localhost").await.unwrap();
        assert!(shake(&resolver, &first.ca_cert_pem, "localhost").await.is_err());

        let cut = third.key_pem[..60].to_owned();
        let foreign = Bundle { ca_cert_pem: first.ca_cert_pem.clone(), ..third.clone() };
        for (version, bad, reason) in [
            ("..3", Bundle { key_pem: second.key_pem.clone(), ..third.clone() }, "KeyMismatch"),
            ("..4", Bundle { key_pem: cut, ..third.clone() }, "Corrupted"),
            ("..5", foreign, "Foreign"),
        ] {
            mount(folder.path(), version, &bad);
            let error = mounted.check(Timestamp::now()).unwrap_err();
            assert_eq!(error.reason(), reason);
            shake(&resolver, &second.ca_cert_pem, "localhost").await.unwrap();
        }
        mount(folder.path(), "..6", &third);
        mounted.check(Timestamp::now()).unwrap();
        shake(&resolver, &third.ca_cert_pem, "localhost").await.unwrap();
    }
}
