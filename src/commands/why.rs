//! `imagewarm why`: the story of images on nodes. Reads ImageWarms, Revisions and Images, and where the user may,
//! Nodes and Events.

use std::io::{self, Write};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};

use crate::clock::wall_clock;
use crate::commands::listing::{IMAGE_WARMS, ListingError, REVISIONS, Scope, list};
use crate::commands::target::TargetError;
use crate::exit::Exit;
use crate::kubernetes::request::RequestError;
use imagewarm_core::api::names::{Namespace, NodeName};
use imagewarm_core::api::{ImageWarm, KnativeImage, Revision};
use imagewarm_core::demand::Cluster;
use imagewarm_core::demand::consumers::demands;
use imagewarm_core::image::Reference;
use imagewarm_core::image::quoted::quoted;
use imagewarm_core::policy::Policy;
use imagewarm_core::report::container_start::ContainerStart;
use imagewarm_core::report::pod_image::{PULLED, PULLING, PodImage, field_selector};
use imagewarm_core::table::filter::{Filter, Target, images_of};
use imagewarm_core::why::{Observed, is_on, render_why, render_why_json, stories};

/// Show the whole story of an image: who wants it, whose credentials apply, how its pulls went, what comes next
///
/// What is the same on several nodes is shown once. A node without the image has the reason. Where the user may not list
/// Nodes or Events, what they would add is left out.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples:\n  \
    $ imagewarm why hello -n shop\n  \
    $ imagewarm why pod/hello-00001-deployment-5d9f -n shop\n  \
    $ imagewarm why registry.example.com/shop/app:v1 --node node-c\n\n\
    Exit codes: 0 all of it is on its nodes, 1 some is not or the request failed, 2 wrong usage")]
pub(crate) struct WhyArgs {
    /// The name of a Service, a Revision or a Pod, or an image. service/NAME, revision/NAME, pod/NAME and image/NAME
    /// say which
    #[arg(value_name = "TARGET")]
    pub target: Target,

    /// Namespace. By default that of the kubeconfig's context
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<Namespace>,

    /// Only on this node
    #[arg(long, value_name = "NODE")]
    pub node: Option<NodeName>,

    /// Output format
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: WhyOutput,
}

/// Output format.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum WhyOutput {
    /// A block of lines for each story.
    #[default]
    Text,
    /// A JSON array of stories.
    Json,
}

/// Why there is no story.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WhyError {
    /// A list failed.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// What was asked about is not known.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Something else cannot be read.
    #[error("cannot read {what}: {error}")]
    Request {
        /// What was to be read.
        what: &'static str,
        /// Why not.
        error: RequestError,
    },
    /// The output is closed or full.
    #[error("cannot write the story")]
    Output(#[from] io::Error),
}

/// Prints the stories to `out`.
pub(crate) async fn run(
    args: &WhyArgs,
    client: Client,
    out: &mut dyn Write,
) -> Result<Exit, WhyError> {
    let scope = Scope::new(args.namespace.as_ref(), false, &client);
    let stories = stories(&observe(args, &client, &scope).await?);
    let text = match args.output {
        WhyOutput::Text => render_why(&stories),
        WhyOutput::Json => render_why_json(&stories),
    };
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(Exit::from(stories.iter().all(|story| story.is_ready)))
}

async fn observe(args: &WhyArgs, client: &Client, scope: &Scope) -> Result<Observed, WhyError> {
    let (mut revisions, mut images) = (Vec::<Revision>::new(), Vec::<Arc<KnativeImage>>::new());
    let api: Api<Revision> = scope.api(client.clone());
    let listing = list(&api, ListParams::default(), |one| revisions.push(one)).await;
    without_type(listing).map_err(|error| REVISIONS.failed(error, scope))?;
    // Most roles of a namespace allow these; without them Revisions say nearly all.
    let api: Api<KnativeImage> = scope.api(client.clone());
    let listing = list(&api, ListParams::default(), |one| images.push(Arc::new(one))).await;
    without_right(listing, "Knative's Images")?;

    let mut node = args.node.clone();
    let mut filter = Filter::default();
    let wanted = images_of(&args.target, &revisions);
    let target = match (&args.target, &wanted) {
        (Target::Name(name), None) => &Target::Pod(name.clone()),
        (target, _) => target,
    };
    let asked: Vec<Reference> = match target {
        Target::Image(image) => {
            filter.image = Some(image.clone());
            image.exact().into_iter().cloned().collect()
        }
        Target::Pod(name) => {
            let pod = pod(client, scope, name).await?;
            let pod = pod.ok_or_else(|| not_found(&args.target, scope))?;
            let spec = pod.spec.unwrap_or_default();
            node = node.or(spec.node_name.as_deref().map(NodeName::from));
            let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
            let images: Vec<Reference> = containers
                .filter_map(|container| Reference::parse(container.image.as_deref()?).ok())
                .collect();
            filter.of_pod = Some(images.clone());
            images
        }
        target => {
            let wanted = wanted.ok_or_else(|| not_found(target, scope))?;
            let names = wanted.iter().map(|image| image.reference.clone()).collect();
            filter.wanted = Some(wanted);
            names
        }
    };
    let mut image_warms: Vec<ImageWarm> = Vec::new();
    let api: Api<ImageWarm> = scope.api(client.clone());
    let listing = list(&api, ListParams::default(), |warm| {
        if filter.keeps(&warm) && is_on(&warm, node.as_ref()) {
            image_warms.push(warm);
        }
    });
    listing.await.map_err(|error| IMAGE_WARMS.failed(error, scope))?;
    let policy = Policy::default();
    let revisions: Vec<Arc<Revision>> = revisions.into_iter().map(Arc::new).collect();
    let demands = demands(&revisions, &images, &Cluster::new(&policy, None), &policy).consumers;
    let (mut pulling, mut started) = (Vec::new(), Vec::new());
    let events: Api<Event> = scope.api(client.clone());
    let of = |reason| ListParams::default().fields(&field_selector(reason));
    let listing = list(&events, of(PULLING), |event| {
        let pod = event.involved_object.name.clone().unwrap_or_default();
        pulling.extend(PodImage::pulling(&event).map(|image| (image, pod)));
    });
    without_right(listing.await, "Events")?;
    let listing = list(&events, of(PULLED), |event| started.extend(ContainerStart::of(&event)));
    without_right(listing.await, "Events")?;
    Ok(Observed {
        now: wall_clock(),
        image_warms,
        images: asked,
        demands,
        nodes: nodes(client, node.as_ref()).await?,
        pulling,
        started,
    })
}

fn not_found(target: &Target, scope: &Scope) -> TargetError {
    let (kind, name) = target.described();
    TargetError::NotFound { kind, name: quoted(name).to_string(), scope: scope.description() }
}

async fn pod(client: &Client, scope: &Scope, name: &str) -> Result<Option<Pod>, WhyError> {
    let pods: Api<Pod> = scope.api(client.clone());
    let mut found = None;
    let named = ListParams::default().fields(&format!("metadata.name={name}"));
    list(&pods, named, |pod| found = Some(pod))
        .await
        .map_err(|error| WhyError::Request { what: "the Pod", error })?;
    Ok(found)
}

/// `None` for users who may not list Nodes.
async fn nodes(client: &Client, node: Option<&NodeName>) -> Result<Option<Vec<Node>>, WhyError> {
    let mut nodes: Vec<Node> = Vec::new();
    let api: Api<Node> = Api::all(client.clone());
    let listing = list(&api, ListParams::default(), |one| {
        if node.is_none_or(|node| **node == *one.name_any()) {
            nodes.push(one);
        }
    });
    Ok(without_right(listing.await, "Nodes")?.then_some(nodes))
}

/// A type that is not served has no objects.
fn without_type(listing: Result<(), RequestError>) -> Result<(), RequestError> {
    match listing {
        Err(error) if error.status_code() == Some(404) => Ok(()),
        listing => listing,
    }
}

/// Whether the list was allowed; other failures are errors.
fn without_right(listing: Result<(), RequestError>, what: &'static str) -> Result<bool, WhyError> {
    match without_type(listing) {
        Ok(()) => Ok(true),
        Err(error) if error.status_code() == Some(403) => Ok(false),
        Err(error) => Err(WhyError::Request { what, error }),
    }
}
