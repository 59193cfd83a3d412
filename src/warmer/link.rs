//! The link to the leading controller: one stream after another, with a back-off by what went wrong.

use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tonic::{Code, Status};

use super::stream::{ServerAddress, Session, StreamError, StreamSettings, open};
use crate::backoff::Backoff;
use imagewarm_core::protocol::{FromController, FromWarmer, Hello};

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// The longest back-off while no leader is there: a new one has its warmers back within about this time.
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// The same after a rejection: each attempt costs a review of the token.
const MAX_BACKOFF_REJECTED: Duration = Duration::from_secs(10);
/// A stream that lasted this long resets the back-off.
const HEALTHY: Duration = Duration::from_secs(10);

/// An event of the link.
pub(super) enum LinkEvent {
    /// The stream is open.
    Opened,
    /// The stream could not be opened, or it terminated.
    Lost(StreamError),
    /// A message from the controller.
    Message(FromController),
    /// The channel has capacity for a message.
    Room(mpsc::OwnedPermit<FromWarmer>),
}

enum State {
    Closed,
    Opening(BoxFuture<'static, Result<Session, StreamError>>),
    Open(Box<Session>),
}

/// The delays by what went wrong.
struct Backoffs {
    no_leader: Backoff,
    rejected: Backoff,
}

impl Default for Backoffs {
    fn default() -> Self {
        Backoffs {
            no_leader: Backoff::new(FIRST_BACKOFF, MAX_BACKOFF),
            rejected: Backoff::new(FIRST_BACKOFF, MAX_BACKOFF_REJECTED),
        }
    }
}

impl Backoffs {
    fn after(&mut self, error: &StreamError) -> Duration {
        let backoff = if error.is_rejection() { &mut self.rejected } else { &mut self.no_leader };
        backoff.next_with_jitter()
    }
}

/// The stream, or the attempt to open the next one.
pub(super) struct Link {
    settings: StreamSettings,
    state: State,
    /// The leader's reported address; tried once before the configured address.
    leader: Option<ServerAddress>,
    failures: u32,
    backoff: Backoffs,
    /// Before the next attempt.
    delay: Duration,
    opened_at: Option<tokio::time::Instant>,
}

impl Link {
    pub(super) fn new(settings: StreamSettings) -> Self {
        Link {
            settings,
            state: State::Closed,
            leader: None,
            failures: 0,
            backoff: Backoffs::default(),
            delay: Duration::ZERO,
            opened_at: None,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// Closes the stream and resets the back-off.
    pub(super) fn close(&mut self) {
        (self.state, self.opened_at) = (State::Closed, None);
        self.reset_backoff();
    }

    /// Starts to open a stream, after a back-off if the last ones failed.
    pub(super) fn begin(&mut self, hello: BoxFuture<'static, Hello>) {
        let redirected = self.leader.take();
        // A redirect is followed at once at most twice in a row: replicas may point at each other.
        let backoff = match (&redirected, self.failures) {
            (_, 0) | (Some(_), 1..=2) => Duration::ZERO,
            _ => self.delay,
        };
        let target = redirected.unwrap_or_else(|| self.settings.server.clone());
        let settings = self.settings.clone();
        self.state = State::Opening(Box::pin(async move {
            tokio::time::sleep(backoff).await;
            open(&settings, &target, hello.await).await
        }));
    }

    /// Waits for the next event. Cancel safe.
    pub(super) async fn next(&mut self, wants_room: bool) -> LinkEvent {
        match &mut self.state {
            State::Closed => std::future::pending().await,
            State::Opening(opening) => match opening.await {
                Ok(session) => {
                    self.state = State::Open(Box::new(session));
                    self.opened_at = Some(tokio::time::Instant::now());
                    LinkEvent::Opened
                }
                Err(error) => self.lost(error),
            },
            State::Open(session) => {
                let outgoing = session.outgoing.clone();
                let ended = tokio::select! {
                    message = session.incoming.message() => match message {
                        Ok(Some(message)) => return LinkEvent::Message(message),
                        Ok(None) => Status::unavailable("closed by the controller"),
                        Err(status) => status,
                    },
                    permit = outgoing.reserve_owned(), if wants_room => match permit {
                        Ok(permit) => return LinkEvent::Room(permit),
                        Err(_) => Status::unavailable("the connection broke"),
                    },
                };
                self.lost(ended.into())
            }
        }
    }

    fn reset_backoff(&mut self) {
        self.failures = 0;
        self.backoff = Backoffs::default();
    }

    fn lost(&mut self, error: StreamError) -> LinkEvent {
        self.state = State::Closed;
        // A controller that shuts down closes streams with UNAVAILABLE; another is ready soon.
        let handed_over =
            matches!(&error, StreamError::Ended(status) if status.code() == Code::Unavailable);
        if self.opened_at.take().is_some_and(|at| handed_over || at.elapsed() >= HEALTHY) {
            self.reset_backoff();
        }
        self.failures = self.failures.saturating_add(1);
        self.delay = self.backoff.after(&error);
        if let StreamError::NotLeading(leader) = &error {
            self.leader.clone_from(leader);
        }
        LinkEvent::Lost(error)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_rejected_warmer_asks_less_often_than_one_without_a_leader() {
        let longest = |error: StreamError| {
            let mut backoff = Backoffs::default();
            (0..40).map(|_| backoff.after(&error)).max().unwrap()
        };
        let ended = |status| StreamError::Ended(Box::new(status));
        let connect = || StreamError::Connect { address: "a:1".into(), problem: "refused".into() };
        for absent in [connect(), StreamError::NotLeading(None), ended(Status::unavailable("x"))] {
            let (text, longest) = (absent.to_string(), longest(absent));
            assert!(longest <= MAX_BACKOFF && longest > MAX_BACKOFF / 2, "{text}: {longest:?}");
        }
        for rejected in [Status::unauthenticated("x"), Status::permission_denied("x")] {
            let longest = longest(ended(rejected));
            assert!(longest > MAX_BACKOFF_REJECTED / 2, "{longest:?}");
        }
    }
}
