//! The logs that an operator would read.

use std::sync::Arc;

use super::system::System;

#[derive(Clone)]
pub struct Logs {
    system: Arc<System>,
}

impl Logs {
    pub fn new(system: &Arc<System>) -> Logs {
        Logs { system: system.clone() }
    }

    /// How often this text stands in the log of all processes of that name.
    pub fn count(&self, name: &str, text: &str) -> usize {
        let processes = self.system.cluster.imagewarm_processes();
        // They share one file.
        let log = processes.iter().find(|process| process.name() == name).map(|one| one.log());
        log.unwrap_or_default().matches(text).count()
    }

    /// How many lines of all controllers and warmers contain each of these texts.
    pub fn lines_with(&self, texts: &[&str]) -> usize {
        let processes = self.system.cluster.imagewarm_processes();
        // Processes of one name share one file.
        let logs = processes.iter().map(|process| (process.name().to_owned(), process));
        let logs: std::collections::BTreeMap<_, _> = logs.collect();
        let matches = |line: &&str| texts.iter().all(|text| line.contains(text));
        logs.values().map(|process| process.log().lines().filter(matches).count()).sum()
    }
}
