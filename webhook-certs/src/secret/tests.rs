//! `settle` by several replicas at once against a small HTTP
//! server that stores one Secret as the API server would (409 on a second POST, 409 on a stale
//! resourceVersion).
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::{Arc, Mutex};

use jiff::SignedDuration;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::keeper::{Keeper, Settings};

fn names() -> Vec<String> {
    vec!["hook.ns.svc".to_owned()]
}

fn now() -> Timestamp {
    "2026-11-23T02:30:00Z".parse().unwrap()
}

fn days(days: i64) -> SignedDuration {
    SignedDuration::from_hours(24 * days)
}

#[test]
fn a_missing_key_of_the_secret_is_named() {
    let error = from_secret(&Secret::default()).unwrap_err();
    assert_eq!(error.to_string(), "ca.crt cannot be read: the Secret has no such key");
}

/// One Secret behind the API server's rules.
#[derive(Default)]
struct Stored {
    secret: Option<Value>,
    version: u64,
    posts: u32,
    puts: u32,
}

impl Stored {
    fn answer(&mut self, method: &str, body: Value) -> (u16, Value) {
        match (method, &self.secret) {
            ("GET", Some(secret)) => (200, secret.clone()),
            ("GET" | "PUT", None) => (404, failure(404, "NotFound")),
            ("POST", Some(_)) => {
                self.posts += 1;
                (409, failure(409, "AlreadyExists"))
            }
            ("POST", None) => {
                self.posts += 1;
                (201, self.store(body))
            }
            ("PUT", Some(old)) => {
                self.puts += 1;
                if old["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] {
                    return (409, failure(409, "Conflict"));
                }
                (200, self.store(body))
            }
            _ => panic!("unexpected {method}"),
        }
    }

    fn store(&mut self, mut body: Value) -> Value {
        self.version += 1;
        body["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.secret = Some(body.clone());
        body
    }
}

fn failure(code: u16, reason: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
           "message": reason, "reason": reason, "code": code})
}

async fn converse(stream: TcpStream, stored: Arc<Mutex<Stored>>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut line, mut length) = (String::new(), 0);
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let method = line.split(' ').next().unwrap().to_owned();
        loop {
            let mut header = String::new();
            stream.read_line(&mut header).await?;
            let header = header.trim().to_ascii_lowercase();
            match header.strip_prefix("content-length:") {
                Some(value) => length = value.trim().parse().unwrap(),
                None if header.is_empty() => break,
                None => {}
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let (code, answer) = stored.lock().unwrap().answer(&method, body);
        let answer = answer.to_string();
        let head = format!(
            "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            answer.len()
        );
        stream.get_mut().write_all((head + &answer).as_bytes()).await?;
    }
}

async fn server() -> (Client, Arc<Mutex<Stored>>) {
    let stored = Arc::new(Mutex::new(Stored::default()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let state = Arc::clone(&stored);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(converse(stream, Arc::clone(&state)));
        }
    });
    let config = kube::Config::new(format!("http://{address}").parse().unwrap());
    (Client::try_from(config).unwrap(), stored)
}

fn store(client: &Client) -> SecretStore {
    let labels = BTreeMap::from([("app".to_owned(), "hook".to_owned())]);
    SecretStore::new(client.clone(), "ns", "hook-tls", labels)
}

#[tokio::test]
async fn many_replicas_settle_on_one_bundle() {
    let (client, stored) = server().await;
    let settle = |at: Timestamp| {
        let stores: Vec<_> = (0..8).map(|_| store(&client)).collect();
        async move {
            let mut tasks = tokio::task::JoinSet::new();
            for store in stores {
                tasks.spawn(async move {
                    let mut seen = Publication::default();
                    let (names, policy) = (names(), Policy::default());
                    let settled = store.settle(&names, &policy, at, &mut seen);
                    settled.await.unwrap().state.bundle
                });
            }
            let bundles = tasks.join_all().await;
            assert!(bundles.iter().all(|bundle| *bundle == bundles[0]));
            bundles[0].clone()
        }
    };
    let first = settle(now()).await;
    assert_eq!(stored.lock().unwrap().version, 1);
    assert_eq!(stored.lock().unwrap().secret.as_ref().unwrap()["type"], "kubernetes.io/tls");

    assert_eq!(settle(now() + days(1)).await, first);
    assert_eq!(stored.lock().unwrap().puts, 0, "nothing to do, nothing written");

    let renewed = settle(now() + days(70)).await;
    assert_eq!(stored.lock().unwrap().version, 2);
    assert_eq!(renewed.ca_cert_pem, first.ca_cert_pem);
    assert_ne!(renewed.cert_pem, first.cert_pem);
}

#[tokio::test]
async fn the_keeper_publishes_changes_only() {
    let (client, stored) = server().await;
    let settings = Settings {
        names: names(),
        policy: Policy::default(),
        check_interval: Duration::from_secs(60),
    };
    let mut keeper = Keeper::new(store(&client), settings);
    let mut served = keeper.subscribe();
    assert!(served.borrow_and_update().is_none());
    keeper.check(now()).await.unwrap();
    assert!(keeper.resolver().is_filled());
    let first = served.borrow_and_update().clone().unwrap();

    keeper.check(now()).await.unwrap();
    assert!(!served.has_changed().unwrap());

    // The Secret is deleted: a new CA is issued and published.
    stored.lock().unwrap().secret = None;
    keeper.check(now()).await.unwrap();
    let second = served.borrow_and_update().clone().unwrap();
    assert_ne!(first.ca_cert_pem, second.ca_cert_pem);
}

#[tokio::test]
async fn a_secret_of_the_first_format_is_read_and_rotated_and_an_immutable_one_is_reported() {
    let (client, stored) = server().await;
    let mut seen = Publication::default();
    let (store, policy) = (store(&client), Policy::default());
    let first = store.settle(&names(), &policy, now(), &mut seen).await.unwrap();
    let keys = |stored: &Mutex<Stored>| {
        let secret = stored.lock().unwrap().secret.clone().unwrap();
        secret["data"].as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(keys(&stored), ["ca.crt", "ca.key", "tls.crt", "tls.key"]);

    // Renewed some time before its CA is due, so that only the CA needs a change.
    let late = now() + days(3650 - 179);
    store.settle(&names(), &policy, late - days(2), &mut seen).await.unwrap();
    stored.lock().unwrap().secret.as_mut().unwrap()["immutable"] = json!(true);
    let error = store.settle(&names(), &policy, late, &mut seen).await.unwrap_err();
    assert!(error.to_string().contains("it is immutable: delete it"), "{error}");
    stored.lock().unwrap().secret.as_mut().unwrap()["immutable"] = json!(false);
    let published = store.settle(&names(), &policy, late, &mut seen).await.unwrap().state;
    assert_eq!(certificates(&published.bundle.ca_cert_pem).len(), 2);
    assert!(published.bundle.ca_cert_pem.starts_with(&first.state.bundle.ca_cert_pem));
    assert!(keys(&stored).contains(&"next-ca.key".to_owned()));

    let lag = policy.publish_lag;
    let switched = store.settle(&names(), &policy, late + lag, &mut seen).await.unwrap().state;
    assert_eq!(Some(switched.bundle.ca_key_pem), published.next.map(|next| next.key_pem));
    let end = late + lag + policy.retire_lag;
    let ended = store.settle(&names(), &policy, end, &mut seen).await.unwrap().state;
    assert_eq!(certificates(&ended.bundle.ca_cert_pem).len(), 1);
    assert_eq!(keys(&stored), ["ca.crt", "ca.key", "tls.crt", "tls.key"]);
}
