//! The port where one replica takes admission requests, reached without the API server: raw TLS,
//! raw HTTP, and whose certificate is served.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::DEADLINE;
use super::controllers::Controllers;

pub const SERVICE: &str = "imagewarm-webhook.imagewarm-system.svc";
/// The webhook that validates ImageWarms.
pub const VALIDATION: &str = "validation.imagewarms.caching.knative.dev";

#[derive(Clone)]
pub struct AdmissionPort {
    controllers: Controllers,
}

impl AdmissionPort {
    pub fn new(controllers: &Controllers) -> AdmissionPort {
        AdmissionPort { controllers: controllers.clone() }
    }

    /// Of the first replica that runs, behind no forwarder.
    pub fn address(&self) -> Result<SocketAddr> {
        let controllers = self.controllers.replicas();
        let controller = controllers.first().context("no controller runs")?;
        controller.webhook().context("the controller has no admission port")
    }

    /// The CA of the controllers' certificates, PEM.
    pub fn ca(&self) -> Result<Vec<u8>> {
        self.controllers.published_ca()
    }

    pub async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address()?).await?;
        Ok(trusting(&self.ca()?)?.connect(ServerName::try_from(SERVICE)?, stream).await?)
    }

    /// Whether a new connection gets a certificate that this CA has signed.
    pub async fn serves_certificate_of(&self, ca: &str) -> Result<bool> {
        let stream = TcpStream::connect(self.address()?).await?;
        let connector = trusting(ca.as_bytes())?;
        Ok(connector.connect(ServerName::try_from(SERVICE)?, stream).await.is_ok())
    }

    /// The path that is published for a webhook.
    pub async fn path(&self, webhook: &str) -> Result<String> {
        self.controllers.cluster().webhook_path(webhook).await
    }

    /// Posts a body to the path where ImageWarms are validated; returns the whole answer, with its
    /// head.
    pub async fn post(&self, content_type: &str, body: &[u8]) -> Result<String> {
        self.post_to(&self.path(VALIDATION).await?, content_type, body).await
    }

    /// The same to any path.
    pub async fn post_to(&self, path: &str, content_type: &str, body: &[u8]) -> Result<String> {
        let mut stream = self.connect().await?;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        // Cut off early is as good as read to the end.
        let _ = tokio::time::timeout(DEADLINE, stream.write_all(body)).await?;
        until_closed(stream).await
    }
}

fn trusting(ca: &[u8]) -> Result<TlsConnector> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// All that the other side sends until it closes; of a connection that is cut, what came before.
pub async fn until_closed(mut stream: impl AsyncReadExt + Unpin) -> Result<String> {
    let mut received = vec![];
    let reading = async {
        let mut part = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut part).await {
            received.extend_from_slice(&part[..count]);
        }
    };
    tokio::time::timeout(DEADLINE, reading).await.context("the connection was not closed")?;
    Ok(String::from_utf8_lossy(&received).into_owned())
}
