//! Field errors as the `Status` of a denied request.

use imagewarm_core::api::GROUP;
use imagewarm_core::image::quoted::quoted;
use imagewarm_core::validation::field_error::{Fault, FieldError};

use super::review::{Cause, Details, Status};

/// The denial that lists all `errors`. The code is 422 (invalid object), or 503 (retry) if each of
/// them is a check that could not be completed.
pub(super) fn denial(kind: &str, name: &str, errors: &[FieldError]) -> Status {
    let list: Vec<_> = errors.iter().map(ToString::to_string).collect();
    let (list, object) = (list.join("; "), quoted(name));
    if errors.iter().all(|error| error.fault == Fault::NotJudged) {
        let message = format!("{kind} {object} could not be validated, try again: {list}");
        return Status { code: 503, reason: "ServiceUnavailable", message, details: None };
    }
    let causes = errors.iter().map(|error| Cause {
        reason: error.fault.cause(),
        message: error.body(),
        field: error.field.clone(),
    });
    Status {
        code: 422,
        reason: "Invalid",
        message: format!("{kind} {object} is invalid: {list}"),
        details: Some(Details {
            name: name.to_owned(),
            group: GROUP.to_owned(),
            kind: kind.to_owned(),
            causes: causes.collect(),
        }),
    }
}
