//! Accepts connections and does their TLS handshakes, with a limit of connections and one of time.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Intervals after a failed accept (such as too many open files), so that the loop does not spin.
use crate::backoff::Backoff;

const FIRST_BACKOFF: Duration = Duration::from_millis(5);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);

/// What becomes of connections beyond the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// They wait in the kernel's queue.
    Wait,
    /// They are closed.
    Refuse,
}

/// A listening socket whose connections speak TLS.
pub struct TlsListener {
    listener: TcpListener,
    tls: TlsAcceptor,
    permits: Arc<Semaphore>,
    when_full: WhenFull,
}

impl TlsListener {
    /// At most `connections` are open at a time.
    pub fn new(
        listener: TcpListener,
        tls: Arc<ServerConfig>,
        connections: usize,
        when_full: WhenFull,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(connections));
        TlsListener { listener, tls: TlsAcceptor::from(tls), permits, when_full }
    }

    /// The next connection, before its handshake; `None` when it was refused. May be dropped at any
    /// time without losing one.
    pub async fn accept(&self) -> Option<Accepted> {
        let waited_for = match self.when_full {
            WhenFull::Wait => self.permits.clone().acquire_owned().await.ok(),
            WhenFull::Refuse => None,
        };
        let mut backoff = Backoff::new(FIRST_BACKOFF, LONGEST_BACKOFF);
        let stream = loop {
            match self.listener.accept().await {
                Ok((stream, _)) => break stream,
                Err(error) => {
                    let retry_in = backoff.next_delay();
                    tracing::warn!(%error, ?retry_in, "connection not accepted");
                    sleep(retry_in).await;
                }
            }
        };
        let permit = match waited_for {
            Some(permit) => permit,
            None => self.permits.clone().try_acquire_owned().ok()?,
        };
        // Without it the kernel holds small answers back for 40 ms.
        let _ = stream.set_nodelay(true);
        Some(Accepted { stream, permit, tls: self.tls.clone() })
    }
}

/// A connection that was accepted, and counts against the limit.
pub struct Accepted {
    stream: TcpStream,
    permit: OwnedSemaphorePermit,
    tls: TlsAcceptor,
}

/// Why a handshake did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer broke off, or does not speak TLS as this server does.
    #[error(transparent)]
    Failed(#[from] io::Error),
    /// The peer was too slow.
    #[error("the TLS handshake took longer than {0:?}")]
    TimedOut(Duration),
}

impl Accepted {
    /// Does the handshake, within `limit`.
    pub async fn handshake(self, limit: Duration) -> Result<Connection, HandshakeError> {
        match timeout(limit, self.tls.accept(self.stream)).await {
            Ok(tls) => Ok(Connection { tls: tls?, _permit: self.permit }),
            Err(_) => Err(HandshakeError::TimedOut(limit)),
        }
    }
}

/// A TLS connection. Counts against the limit until it is dropped.
pub struct Connection {
    tls: TlsStream<TcpStream>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    /// The protocol that the handshake settled on, such as `h2`.
    pub fn alpn_protocol(&self) -> Option<&[u8]> {
        self.tls.get_ref().1.alpn_protocol()
    }
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
