//! Connections of somebody who only wants to take places.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

/// Where the crowd comes from, which is not where the API server comes from; any port.
const CROWD: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 2), 0);

/// So many TLS handshakes that begin and never end, again whenever the other side closes one; until the
/// set is dropped.
pub fn half_open(address: SocketAddr, count: usize) -> JoinSet<Result<()>> {
    let mut crowd = JoinSet::new();
    for _ in 0..count {
        crowd.spawn(async move {
            loop {
                let socket = TcpSocket::new_v4()?;
                socket.bind(CROWD.into())?;
                let mut stream = socket.connect(address).await?;
                stream.write_all(&[0x16, 3, 1]).await?;
                let _ = stream.read_to_end(&mut vec![]).await;
                // Hundreds of connections in a second; this machine has other work, too.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            #[expect(unreachable_code, reason = "the type of the loop's errors")]
            Ok(())
        });
    }
    crowd
}
