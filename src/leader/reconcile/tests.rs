//! Tests of the changes that start a run.
#![allow(clippy::unwrap_used)]

use futures::FutureExt;
use serde_json::json;
use tokio::time::timeout;

use super::*;

const DELAY: Duration = Duration::from_millis(300);
const DEADLINE: Duration = Duration::from_secs(60);

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
    let warm: ImageWarm = serde_json::from_value(warm).unwrap();
    Change::ImageWarm(Arc::new(warm.into()))
}

fn deletion() -> Change {
    let Change::ImageWarm(warm) = change(Some("Pulling")) else { unreachable!() };
    Change::ImageWarmDeleted(warm)
}

#[tokio::test]
async fn progress_is_delayed_and_other_changes_are_not() {
    let (sender, mut changes) = broadcast::channel(16);
    let planner = &mut Planner::default();
    let began = tokio::time::Instant::now();
    for progress in [None, Some("Queued"), Some("Pulling"), Some("Pulling")] {
        sender.send(change(progress)).unwrap();
    }
    relevant_change(&mut changes, DELAY, planner).await;
    assert!(began.elapsed() >= DELAY, "{:?}", began.elapsed());

    // The delay outlasts the test, so that only the other change can end the wait.
    let never = Duration::from_secs(3600);
    let others =
        [change(Some("Pulled")), change(Some("Odd")), deletion(), Change::Node("a".into())];
    for other in others {
        sender.send(change(Some("Pulling"))).unwrap();
        sender.send(other).unwrap();
        timeout(DEADLINE, relevant_change(&mut changes, never, planner)).await.unwrap();
    }
    let without_change = relevant_change(&mut changes, never, planner).now_or_never();
    assert!(without_change.is_none(), "no change, no run");
}
