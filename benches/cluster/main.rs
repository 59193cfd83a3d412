//! The benchmarks against the development cluster: `cargo xtask bench [NAME…] [--quick]`. Each
//! measures the real program beside a baseline, in rounds that take turns, so that a busy machine
//! slows both. docs/performance.md describes each.

mod admission;
mod api_server;
mod bursts;
mod byte_nodes;
mod cold_start;
mod crowded;
mod deploys;
mod fairness;
mod fake_warmers;
mod fan_out;
mod first_pod;
mod fit;
mod growth;
mod herd;
mod load;
mod memory;
mod new_node;
mod noop;
mod plot;
mod process;
mod pull;
mod report;
mod revision_create;
mod row;
mod size;
mod stage;
mod status_writes;
mod tap;
mod warmer;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use futures::future::LocalBoxFuture;

use report::Report;

/// Measures imagewarm against the development cluster.
#[derive(Parser)]
struct Arguments {
    /// Only benchmarks of these names.
    names: Vec<String>,
    /// Smaller numbers and fewer rounds.
    #[arg(long)]
    quick: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
    /// Be the baseline's server instead.
    #[command(flatten)]
    noop: noop::NoopArgs,
}

/// How large a run is.
#[derive(Clone, Copy)]
pub struct Scale {
    quick: bool,
}

impl Scale {
    /// One of two sizes.
    pub fn pick<T>(self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }
}

type Benchmark = for<'a> fn(Scale, &'a mut Report) -> LocalBoxFuture<'a, Result<()>>;

/// Pairs each module's `run` with its name.
macro_rules! benchmarks {
    ($($name:ident),+ $(,)?) => {
        const BENCHMARKS: &[(&str, Benchmark)] = &[
            $((stringify!($name), |scale, report| Box::pin($name::run(scale, report))),)+
        ];
    };
}

benchmarks![
    admission,
    revision_create,
    bursts,
    cold_start,
    first_pod,
    new_node,
    fan_out,
    fake_warmers,
    api_server,
    fairness,
    crowded,
    status_writes,
    deploys,
    herd,
    memory,
    growth,
    warmer,
    pull,
    size,
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // The program has one provider too, installed by its own `main`.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let outcome = tokio::runtime::Runtime::new().map_err(Into::into).and_then(|runtime| {
        runtime.block_on(async {
            match arguments.noop.listen {
                Some(address) => noop::serve(address, &arguments.noop).await.map(|()| true),
                None => measure(&arguments).await,
            }
        })
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the chosen benchmarks; false when one could not be measured. The report marks a limit that
/// does not hold. That is no failure of the run: machines differ.
async fn measure(arguments: &Arguments) -> Result<bool> {
    let known = |name: &String| BENCHMARKS.iter().any(|(known, _)| known == name);
    if let Some(name) = arguments.names.iter().find(|name| !known(name)) {
        let names: Vec<_> = BENCHMARKS.iter().map(|(name, _)| *name).collect();
        anyhow::bail!("there is no benchmark {name:?}, but {}", names.join(", "));
    }
    let (scale, mut report, mut all) = (Scale { quick: arguments.quick }, Report::default(), true);
    for (name, run) in BENCHMARKS {
        if !arguments.names.is_empty() && !arguments.names.iter().any(|wanted| wanted == name) {
            continue;
        }
        eprintln!("{name} …");
        let began = Instant::now();
        if let Err(error) = run(scale, &mut report).await {
            eprintln!("error: {name}: {error:#}");
            all = false;
        }
        eprintln!("{name}: {:.0} s", began.elapsed().as_secs_f64());
        report.write()?;
    }
    println!("{}", report.table());
    println!("also in {}", report.write()?.display());
    Ok(all)
}
