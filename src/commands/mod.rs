//! What people call: status, certs, reference, crds. Reads and prints; changes nothing.

pub mod certs;
pub mod crds;
pub mod reference;
pub mod status;
