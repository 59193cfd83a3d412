//! The routes `/mutate/SECRET` and `/validate/SECRET`, as far as they are published: read a body
//! within limits of size and time, answer it, and count it. A request to any other path gets a 404
//! before its body is read; one that is not an AdmissionReview gets a 4xx with a `Status` and its
//! reason.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::body::HttpBody;
use axum::extract::{Request as HttpRequest, State};
use axum::response::{IntoResponse, Response as HttpResponse};
use axum::routing::post;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tracing::{debug, info, warn};

use super::metrics::{Path, Verdict};
use super::mutate::mutate;
use super::review::{Request, Response, ReviewError};
use super::validate::validate;
use super::{Reviewer, WebhookArgs};
use crate::listener::Place;
use imagewarm_core::image::quoted::{MESSAGE_MAX, QUOTED_MAX, printable};
use imagewarm_core::webhook_paths::{Endpoint, Reviews, ServedPaths};

/// The timeout of an API server that announces none: the default of `timeoutSeconds`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum of `timeoutSeconds`.
const MAX_TIMEOUT: Duration = Duration::from_secs(30);
/// Part of the API server's timeout that is reserved for the response to arrive.
const RESPONSE_MARGIN: Duration = Duration::from_millis(500);

/// Limits of a body.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// In bytes.
    pub size: usize,
    /// For the whole body.
    pub time: Duration,
}

impl From<&WebhookArgs> for BodyLimits {
    fn from(args: &WebhookArgs) -> Self {
        BodyLimits { size: args.webhook_max_body, time: args.webhook_body_timeout }
    }
}

/// Memory for all bodies that are being read and reviewed, in units of 1 KiB: 64 MiB.
const BODY_MEMORY: u32 = 64 * 1024;

/// The memory for bodies that are being read and reviewed.
#[derive(Clone)]
struct BodyMemory(Arc<Semaphore>);

impl Default for BodyMemory {
    fn default() -> Self {
        BodyMemory(Arc::new(Semaphore::new(BODY_MEMORY as usize)))
    }
}

impl BodyMemory {
    /// Waits until there is memory for a body of the announced size, as long as a body may take.
    async fn reserve(
        &self,
        announced: Option<u64>,
        limits: BodyLimits,
    ) -> Result<OwnedSemaphorePermit, ReviewError> {
        let units = memory_units(announced, limits.size);
        let permit = tokio::time::timeout(limits.time, self.0.clone().acquire_many_owned(units));
        permit.await.ok().and_then(Result::ok).ok_or(ReviewError::Busy)
    }
}

#[derive(Clone)]
struct Webhook {
    reviewer: Reviewer,
    limits: BodyLimits,
    memory: BodyMemory,
    served: watch::Receiver<ServedPaths>,
}

/// The webhook without its TLS server, at the paths in `served`.
pub fn router(
    reviewer: Reviewer,
    limits: BodyLimits,
    served: watch::Receiver<ServedPaths>,
) -> Router {
    let answer =
        async |State(webhook): State<Webhook>, request: HttpRequest| webhook.answer(request).await;
    Router::new()
        .route("/{endpoint}/{secret}", post(answer))
        .fallback(async |State(webhook): State<Webhook>| webhook.not_served())
        .method_not_allowed_fallback(async |request: HttpRequest| {
            let method = printable(request.method().as_str(), QUOTED_MAX);
            let message = format!("the method is {method}: it must be POST");
            error_response(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", &message)
        })
        .with_state(Webhook { reviewer, limits, memory: BodyMemory::default(), served })
}

impl Webhook {
    fn not_served(&self) -> HttpResponse {
        self.reviewer.metrics.unknown_paths.inc();
        let message = "nothing is served at this path: the webhook configurations have the paths";
        let mut response = error_response(StatusCode::NOT_FOUND, "NotFound", message);
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        response
    }

    async fn answer(self, http: HttpRequest) -> HttpResponse {
        let began = Instant::now();
        let Some((endpoint, reviews)) = self.served.borrow().get(http.uri().path()) else {
            return self.not_served();
        };
        if let Some(place) = http.extensions().get::<Place>() {
            place.prove();
        }
        let path = match endpoint {
            Endpoint::Mutate => Path::Mutate,
            Endpoint::Validate => Path::Validate,
        };
        let timeout = announced_timeout(http.uri().query().unwrap_or_default());
        let (verdict, answer) = match self.review((path, reviews), http, timeout, began).await {
            Ok((verdict, answer)) => (verdict, answer),
            Err(error) => {
                warn!(?path, %error, "malformed admission request");
                (Verdict::Malformed, malformed(&error))
            }
        };
        self.reviewer.metrics.answered(path, verdict, began.elapsed().as_secs_f64());
        answer
    }

    async fn review(
        &self,
        (path, reviews): (Path, Reviews),
        http: HttpRequest,
        timeout: Duration,
        began: Instant,
    ) -> Result<(Verdict, HttpResponse), ReviewError> {
        let (head, body) = http.into_parts();
        let _memory = self.memory.reserve(body.size_hint().exact(), self.limits).await?;
        let body = read_body(body, self.limits).await?;
        let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let request = Request::parse(content_type, &body)?;
        let left = timeout.saturating_sub(RESPONSE_MARGIN).saturating_sub(began.elapsed());
        let response = match (path, reviews) {
            // What the path is not for has no effect, whoever sends it.
            _ if !request.is_one_of(reviews) => Response::allow(&request),
            (Path::Mutate, _) => mutate(&self.reviewer, &request, reviews, left).await?,
            (Path::Validate, Reviews::ImageWarms) => {
                validate(&self.reviewer, &request, left).await?
            }
            (Path::Validate, Reviews::Revisions) => Response::allow(&request),
        };
        let verdict = verdict(&response);
        log_verdict(path, verdict, &request);
        Ok((verdict, http_response(&response)))
    }
}

/// Memory of [`BODY_MEMORY`] that a body takes: its announced size, or the largest one.
fn memory_units(announced: Option<u64>, largest: usize) -> u32 {
    let largest = u64::try_from(largest).unwrap_or(u64::MAX);
    let units = announced.unwrap_or(largest).min(largest).div_ceil(1024);
    u32::try_from(units).unwrap_or(BODY_MEMORY).min(BODY_MEMORY)
}

async fn read_body(body: Body, limits: BodyLimits) -> Result<Bytes, ReviewError> {
    let collect = Limited::new(body, limits.size).collect();
    match tokio::time::timeout(limits.time, collect).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ReviewError::TooLong(limits.size)),
        Ok(Err(_)) => Err(ReviewError::BrokenOff),
        Err(_) => Err(ReviewError::TimedOut),
    }
}

/// The timeout that the API server announces: `?timeout=2s`, whole seconds up to 30.
fn announced_timeout(query: &str) -> Duration {
    let announced = query.split('&').find_map(|pair| pair.strip_prefix("timeout="));
    announced
        .and_then(|text| text.strip_suffix('s')?.parse().ok())
        .map_or(DEFAULT_TIMEOUT, |seconds| Duration::from_secs(seconds).min(MAX_TIMEOUT))
}

fn verdict(response: &Response) -> Verdict {
    match (response.is_allowed(), response.is_patched()) {
        (false, _) => Verdict::Denied,
        (true, true) => Verdict::Patched,
        (true, false) => Verdict::Allowed,
    }
}

fn log_verdict(path: Path, verdict: Verdict, request: &Request<'_>) {
    let short = |text: &str| printable(text, QUOTED_MAX);
    let namespace = request.namespace.as_deref().map(short).unwrap_or_default();
    let (kind, uid) = (short(&request.kind.kind), short(&request.uid));
    let name = || short(&request.display_name());
    match verdict {
        Verdict::Denied => info!(?path, kind, namespace, name = name(), uid, "admission denied"),
        _ => debug!(?path, ?verdict, kind, namespace, name = name(), uid, "admission answered"),
    }
}

fn http_response(response: &Response) -> HttpResponse {
    match response.to_json() {
        Ok(json) => ([(CONTENT_TYPE, "application/json")], json).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn malformed(error: &ReviewError) -> HttpResponse {
    let source = std::error::Error::source(error).map(|source| format!(": {source}"));
    let message = format!("{error}{}", source.unwrap_or_default());
    // The JSON parser quotes unexpected input, however long.
    error_response(error.status(), "BadRequest", &printable(&message, MESSAGE_MAX))
}

/// An error response with a metav1.Status, as the API server sends.
fn error_response(code: StatusCode, reason: &str, message: &str) -> HttpResponse {
    let status = serde_json::json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure",
        "code": code.as_u16(), "reason": reason, "message": message,
    });
    (code, [(CONTENT_TYPE, "application/json")], status.to_string()).into_response()
}

#[cfg(test)]
mod tests;
