//! The one client of the API server: where it is, and how long anything may take.
//!
//! The client speaks HTTP/1.1 (each watch and each call in flight is a connection of its own) and
//! retries 429, 503 and 504; the time limits here and in `apply` bound these retries too.

use std::io::ErrorKind::NotFound;
use std::path::PathBuf;
use std::time::Duration;

use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tower::timeout::TimeoutLayer;

use super::proxy::{ProxyError, proxy};
use super::request::request;
use imagewarm_core::api::server_version::{OLDEST_MINOR, is_served};
use imagewarm_core::image::quoted::{MESSAGE_MAX, QUOTED_MAX, printable};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Until the head of a response; a watch answers at once and then stays open.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Without a byte for so long a connection is dead: watches end on the server after 290 s.
const READ_TIMEOUT: Duration = Duration::from_secs(300);
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// How to reach the API server.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct ClientArgs {
    /// Kubeconfig file. By default the first that exists of $KUBECONFIG, ~/.kube/config and the
    /// Pod's own ServiceAccount
    #[arg(long, value_name = "FILE", env = "IMAGEWARM_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig. By default its current context
    #[arg(long, value_name = "NAME", env = "IMAGEWARM_CONTEXT")]
    pub context: Option<String>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// No way to the API server was found.
    #[error(
        "no kubeconfig found: give --kubeconfig FILE, set KUBECONFIG, or run in a cluster ({0})"
    )]
    NoConfig(String),
    /// A kubeconfig was named, or found, but cannot be used.
    #[error("cannot use the kubeconfig {file}: {cause}")]
    BadConfig {
        /// Where it is.
        file: String,
        /// What is wrong.
        cause: String,
    },
    /// The proxy cannot be used.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The configuration cannot be turned into a client.
    #[error("cannot set up the client for {server}: {cause}")]
    Setup {
        /// Address of the API server.
        server: String,
        /// What is wrong.
        cause: String,
    },
    /// The kubeconfig's client certificate cannot be used.
    #[error("cannot use the client certificate of the kubeconfig: {problem}")]
    ClientCertificate {
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// The API server did not answer.
    #[error("cannot reach the API server: {0}")]
    Unreachable(String),
    /// The API server is too old.
    #[error("the API server is Kubernetes {found}; the oldest that works is 1.{OLDEST_MINOR}")]
    TooOld {
        /// Its version.
        found: String,
    },
}

impl ClientArgs {
    /// Makes the client. Nothing is sent yet.
    pub(crate) async fn connect(&self) -> Result<Client, ClientError> {
        let mut config = self.config().await?;
        let kubeconfig = match &self.kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        // In a Pod there is none.
        let (kubeconfig, context) = (kubeconfig.ok(), self.context.as_deref());
        let variable = |name: &str| std::env::var(name).ok();
        config.proxy_url = proxy(kubeconfig.as_ref(), context, &config.cluster_url, variable)?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(READ_TIMEOUT);
        config.write_timeout = Some(WRITE_TIMEOUT);
        // Else the time that a pooled connection lay idle would count as reading.
        config.reset_reader_on_write = true;
        let server = config.cluster_url.to_string();
        let builder = ClientBuilder::try_from(config).map_err(|error| {
            match client_certificate_problem(&error) {
                Some(problem) => ClientError::ClientCertificate { problem },
                None => ClientError::Setup { server, cause: error.to_string() },
            }
        })?;
        Ok(builder.with_layer(&TimeoutLayer::new(HEAD_TIMEOUT)).build())
    }

    async fn config(&self) -> Result<Config, ClientError> {
        let options =
            KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let variable = std::env::var_os("KUBECONFIG");
        let file = match (&self.kubeconfig, &variable) {
            (Some(path), _) => path.display().to_string(),
            (None, Some(paths)) => paths.display().to_string(),
            (None, None) => "~/.kube/config".into(),
        };
        let bad = |error| ClientError::BadConfig { file, cause: first_line(&error) };
        if let Some(path) = &self.kubeconfig {
            let kubeconfig = match Kubeconfig::read_from(path) {
                Ok(kubeconfig) => kubeconfig,
                Err(error) => return Err(bad(error)),
            };
            return Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(bad);
        }
        if self.context.is_some() || variable.is_some() {
            return Config::from_kubeconfig(&options).await.map_err(bad);
        }
        match Config::infer().await {
            Ok(config) => Ok(config),
            // Why there is no way at all; or what is wrong with the file that would have been it.
            Err(error) => match Config::from_kubeconfig(&options).await {
                Err(KubeconfigError::ReadConfig(cause, _)) if cause.kind() == NotFound => {
                    Err(ClientError::NoConfig(first_line(&error)))
                }
                tried => tried.map_err(bad),
            },
        }
    }
}

/// What is wrong with the client certificate, if that is what is wrong. The TLS library calls the
/// certificate that it checks the peer's, whoever it belongs to.
fn client_certificate_problem(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(rustls::Error::InvalidCertificate(problem)) = error.downcast_ref() {
            let text = format!("{problem:?}");
            return Some(if text.contains("UnsupportedCertVersion") {
                "it is of X.509 version 1 or 2: it must be of version 3, which one with extensions \
                 is, such as extendedKeyUsage = clientAuth"
                    .to_owned()
            } else {
                printable(&text, MESSAGE_MAX)
            });
        }
        cause = error.source();
    }
    None
}

/// Errors of the YAML parser go on with an excerpt of the file, which may hold a credential.
fn first_line(error: &dyn std::error::Error) -> String {
    printable(error.to_string().lines().next().unwrap_or_default(), MESSAGE_MAX)
}

/// Asks the API server for its version, and fails when that is too old. Returns it (`v1.36.3`).
pub(crate) async fn check_server_version(client: &Client) -> Result<String, ClientError> {
    let info = request(HEAD_TIMEOUT, client.apiserver_version())
        .await
        .map_err(|error| ClientError::Unreachable(error.to_string()))?;
    if is_served(&info.major, &info.minor) {
        Ok(info.git_version)
    } else {
        Err(ClientError::TooOld { found: printable(&info.git_version, QUOTED_MAX) })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_missing_kubeconfig_is_one_clear_line() {
        let args = ClientArgs { kubeconfig: Some("/nowhere/config".into()), context: None };
        let text = match args.connect().await {
            Err(error) => error.to_string(),
            Ok(_) => String::new(),
        };
        assert!(text.contains("/nowhere/config") && !text.contains('\n'), "{text}");
    }
}
