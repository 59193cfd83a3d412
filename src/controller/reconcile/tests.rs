//! What wakes the leader.
#![allow(clippy::unwrap_used)]

use serde_json::json;
use tokio::time::timeout;

use super::*;

const PAUSE: Duration = Duration::from_millis(300);

fn change(reason: Option<&str>) -> Change {
    let mut warm = json!({
        "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
        "metadata": {"name": "w", "namespace": "n"},
        "spec": {"image": "docker.io/library/a:1", "nodeName": "node-a"},
    });
    if let Some(reason) = reason {
        warm["status"] = json!({"conditions": [{
            "type": "Ready", "status": "Unknown", "reason": reason,
            "lastTransitionTime": "2026-11-23T02:30:00Z",
        }]});
    }
    Change::ImageWarm(Arc::new(serde_json::from_value(warm).unwrap()))
}

#[tokio::test]
async fn progress_alone_waits_and_anything_else_does_not() {
    let (sender, mut changes) = broadcast::channel(16);
    let began = tokio::time::Instant::now();
    for _ in 0..3 {
        sender.send(change(Some("Pulling"))).unwrap();
    }
    told(&mut changes, PAUSE).await;
    assert!(began.elapsed() >= PAUSE, "{:?}", began.elapsed());

    for other in [change(Some("Pulled")), change(None), Change::Node("a".into())] {
        let began = tokio::time::Instant::now();
        sender.send(change(Some("Pulling"))).unwrap();
        sender.send(other).unwrap();
        told(&mut changes, PAUSE).await;
        assert!(began.elapsed() < PAUSE);
    }
    let quiet = timeout(PAUSE * 3, told(&mut changes, PAUSE)).await;
    assert!(quiet.is_err(), "nothing told, nothing done");
}
