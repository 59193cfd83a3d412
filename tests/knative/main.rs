//! imagewarm beside Knative Serving itself: its controller, webhook, autoscaler and activator, one
//! development cluster for all tests, the shipped manifests, a controller, and a warmer for each of
//! two nodes with dockerd. Pods stay unscheduled; only what Knative does up to them is of interest.
//!
//! Wherever there is a Deployment, every ImageWarm must have come before it, from the webhook's
//! fan-out. Knative makes no Deployment before a test lets it, so that this does not depend on which
//! of two processes is faster; by how much ImageWarms were ahead of Knative's first request for the
//! Deployment, by the API server's audit log, is printed at the end, and nothing is asserted of it.
//!
//! The tests of [`outages`] take parts of the system away, and those of [`many`] keep Knative busy:
//! they run alone. The others run side by side, each in namespaces of its own.

mod admission;
mod deploys;
mod lifecycle;
mod many;
mod outages;
mod stage;
mod stand_ins;

use std::process::ExitCode;
use std::sync::Arc;

use futures::future::LocalBoxFuture;
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;
use tokio::sync::{OnceCell, RwLock};

use stage::Stage;

/// A test: gets the running system, and returns what was wrong.
pub type Test = fn(&Stage) -> LocalBoxFuture<'_, anyhow::Result<()>>;

/// Pairs each async function with its name.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub const TESTS: &[(&str, $crate::Test)] = &[
            $((concat!(module_path!(), "::", stringify!($name)), |stage| Box::pin($name(stage))),)*
        ];
    };
}

/// How many tests run at the same time; they mostly wait.
const SIDE_BY_SIDE: usize = 3;

/// Who takes parts of the system away holds this alone.
static TURNS: RwLock<()> = RwLock::const_new(());

type Shared = Arc<OnceCell<Result<Stage, String>>>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(SIDE_BY_SIDE);
    let runtime = Arc::new(Runtime::new().expect("a tokio runtime can be made"));
    let shared = Shared::default();
    let together = [admission::TESTS, deploys::TESTS, lifecycle::TESTS, stand_ins::TESTS];
    let together = together.into_iter().flatten().map(|test| (test, false));
    let alone = [many::TESTS, outages::TESTS].into_iter().flatten().map(|test| (test, true));
    let trials = together.chain(alone).map(|(&(name, test), alone)| {
        let (runtime, shared) = (runtime.clone(), shared.clone());
        let name = name.trim_start_matches("knative::");
        Trial::test(name, move || {
            runtime.block_on(async {
                let (_alone, _together) = match alone {
                    true => (Some(TURNS.write().await), None),
                    false => (None, Some(TURNS.read().await)),
                };
                test(started(&shared).await?).await.map_err(failed)
            })
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if let Some(Ok(stage)) = Arc::into_inner(shared).and_then(OnceCell::into_inner) {
        stage.stop(conclusion.has_failed());
    }
    conclusion.exit_code()
}

async fn started(shared: &Shared) -> Result<&Stage, Failed> {
    let start = || async { Stage::start().await.map_err(|error| format!("{error:#}")) };
    let stage = shared.get_or_init(start).await.as_ref();
    stage.map_err(|error| format!("the system did not start: {error}").into())
}

fn failed(error: anyhow::Error) -> Failed {
    format!("{error:#}").into()
}
