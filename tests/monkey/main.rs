//! The convergence test. A seeded run of changes and failures (controllers and warmers killed
//! or frozen, dockerd stopped, connections to the API server cut or slow, one of two API servers stopped, etcd
//! compacted, webhooks removed, the Lease stolen), with wall clocks that are an hour off, over three
//! dockerd nodes and fifty fake ones that speak the real stream; then everything is left alone, and the
//! state has to become what a second statement of the rules says.
//!
//! `IMAGEWARM_MONKEY_SECONDS` sets the length of the run, `IMAGEWARM_MONKEY_SEED` draws other actions.

mod cluster;
mod fake_nodes;
mod oracle;
mod oracle_cases;
mod script;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Trial};

use cluster::World;
use script::script;

const DEFAULT_SECONDS: u64 = 150;
const DEFAULT_SEED: u64 = 1;
const FAKE_NODES: usize = 50;
/// How long after the last action everything must be as it should.
const CONVERGES: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let trials = vec![
        Trial::test("the_same_seed_makes_the_same_script", || {
            script::is_repeatable().map_err(Into::into)
        }),
        Trial::test("the_oracle_knows_right_from_wrong", || {
            oracle_cases::hold().map_err(Into::into)
        }),
        Trial::test("everything_converges", || {
            let runtime = tokio::runtime::Runtime::new()?;
            runtime.block_on(everything_converges()).map_err(|error| format!("{error:#}").into())
        }),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn number(variable: &str) -> Result<Option<u64>> {
    let Ok(text) = std::env::var(variable) else { return Ok(None) };
    let number = text.parse().with_context(|| format!("{variable} must be a number: {text:?}"))?;
    Ok(Some(number))
}

async fn everything_converges() -> Result<()> {
    let seconds = number("IMAGEWARM_MONKEY_SECONDS")?.unwrap_or(DEFAULT_SECONDS);
    let seed = number("IMAGEWARM_MONKEY_SEED")?.unwrap_or(DEFAULT_SEED);
    println!("IMAGEWARM_MONKEY_SEED={seed} IMAGEWARM_MONKEY_SECONDS={seconds}");
    let steps = script(seed, Duration::from_secs(seconds), FAKE_NODES);
    let mut world = World::start(FAKE_NODES).await?;
    let done = run(&mut world, &steps).await;
    if done.is_err() {
        let logs = world.cluster.folder().join("log");
        let kept = std::env::temp_dir().join(format!("imagewarm-monkey-{seed}"));
        copy_logs(&logs, &kept).await.with_context(|| format!("copy {}", logs.display()))?;
        println!("logs: {}", kept.display());
    }
    done.with_context(|| format!("IMAGEWARM_MONKEY_SEED={seed} IMAGEWARM_MONKEY_SECONDS={seconds}"))
}

async fn run(world: &mut World, steps: &[script::Step]) -> Result<()> {
    for (at, step) in steps.iter().enumerate() {
        tokio::time::sleep(step.after).await;
        let done = world.act(&step.action).await;
        done.with_context(|| format!("step {at} of {}: {:?}", steps.len(), step.action))?;
    }
    println!("{} actions done; left alone from here", steps.len());
    world.converges(CONVERGES).await
}

async fn copy_logs(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    tokio::fs::create_dir_all(to).await?;
    let mut entries = tokio::fs::read_dir(from).await?;
    while let Some(entry) = entries.next_entry().await? {
        tokio::fs::copy(entry.path(), to.join(entry.file_name())).await?;
    }
    Ok(())
}
