//! Reports: what one means for the status of an ImageWarm ([`status`]), those that a warmer still has to
//! send ([`outbox`]), and what kubelets say of the images of Pods ([`pod_image`]) when their containers start
//! ([`container_start`]).

pub mod container_start;
pub mod outbox;
pub mod pod_image;
pub mod status;
