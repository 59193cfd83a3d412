//! The commands for users: status, certs, reference, crds. They read and print, and change nothing.

pub(crate) mod certs;
pub mod crds;
pub(crate) mod reference;
pub(crate) mod status;
