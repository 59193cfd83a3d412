//! How much is asked at once: of a registry by all nodes together ([`registry`]), of an image that may
//! not be there ([`canary`]), of the leader by one stream ([`stream`]).

pub mod canary;
pub mod registry;
pub mod stream;
