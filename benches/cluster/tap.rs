//! A proxy between a warmer and its runtime's socket. It passes every byte on, and records the
//! times of requests and answers. That separates the time of a pull from the time that imagewarm adds to it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{AbortHandle, JoinSet};

/// From the first byte of a request to the last one of its answer.
#[derive(Clone, Copy, Debug)]
struct Call {
    asked: Instant,
    answered: Instant,
}

/// Calls by connection, and by stream of it where the connection has such.
type Calls = Arc<Mutex<HashMap<(usize, u32), Call>>>;

/// A socket that leads to another one.
pub struct Tap {
    /// Where it listens.
    pub socket: PathBuf,
    calls: Calls,
    task: AbortHandle,
}

impl Tap {
    /// Listens beside the runtime's socket.
    pub fn open(runtime: &Path) -> Result<Tap> {
        let socket = runtime.with_extension("tap");
        let listener = UnixListener::bind(&socket)?;
        let (calls, behind) = (Calls::default(), runtime.to_owned());
        let kept = calls.clone();
        let accept = async move {
            let mut connections = JoinSet::new();
            for number in 0.. {
                let Ok((client, _)) = listener.accept().await else { return };
                // The client sees an end, as it would of the runtime itself.
                let Ok(server) = UnixStream::connect(&behind).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let asks = Direction { number, calls: kept.clone(), asks: true };
                let answers = Direction { asks: false, ..asks.clone() };
                connections.spawn(asks.pass(from_client, to_server));
                connections.spawn(answers.pass(from_server, to_client));
            }
        };
        Ok(Tap { socket, calls, task: tokio::spawn(accept).abort_handle() })
    }

    /// Forgets all calls so far.
    pub fn clear(&self) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Duration of the longest call since the last [`Tap::clear`]: with one assignment at a time,
    /// that is the pull.
    pub fn longest(&self) -> Option<Duration> {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.values().map(|call| call.answered.saturating_duration_since(call.asked)).max()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Direction {
    number: usize,
    calls: Calls,
    asks: bool,
}

impl Direction {
    async fn pass(self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut buffer = vec![0; 64 * 1024];
        let mut frames = Frames::default();
        let mut requests = 0;
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let now = Instant::now();
            let bytes = &buffer[..length];
            match frames.streams(bytes, self.asks) {
                Some(streams) => streams.into_iter().for_each(|stream| self.note(stream, now)),
                // HTTP/1.1: one request after the other, each by a name of its own.
                None => {
                    requests += u32::from(self.asks && begins_request(bytes));
                    self.note_plain(requests, now);
                }
            }
            if to.write_all(bytes).await.is_err() {
                return;
            }
        }
    }

    fn note(&self, stream: u32, now: Instant) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if self.asks {
            calls.entry((self.number, stream)).or_insert(Call { asked: now, answered: now });
        } else if let Some(call) = calls.get_mut(&(self.number, stream)) {
            call.answered = now;
        }
    }

    fn note_plain(&self, request: u32, now: Instant) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if self.asks {
            calls.entry((self.number, request)).or_insert(Call { asked: now, answered: now });
            return;
        }
        let of_connection = calls.iter_mut().filter(|((number, _), _)| *number == self.number);
        if let Some((_, call)) = of_connection.max_by_key(|((_, request), _)| *request) {
            call.answered = now;
        }
    }
}

fn begins_request(bytes: &[u8]) -> bool {
    [&b"GET "[..], b"POST ", b"DELETE ", b"HEAD "].iter().any(|verb| bytes.starts_with(verb))
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;

/// Reads the frames of HTTP/2 out of a stream of bytes.
#[derive(Default)]
struct Frames {
    http2: Option<bool>,
    rest: Vec<u8>,
    /// Bytes of a frame's content that are still to come.
    skip: usize,
}

impl Frames {
    /// Numbers of the streams that these bytes begin a frame of; None for HTTP/1.1.
    fn streams(&mut self, bytes: &[u8], asks: bool) -> Option<Vec<u32>> {
        let first = self.http2.is_none();
        let http2 = *self.http2.get_or_insert_with(|| {
            if asks { bytes.starts_with(PREFACE) } else { !bytes.starts_with(b"HTTP/1.1") }
        });
        if !http2 {
            return None;
        }
        self.rest.extend_from_slice(if first && asks { &bytes[PREFACE.len()..] } else { bytes });
        let mut streams = Vec::new();
        loop {
            let skipped = self.skip.min(self.rest.len());
            self.rest.drain(..skipped);
            self.skip -= skipped;
            let Some(header) = self.rest.get(..FRAME_HEADER) else { break };
            let number =
                |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
            let stream = number(&header[5..9]) & 0x7fff_ffff;
            self.skip = FRAME_HEADER + number(&header[..3]) as usize;
            if stream != 0 {
                streams.push(stream);
            }
        }
        Some(streams)
    }
}
