//! Everything that talks to the API server.

pub mod apply;
pub mod client;
pub mod leadership;
pub mod publish_ca;
pub mod secrets;
pub mod token_review;
pub mod watch;
