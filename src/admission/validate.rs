//! `/validate`: checks an ImageWarm as it would be stored, by the pure rules of
//! `imagewarm_core::validation` and against the cluster: whether each named pull secret can be
//! used, and whether the Node exists.

use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use kube::Client;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::Reviewer;
use super::denial::denial;
use super::review::{KIND_IMAGE_WARM, Objects, Operation, Request, Response, ReviewError};
use crate::kubernetes::secrets;
use imagewarm_core::image::quoted::quoted;
use imagewarm_core::validation::field_error::{Fault, FieldError};
use imagewarm_core::validation::image_warm::{Changed, check_value, new_secrets};

/// Why a pull secret is a fault of the object that names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretFault {
    /// It does not exist, has the wrong type, or does not parse.
    Unusable(String),
    /// It could not be read; it may be usable.
    Unreadable(String),
}

/// Checks pull secrets: against the API server in the program, against a table in tests.
pub trait PullSecrets: Send + Sync {
    /// Whether the Secret exists, has a docker type, and parses.
    fn check<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<(), SecretFault>>;
}

impl PullSecrets for Client {
    fn check<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<(), SecretFault>> {
        Box::pin(async move {
            let result = secrets::check_pull_secret(self, namespace, name).await;
            result.map_err(|error| match error.is_unreadable() {
                true => SecretFault::Unreadable(error.to_string()),
                false => SecretFault::Unusable(error.to_string()),
            })
        })
    }
}

/// Answers one request. `time` is what remains of the API server's timeout.
pub(super) async fn validate(
    reviewer: &Reviewer,
    request: &Request<'_>,
    time: Duration,
) -> Result<Response, ReviewError> {
    let objects = request.objects()?;
    if objects.are_terminating() {
        return Ok(Response::allow(request));
    }
    Ok(check(reviewer, request, &objects, time).await)
}

async fn check(
    reviewer: &Reviewer,
    request: &Request<'_>,
    objects: &Objects,
    time: Duration,
) -> Response {
    let (new, old) = (&objects.new.spec, &objects.old.spec);
    let changed = match request.operation {
        Operation::Create => Changed::ALL,
        // That image and nodeName are immutable is a rule of the CRD.
        Operation::Update => {
            Changed { secrets: Changed::between(old, new).secrets, ..Changed::default() }
        }
        Operation::Other => return Response::allow(request),
    };
    let mut errors =
        if changed == Changed::default() { Vec::new() } else { check_value(new, changed) };
    if changed.secrets {
        errors.extend(check_secrets(reviewer, request, new, old, time).await);
    }
    if request.operation == Operation::Create
        && let Some(bounds) = &reviewer.bounds
    {
        errors.extend(bounds.violation(request.namespace.as_deref().unwrap_or_default()));
    }
    if !errors.is_empty() {
        return Response::deny(request, denial(KIND_IMAGE_WARM, &request.display_name(), &errors));
    }
    let response = Response::allow(request);
    match new["nodeName"].as_str() {
        Some(node) if changed.node_name && (reviewer.node_exists)(node) == Some(false) => response
            .with_warning(&format!(
                "spec.nodeName: no Node {} exists now; the image is pulled when it joins",
                quoted(node)
            )),
        _ => response,
    }
}

/// Checks all secrets that `old` does not name, concurrently.
pub(super) async fn check_secrets(
    reviewer: &Reviewer,
    request: &Request<'_>,
    spec: &Value,
    old: &Value,
    time: Duration,
) -> Vec<FieldError> {
    let namespace = request.namespace.as_deref().unwrap_or_default();
    let deadline = Instant::now() + time.min(reviewer.secrets_timeout);
    let late = || {
        let detail = "cannot read the Secret: the API server did not answer in time";
        Err(SecretFault::Unreadable(detail.to_owned()))
    };
    let checks = new_secrets(spec, old).into_iter().map(|(field, name)| async move {
        let check = reviewer.pull_secrets.check(namespace, name);
        let (fault, detail) = match timeout_at(deadline, check).await.unwrap_or_else(|_| late()) {
            Ok(()) => return None,
            Err(SecretFault::Unusable(detail)) => (Fault::Unusable, detail),
            Err(SecretFault::Unreadable(detail)) => (Fault::NotJudged, detail),
        };
        Some(FieldError::new(field, fault, &Value::from(name), detail))
    });
    join_all(checks).await.into_iter().flatten().collect()
}
