//! Whether this replica leads, asked before each write.

use tokio::sync::watch;

use crate::kubernetes::leadership::Leadership;

/// Which replica leads may change at any moment; each write asks.
#[derive(Clone)]
pub(super) struct StillLeading(pub(super) watch::Receiver<Leadership>);

impl StillLeading {
    pub(super) fn yes(&self) -> bool {
        self.0.borrow().leading
    }
}
