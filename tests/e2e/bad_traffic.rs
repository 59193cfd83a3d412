//! Traffic on a controller's admission port that no API server sends: whoever reaches the port may
//! send it. The controller stays small, answers what was wrong, and goes on answering real requests.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use imagewarm_core::webhook_paths::REVISIONS_WEBHOOK;

use crate::world::{
    AuditedRequest, MemoryLimit, VALIDATION, World, containers, eventually, half_open, image_warm,
    until_closed,
};

crate::tests![
    bad_requests_are_refused,
    crowds_leave_room_for_real_requests,
    the_worst_bodies_fit_into_the_shipped_memory_limit,
    forged_reviews_have_no_effect,
];

/// Far more than a controller needs beside its largest bodies, and far less than is thrown at it.
const MEMORY_MIB: u64 = 200;
/// How many send at once; this process holds the bodies only once.
const SENDERS: usize = 140;
/// Connections without a request that the controller keeps; further ones displace them.
const CONNECTIONS: f64 = 256.0;
const DISPLACED: &str = "imagewarm_webhook_connections_displaced_total";
/// Admitted Revisions that were not fanned out.
const LEFT_TO_LEADER: &str = "imagewarm_fan_out_left_to_leader_total";
/// Connections that it has open now.
const OPEN: &str = "imagewarm_webhook_connections";

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
    // What is sent here is refused for what is wrong with it: a good one is not.
    let good = review(&image_warm("app", "node-1", &[])).to_string().into_bytes();
    let answer = world.admission_port.post("application/json", &good).await?;
    ensure!(answer.contains("\"allowed\":true"), "a good request: {answer:.500}");
    let (memory, panics) = (world.controllers.memory()?, panics(world));
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
        let answer = world.admission_port.post(kind, &body).await.context(name)?;
        let is_refused = answer.starts_with("HTTP/1.1 4") || answer.contains("\"allowed\":false");
        ensure!(is_refused, "{name}: {answer:.500}");
    }
    let answer = world.admission_port.post(json_type, &vec![b' '; 100_000_000]).await?;
    ensure!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "100 MB: {answer:.500}");
    let mut plain = TcpStream::connect(world.admission_port.address()?).await?;
    plain.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    let answer = until_closed(plain).await?;
    ensure!(!answer.contains("HTTP/1.1 2"), "plain HTTP: {answer}");
    is_calm(world, memory, panics).await
}

fn panics(world: &World) -> usize {
    world.logs.lines_with(&["panicked"])
}

/// Nothing broke, nothing grew without bound, and real requests are answered.
async fn is_calm(world: &World, memory: u64, panics_before: usize) -> Result<()> {
    ensure!(world.controllers.all_run(), "a controller ended");
    let grown = world.controllers.memory()?.saturating_sub(memory);
    ensure!(grown < MEMORY_MIB, "the controller grew by {grown} MiB");
    ensure!(panics(world) == panics_before, "a panic");
    admission_answers(world).await
}

/// The webhook itself answers the API server: it denies an ImageWarm for its image, and lets another
/// one through. Neither would happen without it, since its failurePolicy is Fail.
async fn admission_answers(world: &World) -> Result<()> {
    let verdict = world.controllers.probe_admission("App").await?;
    let denial = verdict.denial_by_webhook()?;
    ensure!(denial.contains("spec.image"), "{denial}");
    let verdict = world.controllers.probe_admission("app").await?;
    ensure!(verdict.is_accepted(), "{verdict:?}");
    Ok(())
}

async fn crowds_leave_room_for_real_requests(world: &World) -> Result<()> {
    // One replica, so that nobody else answers in its place; and its leader repairs nothing within
    // this test, so that ImageWarms come from the fan-out at admission or not at all.
    let flags = ["--repair-delay", "1h", "--webhook-max-connections", "256"];
    world.controllers.start_only(&["controller-1"], &flags).await?;
    world.controllers.until_serving("controller-1").await?;
    let (memory, panics) = (world.controllers.memory()?, panics(world));
    let address = world.admission_port.address()?;
    // A slow head, a slow body: a few bytes now, and the rest never.
    let mut slow_head = world.admission_port.connect().await?;
    let path = world.admission_port.path(VALIDATION).await?;
    slow_head.write_all(format!("POST {path} HTTP/1.1\r\nho").as_bytes()).await?;
    let mut slow_body = world.admission_port.connect().await?;
    slow_body
        .write_all(
            format!(
                "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                 content-length: 1000\r\n\r\n{{"
            )
            .as_bytes(),
        )
        .await?;
    // Handshakes that begin and never end, from another address than the API server's, as many as
    // this process may hold open, and again whenever the controller closes one.
    let wanted = 2_000.min(open_files()?.saturating_sub(300));
    let _crowd = half_open(address, wanted);
    let is_full = async || {
        let open = world.controllers.metric_of("controller-1", OPEN).await?;
        Ok((open >= CONNECTIONS.min(wanted as f64) * 0.9).then_some(()))
    };
    eventually("the crowd fills the admission port", is_full).await?;
    admission_answers(world).await.context("in the crowd")?;
    let namespace = world.namespace("crowd").await?;
    let app = world.registries.push("crowd", "v1").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    namespace.all_ready(3).await.context("the fan-out at admission")?;
    is_full().await?.context("the crowd was gone before the real requests were answered")?;
    let displaced = world.controllers.metric_of("controller-1", DISPLACED).await?;
    ensure!(displaced > 0.0, "nobody was displaced");
    let answer = until_closed(slow_head).await?;
    ensure!(!answer.contains("HTTP/1.1 2"), "a slow head: {answer}");
    let answer = until_closed(slow_body).await?;
    ensure!(answer.starts_with("HTTP/1.1 408"), "a slow body: {answer}");
    is_calm(world, memory, panics).await
}

/// The bodies that cost most to read, as many at once as can be sent, from someone who knows the path.
async fn the_worst_bodies_fit_into_the_shipped_memory_limit(world: &World) -> Result<()> {
    world.controllers.start_only(&["controller-1"], &[]).await?;
    world.controllers.until_serving("controller-1").await?;
    let panics = panics(world);
    let pid = world.controllers.replicas().first().context("no controller")?.pid();
    let limit = MemoryLimit::as_shipped(pid)?;
    let validation = world.admission_port.path(VALIDATION).await?;
    let revisions = world.admission_port.path(REVISIONS_WEBHOOK).await?;
    let bodies = worst_bodies();
    let senders = async {
        for _ in 0..3 {
            let sent = (0..SENDERS).map(|at| {
                let (name, is_revision, body) = &bodies[at % bodies.len()];
                let path = if *is_revision { &revisions } else { &validation };
                async move {
                    // Refused, cut off, or answered; the next one finds a place.
                    let answer = world.admission_port.post_to(path, "application/json", body).await;
                    answer.with_context(|| (*name).to_owned())
                }
            });
            futures::future::join_all(sent).await;
        }
    };
    let mut senders = std::pin::pin!(senders);
    let mut answered = 0;
    loop {
        tokio::select! {
            () = &mut senders => break,
            answers = admission_answers(world) => {
                answers.context("a real request beside the worst bodies")?;
                answered += 1;
            }
        }
    }
    println!("at most {} MiB of memory; {answered} real requests meanwhile", limit.peak()?);
    ensure!(answered > 0, "no real request was answered meanwhile");
    ensure!(limit.kills()? == 0, "the controller was killed");
    ensure!(world.controllers.all_run() && self::panics(world) == panics, "it ended or panicked");
    admission_answers(world).await
}

/// Name, whether it is about a Revision, and a body just below the largest that is read.
fn worst_bodies() -> Vec<(&'static str, bool, Vec<u8>)> {
    const LENGTH: usize = 8 * 1024 * 1024 - 4096;
    let filled = |review: Value, part: &str| {
        let text = review.to_string();
        let (head, tail) = text.split_once("\"FILL\"").unwrap_or((&text, ""));
        let count = (LENGTH - text.len()) / part.len();
        format!("{head}[{}{}]{tail}", part.repeat(count - 1), part.trim_end_matches(','))
            .into_bytes()
    };
    let image_warm = |spec: Value| review(&json!({"metadata": {"name": "x"}, "spec": spec}));
    let revision = |spec: Value| {
        let mut review = review(&json!({"metadata": {"name": "x"}, "spec": spec}));
        review["request"]["kind"] =
            json!({"group": "serving.knative.dev", "version": "v1", "kind": "Revision"});
        review["request"]["dryRun"] = json!(false);
        review
    };
    let mut old_object = review(&json!({"metadata": {"name": "x"}, "spec": {}}));
    old_object["request"]["oldObject"] = json!({"spec": {"x": "FILL"}});
    let mut elsewhere = review(&json!({"metadata": {"name": "x"}, "spec": {}}));
    elsewhere["request"]["userInfo"] = json!({"groups": "FILL"});
    vec![
        ("numbers in a spec", false, filled(image_warm(json!({"x": "FILL"})), "0,")),
        ("secrets", false, filled(image_warm(json!({"imagePullSecrets": "FILL"})), "{},")),
        ("numbers in the old spec", false, filled(old_object, "0,")),
        ("numbers elsewhere", false, filled(elsewhere, "0,")),
        ("containers", true, filled(revision(json!({"containers": "FILL"})), "{},")),
        (
            "images",
            true,
            filled(revision(json!({"containers": "FILL"})), "{\"image\":\"\\u0061\"},"),
        ),
        ("no containers", true, filled(revision(json!({"containers": "FILL"})), "0,")),
    ]
}

/// Any Pod can reach the port. Without a path it is not heard; with one, that an administrator may
/// have read, what it makes up has no effect, and it learns nothing of other namespaces.
async fn forged_reviews_have_no_effect(world: &World) -> Result<()> {
    let victim = world.namespace("victim").await?;
    let genuine = victim.revision("hello-00001", containers(&["registry.example/app:v1"])).await?;
    eventually("the genuine ImageWarms exist", async || {
        Ok((victim.image_warms().await?.len() == 3).then_some(()))
    })
    .await?;
    let json_type = "application/json";
    let secret = review(&image_warm("app", "node-1", &["regcred"])).to_string().into_bytes();
    let guessed = format!("/validate/{}", "0".repeat(32));
    for path in ["/validate", "/mutate", &guessed] {
        let answer = world.admission_port.post_to(path, json_type, &secret).await?;
        ensure!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer:.500}");
        ensure!(!answer.contains("regcred"), "{path}: {answer:.500}");
    }

    let path = world.admission_port.path(REVISIONS_WEBHOOK).await?;
    let forged = |change: &dyn Fn(&mut Value)| -> Result<Vec<u8>> {
        let mut object = serde_json::to_value(&genuine)?;
        object["metadata"]["name"] = json!("forged-00001");
        change(&mut object);
        let mut review = review(&object);
        review["request"]["dryRun"] = json!(false);
        review["request"]["kind"] =
            json!({"group": "serving.knative.dev", "version": "v1", "kind": "Revision"});
        review["request"]["namespace"] = object["metadata"]["namespace"].clone();
        review["request"]["name"] = json!("forged-00001");
        Ok(review.to_string().into_bytes())
    };
    let bodies = [
        forged(&|object| object["spec"]["containers"][0]["image"] = json!("registry.example/x"))?,
        forged(&|object| object["metadata"]["ownerReferences"] = json!([]))?,
        forged(&|object| object["metadata"]["ownerReferences"][0]["uid"] = json!("guessed"))?,
        forged(&|object| object["metadata"]["namespace"] = json!("no-such-namespace"))?,
    ];
    let left = async || world.controllers.metric_sum(LEFT_TO_LEADER, "").await;
    let (before, count) = (left().await?, bodies.len() as f64);
    for body in bodies {
        let answer = world.admission_port.post_to(&path, json_type, &body).await?;
        ensure!(answer.contains("\"allowed\":true"), "{answer:.500}");
    }
    eventually("all were looked at", async || Ok((left().await? >= before + count).then_some(())))
        .await?;
    ensure!(victim.image_warms().await?.len() == 3, "ImageWarms of a forged Revision");
    let writes = |one: &&AuditedRequest| one.resource == "imagewarms" && one.verb == "create";
    let requests = world.audit.of_controllers_in(&victim.name)?;
    ensure!(requests.iter().filter(writes).count() == 3, "{requests:?}");
    let elsewhere = world.audit.of_controllers_in("no-such-namespace")?;
    ensure!(elsewhere.iter().all(|one| one.resource == "configurations"), "{elsewhere:?}");
    Ok(())
}

/// How many files this process may hold open.
fn open_files() -> Result<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    soft.context("the limit of open files cannot be read")
}
