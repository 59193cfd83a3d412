//! The streams of the warmers: one for each node, the newest counts.

use std::cmp::Reverse;

use super::*;

impl Index {
    /// Nodes with an open stream.
    pub fn connected(&self) -> BTreeSet<NodeName> {
        self.sessions.values().cloned().collect()
    }

    /// The node of an open stream.
    pub fn node_of(&self, session: SessionId) -> Option<&NodeName> {
        self.sessions.get(&session)
    }

    /// Registers the stream of the warmer on node `name`, after its `Hello`.
    pub fn open(&mut self, session: SessionId, name: &NodeName, hello: &Hello, now: i64) {
        let node = self.node(name, now);
        if let Some((older, epoch)) = node.session {
            if epoch > hello.epoch {
                self.effects.push(Effect::Close(session, StreamEnd::Replaced));
                return;
            }
            self.sessions.remove(&older);
            self.effects.push(Effect::Close(older, StreamEnd::Replaced));
        }
        let node = self.node(name, now);
        node.session = Some((session, hello.epoch));
        node.runtime = NodeRuntime::from(hello);
        let uids: Vec<Uid> = node.assignments.iter().cloned().collect();
        self.sessions.insert(session, name.clone());
        let welcome = Welcome {
            protocol_version: PROTOCOL_VERSION,
            controller_version: env!("CARGO_PKG_VERSION").into(),
            node_name: name.to_string(),
            ..Welcome::default()
        };
        self.effects.push(Effect::Send(session, ToWarmer::Welcome(welcome)));
        // No warmer runs more: what a node says beyond that takes no places from others.
        let pulling = hello.pulling.iter().take(RUNNING_MAX).map(String::as_str);
        let pulling: HashSet<&str> = pulling.collect();
        for uid in &uids {
            if pulling.contains(&**uid) {
                if let Some(assignment) = self.assignments.get_mut(uid) {
                    assignment.pull().running_since.get_or_insert(now);
                    self.budgets.hold(assignment.permit(uid), now);
                    let key = assignment.key();
                    self.release_all(&key, now);
                }
            } else {
                self.end_pull(uid, now);
            }
        }
        // A warmer begins with the first that it is sent.
        let mut assigns: Vec<Assign> =
            uids.iter().filter_map(|uid| self.assign(uid, now)).collect();
        assigns.sort_by_key(|one| {
            (Reverse(one.pod_waits), Reverse(one.recent_starts), Reverse(one.priority))
        });
        let assigns = assigns.into_iter().map(|one| Effect::Send(session, ToWarmer::Assign(one)));
        self.effects.extend(assigns);
        self.effects.push(Effect::Send(session, ToWarmer::Synced(Synced {})));
    }

    /// Assignments of a node that has left the cluster: nothing more is to be written for them. Its stream is
    /// closed by the caller.
    pub fn node_left(&mut self, name: &str) -> Vec<Uid> {
        let Some(node) = self.nodes.get_mut(name) else { return Vec::new() };
        node.absence_unreported = false;
        node.assignments.iter().cloned().collect()
    }

    /// Removes a closed stream. What the node holds or pulls does not change.
    pub fn close(&mut self, session: SessionId, now: i64) {
        let Some(name) = self.sessions.remove(&session) else { return };
        let Some(node) = self.nodes.get_mut(&name) else { return };
        if node.session.is_none_or(|(current, _)| current != session) {
            return;
        }
        (node.session, node.absence_unreported) = (None, true);
        node.missing_at = now.saturating_add(self.waiting_after_ms);
        let uids: Vec<Uid> = node.assignments.iter().cloned().collect();
        if uids.is_empty() {
            self.nodes.remove(&name);
        }
        // Running pulls keep their permits until the warmer reconnects or its grace period ends.
        for uid in uids {
            if self.budgets.is_waiting(&uid) || self.canaries.is_waiting(&uid) {
                self.end_pull(&uid, now);
            }
        }
    }
}
