//! When the runtime is selected: at the first Welcome, when the kubelet reports another one than it was
//! selected for, and at times while it was not found.

use std::future::pending;
use std::path::PathBuf;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::runtime::{Again, EndpointError, Selection, select};

/// Intervals between selections while none was found.
const UNTIL_RESPONSE: Duration = Duration::from_secs(1);
const UNTIL_OTHER_REPORT: Duration = Duration::from_secs(20);

type Selected = Result<Selection, EndpointError>;

/// Selects among sockets.
pub(super) struct Selector {
    /// Empty where the runtime is given.
    sockets: Vec<PathBuf>,
    /// The uid of the warmer's own Pod.
    pod_uid: Option<String>,
    /// What the kubelet reported then.
    selected_for: Option<String>,
    running: Option<BoxFuture<'static, Selected>>,
    again: Option<(Instant, Again)>,
}

impl Selector {
    pub(super) fn new(sockets: Vec<PathBuf>, pod_uid: Option<String>) -> Self {
        Selector { sockets, pod_uid, selected_for: None, running: None, again: None }
    }

    /// Begins to select, if what the kubelet reports requires it.
    pub(super) fn begin(&mut self, kubelet: &str) -> bool {
        if self.sockets.is_empty() || self.selected_for.as_deref() == Some(kubelet) {
            return false;
        }
        self.selected_for = Some(kubelet.to_owned());
        self.select(kubelet.to_owned());
        true
    }

    fn select(&mut self, kubelet: String) {
        let (sockets, uid) = (self.sockets.clone(), self.pod_uid.clone());
        self.running =
            Some(Box::pin(async move { select(&sockets, &kubelet, uid.as_deref()).await }));
    }

    /// Whether a selection is running.
    pub(super) fn is_busy(&self) -> bool {
        self.running.is_some()
    }

    /// The end of the running selection. Cancel safe.
    pub(super) async fn selected(&mut self) -> Selected {
        let Some(running) = &mut self.running else { return pending().await };
        let selected = running.await;
        self.running = None;
        selected
    }

    /// A selection ended; one that found nothing is done again.
    pub(super) fn ended(&mut self, again: Option<Again>) {
        self.again = again.map(|again| {
            let after = match again {
                Again::Responds => UNTIL_RESPONSE,
                Again::OtherReport => UNTIL_OTHER_REPORT,
            };
            (Instant::now() + after, again)
        });
    }

    /// Selects again when it is time. True when another Welcome is needed for it.
    pub(super) fn again(&mut self) -> bool {
        let Some((_, again)) = self.again.take_if(|(at, _)| *at <= Instant::now()) else {
            return false;
        };
        match (again, &self.selected_for) {
            (Again::Responds, Some(kubelet)) => {
                self.select(kubelet.clone());
                false
            }
            _ => {
                self.selected_for = None;
                true
            }
        }
    }
}
