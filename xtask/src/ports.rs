//! Free TCP ports on loopback, reserved across all clusters of this machine.
//!
//! The range lies below the kernel's ephemeral ports, so an outgoing connection cannot take a port
//! between its choice and its use; a lock file keeps clusters side by side apart.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context, Result, bail};
use rand::RngExt as _;

const RANGE: std::ops::Range<u16> = 20_000..30_000;

/// A TCP port of 127.0.0.1 that nobody else is given while this value lives.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// Finds a port that is free now and reserves it.
    pub fn reserve() -> Result<Self> {
        let folder = std::env::temp_dir().join("imagewarm-ports");
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        for _ in 0..1_000 {
            let number = rand::rng().random_range(RANGE);
            let path = folder.join(number.to_string());
            let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
            let Ok(lock) = lock else { continue };
            if lock.try_lock().is_err() || TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_err()
            {
                continue;
            }
            return Ok(Self { number, _lock: lock });
        }
        bail!("no free TCP port in {RANGE:?}")
    }

    /// The port's number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.number))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ports_are_never_given_twice() {
        let ports: Vec<Port> = (0..50).map(|_| Port::reserve().unwrap()).collect();
        let mut numbers: Vec<u16> = ports.iter().map(Port::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 50);
    }
}
