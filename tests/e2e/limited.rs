//! A registry that answers every request with 429, asked by real runtimes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::{Condition, Reason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::world::World;

crate::tests![a_registry_that_asks_for_fewer_requests_gets_them];

async fn a_registry_that_asks_for_fewer_requests_gets_them(world: &World) -> Result<()> {
    let namespace = world.namespace("limited").await?;
    let containerd = world.nodes.join_with_containerd("limited").await?;
    // Docker passes the registry's own message on, containerd only that there were too many.
    for (node, unit) in [(world.nodes.names()[0], " min"), (&*containerd, " s")] {
        let registry = Limiting::start().await?;
        let waits = async |name: &str, words: &str| -> Result<Condition> {
            let what = format!("{name} waits: {words}");
            let is_limited = |ready: &Condition| {
                ready.reason == Reason::RateLimited.as_str() && ready.message.contains(words)
            };
            let warm =
                namespace.until(name, &what, |warm| warm.ready().is_some_and(is_limited)).await?;
            warm.ready().cloned().context("no condition")
        };
        let warm = async |name: &str, image: &str| {
            let image = format!("{}/{image}:v1", registry.address);
            namespace.create_image_warm(name, &image, node, &[]).await
        };
        let (first, second) = (format!("first-{node}"), format!("second-{node}"));
        warm(&first, "first").await?;
        let ready = waits(&first, "pulls nothing from it for").await?;
        ensure!(ready.message.ends_with(unit), "{node}: {ready:?}");
        // Another image of the registry waits as well, without a word to the registry.
        warm(&second, "second").await?;
        waits(&second, "asked for fewer requests").await?;
        ensure!(registry.asked_for_second() == 0, "{node} asked on");
    }
    Ok(())
}

struct Limiting {
    address: SocketAddr,
    second: Arc<AtomicUsize>,
    _server: JoinSet<()>,
}

impl Limiting {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, second) = (listener.local_addr()?, Arc::<AtomicUsize>::default());
        let mut server = JoinSet::new();
        let counted = second.clone();
        server.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Broken connections are the runtimes' affair.
                let _ = refuse(stream, &counted).await;
            }
        });
        Ok(Limiting { address, second, _server: server })
    }

    fn asked_for_second(&self) -> usize {
        self.second.load(Ordering::SeqCst)
    }
}

async fn refuse(mut stream: TcpStream, counted: &AtomicUsize) -> std::io::Result<()> {
    let mut request = vec![0; 4096];
    let length = stream.read(&mut request).await?;
    if String::from_utf8_lossy(&request[..length]).contains("/second/") {
        counted.fetch_add(1, Ordering::SeqCst);
    }
    let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"retry after 600 seconds"}]}"#;
    let head = format!(
        "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 600\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await
}
