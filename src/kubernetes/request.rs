//! One request to the API server: bounded in time, with an error that says on one line what happened.

use std::future::Future;
use std::time::Duration;

use imagewarm_core::error_chain::error_chain;
use imagewarm_core::image::quoted::{MESSAGE_MAX, printable};

/// Why a request has no answer of use.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// There was no answer within this time.
    #[error("no answer from the API server within {0:?}")]
    TimedOut(Duration),
    /// The API server refused, or could not be reached.
    #[error("{}", one_line(.0))]
    Failed(Box<kube::Error>),
}

/// Waits for the answer, for `timeout` at most: the client itself may wait for ever.
pub async fn request<T>(
    timeout: Duration,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, RequestError> {
    match tokio::time::timeout(timeout, call).await {
        Ok(answer) => answer.map_err(|error| RequestError::Failed(Box::new(error))),
        Err(_) => Err(RequestError::TimedOut(timeout)),
    }
}

/// A client error on one line, without the debug output that its own text carries along.
pub fn one_line(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => match status.message.as_str() {
            "" => format!("status {} {}", status.code, status.reason),
            message => printable(message, MESSAGE_MAX),
        },
        other => error_chain(other),
    }
}
