//! What a repair puts right.

use crate::labels;

labels! {
    /// Kinds of repair.
    pub enum Repair {
        /// Nothing on this node stood for the image: a fan-out that did not happen, or not for this
        /// node, or an order that went with its owner.
        Missing,
        /// The node is younger than what asks for the image.
        NewNode,
        /// An Image asks for it, of which no admission request told.
        Image,
        /// The node holds the tag, but not the digest that Knative resolved it to.
        MovedTag,
    }
}
