//! Why a stream ends.

use crate::labels;

labels! {
    /// Why a warmer's stream was not accepted or was ended.
    pub enum StreamEnd {
        /// This replica does not lead.
        NotLeading,
        /// The token was not accepted.
        Refused,
        /// There is no Node of the name that the token is bound to.
        UnknownNode,
        /// The token could not be reviewed, or the index did not answer.
        Unavailable,
        /// A newer stream of the node took its place.
        Replaced,
        /// The warmer did not read its messages.
        TooSlow,
        /// The warmer did what no warmer of ours does: it is hostile or broken.
        Misbehaved,
        /// The token expired; the warmer comes back with a new one.
        Expired,
        /// The warmer closed the stream, or the connection broke.
        Closed,
        /// This replica ends.
        Shutdown,
    }
}
