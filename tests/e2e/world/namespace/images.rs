//! Knative's Images.

use std::cell::RefCell;

use anyhow::{Context, Result};
use imagewarm_core::api::{KnativeImage, Revision};
use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::Namespace;
use crate::world::eventually;

impl Namespace {
    /// Creates an Image; for a Revision the way Knative makes it, else by hand.
    pub async fn image(
        &self,
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
        let images = self.whole_images();
        let made = images.create(&PostParams::default(), &serde_json::from_value(body)?).await?;
        Ok(serde_json::from_value(serde_json::to_value(made)?)?)
    }

    /// Images with all their fields, those that we do not read as well.
    fn whole_images(&self) -> Api<DynamicObject> {
        let kind = ApiResource::erase::<KnativeImage>(&());
        Api::namespaced_with(self.client(), &self.name, &kind)
    }

    /// Waits until the Image's Ready condition is this, with a message that contains `words`.
    /// Returns the whole object as the API server has it.
    pub async fn image_is(&self, name: &str, status: &str, words: &str) -> Result<Value> {
        let images = self.whole_images();
        let last = RefCell::new(Value::Null);
        let what = format!("Image {name} is {status} with {words:?}");
        let reached = eventually(&what, async || {
            let image = serde_json::to_value(images.get(name).await?)?;
            let conditions = image["status"]["conditions"].as_array().cloned();
            let ready = conditions
                .unwrap_or_default()
                .into_iter()
                .find(|condition| condition["type"] == "Ready")
                .unwrap_or_default();
            last.borrow_mut().clone_from(&ready);
            let message = ready["message"].as_str().unwrap_or_default();
            let reached = ready["status"] == status && message.contains(words);
            Ok(reached.then_some(image))
        });
        reached.await.with_context(|| format!("its condition instead: {}", last.borrow()))
    }
}
