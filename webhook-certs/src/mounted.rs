//! Certificates that somebody else makes (cert-manager, say) and mounts as a folder: `tls.crt`,
//! `tls.key`, `ca.crt`. Looked at by content, for kubelet swaps a symlink beside them, which no
//! watch on the files would tell. A pair that does not hold together is never served.

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

/// More than any certificate chain needs.
const LARGEST: u64 = 1 << 20;

/// Why the folder's certificates are not served.
#[derive(Debug, thiserror::Error)]
pub enum MountedError {
    /// A file is absent or cannot be read.
    #[error("cannot read {path}")]
    File {
        /// Which file.
        path: String,
        /// What happened.
        source: io::Error,
    },
    /// The files do not hold together; perhaps only some of them have been replaced.
    #[error("the certificates in {folder} cannot be served")]
    Bad {
        /// The folder.
        folder: String,
        /// What is wrong.
        source: BundleError,
    },
}

impl MountedError {
    /// One word for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            MountedError::File { .. } => "Unreadable",
            MountedError::Bad { source, .. } => source.reason(),
        }
    }
}

/// Loads and swaps; see [`Mounted::run`].
pub struct Mounted {
    folder: PathBuf,
    names: Vec<String>,
    every: Duration,
    resolver: Arc<Resolver>,
    served: watch::Sender<Option<Served>>,
    /// Hash of what was last taken over.
    taken: Option<[u8; 32]>,
    on_fault: Box<dyn Fn(&MountedError) + Send + Sync>,
}

impl Mounted {
    /// Looks at `folder` every so often; the certificate has to be good for `names`.
    pub fn new(folder: &Path, names: Vec<String>, every: Duration) -> Self {
        Mounted {
            folder: folder.to_owned(),
            names,
            every,
            resolver: Arc::default(),
            served: watch::Sender::new(None),
            taken: None,
            on_fault: Box::new(|_| ()),
        }
    }

    /// Called for each look at which the files could not be taken over; for metrics.
    pub fn on_fault(&mut self, told: impl Fn(&MountedError) + Send + Sync + 'static) {
        self.on_fault = Box::new(told);
    }

    /// For the TLS server.
    pub fn resolver(&self) -> Arc<Resolver> {
        Arc::clone(&self.resolver)
    }

    /// What is being served; `None` until the first load.
    pub fn subscribe(&self) -> watch::Receiver<Option<Served>> {
        self.served.subscribe()
    }

    /// One look. After an error the previous certificate stays in service.
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
        if self.taken == Some(hash) {
            return Ok(());
        }
        let bad = |source| MountedError::Bad { folder: self.folder.display().to_string(), source };
        let (_, not_after) = bundle.verify_serving(&self.names, now).map_err(bad)?;
        let key = bundle.certified_key().map_err(bad)?;
        self.resolver.swap(key);
        self.taken = Some(hash);
        let ends = certificates(&bundle.ca_cert_pem).into_iter().filter_map(end_of);
        let ca_not_after = ends.min().unwrap_or(not_after);
        let ca_cert_pem = Arc::from(bundle.ca_cert_pem.as_str());
        self.served.send_replace(Some(Served { ca_cert_pem, not_after, ca_not_after }));
        info!(%not_after, "serving a new certificate from files");
        Ok(())
    }

    fn read(&self, part: Part) -> Result<String, MountedError> {
        let path = self.folder.join(part.key());
        let told = |source| MountedError::File { path: path.display().to_string(), source };
        let size = fs::metadata(&path).map_err(told)?.len();
        if size > LARGEST {
            return Err(told(io::Error::other("it is larger than 1 MiB")));
        }
        fs::read_to_string(&path).map_err(told)
    }

    /// Looks for ever; drop the future to stop.
    pub async fn run(mut self) {
        let mut said = None;
        loop {
            match self.check(Timestamp::now()) {
                Ok(()) => said = None,
                Err(error) => {
                    (self.on_fault)(&error);
                    let text = format!("{error}: {}", Cause(&error));
                    if said.as_ref() != Some(&text) {
                        let reason = error.reason();
                        let kept = match self.taken {
                            Some(_) => "the certificate in service stays",
                            None => "no certificate can be served yet",
                        };
                        warn!(reason, error = text, "{kept}");
                        said = Some(text);
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

    /// A folder as kubelet keeps it: files are links into `..data`, itself a link that is renamed.
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
        assert!(!served.has_changed().unwrap(), "the same content changes nothing");

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
