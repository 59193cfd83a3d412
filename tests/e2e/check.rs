//! `imagewarm check` against the running system, and against what is really broken in it.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::world::{World, eventually};

crate::tests![check_finds_what_is_broken, check_before_installation_names_obstacles];

/// What other tests leave in their namespaces may be about these.
const OF_IMAGE_WARMS: [&str; 2] = ["runtimes", "credentials"];

/// The names of the checks with this outcome, as an account finds them that has only the rights for it.
async fn outcomes(world: &World, kubeconfig: &str, outcome: &str) -> Result<BTreeSet<String>> {
    let arguments = ["check", "--kubeconfig", kubeconfig, "-o", "json"];
    let (code, text) = world.commands.imagewarm(&arguments).await?;
    let value: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    ensure!((code == 0) == (value["passed"] == true), "{code}\n{text}");
    let checks = value["checks"].as_array().context("no checks")?;
    let of = checks.iter().filter(|check| check["outcome"] == outcome);
    let names = of.filter_map(|check| check["name"].as_str().map(str::to_owned));
    Ok(names.filter(|name| !OF_IMAGE_WARMS.contains(&name.as_str())).collect())
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

async fn check_finds_what_is_broken(world: &World) -> Result<()> {
    let namespace = world.namespace("check").await?;
    namespace.service_account("checker", &[]).await?;
    world.installation.allow_check(&namespace.name, "checker").await?;
    let kubeconfig = world.cluster().kubeconfig_for(&namespace.name, "checker").await?;
    let kubeconfig = kubeconfig.to_str().context("a path in UTF-8")?;
    let nodes = world.nodes.all().await?;
    world.warmers.run_pods(&nodes.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    // A test before this one may have replaced the controllers: there is a leader again within its Lease.
    let arguments = ["check", "--kubeconfig", kubeconfig];
    let whole = async || anyhow::Ok(world.commands.imagewarm(&arguments).await?.1);
    let holds = async || {
        for outcome in ["failed", "warning", "skipped"] {
            let found = outcomes(world, kubeconfig, outcome).await?;
            if !found.is_empty() {
                println!("{outcome}: {found:?}\n{}", whole().await?);
                return Ok(None);
            }
        }
        Ok(Some(()))
    };
    eventually("everything to hold", holds).await?;
    let text = whole().await?;
    let all = format!("{0} of {0} nodes", nodes.len());
    for part in ["ok      leader        controller-", &all, "nodes agree"] {
        ensure!(text.contains(part), "no {part:?} in:\n{text}");
    }

    world.warmers.report_pod("node-2", "False").await?;
    let found = outcomes(world, kubeconfig, "failed").await?;
    ensure!(found == names(&["warmers"]), "a warmer without stream: {found:?}");
    world.warmers.report_pod("node-2", "True").await?;
    let fake = world.nodes.create_fake("check", 1).await?;
    let found = outcomes(world, kubeconfig, "failed").await?;
    ensure!(found == names(&["warmers"]), "a node without warmer: {found:?}");
    world.nodes.delete_objects(&fake).await?;

    world.controllers.stop().await?;
    let found = outcomes(world, kubeconfig, "failed").await?;
    ensure!(found == names(&["leader"]), "no controller: {found:?}");
    let needs_leader = ["certificates", "admission", "warmers", "versions"];
    let found = outcomes(world, kubeconfig, "skipped").await?;
    ensure!(found == names(&needs_leader), "without controller: {found:?}");
    // Nobody is there to repair it.
    world.installation.break_ca_bundles().await?;
    let found = outcomes(world, kubeconfig, "failed").await?;
    ensure!(found == names(&["leader", "webhooks"]), "without caBundle: {found:?}");
    let arguments = ["check", "--kubeconfig", kubeconfig, "--wait", "--timeout", "100ms"];
    let (code, text) = world.commands.imagewarm(&arguments).await?;
    ensure!(code == 4 && text.contains("no caBundle"), "{code}\n{text}");
    Ok(())
}

async fn check_before_installation_names_obstacles(world: &World) -> Result<()> {
    let (code, text) = world.commands.imagewarm(&["check", "--pre"]).await?;
    ensure!(code == 0 && text.contains("installing it again upgrades it"), "{code}\n{text}");
    let namespace = world.namespace("check-pre").await?;
    let kubeconfig = world.cluster().kubeconfig_for(&namespace.name, "default").await?;
    let kubeconfig = kubeconfig.to_str().context("a path in UTF-8")?;
    let arguments = ["check", "--pre", "--kubeconfig", kubeconfig];
    let (code, text) = world.commands.imagewarm(&arguments).await?;
    for part in [
        "FAILED  rights",
        "you may not create namespaces",
        "skipped nodes",
        "you may not list nodes",
    ] {
        ensure!(text.contains(part), "no {part:?} in:\n{text}");
    }
    ensure!(code == 1, "{code}\n{text}");
    world.installation.add_second_webhook_configuration().await?;
    let (code, text) = world.commands.imagewarm(&["check", "--pre"]).await?;
    ensure!(code == 1 && text.contains("FAILED  conflicts"), "{code}\n{text}");
    let (code, text) = world.commands.imagewarm(&["check"]).await?;
    ensure!(code == 1 && text.contains("there is a second installation"), "{code}\n{text}");
    Ok(())
}
