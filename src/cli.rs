//! The command line: one tree of commands and flags, and the exit codes. Flags live with the
//! module that uses them; here they are only put together.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::commands::{certs, reference, status};
use crate::exit::Exit;
use crate::kubernetes::client::ClientArgs;
use crate::programs::{self, ControllerCommand, WarmerCommand};
use crate::telemetry::logs;

/// Warms container images on every node the moment a Knative Revision is created.
#[derive(Parser, Debug)]
#[command(name = "imagewarm", version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Runs the imagecontroller: admission webhooks, fan-out and, on the leader, reconciling and
    /// the warmers' streams.
    Controller(Box<ControllerCommand>),
    /// Runs the imagewarmer of one node: pulls what the controller orders.
    Warmer(Box<WarmerCommand>),
    /// Shows which node holds which image, and why not.
    Status(StatusCommand),
    /// Shows the certificates, their ends, and what replicas serve; exits with 1 when something is
    /// wrong.
    Certs(CertsCommand),
    /// Parses image references and prints their parts; exits with 1 when any is invalid.
    Reference(reference::ReferenceArgs),
    /// Prints the CustomResourceDefinition as YAML.
    Crds,
}

#[derive(Args, Debug)]
struct StatusCommand {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    status: status::StatusArgs,
}

#[derive(Args, Debug)]
struct CertsCommand {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    certs: certs::CertsArgs,
}

/// Parses the command line, runs the command and turns its end into an exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // Before anything makes a TLS connection; fails only when one is installed already.
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
            // Small on every node: the work is the runtime's, so one thread is plenty.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(programs::warmer(*command))
        }
        Command::Status(command) => block_on(async move {
            let client = command.client.connect().await?;
            let all_ready = status::run(&command.status, client, &mut io::stdout()).await?;
            Ok(Exit::from(all_ready))
        }),
        Command::Certs(command) => block_on(async move {
            use programs::certificates::{CONFIGURATION, SECRET};
            let client = command.client.connect().await?;
            let (now, out) = (jiff::Timestamp::now(), &mut io::stdout());
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
