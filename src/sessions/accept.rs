//! The accept loop of the dispatch server: connections whose handshake succeeded, for the gRPC server.

use std::io;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::metrics::{ConnectionRefusal, DispatchMetrics};
use crate::listener::{Accepted, Connection, HandshakeError, Place, TlsListener};

const HANDSHAKE: Duration = Duration::from_secs(5);

impl Connected for Connection {
    /// The handler of a request proves the connection.
    type ConnectInfo = Place;

    fn connect_info(&self) -> Place {
        self.place()
    }
}

/// Sends connections to `ready` until `shutdown`; a slow or broken handshake holds nobody else up.
pub(super) async fn accept(
    listener: TlsListener,
    metrics: DispatchMetrics,
    ready: mpsc::Sender<io::Result<Connection>>,
    shutdown: CancellationToken,
) {
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            Some(_) = handshakes.join_next() => {}
            accepted = listener.accept() => {
                handshakes.spawn(handshake(accepted, ready.clone(), metrics.clone()));
            }
        }
    }
}

async fn handshake(
    accepted: Accepted,
    ready: mpsc::Sender<io::Result<Connection>>,
    metrics: DispatchMetrics,
) {
    match accepted.handshake(HANDSHAKE).await {
        Ok(connection) => {
            let _ = ready.send(Ok(connection)).await;
        }
        Err(HandshakeError::Failed(error)) => {
            metrics.connection_refused(ConnectionRefusal::Handshake);
            tracing::debug!(%error, "TLS handshake failed");
        }
        // Counted by its place.
        Err(HandshakeError::Displaced) => {}
        Err(HandshakeError::TimedOut(_)) => {
            metrics.connection_refused(ConnectionRefusal::HandshakeTimeout);
        }
    }
}
