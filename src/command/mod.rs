//! What people call: one file for each command.

pub mod crds;
pub mod status;
