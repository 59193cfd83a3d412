//! Image names and registry credentials: the reference grammar, object names, and the matching of
//! credentials as kubelet does it; how text from outside is quoted. Pure.

pub mod credential_provider;
mod digest;
pub mod keychain;
mod location;
pub mod object_name;
pub mod quoted;
pub mod reference;
pub mod registry_pattern;
mod retry_after;
mod rewrites;

pub use digest::Digest;
pub use keychain::{Credential, Keychain};
pub use reference::{Named, Reference, ReferenceError};
pub use retry_after::retry_after_ms;
pub use rewrites::{ImageRewrites, ImageRewritesError};
