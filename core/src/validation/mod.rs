//! What may stand in an ImageWarm, and how a fault in one of its fields is reported.

pub mod field_error;
pub mod image_warm;
