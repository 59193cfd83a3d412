//! `/livez`, `/readyz` and `/metrics` over plain HTTP on a separate port, so that probes and
//! scrapers need no certificate and do not compete with admission requests.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use imagewarm_core::throttle::connections::Limits;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::metrics;
use crate::listener::{self, ConnectionLimits, Places};

/// How long responses in progress may take after shutdown begins.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Anybody may connect: probes and scrapers come again.
const CONNECTIONS: usize = 128;
const CONNECTION_LIFETIME: Duration = Duration::from_secs(60);
/// For the first head, and between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Settings of the health server.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct HealthArgs {
    /// Address that serves /livez, /readyz and /metrics over plain HTTP
    #[arg(
        long,
        env = "IMAGEWARM_HEALTH_LISTEN",
        value_name = "ADDR:PORT",
        default_value = "[::]:8080",
        help_heading = "Health"
    )]
    pub health_listen: SocketAddr,
}

type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Named checks that must all pass before the program receives work. Each runs for every probe, so
/// it must be cheap, and may fail again.
#[derive(Clone, Default)]
pub(crate) struct Readiness {
    checks: Vec<(&'static str, Check)>,
}

impl Readiness {
    /// Adds a check; its error is a short text that states what is missing.
    pub(crate) fn with(
        mut self,
        name: &'static str,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.checks.push((name, Arc::new(check)));
        self
    }

    /// Whether all checks pass, and the list of their results as text.
    pub(crate) fn report(&self) -> (bool, String) {
        let mut ready = true;
        let mut text = String::new();
        for (name, check) in &self.checks {
            // Writing to a String cannot fail.
            let _ = match check() {
                Ok(()) => writeln!(text, "[+] {name}: ok"),
                Err(missing) => {
                    ready = false;
                    writeln!(text, "[-] {name}: {missing}")
                }
            };
        }
        text.push_str(if ready { "ready\n" } else { "not ready\n" });
        (ready, text)
    }
}

#[derive(Clone)]
struct Health {
    readiness: Readiness,
    registry: Arc<Registry>,
}

/// The routes of the three endpoints.
pub(crate) fn router(readiness: Readiness, registry: Arc<Registry>) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .with_state(Health { readiness, registry })
}

/// Serves until `stop`, then completes responses in progress within the drain timeout.
pub(crate) async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let open = Limits { unproven: CONNECTIONS, proven: 0 };
    let limits = ConnectionLimits { open, proof: CONNECTION_LIFETIME };
    let places = Places::new(limits, Counter::default());
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let (stream, place) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener::accept(&listener, &places) => accepted,
        };
        let (router, stop) = (router.clone(), stop.clone());
        connections.spawn(async move {
            let service = TowerToHyperService::new(router);
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            tokio::pin!(serving);
            tokio::select! {
                _ = serving.as_mut() => {}
                () = place.ended() => {}
                () = stop.cancelled() => {
                    serving.as_mut().graceful_shutdown();
                    let _ = serving.await;
                }
            }
        });
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    let _ = timeout(DRAIN_TIMEOUT, ended).await;
}

async fn readyz(State(health): State<Health>, RawQuery(query): RawQuery) -> Response {
    let (ready, text) = health.readiness.report();
    let verbose = query.is_some_and(|query| {
        query.split('&').any(|part| part == "verbose" || part.starts_with("verbose="))
    });
    match (ready, verbose) {
        (true, false) => "ready\n".into_response(),
        (true, true) => text.into_response(),
        (false, _) => (StatusCode::SERVICE_UNAVAILABLE, text).into_response(),
    }
}

async fn scrape(State(health): State<Health>) -> Response {
    match metrics::encode(&health.registry) {
        Ok(text) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn endpoints_report_the_state_and_the_server_stops() {
        let synced = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&synced);
        let readiness =
            Readiness::default().with("certificate", || Ok(())).with("caches", move || {
                seen.load(Ordering::Relaxed).then_some(()).ok_or("nodes are not listed yet".into())
            });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let router = router(readiness, Arc::new(metrics::registry()));
        let server = tokio::spawn(serve(listener, router, stop.clone()));

        assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));
        let answer = get(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains("[+] certificate: ok\n[-] caches: nodes are not listed yet\n"));
        synced.store(true, Ordering::Relaxed);
        assert!(get(address, "/readyz").await.ends_with("\r\n\r\nready\n"));
        assert!(get(address, "/readyz?verbose").await.contains("[+] caches: ok\n"));
        let answer = get(address, "/metrics").await;
        assert!(answer.contains("application/openmetrics-text") && answer.ends_with("# EOF\n"));

        stop.cancel();
        tokio::time::timeout(Duration::from_secs(10), server).await.unwrap().unwrap();
    }

    /// More connections than are served at once, and none of them says anything.
    #[tokio::test]
    async fn a_silent_crowd_keeps_no_probe_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let router = router(Readiness::default(), Arc::new(metrics::registry()));
        let server = tokio::spawn(serve(listener, router, stop.clone()));
        let mut crowd = Vec::new();
        for _ in 0..CONNECTIONS + 50 {
            crowd.push(tokio::net::TcpStream::connect(address).await.unwrap());
        }
        assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));
        // Long before it would be closed for its silence.
        let mut first = crowd.remove(0);
        let closed = tokio::time::timeout(HEAD_TIMEOUT / 2, first.read(&mut [0])).await;
        assert!(matches!(closed, Ok(Ok(0) | Err(_))), "the oldest made room: {closed:?}");
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(10), server).await.unwrap().unwrap();
    }
}
