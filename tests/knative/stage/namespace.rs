//! A namespace, what is deployed in it, and what comes of it.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::{ImageWarm, Reason};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use super::audit::Order;
use super::objects::{self, Kind, REVISION};
use super::{NODES, Pushed, Stage, eventually, hold};

pub struct Namespace<'a> {
    pub name: String,
    stage: &'a Stage,
}

/// Containers of these images; the first takes the requests.
pub fn containers(images: &[&str]) -> Value {
    let containers = images.iter().enumerate().map(|(number, image)| match number {
        0 if images.len() > 1 => json!({"image": image, "ports": [{"containerPort": 8080}]}),
        _ => json!({"image": image}),
    });
    json!({"containers": containers.collect::<Vec<_>>()})
}

impl<'a> Namespace<'a> {
    pub async fn create(stage: &'a Stage, name: String) -> Result<Namespace<'a>> {
        hold::namespace(&stage.client(), &name).await?;
        Ok(Namespace { name, stage })
    }

    pub fn existing(stage: &'a Stage, name: String) -> Namespace<'a> {
        Namespace { name, stage }
    }

    /// Lets Knative make the Deployment of a Revision.
    pub async fn release(&self, revision: &str) -> Result<()> {
        hold::release(&self.stage.client(), &self.name, revision).await
    }

    /// A Service whose template has this spec.
    pub async fn service(&self, name: &str, spec: Value) -> Result<Value> {
        self.service_of(name, json!({"spec": spec})).await
    }

    /// The same, but its Revisions become ready without a Pod.
    pub async fn service_at_zero(&self, name: &str, spec: Value) -> Result<Value> {
        let annotations = json!({"autoscaling.knative.dev/initial-scale": "0"});
        let template = json!({"metadata": {"annotations": annotations}, "spec": spec});
        self.service_of(name, template).await
    }

    /// A Service with this template.
    pub async fn service_of(&self, name: &str, template: Value) -> Result<Value> {
        self.make(Kind::Service, name, json!({"template": template})).await
    }

    /// An object of Knative Serving with this spec.
    pub async fn make(&self, kind: Kind, name: &str, spec: Value) -> Result<Value> {
        self.make_with(kind, json!({"name": name}), spec).await
    }

    /// The same with this metadata.
    pub async fn make_with(&self, kind: Kind, metadata: Value, spec: Value) -> Result<Value> {
        let body = json!({
            "apiVersion": "serving.knative.dev/v1", "kind": format!("{kind:?}"),
            "metadata": metadata, "spec": spec,
        });
        let made = objects::create(&self.stage.client(), kind, &self.name, &body).await;
        made.with_context(|| format!("create {kind:?} in {}", self.name))
    }

    /// An Image by hand.
    pub async fn image(&self, body: Value) -> Result<()> {
        objects::create(&self.stage.client(), Kind::Image, &self.name, &body).await.map(drop)
    }

    /// Merges into a Service.
    pub async fn change_service(&self, name: &str, change: Value) -> Result<()> {
        let what = (self.name.as_str(), name, "");
        objects::merge(&self.stage.client(), Kind::Service, what, &change).await.map(drop)
    }

    pub async fn delete_service(&self, name: &str) -> Result<()> {
        objects::delete(&self.stage.client(), Kind::Service, &self.name, name).await
    }

    pub async fn list(&self, kind: Kind) -> Result<Vec<Value>> {
        objects::list(&self.stage.client(), kind, &self.name).await
    }

    pub async fn get(&self, kind: Kind, name: &str) -> Result<Value> {
        objects::get(&self.stage.client(), kind, &self.name, name).await
    }

    /// Waits until an object is as wanted.
    pub async fn until(
        &self,
        (kind, name): (Kind, &str),
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let what = format!("{kind:?} {name} is {what}");
        let reached = eventually(&what, async || self.get(kind, name).await.ok().filter(&wanted));
        match reached.await {
            Ok(object) => Ok(object),
            Err(error) => {
                let found = self.get(kind, name).await.unwrap_or_default();
                Err(error.context(format!("instead: {found}")))
            }
        }
    }

    /// Waits until its condition Ready is True.
    pub async fn until_ready(&self, kind: Kind, name: &str) -> Result<Value> {
        self.until((kind, name), "ready", |object| condition(object, "Ready")["status"] == "True")
            .await
    }

    /// Waits until the Service sends its requests to the one Revision, and none to the other.
    /// Meanwhile its Ingress is said to be as wanted, as whoever implements it would say.
    pub async fn until_routed(&self, service: &str, (to, not_to): (&str, &str)) -> Result<()> {
        let is = |revision: Result<Value>, state: &str| {
            let labels = revision.ok().map(|object| object["metadata"]["labels"].clone());
            labels.is_some_and(|labels| labels["serving.knative.dev/routingState"] == state)
        };
        let what = format!("{service} in {} is routed to {to} instead of {not_to}", self.name);
        eventually(&what, async || {
            self.pretend_to_route(service).await.ok()?;
            let routed = is(self.get(Kind::Revision, to).await, "active")
                && is(self.get(Kind::Revision, not_to).await, "reserve");
            routed.then_some(())
        })
        .await
    }

    /// Says in the status of a Service's Ingress that it is as its spec wants it.
    async fn pretend_to_route(&self, service: &str) -> Result<()> {
        let generation = self.get(Kind::Ingress, service).await?["metadata"]["generation"].take();
        let conditions = ["LoadBalancerReady", "NetworkConfigured", "Ready"].map(|kind| {
            json!({"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"})
        });
        let balancer = json!({"ingress": [{"domainInternal": "ingress.example.com"}]});
        let status = json!({"status": {
            "observedGeneration": generation, "conditions": conditions,
            "publicLoadBalancer": balancer, "privateLoadBalancer": balancer,
        }});
        let what = (self.name.as_str(), service, "status");
        objects::merge(&self.stage.client(), Kind::Ingress, what, &status).await.map(drop)
    }

    /// A pull secret for the private registry.
    pub async fn pull_secret(&self, name: &str) -> Result<()> {
        let content = self.stage.private()?.docker_config_json();
        let secret: Secret = serde_json::from_value(json!({
            "metadata": {"name": name}, "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": content},
        }))?;
        let secrets = Api::namespaced(self.stage.client(), &self.name);
        secrets.create(&PostParams::default(), &secret).await?;
        Ok(())
    }

    pub async fn service_account(&self, name: &str, secret: &str) -> Result<()> {
        let account: ServiceAccount = serde_json::from_value(json!({
            "metadata": {"name": name}, "imagePullSecrets": [{"name": secret}],
        }))?;
        let accounts = Api::namespaced(self.stage.client(), &self.name);
        accounts.create(&PostParams::default(), &account).await?;
        Ok(())
    }

    /// The only node's Pod: binds it there and says that it is ready, as a kubelet would.
    pub async fn pretend_to_run(&self, pod: &str, node: &str) -> Result<()> {
        let client = self.stage.client();
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let what = |part| (self.name.as_str(), pod, part);
        objects::create_part(&client, Kind::Pod, what("binding"), &binding).await?;
        let ready = ["Ready", "ContainersReady", "PodScheduled"].map(|kind| {
            json!({"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"})
        });
        // Of an address range for documentation: nobody is there, and no network leads there.
        let status = json!({"status": {
            "phase": "Running", "podIP": "192.0.2.1", "podIPs": [{"ip": "192.0.2.1"}],
            "conditions": ready,
        }});
        objects::merge(&client, Kind::Pod, what("status"), &status).await.map(drop)
    }

    pub async fn image_warms(&self) -> Result<Vec<ImageWarm>> {
        let warms: Api<ImageWarm> = Api::namespaced(self.stage.client(), &self.name);
        Ok(warms.list(&Default::default()).await?.items)
    }

    /// Waits until there are exactly the ImageWarms of these images, one for each node, with one of
    /// these reasons.
    pub async fn until_warm(&self, images: &[&str], reasons: &[Reason]) -> Result<Vec<ImageWarm>> {
        let what = format!("the ImageWarms of {images:?} in {} are {reasons:?}", self.name);
        let reached = eventually(&what, async || {
            let warms = self.image_warms().await.ok()?;
            let is_wanted = |warm: &ImageWarm| {
                images.contains(&warm.spec.image.as_str())
                    && warm.reason().is_some_and(|reason| reasons.contains(&reason))
            };
            let all = warms.len() == images.len() * NODES && warms.iter().all(is_wanted);
            all.then_some(warms)
        });
        match reached.await {
            Ok(warms) => Ok(warms),
            Err(error) => {
                let there = self.image_warms().await?;
                let state = |warm: &ImageWarm| {
                    format!("{} on {}: {:?}", warm.spec.image, warm.spec.node_name, warm.ready())
                };
                let there: Vec<String> = there.iter().map(state).collect();
                Err(error.context(format!("instead there is {there:#?}")))
            }
        }
    }

    /// Waits until the images are warm on every node, and no others are asked for.
    pub async fn until_all_ready(&self, images: &[&str]) -> Result<Vec<ImageWarm>> {
        self.until_warm(images, &[Reason::Pulled, Reason::AlreadyPresent]).await
    }

    /// Waits until the image is warm on every node: by its digest where Knative had resolved it when
    /// the leader made up for what was missed, else by its tag.
    pub async fn until_made_up_for(&self, image: &Pushed) -> Result<()> {
        let what = format!("{} in {} is warm on every node", image.tag, self.name);
        eventually(&what, async || {
            let mut warms = self.image_warms().await.ok()?;
            warms.retain(|warm| {
                let is_it = warm.spec.image == image.tag || warm.spec.image == image.digest;
                is_it && matches!(warm.reason(), Some(Reason::Pulled | Reason::AlreadyPresent))
            });
            let nodes: BTreeSet<_> = warms.iter().map(|warm| &warm.spec.node_name).collect();
            (nodes.len() == NODES).then_some(())
        })
        .await
    }

    /// Waits until there is no ImageWarm.
    pub async fn until_empty(&self) -> Result<()> {
        self.until_warm(&[], &[]).await.map(drop)
    }

    /// Checks that the webhook's fan-out has created all ImageWarms of the images while the Revision
    /// has no Deployment; returns their names.
    pub async fn is_fanned_out(&self, revision: &str, images: &[&str]) -> Result<BTreeSet<String>> {
        let what = format!("{revision} in {} has its ImageWarms", self.name);
        let names = eventually(&what, async || {
            let warms = self.image_warms().await.ok()?;
            let of_it = warms.iter().filter(|warm| images.contains(&warm.spec.image.as_str()));
            let names: BTreeSet<String> = of_it.map(|warm| warm.name_any()).collect();
            (names.len() == images.len() * NODES).then_some(names)
        })
        .await?;
        self.controller_says(revision, names.len()).await?;
        ensure!(self.deployment(revision).await?.is_none(), "{revision} has a Deployment already");
        Ok(names)
    }

    /// When the ImageWarms, the Revision and its Deployment were asked for, once all are there.
    pub async fn order(&self, revision: &str, image_warms: &BTreeSet<String>) -> Result<Order> {
        let what = format!("{revision} in {} has its Deployment", self.name);
        let deployment =
            eventually(&what, async || self.deployment(revision).await.ok().flatten()).await?;
        let what = format!("the audit log has all that came of {revision} in {}", self.name);
        eventually(&what, async || {
            let audited = self.stage.audited().ok()?;
            Order::read(&audited, &self.name, revision, image_warms, &deployment)
        })
        .await
    }

    /// The name of a Revision's Deployment, once it is there.
    async fn deployment(&self, revision: &str) -> Result<Option<String>> {
        let all = self.list(Kind::Deployment).await?;
        let found = all.into_iter().find(|one| one["metadata"]["labels"][REVISION] == revision);
        Ok(found.and_then(|one| one["metadata"]["name"].as_str().map(str::to_owned)))
    }

    /// Waits until the controller says of a Revision that its fan-out has created so many ImageWarms:
    /// they did not come from the leader, which makes up for what is missing seconds later.
    async fn controller_says(&self, revision: &str, image_warms: usize) -> Result<()> {
        let parts = [
            "revision fanned out".to_owned(),
            format!("namespace={}", self.name),
            format!("revision=\"{revision}\""),
            format!("created={image_warms}"),
        ];
        let controller = self.stage.controller()?;
        eventually(&format!("the log has {parts:?}"), async || {
            let log = controller.log();
            let said = log.lines().any(|line| parts.iter().all(|part| line.contains(part)));
            said.then_some(())
        })
        .await
    }

    /// Checks that all ImageWarms of the images are there before the Deployment, which comes then.
    pub async fn is_ahead(&self, revision: &str, images: &[&str]) -> Result<()> {
        let image_warms = self.is_fanned_out(revision, images).await?;
        self.release(revision).await?;
        let order = self.order(revision, &image_warms).await?;
        self.stage.remember(&format!("{} {revision}", self.name), order);
        Ok(())
    }

    /// What comes of every Revision: its ImageWarms before its Deployment, its images on every node,
    /// and its Images ready.
    pub async fn is_warmed(&self, revision: &str, images: &[&str]) -> Result<()> {
        self.is_ahead(revision, images).await?;
        self.until_all_ready(images).await?;
        let what = format!("the Images of {revision} in {} are ready", self.name);
        eventually(&what, async || {
            let mut of_it = self.list(Kind::Image).await.ok()?;
            of_it.retain(|image| image["metadata"]["labels"][REVISION] == revision);
            let all = of_it.len() == images.len()
                && of_it.iter().all(|image| condition(image, "Ready")["status"] == "True");
            all.then_some(())
        })
        .await
    }
}

/// The condition of that type, or null.
pub fn condition(object: &Value, of_type: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|condition| condition["type"] == of_type).unwrap_or_default()
}
