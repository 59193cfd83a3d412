//! Verdicts, and reviews against an API server that answers when the test says so.
#![allow(clippy::unwrap_used)]
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::api::authentication::v1::UserInfo;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::*;

const ACCOUNT: &str = "system:serviceaccount:imagewarm-system:imagewarmer";

fn good() -> TokenReviewStatus {
    TokenReviewStatus {
        audiences: Some(vec![AUDIENCE.into()]),
        authenticated: Some(true),
        error: None,
        user: Some(UserInfo {
            username: Some(ACCOUNT.into()),
            extra: Some([(NODE_NAME_EXTRA.to_owned(), vec!["node-a".to_owned()])].into()),
            ..UserInfo::default()
        }),
    }
}

#[test]
fn a_bound_token_of_the_warmer_names_its_node() {
    assert_eq!(node_of(&good(), ACCOUNT), Ok(("node-a".into(), None)));
    let mut bound = good();
    let extra = bound.user.as_mut().unwrap().extra.as_mut().unwrap();
    extra.insert(NODE_UID_EXTRA.into(), vec!["uid-1".into()]);
    assert_eq!(node_of(&bound, ACCOUNT), Ok(("node-a".into(), Some("uid-1".into()))));
}

#[test]
fn every_other_token_is_rejected_with_its_reason() {
    type Change = fn(&mut TokenReviewStatus);
    let table: [(&str, Change, &str); 7] = [
        ("unknown", |s| s.authenticated = None, "InvalidToken"),
        ("empty answer", |s| *s = TokenReviewStatus::default(), "InvalidToken"),
        (
            "audience",
            |s| {
                s.authenticated = Some(false);
                s.error = Some("token audiences [\"api\"] is invalid for the target".into());
            },
            "WrongAudience",
        ),
        ("audience-unaware server", |s| s.audiences = None, "WrongAudience"),
        (
            "other account",
            |s| s.user.as_mut().unwrap().username = Some("system:node:a".into()),
            "OtherAccount",
        ),
        ("unbound", |s| s.user.as_mut().unwrap().extra = None, "NotBoundToNode"),
        (
            "empty node",
            |s| {
                s.user.as_mut().unwrap().extra =
                    Some([(NODE_NAME_EXTRA.to_owned(), vec![])].into());
            },
            "NotBoundToNode",
        ),
    ];
    for (name, change, reason) in table {
        let mut status = good();
        change(&mut status);
        let verdict = node_of(&status, ACCOUNT);
        assert_eq!(verdict.unwrap_err().reason(), reason, "{name}");
    }
}

#[test]
fn expiry_is_read_from_the_claims() {
    let claims = URL_SAFE_NO_PAD.encode(br#"{"exp":1700000000,"aud":["imagewarm"]}"#);
    assert_eq!(expiry(&format!("e30.{claims}.sig")), Some(1_700_000_000));
    assert_eq!(expiry("opaque"), None);
    assert_eq!(expiry("a.%%%.c"), None);
}

/// An API server. Tokens that begin with `good` are accepted, and what begins with `slow` is
/// answered once `answers` is true.
struct ApiServer {
    requests: AtomicUsize,
    running: AtomicUsize,
    answers: watch::Sender<bool>,
}

impl ApiServer {
    fn new() -> Arc<Self> {
        let answers = watch::Sender::new(false);
        Arc::new(ApiServer { requests: 0.into(), running: 0.into(), answers })
    }

    fn reviewer(self: &Arc<Self>) -> Arc<ApiServerReviewer> {
        let server = self.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let server = server.clone();
            async move { server.answer(request).await }
        });
        let args = TokenReviewArgs { warmer_service_account: ACCOUNT.into() };
        Arc::new(ApiServerReviewer::new(Client::new(service, "default"), &args))
    }

    async fn answer(
        &self,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, tower::BoxError> {
        use http_body_util::BodyExt;

        self.requests.fetch_add(1, Ordering::SeqCst);
        self.running.fetch_add(1, Ordering::SeqCst);
        let body = request.into_body().collect().await?.to_bytes();
        let review: Value = serde_json::from_slice(&body)?;
        let token = review["spec"]["token"].as_str().unwrap_or_default();
        if token.contains("slow") {
            self.answers.subscribe().wait_for(|answers| *answers).await?;
        }
        let status = if token.starts_with("good") {
            serde_json::to_value(good())?
        } else {
            json!({"authenticated": false})
        };
        self.running.fetch_sub(1, Ordering::SeqCst);
        let answer = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "metadata": {}, "spec": {}, "status": status});
        Ok(http::Response::new(Body::from(answer.to_string().into_bytes())))
    }
}

/// Polls `review` until it waits for the API server, and drops it.
async fn begin_and_leave(reviewer: &ApiServerReviewer, token: &str) {
    let mut review = reviewer.review(token);
    assert!(futures::poll!(&mut review).is_pending());
}

#[tokio::test]
async fn reviews_whose_callers_are_gone_hold_up_nobody() {
    let server = ApiServer::new();
    let reviewer = server.reviewer();
    for number in 0..IN_FLIGHT {
        begin_and_leave(&reviewer, &format!("slow bad {number}")).await;
    }
    // All places are taken. The API server answers, and nobody asks for these verdicts any more.
    server.answers.send_replace(true);
    let verdict = reviewer.review("good").await;
    assert_eq!(verdict.map(|identity| identity.node), Ok("node-a".into()));
    assert!(reviewer.cache.lock().unwrap().pending.is_empty());
}

#[tokio::test]
async fn a_review_goes_on_when_its_caller_leaves_and_serves_the_next_one() {
    let server = ApiServer::new();
    let reviewer = server.reviewer();
    begin_and_leave(&reviewer, "good slow").await;
    let again = {
        let reviewer = reviewer.clone();
        tokio::spawn(async move { reviewer.review("good slow").await })
    };
    server.answers.send_replace(true);
    assert!(again.await.unwrap().is_ok());
    assert!(reviewer.review("good slow").await.is_ok());
    assert_eq!(server.requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn refusals_are_not_kept() {
    let server = ApiServer::new();
    let reviewer = server.reviewer();
    for _ in 0..2 {
        assert_eq!(reviewer.review("bad").await.unwrap_err().reason(), "InvalidToken");
    }
    assert_eq!(server.requests.load(Ordering::SeqCst), 2);
    assert_eq!(reviewer.review(" ").await, Err(TokenError::Missing));
}

/// After a fail-over all warmers reconnect, more than may be pending, and the API server answers
/// only when all places are taken. Those beyond the limit retry, as a warmer does.
#[tokio::test]
async fn ten_thousand_warmers_reconnect() {
    const WARMERS: usize = 10_000;
    let server = ApiServer::new();
    let reviewer = server.reviewer();
    let mut warmers = tokio::task::JoinSet::new();
    for number in 0..WARMERS {
        let reviewer = reviewer.clone();
        warmers.spawn(async move {
            let token = format!("good slow {number}");
            while let Err(error) = reviewer.review(&token).await {
                assert_eq!(error.reason(), "Unavailable");
                tokio::task::yield_now().await;
            }
        });
    }
    while !warmers.is_empty() {
        while server.running.load(Ordering::SeqCst) < IN_FLIGHT.min(warmers.len()) {
            tokio::task::yield_now().await;
            while let Some(ended) = warmers.try_join_next() {
                ended.unwrap();
            }
        }
        server.answers.send_replace(true);
        while server.running.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
        server.answers.send_replace(false);
        while let Some(ended) = warmers.try_join_next() {
            ended.unwrap();
        }
    }
    assert_eq!(server.requests.load(Ordering::SeqCst), WARMERS);
    // All are known now, and another is reviewed all the same.
    server.answers.send_replace(true);
    assert!(reviewer.review("good slow one more").await.is_ok());
    assert_eq!(reviewer.cache.lock().unwrap().accepted.len(), WARMERS + 1);
}
