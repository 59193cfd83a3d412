//! All access to the API server: client, caches, reads and writes.

pub mod ca_bundles;
pub mod caches;
pub mod client;
pub mod leadership;
pub mod request;
pub mod secrets;
pub mod token_review;
pub mod writes;
