//! The places of open connections. A connection that is displaced by others, or does not prove
//! itself in time, is closed.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use imagewarm_core::throttle::connections::{ConnectionId, Connections, Limits};

/// Limits of the connections of one listener.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionLimits {
    /// How many may be open.
    pub open: Limits,
    /// How long a connection may remain unproven.
    pub proof: Duration,
}

/// The places of one listener.
#[derive(Clone)]
pub(crate) struct Places {
    limits: ConnectionLimits,
    shared: Arc<Mutex<Shared>>,
    /// Connections that were closed for others.
    displaced: Counter,
}

struct Shared {
    connections: Connections,
    /// Close a connection.
    close: HashMap<ConnectionId, CancellationToken>,
}

impl Places {
    /// No connection is open. Counts displaced ones in `displaced`.
    pub(crate) fn new(limits: ConnectionLimits, displaced: Counter) -> Self {
        let connections = Connections::new(limits.open);
        let shared = Arc::new(Mutex::new(Shared { connections, close: HashMap::new() }));
        Places { limits, shared, displaced }
    }

    /// A place for a connection from this address; closes another one if there is none.
    pub(crate) fn take(&self, address: IpAddr) -> Place {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let (id, displaced) = shared.connections.open(address);
        if let Some(close) = displaced.and_then(|id| shared.close.remove(&id)) {
            close.cancel();
            self.displaced.inc();
        }
        let closed = CancellationToken::new();
        shared.close.insert(id, closed.clone());
        Place(Arc::new(Taken {
            id,
            deadline: Instant::now() + self.limits.proof,
            proven: AtomicBool::new(false),
            closed,
            shared: self.shared.clone(),
        }))
    }
}

/// The place of one connection, which is freed when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct Place(Arc<Taken>);

struct Taken {
    id: ConnectionId,
    deadline: Instant,
    proven: AtomicBool,
    closed: CancellationToken,
    shared: Arc<Mutex<Shared>>,
}

impl Place {
    /// The peer has shown that it may call: the connection stays open. Closes it when too many are.
    pub(crate) fn prove(&self) {
        if self.is_proven() {
            return;
        }
        let mut shared = self.0.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.connections.prove(self.0.id) {
            self.0.proven.store(true, Ordering::Relaxed);
        } else {
            self.0.closed.cancel();
        }
    }

    /// Closes the connection.
    pub(crate) fn close(&self) {
        self.0.closed.cancel();
    }

    fn is_proven(&self) -> bool {
        self.0.proven.load(Ordering::Relaxed)
    }

    /// Returns when the connection is to be closed: it was displaced, or did not prove itself.
    pub(crate) async fn ended(self) {
        tokio::select! {
            () = self.0.closed.cancelled() => return,
            () = tokio::time::sleep_until(self.0.deadline) => {}
        }
        if self.is_proven() {
            self.0.closed.cancelled().await;
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.connections.close(self.id, self.proven.load(Ordering::Relaxed));
        shared.close.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(unproven: usize, proven: usize, proof: Duration) -> (Places, Counter) {
        let displaced = Counter::default();
        let open = Limits { unproven, proven };
        (Places::new(ConnectionLimits { open, proof }, displaced.clone()), displaced)
    }

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn the_displaced_connection_ends_and_is_counted() {
        let (places, displaced) = places(2, 2, LONG);
        let (first, second) = (places.take(ADDRESS), places.take(ADDRESS));
        second.prove();
        let third = places.take(ADDRESS);
        let fourth = places.take(ADDRESS);
        first.ended().await;
        assert_eq!(displaced.get(), 1);
        drop((third, fourth));
        let fifth = places.take(ADDRESS);
        assert_eq!(displaced.get(), 1, "places are free again");
        assert!(futures::poll!(Box::pin(second.ended())).is_pending(), "it is proven");
        drop(fifth);
    }

    #[tokio::test]
    async fn a_connection_that_does_not_prove_itself_ends() {
        let (places, _) = places(2, 1, Duration::from_millis(20));
        let (silent, proven, too_many) =
            (places.take(ADDRESS), places.take(ADDRESS), places.take(ADDRESS));
        proven.prove();
        too_many.prove();
        too_many.ended().await;
        silent.ended().await;
        let mut ended = Box::pin(proven.ended());
        assert!(futures::poll!(&mut ended).is_pending());
    }
}
