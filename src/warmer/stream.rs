//! One stream to the leading controller: where it is, TLS, the token. Does not interpret the messages.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, version};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status, Streaming};

use crate::protocol::dispatch_client::DispatchClient;
use imagewarm_core::error_chain::root_cause;
use imagewarm_core::image::quoted::{MESSAGE_MAX, printable, quoted};
use imagewarm_core::protocol::{FromController, FromWarmer, Hello, LEADER_METADATA, from_warmer};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout for the controller to accept the stream: many warmers may connect at once, and each
/// token is reviewed.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(45);
/// Interval of HTTP/2 keep-alive pings; a connection without a reply in time is closed.
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Capacity of the channel of messages from the main loop to the connection.
const UNSENT: usize = 64;
const LARGEST_MESSAGE: usize = 1024 * 1024;

/// URL of the dispatch server: `https://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAddress {
    host: String,
    port: u16,
}

impl std::str::FromStr for ServerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || "must look like https://imagewarm-dispatch.imagewarm-system.svc:8444".to_owned();
        let address = text.strip_prefix("https://").ok_or_else(wrong)?.trim_end_matches('/');
        Self::parse(address).ok_or_else(wrong)
    }
}

impl ServerAddress {
    /// `host:port`, `[address]:port`.
    fn parse(address: &str) -> Option<Self> {
        let authority: http::uri::Authority = address.parse().ok()?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16()?;
        (!host.is_empty() && !address.contains(['@', '/'])).then_some(ServerAddress { host, port })
    }
}

/// Settings needed to open a stream.
#[derive(Clone, Debug)]
pub(super) struct StreamSettings {
    pub(super) server: ServerAddress,
    pub(super) server_name: ServerName<'static>,
    pub(super) ca_file: PathBuf,
    pub(super) token_file: PathBuf,
}

impl StreamSettings {
    /// The name that the server's certificate must contain: the one given, or the server's host.
    pub(super) fn server_name(
        server: &ServerAddress,
        name: Option<&str>,
    ) -> Result<ServerName<'static>, String> {
        let name = name.unwrap_or(&server.host).to_owned();
        ServerName::try_from(name.clone())
            .map_err(|_| format!("{} is not a DNS name or IP address", quoted(&name)))
    }
}

/// Why the stream could not be opened, or why it terminated.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A file cannot be read; it may be created later.
    #[error("cannot read {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file has invalid content.
    #[error("{path} {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// The fault.
        problem: &'static str,
    },
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// The server cannot be reached.
    #[error("cannot connect to {address}: {problem}")]
    Connect {
        /// The server's address.
        address: String,
        /// The cause.
        problem: String,
    },
    /// The server does not lead; with the leader's address if the server reports it.
    #[error("the replica does not lead")]
    NotLeading(Option<ServerAddress>),
    /// The server rejected the stream, or terminated it.
    #[error("the stream terminated: {} ({:?})", printable(.0.message(), MESSAGE_MAX), .0.code())]
    Ended(Box<Status>),
}

impl StreamError {
    /// Whether a controller has answered, and will have none of it.
    pub(super) fn is_rejection(&self) -> bool {
        match self {
            StreamError::Ended(status) => status.code() != Code::Unavailable,
            StreamError::Connect { .. } | StreamError::NotLeading(_) => false,
            // Files may be created later; kubelets take a minute or so to replace them.
            StreamError::File { .. } | StreamError::Content { .. } | StreamError::Tls(_) => false,
        }
    }
}

impl From<Status> for StreamError {
    fn from(status: Status) -> Self {
        if status.code() != Code::FailedPrecondition {
            return StreamError::Ended(Box::new(status));
        }
        let leader = status.metadata().get(LEADER_METADATA).and_then(|value| value.to_str().ok());
        StreamError::NotLeading(leader.and_then(ServerAddress::parse))
    }
}

/// An open stream.
pub(super) struct Session {
    pub(super) outgoing: mpsc::Sender<FromWarmer>,
    pub(super) incoming: Streaming<FromController>,
}

/// Opens a stream to `target` and sends `hello`. Reads the files for each stream.
pub(super) async fn open(
    settings: &StreamSettings,
    target: &ServerAddress,
    hello: Hello,
) -> Result<Session, StreamError> {
    let token = read_token(&settings.token_file)?;
    let tls = TlsConnector::from(Arc::new(client_config(&settings.ca_file)?));
    let address = format!("{}:{}", bracketed(&target.host), target.port);
    let connect = |problem: String| StreamError::Connect { address: address.clone(), problem };
    let (host, port, name) = (target.host.clone(), target.port, settings.server_name.clone());
    let connector = tower::service_fn(move |_: http::Uri| {
        let (host, name, tls) = (host.clone(), name.clone(), tls.clone());
        async move {
            let tcp = TcpStream::connect((host.as_str(), port)).await?;
            tcp.set_nodelay(true)?;
            Ok::<_, io::Error>(TokioIo::new(tls.connect(name, tcp).await?))
        }
    });
    // The connector does TLS, so tonic uses a plain connection.
    let endpoint = Endpoint::try_from(format!("http://{address}"))
        .map_err(|error| connect(error.to_string()))?
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true);
    let channel = tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect_with_connector(connector))
        .await
        .map_err(|_| connect("no response in time".into()))?
        .map_err(|error| connect(root_cause(&error)))?;

    let mut client = DispatchClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE);
    let (outgoing, messages) = mpsc::channel(UNSENT);
    let hello = FromWarmer { message: Some(from_warmer::Message::Hello(hello)) };
    // Cannot fail: the channel is new and empty.
    let _ = outgoing.try_send(hello);
    let mut request = Request::new(ReceiverStream::new(messages));
    request.metadata_mut().insert("authorization", token);
    let response = tokio::time::timeout(ACCEPT_TIMEOUT, client.session(request))
        .await
        .map_err(|_| connect("the stream was not accepted in time".into()))??;
    Ok(Session { outgoing, incoming: response.into_inner() })
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

fn read(path: &Path) -> Result<Vec<u8>, StreamError> {
    // Small files on a memory file system: blocking is short.
    fs::read(path).map_err(|source| StreamError::File { path: path.to_owned(), source })
}

fn read_token(path: &Path) -> Result<MetadataValue<Ascii>, StreamError> {
    let wrong = |problem| StreamError::Content { path: path.to_owned(), problem };
    let bytes = read(path)?;
    let token = std::str::from_utf8(&bytes).map_err(|_| wrong("holds no token"))?.trim();
    if token.is_empty() {
        return Err(wrong("is empty"));
    }
    let mut value: MetadataValue<Ascii> =
        format!("Bearer {token}").parse().map_err(|_| wrong("holds no token"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn client_config(ca_file: &Path) -> Result<ClientConfig, StreamError> {
    let wrong = |problem| StreamError::Content { path: ca_file.to_owned(), problem };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&read(ca_file)?) {
        let certificate = certificate.map_err(|_| wrong("is not PEM"))?;
        roots.add(certificate)?;
    }
    if roots.is_empty() {
        return Err(wrong("holds no certificate"));
    }
    let mut config =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])?
            .with_root_certificates(roots)
            .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn server_addresses_are_checked_at_the_start() {
        let good = [
            ("https://dispatch.imagewarm-system.svc:8444", "dispatch.imagewarm-system.svc", 8444),
            ("https://10.0.0.1:1/", "10.0.0.1", 1),
            ("https://[::1]:9", "::1", 9),
        ];
        for (text, host, port) in good {
            let expected = ServerAddress { host: host.into(), port };
            assert_eq!(text.parse::<ServerAddress>(), Ok(expected));
        }
        for text in ["http://a:1", "https://a", "a:1", "https://", "https://u@a:1", "https://a:1/x"]
        {
            assert!(text.parse::<ServerAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_replica_that_does_not_lead_reports_the_leader() {
        let mut status = Status::failed_precondition("no");
        status.metadata_mut().insert(LEADER_METADATA, "10.0.0.7:8444".parse().unwrap());
        let StreamError::NotLeading(Some(leader)) = status.into() else { unreachable!() };
        assert_eq!((leader.host.as_str(), leader.port), ("10.0.0.7", 8444));
        let status = Status::failed_precondition("no leader");
        assert!(matches!(status.into(), StreamError::NotLeading(None)));
        let error = StreamError::from(Status::unauthenticated("x"));
        assert!(matches!(error, StreamError::Ended(_)));
    }

    #[test]
    fn unusable_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.crt");
        let error = client_config(&file).unwrap_err().to_string();
        assert!(error.contains("cannot read") && error.contains("ca.crt"), "{error}");
        fs::write(&file, "").unwrap();
        assert!(client_config(&file).unwrap_err().to_string().ends_with("holds no certificate"));
        assert!(read_token(&file).unwrap_err().to_string().ends_with("is empty"));
        fs::write(&file, "a\nb").unwrap();
        assert!(read_token(&file).unwrap_err().to_string().ends_with("holds no token"));
        fs::write(&file, "token\n").unwrap();
        assert_eq!(read_token(&file).unwrap(), "Bearer token");
    }
}
