//! The check before ImageWarms of an existing Revision are recreated that their owner is to stay:
//! garbage collection of a deleted Configuration deletes its ImageWarms one by one, and its
//! Revision perhaps last.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Client;

use crate::kubernetes::live::{self, Presence};
use imagewarm_core::api::knative::configuration_owner;
use imagewarm_core::plan::Repair;
use imagewarm_core::plan::diff::Creation;

/// Namespace, and name and uid of a Configuration in it.
type Owner = (String, String, String);

/// Separates the creations that a terminating or deleted Configuration would own: returns the
/// others and these. Reads `concurrency` Configurations at a time.
pub(super) async fn without_terminating_owners(
    client: &Client,
    planned: Vec<Creation>,
    concurrency: usize,
) -> (Vec<Creation>, Vec<Creation>) {
    let owners: BTreeSet<Owner> = planned.iter().filter_map(owner).collect();
    let terminating: BTreeMap<Owner, bool> = futures::stream::iter(owners)
        .map(async |owner| {
            let terminating = is_terminating(client, &owner).await;
            (owner, terminating)
        })
        .buffer_unordered(concurrency)
        .collect()
        .await;
    let is_terminating =
        |one: &Creation| owner(one).is_some_and(|owner| terminating.get(&owner) == Some(&true));
    let (orphans, owned): (Vec<_>, Vec<_>) = planned.into_iter().partition(is_terminating);
    (owned, orphans)
}

/// The owner to check. Only an ImageWarm that is missing may have been deleted with its owner.
fn owner(creation: &Creation) -> Option<Owner> {
    let metadata = &creation.object.metadata;
    let OwnerReference { name, uid, .. } = configuration_owner(metadata)?;
    (creation.repair == Repair::Missing)
        .then(|| (metadata.namespace.clone().unwrap_or_default(), name.clone(), uid.clone()))
}

/// An error counts as "not terminating": as far as the caches show, the image is demanded.
async fn is_terminating(client: &Client, (namespace, name, uid): &Owner) -> bool {
    match live::find_configuration(client, namespace, name).await {
        Ok(Presence::Present(live)) => {
            live.uid.as_ref() != Some(uid) || live.deletion_timestamp.is_some()
        }
        Ok(Presence::Absent | Presence::TypeAbsent) => true,
        Err(error) => {
            tracing::warn!(
                namespace,
                configuration = name,
                %error,
                "cannot read a Configuration; its ImageWarms are recreated all the same"
            );
            false
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use kube::client::Body;
    use serde_json::json;

    use super::*;
    use imagewarm_core::demand::revision::demand;
    use imagewarm_core::plan::fan_out::{Origin, image_warm};
    use imagewarm_core::policy::Policy;
    use imagewarm_core::sample::{reference, revision};

    /// An API server that has these Configurations: name, uid, whether it is terminating.
    fn client(live: &'static [(&str, &str, bool)]) -> Client {
        Client::new(
            tower::service_fn(move |request: http::Request<Body>| async move {
                let name = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
                let found = live.iter().find(|(known, ..)| *known == name);
                let answer = match found {
                    Some((_, "broken", _)) => return Err("no connection"),
                    Some((name, uid, terminating)) => json!({
                        "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                        "metadata": {"name": name, "uid": uid,
                            "deletionTimestamp": terminating.then_some("2026-11-23T10:00:00Z")},
                    }),
                    None => json!({"kind": "Status", "status": "Failure", "code": 404,
                        "reason": "NotFound", "message": "no", "details": {"name": name}}),
                };
                let code = if found.is_some() { 200 } else { 404 };
                let body = Body::from(answer.to_string().into_bytes());
                Ok(http::Response::builder().status(code).body(body).unwrap())
            }),
            "default",
        )
    }

    fn creation(owner: &str, repair: Repair) -> Creation {
        let mut demanded = revision("r-1", 0, &["app:v1"]);
        let owners = demanded.metadata.owner_references.as_mut().unwrap();
        (owners[0].name, owners[0].uid) = (owner.to_owned(), format!("uid-{owner}"));
        let demand = demand(&demanded, false, &Policy::default());
        let origin = Origin::of_revision(&demanded);
        Creation { object: image_warm(&origin, &demand, &reference("app:v1"), "a"), repair }
    }

    #[tokio::test]
    async fn only_image_warms_of_a_live_configuration_are_recreated() {
        let client = client(&[
            ("alive", "uid-alive", false),
            ("terminating", "uid-terminating", true),
            ("another", "uid-of-a-newer-one", false),
            ("unreadable", "broken", false),
        ]);
        let mut planned: Vec<Creation> = ["alive", "terminating", "another", "unreadable", "gone"]
            .map(|owner| creation(owner, Repair::Missing))
            .into();
        planned.push(creation("gone", Repair::NewNode));
        let (owned, orphans) = without_terminating_owners(&client, planned, 2).await;
        let names = |all: &[Creation]| {
            let owner =
                |one: &Creation| configuration_owner(&one.object.metadata).unwrap().name.clone();
            all.iter().map(owner).collect::<Vec<_>>()
        };
        assert_eq!(names(&owned), ["alive", "unreadable", "gone"]);
        assert_eq!(names(&orphans), ["terminating", "another", "gone"]);
    }
}
