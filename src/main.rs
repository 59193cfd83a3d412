//! Wiring only: everything is in the library.

fn main() {}
