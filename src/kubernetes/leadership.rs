//! Who leads: found by the election in `controller/`, asked by everything that writes or serves
//! only on the leader.

/// Who leads, as far as this replica knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// Whether this replica leads.
    pub leading: bool,
    /// `host:port` of the leader's dispatch server, while one is known.
    pub leader_address: Option<String>,
}
