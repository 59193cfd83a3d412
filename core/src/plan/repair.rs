//! The kinds of repair that the leader makes.

use crate::labels;

labels! {
    /// Kinds of repair.
    pub enum Repair {
        /// The node had no ImageWarm for the image: the fan-out did not happen, or not for this
        /// node, or the ImageWarm was deleted with its owner.
        Missing,
        /// The node is younger than the consumer.
        NewNode,
        /// A Knative Image, or the queue-proxy image of `config-deployment`, demands it: admission sees
        /// neither.
        Image,
        /// The node holds the tag, but not the digest that Knative resolved it to.
        MovedTag,
    }
}
