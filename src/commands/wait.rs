//! `imagewarm wait`: returns once the images of a Service, of a Revision, or one image, are on their nodes.

use std::io::{self, Write};
use std::time::Duration;

use kube::Client;
use kube::api::ListParams;
use tokio::time::timeout;

use crate::clock::wall_clock;
use crate::commands::listing::{IMAGE_WARMS, ListingError, Scope, list};
use crate::commands::live::{Screen, follow};
use crate::commands::target::{TargetError, wanted_images};
use crate::commands::terminal::Terminal;
use crate::exit::Exit;
use imagewarm_core::api::names::{Namespace, NodeName};
use imagewarm_core::settings::duration;
use imagewarm_core::table::filter::{Filter, Target};
use imagewarm_core::table::images::render_outcome;
use imagewarm_core::table::row::{Row, Summary};

/// Wait until images are on their nodes; exit with 4 when they are not in time
///
/// Of a Service, the images of all Revisions that may get traffic count; ImageWarms that Services share count for each
/// of them. It ends early where a pull fails for a reason that time does not heal.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples:\n  \
    $ imagewarm wait hello -n shop --timeout 2m\n  \
    $ imagewarm wait revision/hello-00002 --node node-a\n  \
    $ imagewarm wait image/registry.example.com/shop/app:v1\n\n\
    Exit codes: 0 every image is on its nodes, 1 one never will be, or the request failed, 2 wrong usage, \
    4 not within --timeout")]
pub(crate) struct WaitArgs {
    /// What to wait for: the name of a Service or a Revision, or an image. service/NAME, revision/NAME and image/NAME
    /// say which. By default all ImageWarms of the namespace
    #[arg(value_name = "TARGET")]
    pub target: Option<Target>,

    /// Namespace. By default that of the kubeconfig's context
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<Namespace>,

    /// Only on this node
    #[arg(long, value_name = "NODE")]
    pub node: Option<NodeName>,

    /// How long to wait at most
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
}

/// Why there was nothing to wait for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WaitError {
    /// The ImageWarms cannot be listed.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// What to wait for is not known.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The output is closed or full.
    #[error("cannot write what is waited for")]
    Output(#[from] io::Error),
}

/// Waits, and prints to `out` how it goes and how it ended.
pub(crate) async fn run(
    args: &WaitArgs,
    client: Client,
    terminal: Terminal,
    out: &mut dyn Write,
) -> Result<Exit, WaitError> {
    let scope = Scope::new(args.namespace.as_ref(), false, &client);
    let mut filter = Filter { node: args.node.clone(), ..Filter::default() };
    match &args.target {
        None => {}
        Some(Target::Image(image)) => filter.image = Some(image.clone()),
        Some(target) => filter.wanted = Some(wanted_images(target, client.clone(), &scope).await?),
    }
    until_ready(&filter, client, &scope, args.timeout, terminal, out).await
}

/// Waits for what the filter keeps.
pub(super) async fn until_ready(
    filter: &Filter,
    client: Client,
    scope: &Scope,
    limit: Duration,
    terminal: Terminal,
    out: &mut dyn Write,
) -> Result<Exit, WaitError> {
    let api = scope.api(client);
    let mut listed = Vec::new();
    let listing = list(&api, ListParams::default(), |warm| listed.push(warm)).await;
    listing.map_err(|error| IMAGE_WARMS.failed(error, scope))?;
    let following = follow(api.clone(), listed, scope, filter, Screen::of(terminal), out);
    let (mut warms, in_time) = match timeout(limit, following).await {
        Ok(warms) => (warms?, true),
        Err(_) => {
            let mut last = Vec::new();
            let listing = list(&api, ListParams::default(), |warm| last.push(warm)).await;
            listing.map_err(|error| IMAGE_WARMS.failed(error, scope))?;
            (last, false)
        }
    };
    warms.retain(|warm| filter.keeps(warm));
    let rows = Row::from_all(&warms, wall_clock());
    let missing = filter.missing(rows.iter().map(|row| row.image.as_str()));
    let all = Summary::of(&rows);
    let exit = match in_time {
        true => Exit::from(all.all_ready()),
        // It may have come at the last moment.
        false if all.all_ready() && !rows.is_empty() && missing.is_empty() => Exit::Done,
        false => Exit::TimedOut,
    };
    let limit = (exit == Exit::TimedOut).then_some(limit);
    out.write_all(render_outcome(&rows, &missing, limit).as_bytes())?;
    out.flush()?;
    Ok(exit)
}
