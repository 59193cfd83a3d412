//! `decide` on each kind of Secret, and `settle` by several replicas at once against a small HTTP
//! server that keeps one Secret as the API server would (409 on a second POST, 409 on a stale
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

fn issued(at: Timestamp) -> Bundle {
    Bundle::issue(&names(), Lifetimes::default(), at).unwrap()
}

#[test]
fn a_good_bundle_is_kept() {
    let decision = decide(Ok(issued(now())), &names(), Lifetimes::default(), now()).unwrap();
    assert!(matches!(decision, Decision::Keep(..)));
}

#[test]
fn what_is_replaced_and_whether_the_ca_survives() {
    let cases: [(&str, Bundle, Timestamp, bool); 6] = [
        ("due", issued(now()), now() + days(61), true),
        ("expired", issued(now()), now() + days(100), true),
        ("corrupted", Bundle { key_pem: String::new(), ..issued(now()) }, now(), true),
        ("no CA key", Bundle { ca_key_pem: String::new(), ..issued(now()) }, now(), false),
        ("CA expired", issued(now()), now() + days(3651), false),
        ("CA nearly expired", issued(now()), now() + days(3600), false),
    ];
    for (name, bundle, at, ca_survives) in cases {
        let ca = bundle.ca_cert_pem.clone();
        match decide(Ok(bundle), &names(), Lifetimes::default(), at).unwrap() {
            Decision::Keep(..) => panic!("{name}: kept"),
            Decision::Replace(new, why) => {
                assert_eq!(new.ca_cert_pem == ca, ca_survives, "{name}: {why}");
                assert!(!new.check(&names(), at).unwrap().is_due(at), "{name}");
            }
        }
    }
    let other = vec!["other.ns.svc".to_owned()];
    let decision = decide(Ok(issued(now())), &other, Lifetimes::default(), now()).unwrap();
    assert!(matches!(decision, Decision::Replace(_, why) if why.contains("other.ns.svc")));
}

#[test]
fn a_secret_without_a_key_says_which() {
    let error = from_secret(&Secret::default()).unwrap_err();
    assert_eq!(error.to_string(), "ca.crt cannot be read: the Secret has no such key");
}

/// One Secret behind the API server's rules.
#[derive(Default)]
struct Kept {
    secret: Option<Value>,
    version: u64,
    posts: u32,
    puts: u32,
}

impl Kept {
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

async fn converse(stream: TcpStream, kept: Arc<Mutex<Kept>>) -> std::io::Result<()> {
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
        let (code, answer) = kept.lock().unwrap().answer(&method, body);
        let answer = answer.to_string();
        let head = format!(
            "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            answer.len()
        );
        stream.get_mut().write_all((head + &answer).as_bytes()).await?;
    }
}

async fn server() -> (Client, Arc<Mutex<Kept>>) {
    let kept = Arc::new(Mutex::new(Kept::default()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let state = Arc::clone(&kept);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(converse(stream, Arc::clone(&state)));
        }
    });
    let config = kube::Config::new(format!("http://{address}").parse().unwrap());
    (Client::try_from(config).unwrap(), kept)
}

fn store(client: &Client) -> SecretStore {
    let labels = BTreeMap::from([("app".to_owned(), "hook".to_owned())]);
    SecretStore::new(client.clone(), "ns", "hook-tls", labels)
}

#[tokio::test]
async fn many_replicas_settle_on_one_bundle() {
    let (client, kept) = server().await;
    let settle = |at: Timestamp| {
        let stores: Vec<_> = (0..8).map(|_| store(&client)).collect();
        async move {
            let mut tasks = tokio::task::JoinSet::new();
            for store in stores {
                tasks.spawn(async move {
                    store.settle(&names(), Lifetimes::default(), at).await.unwrap().0
                });
            }
            let bundles = tasks.join_all().await;
            assert!(bundles.iter().all(|bundle| *bundle == bundles[0]));
            bundles[0].clone()
        }
    };
    let first = settle(now()).await;
    assert_eq!(kept.lock().unwrap().version, 1);
    assert_eq!(kept.lock().unwrap().secret.as_ref().unwrap()["type"], "kubernetes.io/tls");

    assert_eq!(settle(now() + days(1)).await, first);
    assert_eq!(kept.lock().unwrap().puts, 0, "nothing to do, nothing written");

    let renewed = settle(now() + days(70)).await;
    assert_eq!(kept.lock().unwrap().version, 2);
    assert_eq!(renewed.ca_cert_pem, first.ca_cert_pem);
    assert_ne!(renewed.cert_pem, first.cert_pem);
}

#[tokio::test]
async fn the_keeper_publishes_changes_only() {
    let (client, kept) = server().await;
    let settings = Settings {
        names: names(),
        lifetimes: Lifetimes::default(),
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

    // Somebody deletes the Secret: a new CA comes, and is published.
    kept.lock().unwrap().secret = None;
    keeper.check(now()).await.unwrap();
    let second = served.borrow_and_update().clone().unwrap();
    assert_ne!(first.ca_cert_pem, second.ca_cert_pem);
}
