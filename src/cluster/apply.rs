//! STUB, owned by helper 4.
