//! Before the leader makes ImageWarms of an old Revision again, it asks whether their owner is to
//! stay: a deleted Configuration takes its ImageWarms along one by one, and may take its Revision
//! last.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Client;

use crate::kubernetes::writes::{self, Presence};
use imagewarm_core::api::knative::configuration_owner;
use imagewarm_core::plan::Repair;
use imagewarm_core::plan::diff::Creation;

/// Namespace, and name and uid of a Configuration in it.
type Owner = (String, String, String);

/// Takes out what would belong to a Configuration that is going or gone; looks at so many of them
/// at the same time.
pub(super) async fn without_terminating_owners(
    client: &Client,
    wanted: Vec<Creation>,
    concurrency: usize,
) -> (Vec<Creation>, Vec<Creation>) {
    let owners: BTreeSet<Owner> = wanted.iter().filter_map(owner).collect();
    let going: BTreeMap<Owner, bool> = futures::stream::iter(owners)
        .map(async |owner| {
            let going = is_terminating(client, &owner).await;
            (owner, going)
        })
        .buffer_unordered(concurrency)
        .collect()
        .await;
    let is_terminating =
        |one: &Creation| owner(one).is_some_and(|owner| going.get(&owner) == Some(&true));
    let (going, staying): (Vec<_>, Vec<_>) = wanted.into_iter().partition(is_terminating);
    (staying, going)
}

/// What is made for the first time is made for somebody who has just asked.
fn owner(creation: &Creation) -> Option<Owner> {
    let metadata = &creation.object.metadata;
    let OwnerReference { name, uid, .. } = configuration_owner(metadata)?;
    (creation.repair == Repair::Missing)
        .then(|| (metadata.namespace.clone().unwrap_or_default(), name.clone(), uid.clone()))
}

/// Without an answer nothing speaks against it: the image is wanted for all that is known.
async fn is_terminating(client: &Client, (namespace, name, uid): &Owner) -> bool {
    match writes::find_configuration(client, namespace, name).await {
        Ok(Presence::Present(live)) => {
            live.uid.as_ref() != Some(uid) || live.deletion_timestamp.is_some()
        }
        Ok(Presence::Absent | Presence::TypeAbsent) => true,
        Err(error) => {
            tracing::warn!(
                namespace,
                configuration = name,
                %error,
                "cannot ask whether a Configuration is there; what it owns is made all the same"
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

    /// An API server that has these Configurations: name, uid, whether it is being deleted.
    fn client(live: &'static [(&str, &str, bool)]) -> Client {
        Client::new(
            tower::service_fn(move |request: http::Request<Body>| async move {
                let name = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
                let found = live.iter().find(|(known, ..)| *known == name);
                let answer = match found {
                    Some((_, "broken", _)) => return Err("no connection"),
                    Some((name, uid, going)) => json!({
                        "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                        "metadata": {"name": name, "uid": uid,
                            "deletionTimestamp": going.then_some("2026-11-23T10:00:00Z")},
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
    async fn only_what_a_living_configuration_owns_is_made_again() {
        let client = client(&[
            ("alive", "uid-alive", false),
            ("going", "uid-going", true),
            ("another", "uid-of-a-newer-one", false),
            ("unasked", "broken", false),
        ]);
        let mut wanted: Vec<Creation> = ["alive", "going", "another", "unasked", "gone"]
            .map(|owner| creation(owner, Repair::Missing))
            .into();
        wanted.push(creation("gone", Repair::NewNode));
        let (staying, going) = without_terminating_owners(&client, wanted, 2).await;
        let names = |all: &[Creation]| {
            let owner =
                |one: &Creation| configuration_owner(&one.object.metadata).unwrap().name.clone();
            all.iter().map(owner).collect::<Vec<_>>()
        };
        assert_eq!(names(&staying), ["alive", "unasked", "gone"]);
        assert_eq!(names(&going), ["going", "another", "gone"]);
    }
}
