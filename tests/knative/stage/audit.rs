//! What the API server's audit log says: who asked for what, when the request arrived, and when it
//! was answered. No I/O.

use std::collections::BTreeSet;
use std::fmt;

use jiff::Timestamp;
use serde_json::Value;

/// One answered request.
#[derive(Clone, Debug)]
pub struct Audited {
    pub verb: String,
    pub resource: String,
    pub namespace: String,
    pub name: String,
    pub status: i64,
    pub received: Timestamp,
    pub answered: Timestamp,
    /// The mutating webhooks that were called, in this order, by the names of their configurations.
    pub webhooks: Vec<String>,
    /// Those that failed without consequence, by their own names.
    pub failed_open: Vec<String>,
}

impl Audited {
    /// None for what is no object.
    pub fn read(event: &Value) -> Option<Audited> {
        let object = event.get("objectRef")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let time = |value: &Value| value.as_str()?.parse().ok();
        let resource = match (text(&object["resource"]), text(&object["subresource"])) {
            (resource, part) if part.is_empty() => resource,
            (resource, part) => format!("{resource}/{part}"),
        };
        Some(Audited {
            verb: text(&event["verb"]),
            resource,
            namespace: text(&object["namespace"]),
            name: text(&object["name"]),
            status: event["responseStatus"]["code"].as_i64().unwrap_or_default(),
            received: time(&event["requestReceivedTimestamp"])?,
            answered: time(&event["stageTimestamp"])?,
            webhooks: webhooks(event, "mutation.webhook.admission.k8s.io/round_0_index_"),
            failed_open: webhooks(
                event,
                "failed-open.mutation.webhook.admission.k8s.io/round_0_index_",
            ),
        })
    }

    /// Whether it made an object of that resource in the namespace.
    pub fn created(&self, resource: &str, namespace: &str) -> bool {
        self.status == 201 && self.asked_for(resource, namespace)
    }

    /// Whether it was to make one, however it ended.
    fn asked_for(&self, resource: &str, namespace: &str) -> bool {
        self.verb == "create" && self.resource == resource && self.namespace == namespace
    }
}

/// What the annotations with this prefix and a number say, in the order of their numbers.
fn webhooks(event: &Value, prefix: &str) -> Vec<String> {
    let annotations = event["annotations"].as_object().into_iter().flatten();
    let mut found: Vec<(u32, String)> = annotations
        .filter_map(|(key, value)| {
            let number = key.strip_prefix(prefix)?.parse().ok()?;
            let value = value.as_str().unwrap_or_default();
            let called: Value = serde_json::from_str(value).unwrap_or_default();
            let name = called["configuration"].as_str().unwrap_or(value);
            Some((number, name.to_owned()))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, name)| name).collect()
}

/// When what came of one Revision was created.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// The Revision's request arrived.
    pub revision: Timestamp,
    /// The last ImageWarm was there.
    pub image_warms: Timestamp,
    /// Knative asked for the Deployment for the first time, which the test may have refused.
    pub deployment: Timestamp,
}

impl Order {
    /// None while one of them is missing.
    pub fn read(
        audited: &[Audited],
        namespace: &str,
        revision: &str,
        image_warms: &BTreeSet<String>,
        deployment: &str,
    ) -> Option<Order> {
        // The last time, in case that another of that name was there before.
        let created = |resource: &str, name: &str| {
            let is_it = |one: &&Audited| one.created(resource, namespace) && one.name == name;
            audited.iter().rfind(is_it)
        };
        let last: Option<Vec<Timestamp>> = image_warms
            .iter()
            .map(|name| created("imagewarms", name).map(|one| one.answered))
            .collect();
        let revision = created("revisions", revision)?.received;
        let asked_for = audited.iter().find(|one| {
            one.asked_for("deployments", namespace)
                && one.name == deployment
                && one.received > revision
        });
        let image_warms = last?.into_iter().max()?;
        Some(Order { revision, image_warms, deployment: asked_for?.received })
    }

    /// By how many milliseconds; negative where they came later.
    pub fn lead(&self) -> i64 {
        milliseconds(self.image_warms, self.deployment)
    }
}

impl fmt::Display for Order {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let warm = milliseconds(self.revision, self.image_warms);
        let deployed = milliseconds(self.revision, self.deployment);
        let lead = self.lead();
        write!(to, "{lead} (ImageWarms {warm} and Deployment {deployed} after the Revision)")
    }
}

fn milliseconds(from: Timestamp, to: Timestamp) -> i64 {
    to.as_millisecond() - from.as_millisecond()
}
