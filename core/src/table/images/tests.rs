//! Rendering, with ImageWarms as the API server returns them.
#![allow(clippy::unwrap_used)]

use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::api::ImageWarm;

fn warm(
    name: &str,
    node: &str,
    image: &str,
    ready: Option<(&str, &str, &str)>,
    more: Value,
) -> ImageWarm {
    let mut status = more;
    if let Some((condition, reason, message)) = ready {
        status["conditions"] = json!([{
            "type": "Ready", "status": condition, "reason": reason, "message": message,
        }]);
    }
    serde_json::from_value(json!({
        "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"image": image, "nodeName": node},
        "status": status,
    }))
    .unwrap()
}

fn now() -> Timestamp {
    "2026-11-23T02:30:12Z".parse().unwrap()
}

const APP: &str = "registry.example.com/shop/app:v1";
const SIDECAR: &str = "docker.io/library/proxy@sha256:4c5f1d6a1d0e7b1f5f7f6a4be5a3f7a1f2a6f1d4c7f7e1a2b3c4d5e6f7a8b9c0";

fn mixed() -> Vec<Row> {
    let denied = "pull access denied,\nrepository does not exist or may require authorization";
    Row::from_all(
        &[
            warm(
                "7",
                "node-c",
                SIDECAR,
                Some(("False", "Unauthorized", denied)),
                json!({"attempts": 4}),
            ),
            warm(
                "1",
                "node-a",
                APP,
                Some(("True", "Pulled", "")),
                json!({
                    "sizeBytes": 52_428_800, "took": "2.4s", "attempts": 1,
                    "digest": "sha256:0f3c7f4d6a1e",
                }),
            ),
            warm(
                "2",
                "node-b",
                APP,
                Some(("Unknown", "Pulling", "")),
                json!({
                    "progress": {"downloadedBytes": 21_000_000, "totalBytes": 50_000_000},
                    "startedAt": "2026-11-23T02:30:10Z",
                }),
            ),
            warm(
                "3",
                "node-c",
                APP,
                Some(("Unknown", "Pulling", "")),
                json!({
                    "startedAt": "2026-11-23T02:30:00Z",
                }),
            ),
            warm("4", "node-d", APP, Some(("Unknown", "Queued", "")), json!({})),
            warm("5", "node-e", APP, None, json!({})),
            warm(
                "6",
                "node-a",
                SIDECAR,
                Some(("False", "Unauthorized", denied)),
                json!({"attempts": 2}),
            ),
        ],
        now(),
    )
}

#[test]
fn mixed_states() {
    insta::assert_snapshot!(render_table(&mixed(), false, false), @"
    NODE    IMAGE                                         STATE         PROGRESS        SIZE     TOOK
    node-a  docker.io/library/proxy@sha256:4c5f1d6a1d0e…  Unauthorized
    node-c  docker.io/library/proxy@sha256:4c5f1d6a1d0e…  Unauthorized
    node-a  registry.example.com/shop/app:v1              Pulled                        52.4 MB  2.4s
    node-b  registry.example.com/shop/app:v1              Pulling       42% of 50.0 MB
    node-c  registry.example.com/shop/app:v1              Pulling       for 12s
    node-d  registry.example.com/shop/app:v1              Queued
    node-e  registry.example.com/shop/app:v1              (new)

    1 of 7 ready, 2 pulling, 1 queued, 1 waiting, 2 failed: Unauthorized

    docker.io/library/proxy@sha256:4c5f1d6a1d0e… (shop) on node-a, node-c
      Unauthorized: pull access denied, repository does not exist or may require authorization
    ");
}

#[test]
fn all_namespaces_and_wide() {
    insta::assert_snapshot!(render_table(&mixed()[..2], true, true), @"
    NAMESPACE  NODE    IMAGE                                         STATE         PROGRESS  SIZE  TOOK  TRIES  DIGEST
    shop       node-a  docker.io/library/proxy@sha256:4c5f1d6a1d0e…  Unauthorized                        2
    shop       node-c  docker.io/library/proxy@sha256:4c5f1d6a1d0e…  Unauthorized                        4

    0 of 2 ready, 2 failed: Unauthorized

    docker.io/library/proxy@sha256:4c5f1d6a1d0e… (shop) on node-a, node-c
      Unauthorized: pull access denied, repository does not exist or may require authorization
    ");
}

#[test]
fn everything_ready() {
    let rows = Row::from_all(
        &[
            warm(
                "1",
                "node-a",
                APP,
                Some(("True", "Pulled", "")),
                json!({"sizeBytes": 999, "took": "1m 2s"}),
            ),
            warm(
                "2",
                "node-b",
                APP,
                Some(("True", "AlreadyPresent", "")),
                json!({"sizeBytes": 1_500_000_000_i64}),
            ),
        ],
        now(),
    );
    insta::assert_snapshot!(render_table(&rows, false, false), @"
    NODE    IMAGE                             STATE           PROGRESS  SIZE     TOOK
    node-a  registry.example.com/shop/app:v1  Pulled                    999 B    1m 2s
    node-b  registry.example.com/shop/app:v1  AlreadyPresent            1.50 GB

    2 of 2 ready
    ");
    assert!(Summary::of(&rows).all_ready() && Summary::of(&rows).is_settled());
}

#[test]
fn one_failure_on_many_nodes_is_shown_once() {
    let warms: Vec<_> = (0..1000)
        .map(|n| {
            warm(
                "x",
                &format!("node-{n:03}"),
                APP,
                Some(("False", "NotFound", "manifest unknown")),
                json!({}),
            )
        })
        .collect();
    let text = failures(&Row::from_all(&warms, now()));
    insta::assert_snapshot!(text.trim(), @"
    registry.example.com/shop/app:v1 (shop) on node-000, node-001, node-002 and 997 more
      NotFound: manifest unknown
    ");
}

#[test]
fn summary_lines() {
    let line = |states: &[(&str, &str)]| {
        let warms: Vec<_> = states
            .iter()
            .map(|(status, reason)| warm("x", "n", APP, Some((status, reason, "")), json!({})))
            .collect();
        Summary::of(&Row::from_all(&warms, now())).line()
    };
    assert_eq!(line(&[]), "0 of 0 ready");
    assert_eq!(
        line(&[("True", "Pulled"), ("Unknown", "Pulling"), ("False", "Unauthorized")]),
        "1 of 3 ready, 1 pulling, 1 failed: Unauthorized"
    );
    assert_eq!(
        line(&[("False", "NotFound"), ("False", "Unauthorized"), ("False", "NotFound")]),
        "0 of 3 ready, 3 failed: 2 NotFound, 1 Unauthorized"
    );
}

#[test]
fn what_is_final() {
    for (status, reason, is_final) in [
        ("True", "Pulled", true),
        ("True", "AlreadyPresent", true),
        ("False", "Unauthorized", true),
        ("False", "NodeGone", true),
        ("False", "SomethingNewer", true),
        ("False", "RegistryUnreachable", false),
        ("False", "Removed", false),
        ("Unknown", "Pulling", false),
        ("Unknown", "WaitingForWarmer", false),
    ] {
        let row = Row::new(&warm("x", "n", APP, Some((status, reason, "")), json!({})), now());
        assert_eq!(row.is_final, is_final, "{status} {reason}");
    }
    assert!(!Row::new(&warm("x", "n", APP, None, json!({})), now()).is_final);
}

#[test]
fn json_has_counts_and_items() {
    let value: Value = serde_json::from_str(&render_json(&mixed())).unwrap();
    assert_eq!(
        value["summary"],
        json!({"total": 7, "ready": 1, "pulling": 2, "queued": 1, "waiting": 1,
               "failed": {"Unauthorized": 2}})
    );
    let pulling = value["items"].as_array().unwrap().iter().find(|item| item["node"] == "node-b");
    assert_eq!(
        pulling.unwrap(),
        &json!({"namespace": "shop", "name": "2", "node": "node-b", "image": APP, "ready": false,
                "reason": "Pulling", "message": "", "downloadedBytes": 21_000_000,
                "totalBytes": 50_000_000, "sizeBytes": null, "took": null, "digest": null,
                "attempts": null})
    );
}

#[test]
fn yaml_is_the_same_and_names_are_kubectls() {
    let yaml: Value = serde_saphyr::from_str(&render_yaml(&mixed()).unwrap()).unwrap();
    let json: Value = serde_json::from_str(&render_json(&mixed())).unwrap();
    assert_eq!(yaml, json);
    let names = render_names(&mixed()[2..4]);
    assert_eq!(names, "imagewarm.caching.knative.dev/1\nimagewarm.caching.knative.dev/2\n");
}

#[test]
fn rate_and_time_left_are_shown_once_they_say_something() {
    let shown = |seconds: i64| {
        let started = now() - jiff::SignedDuration::from_secs(seconds);
        let more = json!({
            "progress": {"downloadedBytes": 42_000_000, "totalBytes": 100_000_000},
            "startedAt": started.to_string(),
        });
        let pulling = warm("1", "node-a", APP, Some(("Unknown", "Pulling", "")), more);
        progress(&Row::new(&pulling, now()))
    };
    assert_eq!(shown(2), "42% of 100.0 MB");
    assert_eq!(shown(4), "42% of 100.0 MB, 10.5 MB/s, 6.0s left");
    assert_eq!(shown(420), "42% of 100.0 MB, 100.0 kB/s, 9m 40s left");
}

#[test]
fn a_wait_ends_with_what_was_not_there() {
    let app = Reference::parse("side:v1").unwrap();
    insta::assert_snapshot!(render_outcome(&mixed()[1..3], &[&app], Some(Duration::from_secs(90))), @"
    1 of 2 ready, 1 failed: Unauthorized
    Not done within 1m 30s.
    No node is to hold docker.io/library/side:v1: `imagewarm why docker.io/library/side:v1` says more.

    docker.io/library/proxy@sha256:4c5f1d6a1d0e… (shop) on node-c
      Unauthorized: pull access denied, repository does not exist or may require authorization
    ");
}

#[test]
fn text_of_others_cannot_move_the_cursor() {
    let row = warm("x", "n", "app", Some(("False", "NotFound", "\u{1b}[2Jgone\r\n")), json!({}));
    let text = render_table(&Row::from_all(&[row], now()), false, false);
    assert!(!text.contains(['\u{1b}', '\r']), "{text:?}");
}

#[test]
fn progress_is_shown_as_far_as_it_is_known() {
    let shown = |done: i64, total: i64| {
        let row = |progress| {
            let pulling = Some(("Unknown", "Pulling", ""));
            Row::from_all(&[warm("1", "node-a", APP, pulling, progress)], now()).remove(0)
        };
        progress(&row(json!({"progress": {"downloadedBytes": done, "totalBytes": total}})))
    };
    assert_eq!(shown(1, 1), "99% of 1 B", "an image is there once it is unpacked");
    assert_eq!(shown(5_000_000, 0), "5.0 MB", "no total");
    assert_eq!(shown(0, 0), "", "nothing is known");
    assert_eq!(shown(-1, 10), "0% of 10 B");
}

#[test]
fn sizes_have_decimal_units() {
    for (count, text) in [
        (-1, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 kB"),
        (999_900, "999.9 kB"),
        (1_000_000, "1.0 MB"),
        (999_900_000, "999.9 MB"),
        (1_000_000_000, "1.00 GB"),
    ] {
        assert_eq!(bytes(count), text);
    }
}

#[test]
fn a_pull_that_runs_is_not_settled() {
    let pulling = [warm("1", "node-a", APP, Some(("Unknown", "Pulling", "")), json!({}))];
    let summary = Summary::of(&Row::from_all(&pulling, now()));
    assert!(!summary.is_settled() && !summary.all_ready());
}
