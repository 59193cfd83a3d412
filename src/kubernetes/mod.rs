//! All access to the API server: client, caches, reads and writes.

pub mod caches;
pub mod client;
pub mod leadership;
pub mod request;
pub mod secrets;
pub mod token_review;
pub mod webhook_configurations;
pub mod writes;
