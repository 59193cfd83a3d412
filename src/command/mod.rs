//! What people call: status, reference, crds. Reads and prints; changes nothing.

pub mod crds;
pub mod reference;
pub mod status;
