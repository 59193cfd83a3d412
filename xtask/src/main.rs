//! `cargo xtask`: the developer's commands.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use xtask::cluster::{Cluster, Knative, Options, require_root};
use xtask::prerequisites::{self, Prerequisite};
use xtask::{bench, demo, dist, test};

/// Developer commands of imagewarm.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows a Revision's images arriving on real nodes.
    Demo(demo::DemoArgs),
    /// Runs every test: unit, property, differential and integration.
    Test(test::TestArgs),
    /// Measures imagewarm against the development cluster, beside baselines.
    Bench(bench::BenchArgs),
    /// Makes the files of a release: image, archives, manual, SBOM, notices, manifests, checksums.
    #[command(disable_help_flag = true)]
    Dist(dist::DistArgs),
    /// Brings up the bare development cluster and leaves it running until Ctrl-C.
    Cluster(ClusterArgs),
    /// Finds, installs and builds the programs that the development cluster needs.
    Prerequisites(PrerequisitesArgs),
}

#[derive(clap::Args)]
struct PrerequisitesArgs {
    /// Only these; all without a name.
    #[arg(value_enum)]
    programs: Vec<Prerequisite>,
}

#[derive(clap::Args)]
struct ClusterArgs {
    /// How many nodes, each with its own dockerd.
    #[arg(long, default_value_t = 1)]
    nodes: usize,
    /// Also start a registry with TLS and password.
    #[arg(long)]
    tls_registry: bool,
    /// Start Knative Serving itself (a first build takes minutes); without, there are stand-ins for
    /// its CRDs alone.
    #[arg(long)]
    knative: bool,
    /// Do not apply `deploy/`.
    #[arg(long)]
    no_deploy: bool,
}

impl ClusterArgs {
    fn prerequisites(&self) -> Vec<Prerequisite> {
        let mut programs = vec![
            Prerequisite::Etcd,
            Prerequisite::DockerRegistry,
            Prerequisite::Dockerd,
            Prerequisite::KubeApiserver,
            Prerequisite::KubeControllerManager,
            Prerequisite::Kubectl,
        ];
        if self.tls_registry {
            programs.extend([Prerequisite::Htpasswd, Prerequisite::Ip]);
        }
        if self.knative {
            programs.extend(Prerequisite::knative());
        }
        programs
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            return ExitCode::from(3);
        }
    };
    // A signal drops the command's future, and with it the cluster: everything is stopped.
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = run(arguments.command) => outcome,
            signal = interrupted() => signal,
        }
    });
    // What still runs on a blocking thread (a build, say) must not hold up the end.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo(arguments) => demo::run(arguments).await,
        Command::Test(arguments) => test::run(arguments).await,
        Command::Bench(arguments) => bench::run(arguments).await,
        Command::Dist(arguments) => dist::run(arguments).await,
        Command::Cluster(arguments) => keep_cluster(arguments).await,
        Command::Prerequisites(PrerequisitesArgs { programs }) => {
            let all = Prerequisite::all();
            let asked = if programs.is_empty() { all } else { &programs };
            let programs = prerequisites::ensure(asked).await?;
            print!("{programs}");
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn keep_cluster(arguments: ClusterArgs) -> Result<ExitCode> {
    let options = Options {
        nodes: arguments.nodes,
        tls_registry: arguments.tls_registry,
        knative: if arguments.knative { Knative::Real } else { Knative::StandIn },
        deploy: !arguments.no_deploy,
    };
    require_root()?;
    let programs = prerequisites::ensure(&arguments.prerequisites()).await?;
    let start = std::time::Instant::now();
    let cluster = Cluster::start_from(programs, options, &[]).await?;
    println!(
        "up in {:.1} s; everything is in {}",
        start.elapsed().as_secs_f32(),
        cluster.folder().display()
    );
    println!("export KUBECONFIG={}", cluster.kubeconfig_path().display());
    println!("kubectl is {}", cluster.kubectl()?.display());
    println!("registry {}", cluster.registry_plain.address);
    if let Some(registry) = &cluster.registry_tls {
        println!("registry with TLS and password {}", registry.address);
    }
    if let Ok(serving) = cluster.serving() {
        println!("Knative's activator http://{}", serving.activator.address());
    }
    for node in cluster.nodes() {
        println!("{}: docker -H unix://{}", node.name, node.socket.display());
    }
    println!("Ctrl-C ends it");
    std::future::pending().await
}

async fn interrupted() -> Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let number = tokio::select! {
        _ = interrupt.recv() => libc::SIGINT,
        _ = terminate.recv() => libc::SIGTERM,
        _ = hangup.recv() => libc::SIGHUP,
    };
    eprintln!("stopping");
    // As a shell reports a process that a signal ended.
    Ok(ExitCode::from(128 + u8::try_from(number).unwrap_or_default()))
}
