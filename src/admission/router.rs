//! The two paths, `/mutate` and `/validate`: reads a body within limits of size and time, has it
//! answered, and counts. What is no AdmissionReview gets a 4xx with a `Status` that says why.

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request as HttpRequest, State};
use axum::response::{IntoResponse, Response as HttpResponse};
use axum::routing::post;
use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tracing::{debug, info, warn};

use super::metrics::{Path, Verdict};
use super::mutate::mutate;
use super::review::{Request, Response, ReviewError};
use super::validate::validate;
use super::{Reviewer, WebhookArgs};
use imagewarm_core::image::quoted::{MESSAGE_MAX, QUOTED_MAX, printable, quoted};

/// The patience of an API server that does not announce any: its own default.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(10);
/// The API server allows no more.
const LONGEST_PATIENCE: Duration = Duration::from_secs(30);
/// Kept back of the API server's patience for the way back.
const WAY_BACK: Duration = Duration::from_millis(500);

/// Limits of a body.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// In bytes.
    pub size: usize,
    /// For all of it.
    pub time: Duration,
}

impl From<&WebhookArgs> for BodyLimits {
    fn from(args: &WebhookArgs) -> Self {
        BodyLimits { size: args.webhook_max_body, time: args.webhook_body_timeout }
    }
}

#[derive(Clone)]
struct Webhook {
    reviewer: Reviewer,
    limits: BodyLimits,
}

/// The webhook without its TLS server.
pub fn router(reviewer: Reviewer, limits: BodyLimits) -> Router {
    let on = |path| {
        post(async move |State(webhook): State<Webhook>, request: HttpRequest| {
            webhook.answer(path, request).await
        })
    };
    Router::new()
        .route("/mutate", on(Path::Mutate))
        .route("/validate", on(Path::Validate))
        .fallback(async |request: HttpRequest| {
            let path = quoted(request.uri().path());
            let message = format!("nothing is served at {path}: it must be /mutate or /validate");
            refusal(StatusCode::NOT_FOUND, "NotFound", &message)
        })
        .method_not_allowed_fallback(async |request: HttpRequest| {
            let method = printable(request.method().as_str(), QUOTED_MAX);
            let message = format!("the method is {method}: it must be POST");
            refusal(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", &message)
        })
        .with_state(Webhook { reviewer, limits })
}

impl Webhook {
    async fn answer(self, path: Path, http: HttpRequest) -> HttpResponse {
        let began = Instant::now();
        let patience = patience(http.uri().query().unwrap_or_default());
        let (verdict, answer) = match self.review(path, http, patience, began).await {
            Ok((verdict, answer)) => (verdict, answer),
            Err(error) => {
                warn!(?path, %error, "a request was no AdmissionReview");
                (Verdict::Malformed, malformed(&error))
            }
        };
        self.reviewer.metrics.answered(path, verdict, began.elapsed().as_secs_f64());
        answer
    }

    async fn review(
        &self,
        path: Path,
        http: HttpRequest,
        patience: Duration,
        began: Instant,
    ) -> Result<(Verdict, HttpResponse), ReviewError> {
        let (head, body) = http.into_parts();
        let body = read_body(body, self.limits).await?;
        let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let request = Request::parse(content_type, &body)?;
        let left = patience.saturating_sub(WAY_BACK).saturating_sub(began.elapsed());
        let response = match path {
            Path::Mutate => mutate(&self.reviewer, &request, left).await?,
            Path::Validate => validate(&self.reviewer, &request, left).await?,
        };
        let verdict = verdict(&response);
        tell(path, verdict, &request);
        Ok((verdict, written(&response)))
    }
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

/// The API server announces how long it waits: `?timeout=2s`, whole seconds up to 30.
fn patience(query: &str) -> Duration {
    let announced = query.split('&').find_map(|pair| pair.strip_prefix("timeout="));
    announced
        .and_then(|text| text.strip_suffix('s')?.parse().ok())
        .map_or(DEFAULT_PATIENCE, |seconds| Duration::from_secs(seconds).min(LONGEST_PATIENCE))
}

fn verdict(response: &Response) -> Verdict {
    match (response.is_allowed(), response.is_patched()) {
        (false, _) => Verdict::Denied,
        (true, true) => Verdict::Patched,
        (true, false) => Verdict::Allowed,
    }
}

fn tell(path: Path, verdict: Verdict, request: &Request<'_>) {
    let short = |text: &str| printable(text, QUOTED_MAX);
    let namespace = request.namespace.as_deref().map(short).unwrap_or_default();
    let (kind, uid) = (short(&request.kind.kind), short(&request.uid));
    let name = || short(&request.display_name());
    match verdict {
        Verdict::Denied => info!(?path, kind, namespace, name = name(), uid, "denied"),
        _ => debug!(?path, ?verdict, kind, namespace, name = name(), uid, "answered"),
    }
}

fn written(response: &Response) -> HttpResponse {
    match response.to_json() {
        Ok(json) => ([(CONTENT_TYPE, "application/json")], json).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn malformed(error: &ReviewError) -> HttpResponse {
    let source = std::error::Error::source(error).map(|source| format!(": {source}"));
    let message = format!("{error}{}", source.unwrap_or_default());
    // The JSON parser repeats what it did not expect, however long.
    refusal(error.status(), "BadRequest", &printable(&message, MESSAGE_MAX))
}

/// A metav1.Status, as the API server's own refusals are.
fn refusal(code: StatusCode, reason: &str, message: &str) -> HttpResponse {
    let status = serde_json::json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure",
        "code": code.as_u16(), "reason": reason, "message": message,
    });
    (code, [(CONTENT_TYPE, "application/json")], status.to_string()).into_response()
}

#[cfg(test)]
mod tests;
