//! The check before each write that this replica still leads.

use tokio::sync::watch;

use crate::kubernetes::leadership::Leadership;

/// Leadership may move at any time, so every write checks it.
#[derive(Clone)]
pub(super) struct StillLeading(pub(super) watch::Receiver<Leadership>);

impl StillLeading {
    pub(super) fn get(&self) -> bool {
        self.0.borrow().leading
    }
}
