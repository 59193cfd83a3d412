//! The proxy's connections: HTTP/1.1 from the client, HTTP/1.1 over TLS to the API server.

use std::future::pending;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Result;
use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Answer, Call, Decision, Shared};

type Body = Either<Incoming, Full<Bytes>>;

/// How to reach the API server.
pub(super) struct Upstream {
    connector: TlsConnector,
}

impl Upstream {
    pub(super) fn new(ca_pem: &str) -> Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(rustls_pki_types::CertificateDer::from_pem_slice(ca_pem.as_bytes())?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { connector: Arc::new(config).into() })
    }

    async fn connect(&self, address: SocketAddr) -> Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::from(address.ip());
        Ok(self.connector.connect(name, stream).await?)
    }
}

/// Takes connections until it is dropped, which ends them too.
pub(super) async fn serve(shared: Arc<Shared>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let Some(until) = shared.connections() else { continue };
                let served = connection(shared.clone(), stream);
                connections.spawn(until.run_until_cancelled_owned(served));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Ends when either side does; a client may connect again, and does.
async fn connection(shared: Arc<Shared>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let server = shared.lock().server;
    let Ok(upstream) = shared.upstream.connect(server).await else { return };
    let Ok((sender, driver)) = client::handshake(TokioIo::new(upstream)).await else { return };
    let sender = Arc::new(Mutex::new(sender));
    let service = service_fn(move |request| {
        let (shared, sender) = (shared.clone(), sender.clone());
        async move { answer(&shared, &sender, request).await }
    });
    let mut served = pin!(server::Builder::new().serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        _ = &mut served => {}
        _ = driver => {
            served.as_mut().graceful_shutdown();
            let _ = served.await;
        }
    }
}

type Sender = Mutex<client::SendRequest<Incoming>>;

async fn answer(
    shared: &Shared,
    sender: &Sender,
    mut request: Request<Incoming>,
) -> Result<Response<Body>> {
    let call = Call::read(request.method(), request.uri());
    let decision = shared.decide(&call);
    let counted = InFlight { shared, counts: decision.counts(&call) };
    let latency = shared.lock().latency;
    tokio::time::sleep(latency).await;
    match decision {
        Decision::Forward => {
            let response = forward(sender, request).await?;
            Ok(response.map(Either::Left))
        }
        Decision::ForwardWithoutAnswer => {
            forward(sender, request).await?.into_body().collect().await?;
            drop(counted);
            pending().await
        }
        Decision::Instead(Answer::Silence) => pending().await,
        Decision::Instead(Answer::Status(code)) => refusal(code),
        Decision::Instead(Answer::EmptyList) => {
            request.headers_mut().remove(ACCEPT_ENCODING);
            emptied(forward(sender, request).await?).await
        }
    }
}

async fn forward(sender: &Sender, request: Request<Incoming>) -> Result<Response<Incoming>> {
    let mut sender = sender.lock().await;
    sender.ready().await?;
    Ok(sender.send_request(request).await?)
}

/// A write that the API server has not answered yet; counted where it was decided on.
struct InFlight<'a> {
    shared: &'a Shared,
    counts: bool,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if self.counts {
            self.shared.writes_in_flight.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// As the API server words it; for a type that is not served it has no more than plain text.
fn refusal(code: u16) -> Result<Response<Body>> {
    let status = StatusCode::from_u16(code)?;
    let reason = match code {
        403 => "Forbidden",
        410 => "Expired",
        429 => "TooManyRequests",
        _ => "InternalError",
    };
    let (kind, text) = match code {
        404 => ("text/plain", "404 page not found\n".to_owned()),
        _ => {
            // As RBAC words it.
            let message = match code {
                403 => {
                    "imagewarms.caching.knative.dev is forbidden: User \"u\" cannot create \
                        resource \"imagewarms\" in API group \"caching.knative.dev\" in the \
                        namespace \"n\""
                }
                _ => "refused by the proxy",
            };
            let body = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": message, "reason": reason, "code": code,
            });
            ("application/json", body.to_string())
        }
    };
    let response = Response::builder().status(status).header(CONTENT_TYPE, kind);
    Ok(response.body(Either::Right(Full::from(text)))?)
}

/// The list without its objects; its resourceVersion stays true.
async fn emptied(response: Response<Incoming>) -> Result<Response<Body>> {
    let (mut head, body) = response.into_parts();
    let mut body = body.collect().await?.to_bytes();
    if let Ok(mut list) = serde_json::from_slice::<Value>(&body)
        && list["items"].is_array()
    {
        list["items"] = json!([]);
        if let Some(metadata) = list["metadata"].as_object_mut() {
            metadata.retain(|key, _| key == "resourceVersion");
        }
        body = list.to_string().into();
    }
    head.headers.remove(CONTENT_LENGTH);
    head.headers.remove(TRANSFER_ENCODING);
    Ok(Response::from_parts(head, Either::Right(Full::new(body))))
}
