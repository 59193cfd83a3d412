//! Opens listening sockets, on IPv6 and IPv4 at once where the address is `[::]`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::TcpListener;

/// Why nothing can be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct ListenError {
    /// The address that was asked for.
    pub address: SocketAddr,
    /// What the operating system said.
    pub source: io::Error,
}

/// Listens on `address`; `[::]` falls back to `0.0.0.0` on machines without IPv6.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let result = match TcpListener::bind(address).await {
        // Without IPv6 the error has no kind of its own; these two would be no better on IPv4.
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
