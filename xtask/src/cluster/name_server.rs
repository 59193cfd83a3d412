//! A name server that knows no name: the nodes ask it, so that an unknown host is told at once and
//! no question leaves this machine.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use rand::RngExt as _;

use crate::process::Program;

/// Bound, and not yet serving.
pub(super) struct NameServer {
    socket: UdpSocket,
    settings: PathBuf,
}

impl NameServer {
    /// On port 53 of some loopback address, with the `resolv.conf` that names it.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        for _ in 0..50 {
            let [a, b, c]: [u8; 3] = rand::rng().random();
            let address = Ipv4Addr::new(127, a.max(2), b, c.clamp(1, 254));
            let Ok(socket) = UdpSocket::bind(SocketAddrV4::new(address, 53)) else { continue };
            socket.set_nonblocking(true)?;
            let settings = folder.join("resolv.conf");
            fs::write(&settings, format!("nameserver {address}\n"))?;
            return Ok(Self { socket, settings });
        }
        bail!("no address of 127.0.0.0/8 has a free port 53")
    }

    /// What the nodes have as `/etc/resolv.conf`.
    pub(super) fn settings(&self) -> &Path {
        &self.settings
    }

    /// Answers every question.
    pub(super) async fn serve(self) {
        let Ok(socket) = tokio::net::UdpSocket::from_std(self.socket) else { return };
        let mut message = [0; 1_500];
        loop {
            let Ok((length, from)) = socket.recv_from(&mut message).await else { continue };
            let [_, _, flags, code, ..] = &mut message;
            // An answer; no such name.
            (*flags, *code) = (*flags | 0x80, 0x83);
            let _ = socket.send_to(&message[..length], from).await;
        }
    }
}

/// The same program where `/etc/resolv.conf` is this file.
pub(super) fn asking(settings: &Path, program: Program) -> Program {
    let script = "mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"";
    Program::new("unshare")
        .args(["--mount", "--propagation", "private", "--", "sh", "-c", script, "sh"])
        .arg(settings)
        .followed_by(program)
}
