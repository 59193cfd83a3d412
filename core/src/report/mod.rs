//! From what a warmer reports to the status of an ImageWarm ([`status`]), and what the warmer still has to
//! report ([`outbox`]).

pub mod outbox;
pub mod status;
