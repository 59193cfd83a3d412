//! `cargo xtask demo`: a Revision is created, and its images arrive on three nodes while you watch.
//! Every statement it prints is checked; the exit code is non-zero if one was not so. Of the
//! programs it prepares only those that its options ask for.

mod arrival;
mod arrivals;
mod board;
mod build;
mod first_request;
mod scene;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use kube::api::{DynamicObject, PostParams};

use self::arrival::Arrival;
use self::arrivals::Arrivals;
use self::board::{bytes, print_table};
use self::scene::Scene;
use crate::cluster::{Cluster, ContainerdVersion, Options, require_root};
use crate::prerequisites::{self, Prerequisite};

/// Arguments of `cargo xtask demo`.
#[derive(clap::Args, Clone, Debug)]
pub struct DemoArgs {
    /// How many nodes, each with a runtime of its own.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=20))]
    nodes: u8,
    /// Which runtime the nodes have; with `all` they take turns, so that three nodes have one each.
    #[arg(long, value_enum, default_value_t = DemoRuntime::Docker)]
    runtime: DemoRuntime,
    /// Beside Knative Serving itself, on two nodes with kubelet and containerd: a request to a Service that
    /// is scaled to zero, with imagewarm and without.
    #[arg(long, conflicts_with_all = ["nodes", "runtime", "keep"])]
    knative: bool,
    /// Leave everything running at the end, until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// Run this `imagewarm` binary instead of building one.
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
}

/// Runtimes to choose from.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum DemoRuntime {
    Docker,
    Containerd,
    Crio,
    All,
}

impl DemoRuntime {
    /// The runtime of the node of this number, counted from 0.
    fn of_node(self, number: u8) -> Self {
        match (self, number % 3) {
            (Self::All, 0) => Self::Docker,
            (Self::All, 1) => Self::Containerd,
            (Self::All, _) => Self::Crio,
            (one, _) => one,
        }
    }

    /// The program that a node of this runtime is.
    fn prerequisite(self) -> Prerequisite {
        match self {
            Self::Docker | Self::All => Prerequisite::Dockerd,
            Self::Containerd => Prerequisite::Containerd2,
            Self::Crio => Prerequisite::Crio,
        }
    }

    async fn add_node(self, cluster: &Cluster, name: &str) -> Result<()> {
        match self {
            Self::Docker | Self::All => cluster.add_node(name, &[]).await,
            Self::Containerd => cluster.add_containerd_node(name, ContainerdVersion::V2_2).await,
            Self::Crio => cluster.add_crio_node(name).await,
        }
        .map(drop)
    }
}

impl DemoArgs {
    /// What a demo with these options runs.
    fn prerequisites(&self) -> BTreeSet<Prerequisite> {
        let control_plane = [Prerequisite::Etcd, Prerequisite::KubeApiserver];
        if self.knative {
            return crate::cold_start::prerequisites();
        }
        // Of the private registry: its password and its network.
        let registries = [Prerequisite::DockerRegistry, Prerequisite::Htpasswd, Prerequisite::Ip];
        let nodes = (0..self.nodes).map(|number| self.runtime.of_node(number).prerequisite());
        // To try things by hand: kubectl, and a controller manager to delete what has lost its owner.
        let by_hand = [Prerequisite::Kubectl, Prerequisite::KubeControllerManager];
        let by_hand = by_hand.into_iter().filter(|_| self.keep);
        control_plane.into_iter().chain(registries).chain(nodes).chain(by_hand).collect()
    }
}

/// Runs the demo.
pub async fn run(arguments: DemoArgs) -> Result<ExitCode> {
    // Before the builds, not after them.
    require_root()?;
    let asked: Vec<Prerequisite> = arguments.prerequisites().into_iter().collect();
    let binary = async {
        match &arguments.binary {
            Some(binary) => Ok(binary.clone()),
            None => build::imagewarm().await,
        }
    };
    // Side by side: the one loads modules and packages while the other compiles.
    let (programs, binary) = tokio::try_join!(prerequisites::ensure(&asked), binary)?;
    if arguments.knative {
        return first_request::show(programs, &binary).await;
    }
    let nodes = arguments.nodes;
    say(&format!("starting a control plane, two registries and {nodes} nodes"));
    let options = Options { nodes: 0, tls_registry: true, ..Options::default() };
    let start = Instant::now();
    let cluster = Cluster::start_from(programs, options, &[]).await?;
    let adding = (0..nodes).map(|number| {
        let (name, cluster) = (format!("node-{}", number + 1), &cluster);
        async move { arguments.runtime.of_node(number).add_node(cluster, &name).await }
    });
    try_join_all(adding).await?;
    for node in cluster.nodes_by_name() {
        println!("    {} has {}", node.name, node.runtime_name());
    }
    say(&format!("up in {:.1} s", start.elapsed().as_secs_f32()));

    let played = play(&cluster, &binary).await;
    if let Err(error) = &played {
        eprintln!("error: {error:#}");
        show_logs(&cluster);
    }
    if arguments.keep {
        invite(&cluster, &binary)?;
        std::future::pending::<()>().await;
    }
    Ok(if played.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn play(cluster: &Cluster, binary: &Path) -> Result<()> {
    say("pushing one public and one private image");
    let scene = Scene::prepare(cluster).await?;
    for image in &scene.images {
        println!("    {} ({})", image.reference, bytes(image.bytes));
    }

    say("starting 2 controllers and a warmer on each node");
    start_imagewarm(cluster, binary).await?;
    scene.wait_for_admission(cluster).await?;

    say("creating a Revision with two containers");
    let arrivals = Arrivals::expect(cluster, &scene);
    let (revision, arrivals) = arrivals.watch(cluster, &scene).await?;
    println!();
    print_table(&arrivals);
    print_times(&revision, &arrivals)?;

    say("creating a malformed ImageWarm");
    refuse_malformed(cluster, &scene).await
}

async fn start_imagewarm(cluster: &Cluster, binary: &Path) -> Result<()> {
    let mut started = Vec::new();
    for name in ["controller-1", "controller-2"] {
        started.push(cluster.start_controller(binary, name, &[]).await?);
    }
    for node in cluster.nodes() {
        started.push(cluster.start_warmer(binary, &node, &[]).await?);
    }
    let ready = started.iter().filter_map(|process| {
        let health = process.health()?;
        Some(process.wait_ready(health, "/readyz", Duration::from_secs(60)))
    });
    try_join_all(ready).await.map(drop)
}

fn print_times(revision: &str, arrivals: &[Arrival]) -> Result<()> {
    let span = |what: fn(&Arrival) -> Option<Duration>| -> Result<(Duration, Duration)> {
        let times: Option<Vec<Duration>> = arrivals.iter().map(what).collect();
        let times = times.context("an image is still missing")?;
        let first = times.iter().min().context("no image")?;
        Ok((*first, *times.iter().max().unwrap_or(first)))
    };
    let (first, last) = span(|arrival| arrival.ordered)?;
    let (_, present) = span(|arrival| arrival.present)?;
    println!("after the creation of Revision {revision} was sent:");
    println!("    {:>6} ms  the first ImageWarm existed", first.as_millis());
    println!("    {:>6} ms  the last ImageWarm existed", last.as_millis());
    println!("    {:>6} ms  the last image was present, said its runtime", present.as_millis());
    Ok(())
}

async fn refuse_malformed(cluster: &Cluster, scene: &Scene) -> Result<()> {
    let malformed: DynamicObject = serde_json::from_value(scene.malformed())?;
    let created = scene::image_warms(cluster).create(&PostParams::default(), &malformed).await;
    let message = match created {
        Err(kube::Error::Api(status)) => status.message,
        Err(error) => return Err(error).context("create the malformed ImageWarm"),
        Ok(_) => bail!("the malformed ImageWarm was accepted"),
    };
    for line in message.lines() {
        println!("    {line}");
    }
    for path in ["spec.image", "spec.imagePullSecrets[0].name"] {
        ensure!(message.contains(path), "the refusal does not name {path}");
    }
    Ok(())
}

fn show_logs(cluster: &Cluster) {
    for process in cluster.imagewarm_processes() {
        eprintln!("last lines of {}:\n{}\n", process.name(), process.log_tail());
    }
}

fn invite(cluster: &Cluster, binary: &Path) -> Result<()> {
    let (imagewarm, kubectl) = (binary.display(), cluster.kubectl()?.display());
    println!();
    say("everything is left running; Ctrl-C ends it. Try, in another terminal:");
    println!("    export KUBECONFIG={}", cluster.kubeconfig_path().display());
    println!("    {kubectl} get imagewarms -A -o wide");
    println!("    {imagewarm} status -n {}", scene::NAMESPACE);
    let delete = "delete configuration.serving.knative.dev --all";
    println!("    {kubectl} -n {} {delete}", scene::NAMESPACE);
    for node in cluster.nodes_by_name().iter().filter(|node| !node.has_cri()).take(1) {
        println!("    docker -H unix://{} images", node.socket.display());
    }
    println!("    tail -f {}/log/controller-1.log", cluster.folder().display());
    Ok(())
}

fn say(text: &str) {
    println!("==> {text}");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::{Args as _, FromArgMatches as _};

    use super::*;
    use crate::prerequisites::Prerequisite::*;

    fn prerequisites(arguments: &[&str]) -> BTreeSet<Prerequisite> {
        let command = DemoArgs::augment_args(clap::Command::new("demo"));
        let matches = command.get_matches_from(std::iter::once(&"demo").chain(arguments));
        DemoArgs::from_arg_matches(&matches).unwrap().prerequisites()
    }

    #[test]
    fn the_options_choose_the_programs() {
        let always = [Etcd, KubeApiserver, DockerRegistry, Htpasswd, Ip];
        assert!(prerequisites(&["--knative"]).contains(&Kubelet));
        let table: [(&[&str], &[Prerequisite]); 8] = [
            (&[], &[Dockerd]),
            (&["--nodes", "20"], &[Dockerd]),
            (&["--runtime", "containerd"], &[Containerd2]),
            (&["--runtime", "crio"], &[Crio]),
            (&["--runtime", "all"], &[Dockerd, Containerd2, Crio]),
            (&["--runtime", "all", "--nodes", "1"], &[Dockerd]),
            (&["--runtime", "all", "--nodes", "2"], &[Dockerd, Containerd2]),
            (&["--keep"], &[Dockerd, Kubectl, KubeControllerManager]),
        ];
        for (arguments, further) in table {
            let wanted = always.iter().chain(further).copied().collect();
            assert_eq!(prerequisites(arguments), wanted, "{arguments:?}");
        }
    }
}
