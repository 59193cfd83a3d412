//! A proxy in front of the open registry that spoils answers on demand, as registries and networks
//! do in life: each fault for one repository. Plain HTTP on loopback, one request a connection.
//!
//! The first component of a repository's name is the proxy's own (`docker/app` is the registry's
//! `app`), so that many can ask for one image and each gets a fault of its own.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::ports::Port;

/// Blobs from this size on are taken for layers.
const LAYER: u64 = 20_000;
const TLS_HANDSHAKE: u8 = 0x16;
const LONGEST_HEAD: usize = 64 << 10;
/// How often a held connection looks whether it may go on.
const LOOK: Duration = Duration::from_millis(20);

/// What is wrong with a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Every request gets this HTTP status, with these further header lines (each with its line end).
    Status(u16, &'static str),
    /// Of each layer the first half comes, and no more while the fault lasts; the connection stays.
    Hold,
    /// The same with so many percent of each layer; a greater value lets more of it through.
    HoldAt(u64),
    /// The connection is closed after half of each layer, or at once when the rest is asked for.
    Truncate,
    /// Each layer's bytes are others than they should be.
    Spoil,
    /// Manifests are of Docker's first format, as registries before 2015 have them.
    OldFormat,
}

#[derive(Debug, Default)]
struct Repository {
    fault: Option<Fault>,
    holding: usize,
    layers_begun: usize,
    cuts: usize,
}

/// The proxy; it serves while the cluster stands.
#[derive(Clone, Debug)]
pub struct RegistryProxy {
    port: Arc<Port>,
    upstream: String,
    repositories: Arc<Mutex<HashMap<String, Repository>>>,
}

impl RegistryProxy {
    /// In front of the registry at `upstream`.
    pub(super) fn new(upstream: &str) -> Result<Self> {
        let port = Arc::new(Port::reserve()?);
        Ok(Self { port, upstream: upstream.to_owned(), repositories: Arc::default() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Spoils a repository from now on, or with `None` no longer; what is held goes on then.
    pub fn set(&self, repository: &str, fault: Option<Fault>) {
        self.lock().entry(repository.to_owned()).or_default().fault = fault;
    }

    /// How many connections wait in the middle of a layer of this repository.
    pub fn holding(&self, repository: &str) -> usize {
        self.lock().get(repository).map_or(0, |repository| repository.holding)
    }

    /// How many times the download of a layer of this repository was begun.
    pub fn layers_begun(&self, repository: &str) -> usize {
        self.lock().get(repository).map_or(0, |repository| repository.layers_begun)
    }

    /// How many times such a download was cut off.
    pub fn cuts(&self, repository: &str) -> usize {
        self.lock().get(repository).map_or(0, |repository| repository.cuts)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Repository>> {
        self.repositories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_cut(&self, repository: &str) {
        self.lock().entry(repository.to_owned()).or_default().cuts += 1;
    }

    fn fault(&self, repository: &str) -> Option<Fault> {
        self.lock().get(repository).and_then(|repository| repository.fault.clone())
    }

    pub(super) async fn serve(self, listener: TcpListener) {
        loop {
            let Ok((client, _)) = listener.accept().await else { continue };
            let proxy = self.clone();
            tokio::spawn(async move {
                // A client that goes away is no news.
                let _ = proxy.answer(client).await;
            });
        }
    }

    async fn answer(&self, mut client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let (head, _) = read_head(&mut client).await?;
        let request = Request::parse(&head);
        if let Some(Fault::Status(status, headers)) = self.fault(&request.repository) {
            let code = match status {
                403 => "DENIED",
                429 => "TOOMANYREQUESTS",
                _ => "UNAVAILABLE",
            };
            let body =
                format!(r#"{{"errors":[{{"code":"{code}","message":"so the test wants"}}]}}"#);
            let answer = format!(
                "HTTP/1.1 {status} {}\r\n{headers}Content-Type: application/json\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n{}",
                http::StatusCode::from_u16(status)
                    .ok()
                    .and_then(|s| s.canonical_reason())
                    .unwrap_or("?"),
                body.len(),
                if head.starts_with("HEAD ") { "" } else { body.as_str() },
            );
            return client.write_all(answer.as_bytes()).await;
        }
        if request.is_manifest && self.fault(&request.repository) == Some(Fault::OldFormat) {
            return client.write_all(old_manifest(&head).as_bytes()).await;
        }
        let resumed = header(&head, "range").is_some();
        if self.fault(&request.repository) == Some(Fault::Truncate) && request.is_blob && resumed {
            self.count_cut(&request.repository);
            return Ok(());
        }
        let mut registry = TcpStream::connect(&self.upstream).await?;
        registry.write_all(request.head.as_bytes()).await?;
        let (answer, begin) = read_head(&mut registry).await?;
        client.write_all(answer.as_bytes()).await?;
        client.write_all(&begin).await?;
        let length = header(&answer, "content-length").and_then(|value| value.parse::<u64>().ok());
        let left = length.map(|length| length.saturating_sub(begin.len() as u64));
        if !request.is_blob || length.is_none_or(|length| length < LAYER && !resumed) {
            tokio::io::copy(&mut registry, &mut client).await?;
            return Ok(());
        }
        self.lock().entry(request.repository.clone()).or_default().layers_begun += 1;
        self.pass_layer(&request.repository, registry, client, left.unwrap_or_default()).await
    }

    async fn pass_layer(
        &self,
        repository: &str,
        mut registry: TcpStream,
        mut client: TcpStream,
        left: u64,
    ) -> io::Result<()> {
        let mut passed = 0;
        while let Some(Fault::HoldAt(percent)) = self.fault(repository) {
            let more = (left * percent / 100).saturating_sub(passed);
            passed += tokio::io::copy(&mut (&mut registry).take(more), &mut client).await?;
            self.hold(repository, &Fault::HoldAt(percent), &mut client).await?;
        }
        let mut first = (&mut registry).take((left / 2).saturating_sub(passed));
        tokio::io::copy(&mut first, &mut client).await?;
        match self.fault(repository) {
            Some(Fault::Truncate) => {
                self.count_cut(repository);
                return Ok(());
            }
            Some(Fault::Spoil) => {
                let mut rest = Vec::new();
                registry.read_to_end(&mut rest).await?;
                rest.iter_mut().for_each(|byte| *byte = !*byte);
                return client.write_all(&rest).await;
            }
            Some(Fault::Hold) => self.hold(repository, &Fault::Hold, &mut client).await?,
            Some(Fault::HoldAt(_) | Fault::Status(..) | Fault::OldFormat) | None => {}
        }
        tokio::io::copy(&mut registry, &mut client).await?;
        Ok(())
    }

    /// Returns when the fault is over; fails when the client goes away before.
    async fn hold(
        &self,
        repository: &str,
        fault: &Fault,
        client: &mut TcpStream,
    ) -> io::Result<()> {
        let _held = Held::count(self, repository);
        let mut more = [0];
        while self.fault(repository).as_ref() == Some(fault) {
            match tokio::time::timeout(LOOK, client.read(&mut more)).await {
                Ok(Ok(1..)) | Err(_) => {}
                Ok(Ok(0)) => return Err(io::ErrorKind::ConnectionAborted.into()),
                Ok(Err(error)) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Counts one held connection while it lives.
struct Held<'a>(&'a RegistryProxy, &'a str);

impl<'a> Held<'a> {
    fn count(proxy: &'a RegistryProxy, repository: &'a str) -> Self {
        proxy.lock().entry(repository.to_owned()).or_default().holding += 1;
        Self(proxy, repository)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(repository) = self.0.lock().get_mut(self.1) {
            repository.holding = repository.holding.saturating_sub(1);
        }
    }
}

/// A client's request, as the registry shall see it.
struct Request {
    head: String,
    repository: String,
    is_blob: bool,
    is_manifest: bool,
}

impl Request {
    fn parse(head: &str) -> Self {
        let mut lines = head.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let named = path.strip_prefix("/v2/").unwrap_or_default();
        let parts = ["/blobs/", "/manifests/"];
        let repository = parts.iter().find_map(|part| Some(named.split_once(part)?.0));
        let repository = repository.unwrap_or_default().to_owned();
        let path = match named.split_once('/') {
            Some((_, rest)) if !repository.is_empty() => format!("/v2/{rest}"),
            _ => path.to_owned(),
        };
        let is_blob = method == "GET" && named.contains("/blobs/");
        let is_manifest = named.contains("/manifests/");
        let mut changed = format!("{method} {path} HTTP/1.1\r\n");
        for line in lines.filter(|line| !line.is_empty()) {
            if !line.to_ascii_lowercase().starts_with("connection:") {
                changed += &format!("{line}\r\n");
            }
        }
        // The registry then says so to the client too.
        changed += "Connection: close\r\n\r\n";
        Self { head: changed, repository, is_blob, is_manifest }
    }
}

/// The answer with a manifest of schema version 1, to a GET or a HEAD.
fn old_manifest(head: &str) -> String {
    let layer = "sha256:a3ed95caeb02ffe68cdd9fd84406680ae93d633cb16422d00e8a7c22955b46d4";
    let config = json!({"id": "00", "architecture": "amd64", "os": "linux", "throwaway": true});
    let manifest = json!({
        "schemaVersion": 1, "name": "app", "tag": "v1", "architecture": "amd64",
        "fsLayers": [{"blobSum": layer}], "history": [{"v1Compatibility": config.to_string()}],
    });
    let body = manifest.to_string();
    let digest: String = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.distribution.manifest.v1+prettyjws\r\n\
         Docker-Content-Digest: sha256:{digest}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{}",
        body.len(),
        if head.starts_with("HEAD ") { "" } else { body.as_str() },
    )
}

/// A message's head, and what of its body came with it.
async fn read_head(stream: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut read = Vec::new();
    loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let body = read.split_off(end + 4);
            return Ok((String::from_utf8_lossy(&read).into_owned(), body));
        }
        // Runtimes try TLS first; by this answer they know that it is not spoken here.
        if read.first() == Some(&TLS_HANDSHAKE) {
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await?;
            stream.shutdown().await?;
            // Closed with bytes unread, the answer might be lost.
            tokio::io::copy(stream, &mut tokio::io::sink()).await?;
            return Err(io::ErrorKind::InvalidData.into());
        }
        if read.len() > LONGEST_HEAD || stream.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.split("\r\n").find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_component_is_the_proxys_own() {
        let head = "GET /v2/docker/team/app/blobs/sha256:00 HTTP/1.1\r\nHost: r.test\r\nConnection: keep-alive\r\n\r\n";
        let request = Request::parse(head);
        assert_eq!(request.repository, "docker/team/app");
        assert!(request.is_blob);
        let changed = "GET /v2/team/app/blobs/sha256:00 HTTP/1.1\r\nHost: r.test\r\nConnection: close\r\n\r\n";
        assert_eq!(request.head, changed);
        let ping = Request::parse("GET /v2/ HTTP/1.1\r\n\r\n");
        assert_eq!((ping.repository.as_str(), ping.is_blob), ("", false));
        assert_eq!(ping.head, "GET /v2/ HTTP/1.1\r\nConnection: close\r\n\r\n");
    }
}
