//! What the cluster does by itself while it stands, on one thread of its own (so that it outlives
//! the runtime of any single test): the two Services' forwarding, and the copy of the dispatch CA
//! that a kubelet would keep in each warmer's volume.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::control_plane::{client_from, write_private};
use super::name_server::NameServer;
use super::registry_proxy::RegistryProxy;
use crate::http_get::http_get;
use crate::ports::Port;

/// Stands for a Service: takes connections on one port and hands each to one of the ready
/// backends, in turn.
#[derive(Clone, Debug)]
pub struct Forwarder {
    port: Arc<Port>,
    backends: Arc<Mutex<Vec<Arc<Backend>>>>,
    turn: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Backend {
    target: SocketAddr,
    health: SocketAddr,
    ready: AtomicBool,
}

impl Forwarder {
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            port: Arc::new(Port::reserve()?),
            backends: Arc::default(),
            turn: Arc::default(),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Adds a backend; connections go to it while its `/readyz` answers 200.
    pub fn add(&self, target: SocketAddr, health: SocketAddr) {
        let backend = Backend { target, health, ready: AtomicBool::new(false) };
        self.lock().push(Arc::new(backend));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Backend>>> {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(self, listener: TcpListener) {
        loop {
            let Ok((mut from, _)) = listener.accept().await else { continue };
            let forwarder = self.clone();
            tokio::spawn(async move {
                // Closed at once when no backend is ready, as a Service without endpoints is.
                let Ok(mut to) = forwarder.connect().await else { return };
                let _ = from.set_nodelay(true);
                let _ = to.set_nodelay(true);
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            });
        }
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let mut ready = self.lock().clone();
        ready.retain(|backend| backend.ready.load(Ordering::Relaxed));
        for _ in 0..ready.len() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            if let Ok(stream) = TcpStream::connect(ready[turn % ready.len()].target).await {
                return Ok(stream);
            }
        }
        Err(io::ErrorKind::ConnectionRefused.into())
    }

    async fn probe(self) {
        loop {
            let backends = self.lock().clone();
            for backend in backends {
                let answer = http_get(backend.health, "/readyz").await;
                let ready = answer.is_ok_and(|(status, _)| status == 200);
                backend.ready.store(ready, Ordering::Relaxed);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// The thread; it ends when this value is dropped.
pub(super) struct Background {
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
    runtime: tokio::runtime::Handle,
}

impl Background {
    pub(super) fn start(forwarders: &[Forwarder]) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let listeners = forwarders.iter().map(|forwarder| {
            let listener = std::net::TcpListener::bind(forwarder.address())
                .with_context(|| format!("listen on {}", forwarder.address()))?;
            listener.set_nonblocking(true)?;
            Ok((forwarder.clone(), listener))
        });
        let listeners = listeners.collect::<Result<Vec<_>>>()?;
        let thread = std::thread::Builder::new().name("cluster".to_owned()).spawn(move || {
            run(runtime, listeners, stopped);
        })?;
        Ok(Self { stop, thread: Some(thread), runtime: handle })
    }

    /// Serves this proxy.
    pub(super) fn serve_proxy(&self, proxy: &RegistryProxy) -> Result<()> {
        let listener = std::net::TcpListener::bind(proxy.address())
            .with_context(|| format!("listen on {}", proxy.address()))?;
        listener.set_nonblocking(true)?;
        let proxy = proxy.clone();
        self.runtime.spawn(async move {
            if let Ok(listener) = TcpListener::from_std(listener) {
                proxy.serve(listener).await;
            }
        });
        Ok(())
    }

    /// Serves names.
    pub(super) fn serve_names(&self, server: NameServer) {
        self.runtime.spawn(server.serve());
    }

    /// Keeps `file` equal to one key of a ConfigMap, as the kubelet does with an optional volume.
    pub(super) fn mirror(
        &self,
        kubeconfig: PathBuf,
        (namespace, name, key): (&'static str, &'static str, &'static str),
        file: PathBuf,
    ) {
        self.runtime.spawn(async move {
            let Ok(client) = client_from(&kubeconfig).await else { return };
            let maps: Api<ConfigMap> = Api::namespaced(client, namespace);
            let mut known = String::new();
            loop {
                let map = maps.get_opt(name).await.ok().flatten();
                let found = map.and_then(|map| map.data?.remove(key)).unwrap_or_default();
                if found != known && write_private(&file, &found).is_ok() {
                    known = found;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
    }
}

fn run(
    runtime: Runtime,
    listeners: Vec<(Forwarder, std::net::TcpListener)>,
    stopped: CancellationToken,
) {
    runtime.block_on(async {
        for (forwarder, listener) in listeners {
            if let Ok(listener) = TcpListener::from_std(listener) {
                tokio::spawn(forwarder.clone().serve(listener));
            }
            tokio::spawn(forwarder.probe());
        }
        stopped.cancelled().await;
    });
    // Dropping the runtime ends every task.
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::wait::wait_for;

    /// Answers every connection with the same bytes.
    async fn answering(text: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(text.as_bytes()).await;
            }
        });
        address
    }

    async fn ask(forwarder: &Forwarder) -> Option<String> {
        let mut stream = TcpStream::connect(forwarder.address()).await.ok()?;
        stream.write_all(b"?").await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        (!answer.is_empty()).then_some(answer)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn only_ready_backends_are_asked() {
        let forwarder = Forwarder::new().unwrap();
        let _background = Background::start(std::slice::from_ref(&forwarder)).unwrap();
        assert_eq!(ask(&forwarder).await, None);
        let ready = answering("HTTP/1.0 200 OK\r\n\r\n").await;
        let not_ready = answering("HTTP/1.0 503 Service Unavailable\r\n\r\n").await;
        forwarder.add(answering("one").await, not_ready);
        forwarder.add(answering("two").await, ready);
        let answer = wait_for(Duration::from_secs(5), "an answer", async || ask(&forwarder).await);
        assert_eq!(answer.await.unwrap(), "two");
        for _ in 0..5 {
            assert_eq!(ask(&forwarder).await.as_deref(), Some("two"));
        }
    }
}
