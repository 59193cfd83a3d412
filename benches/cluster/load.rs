//! Admission calls as the API server makes them: HTTP/1.1 over TLS, on connections that stay open.
//! Written by hand, so that the caller costs as little as possible beside the callee.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A server, and the request to it.
#[derive(Clone)]
pub struct Target {
    address: SocketAddr,
    name: ServerName<'static>,
    connector: TlsConnector,
    request: Arc<Vec<u8>>,
}

impl Target {
    /// A server that is at `address`, is called `name`, serves `path`, and is trusted for the
    /// authority in `ca`.
    pub fn new(
        address: SocketAddr,
        name: &str,
        path: &str,
        ca: &Path,
        body: &[u8],
    ) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca)? {
            roots.add(certificate?)?;
        }
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let mut request = format!(
            "POST {path}?timeout=1s HTTP/1.1\r\nhost: {name}\r\n\
             content-type: application/json\r\naccept: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        Ok(Target {
            address,
            name: ServerName::try_from(name.to_owned())?,
            connector: TlsConnector::from(Arc::new(config)),
            request: Arc::new(request),
        })
    }

    async fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let stream = self.connector.connect(self.name.clone(), stream).await?;
        Ok(Connection { stream, buffer: Vec::with_capacity(4096) })
    }

    /// Makes one call.
    pub async fn ask_once(&self) -> Result<()> {
        self.connect().await?.ask(&self.request).await
    }

    /// Calls at a steady rate, whether or not earlier ones were answered; returns the milliseconds
    /// that each took.
    pub async fn at_rate(&self, per_second: u32, duration: Duration) -> Result<Vec<f64>> {
        let idle: Arc<Mutex<Vec<Connection>>> = Arc::default();
        for _ in 0..8 {
            let mut connection = self.connect().await?;
            connection.ask(&self.request).await?;
            lock(&idle).push(connection);
        }
        let mut calls = JoinSet::new();
        let mut due = tokio::time::interval(Duration::from_secs(1) / per_second);
        let began = Instant::now();
        while began.elapsed() < duration {
            due.tick().await;
            let (idle, target) = (idle.clone(), self.clone());
            calls.spawn(async move {
                let began = Instant::now();
                let free = lock(&idle).pop();
                let mut connection = match free {
                    Some(connection) => connection,
                    None => target.connect().await?,
                };
                connection.ask(&target.request).await?;
                let took = began.elapsed();
                lock(&idle).push(connection);
                anyhow::Ok(took.as_secs_f64() * 1_000.0)
            });
        }
        calls.join_all().await.into_iter().collect()
    }

    /// Calls back to back on so many connections; returns calls in a second.
    pub async fn saturated(&self, connections: usize, duration: Duration) -> Result<f64> {
        let mut callers = JoinSet::new();
        for _ in 0..connections {
            let target = self.clone();
            let mut connection = target.connect().await?;
            callers.spawn(async move {
                let (began, mut calls) = (Instant::now(), 0_u64);
                while began.elapsed() < duration {
                    connection.ask(&target.request).await?;
                    calls += 1;
                }
                anyhow::Ok(calls as f64 / began.elapsed().as_secs_f64())
            });
        }
        let rates: Result<Vec<f64>> = callers.join_all().await.into_iter().collect();
        Ok(rates?.into_iter().sum())
    }
}

struct Connection {
    stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
}

impl Connection {
    async fn ask(&mut self, request: &[u8]) -> Result<()> {
        tokio::time::timeout(Duration::from_secs(30), self.exchange(request)).await?
    }

    async fn exchange(&mut self, request: &[u8]) -> Result<()> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        self.buffer.clear();
        let head = loop {
            self.read().await?;
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let text = std::str::from_utf8(&self.buffer[..head])?.to_ascii_lowercase();
        ensure!(text.starts_with("http/1.1 200"), "the webhook answered {text}");
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.context("an answer without length")?.trim().parse()?;
        while self.buffer.len() < head + length {
            self.read().await?;
        }
        Ok(())
    }

    async fn read(&mut self) -> Result<()> {
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            bail!("the server closed the connection");
        }
        Ok(())
    }
}

fn lock<T>(value: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
