//! `/mutate`: a Revision is handed on and never touched, refused or kept waiting; an ImageWarm gets
//! its defaults, and is told what is wrong with it before the API server's schema check hides it.

use std::time::Duration;

use serde_json::Value;
use tracing::warn;

use super::Reviewer;
use super::denial::denial;
use super::review::{Objects, Operation, Request, Response, ReviewError};
use super::validate::{KIND, check_secrets};
use imagewarm_core::api::GROUP;
use imagewarm_core::demand::AdmittedRevision;
use imagewarm_core::validation::image_warm::{Changed, apply_defaults, check_value};

/// API group of Knative's Revision.
const SERVING_GROUP: &str = "serving.knative.dev";

/// Answers one request. `time` is what is left of the API server's patience.
pub(super) async fn mutate(
    reviewer: &Reviewer,
    request: &Request<'_>,
    time: Duration,
) -> Result<Response, ReviewError> {
    if request.is_about(SERVING_GROUP, "Revision") {
        let response = Response::allow(request);
        return Ok(match hand_on(reviewer, request) {
            None => response,
            Some(warning) => response.with_warning(&warning),
        });
    }
    if request.is_about(GROUP, KIND) {
        let objects = request.objects()?;
        if !objects.are_terminating() {
            return Ok(default(reviewer, request, &objects, time).await);
        }
    }
    Ok(Response::allow(request))
}

/// Hands a Revision on that is being made, unread, and says what of it will not be warmed.
fn hand_on(reviewer: &Reviewer, request: &Request<'_>) -> Option<String> {
    if request.operation != Operation::Create {
        return None;
    }
    let admitted = request.admitted_revision()?;
    let warning = warning(reviewer, &admitted);
    if request.dry_run != Some(true) && !(reviewer.admitted)(admitted) {
        // The controller's repairs find it; more than a count would flood the log just then.
        reviewer.metrics.revisions_dropped.inc();
    }
    warning
}

/// Reads the Revision only where its containers are more than usual, or cannot be counted.
fn warning(reviewer: &Reviewer, admitted: &AdmittedRevision) -> Option<String> {
    let bounds = reviewer.bounds.as_ref();
    let few = |count| bounds.is_none_or(|bounds| bounds.hold(count));
    if admitted.containers().is_some_and(few) {
        return None;
    }
    match admitted.revision() {
        Ok(revision) => bounds?.warning(&admitted.namespace, &revision),
        Err(error) => {
            Some(format!("imagewarm cannot read this Revision, its images are not warmed: {error}"))
        }
    }
}

/// Defaults of an ImageWarm. Where its shape is wrong already, its secrets are looked at too, so
/// that all problems are told at once; otherwise `/validate` does that a moment later.
async fn default(
    reviewer: &Reviewer,
    request: &Request<'_>,
    objects: &Objects,
    time: Duration,
) -> Response {
    let old_spec = &objects.old["spec"];
    let changed = match request.operation {
        Operation::Create => Changed::ALL,
        Operation::Update => Changed::between(old_spec, &objects.new["spec"]),
        Operation::Other => return Response::allow(request),
    };
    if changed == Changed::default() {
        return Response::allow(request);
    }
    let mut object = objects.new.clone();
    if object["spec"].is_object() {
        apply_defaults(&mut object["spec"], changed);
    }
    let spec = &object["spec"];
    // That image and nodeName never change is the CRD's own rule, and its message the better one.
    let judged = match request.operation {
        Operation::Update => {
            Changed { secrets: Changed::between(old_spec, spec).secrets, ..Changed::default() }
        }
        _ => Changed::ALL,
    };
    let mut errors = check_value(spec, judged, &*reviewer.image_rule);
    if !errors.is_empty() {
        errors.extend(check_secrets(reviewer, request, spec, old_spec, time).await);
        return Response::deny(request, denial(KIND, &request.display_name(), &errors));
    }
    with_change(request, &objects.new, &object)
}

fn with_change(request: &Request<'_>, old: &Value, new: &Value) -> Response {
    Response::allow(request).with_change(old, new).unwrap_or_else(|error| {
        // Values that were read as JSON can be written as JSON.
        warn!(%error, "a patch could not be written; the object passes unchanged");
        Response::allow(request)
    })
}
