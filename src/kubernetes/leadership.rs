//! The leadership state: published by the election (`leader::election`), checked by everything that
//! writes or serves only on the leader.

/// The current leader, as far as this replica knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// Whether this replica leads.
    pub leading: bool,
    /// `host:port` of the leader's dispatch server, if known.
    pub leader_address: Option<String>,
}
