//! `imagewarm status`: which images are on which nodes, the progress of the others, and the reasons
//! of failures. Lists once, or watches until every state is final. Reads ImageWarms, and for `--nodes`
//! the Nodes that the gate holds.

use std::io::{self, Write};

use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use crate::clock::wall_clock;
use crate::commands::listing::{IMAGE_WARMS, ListingError, Scope, list};
use crate::commands::live::{Screen, empty, follow};
use crate::commands::target::{TargetError, wanted_images};
use crate::commands::terminal::Terminal;
use crate::kubernetes::request::RequestError;
use imagewarm_core::api::names::{Namespace, NodeName};
use imagewarm_core::placement::{GATE_TAINT, GateTaint};
use imagewarm_core::plan::node_gate::gate_taints;
use imagewarm_core::table::by_image::render_by_image;
use imagewarm_core::table::filter::{Filter, ImageName, Target};
use imagewarm_core::table::images::{render_json, render_names, render_table, render_yaml};
use imagewarm_core::table::nodes::{
    HeldNodes, NodeRow, render_nodes, render_nodes_json, render_nodes_yaml,
};
use imagewarm_core::table::row::{Row, Summary};

/// Rows of a table; of more, nobody reads each.
const ROWS_MAX: usize = 200;

/// Show which images are warm on which nodes, and why the others are not
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples:\n  \
    $ imagewarm status -n shop --service hello --watch\n  \
    $ imagewarm status -A --failed\n  \
    $ imagewarm status -n shop --node node-a -o name | xargs kubectl delete -n shop\n\n\
    Exit codes: 0 every image that is listed is on its node, 1 one is not or the request failed, 2 wrong usage")]
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

    #[command(flatten)]
    pub filters: FilterArgs,

    /// Output format; all but table and wide are printed once with --watch, at the end
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: StatusOutput,
}

/// Which ImageWarms are shown; together they narrow.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct FilterArgs {
    /// Only images of this Knative Service, whichever Service they were created for
    #[arg(long, value_name = "SERVICE", conflicts_with = "all_namespaces")]
    pub service: Option<String>,

    /// Only what is wanted on this node
    #[arg(long, value_name = "NODE")]
    pub node: Option<NodeName>,

    /// Only this image; without tag and digest, all images of this repository
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<ImageName>,

    /// Only what failed
    #[arg(long, conflicts_with = "watch")]
    pub failed: bool,
}

/// Output format.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum StatusOutput {
    /// One line for each node and image; for each image, where there are more than 200.
    #[default]
    Table,
    /// One line for each node and image, with digest and number of attempts; for nodes, with what their runtimes
    /// report.
    Wide,
    /// One JSON object with `summary`, and `items` or `nodes`.
    Json,
    /// The same as YAML.
    Yaml,
    /// The names of the ImageWarms, as kubectl takes them.
    Name,
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
    /// The Service is not known.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The status cannot be written as YAML.
    #[error("cannot write the status as YAML")]
    Yaml(#[from] serde_saphyr::SerializeError),
    /// The output is closed or full.
    #[error("cannot write the status")]
    Output(#[from] io::Error),
}

/// Prints the status to `out`. Returns whether every listed image is on its node; true if there
/// are none.
pub(crate) async fn run(
    args: &StatusArgs,
    client: Client,
    terminal: Terminal,
    out: &mut dyn Write,
) -> Result<bool, StatusError> {
    let scope = Scope::new(args.namespace.as_ref(), args.all_namespaces, &client);
    let held = match &args.node_gate_taint.0 {
        Some(key) if args.nodes => held_nodes(client.clone(), key).await?,
        _ => HeldNodes::new(),
    };
    let filter = filter(&args.filters, client.clone(), &scope).await?;
    let api = scope.api(client);
    let params = match &filter.node {
        Some(node) => ListParams::default().fields(&format!("spec.nodeName={node}")),
        None => ListParams::default(),
    };
    let mut listed = Vec::new();
    let listing = list(&api, params, |warm| listed.push(warm)).await;
    listing.map_err(|error| IMAGE_WARMS.failed(error, &scope))?;
    let mut warms = match args.watch {
        true => {
            let screen = match args.output {
                StatusOutput::Table | StatusOutput::Wide => Screen::of(terminal),
                StatusOutput::Json | StatusOutput::Yaml | StatusOutput::Name => Screen::Silent,
            };
            follow(api, listed, &scope, &filter, screen, out).await?
        }
        false => listed,
    };
    warms.retain(|warm| filter.keeps(warm));
    let now = wall_clock();
    let rows = Row::from_all(&warms, now);
    let (nodes, all) = (NodeRow::from_all(&warms, &held, now), Summary::of(&rows));
    let namespaces = scope.namespace.is_none();
    let text = match args.output {
        StatusOutput::Json if args.nodes => render_nodes_json(&nodes, &all),
        StatusOutput::Yaml if args.nodes => render_nodes_yaml(&nodes, &all)?,
        StatusOutput::Json => render_json(&rows),
        StatusOutput::Yaml => render_yaml(&rows)?,
        StatusOutput::Name => render_names(&rows),
        output if args.nodes && !nodes.is_empty() => {
            render_nodes(&nodes, &all, output == StatusOutput::Wide)
        }
        _ if rows.is_empty() && filter.is_empty() => empty(&scope),
        _ if rows.is_empty() => format!("No ImageWarms {} are like that.\n", scope.description()),
        StatusOutput::Table if rows.len() > ROWS_MAX => {
            let text = render_by_image(&rows, namespaces);
            format!("{text}\nOne line for each image; -o wide has all {} ImageWarms.\n", rows.len())
        }
        output => render_table(&rows, namespaces, output == StatusOutput::Wide),
    };
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(all.all_ready())
}

async fn filter(args: &FilterArgs, client: Client, scope: &Scope) -> Result<Filter, StatusError> {
    let wanted = match &args.service {
        Some(service) => {
            let target = Target::Service(service.clone());
            Some(wanted_images(&target, client, scope).await?)
        }
        None => None,
    };
    let FilterArgs { node, image, failed, .. } = args.clone();
    Ok(Filter { node, image, wanted, failed, ..Filter::default() })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_have_no_conflicts() {
        use clap::Args;
        StatusArgs::augment_args(clap::Command::new("status")).debug_assert();
    }
}
