//! The API server behind a proxy: it is reached by CONNECT.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::world::World;

crate::tests![commands_reach_the_api_server_through_a_proxy];

/// A name of the API server's certificate that leads nowhere.
const SERVER: &str = "kubernetes.default.svc:443";

/// Leads every tunnel to `target`, and counts those to [`SERVER`].
async fn proxy(listener: TcpListener, target: SocketAddr, tunnels: Arc<AtomicUsize>) -> Result<()> {
    let mut open = JoinSet::new();
    loop {
        let (mut client, _) = listener.accept().await?;
        let tunnels = tunnels.clone();
        open.spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(client.read_u8().await?);
            }
            if head.starts_with(format!("CONNECT {SERVER} ").as_bytes()) {
                tunnels.fetch_add(1, Ordering::Relaxed);
            }
            let mut server = TcpStream::connect(target).await?;
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            copy_bidirectional(&mut client, &mut server).await
        });
    }
}

async fn commands_reach_the_api_server_through_a_proxy(world: &World) -> Result<()> {
    let namespace = world.namespace("proxied").await?;
    let text = std::fs::read_to_string(world.cluster().kubeconfig_path())?;
    let mut kubeconfig: Value = serde_json::from_str(&text)?;
    let server = &mut kubeconfig["clusters"][0]["cluster"]["server"];
    let target = server.as_str().and_then(|url| url.strip_prefix("https://"));
    let target: SocketAddr = target.context("no address")?.parse()?;
    *server = json!(format!("https://{SERVER}"));
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("kubeconfig");
    std::fs::write(&file, kubeconfig.to_string())?;
    let file = file.display().to_string();

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let tunnels = Arc::new(AtomicUsize::new(0));
    let mut running = JoinSet::new();
    running.spawn(proxy(listener, target, tunnels.clone()));
    let status = ["status", "-n", &namespace.name, "--kubeconfig", &file];
    let through = [("HTTPS_PROXY", format!("http://{address}"))];
    let (code, output) = world.commands.imagewarm_with(&status, &through).await?;
    ensure!(code == 0 && output.contains("No ImageWarms"), "{code}\n{output}");
    ensure!(tunnels.load(Ordering::Relaxed) > 0, "the proxy was not asked");
    Ok(())
}
