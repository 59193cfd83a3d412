//! STUB, owned by helper 1.

use super::Reference;

/// Name of the `ImageWarm` of this image on this node (see the tests for its form).
pub fn object_name(_image: &Reference, _node: &str) -> String {
    todo!()
}
