//! The resolver of the TLS server's certificate: one pointer that is swapped while connections run.
//! Handshakes in progress continue with their certificate.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// Resolves each TLS handshake to the newest certificate; without one the handshake fails.
#[derive(Default)]
pub struct Resolver {
    current: ArcSwapOption<CertifiedKey>,
}

impl Resolver {
    /// Serves `key` from the next handshake on.
    pub fn swap(&self, key: CertifiedKey) {
        self.current.store(Some(Arc::new(key)));
    }

    /// Whether a certificate is loaded.
    pub fn is_filled(&self) -> bool {
        self.current.load().is_some()
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("is_filled", &self.is_filled()).finish()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // The requested server name is ignored: the client verifies it against the certificate.
        self.current.load_full()
    }
}

/// TLS 1.2 and 1.3 on ring, without client certificates, offering `alpn` in this order.
pub fn server_config(
    resolver: Arc<dyn ResolvesServerCert>,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;
    use crate::issue::{Bundle, Lifetimes};
    use jiff::Timestamp;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName};
    use rustls::{ClientConfig, RootCertStore};
    use std::io;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    fn bundle(name: &str) -> Bundle {
        Bundle::issue(&[name.to_owned()], Lifetimes::default(), Timestamp::now()).unwrap()
    }

    /// One handshake in memory, and a byte each way; the certificate that the client saw.
    pub(crate) async fn shake(
        resolver: &Arc<Resolver>,
        ca_pem: &str,
        name: &str,
    ) -> io::Result<CertificateDer<'static>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (near, far) = tokio::io::duplex(16 * 1024);
        let acceptor = TlsAcceptor::from(server_config(resolver.clone(), &[b"h2"]).unwrap());
        let server = tokio::spawn(async move {
            let mut stream = acceptor.accept(far).await?;
            let byte = stream.read_u8().await?;
            stream.write_u8(byte + 1).await?;
            stream.flush().await
        });
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut stream = TlsConnector::from(Arc::new(client)).connect(name, near).await?;
        stream.write_u8(41).await?;
        stream.flush().await?;
        assert_eq!(stream.read_u8().await?, 42);
        server.await.unwrap()?;
        Ok(stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned())
    }

    #[tokio::test]
    async fn handshakes_follow_the_swap() {
        let resolver = Arc::new(Resolver::default());
        let first = bundle("localhost");
        shake(&resolver, &first.ca_cert_pem, "localhost").await.unwrap_err();

        resolver.swap(first.certified_key().unwrap());
        let seen = shake(&resolver, &first.ca_cert_pem, "localhost").await.unwrap();
        assert!(shake(&resolver, &first.ca_cert_pem, "example.com").await.is_err());

        let ca_not_after = first.check(&[], Timestamp::now()).unwrap().ca_not_after;
        let names = ["localhost".to_owned()];
        let renewed =
            first.renew(&names, Lifetimes::default(), ca_not_after, Timestamp::now()).unwrap();
        resolver.swap(renewed.certified_key().unwrap());
        let seen_after = shake(&resolver, &first.ca_cert_pem, "localhost").await.unwrap();
        assert_ne!(seen, seen_after);

        let foreign = bundle("localhost");
        resolver.swap(foreign.certified_key().unwrap());
        assert!(shake(&resolver, &first.ca_cert_pem, "localhost").await.is_err());
        shake(&resolver, &foreign.ca_cert_pem, "localhost").await.unwrap();
    }
}
