//! The TLS accept loop: limits on connections, handshakes and heads, HTTP/1.1, and a drain that lets
//! answers that have begun finish.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::{debug, info, warn};

use super::header_timeout::{HeaderTimeout, Requests};
use super::metrics::HandshakeFault;
use super::{WebhookArgs, WebhookMetrics};
use crate::listener::{
    Accepted, Connection, ConnectionLimits, HandshakeError, Places, TlsListener,
};
use crate::telemetry::metrics::Counted;
use imagewarm_core::throttle::connections;

/// What the TLS configuration offers. API servers call webhooks with HTTP/1.1 only, so that their
/// requests spread over all replicas (`cfg.NextProtos` in k8s.io/apiserver, pkg/util/webhook).
pub(crate) const ALPN: &[&[u8]] = &[b"http/1.1"];

/// Limits of connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open at once: so many of callers that know a path, and so many of others.
    pub connections: usize,
    /// For a TLS handshake.
    pub handshake: Duration,
    /// For a request's head, from its first byte.
    pub head: Duration,
    /// Without a request.
    pub idle: Duration,
    /// For answers that have begun, after the stop.
    pub drain: Duration,
}

impl From<&WebhookArgs> for Limits {
    fn from(args: &WebhookArgs) -> Self {
        Limits {
            connections: args.webhook_max_connections as usize,
            handshake: args.webhook_handshake_timeout,
            head: args.webhook_head_timeout,
            idle: args.webhook_idle_timeout,
            drain: args.webhook_drain_timeout,
        }
    }
}

/// Serves `router` until `stop`; then accepts nothing more and returns when all connections are
/// closed, or cut at the drain's deadline.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
    limits: Limits,
    metrics: WebhookMetrics,
    stop: CancellationToken,
) {
    let open = connections::Limits { unproven: limits.connections, proven: limits.connections };
    let proof = limits.handshake + limits.head;
    let places = Places::new(ConnectionLimits { open, proof }, metrics.displaced.clone());
    let listener = TlsListener::new(listener, tls, places);
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let server =
            Server { router: router.clone(), limits, metrics: metrics.clone(), stop: stop.clone() };
        connections.spawn(server.run(accepted));
    }
    drop(listener);
    let deadline = Instant::now() + limits.drain;
    while let Ok(Some(_)) = timeout_at(deadline, connections.join_next()).await {}
    if !connections.is_empty() {
        warn!(connections = connections.len(), "cut connections that did not end in time");
        connections.shutdown().await;
    }
    info!("webhook server stopped");
}

/// Serves one connection.
struct Server {
    router: Router,
    limits: Limits,
    metrics: WebhookMetrics,
    stop: CancellationToken,
}

impl Server {
    async fn run(self, accepted: Accepted) {
        let _open = Counted::new(&self.metrics.connections);
        if let Some(connection) = self.handshake(accepted).await {
            self.converse(connection).await;
        }
    }

    async fn handshake(&self, accepted: Accepted) -> Option<Connection> {
        let shaken = tokio::select! {
            // Nothing was asked yet: the client finds another replica.
            () = self.stop.cancelled() => return None,
            shaken = accepted.handshake(self.limits.handshake) => shaken,
        };
        let error = match shaken {
            Ok(connection) => return Some(connection),
            Err(error) => error,
        };
        let fault = match error {
            HandshakeError::Failed(_) => HandshakeFault::Failed,
            HandshakeError::TimedOut(_) => HandshakeFault::TimedOut,
            // Counted by its place.
            HandshakeError::Displaced => return None,
        };
        self.metrics.handshake_failed(fault);
        debug!(?fault, %error, "TLS handshake did not succeed");
        None
    }

    async fn converse(self, connection: Connection) {
        let requests = Arc::new(Requests::default());
        let counted = Arc::clone(&requests);
        let (router, place) = (self.router, connection.place());
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            let running = counted.begin();
            request.extensions_mut().insert(place.clone());
            let answer = router.clone().oneshot(request);
            async move {
                let answer = answer.await;
                drop(running);
                answer
            }
        });
        let timeouts = self.metrics.header_timeouts.clone();
        let stream = HeaderTimeout::new(connection, requests, self.limits.head, timeouts);
        let conversation = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.idle)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(conversation);
        let ended = tokio::select! {
            ended = conversation.as_mut() => ended,
            () = self.stop.cancelled() => {
                conversation.as_mut().graceful_shutdown();
                conversation.await
            }
        };
        if let Err(error) = ended {
            debug!(%error, "connection ended");
        }
    }
}

#[cfg(test)]
mod tests;
