//! Objects as JSON, by kind: what is sent is what a person writes, and nothing is lost of what comes
//! back.

use anyhow::Result;
use http::{Method, Request};
use kube::Client;
use serde_json::{Value, json};

/// The label of all that Knative makes for a Revision.
pub const REVISION: &str = "serving.knative.dev/revision";

/// A kind of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it all
pub enum Kind {
    Configuration,
    Deployment,
    Image,
    /// Knative's own.
    Ingress,
    Pod,
    PodAutoscaler,
    Revision,
    Service,
}

impl Kind {
    /// Path of all objects in a namespace.
    fn path(self, namespace: &str) -> String {
        let (group, plural) = match self {
            Kind::Configuration => ("apis/serving.knative.dev/v1", "configurations"),
            Kind::Deployment => ("apis/apps/v1", "deployments"),
            Kind::Image => ("apis/caching.internal.knative.dev/v1alpha1", "images"),
            Kind::Ingress => ("apis/networking.internal.knative.dev/v1alpha1", "ingresses"),
            Kind::Pod => ("api/v1", "pods"),
            Kind::PodAutoscaler => {
                ("apis/autoscaling.internal.knative.dev/v1alpha1", "podautoscalers")
            }
            Kind::Revision => ("apis/serving.knative.dev/v1", "revisions"),
            Kind::Service => ("apis/serving.knative.dev/v1", "services"),
        };
        format!("/{group}/namespaces/{namespace}/{plural}")
    }
}

pub async fn create(client: &Client, kind: Kind, namespace: &str, body: &Value) -> Result<Value> {
    let request = Request::post(kind.path(namespace)).header("content-type", "application/json");
    Ok(client.request(request.body(serde_json::to_vec(body)?)?).await?)
}

/// Creates what belongs to an object, such as a Pod's binding.
pub async fn create_part(
    client: &Client,
    kind: Kind,
    (namespace, name, part): (&str, &str, &str),
    body: &Value,
) -> Result<()> {
    let path = format!("{}/{name}/{part}", kind.path(namespace));
    let request = Request::post(path).header("content-type", "application/json");
    client.request::<Value>(request.body(serde_json::to_vec(body)?)?).await?;
    Ok(())
}

/// Merges into an object, or into its part such as `status`.
pub async fn merge(
    client: &Client,
    kind: Kind,
    (namespace, name, part): (&str, &str, &str),
    body: &Value,
) -> Result<Value> {
    let path = format!("{}/{name}/{part}", kind.path(namespace));
    let request = Request::patch(path.trim_end_matches('/'))
        .header("content-type", "application/merge-patch+json");
    Ok(client.request(request.body(serde_json::to_vec(body)?)?).await?)
}

pub async fn get(client: &Client, kind: Kind, namespace: &str, name: &str) -> Result<Value> {
    let path = format!("{}/{name}", kind.path(namespace));
    Ok(client.request(Request::get(path).body(vec![])?).await?)
}

pub async fn list(client: &Client, kind: Kind, namespace: &str) -> Result<Vec<Value>> {
    let path = kind.path(namespace);
    let mut list: Value = client.request(Request::get(path).body(vec![])?).await?;
    match list["items"].take() {
        Value::Array(items) => Ok(items),
        _ => Ok(vec![]),
    }
}

pub async fn delete(client: &Client, kind: Kind, namespace: &str, name: &str) -> Result<()> {
    let path = format!("{}/{name}", kind.path(namespace));
    let request = Request::builder().method(Method::DELETE).uri(path);
    client.request::<Value>(request.body(vec![])?).await?;
    Ok(())
}

/// Creates an object of Knative's with this spec in the namespace `default`; inside, why the API
/// server refused it.
pub async fn try_create(
    client: &Client,
    kind: Kind,
    name: &str,
    spec: &Value,
    dry_run: bool,
) -> Result<Result<Value, String>> {
    let version = match kind {
        Kind::Image => "caching.internal.knative.dev/v1alpha1",
        _ => "serving.knative.dev/v1",
    };
    let body = json!({
        "apiVersion": version, "kind": format!("{kind:?}"), "metadata": {"name": name},
        "spec": spec,
    });
    let dry_run = if dry_run { "?dryRun=All" } else { "" };
    let path = format!("{}{dry_run}", kind.path("default"));
    let request = Request::post(path).header("content-type", "application/json");
    verdict(client.request(request.body(serde_json::to_vec(&body)?)?).await)
}

/// Merges into the status of an object in the namespace `default`, as a dry run.
pub async fn try_merge_status(
    client: &Client,
    kind: Kind,
    name: &str,
    status: &Value,
) -> Result<Result<Value, String>> {
    let path = format!("{}/{name}/status?dryRun=All", kind.path("default"));
    let request = Request::patch(path).header("content-type", "application/merge-patch+json");
    let body = serde_json::to_vec(&json!({"status": status}))?;
    verdict(client.request(request.body(body)?).await)
}

/// An object that is refused, apart from a request that failed otherwise.
fn verdict(answer: kube::Result<Value>) -> Result<Result<Value, String>> {
    match answer {
        Ok(object) => Ok(Ok(object)),
        Err(kube::Error::Api(status)) if [400, 422].contains(&status.code) => {
            Ok(Err(status.message))
        }
        Err(error) => Err(error.into()),
    }
}
