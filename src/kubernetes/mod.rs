//! All access to the API server: client, caches, reads and writes.

pub(crate) mod apply_error;
pub(crate) mod caches;
pub(crate) mod client;
pub(crate) mod events;
pub(crate) mod leadership;
pub(crate) mod live;
mod proxy;
pub(crate) mod request;
pub(crate) mod secrets;
pub(crate) mod taints;
pub(crate) mod token_review;
pub(crate) mod webhook_configurations;
pub(crate) mod writes;
