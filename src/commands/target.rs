//! Finds the Service or the Revision that a command was asked about.

use kube::api::ListParams;
use kube::{Api, Client};

use crate::commands::listing::{ListingError, REVISIONS, Scope, list};
use imagewarm_core::api::Revision;
use imagewarm_core::demand::revision::WantedImage;
use imagewarm_core::image::quoted::quoted;
use imagewarm_core::table::filter::{Target, images_of};

/// Why a target is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    /// The Revisions cannot be listed.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// A Pod waits by itself.
    #[error("a Pod waits by itself: `kubectl wait pod/NAME`, or name its Service or Revision here")]
    Pod,
    /// There is no such one.
    #[error(
        "there is no {kind} {name} {scope}: `kubectl get revisions` lists what there is; -n names another namespace"
    )]
    NotFound {
        /// What was looked for.
        kind: &'static str,
        /// Its name, quoted.
        name: String,
        /// The namespace.
        scope: String,
    },
}

/// The images of a Service or a Revision.
pub(super) async fn wanted_images(
    target: &Target,
    client: Client,
    scope: &Scope,
) -> Result<Vec<WantedImage>, TargetError> {
    if matches!(target, Target::Pod(_)) {
        return Err(TargetError::Pod);
    }
    let revisions: Api<Revision> = scope.api(client);
    let mut all = Vec::new();
    let listing = list(&revisions, ListParams::default(), |revision| all.push(revision)).await;
    match listing {
        // Without Knative there is none.
        Err(error) if error.status_code() == Some(404) => {}
        listing => listing.map_err(|error| REVISIONS.failed(error, scope))?,
    }
    images_of(target, &all).ok_or_else(|| {
        let (kind, name) = target.described();
        TargetError::NotFound { kind, name: quoted(name).to_string(), scope: scope.description() }
    })
}
