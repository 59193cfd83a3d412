//! `imagewarm check`: whether an installation works, or whether a cluster can get one. Reads the cluster with the
//! user's own rights; what is created is created as a dry run.

mod observe;

use std::io::{self, Write};
use std::time::Duration;

use kube::Client;
use tokio::time::{Instant, sleep};

use crate::commands::terminal::Terminal;
use crate::exit::Exit;
use imagewarm_core::api::names::Namespace;
use imagewarm_core::check::{
    CheckResult, all_hold, before_installation, installation, render, render_json,
};
use imagewarm_core::settings::duration;

/// Interval of `--wait`.
const INTERVAL: Duration = Duration::from_secs(2);

/// Check an installation, or with --pre a cluster before installation; exit with 1 if anything does not hold
///
/// Each check is one line; what does not hold is followed by what to do, and where it is explained. What the user may
/// not read is skipped: the ClusterRole and the Role imagewarm-check have all rights that are needed. Nothing is
/// changed: ImageWarms are created as a dry run.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples:\n  \
    $ imagewarm check --pre                    # can imagewarm be installed here?\n  \
    $ imagewarm check --wait --timeout 2m      # after installation, in scripts\n  \
    $ imagewarm check -o json | jq '.checks[] | select(.outcome == \"failed\")'\n\n\
    Exit codes: 0 all hold, 1 something does not, 2 wrong usage, 4 something still does not after --timeout")]
pub(crate) struct CheckArgs {
    /// Namespace of the controllers
    #[arg(short, long, value_name = "NAMESPACE", default_value = "imagewarm-system")]
    pub namespace: Namespace,

    /// Check whether imagewarm can be installed: version of the API server, the user's rights, the namespace, other
    /// installations, runtimes of the nodes, Knative
    #[arg(long)]
    pub pre: bool,

    /// Check again until everything holds
    #[arg(long)]
    pub wait: bool,

    /// How long to wait at most
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration, requires = "wait")]
    pub timeout: Duration,

    /// Output format
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: CheckOutput,
}

/// Output format.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CheckOutput {
    /// One line for each check.
    #[default]
    Table,
    /// One JSON object with `passed` and `checks`.
    Json,
}

/// Prints the results to `out`. With `--wait` they are those of the last time.
pub(crate) async fn run(
    args: &CheckArgs,
    client: Client,
    terminal: Terminal,
    out: &mut dyn Write,
) -> io::Result<Exit> {
    let deadline = Instant::now() + args.timeout;
    let results = loop {
        let results = check(args, &client).await;
        let next = Instant::now() + INTERVAL;
        if all_hold(&results) || !args.wait || next > deadline {
            break results;
        }
        sleep(INTERVAL).await;
    };
    let text = match args.output {
        CheckOutput::Table => render(&results, terminal.marks()),
        CheckOutput::Json => render_json(&results),
    };
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(match all_hold(&results) {
        true => Exit::Done,
        false if args.wait => Exit::TimedOut,
        false => Exit::Failed,
    })
}

async fn check(args: &CheckArgs, client: &Client) -> Vec<CheckResult> {
    match args.pre {
        true => before_installation(&observe::before(client, &args.namespace).await),
        false => installation(&observe::installation(client, &args.namespace).await),
    }
}
