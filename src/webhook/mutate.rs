//! `/mutate`: a Revision is handed on and never touched, refused or kept waiting; an ImageWarm gets
//! its defaults, and is told what is wrong with it before the API server's schema check hides it.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tracing::{debug, warn};

use super::check::{Changed, apply_defaults, check_value};
use super::field_error::denial;
use super::review::{Operation, Request, Response};
use super::validate::{KIND, check_secrets};
use super::{Reviewer, Sightings};
use crate::api::{GROUP, Revision};

/// API group of Knative's Revision.
const SERVING_GROUP: &str = "serving.knative.dev";

/// Answers one request. `time` is what is left of the API server's patience.
pub(super) async fn mutate(reviewer: &Reviewer, request: &Request, time: Duration) -> Response {
    if request.is_about(SERVING_GROUP, "Revision") {
        let response = Response::allow(request);
        return match sight(reviewer, request) {
            Ok(None) => response,
            Ok(Some(warning)) => response.with_warning(&warning),
            Err(error) => response.with_warning(&format!(
                "imagewarm cannot read this Revision, its images are not warmed: {error}"
            )),
        };
    }
    if request.is_about(GROUP, KIND) && !request.is_going() {
        return default(reviewer, request, time).await;
    }
    Response::allow(request)
}

/// Hands a Revision on that is being made, and says what of it is beyond a limit; fails when it
/// cannot be read.
fn sight(reviewer: &Reviewer, request: &Request) -> Result<Option<String>, serde_json::Error> {
    if request.operation != Operation::Create {
        return Ok(None);
    }
    let name = request.display_name();
    let namespace = request.namespace.as_deref().unwrap_or_default();
    let mut revision: Revision = match Revision::deserialize(&request.object) {
        Ok(revision) => revision,
        Err(error) => {
            reviewer.metrics.undecodable.inc();
            warn!(namespace, name, %error, "a Revision could not be read and is not warmed yet");
            return Err(error);
        }
    };
    let metadata = &mut revision.metadata;
    metadata.managed_fields = None;
    metadata.namespace = request.namespace.clone().or_else(|| metadata.namespace.take());
    if metadata.name.as_deref().unwrap_or_default().is_empty() {
        metadata.name = request.name.clone().filter(|name| !name.is_empty());
    }
    let warning = reviewer.bounds.as_ref().and_then(|bounds| bounds.warning(namespace, &revision));
    if request.dry_run == Some(true) {
        return Ok(warning);
    }
    if reviewer.sightings.offer(revision) {
        debug!(namespace, name, "a Revision was handed on");
    } else {
        // The controller's repairs find it; more than a count would flood the log just then.
        reviewer.metrics.dropped_sightings.inc();
    }
    Ok(warning)
}

/// Defaults of an ImageWarm. Where its shape is wrong already, its secrets are looked at too, so
/// that all problems are told at once; otherwise `/validate` does that a moment later.
async fn default(reviewer: &Reviewer, request: &Request, time: Duration) -> Response {
    let old_spec = &request.old_object["spec"];
    let changed = match request.operation {
        Operation::Create => Changed::ALL,
        Operation::Update => Changed::between(old_spec, &request.object["spec"]),
        Operation::Other => return Response::allow(request),
    };
    if changed == Changed::default() {
        return Response::allow(request);
    }
    let mut object = request.object.clone();
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
        return Response::deny(request, denial(KIND, request.display_name(), &errors));
    }
    with_change(request, &object)
}

fn with_change(request: &Request, object: &Value) -> Response {
    Response::allow(request).with_change(&request.object, object).unwrap_or_else(|error| {
        // Values that were read as JSON can be written as JSON.
        warn!(%error, "a patch could not be written; the object passes unchanged");
        Response::allow(request)
    })
}

impl<F: Fn(Revision) -> bool + Send + Sync> Sightings for F {
    fn offer(&self, revision: Revision) -> bool {
        self(revision)
    }
}
