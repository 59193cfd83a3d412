//! Listening sockets, and the TLS connections that are accepted from them within limits. What is
//! spoken on a connection belongs to the room that serves it.

mod place;
mod socket;
mod tls;

pub(crate) use place::{ConnectionLimits, Place, Places};
pub(crate) use socket::listen;
pub(crate) use tls::{Accepted, Connection, HandshakeError, TlsListener, accept};
