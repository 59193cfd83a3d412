//! Carries a plan out: creates what is missing, and deletes what nobody wants once a live look
//! agrees. Every write may fail; the next run sees what is left to do.

use futures::StreamExt;

use super::Controller;
use crate::api::{CREATED_FOR_ANNOTATION, ImageWarm};
use crate::cluster::apply::{self, ApplyError, Created, Live};
use crate::image::Reference;
use crate::plan::demand;
use crate::plan::diff::{Changes, DeleteKind};

/// Applies `changes` with bounded concurrency; true when a write failed that is worth another try.
pub(super) async fn apply(controller: &Controller, changes: &Changes) -> bool {
    let mut again = false;
    let mut creates = futures::stream::iter(&changes.create)
        .map(|(warm, kind)| async move {
            (kind, warm, apply::create_image_warm(&controller.client, warm).await)
        })
        .buffer_unordered(controller.concurrency);
    while let Some((kind, warm, result)) = creates.next().await {
        match result {
            Ok(Created::New) => controller.metrics.repaired(*kind),
            Ok(Created::Existed) => {}
            Err(error) => {
                again |= worth_retrying(&error);
                log("could not create an ImageWarm", warm, &error);
            }
        }
        // No longer the leader: the next one repairs.
        if !controller.leadership.borrow().leading {
            return false;
        }
    }
    let mut deletes = futures::stream::iter(&changes.delete)
        .map(|(warm, kind)| async move {
            (kind, warm, delete_if_agreed(controller, warm, *kind).await)
        })
        .buffer_unordered(controller.concurrency);
    while let Some((kind, warm, result)) = deletes.next().await {
        match result {
            Ok(true) => controller.metrics.deleted(*kind),
            Ok(false) => {}
            Err(error) => {
                again |= worth_retrying(&error);
                log("could not delete an ImageWarm", warm, &error);
            }
        }
        if !controller.leadership.borrow().leading {
            return false;
        }
    }
    again
}

/// Deletes `warm` after one live look at what the plan relied on; false when that disagrees.
async fn delete_if_agreed(
    controller: &Controller,
    warm: &ImageWarm,
    kind: DeleteKind,
) -> Result<bool, ApplyError> {
    let agreed = match kind {
        DeleteKind::NodeGone => {
            matches!(
                apply::live_node(&controller.client, &warm.spec.node_name).await?,
                Live::Gone
            )
        }
        _ => nobody_wants(controller, warm).await?,
    };
    // The caches may have been lost while we looked.
    let may_delete = controller.stores.synced.borrow().may_delete();
    if !(agreed && may_delete && controller.leadership.borrow().leading) {
        return Ok(false);
    }
    apply::delete_image_warm(&controller.client, warm).await?;
    Ok(true)
}

/// Whether the Revision for which `warm` was made is gone, or does not want the image any more.
async fn nobody_wants(controller: &Controller, warm: &ImageWarm) -> Result<bool, ApplyError> {
    let namespace = warm.metadata.namespace.as_deref().unwrap_or_default();
    let annotations = warm.metadata.annotations.as_ref();
    let created_for = annotations.and_then(|annotations| annotations.get(CREATED_FOR_ANNOTATION));
    // Without a name (generateName) any Revision's name serves to see that the type is served.
    let name = created_for.and_then(|token| token.rsplit('/').next()).unwrap_or("unknown");
    match apply::live_revision(&controller.client, namespace, name).await? {
        Live::Gone => Ok(true),
        Live::TypeAbsent => Ok(false),
        Live::Found(revision) => {
            let opted_out = controller.stores.namespace_opted_out(namespace);
            let demand = demand::demand(&revision, opted_out, &controller.policy);
            let Ok(image) = Reference::parse(&warm.spec.image) else { return Ok(false) };
            let wanted = !demand.opted_out
                && demand
                    .images
                    .iter()
                    .any(|wanted| wanted.reference == image || wanted.resolved.as_ref() == Some(&image));
            Ok(!wanted)
        }
    }
}

/// A namespace that is forbidden or going away is not tried again until something changes.
fn worth_retrying(error: &ApplyError) -> bool {
    !matches!(error, ApplyError::NamespaceTerminating | ApplyError::Forbidden(_))
}

fn log(message: &'static str, warm: &ImageWarm, error: &ApplyError) {
    tracing::warn!(
        namespace = warm.metadata.namespace.as_deref().unwrap_or_default(),
        name = warm.metadata.name.as_deref().unwrap_or_default(),
        image = warm.spec.image,
        node = warm.spec.node_name,
        %error,
        "{message}"
    );
}
