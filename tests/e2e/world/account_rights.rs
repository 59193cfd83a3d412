//! What ServiceAccounts may do, as the API server's authorizer answers.

use anyhow::Result;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;
use xtask::cluster::NAMESPACE;

use super::World;

impl World {
    /// Whether this ServiceAccount of our namespace may do this.
    pub async fn account_may(
        &self,
        account: &str,
        verb: &str,
        group: &str,
        resource: &str,
    ) -> Result<bool> {
        self.account_may_with(account, verb, group, resource, "").await
    }

    /// The same with the object of this name.
    pub async fn account_may_with(
        &self,
        account: &str,
        verb: &str,
        group: &str,
        resource: &str,
        name: &str,
    ) -> Result<bool> {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let of_namespace = format!("system:serviceaccounts:{NAMESPACE}");
        let body = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": format!("system:serviceaccount:{NAMESPACE}:{account}"),
                "groups": ["system:serviceaccounts", of_namespace, "system:authenticated"],
                "resourceAttributes": {
                    "verb": verb, "group": group, "resource": resource,
                    "subresource": subresource, "namespace": NAMESPACE, "name": name,
                },
            },
        });
        let reviews: Api<SubjectAccessReview> = Api::all(self.client());
        let review = reviews.create(&PostParams::default(), &serde_json::from_value(body)?).await?;
        Ok(review.status.is_some_and(|status| status.allowed))
    }
}
