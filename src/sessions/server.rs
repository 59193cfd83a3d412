//! The gRPC server of the warmers' streams: TLS, authentication, and the check that this replica
//! leads. Forwards messages to the dispatcher and decides nothing itself.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::Stream;
use prost::Message as _;
use rustls::server::ResolvesServerCert;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataMap;
use tonic::transport::server::Server;
use tonic::{Code, Request, Response, Status, Streaming};

use super::DispatchArgs;
use super::accept::accept;
use super::metrics::{ConnectionRefusal, DispatchMetrics};
use super::stream::{Input, Opened, Outgoing, end_status};
use crate::clock::sleep_until;
use crate::kubernetes::leadership::Leadership;
use crate::kubernetes::token_review::{TokenError, TokenReviewer, WarmerIdentity};
use crate::listener::{ConnectionLimits, Place, Places, TlsListener};
use crate::protocol::dispatch_server::{Dispatch, DispatchServer as Service};
use crate::telemetry::metrics::Counted;
use imagewarm_core::api::names::NodeName;
use imagewarm_core::assignment::StreamEnd;
use imagewarm_core::protocol::{FromController, FromWarmer, Hello, from_warmer};
use imagewarm_core::throttle::connections::Limits;
use imagewarm_core::throttle::stream::{Excess, MessageLimit};

/// HTTP/2 keepalive: an idle connection is pinged, and closed without an answer.
const PING_EVERY: Duration = Duration::from_secs(15);
const PING_ANSWER: Duration = Duration::from_secs(10);
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// How long a warmer waits here for a leader to be known, instead of opening streams again and again.
const LEADER_WAIT: Duration = Duration::from_secs(10);
/// How many may wait so: fewer than may be unproven.
const WAITING: usize = UNPROVEN / 2;
/// How long a warmer that is cut off may take to read why.
const LAST_STATUS: Duration = Duration::from_secs(1);
/// Longer than a TokenReview: many warmers may connect at once, and reviews are queued.
const REVIEW: Duration = Duration::from_secs(30);
/// Connections whose peer is not authenticated. Each takes some 65 kB.
const UNPROVEN: usize = 1024;
/// How long authentication may take: after a fail-over thousands of tokens are reviewed.
pub(crate) const PROOF: Duration = Duration::from_secs(60);
/// The protocol of gRPC.
const ALPN: &[&[u8]] = &[b"h2"];
const LARGEST_MESSAGE: usize = 256 * 1024;
/// Connections whose handshake is complete and that wait to be served.
const BACKLOG: usize = 64;
/// How long connections may take to close after their streams.
const DRAIN: Duration = Duration::from_secs(5);

/// The server that warmers connect to. It serves the certificate that `certificates` resolves for
/// each connection, authenticates warmers with `reviewer`, and forwards messages to the dispatcher.
pub struct DispatchServer {
    /// From [`super::Dispatcher::inputs`].
    pub(crate) inputs: mpsc::Sender<Input>,
    /// Whether this replica leads, and the address of the leader.
    pub(crate) leader: watch::Receiver<Leadership>,
    /// Authenticates bearer tokens.
    pub(crate) reviewer: Arc<dyn TokenReviewer>,
    /// Resolves the certificate of each connection.
    pub(crate) certificates: Arc<dyn ResolvesServerCert>,
    /// Limits.
    pub(crate) args: DispatchArgs,
    /// The server's metrics.
    pub(crate) metrics: DispatchMetrics,
    /// How long authentication may take.
    pub(crate) proof: Duration,
}

/// Why the server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    /// The gRPC server failed.
    #[error("the dispatch server failed")]
    Serve(#[from] tonic::transport::Error),
}

impl DispatchServer {
    /// Serves on `listener` until `shutdown`. Streams are closed by the [`super::Dispatcher`].
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> Result<(), ServeError> {
        let tls = imagewarm_webhook_certs::server_config(self.certificates, ALPN)?;
        let limits = ConnectionLimits {
            open: Limits { unproven: UNPROVEN, proven: self.args.dispatch_connections },
            proof: self.proof,
        };
        let displaced = self.metrics.refused_connections(ConnectionRefusal::Displaced);
        let listener = TlsListener::new(listener, tls, Places::new(limits, displaced));
        let (sender, incoming) = mpsc::channel(BACKLOG);
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, self.metrics.clone(), sender, shutdown.clone()));

        let readers = TaskTracker::new();
        let sessions = Sessions {
            inputs: self.inputs,
            leader: self.leader,
            reviewer: self.reviewer,
            metrics: self.metrics,
            readers: readers.clone(),
            waiting: Arc::new(Semaphore::new(WAITING)),
            shutdown: shutdown.clone(),
        };
        let service = Service::new(sessions)
            .max_decoding_message_size(LARGEST_MESSAGE)
            .max_encoding_message_size(LARGEST_MESSAGE);
        let serve = Server::builder()
            .http2_keepalive_interval(Some(PING_EVERY))
            .http2_keepalive_timeout(Some(PING_ANSWER))
            .max_concurrent_streams(4)
            .http2_max_header_list_size(32 * 1024)
            .add_service(service)
            .serve_with_incoming_shutdown(ReceiverStream::new(incoming), shutdown.cancelled());
        let mut serve = std::pin::pin!(serve);
        tokio::select! {
            ended = &mut serve => ended?,
            () = async { shutdown.cancelled().await; tokio::time::sleep(DRAIN).await } => {
                tracing::warn!("warmer connections not closed in time");
            }
        }
        readers.close();
        Ok(())
    }
}

/// The gRPC service.
struct Sessions {
    inputs: mpsc::Sender<Input>,
    leader: watch::Receiver<Leadership>,
    reviewer: Arc<dyn TokenReviewer>,
    metrics: DispatchMetrics,
    readers: TaskTracker,
    /// Places to wait for a leader.
    waiting: Arc<Semaphore>,
    shutdown: CancellationToken,
}

impl Sessions {
    /// Who leads. While nobody is known to, waits for it if there is a place: after all replicas were
    /// restarted the warmers are back as soon as there is a leader.
    async fn leader(&self) -> Leadership {
        let is_known = |leader: &Leadership| leader.leading || leader.leader_address.is_some();
        let mut leader = self.leader.clone();
        let now = leader.borrow().clone();
        if is_known(&now) {
            return now;
        }
        let Ok(_place) = self.waiting.try_acquire() else { return now };
        let _counted = Counted::new(&self.metrics.waiting_for_leader);
        let known = tokio::time::timeout(LEADER_WAIT, leader.wait_for(is_known));
        match self.shutdown.run_until_cancelled(known).await {
            Some(Ok(Ok(known))) => known.clone(),
            _ => now,
        }
    }

    /// The warmer that the call's token belongs to.
    async fn authenticate(&self, metadata: &MetadataMap) -> Result<WarmerIdentity, Status> {
        let header = metadata.get("authorization").and_then(|value| value.to_str().ok());
        let token = header.and_then(|header| header.strip_prefix("Bearer ")).unwrap_or_default();
        let review = tokio::time::timeout(REVIEW, self.reviewer.review(token)).await;
        let error = match review {
            Ok(Ok(identity)) => return Ok(identity),
            Ok(Err(error)) => error,
            Err(_) => TokenError::Unavailable("too many tokens are being reviewed".into()),
        };
        let end = match error {
            TokenError::Unavailable(_) => StreamEnd::Unavailable,
            _ => StreamEnd::Refused,
        };
        self.metrics.stream_end(end);
        tracing::warn!(reason = error.reason(), %error, "warmer rejected");
        Err(match error {
            TokenError::Unavailable(_) => Status::unavailable(error.to_string()),
            TokenError::OtherAccount { .. } | TokenError::NotBound => {
                Status::permission_denied(error.to_string())
            }
            TokenError::Missing | TokenError::WrongAudience | TokenError::Invalid(_) => {
                Status::unauthenticated(error.to_string())
            }
        })
    }

    async fn open(&self, warmer: WarmerIdentity, hello: Hello) -> Result<Opened, Status> {
        let stopped = || Status::unavailable("this replica is shutting down");
        let (reply, answer) = oneshot::channel();
        let open = Input::Open { warmer, hello, reply };
        self.inputs.send(open).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

#[tonic::async_trait]
impl Dispatch for Sessions {
    type SessionStream = SessionStream;

    async fn session(
        &self,
        request: Request<Streaming<FromWarmer>>,
    ) -> Result<Response<SessionStream>, Status> {
        // The leadership check comes first: a replica that does not lead spends no TokenReviews.
        let leader = self.leader().await;
        if !leader.leading {
            self.metrics.stream_end(StreamEnd::NotLeading);
            return Err(end_status(StreamEnd::NotLeading, &leader));
        }
        let place = request.extensions().get::<Place>().cloned();
        let warmer = self.authenticate(request.metadata()).await?;
        let (node, expires) = (warmer.node.clone(), warmer.expires);
        if let Some(place) = &place {
            place.prove();
        }
        let mut incoming = request.into_inner();
        let first = tokio::time::timeout(FIRST_MESSAGE, incoming.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello in time"))??;
        let Some(FromWarmer { message: Some(from_warmer::Message::Hello(hello)) }) = first else {
            return Err(Status::invalid_argument("the first message must be a hello"));
        };
        if hello.protocol_version == 0 {
            return Err(Status::invalid_argument("the hello names no protocol version"));
        }
        let opened = tokio::time::timeout(FIRST_MESSAGE, self.open(warmer, hello))
            .await
            .map_err(|_| Status::unavailable("the dispatcher is busy"))??;
        let ended = CancellationToken::new();
        let reader = Reader {
            session: opened.session,
            node,
            incoming,
            inputs: self.inputs.clone(),
            ended: ended.clone(),
            cut: opened.cut,
            place,
            expires,
        };
        self.readers.spawn(reader.run());
        Ok(Response::new(SessionStream { messages: opened.messages, _end: ended.drop_guard() }))
    }
}

/// Forwards the messages of one warmer to the dispatcher, one at a time.
struct Reader {
    session: u64,
    node: NodeName,
    incoming: Streaming<FromWarmer>,
    inputs: mpsc::Sender<Input>,
    ended: CancellationToken,
    cut: CancellationToken,
    place: Option<Place>,
    expires: Option<tokio::time::Instant>,
}

impl Reader {
    async fn run(mut self) {
        let (ended, cut) = (self.ended.clone(), self.cut.clone());
        let end = tokio::select! {
            () = ended.cancelled() => StreamEnd::Closed,
            () = cut.cancelled() => StreamEnd::Misbehaved,
            () = sleep_until(self.expires) => StreamEnd::Expired,
            excess = self.forward() => match excess {
                None => StreamEnd::Closed,
                Some(excess) => {
                    tracing::warn!(node = &*self.node, ?excess, "warmer exceeds the message limits");
                    StreamEnd::Misbehaved
                }
            },
        };
        let _ = self.inputs.send(Input::Closed(self.session, end)).await;
        if end == StreamEnd::Misbehaved
            && let Some(place) = &self.place
        {
            // The warmer may still learn why: what was sent last is still on its way when the stream has
            // ended here. Then nothing that it sends costs anything more.
            tokio::time::sleep(LAST_STATUS).await;
            place.close();
        }
    }

    /// Forwards until the warmer closes the stream, or exceeds a limit.
    async fn forward(&mut self) -> Option<Excess> {
        let mut message_limit = MessageLimit::new(Instant::now());
        loop {
            let message = match self.incoming.message().await {
                Ok(Some(message)) => message,
                // The only status code of a message above the size limit.
                Err(status) if status.code() == Code::OutOfRange => return Some(Excess::Size),
                Ok(None) | Err(_) => return None,
            };
            if let Err(excess) = message_limit.take(message.encoded_len(), Instant::now()) {
                return Some(excess);
            }
            // A message type of a newer version is ignored.
            let Some(message) = message.message else { continue };
            if self.inputs.send(Input::Message(self.session, message)).await.is_err() {
                return None;
            }
        }
    }
}

/// The messages to one warmer. Dropping it stops the reader.
pub(crate) struct SessionStream {
    messages: mpsc::Receiver<Outgoing>,
    _end: DropGuard,
}

impl Stream for SessionStream {
    type Item = Result<FromController, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.messages.poll_recv(context)
    }
}
