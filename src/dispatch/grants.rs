//! How many pulls may run against one registry at the same time, cluster-wide, and who is next.
//! Pure.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};

type Turn = (Reverse<i64>, u64, String);

#[derive(Debug, Default)]
struct Registry {
    in_flight: HashSet<String>,
    waiting: BTreeSet<Turn>,
}

#[derive(Debug)]
enum Place {
    InFlight,
    Waiting(Turn),
}

/// Pulls that run, and pulls that wait for their registry.
#[derive(Debug)]
pub struct Grants {
    limit: usize,
    registries: HashMap<String, Registry>,
    places: HashMap<String, (String, Place)>,
    arrivals: u64,
}

impl Grants {
    /// At most `limit` pulls for each registry.
    pub fn new(limit: usize) -> Self {
        Grants { limit, registries: HashMap::new(), places: HashMap::new(), arrivals: 0 }
    }

    /// Asks for a place for the order `uid`; true when it may start now. Otherwise it waits, the
    /// greatest `priority` first, then in order of arrival.
    pub fn request(&mut self, uid: &str, registry: &str, priority: i64) -> bool {
        match self.places.get(uid) {
            Some((_, Place::InFlight)) => return true,
            Some((_, Place::Waiting(_))) => return false,
            None => {}
        }
        let entry = self.registries.entry(registry.to_owned()).or_default();
        let place = if entry.in_flight.len() < self.limit {
            entry.in_flight.insert(uid.to_owned());
            Place::InFlight
        } else {
            self.arrivals += 1;
            let turn = (Reverse(priority), self.arrivals, uid.to_owned());
            entry.waiting.insert(turn.clone());
            Place::Waiting(turn)
        };
        let granted = matches!(place, Place::InFlight);
        self.places.insert(uid.to_owned(), (registry.to_owned(), place));
        granted
    }

    /// Counts a pull that runs already, even beyond the limit.
    pub fn hold(&mut self, uid: &str, registry: &str) {
        self.take_out(uid);
        self.registries.entry(registry.to_owned()).or_default().in_flight.insert(uid.to_owned());
        self.places.insert(uid.to_owned(), (registry.to_owned(), Place::InFlight));
    }

    /// Gives the place of `uid` up; returns those that may start in its stead.
    pub fn end(&mut self, uid: &str) -> Vec<String> {
        let Some(registry) = self.take_out(uid) else { return Vec::new() };
        let mut started = Vec::new();
        let Some(entry) = self.registries.get_mut(&registry) else { return started };
        while entry.in_flight.len() < self.limit
            && let Some((_, _, next)) = entry.waiting.pop_first()
        {
            entry.in_flight.insert(next.clone());
            self.places.insert(next.clone(), (registry.clone(), Place::InFlight));
            started.push(next);
        }
        if entry.in_flight.is_empty() && entry.waiting.is_empty() {
            self.registries.remove(&registry);
        }
        started
    }

    /// Whether `uid` may run now.
    pub fn is_in_flight(&self, uid: &str) -> bool {
        matches!(self.places.get(uid), Some((_, Place::InFlight)))
    }

    /// Whether `uid` waits for its turn.
    pub fn is_waiting(&self, uid: &str) -> bool {
        matches!(self.places.get(uid), Some((_, Place::Waiting(_))))
    }

    /// How many run, and how many wait.
    pub fn counts(&self) -> (usize, usize) {
        let running = self.registries.values().map(|registry| registry.in_flight.len()).sum();
        (running, self.places.len() - running)
    }

    fn take_out(&mut self, uid: &str) -> Option<String> {
        let (registry, place) = self.places.remove(uid)?;
        if let Some(entry) = self.registries.get_mut(&registry) {
            match place {
                Place::InFlight => {
                    entry.in_flight.remove(uid);
                }
                Place::Waiting(turn) => {
                    entry.waiting.remove(&turn);
                }
            }
        }
        Some(registry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_for_each_registry_and_the_newest_revision_goes_first() {
        let mut grants = Grants::new(1);
        assert!(grants.request("a", "one", 1));
        assert!(grants.request("a", "one", 1), "asked again");
        assert!(grants.request("b", "two", 1), "another registry");
        assert!(!grants.request("c", "one", 1));
        assert!(!grants.request("d", "one", 5));
        assert!(!grants.request("e", "one", 5));
        assert_eq!(grants.counts(), (2, 3));
        assert_eq!(grants.end("a"), ["d"]);
        assert_eq!(grants.end("d"), ["e"]);
        assert_eq!(grants.end("unknown"), Vec::<String>::new());
        assert_eq!(grants.end("c"), Vec::<String>::new(), "gave up waiting");
        assert_eq!(grants.end("e"), Vec::<String>::new());
        assert_eq!(grants.end("b"), Vec::<String>::new());
        assert!(grants.registries.is_empty() && grants.places.is_empty());
    }

    #[test]
    fn running_pulls_count_even_beyond_the_limit() {
        let mut grants = Grants::new(1);
        grants.hold("a", "one");
        grants.hold("b", "one");
        assert!(!grants.request("c", "one", 0));
        assert!(grants.end("a").is_empty());
        assert_eq!(grants.end("b"), ["c"]);
    }
}
