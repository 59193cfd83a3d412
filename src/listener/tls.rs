//! Accepts connections and does their TLS handshakes, each in its place and within a time.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::place::{Place, Places};
use crate::backoff::Backoff;

/// Intervals after a failed accept (such as too many open files), so that the loop does not spin.
const FIRST_BACKOFF: Duration = Duration::from_millis(5);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);

/// A listening socket whose connections speak TLS.
pub(crate) struct TlsListener {
    listener: TcpListener,
    tls: TlsAcceptor,
    places: Places,
}

impl TlsListener {
    /// Connections take their places in `places`.
    pub(crate) fn new(listener: TcpListener, tls: Arc<ServerConfig>, places: Places) -> Self {
        TlsListener { listener, tls: TlsAcceptor::from(tls), places }
    }

    /// The next connection, before its handshake. May be dropped at any time without losing one.
    pub(crate) async fn accept(&self) -> Accepted {
        let (stream, place) = accept(&self.listener, &self.places).await;
        Accepted { stream, place, tls: self.tls.clone() }
    }
}

/// The next connection of a listener, and its place. Connections never wait in the kernel's queue,
/// which is first come, first served.
pub(crate) async fn accept(listener: &TcpListener, places: &Places) -> (TcpStream, Place) {
    let mut backoff = Backoff::new(FIRST_BACKOFF, LONGEST_BACKOFF);
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                // Without it the kernel holds small answers back for 40 ms.
                let _ = stream.set_nodelay(true);
                return (stream, places.take(address.ip()));
            }
            Err(error) => {
                let retry_in = backoff.next_delay();
                tracing::warn!(%error, ?retry_in, "connection not accepted");
                sleep(retry_in).await;
            }
        }
    }
}

/// A connection that was accepted, and counts against the limit.
pub(crate) struct Accepted {
    stream: TcpStream,
    place: Place,
    tls: TlsAcceptor,
}

/// Why a handshake did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// The peer broke off, or does not speak TLS as this server does.
    #[error(transparent)]
    Failed(#[from] io::Error),
    /// The peer was too slow.
    #[error("the TLS handshake took longer than {0:?}")]
    TimedOut(Duration),
    /// Newer connections needed the place.
    #[error("the connection was displaced by others")]
    Displaced,
}

impl Accepted {
    /// Does the handshake, within `limit`.
    pub(crate) async fn handshake(self, limit: Duration) -> Result<Connection, HandshakeError> {
        let mut ended: Ended = Box::pin(self.place.clone().ended());
        tokio::select! {
            () = &mut ended => Err(HandshakeError::Displaced),
            shaken = timeout(limit, self.tls.accept(self.stream)) => match shaken {
                Ok(tls) => Ok(Connection { tls: tls?, place: self.place, ended: Some(ended) }),
                Err(_) => Err(HandshakeError::TimedOut(limit)),
            }
        }
    }
}

type Ended = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A TLS connection. Keeps its place until it is dropped; its reads fail once that is over.
pub(crate) struct Connection {
    tls: TlsStream<TcpStream>,
    place: Place,
    ended: Option<Ended>,
}

impl Connection {
    /// Its place.
    pub(crate) fn place(&self) -> Place {
        self.place.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(ended) = &mut self.ended
            && ended.as_mut().poll(context).is_ready()
        {
            self.ended = None;
            return Poll::Ready(Err(io::Error::from(io::ErrorKind::ConnectionAborted)));
        }
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
