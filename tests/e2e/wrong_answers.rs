//! The API server's answers are refusals, or wrong: lists and watches end with 403, 404 or
//! 410, and lists are empty though the objects are there. Not one ImageWarm is deleted for it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::{ImageWarm, KnativeImage, Revision};
use kube::Api;
use serde_json::json;
use xtask::cluster::ApiProxy;
use xtask::cluster::api_proxy::{Answer, Rule, Verb};

use crate::world::{World, containers};

crate::tests![refused_lists_and_watches_delete_nothing, empty_lists_delete_nothing];

/// All that the controllers list and watch.
const WATCHED: [&str; 5] = ["revisions", "images", "nodes", "imagewarms", "namespaces"];
/// A deletion must have been due for 2 s when it is done, and its object be 3 s old here.
const LONG_ENOUGH: Duration = Duration::from_secs(4);

async fn refused_lists_and_watches_delete_nothing(world: &World) -> Result<()> {
    behind_a_proxy(world, async |proxy, settled| {
        for code in [403, 404, 410] {
            for resources in [&WATCHED[..2], &WATCHED[2..]] {
                let both = [Verb::List, Verb::Watch];
                let refuse = |one: &&str| Rule::new(&both, one, Answer::Status(code));
                proxy.set_rules(resources.iter().map(refuse).collect());
                proxy.cut_connections();
                let what = format!("{code} for {resources:?}");
                settled.time_passes(world).await.context(what.clone())?;
                settled.is_untouched(world, proxy).await.context(what.clone())?;
                proxy.set_rules(vec![]);
                settled.is_served_again(world).await.context(what)?;
            }
        }
        Ok(())
    })
    .await
}

/// The hard one: nothing tells an empty list from the truth but a live look at the objects.
async fn empty_lists_delete_nothing(world: &World) -> Result<()> {
    behind_a_proxy(world, async |proxy, settled| {
        for resource in WATCHED {
            let doubts = world.logged("controller-1", "the list lacks");
            list_anew(world, proxy, resource, Some(Answer::EmptyList)).await?;
            settled.time_passes(world).await.context(resource)?;
            settled.is_untouched(world, proxy).await.context(resource)?;
            ensure!(
                world.logged("controller-1", "the list lacks") > doubts,
                "{resource}: believed"
            );
            list_anew(world, proxy, resource, None).await?;
            settled.is_served_again(world).await.context(resource)?;
        }
        // A controller that has never seen the objects knows no better either.
        for resource in ["revisions", "images", "nodes"] {
            let doubts = world.logged("controller-1", "our list lacks what is there");
            proxy.set_rules(vec![Rule::new(&[Verb::List], resource, Answer::EmptyList)]);
            world.kill_controllers().await?;
            world.start_controller_through(proxy, "controller-1", &[]).await?;
            world.controllers_are_ready().await?;
            settled.time_passes(world).await.context(resource)?;
            world
                .eventually("a live look speaks against the list", async || {
                    let said = world.logged("controller-1", "our list lacks what is there");
                    Ok((said > doubts).then_some(()))
                })
                .await?;
            settled.is_untouched(world, proxy).await.context(resource)?;
            list_anew(world, proxy, resource, None).await?;
            settled.is_served_again(world).await.context(resource)?;
        }
        Ok(())
    })
    .await
}

/// Makes the controller list this resource anew, and returns once it has the answer.
async fn list_anew(
    world: &World,
    proxy: &ApiProxy,
    resource: &str,
    answer: Option<Answer>,
) -> Result<()> {
    let listed = |answer| Rule::new(&[Verb::List], resource, answer);
    let mut rules: Vec<Rule> = answer.into_iter().map(listed).collect();
    rules.push(Rule::new(&[Verb::Watch], resource, Answer::Status(410)).times(1));
    let lists = proxy.count(Verb::List, resource);
    proxy.set_rules(rules);
    proxy.cut_connections();
    world
        .eventually("the controller lists anew", async || {
            Ok((proxy.count(Verb::List, resource) > lists).then_some(()))
        })
        .await
}

/// What is there before the faults, and must be there after them.
struct Settled {
    namespace: String,
    warms: Vec<ImageWarm>,
    deletes: usize,
}

/// Runs `test` with one controller behind a proxy, and with ImageWarms of a named Revision, of a
/// nameless one, and of a Knative Image.
async fn behind_a_proxy(
    world: &World,
    test: impl AsyncFnOnce(&ApiProxy, &mut Settled) -> Result<()>,
) -> Result<()> {
    // What goes rightly shall not be counted.
    world.gone_nodes_are_cleared().await?;
    world.stop_controllers().await?;
    let proxy = world.api_proxy().await?;
    let checked = async {
        world.start_controller_through(&proxy, "controller-1", &[]).await?;
        world.controllers_are_ready().await?;
        let namespace = world.namespace("wrong").await?;
        let named = world.push("wrong", "named").await?;
        let nameless = world.push("wrong", "nameless").await?;
        let by_hand = world.push("wrong", "by-hand").await?;
        world.revision(&namespace, "hello-00001", containers(&[&named.tag])).await?;
        let revisions: Api<Revision> = Api::namespaced(world.client(), &namespace);
        let body = json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": {"generateName": "nameless-"}, "spec": containers(&[&nameless.tag]),
        });
        revisions.create(&Default::default(), &serde_json::from_value(body)?).await?;
        let images: Api<KnativeImage> = Api::namespaced(world.client(), &namespace);
        let body = json!({
            "apiVersion": "caching.internal.knative.dev/v1alpha1", "kind": "Image",
            "metadata": {"name": "by-hand"}, "spec": {"image": by_hand.tag},
        });
        images.create(&Default::default(), &serde_json::from_value(body)?).await?;
        let warms = world.all_ready(&namespace, 9).await?;
        let deletes = world.deletes()?;
        let mut settled = Settled { namespace, warms, deletes };
        test(&proxy, &mut settled).await
    }
    .await;
    world.kill_controllers().await?;
    world.start_controllers().await?;
    checked
}

impl Settled {
    /// Returns once the leader has looked at everything several times, from now on and for as long
    /// as it waits before it deletes anything.
    async fn time_passes(&self, world: &World) -> Result<()> {
        let began = Instant::now();
        let count = "imagewarm_reconcile_duration_seconds_count";
        let runs = world.metric_sum(count, "").await?;
        let mut turn = 0;
        while began.elapsed() < LONG_ENOUGH || world.metric_sum(count, "").await? < runs + 3.0 {
            ensure!(began.elapsed() < Duration::from_secs(60), "the leader does nothing");
            // Gives the leader a reason to look; seen by whatever watch is not refused.
            turn += 1;
            world.label_node("node-1", "turn", Some(&turn.to_string())).await?;
            world.label_namespace(&self.namespace, "turn", &turn.to_string()).await?;
            world.label_revision(&self.namespace, "hello-00001", "turn", &turn.to_string()).await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    async fn is_untouched(&self, world: &World, proxy: &ApiProxy) -> Result<()> {
        let asked: Vec<_> = proxy.calls().into_iter().filter(|c| c.verb == Verb::Delete).collect();
        ensure!(asked.is_empty(), "asked to delete: {asked:?}");
        ensure!(world.deletes()? == self.deletes, "the API server was asked to delete");
        let uids = |warms: &[ImageWarm]| -> Vec<_> {
            warms.iter().map(|warm| warm.metadata.uid.clone()).collect()
        };
        let now = world.warms(&self.namespace).await?;
        ensure!(uids(&now) == uids(&self.warms), "{now:?} instead of {:?}", self.warms);
        Ok(())
    }

    /// The controller sees everything again: an ImageWarm that is deleted is made anew.
    async fn is_served_again(&mut self, world: &World) -> Result<()> {
        let victim = self.warms.remove(0);
        world.delete_image_warm(&victim).await?;
        self.warms = world.all_ready(&self.namespace, self.warms.len() + 1).await?;
        Ok(())
    }
}
