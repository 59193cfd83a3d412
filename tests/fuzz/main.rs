//! What comes from outside, mutated without end: each target starts from the files in
//! `corpus/TARGET`, and holds what it finds against properties, not only against panics.
//!
//! Each run has the same inputs: the files as they are, and those that a fixed number of fixed seeds
//! make of them. `IMAGEWARM_FUZZ_SECONDS` draws random seeds for so long instead. A failure shows the
//! smallest input that fails, names the `IMAGEWARM_FUZZ_SEED` that repeats it, and keeps a file for
//! the corpus.

mod admission;
mod docker_config;
mod frames;
mod mutation;
mod reference;
