//! Writes the statuses of Knative's Images that the plan found to be behind: for one Image at most
//! one write a second, however many nodes report.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::Client;

use super::ControllerMetrics;
use super::still_leading::StillLeading;
use crate::kubernetes::writes::{self, ApplyError};
use imagewarm_core::plan::rollup::ImageUpdate;

/// Between two writes of one Image.
const PAUSE: Duration = Duration::from_secs(1);
/// What was refused will be refused again, until somebody changes something.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// Writes statuses, and remembers when each Image may be written again.
pub(super) struct ImageStatuses {
    client: Client,
    concurrency: usize,
    still: StillLeading,
    metrics: ControllerMetrics,
    /// By uid.
    not_before: HashMap<String, Instant>,
}

impl ImageStatuses {
    pub(super) fn new(
        client: Client,
        concurrency: u16,
        still: StillLeading,
        metrics: ControllerMetrics,
    ) -> Self {
        let not_before = HashMap::new();
        ImageStatuses { client, concurrency: concurrency.into(), still, metrics, not_before }
    }

    /// Writes what may be written now; says when to look again for the rest.
    pub(super) async fn write(&mut self, updates: Vec<ImageUpdate>) -> Option<Instant> {
        let (due, mut next) = self.due(updates, Instant::now());
        let (client, still) = (&self.client, &self.still);
        let results: Vec<_> = futures::stream::iter(due)
            .map(|update| async move {
                if !still.yes() {
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
            let pause = match &result {
                Ok(()) => {
                    self.metrics.image_written();
                    PAUSE
                }
                // Changed or deleted since: the watch will show it.
                Err(ApplyError::Conflict | ApplyError::NotFound) => PAUSE,
                Err(error) => {
                    self.metrics.write_failed();
                    note(&update, error);
                    match error {
                        ApplyError::Retryable(_) => PAUSE,
                        _ => REFUSED_PAUSE,
                    }
                }
            };
            let until = Instant::now() + pause;
            if result.is_err() {
                next = Some(next.map_or(until, |at| at.min(until)));
            }
            self.not_before.insert(uid(&update), until);
        }
        next
    }

    /// Those that may be written at `now`, and when the next of the others may.
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

fn note(update: &ImageUpdate, error: &ApplyError) {
    let metadata = &update.image.metadata;
    tracing::warn!(
        namespace = metadata.namespace.as_deref().unwrap_or_default(),
        name = metadata.name.as_deref().unwrap_or_default(),
        reason = error.reason(),
        %error,
        "cannot write the status of an Image"
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
        let still = StillLeading(tokio::sync::watch::channel(leadership).1);
        let mut statuses = ImageStatuses::new(Client::new(service, "default"), 1, still, metrics);
        let update = |uid: &str| {
            let mut image = KnativeImage::default();
            image.metadata.uid = Some(uid.into());
            ImageUpdate { image: Arc::new(image), status: Default::default() }
        };
        let began = Instant::now();
        let again = statuses.write(vec![update("a")]).await;
        assert!(again.is_some_and(|at| at >= began + PAUSE), "{again:?}");
        let now = Instant::now();
        let (due, next) = statuses.due(vec![update("a"), update("b")], now);
        assert_eq!(due, [update("b")]);
        assert!(next.is_some_and(|at| at > now && at <= now + PAUSE));
        let (due, next) = statuses.due(vec![update("a")], now + PAUSE);
        assert_eq!((due.len(), next), (1, None));
    }
}
