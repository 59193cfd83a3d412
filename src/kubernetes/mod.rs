//! Everything that is asked of the API server.

pub mod ca_bundles;
pub mod caches;
pub mod client;
pub mod leadership;
pub mod request;
pub mod secrets;
pub mod token_review;
pub mod writes;
