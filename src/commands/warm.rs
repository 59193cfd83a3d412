//! `imagewarm warm`: creates ImageWarms by hand, one for each image and eligible node.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::time::Duration;

use futures::StreamExt;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use crate::clock::wall_clock;
use crate::commands::listing::{ListingError, NODES, Scope, list};
use crate::commands::terminal::Terminal;
use crate::commands::wait::{WaitError, until_ready};
use crate::exit::Exit;
use crate::kubernetes::apply_error::ApplyError;
use crate::kubernetes::writes::{self, Created};
use imagewarm_core::api::SecretReference;
use imagewarm_core::api::names::{Namespace, is_dns_subdomain};
use imagewarm_core::demand::revision::WantedImage;
use imagewarm_core::image::Reference;
use imagewarm_core::image::quoted::quoted;
use imagewarm_core::placement::NodeFacts;
use imagewarm_core::plan::by_hand::{ByHand, by_hand};
use imagewarm_core::settings::duration;
use imagewarm_core::table::filter::Filter;

/// ImageWarms created at the same time: each is a connection.
const CONCURRENCY: usize = 16;

/// Warm images by hand, on all nodes where a Pod without any constraint may start
///
/// It creates an ImageWarm for each image and node, under the names that those of Revisions have: where one is there, it
/// stays as it is, and goes when no Revision wants it any more. Those that are created here stay until you delete them, or
/// for --ttl; the leader deletes one then, unless a Revision wants it.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples:\n  \
    $ imagewarm warm registry.example.com/shop/app:v2 -n shop --wait\n  \
    $ imagewarm warm app:v2 sidecar:v5 --nodes pool=gpu --ttl 1h\n  \
    $ imagewarm warm registry.example.com/private:v1 --pull-secret regcred\n\n\
    Exit codes: 0 done, 1 something was denied or (with --wait) will never be there, 2 wrong usage, \
    4 with --wait, not within --timeout")]
pub(crate) struct WarmArgs {
    /// The images
    #[arg(required = true, value_name = "IMAGE", value_parser = image)]
    pub images: Vec<Reference>,

    /// Namespace of the ImageWarms, whose pull secrets apply. By default that of the kubeconfig's context
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<Namespace>,

    /// Only nodes with these labels, as kubectl selects them: pool=gpu,zone!=a
    #[arg(long, value_name = "SELECTOR")]
    pub nodes: Option<String>,

    /// A pull secret of the namespace; may be repeated
    #[arg(long = "pull-secret", value_name = "SECRET", value_parser = secret)]
    pub pull_secrets: Vec<SecretReference>,

    /// How long the leader keeps the ImageWarms when no Revision wants them. Images stay on nodes until the kubelet
    /// removes them
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub ttl: Option<Duration>,

    /// Wait until the images are on the nodes
    #[arg(long)]
    pub wait: bool,

    /// How long to wait at most
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration, requires = "wait")]
    pub timeout: Duration,
}

fn image(text: &str) -> Result<Reference, String> {
    Reference::parse(text).map_err(|error| error.to_string())
}

fn secret(text: &str) -> Result<SecretReference, String> {
    match is_dns_subdomain(text) {
        true => Ok(SecretReference { name: text.to_owned() }),
        false => {
            Err(format!("{} is not the name of a Secret (a DNS-1123 subdomain)", quoted(text)))
        }
    }
}

/// Why images are not warmed. `Display` states the remedy where one is known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WarmError {
    /// The Nodes cannot be listed.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// No node is eligible.
    #[error("no node is eligible{0}: `kubectl get nodes --show-labels` shows what there is")]
    NoNode(String),
    /// An ImageWarm was not created.
    #[error("{failed} of {all} ImageWarms were not created; the first: {error}")]
    Create {
        /// How many were not.
        failed: usize,
        /// Of how many.
        all: usize,
        /// Why the first was not.
        error: ApplyError,
    },
    /// The wait failed.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// The output is closed or full.
    #[error("cannot write what was created")]
    Output(#[from] io::Error),
}

/// Creates the ImageWarms, and prints to `out` how many there are.
pub(crate) async fn run(
    args: &WarmArgs,
    client: Client,
    terminal: Terminal,
    out: &mut dyn Write,
) -> Result<Exit, WarmError> {
    let scope = Scope::new(args.namespace.as_ref(), false, &client);
    let mut nodes: Vec<Node> = Vec::new();
    let mut params = ListParams::default();
    if let Some(selector) = &args.nodes {
        params = params.labels(selector);
    }
    let listing = list(&Api::all(client.clone()), params, |node| nodes.push(node)).await;
    listing.map_err(|error| NODES.failed(error, &Scope { namespace: None }))?;
    let ttl = args.ttl.and_then(|ttl| SignedDuration::try_from(ttl).ok());
    let request = ByHand {
        namespace: scope.namespace.clone().unwrap_or_default(),
        images: args.images.clone(),
        secrets: args.pull_secrets.clone(),
        expires_at: ttl.and_then(|ttl| wall_clock().checked_add(ttl).ok()),
    };
    let none = BTreeSet::new();
    let facts: Vec<_> = nodes.iter().map(|node| NodeFacts::new(node, &none)).collect();
    let image_warms = by_hand(&request, &facts);
    if image_warms.is_empty() {
        let selected = args.nodes.as_ref().map(|it| format!(" with the labels {}", quoted(it)));
        return Err(WarmError::NoNode(selected.unwrap_or_default()));
    }
    let created: Vec<Result<Created, ApplyError>> = futures::stream::iter(&image_warms)
        .map(async |warm| writes::create(&client, warm).await)
        .buffered(CONCURRENCY)
        .collect()
        .await;
    let count = |wanted: Created| {
        created.iter().filter(|one| one.as_ref().is_ok_and(|one| *one == wanted)).count()
    };
    let (new, existed) = (count(Created::New), count(Created::Existed));
    writeln!(out, "{new} ImageWarms created, {existed} were there already")?;
    out.flush()?;
    let all = created.len();
    if let Some(error) = created.into_iter().find_map(Result::err) {
        return Err(WarmError::Create { failed: all - new - existed, all, error });
    }
    if !args.wait {
        return Ok(Exit::Done);
    }
    let names: BTreeSet<String> = image_warms.iter().map(ResourceExt::name_any).collect();
    let wanted = |reference: &Reference| WantedImage {
        reference: reference.clone(),
        resolved: None,
        is_volume: false,
    };
    let filter = Filter {
        names: Some(names),
        wanted: Some(args.images.iter().map(wanted).collect()),
        ..Filter::default()
    };
    Ok(until_ready(&filter, client, &scope, args.timeout, terminal, out).await?)
}
