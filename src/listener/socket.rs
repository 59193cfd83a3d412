//! Listening sockets; `[::]` listens on both IPv6 and IPv4.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::TcpListener;

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub(crate) struct ListenError {
    /// The requested address.
    pub address: SocketAddr,
    /// The error of the operating system.
    pub source: io::Error,
}

/// Listens on `address`; `[::]` falls back to `0.0.0.0` on machines without IPv6.
pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let result = match TcpListener::bind(address).await {
        // Without IPv6 the error has no specific kind; IPv4 would fail with these two as well.
        Err(error)
            if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
                && !matches!(
                    error.kind(),
                    io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied
                ) =>
        {
            let ipv4 = (Ipv4Addr::UNSPECIFIED, address.port());
            TcpListener::bind(ipv4).await.map_err(|_| error)
        }
        other => other,
    };
    result.map_err(|source| ListenError { address, source })
}
