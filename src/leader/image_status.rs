//! Writes the statuses of Knative Images that the plan found to be outdated: at most one write a
//! second for an Image, however many nodes report.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::Client;

use super::ControllerMetrics;
use super::still_leading::StillLeading;
use crate::kubernetes::apply_error::ApplyError;
use crate::kubernetes::writes;
use imagewarm_core::plan::rollup::ImageUpdate;

/// Minimum interval between two writes of one Image.
const INTERVAL: Duration = Duration::from_secs(1);
/// The API server rejects a rejected status again until a user changes something.
const REFUSED_BACKOFF: Duration = Duration::from_secs(60);

/// Writes statuses, and keeps when each Image may be written again.
pub(super) struct ImageStatuses {
    client: Client,
    concurrency: usize,
    still_leading: StillLeading,
    metrics: ControllerMetrics,
    /// By uid.
    not_before: HashMap<String, Instant>,
}

impl ImageStatuses {
    pub(super) fn new(
        client: Client,
        concurrency: u16,
        still_leading: StillLeading,
        metrics: ControllerMetrics,
    ) -> Self {
        let not_before = HashMap::new();
        ImageStatuses {
            client,
            concurrency: concurrency.into(),
            still_leading,
            metrics,
            not_before,
        }
    }

    /// Writes the updates that are due. Returns when the next one is.
    pub(super) async fn write(&mut self, updates: Vec<ImageUpdate>) -> Option<Instant> {
        let (due, mut next) = self.due(updates, Instant::now());
        let (client, still_leading) = (&self.client, &self.still_leading);
        let results: Vec<_> = futures::stream::iter(due)
            .map(|update| async move {
                if !still_leading.get() {
                    return None;
                }
                let result =
                    writes::patch_image_status(client, &update.image, &update.status).await;
                Some((update, result))
            })
            .buffer_unordered(self.concurrency)
            .filter_map(std::future::ready)
            .collect()
            .await;
        for (update, result) in results {
            let delay = match &result {
                Ok(()) => {
                    self.metrics.image_written();
                    INTERVAL
                }
                // Changed or deleted since: the watch delivers the change.
                Err(ApplyError::Conflict | ApplyError::NotFound) => INTERVAL,
                Err(error) => {
                    self.metrics.write_failed();
                    log_failure(&update, error);
                    match error {
                        ApplyError::Retryable(_) => INTERVAL,
                        _ => REFUSED_BACKOFF,
                    }
                }
            };
            let until = Instant::now() + delay;
            if result.is_err() {
                next = Some(next.map_or(until, |at| at.min(until)));
            }
            self.not_before.insert(uid(&update), until);
        }
        next
    }

    /// The updates that are due at `now`, and when the next of the others is.
    fn due(
        &mut self,
        updates: Vec<ImageUpdate>,
        now: Instant,
    ) -> (Vec<ImageUpdate>, Option<Instant>) {
        self.not_before.retain(|_, at| *at > now);
        let mut next: Option<Instant> = None;
        let mut due = Vec::new();
        for update in updates {
            match self.not_before.get(&uid(&update)) {
                None => due.push(update),
                Some(at) => next = Some(next.map_or(*at, |known| known.min(*at))),
            }
        }
        (due, next)
    }
}

fn uid(update: &ImageUpdate) -> String {
    update.image.metadata.uid.clone().unwrap_or_default()
}

fn log_failure(update: &ImageUpdate, error: &ApplyError) {
    let metadata = &update.image.metadata;
    tracing::warn!(
        namespace = metadata.namespace.as_deref().unwrap_or_default(),
        name = metadata.name.as_deref().unwrap_or_default(),
        reason = error.reason(),
        %error,
        "cannot write Image status"
    );
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::kubernetes::leadership::Leadership;
    use imagewarm_core::api::KnativeImage;

    #[tokio::test]
    async fn one_image_is_written_once_a_second() {
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("no server"))
        });
        let metrics =
            ControllerMetrics::register(&mut prometheus_client::registry::Registry::default());
        let leadership = Leadership { leading: true, ..Leadership::default() };
        let still_leading = StillLeading(tokio::sync::watch::channel(leadership).1);
        let mut statuses =
            ImageStatuses::new(Client::new(service, "default"), 1, still_leading, metrics);
        let update = |uid: &str| {
            let mut image = KnativeImage::default();
            image.metadata.uid = Some(uid.into());
            ImageUpdate { image: Arc::new(image), status: Default::default() }
        };
        let began = Instant::now();
        let again = statuses.write(vec![update("a")]).await;
        assert!(again.is_some_and(|at| at >= began + INTERVAL), "{again:?}");
        let now = Instant::now();
        let (due, next) = statuses.due(vec![update("a"), update("b")], now);
        assert_eq!(due, [update("b")]);
        assert!(next.is_some_and(|at| at > now && at <= now + INTERVAL));
        let (due, next) = statuses.due(vec![update("a")], now + INTERVAL);
        assert_eq!((due.len(), next), (1, None));
    }
}
