//! The accept loop of the dispatch server: TLS handshakes with a time limit, and a limit of
//! connections. Knows nothing of what is said on them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::metrics::{ConnectionRefusal, DispatchMetrics};

const HANDSHAKE: Duration = Duration::from_secs(5);

/// The accept loop: a slow or broken handshake holds nobody else up.
pub(super) struct Accept {
    pub(super) listener: TcpListener,
    pub(super) acceptor: TlsAcceptor,
    pub(super) places: Arc<Semaphore>,
    pub(super) metrics: DispatchMetrics,
    pub(super) ready: mpsc::Sender<io::Result<Connection>>,
}

impl Accept {
    pub(super) async fn run(self, shutdown: CancellationToken) {
        let mut handshakes = JoinSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(_) = handshakes.join_next() => {}
                accepted = self.listener.accept() => match accepted {
                    Ok((tcp, _)) => match self.places.clone().try_acquire_owned() {
                        Ok(place) => {
                            let (acceptor, ready) = (self.acceptor.clone(), self.ready.clone());
                            let metrics = self.metrics.clone();
                            handshakes.spawn(handshake(tcp, place, acceptor, ready, metrics));
                        }
                        Err(_) => self.metrics.connection_refused(ConnectionRefusal::TooMany),
                    },
                    Err(error) => {
                        // Out of file descriptors, mostly: trying again at once would only spin.
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        }
    }
}

async fn handshake(
    tcp: TcpStream,
    place: OwnedSemaphorePermit,
    acceptor: TlsAcceptor,
    ready: mpsc::Sender<io::Result<Connection>>,
    metrics: DispatchMetrics,
) {
    // Without it small messages wait for the peer's delayed acknowledgement.
    let _ = tcp.set_nodelay(true);
    match tokio::time::timeout(HANDSHAKE, acceptor.accept(tcp)).await {
        Ok(Ok(tls)) => {
            let _ = ready.send(Ok(Connection { tls, _place: place })).await;
        }
        Ok(Err(error)) => {
            metrics.connection_refused(ConnectionRefusal::Handshake);
            tracing::debug!(%error, "TLS handshake failed");
        }
        Err(_) => metrics.connection_refused(ConnectionRefusal::HandshakeTimeout),
    }
}

/// A connection and its place among those allowed.
pub(super) struct Connection {
    tls: TlsStream<TcpStream>,
    _place: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(context)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(context, slices)
    }
    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }
}
