//! The commands for users: check, status, wait, report, pins, certs, reference, crds. They read and print, and change
//! nothing.

pub(crate) mod certs;
pub(crate) mod check;
pub mod crds;
mod listing;
mod live;
pub(crate) mod pins;
pub(crate) mod reference;
pub(crate) mod report;
pub(crate) mod status;
mod target;
pub(crate) mod terminal;
pub(crate) mod wait;
