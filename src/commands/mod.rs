//! The commands for users: status, report, pins, certs, reference, crds. They read and print, and change nothing.

pub(crate) mod certs;
pub mod crds;
mod listing;
pub(crate) mod pins;
pub(crate) mod reference;
pub(crate) mod report;
pub(crate) mod status;
