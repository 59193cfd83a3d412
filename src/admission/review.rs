//! AdmissionReview v1, requests and responses. Decoding tolerates unknown and missing fields;
//! responses are exact: the patch in base64, and `patchType` only with a patch.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use imagewarm_core::api::GROUP;
use imagewarm_core::api::names::Namespace;
use imagewarm_core::demand::AdmittedRevision;
use imagewarm_core::image::quoted::{Quoted, printable, quoted};
use imagewarm_core::webhook_paths::Reviews;

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// API group of Knative's Revision.
const SERVING_GROUP: &str = "serving.knative.dev";
/// Kind of the objects that are defaulted and validated.
pub(super) const KIND_IMAGE_WARM: &str = "ImageWarm";
/// Longer than any spec that the schema admits.
const LONGEST_SPEC: usize = 64 * 1024;
/// Longer than any name that the API server accepts.
const LONGEST_NAME: usize = 1024;
/// The API server truncates longer warnings.
const LONGEST_WARNING: usize = 256;

/// Why a body is not an AdmissionReview that can be answered.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// The content type is not JSON.
    #[error("content type is {0}: it must be application/json")]
    ContentType(Quoted),
    /// The body is not JSON, or has another structure.
    #[error("the body is not an AdmissionReview")]
    Syntax(#[from] serde_json::Error),
    /// The body has another kind or version.
    #[error("the body is {api_version} {kind}: it must be {API_VERSION} {KIND}")]
    Type {
        /// From the body.
        api_version: Quoted,
        /// From the body.
        kind: Quoted,
    },
    /// The review holds no request.
    #[error("the AdmissionReview has no request")]
    NoRequest,
    /// An ImageWarm whose spec is longer than any valid one.
    #[error("the spec has {0} bytes: an ImageWarm's has at most {LONGEST_SPEC}")]
    LongSpec(usize),
    /// All memory for bodies is in use.
    #[error("too many large requests at once, try again")]
    Busy,
    /// A name or namespace that no object can have.
    #[error("request.{field} is {value}: it must be {must_be}")]
    Name {
        /// `name` or `namespace`.
        field: &'static str,
        /// From the body.
        value: Quoted,
        /// What would be right.
        must_be: &'static str,
    },
    /// Without a uid, the API server cannot match the response to the request.
    #[error("request.uid is missing or empty")]
    NoUid,
    /// The body exceeds the size limit.
    #[error("the body is longer than {0} bytes")]
    TooLong(usize),
    /// The body did not arrive in time.
    #[error("the body did not arrive in time")]
    TimedOut,
    /// The connection closed within the body.
    #[error("the body ended early")]
    BrokenOff,
}

impl ReviewError {
    /// The HTTP status of the response.
    pub fn status(&self) -> StatusCode {
        match self {
            ReviewError::ContentType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ReviewError::TooLong(_) => StatusCode::PAYLOAD_TOO_LARGE,
            ReviewError::TimedOut => StatusCode::REQUEST_TIMEOUT,
            ReviewError::Busy => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Incoming<'a> {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(borrow)]
    request: Option<Request<'a>>,
}

/// Group, version and kind of the object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GroupVersionKind {
    /// API group; empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Kind.
    pub kind: String,
}

/// The operation on the object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Operation {
    /// The object is created.
    #[serde(rename = "CREATE")]
    Create,
    /// The object is changed.
    #[serde(rename = "UPDATE")]
    Update,
    /// Any other operation, which is never validated.
    #[default]
    #[serde(other)]
    Other,
}

/// `request` of an AdmissionReview, as far as it is used. The objects are decoded on demand: a
/// Revision usually only after the response.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request<'a> {
    /// Repeated in the response.
    #[serde(default)]
    pub uid: String,
    /// Type of the object.
    #[serde(default)]
    pub kind: GroupVersionKind,
    /// `status`, `scale`, or absent for the object itself.
    #[serde(default)]
    pub sub_resource: Option<String>,
    /// Absent with `generateName`.
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default, rename = "namespace")]
    namespace_text: Option<String>,
    /// Namespace of the object.
    #[serde(skip)]
    pub namespace: Option<Namespace>,
    /// The operation.
    #[serde(default)]
    pub operation: Operation,
    /// True if nothing is stored.
    #[serde(default)]
    pub dry_run: Option<bool>,
    /// The new object, JSON.
    #[serde(default, borrow)]
    pub object: Option<&'a RawValue>,
    /// The existing object, JSON; absent on CREATE.
    #[serde(default, borrow)]
    pub old_object: Option<&'a RawValue>,
}

/// What is used of an ImageWarm in a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object {
    /// Its `spec`; null if absent.
    pub spec: Value,
    is_terminating: bool,
}

impl Object {
    /// Decodes the object. As a `Value`, JSON may take 16 times its size: only the spec becomes one,
    /// and no longer than [`LONGEST_SPEC`].
    fn read(object: Option<&RawValue>) -> Result<Self, ReviewError> {
        let Some(object) = object else { return Ok(Object::default()) };
        let Parts { metadata, spec } = serde_json::from_str::<Option<Parts>>(object.get())
            .map_err(ReviewError::Syntax)?
            .unwrap_or_default();
        let spec = spec.map_or("null", RawValue::get);
        if spec.len() > LONGEST_SPEC {
            return Err(ReviewError::LongSpec(spec.len()));
        }
        let spec = serde_json::from_str(spec)?;
        Ok(Object { spec, is_terminating: metadata.deletion_timestamp.is_some() })
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Parts<'a> {
    metadata: PartsMetadata,
    #[serde(borrow)]
    spec: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PartsMetadata {
    deletion_timestamp: Option<IgnoredAny>,
}

/// The two objects of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// The new object.
    pub new: Object,
    /// The existing object.
    pub old: Object,
}

impl Objects {
    /// Whether the object is terminating and only waits for its finalizers.
    pub fn are_terminating(&self) -> bool {
        self.new.is_terminating
    }
}

impl<'a> Request<'a> {
    /// The Revision that is being created; `None` without an object or a namespace, which API
    /// servers always send.
    pub fn admitted_revision(&self) -> Option<AdmittedRevision> {
        let name = self.name.as_deref().unwrap_or_default();
        Some(AdmittedRevision::new(self.namespace.clone()?, name, self.object?))
    }

    /// Decodes a body.
    pub fn parse(content_type: Option<&str>, body: &'a [u8]) -> Result<Self, ReviewError> {
        let media_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default();
        if !media_type.trim().eq_ignore_ascii_case("application/json") {
            return Err(ReviewError::ContentType(quoted(content_type.unwrap_or_default())));
        }
        let review: Incoming<'a> = serde_json::from_slice(body)?;
        if review.api_version != API_VERSION || review.kind != KIND {
            let (api_version, kind) = (quoted(&review.api_version), quoted(&review.kind));
            return Err(ReviewError::Type { api_version, kind });
        }
        let mut request = review.request.ok_or(ReviewError::NoRequest)?;
        if request.uid.is_empty() {
            return Err(ReviewError::NoUid);
        }
        // They become parts of URLs and keys of maps.
        let namespace = request.namespace_text.take().filter(|namespace| !namespace.is_empty());
        if let Some(namespace) = namespace {
            let parsed = namespace.parse().map_err(|_| {
                let (value, must_be) = (quoted(&namespace), "a DNS-1123 label");
                ReviewError::Name { field: "namespace", value, must_be }
            })?;
            request.namespace = Some(parsed);
        }
        // The API server validates the name of an object after the mutating webhooks.
        let name = request.name.as_deref().unwrap_or_default();
        if name.len() > LONGEST_NAME {
            let must_be = "at most 1024 bytes long";
            return Err(ReviewError::Name { field: "name", value: quoted(name), must_be });
        }
        Ok(request)
    }

    /// Whether the object is of the kind of these reviews, and the request is not for a subresource.
    pub fn is_one_of(&self, reviews: Reviews) -> bool {
        let (group, kind) = match reviews {
            Reviews::Revisions => (SERVING_GROUP, "Revision"),
            Reviews::ImageWarms => (GROUP, KIND_IMAGE_WARM),
        };
        self.kind.group == group
            && self.kind.kind == kind
            && self.sub_resource.as_deref().unwrap_or_default().is_empty()
    }

    /// Decodes both objects. Fails for JSON that no Kubernetes object has, such as a number that is
    /// out of range.
    pub fn objects(&self) -> Result<Objects, ReviewError> {
        Ok(Objects { new: Object::read(self.object)?, old: Object::read(self.old_object)? })
    }

    /// The object's name in messages; with `generateName`, its prefix.
    pub fn display_name(&self) -> Cow<'_, str> {
        let given = self.name.as_deref().filter(|name| !name.is_empty());
        given.map_or_else(|| Cow::Owned(self.name_within()), Cow::Borrowed)
    }

    fn name_within(&self) -> String {
        let text = self.object.map(RawValue::get).unwrap_or_default();
        let Named { metadata } = serde_json::from_str(text).unwrap_or_default();
        let names = [metadata.name, metadata.generate_name].into_iter().flatten();
        names.into_iter().find(|name| !name.is_empty()).unwrap_or_default()
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Named {
    metadata: NamedMetadata,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NamedMetadata {
    name: Option<String>,
    generate_name: Option<String>,
}

/// `status` of a denial: metav1.Status, as far as the API server uses it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// HTTP code of the response to the caller.
    pub code: u16,
    /// Machine-readable reason.
    pub reason: &'static str,
    /// Human-readable message; the API server prefixes it with the webhook's name.
    pub message: String,
    /// Names the object and each field; kubectl prints it as a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
}

/// `status.details`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Details {
    /// Name of the object.
    pub name: String,
    /// Group of the object.
    pub group: String,
    /// Kind of the object.
    pub kind: String,
    /// One element for each fault.
    pub causes: Vec<Cause>,
}

/// One element of `status.details.causes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// Machine-readable reason, such as `FieldValueInvalid`.
    pub reason: &'static str,
    /// The fault.
    pub message: String,
    /// Path of the field.
    pub field: String,
}

/// `response` of an AdmissionReview.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    uid: String,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Outgoing<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: &'a Response,
}

impl Response {
    /// Admits the object unchanged.
    pub fn allow(request: &Request<'_>) -> Self {
        Response {
            uid: request.uid.clone(),
            allowed: true,
            status: None,
            patch: None,
            patch_type: None,
            warnings: Vec::new(),
        }
    }

    /// Denies the object.
    pub fn deny(request: &Request<'_>, status: Status) -> Self {
        Response { allowed: false, status: Some(status), ..Response::allow(request) }
    }

    /// Adds the patch from the spec `old` to `new`; none if they are equal.
    pub fn with_spec(mut self, old: &Value, new: &Value) -> Result<Self, serde_json::Error> {
        let patch = json_patch::diff(&json!({"spec": old}), &json!({"spec": new}));
        if !patch.0.is_empty() {
            self.patch = Some(STANDARD.encode(serde_json::to_vec(&patch)?));
            self.patch_type = Some("JSONPatch");
        }
        Ok(self)
    }

    /// Adds a warning to the caller. Warnings are sent in HTTP headers, so it must be one line.
    pub fn with_warning(mut self, warning: &str) -> Self {
        self.warnings.push(printable(warning, LONGEST_WARNING));
        self
    }

    /// Whether the object is admitted.
    pub fn is_allowed(&self) -> bool {
        self.allowed
    }

    /// Whether the object is changed.
    pub fn is_patched(&self) -> bool {
        self.patch.is_some()
    }

    /// The whole AdmissionReview as JSON.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&Outgoing { api_version: API_VERSION, kind: KIND, response: self })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const JSON: Option<&str> = Some("application/json; charset=utf-8");

    fn parse(review: &Value) -> Result<Request<'static>, ReviewError> {
        Request::parse(JSON, review.to_string().leak().as_bytes())
    }

    #[test]
    fn missing_and_unknown_fields_are_tolerated() {
        let request = parse(&json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "later": 1,
            "request": {"uid": "u", "operation": "CONNECT", "dryRun": null, "name": null,
                        "oldObject": null, "novelty": {}},
        }))
        .unwrap();
        assert_eq!(request.operation, Operation::Other);
        assert_eq!(request.objects().unwrap(), Objects::default());
        assert!(request.dry_run.is_none());
        assert_eq!(request.display_name(), "");
    }

    #[test]
    fn each_malformed_review_has_its_error() {
        let typed = |request: Value| {
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                   "request": request})
        };
        let cases = [
            (json!([]), "the body is not an AdmissionReview"),
            (
                json!({"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview"}),
                "the body is \"admission.k8s.io/v1beta1\" \"AdmissionReview\": it must be \
              admission.k8s.io/v1 AdmissionReview",
            ),
            (typed(Value::Null), "the AdmissionReview has no request"),
            (typed(json!({"uid": ""})), "request.uid is missing or empty"),
            (typed(json!({})), "request.uid is missing or empty"),
        ];
        for (review, message) in cases {
            let error = parse(&review).err().unwrap();
            assert_eq!((error.to_string().as_str(), error.status().as_u16()), (message, 400));
        }
        assert_eq!(Request::parse(None, b"{}").err().unwrap().status().as_u16(), 415);
        assert_eq!(Request::parse(Some("text/plain"), b"{}").err().unwrap().status(), 415);
    }

    #[test]
    fn a_patch_is_base64_and_has_a_type_only_when_there_is_one() {
        let request = parse(&json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {"uid": "u"},
        }))
        .unwrap();
        let same = Response::allow(&request).with_spec(&json!({}), &json!({})).unwrap();
        let json: Value = serde_json::from_slice(&same.to_json().unwrap()).unwrap();
        assert_eq!(json["response"], json!({"uid": "u", "allowed": true}));

        let changed = Response::allow(&request)
            .with_spec(&json!({"a": " x"}), &json!({"a": "x"}))
            .unwrap()
            .with_warning("odd\r\nthing");
        let json: Value = serde_json::from_slice(&changed.to_json().unwrap()).unwrap();
        assert_eq!(json["response"]["patchType"], "JSONPatch");
        assert_eq!(json["response"]["warnings"], json!(["odd  thing"]));
        let patch = STANDARD.decode(json["response"]["patch"].as_str().unwrap()).unwrap();
        let patch: Value = serde_json::from_slice(&patch).unwrap();
        assert_eq!(patch, json!([{"op": "replace", "path": "/spec/a", "value": "x"}]));
    }
}
