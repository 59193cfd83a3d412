//! The commands for users: check, status, why, wait, warm, report, pins, certs, reference, crds. Only warm changes
//! anything.

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
pub(crate) mod warm;
pub(crate) mod why;
