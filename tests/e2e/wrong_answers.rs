//! The API server's answers are refusals, or wrong: lists and watches end with 403, 404 or
//! 410, and lists are empty though the objects are there. Not one ImageWarm is deleted for it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::{ImageWarm, Revision};
use serde_json::json;
use xtask::cluster::ApiProxy;
use xtask::cluster::api_proxy::{Answer, Rule, Verb};

use crate::world::{Namespace, World, containers, eventually};

crate::tests![refused_lists_and_watches_delete_nothing, empty_lists_delete_nothing];

/// All that the controllers list and watch.
const WATCHED: [&str; 5] = ["revisions", "images", "nodes", "imagewarms", "namespaces"];
/// A deletion must have been due for 2 s when it is done, and its object be 3 s old here.
const LONG_ENOUGH: Duration = Duration::from_secs(4);

async fn refused_lists_and_watches_delete_nothing(world: &World) -> Result<()> {
    let (proxy, mut settled) = behind_a_proxy(world).await?;
    for code in [403, 404, 410] {
        for resources in [&WATCHED[..2], &WATCHED[2..]] {
            let both = [Verb::List, Verb::Watch];
            let refuse = |one: &&str| Rule::new(&both, one, Answer::Status(code));
            proxy.set_rules(resources.iter().map(refuse).collect());
            proxy.cut_connections();
            let what = format!("{code} for {resources:?}");
            settled.time_passes(world).await.context(what.clone())?;
            settled.is_untouched(world, &proxy).await.context(what.clone())?;
            proxy.set_rules(vec![]);
            settled.is_served_again().await.context(what)?;
        }
    }
    Ok(())
}

/// Nothing distinguishes an empty list from the truth but a live request for the objects.
async fn empty_lists_delete_nothing(world: &World) -> Result<()> {
    let (proxy, mut settled) = behind_a_proxy(world).await?;
    for resource in WATCHED {
        let doubts = world.logs.count("controller-1", "the list lacks");
        list_anew(&proxy, resource, Some(Answer::EmptyList)).await?;
        settled.time_passes(world).await.context(resource)?;
        settled.is_untouched(world, &proxy).await.context(resource)?;
        ensure!(
            world.logs.count("controller-1", "the list lacks") > doubts,
            "{resource}: believed"
        );
        list_anew(&proxy, resource, None).await?;
        settled.is_served_again().await.context(resource)?;
    }
    // A controller that has never seen the objects knows no better either.
    for resource in ["revisions", "images", "nodes"] {
        let doubts = world.logs.count("controller-1", "the cache lacks a live object");
        proxy.set_rules(vec![Rule::new(&[Verb::List], resource, Answer::EmptyList)]);
        world.controllers.kill_all().await?;
        world.controllers.start_through(&proxy, "controller-1", &[]).await?;
        world.controllers.until_ready().await?;
        settled.time_passes(world).await.context(resource)?;
        eventually("a live look speaks against the list", async || {
            let logged = world.logs.count("controller-1", "the cache lacks a live object");
            Ok((logged > doubts).then_some(()))
        })
        .await?;
        settled.is_untouched(world, &proxy).await.context(resource)?;
        list_anew(&proxy, resource, None).await?;
        settled.is_served_again().await.context(resource)?;
    }
    Ok(())
}

/// Makes the controller list this resource anew, and returns once it has the answer.
async fn list_anew(proxy: &ApiProxy, resource: &str, answer: Option<Answer>) -> Result<()> {
    let listed = |answer| Rule::new(&[Verb::List], resource, answer);
    let lists = proxy.count(Verb::List, resource);
    // Until it does: a single refusal could be lost with a connection that is cut.
    let expired = Rule::new(&[Verb::Watch], resource, Answer::Status(410));
    proxy.set_rules(answer.into_iter().map(listed).chain([expired]).collect());
    proxy.cut_connections();
    eventually(&format!("the controller lists {resource} anew"), async || {
        Ok((proxy.count(Verb::List, resource) > lists).then_some(()))
    })
    .await?;
    proxy.set_rules(answer.into_iter().map(listed).collect());
    Ok(())
}

/// What is there before the faults, and must be there after them.
struct Settled {
    namespace: Namespace,
    warms: Vec<ImageWarm>,
}

/// One controller behind a proxy, and ImageWarms of a named Revision, of a nameless one, and of a
/// Knative Image.
async fn behind_a_proxy(world: &World) -> Result<(ApiProxy, Settled)> {
    world.controllers.stop().await?;
    let proxy = world.cluster().api_proxy().await?;
    world.controllers.start_through(&proxy, "controller-1", &[]).await?;
    world.controllers.until_ready().await?;
    let namespace = world.namespace("wrong").await?;
    let named = world.registries.push("wrong", "named").await?;
    let nameless = world.registries.push("wrong", "nameless").await?;
    let by_hand = world.registries.push("wrong", "by-hand").await?;
    namespace.revision("hello-00001", containers(&[&named.tag])).await?;
    let body = json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
        "metadata": {"generateName": "nameless-"}, "spec": containers(&[&nameless.tag]),
    });
    let revisions = namespace.api::<Revision>();
    revisions.create(&Default::default(), &serde_json::from_value(body)?).await?;
    namespace.image("by-hand", json!({"image": by_hand.tag}), None).await?;
    let warms = namespace.all_ready(9).await?;
    Ok((proxy, Settled { namespace, warms }))
}

impl Settled {
    /// Returns once the leader has looked at everything several times, from now on and for as long
    /// as it waits before it deletes anything.
    async fn time_passes(&self, world: &World) -> Result<()> {
        let began = Instant::now();
        let count = "imagewarm_reconcile_duration_seconds_count";
        let runs = world.controllers.metric_sum(count, "").await?;
        let mut turn = 0;
        while began.elapsed() < LONG_ENOUGH
            || world.controllers.metric_sum(count, "").await? < runs + 3.0
        {
            ensure!(began.elapsed() < Duration::from_secs(60), "the leader does nothing");
            // Gives the leader a reason to look; seen by whatever watch is not refused.
            turn += 1;
            let value = turn.to_string();
            world.nodes.label("node-1", "turn", &value).await?;
            self.namespace.label("turn", &value).await?;
            self.namespace.route("hello-00001", "active").await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    async fn is_untouched(&self, world: &World, proxy: &ApiProxy) -> Result<()> {
        let name = &self.namespace.name;
        let mut asked = proxy.calls();
        asked.retain(|call| call.verb == Verb::Delete && call.namespace == *name);
        ensure!(asked.is_empty(), "asked to delete: {asked:?}");
        let deletions = world.audit.deletions_in(name)?;
        ensure!(deletions == 0, "the API server was asked for {deletions} deletions");
        let uids = |warms: &[ImageWarm]| -> Vec<_> {
            warms.iter().map(|warm| warm.metadata.uid.clone()).collect()
        };
        let now = self.namespace.image_warms().await?;
        ensure!(uids(&now) == uids(&self.warms), "{now:?} instead of {:?}", self.warms);
        Ok(())
    }

    /// The controller sees everything again: an ImageWarm that is deleted is made anew.
    async fn is_served_again(&mut self) -> Result<()> {
        let victim = self.warms.remove(0);
        self.namespace.delete_image_warm(&victim).await?;
        self.warms = self.namespace.all_ready(self.warms.len() + 1).await?;
        Ok(())
    }
}
