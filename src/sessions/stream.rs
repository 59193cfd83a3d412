//! The messages between the gRPC server and the dispatcher about one stream.

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::metadata::MetadataValue;

use crate::kubernetes::leadership::Leadership;
use crate::kubernetes::token_review::WarmerIdentity;
use imagewarm_core::assignment::{SessionId, StreamEnd};
use imagewarm_core::protocol::{FromController, Hello, LEADER_METADATA, from_warmer};
use imagewarm_core::report::pending_pod::PendingPod;
use imagewarm_core::report::pod_image::PodImage;

/// An event from a stream.
pub(crate) enum Input {
    /// A warmer opened a stream with its hello.
    Open { warmer: WarmerIdentity, hello: Hello, reply: oneshot::Sender<Result<Opened, Status>> },
    /// A message of a warmer.
    Message(SessionId, from_warmer::Message),
    /// A stream ended.
    Closed(SessionId, StreamEnd),
    /// A kubelet has begun to pull an image for a Pod.
    PodWaits(PodImage),
    /// A container starts, its image is on the node.
    PodStarted(PodImage),
    /// A Pod fits no node.
    PodPending(PendingPod),
}

/// Passes on to the dispatcher what kubelets and schedulers report of Pods.
#[derive(Clone)]
pub(crate) struct PodImages(pub(super) mpsc::Sender<Input>);

impl PodImages {
    /// A kubelet has begun to pull the image. Lost when too much waits: the Pod then waits as it would
    /// without.
    pub(crate) fn waits(&self, image: PodImage) {
        let _ = self.0.try_send(Input::PodWaits(image));
    }

    /// The Pod fits no node. Lost when too much waits: the scheduler says it again.
    pub(crate) fn pending(&self, pod: PendingPod) {
        let _ = self.0.try_send(Input::PodPending(pod));
    }

    /// The image is on the node. Where it is lost, its node's outcome says the same.
    pub(crate) fn started(&self, image: PodImage) {
        let _ = self.0.try_send(Input::PodStarted(image));
    }
}

/// A stream that is open in the index.
pub(crate) struct Opened {
    pub(crate) session: SessionId,
    pub(crate) messages: mpsc::Receiver<Outgoing>,
    /// Cancelled when the dispatcher cuts the warmer off: nothing that it sends is read any more.
    pub(crate) cut: CancellationToken,
}

pub(crate) type Outgoing = Result<FromController, Status>;

/// The gRPC status with which a stream is terminated or rejected.
pub(super) fn end_status(end: StreamEnd, leader: &Leadership) -> Status {
    match end {
        StreamEnd::NotLeading => {
            let mut status = Status::failed_precondition("this replica is not the leader");
            let address = leader.leader_address.as_deref().filter(|_| !leader.leading);
            if let Some(address) = address.and_then(|a| MetadataValue::try_from(a).ok()) {
                status.metadata_mut().insert(LEADER_METADATA, address);
            }
            status
        }
        StreamEnd::Replaced => Status::aborted("replaced by a newer stream of this node"),
        StreamEnd::TooSlow => Status::resource_exhausted("the warmer does not read its messages"),
        StreamEnd::UnknownNode => Status::permission_denied("no Node of this name exists"),
        StreamEnd::OtherNode => {
            Status::permission_denied("the token is bound to another Node of this name")
        }
        StreamEnd::NodeLeft => Status::permission_denied("the Node was deleted or replaced"),
        StreamEnd::Misbehaved => Status::permission_denied("the stream violates the protocol"),
        StreamEnd::Excessive => Status::permission_denied(
            "the warmer asked for more pulls or credentials than a node can use",
        ),
        StreamEnd::Expired => Status::unauthenticated("the token expired"),
        StreamEnd::Shutdown | StreamEnd::Unavailable => {
            Status::unavailable("this replica is shutting down")
        }
        StreamEnd::Refused | StreamEnd::Closed => Status::cancelled("closed"),
    }
}
