//! The commands for users: status, certs, reference, crds. They read and print, and change nothing.

pub mod certs;
pub mod crds;
pub mod reference;
pub mod status;
