//! What the tests create, change and ask for in the API server.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use imagewarm_core::api::{ImageWarm, KnativeImage, Reason, Revision};
use k8s_openapi::api::core::v1::{Event, Namespace, Node, Secret, ServiceAccount};
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use super::World;

/// A pushed image.
pub struct Pushed {
    /// `host:port/repository:tag`.
    pub tag: String,
    /// `sha256:…`.
    pub digest: String,
}

impl Pushed {
    /// `host:port/repository@sha256:…`.
    pub fn by_digest(&self) -> String {
        let repository = self.tag.rsplit_once(':').map_or("", |(repository, _)| repository);
        format!("{repository}@{}", self.digest)
    }
}

/// The spec of a Revision with one container for each image.
pub fn containers(images: &[&str]) -> Value {
    let containers: Vec<_> = images
        .iter()
        .enumerate()
        .map(|(at, image)| json!({"name": format!("container-{at}"), "image": image}))
        .collect();
    json!({"containers": containers})
}

fn configurations(client: Client, namespace: &str) -> Api<DynamicObject> {
    let kind = ApiResource {
        group: "serving.knative.dev".into(),
        version: "v1".into(),
        api_version: "serving.knative.dev/v1".into(),
        kind: "Configuration".into(),
        plural: "configurations".into(),
    };
    Api::namespaced_with(client, namespace, &kind)
}

impl World {
    /// A new namespace whose name begins with `prefix`.
    pub async fn namespace(&self, prefix: &str) -> Result<String> {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        let name = format!("{prefix}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let namespaces: Api<Namespace> = Api::all(self.client());
        let body = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        namespaces.create(&PostParams::default(), &body).await?;
        // The ServiceAccount `default` is there once the controller-manager went by.
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), &name);
        self.eventually("the namespace's default ServiceAccount exists", async || {
            Ok(accounts.get_opt("default").await?.map(drop))
        })
        .await?;
        Ok(name)
    }

    pub async fn label_namespace(&self, name: &str, key: &str, value: &str) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client());
        let body = json!({"metadata": {"labels": {key: value}}});
        namespaces.patch(name, &PatchParams::default(), &Patch::Merge(body)).await?;
        Ok(())
    }

    /// Creates a Revision as Knative's controller does: of the Configuration that its name tells
    /// (`hello-00001` is of `hello`), with the Configuration's labels and owner reference.
    pub async fn revision(&self, namespace: &str, name: &str, spec: Value) -> Result<Revision> {
        self.revision_with(namespace, name, json!({}), spec).await
    }

    pub async fn revision_with(
        &self,
        namespace: &str,
        name: &str,
        annotations: Value,
        spec: Value,
    ) -> Result<Revision> {
        self.post_revision(namespace, name, annotations, spec, false).await
    }

    pub async fn dry_run_revision(&self, namespace: &str, name: &str, spec: Value) -> Result<()> {
        self.post_revision(namespace, name, json!({}), spec, true).await.map(drop)
    }

    async fn post_revision(
        &self,
        namespace: &str,
        name: &str,
        annotations: Value,
        spec: Value,
        dry_run: bool,
    ) -> Result<Revision> {
        let configuration = name.rsplit_once('-').map_or(name, |(configuration, _)| configuration);
        let owner = self.configuration(namespace, configuration).await?;
        let uid = owner.metadata.uid.context("the Configuration has no uid")?;
        let body = json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": {
                "name": name, "annotations": annotations,
                "labels": {
                    "serving.knative.dev/configuration": configuration,
                    "serving.knative.dev/configurationUID": uid,
                    "serving.knative.dev/routingState": "active",
                },
                "ownerReferences": [{
                    "apiVersion": "serving.knative.dev/v1", "kind": "Configuration",
                    "name": configuration, "uid": uid, "controller": true,
                    "blockOwnerDeletion": true,
                }],
            },
            "spec": spec,
        });
        let kind = ApiResource::erase::<Revision>(&());
        let revisions: Api<DynamicObject> = Api::namespaced_with(self.client(), namespace, &kind);
        let params = PostParams { dry_run, ..PostParams::default() };
        let made = revisions.create(&params, &serde_json::from_value(body)?).await?;
        Ok(serde_json::from_value(serde_json::to_value(made)?)?)
    }

    async fn configuration(&self, namespace: &str, name: &str) -> Result<DynamicObject> {
        let configurations = configurations(self.client(), namespace);
        if let Some(found) = configurations.get_opt(name).await? {
            return Ok(found);
        }
        let body = json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Configuration",
            "metadata": {"name": name}, "spec": {},
        });
        Ok(configurations.create(&PostParams::default(), &serde_json::from_value(body)?).await?)
    }

    /// Writes the digests that Knative found into the Revision's status.
    pub async fn resolve(
        &self,
        namespace: &str,
        name: &str,
        digests: &[(&str, &str)],
    ) -> Result<()> {
        let statuses: Vec<_> = digests
            .iter()
            .map(|(container, image)| json!({"name": container, "imageDigest": image}))
            .collect();
        let revisions: Api<Revision> = Api::namespaced(self.client(), namespace);
        let body = json!({"status": {"containerStatuses": statuses}});
        revisions.patch_status(name, &PatchParams::default(), &Patch::Merge(body)).await?;
        Ok(())
    }

    pub async fn delete_image_warm(&self, warm: &ImageWarm) -> Result<()> {
        let namespace = warm.metadata.namespace.as_deref().unwrap_or_default();
        let warms: Api<ImageWarm> = Api::namespaced(self.client(), namespace);
        warms.delete(&warm.name_any(), &Default::default()).await?;
        Ok(())
    }

    pub async fn delete_configuration(&self, namespace: &str, name: &str) -> Result<()> {
        configurations(self.client(), namespace).delete(name, &Default::default()).await?;
        Ok(())
    }

    /// Keeps a Configuration, once deleted, from going; or lets it go.
    pub async fn hold_configuration(&self, namespace: &str, name: &str, hold: bool) -> Result<()> {
        let finalizers = hold.then_some(["tests.example/held"]);
        let body = json!({"metadata": {"finalizers": finalizers}});
        let configurations = configurations(self.client(), namespace);
        configurations.patch(name, &PatchParams::default(), &Patch::Merge(body)).await?;
        Ok(())
    }

    pub async fn delete_revision(&self, namespace: &str, name: &str) -> Result<()> {
        let revisions: Api<Revision> = Api::namespaced(self.client(), namespace);
        revisions.delete(name, &Default::default()).await?;
        Ok(())
    }

    /// An ImageWarm as a person makes one.
    pub async fn hand_made(
        &self,
        namespace: &str,
        name: &str,
        image: &str,
        node: &str,
        secrets: &[&str],
    ) -> Result<ImageWarm> {
        let secrets: Vec<_> = secrets.iter().map(|name| json!({"name": name})).collect();
        let body = json!({
            "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
            "metadata": {"name": name},
            "spec": {"image": image, "nodeName": node, "imagePullSecrets": secrets},
        });
        let warms: Api<ImageWarm> = Api::namespaced(self.client(), namespace);
        Ok(warms.create(&PostParams::default(), &serde_json::from_value(body)?).await?)
    }

    pub async fn warms(&self, namespace: &str) -> Result<Vec<ImageWarm>> {
        let warms: Api<ImageWarm> = Api::namespaced(self.client(), namespace);
        Ok(warms.list(&Default::default()).await?.items)
    }

    /// Waits until exactly `count` ImageWarms exist in the namespace and all are Ready.
    pub async fn all_ready(&self, namespace: &str, count: usize) -> Result<Vec<ImageWarm>> {
        self.all_in(namespace, count, &[Reason::Pulled, Reason::AlreadyPresent]).await
    }

    /// Waits until exactly `count` ImageWarms exist in the namespace and all failed so.
    pub async fn all_failed(
        &self,
        namespace: &str,
        count: usize,
        reason: Reason,
    ) -> Result<Vec<ImageWarm>> {
        self.all_in(namespace, count, &[reason]).await
    }

    async fn all_in(
        &self,
        namespace: &str,
        count: usize,
        reasons: &[Reason],
    ) -> Result<Vec<ImageWarm>> {
        let what = format!("{count} ImageWarms in {namespace} are {reasons:?}");
        let reached = self
            .eventually(&what, async || {
                let warms = self.warms(namespace).await?;
                let so = |warm: &ImageWarm| warm.reason().is_some_and(|r| reasons.contains(&r));
                Ok((warms.len() == count && warms.iter().all(so)).then_some(warms))
            })
            .await;
        match reached {
            Ok(warms) => Ok(warms),
            Err(error) => {
                let mut states = String::new();
                for warm in self.warms(namespace).await? {
                    let ready = warm.ready().cloned().unwrap_or_default();
                    let (image, node) = (&warm.spec.image, &warm.spec.node_name);
                    states += &format!("\n  {image} on {node}: {} {}", ready.reason, ready.message);
                }
                Err(error.context(format!("what there is instead:{states}")))
            }
        }
    }

    /// A Knative Image; for a Revision the way Knative makes it, else by hand.
    pub async fn image(
        &self,
        namespace: &str,
        name: &str,
        spec: Value,
        revision: Option<&Revision>,
    ) -> Result<KnativeImage> {
        let mut metadata = json!({"name": name});
        if let Some(revision) = revision {
            let (name, uid) = (revision.name_any(), revision.metadata.uid.clone());
            metadata["labels"] = json!({"serving.knative.dev/revision": name});
            metadata["ownerReferences"] = json!([{
                "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
                "name": name, "uid": uid, "controller": true, "blockOwnerDeletion": true,
            }]);
        }
        let body = json!({
            "apiVersion": "caching.internal.knative.dev/v1alpha1", "kind": "Image",
            "metadata": metadata, "spec": spec,
        });
        let kind = ApiResource::erase::<KnativeImage>(&());
        let images: Api<DynamicObject> = Api::namespaced_with(self.client(), namespace, &kind);
        let made = images.create(&PostParams::default(), &serde_json::from_value(body)?).await?;
        Ok(serde_json::from_value(serde_json::to_value(made)?)?)
    }

    pub fn images(&self, namespace: &str) -> Api<KnativeImage> {
        Api::namespaced(self.client(), namespace)
    }

    /// Waits until the Image's Ready condition is this, with a message that contains `words`.
    /// Returns the whole object as the API server has it.
    pub async fn image_says(
        &self,
        namespace: &str,
        name: &str,
        status: &str,
        words: &str,
    ) -> Result<Value> {
        let kind = ApiResource::erase::<KnativeImage>(&());
        let images: Api<DynamicObject> = Api::namespaced_with(self.client(), namespace, &kind);
        let last = std::cell::RefCell::new(Value::Null);
        let reached = self
            .eventually(&format!("Image {name} is {status} and says {words:?}"), async || {
                let image = serde_json::to_value(images.get(name).await?)?;
                let conditions = image["status"]["conditions"].as_array().cloned();
                let ready = conditions
                    .unwrap_or_default()
                    .into_iter()
                    .find(|condition| condition["type"] == "Ready")
                    .unwrap_or_default();
                *last.borrow_mut() = ready.clone();
                let message = ready["message"].as_str().unwrap_or_default();
                let so = ready["status"] == status && message.contains(words);
                Ok(so.then_some(image))
            })
            .await;
        reached.with_context(|| format!("what it says instead: {}", last.borrow()))
    }

    /// Says whether a Revision may get traffic, as Knative does.
    pub async fn route(&self, namespace: &str, name: &str, state: &str) -> Result<()> {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let body = json!({"metadata": {
            "labels": {"serving.knative.dev/routingState": state},
            "annotations": {"serving.knative.dev/routingStateModified": now},
        }});
        let revisions: Api<Revision> = Api::namespaced(self.client(), namespace);
        revisions.patch(name, &PatchParams::default(), &Patch::Merge(body)).await?;
        Ok(())
    }

    /// A pull secret for the private registry, with its password or another one.
    pub async fn pull_secret(
        &self,
        namespace: &str,
        name: &str,
        password: Option<&str>,
    ) -> Result<()> {
        let secrets: Api<Secret> = Api::namespaced(self.client(), namespace);
        let body = json!({
            "metadata": {"name": name}, "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": self.docker_config_json(password)},
        });
        secrets.create(&PostParams::default(), &serde_json::from_value(body)?).await?;
        Ok(())
    }

    /// A pull secret with this content: of the type for `{"auths": …}`, or else of the older one.
    pub async fn secret(&self, namespace: &str, name: &str, content: &Value) -> Result<()> {
        let secrets: Api<Secret> = Api::namespaced(self.client(), namespace);
        let (kind, key) = match content.get("auths") {
            Some(_) => ("kubernetes.io/dockerconfigjson", ".dockerconfigjson"),
            None => ("kubernetes.io/dockercfg", ".dockercfg"),
        };
        let body = json!({
            "metadata": {"name": name}, "type": kind, "stringData": {key: content.to_string()},
        });
        secrets.create(&PostParams::default(), &serde_json::from_value(body)?).await?;
        Ok(())
    }

    /// Puts the right password into a pull secret.
    pub async fn mend_pull_secret(&self, namespace: &str, name: &str) -> Result<()> {
        let secrets: Api<Secret> = Api::namespaced(self.client(), namespace);
        let body = json!({"stringData": {".dockerconfigjson": self.docker_config_json(None)}});
        secrets.patch(name, &PatchParams::default(), &Patch::Merge(body)).await?;
        Ok(())
    }

    pub async fn service_account(
        &self,
        namespace: &str,
        name: &str,
        secrets: &[&str],
    ) -> Result<()> {
        let secrets: Vec<_> = secrets.iter().map(|name| json!({"name": name})).collect();
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), namespace);
        let body = json!({"metadata": {"name": name}, "imagePullSecrets": secrets});
        accounts.create(&PostParams::default(), &serde_json::from_value(body)?).await?;
        Ok(())
    }

    /// Our Events of one reason in the namespace.
    pub async fn events(&self, namespace: &str, reason: Reason) -> Result<Vec<Event>> {
        let events: Api<Event> = Api::namespaced(self.client(), namespace);
        let all = events.list(&Default::default()).await?.items;
        Ok(all.into_iter().filter(|e| e.reason.as_deref() == Some(reason.as_str())).collect())
    }

    pub async fn cordon(&self, node: &str, cordoned: bool) -> Result<()> {
        self.patch_node(node, json!({"spec": {"unschedulable": cordoned}})).await
    }

    pub async fn label_node(&self, node: &str, key: &str, value: Option<&str>) -> Result<()> {
        self.patch_node(node, json!({"metadata": {"labels": {key: value}}})).await
    }

    pub async fn taint_node(&self, node: &str, taint: Option<(&str, &str)>) -> Result<()> {
        let taints = taint.map(|(key, effect)| json!([{"key": key, "effect": effect}]));
        self.patch_node(node, json!({"spec": {"taints": taints}})).await
    }

    async fn patch_node(&self, node: &str, body: Value) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.client());
        nodes.patch(node, &PatchParams::default(), &Patch::Merge(body)).await?;
        Ok(())
    }

    /// Takes the owners off the namespace's ImageWarms, so that only our own collection could
    /// delete them.
    pub async fn orphan_image_warms(&self, namespace: &str) -> Result<()> {
        let warms: Api<ImageWarm> = Api::namespaced(self.client(), namespace);
        for warm in self.warms(namespace).await? {
            let body = json!({"metadata": {"ownerReferences": null}});
            warms.patch(&warm.name_any(), &PatchParams::default(), &Patch::Merge(body)).await?;
        }
        Ok(())
    }

    /// Refuses every Revision of the namespace after the mutating webhooks; returns once the API
    /// server enforces it.
    pub async fn refuse_revisions(&self, namespace: &str) -> Result<()> {
        let name = format!("refuse-revisions-{namespace}");
        let policies = [
            json!({
                "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
                "metadata": {"name": name},
                "spec": {
                    "failurePolicy": "Fail",
                    "matchConstraints": {"resourceRules": [{
                        "apiGroups": ["serving.knative.dev"], "apiVersions": ["*"],
                        "operations": ["CREATE"], "resources": ["revisions"],
                    }]},
                    "validations": [{"expression": "false", "message": "refused by the test"}],
                },
            }),
            json!({
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "ValidatingAdmissionPolicyBinding",
                "metadata": {"name": name},
                "spec": {
                    "policyName": name, "validationActions": ["Deny"],
                    "matchResources": {"namespaceSelector": {
                        "matchLabels": {"kubernetes.io/metadata.name": namespace},
                    }},
                },
            }),
        ];
        for policy in policies {
            let object: DynamicObject = serde_json::from_value(policy)?;
            let types = object.types.clone().context("the policy has a kind")?;
            let kind = ApiResource::from_gvk(&types.try_into()?);
            let api: Api<DynamicObject> = Api::all_with(self.client(), &kind);
            api.create(&PostParams::default(), &object).await?;
        }
        self.eventually("the policy is enforced", async || {
            let probe = self.dry_run_revision(namespace, "probe-00001", containers(&[])).await;
            Ok(probe.is_err().then_some(()))
        })
        .await
    }

    /// The status message of a refusal, `None` when the object was accepted. Takes any JSON, so
    /// that objects can be sent that our own types could not hold.
    pub async fn post_raw(&self, namespace: &str, object: &Value) -> Result<Option<String>> {
        let (accepted, body, _) = self.post(namespace, object).await?;
        Ok((!accepted).then(|| body["message"].as_str().unwrap_or_default().to_owned()))
    }

    /// Whether the object was accepted, and the warnings that `kubectl` would show.
    pub async fn post_for_warnings(
        &self,
        namespace: &str,
        object: &Value,
    ) -> Result<(bool, Vec<String>)> {
        let (accepted, _, warnings) = self.post(namespace, object).await?;
        Ok((accepted, warnings))
    }

    async fn post(&self, namespace: &str, object: &Value) -> Result<(bool, Value, Vec<String>)> {
        let path = format!(
            "/apis/caching.knative.dev/v1alpha1/namespaces/{namespace}/imagewarms?dryRun=All"
        );
        let request = http::Request::post(path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(kube::client::Body::from(serde_json::to_vec(object)?))?;
        let response = self.client().send(request).await?;
        let accepted = response.status().is_success();
        let warnings = response.headers().get_all("warning").iter();
        let warnings = warnings.filter_map(|w| w.to_str().ok()).map(str::to_owned).collect();
        let body = response.into_body().collect_bytes().await?;
        Ok((accepted, serde_json::from_slice(&body)?, warnings))
    }

    /// Whether this ServiceAccount of ours may do this, as the API server's authorizer says.
    pub async fn account_may(
        &self,
        account: &str,
        verb: &str,
        group: &str,
        resource: &str,
    ) -> Result<bool> {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let body = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": format!("system:serviceaccount:imagewarm-system:{account}"),
                "groups": ["system:serviceaccounts", "system:serviceaccounts:imagewarm-system", "system:authenticated"],
                "resourceAttributes": {
                    "verb": verb, "group": group, "resource": resource,
                    "subresource": subresource, "namespace": "imagewarm-system",
                },
            },
        });
        let reviews: Api<k8s_openapi::api::authorization::v1::SubjectAccessReview> =
            Api::all(self.client());
        let review = reviews.create(&PostParams::default(), &serde_json::from_value(body)?).await?;
        Ok(review.status.is_some_and(|status| status.allowed))
    }

    /// Returns once the leader has repaired something that was made just now, so that whatever it
    /// would have done about earlier things, it has done.
    pub async fn leader_has_caught_up(&self) -> Result<()> {
        let namespace = self.namespace("probe").await?;
        let app = self.push("probe", &namespace).await?;
        self.revision(&namespace, "probe-00001", containers(&[&app.tag])).await?;
        let nodes = self.nodes().len();
        self.eventually("the leader went by", async || {
            let warms = self.warms(&namespace).await?;
            Ok((warms.len() >= nodes).then_some(()))
        })
        .await?;
        // Repair, not only the webhook's fan-out: what is deleted by hand is made again.
        let warms: Api<ImageWarm> = Api::namespaced(self.client(), &namespace);
        let victim = self.warms(&namespace).await?.remove(0);
        warms.delete(&victim.name_any(), &Default::default()).await?;
        self.eventually("the leader repairs", async || {
            let again = warms.get_opt(&victim.name_any()).await?;
            Ok(again.filter(|again| again.metadata.uid != victim.metadata.uid).map(drop))
        })
        .await?;
        self.delete_configuration(&namespace, "probe").await
    }
}
