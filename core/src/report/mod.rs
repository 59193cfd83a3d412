//! Reports: what one means for the status of an ImageWarm ([`status`]), those that a warmer still has to
//! send ([`outbox`]), what kubelets say of the images of Pods ([`pod_image`]) when their containers start
//! ([`container_start`]), and schedulers of Pods that fit no node ([`pending_pod`]); what these amount to for one of Knative's Images ([`image_starts`]), and for a
//! person ([`worth`]).

pub mod container_start;
pub mod image_starts;
pub mod outbox;
pub mod pending_pod;
pub mod pod_image;
pub mod status;
pub mod worth;
