//! Rate limits: on one registry by all nodes together ([`registry`]), on what is warmed from it while a
//! Pod waits for its image ([`preemption`]), on an image that may fail everywhere ([`canary`]), on the
//! messages of one stream to the leader ([`stream`]), on connections ([`connections`]).

pub mod canary;
pub mod connections;
pub mod limits;
pub mod preemption;
pub mod registry;
pub mod stream;
