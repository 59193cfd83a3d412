//! STUB, owned by helper 5.
