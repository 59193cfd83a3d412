//! `/mutate`: forwards a Revision, and never changes, denies or delays it. Sets the defaults of an
//! ImageWarm, and denies an invalid one: here all errors are listed, while the API server's schema
//! check, which follows, would hide some.

use std::time::Duration;

use serde_json::Value;
use tracing::warn;

use super::Reviewer;
use super::denial::denial;
use super::review::{KIND_IMAGE_WARM, Objects, Operation, Request, Response, ReviewError};
use super::validate::check_secrets;
use imagewarm_core::demand::AdmittedRevision;
use imagewarm_core::validation::image_warm::{Changed, apply_defaults, check_value};
use imagewarm_core::webhook_paths::Reviews;

/// Answers one request. `time` is what remains of the API server's timeout.
pub(super) async fn mutate(
    reviewer: &Reviewer,
    request: &Request<'_>,
    reviews: Reviews,
    time: Duration,
) -> Result<Response, ReviewError> {
    match reviews {
        Reviews::Revisions => {
            let response = Response::allow(request);
            Ok(match forward(reviewer, request) {
                None => response,
                Some(warning) => response.with_warning(&warning),
            })
        }
        Reviews::ImageWarms => {
            let objects = request.objects()?;
            if objects.are_terminating() {
                return Ok(Response::allow(request));
            }
            Ok(default(reviewer, request, &objects, time).await)
        }
    }
}

/// Forwards a Revision that is being created, undecoded. Returns a warning if not all of it is
/// warmed.
fn forward(reviewer: &Reviewer, request: &Request<'_>) -> Option<String> {
    if request.operation != Operation::Create {
        return None;
    }
    let admitted = request.admitted_revision()?;
    let warning = warning(reviewer, &admitted);
    if request.dry_run != Some(true) && !(reviewer.admitted)(admitted) {
        // The leader repairs it. It is only counted: a log line each would flood the log.
        reviewer.metrics.revisions_dropped.inc();
    }
    warning
}

/// Decodes the Revision only if it has unusually many images, or they cannot be counted.
fn warning(reviewer: &Reviewer, admitted: &AdmittedRevision) -> Option<String> {
    if !admitted.is_storable() {
        return None;
    }
    let bounds = reviewer.bounds.as_ref();
    let few = |count| bounds.is_none_or(|bounds| bounds.always_allow(&admitted.namespace, count));
    match admitted.images() {
        Some((_, Some(invalid))) => {
            return Some(format!("imagewarm cannot warm an image of this Revision: {invalid}"));
        }
        Some((count, None)) if few(count) => return None,
        _ => {}
    }
    match admitted.revision() {
        Ok(revision) => bounds?.warning(&admitted.namespace, &revision),
        Err(error) => Some(format!(
            "imagewarm cannot decode this Revision; its images are not warmed: {error}"
        )),
    }
}

/// Sets the defaults of an ImageWarm. If the object is invalid, its secrets are checked too, so
/// that one denial lists all problems; otherwise `/validate` checks them a moment later.
async fn default(
    reviewer: &Reviewer,
    request: &Request<'_>,
    objects: &Objects,
    time: Duration,
) -> Response {
    let old_spec = &objects.old.spec;
    let changed = match request.operation {
        Operation::Create => Changed::ALL,
        Operation::Update => Changed::between(old_spec, &objects.new.spec),
        Operation::Other => return Response::allow(request),
    };
    if changed == Changed::default() {
        return Response::allow(request);
    }
    let mut spec = objects.new.spec.clone();
    if spec.is_object() {
        apply_defaults(&mut spec, changed);
    }
    let spec = &spec;
    // That image and nodeName are immutable is a rule of the CRD, whose message is the better one.
    let checked = match request.operation {
        Operation::Update => {
            Changed { secrets: Changed::between(old_spec, spec).secrets, ..Changed::default() }
        }
        _ => Changed::ALL,
    };
    let mut errors = check_value(spec, checked);
    if !errors.is_empty() {
        errors.extend(check_secrets(reviewer, request, spec, old_spec, time).await);
        return Response::deny(request, denial(KIND_IMAGE_WARM, &request.display_name(), &errors));
    }
    with_spec(request, &objects.new.spec, spec)
}

fn with_spec(request: &Request<'_>, old: &Value, new: &Value) -> Response {
    Response::allow(request).with_spec(old, new).unwrap_or_else(|error| {
        // Values that were decoded from JSON can be encoded as JSON.
        warn!(%error, "cannot encode patch; object admitted unchanged");
        Response::allow(request)
    })
}
