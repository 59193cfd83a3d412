//! `imagewarm status`: which images are on which nodes, the progress of the others, and the reasons
//! of failures. Lists once, or watches until every state is final. Reads ImageWarms, and for `--nodes`
//! the Nodes that the gate holds.

mod live;

use std::io::{self, IsTerminal, Write};

use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use crate::clock::wall_clock;
use crate::commands::listing::{IMAGE_WARMS, ListingError, Scope, list};
use crate::kubernetes::request::RequestError;
use imagewarm_core::api::ImageWarm;
use imagewarm_core::api::names::Namespace;
use imagewarm_core::placement::{GATE_TAINT, GateTaint};
use imagewarm_core::plan::node_gate::gate_taints;
use imagewarm_core::table::images::{render_json, render_table};
use imagewarm_core::table::nodes::{HeldNodes, NodeRow, render_nodes, render_nodes_json};
use imagewarm_core::table::row::{Row, Summary};

/// Show which images are warm on which nodes, and why the others are not
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct StatusArgs {
    /// Namespace to list. By default that of the kubeconfig's context
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<Namespace>,

    /// List all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,

    /// Follow until every image is on its node or requires user action. On a terminal the table is
    /// redrawn, elsewhere each change is a line
    #[arg(short, long)]
    pub watch: bool,

    /// Print one line for each node, with its container runtime, and what nodes wait for that the node
    /// gate holds
    #[arg(long, conflicts_with = "watch")]
    pub nodes: bool,

    /// Key of the taint of the node gate, for --nodes
    #[arg(long, value_name = "KEY", default_value = GATE_TAINT)]
    pub node_gate_taint: GateTaint,

    /// Output format; json with --watch is printed once, at the end
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: StatusOutput,
}

/// Output format.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum StatusOutput {
    /// One line for each node and image.
    #[default]
    Table,
    /// The same with digest and number of attempts; for nodes, with what their runtimes report.
    Wide,
    /// One JSON object with `summary`, and `items` or `nodes`.
    Json,
}

/// Why the status cannot be shown. `Display` states the remedy where one is known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StatusError {
    /// The ImageWarms cannot be listed.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// The Nodes cannot be listed.
    #[error("cannot list Nodes: {0}")]
    Nodes(RequestError),
    /// The output is closed or full.
    #[error("cannot write the status")]
    Output(#[from] io::Error),
}

/// Prints the status to `out`. Returns whether every listed image is on its node; true if there
/// are none.
pub(crate) async fn run(
    args: &StatusArgs,
    client: Client,
    out: &mut dyn Write,
) -> Result<bool, StatusError> {
    let scope = Scope::new(args.namespace.as_ref(), args.all_namespaces, &client);
    let held = match &args.node_gate_taint.0 {
        Some(key) if args.nodes => held_nodes(client.clone(), key).await?,
        _ => HeldNodes::new(),
    };
    let api = scope.api(client);
    let mut listed = Vec::new();
    let listing = list(&api, ListParams::default(), |warm| listed.push(warm)).await;
    listing.map_err(|error| IMAGE_WARMS.failed(error, &scope))?;
    let warms = match args.watch {
        true => {
            let screen = match args.output {
                StatusOutput::Json => live::Screen::Silent,
                _ if io::stdout().is_terminal() => live::Screen::Terminal,
                _ => live::Screen::Lines,
            };
            live::follow(api, listed, &scope, screen, out).await?
        }
        false => listed,
    };
    let now = wall_clock();
    let rows = Row::from_all(&warms, now);
    let (nodes, all) = (NodeRow::from_all(&warms, &held, now), Summary::of(&rows));
    let text = match args.output {
        StatusOutput::Json if args.nodes => render_nodes_json(&nodes, &all),
        _ if args.nodes && !nodes.is_empty() => {
            render_nodes(&nodes, &all, args.output == StatusOutput::Wide)
        }
        StatusOutput::Json => render_json(&rows),
        _ if rows.is_empty() => empty(&scope),
        output => render_table(&rows, scope.namespace.is_none(), output == StatusOutput::Wide),
    };
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(all.all_ready())
}

/// The nodes that the node gate holds. None for users who may not list Nodes, which most roles of a
/// namespace do not allow.
async fn held_nodes(client: Client, key: &str) -> Result<HeldNodes, StatusError> {
    let mut held = HeldNodes::new();
    let add = |node: Node| {
        let created = node.metadata.creation_timestamp.as_ref();
        if let Some(created) = created.filter(|_| gate_taints(&node, key).next().is_some()) {
            held.insert(node.name_any(), created.0);
        }
    };
    match list(&Api::all(client), ListParams::default(), add).await {
        Err(error) if error.status_code() != Some(403) => Err(StatusError::Nodes(error)),
        _ => Ok(held),
    }
}

/// The text for an empty list.
fn empty(scope: &Scope) -> String {
    let elsewhere = match scope.namespace {
        Some(_) => "\nOther namespaces: imagewarm status -A.",
        None => "",
    };
    format!(
        "No ImageWarms {}.\n\
         A new Knative Revision (`kn service create`, or a changed Service) creates them, one for \
         each of\nits images and each node that may run it; so does an ImageWarm made by hand.{}\n",
        scope.description(),
        elsewhere
    )
}

/// Key of an object in the view and in the cache of a watch.
fn key(warm: &ImageWarm) -> (String, String) {
    (warm.namespace().unwrap_or_default(), warm.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_list_explains_what_creates_image_warms() {
        insta::assert_snapshot!(empty(&Scope { namespace: Some("shop".into()) }), @"
        No ImageWarms in namespace shop.
        A new Knative Revision (`kn service create`, or a changed Service) creates them, one for each of
        its images and each node that may run it; so does an ImageWarm made by hand.
        Other namespaces: imagewarm status -A.
        ");
        insta::assert_snapshot!(empty(&Scope { namespace: None }), @"
        No ImageWarms in any namespace.
        A new Knative Revision (`kn service create`, or a changed Service) creates them, one for each of
        its images and each node that may run it; so does an ImageWarm made by hand.
        ");
    }

    #[test]
    fn flags_have_no_conflicts() {
        use clap::Args;
        StatusArgs::augment_args(clap::Command::new("status")).debug_assert();
    }
}
