//! A timeout for request heads that does not apply to idle connections. hyper has one timeout for
//! both; a client that sends a head slowly is disconnected soon, while idle connections of the API
//! server must outlive its own idle timeout.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// Requests of one connection, counted by its service.
#[derive(Default)]
pub(super) struct Requests {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Requests {
    /// Counts a request whose head is complete. The request ends when the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Running {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Running(Arc::clone(self))
    }

    fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    fn is_idle(&self) -> bool {
        self.begun() == self.ended.load(Ordering::Relaxed)
    }
}

/// A request that is being answered.
pub(super) struct Running(Arc<Requests>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// An HTTP/1.1 connection whose reads fail when a head takes too long.
pub(super) struct HeaderTimeout<S> {
    stream: S,
    requests: Arc<Requests>,
    limit: Duration,
    timeouts: Counter,
    /// Number of requests begun when the first byte of the next head arrived, and its deadline.
    head: Option<(u64, Pin<Box<Sleep>>)>,
}

impl<S> HeaderTimeout<S> {
    /// Wraps `stream`, whose service counts in `requests`.
    pub(super) fn new(
        stream: S,
        requests: Arc<Requests>,
        limit: Duration,
        timeouts: Counter,
    ) -> Self {
        HeaderTimeout { stream, requests, limit, timeouts, head: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HeaderTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let begun = this.requests.begun();
        this.head.take_if(|(at, _)| *at != begun);
        let before = buf.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buf) {
            Poll::Ready(result) => {
                let received = result.is_ok() && buf.filled().len() > before;
                if received && this.head.is_none() && this.requests.is_idle() {
                    let deadline = sleep_until(Instant::now() + this.limit);
                    this.head = Some((begun, Box::pin(deadline)));
                }
                Poll::Ready(result)
            }
            Poll::Pending => {
                let Some((_, deadline)) = &mut this.head else { return Poll::Pending };
                if deadline.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                this.head = None;
                this.timeouts.inc();
                Poll::Ready(Err(io::Error::from(io::ErrorKind::TimedOut)))
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HeaderTimeout<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
