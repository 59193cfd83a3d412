//! A namespace, and what can be made in it; by subject in the files beside this one.

mod accounts;
mod admission;
mod image_warms;
mod images;
mod quotas;
mod revisions;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use imagewarm_core::api::Reason;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Namespace as Object, ServiceAccount};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

use super::eventually;
use super::system::System;
use super::undo::Undo;

pub use admission::{Verdict, image_warm};
pub use revisions::containers;

/// Where admission is probed. It has asked for warming, in case that it must.
pub const PROBES: &str = "admission-probes";

#[derive(Clone)]
pub struct Namespace {
    pub name: String,
    system: Arc<System>,
    undo: Undo,
}

impl Namespace {
    /// A new namespace with a name of its own.
    pub async fn next(system: &Arc<System>, undo: &Undo, prefix: &str) -> Result<Namespace> {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        let name = format!("{prefix}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        Namespace::create(system, undo, name).await
    }

    pub async fn create(system: &Arc<System>, undo: &Undo, name: String) -> Result<Namespace> {
        let namespace = Namespace::existing(system, undo, name);
        let body = serde_json::from_value(json!({"metadata": {"name": namespace.name}}))?;
        namespace.objects().create(&PostParams::default(), &body).await?;
        // The ServiceAccount `default` is there once the controller-manager went by.
        let accounts: Api<ServiceAccount> = namespace.api();
        eventually("the namespace's default ServiceAccount exists", async || {
            Ok(accounts.get_opt("default").await?.map(drop))
        })
        .await?;
        Ok(namespace)
    }

    pub fn existing(system: &Arc<System>, undo: &Undo, name: String) -> Namespace {
        Namespace { name, system: system.clone(), undo: undo.clone() }
    }

    fn client(&self) -> Client {
        self.system.client()
    }

    fn objects(&self) -> Api<Object> {
        Api::all(self.client())
    }

    /// The objects of one kind in it.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client(), &self.name)
    }

    /// What a kubelet says of a Pod's image in an Event.
    pub async fn kubelet_event(&self, reason: &str, node: &str, message: &str) -> Result<()> {
        let now = Timestamp::from_second(Timestamp::now().as_second())?;
        let event: Event = serde_json::from_value(json!({
            "metadata": {"generateName": "app."},
            "involvedObject": {"kind": "Pod", "namespace": self.name, "name": "app"},
            "reason": reason, "message": message, "type": "Normal",
            "source": {"component": "kubelet", "host": node},
            "lastTimestamp": now.to_string(),
        }))?;
        self.api().create(&PostParams::default(), &event).await?;
        Ok(())
    }

    /// What a scheduler says of a Pod that fits no node.
    pub async fn scheduler_event(&self, pod: &str) -> Result<()> {
        let event: Event = serde_json::from_value(json!({
            "metadata": {"generateName": format!("{pod}.")},
            "involvedObject": {"kind": "Pod", "namespace": self.name, "name": pod},
            "reason": "FailedScheduling", "type": "Warning",
            "message": "0/3 nodes are available: 3 Insufficient cpu.",
            "reportingComponent": "default-scheduler", "reportingInstance": "default-scheduler",
        }))?;
        self.api().create(&PostParams::default(), &event).await?;
        Ok(())
    }

    pub async fn label(&self, key: &str, value: &str) -> Result<()> {
        let body = json!({"metadata": {"labels": {key: value}}});
        self.objects().patch(&self.name, &PatchParams::default(), &Patch::Merge(body)).await?;
        Ok(())
    }

    pub async fn annotate(&self, key: &str, value: &str) -> Result<()> {
        let body = json!({"metadata": {"annotations": {key: value}}});
        self.objects().patch(&self.name, &PatchParams::default(), &Patch::Merge(body)).await?;
        Ok(())
    }

    pub async fn delete(&self) -> Result<()> {
        self.objects().delete(&self.name, &Default::default()).await?;
        Ok(())
    }

    pub async fn exists(&self) -> Result<bool> {
        Ok(self.objects().get_opt(&self.name).await?.is_some())
    }

    /// Our Events of one reason.
    pub async fn events(&self, reason: Reason) -> Result<Vec<Event>> {
        let all = self.api::<Event>().list(&Default::default()).await?.items;
        Ok(all.into_iter().filter(|e| e.reason.as_deref() == Some(reason.as_str())).collect())
    }
}
