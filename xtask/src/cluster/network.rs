//! Network namespaces: small networks of their own for what must not, or cannot, listen on the
//! machine's addresses, and what is reached from within them.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::RngExt as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::Cluster;
use crate::prerequisites::{Prerequisite, Programs};
use crate::process::{Process, Program};
use crate::wait::wait_for;

/// A network namespace, kept alive by one waiting process, with a link to this machine's own. When
/// that process ends, the kernel removes both.
pub(super) struct Network {
    /// The address inside.
    pub(super) address: String,
    /// A process inside, by which others find it.
    pub(super) holder: Process,
}

impl Network {
    pub(super) async fn create(programs: &Programs, folder: &Path, sandbox: &Path) -> Result<Self> {
        let holder = hold(folder, sandbox).await?;
        let pid = holder.pid();
        let ip = programs.path(Prerequisite::Ip)?;
        for _ in 0..20 {
            // 198.18.0.0/15 is set aside for tests of network devices (RFC 2544): nobody's address.
            let subnet = 0xc612_0000u32 + 4 * rand::rng().random_range(0..0x8000u32);
            let [here, there] = [subnet + 1, subnet + 2].map(std::net::Ipv4Addr::from);
            let taken = run(Command::new(ip).args(["-4", "-o", "addr", "show"]))?;
            if taken.contains(&format!(" {here}/")) {
                continue;
            }
            let link = format!("iw{subnet:08x}");
            let inside = format!(
                "ip addr add {there}/30 dev eth0 && ip link set eth0 up && ip link set lo up"
            );
            let pid = pid.to_string();
            let command = || Command::new(ip);
            let peer = ["type", "veth", "peer", "name", "eth0", "netns", &pid];
            run(command().args(["link", "add", &link]).args(peer))?;
            run(command().args(["addr", "add", &format!("{here}/30"), "dev", &link]))?;
            run(command().args(["link", "set", &link, "up"]))?;
            run(Command::new("nsenter").args(["-t", &pid, "-n", "sh", "-c", &inside]))?;
            let link_up = format!("/sys/class/net/{link}/operstate");
            wait_for(Duration::from_secs(5), "the link of a network", async || {
                let state = fs::read_to_string(&link_up).ok()?;
                (state.trim() == "up").then_some(())
            })
            .await?;
            return Ok(Self { address: there.to_string(), holder });
        }
        bail!("no free subnet in 198.18.0.0/15")
    }

    /// Makes an address of elsewhere the network's own, so that somebody can listen there.
    pub(super) fn claim(&self, programs: &Programs, address: std::net::IpAddr) -> Result<()> {
        let target = format!("--target={}", self.holder.pid());
        let ip = programs.path(Prerequisite::Ip)?;
        let mut command = Command::new("nsenter");
        command.args([&target, "--net", "--"]).arg(ip);
        run(command.args(["addr", "add", &address.to_string(), "dev", "lo"])).map(drop)
    }

    /// Runs a shell script inside.
    fn configure(&self, script: &str) -> Result<()> {
        let target = format!("--target={}", self.holder.pid());
        run(Command::new("nsenter").args([&target, "--net", "sh", "-ec", script])).map(drop)
    }

    /// Listens on an address inside. The future hands each connection to an address of here, over
    /// this link.
    pub(super) fn forward(
        &self,
        inside: SocketAddr,
        target: SocketAddr,
        link: Link,
    ) -> Result<impl Future<Output = ()> + use<>> {
        let listener = listen_inside(self.holder.pid(), inside)
            .with_context(|| format!("listen on {inside} in a network of its own"))?;
        listener.set_nonblocking(true)?;
        Ok(forward(tokio::net::TcpListener::from_std(listener)?, target, link))
    }

    /// The same program inside.
    pub(super) fn program(&self, program: Program) -> Program {
        let target = format!("--target={}", self.holder.pid());
        Program::new("nsenter").args([target.as_str(), "--net", "--"]).followed_by(program)
    }
}

impl Cluster {
    /// Makes the API server, the registries' proxy and the registries reachable in that network, these over a
    /// link.
    pub(super) fn forward_into(&self, network: &Network, link: &Link) -> Result<JoinSet<()>> {
        let api = self.server_url().trim_start_matches("https://");
        let mut forwards = JoinSet::new();
        let registries = self.registries().into_iter();
        let registries = registries.map(|one| (one.address.as_str(), link.clone()));
        let proxy = self.registry_proxy.address().to_string();
        let others = [api, &proxy].map(|address| (address, Link::default()));
        for (address, link) in others.into_iter().chain(registries) {
            let address: SocketAddr = address.parse()?;
            if !address.ip().is_loopback() {
                network.claim(&self.programs, address.ip())?;
            }
            forwards.spawn(network.forward(address, address, link)?);
        }
        Ok(forwards)
    }
}

/// A segment that joins networks, so that Pods reach the Pods of other nodes, and Knative reaches all.
/// Pods of the node of number `n` have addresses in `10.88.n.0/24`.
pub(super) struct Segment {
    holder: Process,
    ip: PathBuf,
}

/// Numbers of nodes on a segment.
pub(super) const NODES: std::ops::RangeInclusive<u8> = 1..=8;

impl Segment {
    pub(super) async fn create(programs: &Programs, folder: &Path, sandbox: &Path) -> Result<Self> {
        let holder = hold(folder, sandbox).await?;
        let target = format!("--target={}", holder.pid());
        let script = "ip link add segment type bridge && ip link set segment up";
        run(Command::new("nsenter").args([&target, "--net", "sh", "-ec", script]))?;
        Ok(Self { holder, ip: programs.path(Prerequisite::Ip)?.to_owned() })
    }

    /// Attaches a network. Nodes have the numbers of [`NODES`], others have higher ones.
    pub(super) fn attach(&self, network: &Network, number: u8) -> Result<()> {
        let (segment, inside) = (self.holder.pid().to_string(), network.holder.pid().to_string());
        let port = format!("port{number}");
        run(Command::new(&self.ip)
            .args(["link", "add", &port, "netns", &segment, "type", "veth"])
            .args(["peer", "name", "eth1", "netns", &inside]))?;
        let script = format!("ip link set {port} master segment && ip link set {port} up");
        let target = format!("--target={segment}");
        run(Command::new("nsenter").args([&target, "--net", "sh", "-ec", &script]))?;
        let mut script = format!(
            "echo 1 > /proc/sys/net/ipv4/ip_forward
ip addr add 10.89.0.{number}/24 dev eth1
ip link set eth1 up
"
        );
        for node in NODES.filter(|node| *node != number) {
            script += &format!("ip route add 10.88.{node}.0/24 via 10.89.0.{node}\n");
        }
        network.configure(&script)
    }
}

/// What a connection may carry: everything, or so many bytes a second with all others that share it.
#[derive(Clone, Debug, Default)]
pub struct Link(Option<Arc<Limit>>);

#[derive(Debug)]
struct Limit {
    bytes_per_second: f64,
    /// When the link is free again.
    free_at: Mutex<Instant>,
}

impl Link {
    /// A link of so many megabits a second, shared by all clones.
    pub fn of_megabits(megabits: u32) -> Self {
        let bytes_per_second = f64::from(megabits) * 1e6 / 8.0;
        Link(Some(Arc::new(Limit { bytes_per_second, free_at: Mutex::new(Instant::now()) })))
    }

    /// Returns once so many bytes have passed.
    pub async fn pass(&self, bytes: usize) {
        let Some(limit) = &self.0 else { return };
        let passed = {
            let mut free_at = limit.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let time = Duration::from_secs_f64(bytes as f64 / limit.bytes_per_second);
            *free_at = (*free_at).max(Instant::now()) + time;
            *free_at
        };
        tokio::time::sleep_until(passed.into()).await;
    }

    async fn copy(
        &self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = from.read(&mut buffer).await?;
            if read == 0 {
                return to.shutdown().await;
            }
            self.pass(read).await;
            to.write_all(&buffer[..read]).await?;
        }
    }
}

/// A process in a new network namespace, which lives as long as it does.
async fn hold(folder: &Path, sandbox: &Path) -> Result<Process> {
    let keep = folder.join("network");
    fs::write(&keep, "")?;
    let program = Program::new("unshare").args(["--net", "--", "tail", "-f"]).arg(&keep);
    let holder = Process::start("network", program, sandbox)?;
    let pid = holder.pid();
    let ours = fs::read_link("/proc/self/ns/net")?;
    holder
        .wait_until(Duration::from_secs(5), async || {
            fs::read_link(format!("/proc/{pid}/ns/net")).ok().filter(|its| *its != ours)
        })
        .await?;
    Ok(holder)
}

/// A listener on that address in the network namespace of process `pid`. Who accepts from it needs
/// not be there.
fn listen_inside(pid: u32, address: SocketAddr) -> io::Result<TcpListener> {
    let network = File::open(format!("/proc/{pid}/ns/net"))?;
    // Only this thread goes there, and it ends there.
    let thread = std::thread::spawn(move || {
        enter_network(&network)?;
        TcpListener::bind(address)
    });
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the listening thread panicked")))
}

#[allow(unsafe_code)] // Neither the standard library nor a crate of ours wraps setns(2).
fn enter_network(network: &File) -> io::Result<()> {
    // SAFETY: setns(2) takes an open descriptor and a number, and touches no memory.
    match unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

async fn forward(listener: tokio::net::TcpListener, target: SocketAddr, link: Link) {
    // Aborted together with the loop.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((mut from, _)) = listener.accept().await else { continue };
        let link = link.clone();
        connections.spawn(async move {
            let Ok(mut to) = TcpStream::connect(target).await else { return };
            let _ = from.set_nodelay(true);
            let _ = to.set_nodelay(true);
            let (mut from, mut to) = (from.split(), to.split());
            let _ = tokio::join!(
                tokio::io::copy(&mut from.0, &mut to.1),
                link.copy(&mut to.0, &mut from.1),
            );
        });
    }
}

/// Runs a short command to its end; an error, with what it printed, when it failed.
pub(super) fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        let program = command.get_program().to_string_lossy().into_owned();
        bail!("{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
