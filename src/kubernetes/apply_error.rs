//! The errors of writes to the API server, sorted by what the caller does next.

use super::request::{RequestError, one_line};

/// Why a write was not done, by what to do next.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// Somebody else changed the object: look again. For a creation the object is the namespace's
    /// ResourceQuota, which many creations count themselves in.
    #[error("the object was changed meanwhile")]
    Conflict,
    /// An object of this name exists.
    #[error("the object exists already")]
    AlreadyExists,
    /// The object (or its type) does not exist.
    #[error("the object does not exist")]
    NotFound,
    /// The namespace is being deleted: nothing can be made there.
    #[error("the namespace is being deleted")]
    NamespaceTerminating,
    /// A policy rejects this object.
    #[error("not allowed: {0}")]
    Forbidden(String),
    /// The account may not create such objects in the namespace.
    #[error("not allowed in the namespace: {0}")]
    NamespaceForbidden(String),
    /// A ResourceQuota of the namespace is used up, or not counted yet.
    #[error("refused by a quota: {0}")]
    QuotaExceeded(String),
    /// The API server will never take this.
    #[error("refused: {0}")]
    Invalid(String),
    /// Worth another try later.
    #[error("{0}")]
    Retryable(String),
}

impl ApplyError {
    /// The reason for metrics and logs.
    pub(crate) const fn reason(&self) -> &'static str {
        match self {
            ApplyError::Conflict => "Conflict",
            ApplyError::AlreadyExists => "AlreadyExists",
            ApplyError::NotFound => "NotFound",
            ApplyError::NamespaceTerminating => "NamespaceTerminating",
            ApplyError::Forbidden(_) => "Forbidden",
            ApplyError::NamespaceForbidden(_) => "NamespaceForbidden",
            ApplyError::QuotaExceeded(_) => "QuotaExceeded",
            ApplyError::Invalid(_) => "Invalid",
            ApplyError::Retryable(_) => "Retryable",
        }
    }

    /// Whether a creation was refused for the whole namespace: it will be for the next one too.
    /// What one policy says of one object is not.
    pub(crate) const fn is_of_namespace(&self) -> bool {
        matches!(
            self,
            ApplyError::NamespaceForbidden(_)
                | ApplyError::QuotaExceeded(_)
                | ApplyError::NamespaceTerminating
                | ApplyError::NotFound
        )
    }
}

impl From<kube::Error> for ApplyError {
    fn from(error: kube::Error) -> Self {
        let kube::Error::Api(status) = &error else {
            return ApplyError::Retryable(one_line(&error));
        };
        let terminating = status.details.iter().flat_map(|details| &details.causes);
        match status.code {
            404 => ApplyError::NotFound,
            409 if status.reason == "AlreadyExists" => ApplyError::AlreadyExists,
            409 => ApplyError::Conflict,
            403 if terminating.into_iter().any(|cause| cause.reason == "NamespaceTerminating") => {
                ApplyError::NamespaceTerminating
            }
            403 if status.message.contains(" cannot create resource ") => {
                ApplyError::NamespaceForbidden(one_line(&error))
            }
            403 if is_of_quota(&status.message) => ApplyError::QuotaExceeded(one_line(&error)),
            403 => ApplyError::Forbidden(one_line(&error)),
            // The token expired, or an authenticator fails: for a moment, and everywhere.
            401 => ApplyError::Retryable(one_line(&error)),
            400 | 405 | 413 | 415 | 422 => ApplyError::Invalid(one_line(&error)),
            _ => ApplyError::Retryable(one_line(&error)),
        }
    }
}

/// Whether the API server's own text of a 403 is that of a ResourceQuota.
fn is_of_quota(message: &str) -> bool {
    ["exceeded quota: ", "status unknown for quota: "]
        .iter()
        .any(|text| message.contains(&format!(" is forbidden: {text}")))
}

impl From<RequestError> for ApplyError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Failed(error) => ApplyError::from(*error),
            RequestError::TimedOut(_) => ApplyError::Retryable(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use kube::core::response::{StatusCause, StatusDetails};

    use super::*;

    fn refused(code: u16, name: &str, cause: &str) -> Status {
        Status {
            code,
            message: "m".into(),
            details: Some(StatusDetails {
                name: name.into(),
                group: String::new(),
                kind: String::new(),
                uid: String::new(),
                causes: vec![StatusCause {
                    reason: cause.into(),
                    message: String::new(),
                    field: String::new(),
                }],
                retry_after_seconds: 0,
            }),
            ..Status::default()
        }
    }

    #[test]
    fn errors_by_what_to_do_next() {
        let cases = [
            (404, "", "NotFound"),
            (409, "", "Conflict"),
            (403, "", "Forbidden"),
            (403, "NamespaceTerminating", "NamespaceTerminating"),
            (422, "", "Invalid"),
            (429, "", "Retryable"),
            (500, "", "Retryable"),
            (503, "", "Retryable"),
        ];
        for (code, cause, reason) in cases {
            let error = kube::Error::Api(refused(code, "x", cause).boxed());
            assert_eq!(ApplyError::from(error).reason(), reason, "{code} {cause}");
        }
    }

    /// The texts are those of the API server.
    #[test]
    fn refusals_of_rbac_and_quotas_concern_the_namespace_and_those_of_policies_do_not() {
        let cases = [
            (
                "imagewarms.caching.knative.dev is forbidden: User \"u\" cannot create resource \
                 \"imagewarms\" in API group \"caching.knative.dev\" in the namespace \"n\"",
                "NamespaceForbidden",
            ),
            (
                "imagewarms.caching.knative.dev \"w\" is forbidden: exceeded quota: q, requested: \
                 count/imagewarms.caching.knative.dev=1, used: \
                 count/imagewarms.caching.knative.dev=2, limited: \
                 count/imagewarms.caching.knative.dev=2",
                "QuotaExceeded",
            ),
            (
                "imagewarms.caching.knative.dev \"w\" is forbidden: status unknown for quota: q, \
                 resources: count/imagewarms.caching.knative.dev",
                "QuotaExceeded",
            ),
            (
                "imagewarms.caching.knative.dev \"w\" is forbidden: ValidatingAdmissionPolicy 'p' \
                 with binding 'b' denied request: this registry is not allowed",
                "Forbidden",
            ),
        ];
        for (message, reason) in cases {
            let status = Status { code: 403, message: message.into(), ..Status::default() };
            let error = ApplyError::from(kube::Error::Api(status.boxed()));
            assert_eq!(error.reason(), reason, "{message}");
            assert_eq!(error.is_of_namespace(), reason != "Forbidden", "{message}");
        }
    }

    #[test]
    fn only_an_object_of_the_same_name_exists_already() {
        let answer = |reason: &str| {
            let status = Status { code: 409, reason: reason.into(), ..Status::default() };
            ApplyError::from(kube::Error::Api(status.boxed())).reason()
        };
        assert_eq!(answer("AlreadyExists"), "AlreadyExists");
        assert_eq!(answer("Conflict"), "Conflict", "several creations updated one quota");
    }
}
