//! The client of containerd's content service, generated from
//! `proto/containerd/services/content/v1/content.proto`.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used)] // generated

tonic::include_proto!("containerd.services.content.v1");
