//! All access to the API server: client, caches, reads and writes.

pub(crate) mod caches;
pub(crate) mod client;
pub(crate) mod leadership;
mod proxy;
pub(crate) mod request;
pub(crate) mod secrets;
pub(crate) mod token_review;
pub(crate) mod webhook_configurations;
pub(crate) mod writes;
