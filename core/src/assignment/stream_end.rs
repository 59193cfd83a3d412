//! Reasons for which a stream is refused or closed.

use crate::labels;

labels! {
    /// Why a warmer's stream was refused or closed.
    pub enum StreamEnd {
        /// This replica does not lead.
        NotLeading,
        /// The token was not accepted.
        Refused,
        /// The Node that the token is bound to does not exist.
        UnknownNode,
        /// The token is bound to a Node of the same name that was deleted.
        OtherNode,
        /// The Node was deleted, or another of its name has taken its place.
        NodeLeft,
        /// The token could not be reviewed, or the index did not answer.
        Unavailable,
        /// A newer stream of the node replaced it.
        Replaced,
        /// The warmer did not read its messages.
        TooSlow,
        /// The warmer violated the protocol: it is hostile or broken.
        Misbehaved,
        /// The warmer asked for more pulls or credentials than a node can use.
        Excessive,
        /// The token expired; the warmer reconnects with a new one.
        Expired,
        /// The warmer closed the stream, or the connection broke.
        Closed,
        /// This replica shuts down.
        Shutdown,
    }
}
