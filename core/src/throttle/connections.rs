//! Which connections a server keeps. A connection is unproven until its peer has shown that it may
//! call, and anybody can open those: when there are too many, the oldest of the peer with the most
//! is closed. So a crowd shuts out nobody but itself.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

/// Identifies a connection for the lifetime of this process.
pub type ConnectionId = u64;

/// How many connections may be open.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Those that are not proven; at least 1.
    pub unproven: usize,
    /// Those that are.
    pub proven: usize,
}

/// One party on the network: an IPv4 address, or a /64 of IPv6, which one party has for itself.
type Peer = [u8; 8];

fn peer_of(address: IpAddr) -> Peer {
    let octets = match address.to_canonical() {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    let begin = if address.to_canonical().is_ipv4() { 8 } else { 0 };
    let mut peer = [0; 8];
    peer.copy_from_slice(&octets[begin..begin + 8]);
    peer
}

/// The open connections.
#[derive(Debug)]
pub struct Connections {
    limits: Limits,
    last: ConnectionId,
    /// By peer, oldest first.
    unproven: HashMap<Peer, BTreeSet<ConnectionId>>,
    peers: HashMap<ConnectionId, Peer>,
    proven: usize,
}

impl Connections {
    /// None is open.
    pub fn new(limits: Limits) -> Self {
        Connections { limits, last: 0, unproven: HashMap::new(), peers: HashMap::new(), proven: 0 }
    }

    /// A connection was accepted. Returns its id, and the connection to be closed for it.
    pub fn open(&mut self, address: IpAddr) -> (ConnectionId, Option<ConnectionId>) {
        let full = self.peers.len() >= self.limits.unproven.max(1);
        let closes = if full { self.oldest_of_largest() } else { None };
        if let Some(id) = closes {
            self.remove(id);
        }
        self.last += 1;
        let peer = peer_of(address);
        self.unproven.entry(peer).or_default().insert(self.last);
        self.peers.insert(self.last, peer);
        (self.last, closes)
    }

    fn oldest_of_largest(&self) -> Option<ConnectionId> {
        let oldest = |all: &BTreeSet<ConnectionId>| all.first().copied();
        let size_and_age =
            |all: &&BTreeSet<ConnectionId>| (all.len(), std::cmp::Reverse(oldest(all)));
        self.unproven.values().max_by_key(size_and_age).and_then(oldest)
    }

    fn remove(&mut self, id: ConnectionId) -> bool {
        let Some(peer) = self.peers.remove(&id) else { return false };
        if let Some(all) = self.unproven.get_mut(&peer) {
            all.remove(&id);
            if all.is_empty() {
                self.unproven.remove(&peer);
            }
        }
        true
    }

    /// The connection is proven. False when it is to be closed: it no longer counts, or there are
    /// too many.
    pub fn prove(&mut self, id: ConnectionId) -> bool {
        if self.proven >= self.limits.proven {
            return false;
        }
        let proven = self.remove(id);
        self.proven += usize::from(proven);
        proven
    }

    /// The connection was closed.
    pub fn close(&mut self, id: ConnectionId, proven: bool) {
        if proven {
            self.proven = self.proven.saturating_sub(1);
        } else {
            self.remove(id);
        }
    }

    /// Number of unproven and of proven connections.
    pub fn counts(&self) -> (usize, usize) {
        (self.peers.len(), self.proven)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn connections(unproven: usize, proven: usize) -> Connections {
        Connections::new(Limits { unproven, proven })
    }

    #[test]
    fn a_crowd_displaces_itself_only() {
        let mut all = connections(10, 5);
        let (api_server, none) = all.open(ip("10.0.0.1"));
        assert_eq!(none, None);
        let mut crowd: Vec<_> = (0..9).map(|_| all.open(ip("10.9.9.9")).0).collect();
        for _ in 0..100 {
            let (id, closed) = all.open(ip("10.9.9.9"));
            assert_eq!(closed, Some(crowd.remove(0)), "its own oldest");
            crowd.push(id);
        }
        let (other, closed) = all.open(ip("10.0.0.2"));
        assert_eq!(closed, Some(crowd.remove(0)));
        assert!(all.prove(api_server) && all.prove(other));
        assert_eq!(all.counts(), (8, 2));
    }

    #[test]
    fn a_peer_is_an_address_or_a_network() {
        let mut all = connections(3, 0);
        let first = all.open(ip("2001:db8:1:2::1")).0;
        all.open(ip("2001:db8:9:9::1"));
        all.open(ip("2001:db8:1:2:ffff::2"));
        assert_eq!(all.open(ip("10.0.0.1")).1, Some(first), "two of one /64");
        let mut all = connections(3, 0);
        all.open(ip("10.0.0.1"));
        let second = all.open(ip("10.0.0.2")).0;
        all.open(ip("::ffff:10.0.0.2"));
        assert_eq!(all.open(ip("10.0.0.3")).1, Some(second), "an IPv4 address in both forms");
    }

    #[test]
    fn proven_connections_are_limited_and_never_displaced() {
        let mut all = connections(2, 1);
        let (first, second) = (all.open(ip("10.0.0.1")).0, all.open(ip("10.0.0.1")).0);
        assert!(all.prove(first) && !all.prove(second));
        assert_eq!(all.open(ip("10.0.0.1")).1, None);
        assert_eq!(all.open(ip("10.0.0.1")).1, Some(second));
        assert!(!all.prove(second), "it was displaced");
        all.close(first, true);
        let (next, _) = all.open(ip("10.0.0.2"));
        assert!(all.prove(next));
    }

    proptest! {
        /// Whatever is opened, proven and closed: the limits hold, and nothing is kept of what was
        /// closed.
        #[test]
        fn limits_hold(steps in prop::collection::vec((0u8..3, 0u8..4, any::<prop::sample::Index>()), 1..200)) {
            let mut all = connections(4, 3);
            let mut open: Vec<(ConnectionId, bool)> = vec![];
            for (step, peer, which) in steps {
                match step {
                    0 => {
                        let (id, closed) = all.open(IpAddr::from([10, 0, 0, peer]));
                        open.retain(|(id, _)| Some(*id) != closed);
                        open.push((id, false));
                    }
                    1 if !open.is_empty() => {
                        let one = which.index(open.len());
                        if !open[one].1 {
                            open[one].1 = all.prove(open[one].0);
                        }
                    }
                    _ if !open.is_empty() => {
                        let (id, proven) = open.swap_remove(which.index(open.len()));
                        all.close(id, proven);
                    }
                    _ => {}
                }
                let proven = open.iter().filter(|(_, proven)| *proven).count();
                prop_assert_eq!(all.counts(), (open.len() - proven, proven));
                prop_assert!(open.len() - proven <= 4 && proven <= 3);
                prop_assert_eq!(all.unproven.values().map(BTreeSet::len).sum::<usize>(), open.len() - proven);
            }
        }
    }
}
