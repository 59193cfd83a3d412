//! What the server and the dispatcher exchange about one stream.

use tokio::sync::{mpsc, oneshot};
use tonic::Status;
use tonic::metadata::MetadataValue;

use crate::kubernetes::leadership::Leadership;
use imagewarm_core::assignment::{SessionId, StreamEnd};
use imagewarm_core::protocol::{FromController, Hello, LEADER_METADATA, from_warmer};

/// An event from a stream.
pub(crate) enum Input {
    /// A warmer said hello.
    Open { node: String, hello: Hello, reply: oneshot::Sender<Result<Opened, Status>> },
    /// A warmer said something.
    Message(SessionId, from_warmer::Message),
    /// A stream ended.
    Closed(SessionId, StreamEnd),
}

/// A stream that the index knows of.
pub(crate) struct Opened {
    pub(crate) session: SessionId,
    pub(crate) messages: mpsc::Receiver<Outgoing>,
}

pub(crate) type Outgoing = Result<FromController, Status>;

/// The answer with which a stream ends, or is not accepted.
pub(super) fn end_status(end: StreamEnd, leader: &Leadership) -> Status {
    match end {
        StreamEnd::NotLeading => {
            let mut status = Status::failed_precondition("this replica does not lead");
            let address = leader.leader_address.as_deref().filter(|_| !leader.leading);
            if let Some(address) = address.and_then(|a| MetadataValue::try_from(a).ok()) {
                status.metadata_mut().insert(LEADER_METADATA, address);
            }
            status
        }
        StreamEnd::Replaced => Status::aborted("a newer stream of this node took its place"),
        StreamEnd::TooSlow => Status::resource_exhausted("the warmer does not read its messages"),
        StreamEnd::UnknownNode => Status::permission_denied("there is no Node of this name"),
        StreamEnd::Misbehaved => Status::permission_denied("cut off: no warmer speaks like this"),
        StreamEnd::Expired => Status::unauthenticated("the token expired"),
        StreamEnd::Shutdown | StreamEnd::Unavailable => Status::unavailable("this replica ends"),
        StreamEnd::Refused | StreamEnd::Closed => Status::cancelled("closed"),
    }
}
