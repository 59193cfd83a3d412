//! Reports: what one means for the status of an ImageWarm ([`status`]), and those that a warmer
//! still has to send ([`outbox`]).

pub mod outbox;
pub mod status;
