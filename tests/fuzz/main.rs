//! What comes from outside, mutated without end: each target starts from the files in
//! `corpus/TARGET`, and holds what it finds against properties, not only against panics.
//!
//! A target runs for some seconds; `IMAGEWARM_FUZZ_SECONDS` makes that longer. A failure names the
//! `BOLERO_RANDOM_SEED` that brings it back, and shows the smallest input that fails.

mod admission;
mod docker_config;
mod frames;
mod mutation;
mod reference;
