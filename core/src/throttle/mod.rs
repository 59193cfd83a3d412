//! Rate limits: on one registry by all nodes together ([`registry`]), on an image that may fail
//! everywhere ([`canary`]), on the messages of one stream to the leader ([`stream`]), on
//! connections ([`connections`]).

pub mod canary;
pub mod connections;
pub mod registry;
pub mod stream;
