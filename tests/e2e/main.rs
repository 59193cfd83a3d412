//! The whole system on real parts: one development cluster for all tests (API server, etcd,
//! registries, three dockerd nodes), the shipped manifests, two controllers, a warmer for each
//! node. Each test has namespaces of its own and may run alone or at any place among the others:
//! what it changes for others is put back after it, whatever its end was. The tests run one after
//! another; only those of the conformance suite run side by side.

mod admission;
mod bad_traffic;
mod bounds;
mod canary;
mod certificates;
mod chart;
mod check;
mod commands;
mod conformance;
mod containerd;
mod convergence;
mod deploys;
mod dispatch_port;
mod failures;
mod flow;
mod herd;
mod hostile;
mod images;
mod limited;
mod mounted;
mod node_gate;
mod nodes;
mod outages;
mod overlays;
mod pins;
mod pod_security;
mod preemption;
mod private;
mod proxies;
#[path = "../rights/mod.rs"]
mod rights;
mod room;
mod sandboxes;
mod settings;
mod tags;
mod trust;
mod undo;
mod world;
mod wrong_answers;

use std::process::ExitCode;
use std::sync::Arc;

use futures::future::LocalBoxFuture;
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;
use tokio::sync::{OnceCell, RwLock};

use world::{System, World};

/// A test: gets its view of the running system, and returns what was wrong.
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

/// There is one system, and some tests take parts of it away: they hold this alone.
static TURNS: RwLock<()> = RwLock::const_new(());

type Shared = Arc<OnceCell<Result<Arc<System>, String>>>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(SIDE_BY_SIDE);
    let runtime = Arc::new(Runtime::new().expect("a tokio runtime can be made"));
    let system = Shared::default();
    // In the order of their names; none of them relies on its place.
    let suites = [
        admission::TESTS,
        bad_traffic::TESTS,
        bounds::TESTS,
        canary::TESTS,
        certificates::TESTS,
        chart::lifecycle::TESTS,
        chart::rendering::TESTS,
        chart::values::TESTS,
        check::TESTS,
        commands::TESTS,
        containerd::TESTS,
        convergence::TESTS,
        deploys::TESTS,
        dispatch_port::TESTS,
        failures::TESTS,
        flow::TESTS,
        herd::TESTS,
        hostile::TESTS,
        images::TESTS,
        limited::TESTS,
        mounted::TESTS,
        node_gate::TESTS,
        nodes::TESTS,
        outages::TESTS,
        overlays::TESTS,
        pins::TESTS,
        pod_security::TESTS,
        preemption::TESTS,
        private::TESTS,
        proxies::TESTS,
        room::TESTS,
        sandboxes::TESTS,
        settings::TESTS,
        tags::TESTS,
        trust::TESTS,
        undo::TESTS,
        wrong_answers::TESTS,
    ];
    let trials = suites.into_iter().flatten().map(|(name, test)| {
        let name = name.trim_start_matches("e2e::");
        let (runtime, system) = (runtime.clone(), system.clone());
        Trial::test(name, move || {
            runtime.block_on(async {
                let _alone = TURNS.write().await;
                let system = started(&system).await?;
                World::run(&system, async |world| test(world).await).await.map_err(failed)
            })
        })
    });
    let conformance = conformance::all().map(|(name, trial)| {
        let (runtime, system) = (runtime.clone(), system.clone());
        Trial::test(name, move || {
            runtime.block_on(async {
                let _together = TURNS.read().await;
                trial.run(&started(&system).await?).await.map_err(failed)
            })
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.chain(conformance).collect());
    let everything = arguments.filter.is_none() && arguments.skip.is_empty();
    let mut is_clean = true;
    if let Some(Ok(system)) = Arc::into_inner(system).and_then(OnceCell::into_inner) {
        is_clean = runtime.block_on(system.keeps_credentials_to_itself());
        // Only a whole run uses every right.
        is_clean &= !everything || system.uses_what_is_granted();
        system.stop(conclusion.has_failed() || !is_clean);
    }
    if is_clean { conclusion.exit_code() } else { ExitCode::FAILURE }
}

async fn started(system: &Shared) -> Result<Arc<System>, Failed> {
    let start = || async { World::start().await.map_err(|error| format!("{error:#}")) };
    let system = system.get_or_init(start).await;
    system.clone().map_err(|error| format!("the system did not start: {error}").into())
}

fn failed(error: anyhow::Error) -> Failed {
    format!("{error:#}").into()
}
