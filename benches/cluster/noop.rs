//! The baseline of admission: a server of the same layout (its own process, axum over TLS on all
//! cores) that answers `allowed` and does nothing else.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::routing::post;
use axum::{Json, Router};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// How the baseline's server is started.
#[derive(clap::Args)]
pub struct NoopArgs {
    /// Where it listens; without this the benchmarks run.
    #[arg(long = "noop-listen", hide = true)]
    pub listen: Option<SocketAddr>,
    /// Its certificate, PEM.
    #[arg(long = "noop-certificate", hide = true, default_value = "tls.crt")]
    certificate: PathBuf,
    /// Its key, PEM.
    #[arg(long = "noop-key", hide = true, default_value = "tls.key")]
    key: PathBuf,
}

#[derive(Deserialize)]
struct Review {
    request: Request,
}

#[derive(Deserialize)]
struct Request {
    uid: String,
}

async fn allow(Json(review): Json<Review>) -> Json<Value> {
    Json(json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "response": {"uid": review.request.uid, "allowed": true},
    }))
}

/// Serves until it is killed.
pub async fn serve(address: SocketAddr, args: &NoopArgs) -> Result<()> {
    let chain = CertificateDer::pem_file_iter(&args.certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&args.key)?;
    let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let router = Router::new().route("/mutate", post(allow));
    let listener = TcpListener::bind(address).await.context("listen")?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (acceptor, router) = (acceptor.clone(), router.clone());
        // Ends with its connection, or with the process.
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = TowerToHyperService::new(router);
            let builder = Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
