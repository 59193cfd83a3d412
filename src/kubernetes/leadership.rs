//! The leadership state: published by the election (`leader::election`), checked by everything that
//! writes or serves only on the leader.

use tokio::sync::watch;
use tokio::sync::watch::error::RecvError;

/// The current leader, as far as this replica knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// Whether this replica leads.
    pub leading: bool,
    /// `host:port` of the leader's dispatch server, if known.
    pub leader_address: Option<String>,
}

/// Follows whether this replica leads. A leader whose address changes leads on.
pub(crate) struct Leading {
    receiver: watch::Receiver<Leadership>,
    now: bool,
}

impl Leading {
    /// Begins as a replica that does not lead.
    pub(crate) fn new(receiver: watch::Receiver<Leadership>) -> Self {
        Leading { receiver, now: false }
    }

    /// Waits until this replica begins to lead, or ceases to. Returns whether it leads. Fails when the
    /// election has stopped.
    pub(crate) async fn changed(&mut self) -> Result<bool, RecvError> {
        let was = self.now;
        self.now = self.receiver.wait_for(|known| known.leading != was).await?.leading;
        Ok(self.now)
    }
}
