//! The whole system on real parts: one development cluster for all tests (API server, etcd,
//! registries, three dockerd nodes), the shipped manifests, two controllers, a warmer for each
//! node. The tests run one after another, each in a namespace of its own; some stop controllers
//! or remove CRDs, and put everything back. Only the conformance suite's run side by side.

mod admission;
mod bad_traffic;
mod bounds;
mod canary;
mod certificates;
mod commands;
mod conformance;
mod containerd;
mod convergence;
mod deploys;
mod failures;
mod flow;
mod herd;
mod hostile;
mod images;
mod limited;
mod mounted;
mod nodes;
mod outages;
mod pod_security;
mod private;
#[path = "../rights/mod.rs"]
mod rights;
mod room;
mod trust;
mod world;
mod wrong_answers;

use std::process::ExitCode;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;
use tokio::sync::{OnceCell, RwLock};

use world::World;

/// A test: gets the running world, and says what was wrong.
pub type Test = fn(&World) -> LocalBoxFuture<'_, anyhow::Result<()>>;

/// Pairs each async function with its name.
#[macro_export]
macro_rules! tests {
    ($($name:ident),+ $(,)?) => {
        pub const TESTS: &[(&str, $crate::Test)] = &[
            $((concat!(module_path!(), "::", stringify!($name)), |world| Box::pin($name(world))),)+
        ];
    };
}

/// Tests of the conformance suite that run at the same time; they mostly wait.
const SIDE_BY_SIDE: usize = 12;

/// There is one world, and some tests take parts of it away: they hold this alone.
static TURNS: RwLock<()> = RwLock::const_new(());

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(SIDE_BY_SIDE);
    let runtime = Arc::new(Runtime::new().expect("a tokio runtime can be made"));
    let world: Arc<OnceCell<Result<World, String>>> = Arc::default();
    let all = [
        // First: they count what is written, and other tests' objects would be counted too.
        convergence::TESTS,
        wrong_answers::TESTS,
        deploys::TESTS,
        private::TESTS,
        failures::TESTS,
        images::TESTS,
        admission::TESTS,
        nodes::TESTS,
        room::TESTS,
        limited::TESTS,
        trust::TESTS,
        hostile::TESTS,
        bad_traffic::TESTS,
        bounds::TESTS,
        herd::TESTS,
        flow::TESTS,
        commands::TESTS,
        pod_security::TESTS,
        containerd::TESTS,
        outages::TESTS,
        mounted::TESTS,
        certificates::TESTS,
        // Last: it searches what all the others have left.
        canary::TESTS,
    ];
    let trials = all.into_iter().flatten().map(|(name, test)| {
        let name = name.trim_start_matches("e2e::");
        let (runtime, world) = (runtime.clone(), world.clone());
        Trial::test(name, move || {
            runtime.block_on(async {
                let _alone = TURNS.write().await;
                run(&world, async |world| test(world).await).await
            })
        })
    });
    let conformance = conformance::all().map(|(name, trial)| {
        let (runtime, world) = (runtime.clone(), world.clone());
        Trial::test(name, move || {
            runtime.block_on(async {
                let _together = TURNS.read().await;
                run(&world, async |world| trial.run(world).await).await
            })
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.chain(conformance).collect());
    let everything = arguments.filter.is_none() && arguments.skip.is_empty();
    let mut as_granted = true;
    if let Some(Ok(world)) = Arc::into_inner(world).and_then(OnceCell::into_inner) {
        // Only a whole run uses every right.
        as_granted = !everything || world.uses_what_is_granted();
        runtime.block_on(world.stop(conclusion.has_failed() || !as_granted));
    }
    if as_granted { conclusion.exit_code() } else { ExitCode::FAILURE }
}

async fn run(
    world: &OnceCell<Result<World, String>>,
    test: impl AsyncFnOnce(&World) -> anyhow::Result<()>,
) -> Result<(), Failed> {
    let world = world
        .get_or_init(|| async { World::start().await.map_err(|error| format!("{error:#}")) })
        .await;
    let world = world.as_ref().map_err(|error| format!("the world did not start: {error}"))?;
    // A panic inside a test must not take the cluster's clean-up away.
    match std::panic::AssertUnwindSafe(test(world)).catch_unwind().await {
        Ok(result) => result.map_err(|error| Failed::from(format!("{error:#}"))),
        Err(_) => Err("the test panicked".into()),
    }
}
