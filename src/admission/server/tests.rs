//! Tests of the server over loopback, with real TLS: slow and malformed clients, the connection
//! limit, and the drain.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io;
use std::net::SocketAddr;

use axum::routing::{get, post};
use hyper::client::conn::http1;
use imagewarm_webhook_certs::{Bundle, Lifetimes, Resolver, server_config};
use prometheus_client::registry::Registry;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as ClientStream;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use super::*;
use crate::listener::Place;
use crate::telemetry::metrics;

/// Longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(20);

struct Bench {
    address: SocketAddr,
    connector: TlsConnector,
    registry: Registry,
    metrics: WebhookMetrics,
    stop: CancellationToken,
    server: JoinHandle<()>,
    /// One permit for each `/slow` that has begun.
    begun: Arc<Semaphore>,
    /// Lets `/slow` answer.
    release: CancellationToken,
}

fn limits() -> Limits {
    Limits {
        connections: 16,
        handshake: DEADLINE,
        head: DEADLINE,
        idle: Duration::from_secs(60),
        drain: Duration::from_secs(15),
    }
}

async fn bench(limits: Limits) -> Bench {
    let now = jiff::Timestamp::now();
    let bundle = Bundle::issue(&["localhost".to_owned()], Lifetimes::default(), now).unwrap();
    let resolver = Arc::new(Resolver::default());
    resolver.swap(bundle.certified_key().unwrap());
    let connector = {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(bundle.ca_cert_pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        // As API servers do.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        TlsConnector::from(Arc::new(config))
    };
    let (begun, release) = (Arc::new(Semaphore::new(0)), CancellationToken::new());
    let (begin, wait) = (Arc::clone(&begun), release.clone());
    let echo = async |place: axum::Extension<Place>, body: String| {
        place.prove();
        body
    };
    let router = Router::new().route("/echo", post(echo)).route(
        "/slow",
        get(async move || {
            begin.add_permits(1);
            wait.cancelled().await;
            "done"
        }),
    );
    let mut registry = Registry::default();
    let metrics = WebhookMetrics::register(&mut registry);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let tls = server_config(resolver, ALPN).unwrap();
    let server = tokio::spawn(serve(listener, tls, router, limits, metrics.clone(), stop.clone()));
    Bench { address, connector, registry, metrics, stop, server, begun, release }
}

impl Bench {
    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn tls(&self) -> io::Result<ClientStream<TcpStream>> {
        let name = ServerName::try_from("localhost").unwrap();
        self.connector.connect(name, self.tcp().await).await
    }

    async fn h1(&self) -> http1::SendRequest<String> {
        let stream = TokioIo::new(self.tls().await.unwrap());
        let (sender, connection) = http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    async fn stopped(self) {
        self.stop.cancel();
        timeout(DEADLINE, self.server).await.unwrap().unwrap();
        assert_eq!(self.metrics.connections.get(), 0);
    }
}

fn request(method: &str, path: &str, body: &str) -> hyper::Request<String> {
    let uri = format!("https://localhost{path}");
    hyper::Request::builder()
        .method(method)
        .uri(uri)
        .header("host", "localhost")
        .body(body.to_owned())
        .unwrap()
}

async fn text(answer: hyper::Response<Incoming>) -> String {
    use http_body_util::BodyExt;
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// Reads until the server closes the connection, cleanly or not.
async fn until_closed(mut stream: impl tokio::io::AsyncRead + Unpin) -> Vec<u8> {
    let mut all = Vec::new();
    let _ = timeout(DEADLINE, stream.read_to_end(&mut all)).await.expect("not closed in time");
    all
}

#[tokio::test]
async fn connections_are_reused() {
    let bench = bench(limits()).await;
    let mut h1 = bench.h1().await;
    for body in ["one", "two"] {
        let answer = h1.send_request(request("POST", "/echo", body)).await.unwrap();
        assert_eq!(answer.version(), hyper::Version::HTTP_11);
        assert_eq!(text(answer).await, body);
        h1.ready().await.unwrap();
    }
    assert_eq!(bench.metrics.connections.get(), 1);
    bench.stopped().await;
}

#[tokio::test]
async fn malformed_and_slow_handshakes_are_closed() {
    let bench = bench(Limits { handshake: Duration::from_millis(200), ..limits() }).await;
    let mut plain = bench.tcp().await;
    plain.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(!until_closed(plain).await.starts_with(b"HTTP"));
    let half_open = bench.tcp().await;
    until_closed(half_open).await;
    let text = metrics::encode(&bench.registry).unwrap();
    for fault in ["Failed", "TimedOut"] {
        let line = format!("webhook_handshake_failures_total{{fault=\"{fault}\"}} 1");
        assert!(text.contains(&line), "{text}");
    }
    bench.stopped().await;
}

#[tokio::test]
async fn a_slow_head_is_closed_but_an_idle_connection_is_not() {
    let bench = bench(Limits { head: Duration::from_millis(200), ..limits() }).await;
    let mut idle = bench.h1().await;
    let answer = idle.send_request(request("POST", "/echo", "x")).await.unwrap();
    assert_eq!(text(answer).await, "x");

    let mut slow = bench.tls().await.unwrap();
    slow.write_all(b"POST /echo HTTP/1.1\r\nhost: x\r\n").await.unwrap();
    until_closed(slow).await;
    assert_eq!(bench.metrics.header_timeouts.get(), 1);

    // It has now been idle for longer than a head may take.
    idle.ready().await.unwrap();
    let answer = idle.send_request(request("POST", "/echo", "y")).await.unwrap();
    assert_eq!(text(answer).await, "y");

    // A slow head on a connection that has served a request is closed as well.
    let mut later = bench.tls().await.unwrap();
    let head = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nz";
    later.write_all(head).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nz") {
        answer.push(timeout(DEADLINE, later.read_u8()).await.unwrap().unwrap());
    }
    later.write_all(b"POST").await.unwrap();
    until_closed(later).await;
    assert_eq!(bench.metrics.header_timeouts.get(), 2);
    bench.stopped().await;
}

#[tokio::test]
async fn a_connection_that_is_idle_too_long_is_closed() {
    let bench = bench(Limits { idle: Duration::from_millis(200), ..limits() }).await;
    until_closed(bench.tls().await.unwrap()).await;
    assert_eq!(bench.metrics.header_timeouts.get(), 0);
    bench.stopped().await;
}

#[tokio::test]
async fn a_crowd_of_silent_connections_is_displaced_by_those_that_call() {
    let bench = bench(Limits { connections: 4, ..limits() }).await;
    let mut known = bench.h1().await;
    let answer = known.send_request(request("POST", "/echo", "x")).await.unwrap();
    assert_eq!(text(answer).await, "x");
    let mut crowd = Vec::new();
    for number in 0..20 {
        // Half-open, and silent after their handshake.
        let silent = if number % 2 == 0 { None } else { bench.tls().await.ok() };
        crowd.push((bench.tcp().await, silent));
        let mut caller = bench.h1().await;
        let answer = caller.send_request(request("POST", "/echo", "y")).await.unwrap();
        assert_eq!(text(answer).await, "y", "in a crowd of {number}");
    }
    known.ready().await.unwrap();
    let answer = known.send_request(request("POST", "/echo", "z")).await.unwrap();
    assert_eq!(text(answer).await, "z", "a connection that has called stays");
    let displaced = bench.metrics.displaced.get();
    assert!(displaced >= 20, "{displaced}");
    bench.stopped().await;
}

#[tokio::test]
async fn a_connection_that_calls_nothing_is_closed() {
    let short = Duration::from_millis(100);
    let bench = bench(Limits { handshake: short, head: short, ..limits() }).await;
    // Its request is to no path that is served.
    let mut stranger = bench.h1().await;
    let answer = stranger.send_request(request("POST", "/elsewhere", "")).await.unwrap();
    assert_eq!(answer.status(), 404);
    let silent = bench.tls().await.unwrap();
    until_closed(silent).await;
    timeout(DEADLINE, async {
        while stranger.ready().await.is_ok() {
            tokio::task::yield_now().await
        }
    })
    .await
    .unwrap();
    bench.stopped().await;
}

#[tokio::test]
async fn the_drain_completes_requests_and_accepts_no_connection() {
    let bench = bench(limits()).await;
    let idle = bench.tls().await.unwrap();
    let (mut one, mut other) = (bench.h1().await, bench.h1().await);
    let slow = [
        tokio::spawn(one.send_request(request("GET", "/slow", ""))),
        tokio::spawn(other.send_request(request("GET", "/slow", ""))),
    ];
    drop(timeout(DEADLINE, bench.begun.acquire_many(2)).await.unwrap().unwrap());
    bench.stop.cancel();
    until_closed(idle).await;
    timeout(DEADLINE, async { while TcpStream::connect(bench.address).await.is_ok() {} })
        .await
        .unwrap();
    assert!(!bench.server.is_finished());
    bench.release.cancel();
    for answer in slow {
        let answer = timeout(DEADLINE, answer).await.unwrap().unwrap().unwrap();
        assert_eq!(text(answer).await, "done");
    }
    bench.stopped().await;
}

#[tokio::test]
async fn the_drain_ends_at_its_deadline() {
    let bench = bench(Limits { drain: Duration::from_millis(100), ..limits() }).await;
    let mut h1 = bench.h1().await;
    let stuck = tokio::spawn(h1.send_request(request("GET", "/slow", "")));
    drop(timeout(DEADLINE, bench.begun.acquire()).await.unwrap().unwrap());
    bench.stopped().await;
    assert!(timeout(DEADLINE, stuck).await.unwrap().unwrap().is_err());
}
