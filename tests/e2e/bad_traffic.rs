//! Traffic on a controller's admission port that no API server sends: whoever reaches the port may
//! send it. The controller stays small, says what was wrong, and goes on answering real requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::world::World;

crate::tests![bad_requests_are_refused, crowds_leave_room_for_real_requests];

const DEADLINE: Duration = Duration::from_secs(60);
/// Far more than a controller needs beside its largest bodies, and far less than is thrown at it.
const MEMORY_MIB: u64 = 200;

fn connector(world: &World) -> Result<TlsConnector> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&world.ca()?) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn connect(world: &World) -> Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(world.admission_address()?).await?;
    let name = ServerName::try_from("imagewarm-webhook.imagewarm-system.svc")?;
    Ok(connector(world)?.connect(name, stream).await?)
}

/// All that the other side says until it closes; a connection that is cut says what it said.
async fn rest(mut stream: impl AsyncReadExt + Unpin) -> Result<String> {
    let mut said = vec![];
    let reading = async {
        let mut part = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut part).await {
            said.extend_from_slice(&part[..count]);
        }
    };
    tokio::time::timeout(DEADLINE, reading).await.context("the connection was not closed")?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

async fn post(world: &World, kind: &str, body: &[u8]) -> Result<String> {
    let mut stream = connect(world).await?;
    let head = format!(
        "POST /validate HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    // Cut off early is as good as read to the end.
    let _ = tokio::time::timeout(DEADLINE, stream.write_all(body)).await?;
    rest(stream).await
}

fn review(object: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "operation": "CREATE", "dryRun": true,
            "kind": {"group": "caching.knative.dev", "version": "v1alpha1", "kind": "ImageWarm"},
            "resource":
                {"group": "caching.knative.dev", "version": "v1alpha1", "resource": "imagewarms"},
            "namespace": "default", "name": "x", "userInfo": {}, "object": object,
        },
    })
}

async fn bad_requests_are_refused(world: &World) -> Result<()> {
    let memory = world.controller_memory()?;
    let mut other_version = review(&json!({}));
    other_version["apiVersion"] = json!("admission.k8s.io/v9");
    let mut other_kind = review(&json!({}));
    other_kind["kind"] = json!("Pod");
    let no_request = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"});
    let mut no_uid = review(&json!({}));
    no_uid["request"]["uid"] = Value::Null;
    let secrets = vec![json!({"name": "x"}); 5_000];
    let many = review(&json!({
        "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
        "metadata": {"name": "x"},
        "spec": {"image": "NOT AN IMAGE", "nodeName": "node-1", "imagePullSecrets": secrets},
    }));
    let deep = "[".repeat(1_000_000);
    let json_type = "application/json";
    let cases: [(&str, &str, Vec<u8>); 11] = [
        ("no body", json_type, vec![]),
        ("no JSON", json_type, b"hello".to_vec()),
        ("invalid UTF-8", json_type, b"{\"kind\": \"\xff\xfe\"}".to_vec()),
        ("deeply nested", json_type, deep.into_bytes()),
        ("another content type", "text/plain", review(&json!({})).to_string().into_bytes()),
        ("another version", json_type, other_version.to_string().into_bytes()),
        ("another kind", json_type, other_kind.to_string().into_bytes()),
        ("no request", json_type, no_request.to_string().into_bytes()),
        ("no uid", json_type, no_uid.to_string().into_bytes()),
        ("an empty object", json_type, review(&json!({})).to_string().into_bytes()),
        ("5,000 of everything", json_type, many.to_string().into_bytes()),
    ];
    for (name, kind, body) in cases {
        let said = post(world, kind, &body).await.context(name)?;
        let refused = said.starts_with("HTTP/1.1 4") || said.contains("\"allowed\":false");
        ensure!(refused, "{name}: {said:.500}");
    }
    let said = post(world, json_type, &vec![b' '; 100_000_000]).await?;
    ensure!(said.is_empty() || said.starts_with("HTTP/1.1 413"), "100 MB: {said:.500}");
    let mut plain = TcpStream::connect(world.admission_address()?).await?;
    plain.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    let said = rest(plain).await?;
    ensure!(!said.contains("HTTP/1.1 2"), "plain HTTP: {said}");
    calm(world, memory).await
}

/// Nothing broke, nothing grew without bound, and real requests are answered.
async fn calm(world: &World, memory: u64) -> Result<()> {
    ensure!(world.controllers_run(), "a controller ended");
    let grown = world.controller_memory()?.saturating_sub(memory);
    ensure!(grown < MEMORY_MIB, "the controller grew by {grown} MiB");
    ensure!(!world.logs().iter().any(|(_, log)| log.contains("panicked")), "a panic");
    world.controllers_are_ready().await
}

async fn crowds_leave_room_for_real_requests(world: &World) -> Result<()> {
    let memory = world.controller_memory()?;
    let address = world.admission_address()?;
    // A slow head, a slow body: a word now, and the rest never.
    let mut slow_head = connect(world).await?;
    slow_head.write_all(b"POST /validate HTTP/1.1\r\nho").await?;
    let mut slow_body = connect(world).await?;
    slow_body
        .write_all(
            b"POST /validate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
              content-length: 1000\r\n\r\n{",
        )
        .await?;
    // Handshakes that begin and never end, as many as this process may hold open.
    let wanted = 5_000.min(open_files()?.saturating_sub(300));
    let connected = Arc::new(AtomicUsize::new(0));
    let mut crowd = JoinSet::new();
    for _ in 0..wanted {
        let connected = connected.clone();
        crowd.spawn(async move {
            let mut stream = TcpStream::connect(address).await?;
            connected.fetch_add(1, Ordering::Relaxed);
            stream.write_all(&[0x16, 3, 1]).await?;
            // Holds on until the controller cuts it off.
            stream.read_to_end(&mut vec![]).await
        });
    }
    // The rest waits in the kernel's queue, or for a place there.
    world
        .eventually("the crowd is there", async || {
            Ok((connected.load(Ordering::Relaxed) >= wanted.min(1_000)).then_some(()))
        })
        .await?;
    let namespace = world.namespace("crowd").await?;
    let app = world.push("crowd", "v1").await?;
    world.revision(&namespace, "hello-00001", crate::world::containers(&[&app.tag])).await?;
    world.all_ready(&namespace, 3).await?;
    let said = rest(slow_head).await?;
    ensure!(!said.contains("HTTP/1.1 2"), "a slow head: {said}");
    let said = rest(slow_body).await?;
    ensure!(said.starts_with("HTTP/1.1 408"), "a slow body: {said}");
    calm(world, memory).await
}

/// How many files this process may hold open.
fn open_files() -> Result<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    soft.context("the limit of open files cannot be read")
}
