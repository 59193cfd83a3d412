//! STUB, owned by helper 4.

use super::Policy;
use crate::api::Revision;
use crate::image::Reference;

/// What one Revision asks for.
#[derive(Clone, Debug)]
pub struct Demand {
    /// Every distinct image once, in order of appearance.
    pub images: Vec<WantedImage>,
}

/// One image of a Revision.
#[derive(Clone, Debug)]
pub struct WantedImage {
    /// As the Revision names it.
    pub reference: Reference,
    /// The same by digest, once Knative resolved it.
    pub resolved: Option<Reference>,
}

/// Reads what `revision` asks for; `namespace_opted_out` is the namespace's label.
pub fn demand(_revision: &Revision, _namespace_opted_out: bool, _policy: &Policy) -> Demand {
    todo!()
}
