//! STUB.
pub mod fan_out;
