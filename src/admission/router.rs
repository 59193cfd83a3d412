//! The routes `/mutate/SECRET` and `/validate/SECRET`, as far as they are published: read a body
//! within limits of size and time, answer it, and count it. A request to any other path gets a 404
//! before its body is read; one that is not an AdmissionReview gets a 4xx with a `Status` and its
//! reason.

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::HttpBody;
use axum::extract::{Request as HttpRequest, State};
use axum::response::{IntoResponse, Response as HttpResponse};
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::{Level, debug, enabled, info, warn};

use super::Reviewer;
pub use super::bodies::BodyLimits;
use super::bodies::{BodyMemory, read_body};
use super::metrics::{Path, Verdict};
use super::mutate::mutate;
use super::review::{Request, Response, ReviewError};
use super::validate::validate;
use crate::listener::Place;
use imagewarm_core::image::quoted::{MESSAGE_MAX, QUOTED_MAX, printable};
use imagewarm_core::webhook_paths::{Endpoint, Reviews, ServedPaths};

/// The timeout of an API server that announces none: the default of `timeoutSeconds`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum of `timeoutSeconds`.
const MAX_TIMEOUT: Duration = Duration::from_secs(30);
/// Part of the API server's timeout that is reserved for the response to arrive.
const RESPONSE_MARGIN: Duration = Duration::from_millis(500);

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
    // No routes: which paths there are changes while it runs.
    Router::new().fallback(answer).with_state(Webhook {
        reviewer,
        limits,
        memory: BodyMemory::default(),
        served,
    })
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
        if http.method() != Method::POST {
            return wrong_method(http.method());
        }
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
        let memory = self.memory.reserve(body.size_hint().exact(), self.limits).await?;
        let body = read_body(body, self.limits).await?;
        let Some(turn) = self.memory.turn(body.len()).await else {
            return self.reviewed((path, reviews), &head, &body, timeout, began).await;
        };
        let (webhook, runtime) = (self.clone(), Handle::current());
        let reviewed = tokio::task::spawn_blocking(move || {
            // A caller that goes away does not end this: what it takes is held until it ends.
            let _held = (memory, turn);
            runtime.block_on(webhook.reviewed((path, reviews), &head, &body, timeout, began))
        });
        reviewed.await.unwrap_or(Err(ReviewError::Busy))
    }

    async fn reviewed(
        &self,
        (path, reviews): (Path, Reviews),
        head: &Parts,
        body: &[u8],
        timeout: Duration,
        began: Instant,
    ) -> Result<(Verdict, HttpResponse), ReviewError> {
        let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let request = Request::parse(content_type, body)?;
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

/// The timeout that the API server announces: `?timeout=1s`, whole seconds up to 30.
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
    if verdict != Verdict::Denied && !enabled!(Level::DEBUG) {
        return;
    }
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

fn wrong_method(method: &Method) -> HttpResponse {
    let method = printable(method.as_str(), QUOTED_MAX);
    let message = format!("the method is {method}: it must be POST");
    let response = error_response(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", &message);
    ([(ALLOW, "POST")], response).into_response()
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
