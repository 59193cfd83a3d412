//! The client of containerd's image service, generated from
//! `proto/containerd/services/images/v1/images.proto`.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used)] // generated

tonic::include_proto!("containerd.services.images.v1");
