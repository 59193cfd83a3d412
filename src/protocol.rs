//! The client and the server of the dispatch protocol, generated from
//! `proto/dispatch/v1/dispatch.proto`. Its messages are those of [`imagewarm_core::protocol`].
#![allow(missing_docs, clippy::all, clippy::unwrap_used)] // generated

tonic::include_proto!("imagewarm.dispatch.v1");
