//! The command line: the tree of commands and flags, and the exit codes. Each module defines the
//! flags that it uses; this file only combines them.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::clock::wall_clock;
use crate::commands::terminal::Terminal;
use crate::commands::{certs, check, pins, reference, report, status, wait, warm, why};
use crate::exit::Exit;
use crate::kubernetes::client::ClientArgs;
use crate::programs::{self, ControllerCommand, WarmerCommand};
use crate::telemetry::logs;

/// Warm container images on every node the moment a Knative Revision is created
#[derive(Parser, Debug)]
#[command(
    name = "imagewarm",
    version,
    about,
    max_term_width = 100,
    after_help = "Exit codes: 0 done and all is well, 1 the request failed or something is not well, \
                  2 wrong usage, 3 unexpected, 4 not in time"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the imagecontroller: admission webhooks, fan-out and, on the leader, reconciliation and
    /// the warmers' streams
    Controller(Box<ControllerCommand>),
    /// Run the imagewarmer of one node, which pulls the images that the controller assigns
    Warmer(Box<WarmerCommand>),
    /// Check an installation, or with --pre a cluster before installation; exit with 1 if anything does not hold
    Check(CheckCommand),
    /// Show which images are warm on which nodes, and why the others are not
    Status(StatusCommand),
    /// Tell the whole story of an image: who wants it, how its pulls went, what comes next
    Why(WhyCommand),
    /// Warm images by hand
    Warm(WarmCommand),
    /// Wait until images are on their nodes; exit with 4 when they are not in time
    Wait(WaitCommand),
    /// Show what warming was worth: which containers found their image, and how long the others
    /// waited
    Report(ReportCommand),
    /// Print the settings with which CRI-O or cri-dockerd pins the images that are wanted now, so that kubelets do
    /// not remove them
    Pins(PinsCommand),
    /// Show certificates, their expiry and those that replicas serve; exit with 1 on any fault
    Certs(CertsCommand),
    /// Parse image references and print their parts; exit with 1 if any is invalid
    Reference(reference::ReferenceArgs),
    /// Print the CustomResourceDefinition as YAML
    Crds,
}

#[derive(Args, Debug)]
struct CheckCommand {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    check: check::CheckArgs,
}

#[derive(Args, Debug)]
struct StatusCommand {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    status: status::StatusArgs,
}

#[derive(Args, Debug)]
struct WhyCommand {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    why: why::WhyArgs,
}

#[derive(Args, Debug)]
struct WarmCommand {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    warm: warm::WarmArgs,
}

#[derive(Args, Debug)]
struct WaitCommand {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    wait: wait::WaitArgs,
}

#[derive(Args, Debug)]
struct ReportCommand {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    report: report::ReportArgs,
}

#[derive(Args, Debug)]
struct PinsCommand {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    pins: pins::PinsArgs,
}

#[derive(Args, Debug)]
struct CertsCommand {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    certs: certs::CertsArgs,
}

/// Parses the command line, runs the command and returns its result as an exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // Before the first TLS connection; fails only if a provider is already installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let exit = run(cli.command).unwrap_or_else(|error| {
        // One line, every cause once.
        let _ = writeln!(io::stderr(), "imagewarm: {error:#}");
        if broken_pipe(&error) { Exit::Done } else { Exit::Failed }
    });
    ExitCode::from(exit as u8)
}

fn run(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Controller(command) => {
            logs::init(&command.log)?;
            block_on(programs::controller(*command))
        }
        Command::Warmer(command) => {
            logs::init(&command.log)?;
            // One thread suffices: the container runtime does the work.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(programs::warmer(*command))
        }
        Command::Check(command) => block_on(async move {
            let client = command.client.connect().await?;
            Ok(check::run(&command.check, client, Terminal::stdout(), &mut io::stdout()).await?)
        }),
        Command::Status(command) => block_on(async move {
            let client = command.client.connect().await?;
            let all_ready =
                status::run(&command.status, client, Terminal::stdout(), &mut io::stdout()).await?;
            Ok(Exit::from(all_ready))
        }),
        Command::Why(command) => block_on(async move {
            let client = command.client.connect().await?;
            Ok(why::run(&command.why, client, &mut io::stdout()).await?)
        }),
        Command::Warm(command) => block_on(async move {
            let client = command.client.connect().await?;
            Ok(warm::run(&command.warm, client, Terminal::stdout(), &mut io::stdout()).await?)
        }),
        Command::Wait(command) => block_on(async move {
            let client = command.client.connect().await?;
            Ok(wait::run(&command.wait, client, Terminal::stdout(), &mut io::stdout()).await?)
        }),
        Command::Report(command) => block_on(async move {
            let client = command.client.connect().await?;
            report::run(&command.report, client, &mut io::stdout()).await?;
            Ok(Exit::Done)
        }),
        Command::Pins(command) => block_on(async move {
            let client = command.client.connect().await?;
            pins::run(&command.pins, client, &mut io::stdout()).await?;
            Ok(Exit::Done)
        }),
        Command::Certs(command) => block_on(async move {
            use crate::leader::ca_publication::CONFIGURATION;
            use programs::certificates::SECRET;
            let client = command.client.connect().await?;
            let (now, out) = (wall_clock(), &mut io::stdout());
            let names = (SECRET, CONFIGURATION);
            Ok(Exit::from(certs::run(&command.certs, names, client, now, out).await?))
        }),
        Command::Reference(args) => {
            let good = reference::run(&args, &mut io::stdout().lock(), &mut io::stdin().lock())?;
            Ok(Exit::from(good))
        }
        Command::Crds => {
            crate::commands::crds::run(&mut io::stdout().lock())?;
            Ok(Exit::Done)
        }
    }
}

fn block_on(program: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(program)
}

fn broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_tree_is_sound() {
        super::Cli::command().debug_assert();
    }
}
