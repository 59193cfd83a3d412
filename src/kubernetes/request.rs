//! One request to the API server: with a timeout, and with an error message of one line.

use std::future::Future;
use std::time::Duration;

use imagewarm_core::error_chain::error_chain;
use imagewarm_core::image::quoted::{MESSAGE_MAX, printable};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// The API server did not answer within this time.
    #[error("no answer from the API server within {0:?}")]
    TimedOut(Duration),
    /// The API server rejected the request, or is unreachable.
    #[error("{}", one_line(.0))]
    Failed(Box<kube::Error>),
}

impl RequestError {
    /// The HTTP status code of the API server's answer, if it gave one.
    pub(crate) fn status_code(&self) -> Option<u16> {
        match self {
            RequestError::Failed(error) => match &**error {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            RequestError::TimedOut(_) => None,
        }
    }
}

/// Waits for the response for at most `timeout`; the client itself may wait for ever.
pub(crate) async fn request<T>(
    timeout: Duration,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, RequestError> {
    match tokio::time::timeout(timeout, call).await {
        Ok(answer) => answer.map_err(|error| RequestError::Failed(Box::new(error))),
        Err(_) => Err(RequestError::TimedOut(timeout)),
    }
}

/// A client error on one line, without the debug output that its `Display` contains.
pub(crate) fn one_line(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => match status.message.as_str() {
            "" => format!("status {} {}", status.code, status.reason),
            message => printable(message, MESSAGE_MAX),
        },
        other => error_chain(other),
    }
}
