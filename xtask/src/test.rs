//! `cargo xtask test`: prepares the programs, runs every test of the workspace, and closes with what
//! failed and why, and one line of counts. The end-to-end tests run beside the others: both mostly wait.

use std::io::{IsTerminal as _, Write as _};
use std::process::{ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::task::JoinSet;

use crate::cargo::cargo;
use crate::prerequisites::{self, Prerequisite};
use crate::process::{Signal, send_group};

/// Arguments of `cargo xtask test`.
#[derive(clap::Args, Clone, Debug)]
pub struct TestArgs {
    /// Run only tests whose name contains this.
    #[arg(long)]
    filter: Option<String>,
    /// Run only the tests with a real kubelet, and show how long Pods took to start.
    #[arg(long, conflicts_with = "filter")]
    kubelet: bool,
    /// Run only the tests with Knative Serving, and show how far ImageWarms were ahead of it.
    #[arg(long, conflicts_with_all = ["filter", "kubelet"])]
    knative: bool,
    /// Fail also when a test was skipped.
    #[arg(long)]
    no_skips: bool,
}

/// Sums of cargo's `test result:` lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Counts {
    fn sum(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// Adds what a line says, if it is such a line (colours and all).
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.split_once("test result: ") else { return };
        for part in counts.split([';', '.']) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(word)) = (words.next(), words.next()) else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match word {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

/// Lines that are said again for one test program, at most.
const SAID_AGAIN: usize = 200;

/// What test programs say of their failures, so that it can be said again at the end, where it is
/// not buried under the output of the programs that came later.
#[derive(Debug, Default)]
struct Failures {
    lines: Vec<String>,
    /// How many lines of the present program's section are kept; none outside a section.
    section: Option<usize>,
}

impl Failures {
    /// Keeps a line if it lies between a program's `failures:` and its `test result:`.
    fn add(&mut self, line: &str) {
        match self.section {
            _ if line.contains("test result: ") => self.section = None,
            None if line.trim_end() == "failures:" => self.section = Some(0),
            Some(kept) if kept < SAID_AGAIN => {
                self.lines.push(line.to_owned());
                self.section = Some(kept + 1);
            }
            None | Some(_) => {}
        }
    }
}

/// The test program that takes about as long as all others together, and mostly waits.
const LONGEST: &str = "e2e";

/// Runs the tests. The exit code is non-zero when one failed, or when the build did.
pub async fn run(arguments: TestArgs) -> Result<ExitCode> {
    prerequisites::ensure(Prerequisite::all()).await?;
    let mut lanes = lanes(&arguments).await?.into_iter();
    let output = Arc::new(Output::default());
    let mut running = JoinSet::new();
    for lane in &mut lanes {
        let (name, output) = (lane.name, output.clone());
        running.spawn(async move { (name, lane.run(output).await) });
    }
    let (mut counts, mut all_succeeded) = (Counts::default(), true);
    let mut failures = Vec::new();
    while let Some(ended) = running.join_next().await {
        let (name, ended) = ended?;
        let ended = ended.with_context(|| format!("tests of lane {name}"))?;
        counts.sum(ended.counts);
        all_succeeded &= ended.succeeded;
        failures.extend(ended.failures.lines);
    }
    for line in &failures {
        println!("{line}");
    }
    println!("{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped);
    if !all_succeeded || counts.failed > 0 {
        return Ok(ExitCode::FAILURE);
    }
    if counts.passed == 0 {
        eprintln!("error: no test was run");
        return Ok(ExitCode::FAILURE);
    }
    if arguments.no_skips && counts.skipped > 0 {
        eprintln!("error: {} tests were skipped, and none may be", counts.skipped);
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Test programs that run one after another, beside those of other lanes.
struct Lane {
    name: &'static str,
    /// Arguments of `cargo test`, for each of its runs.
    runs: Vec<Vec<String>>,
}

/// All tests in two lanes, built before; or one lane with the tests that were asked for.
async fn lanes(arguments: &TestArgs) -> Result<Vec<Lane>> {
    let one = |runs: &[&str]| {
        let run = runs.iter().map(|&argument| argument.to_owned()).collect();
        Ok(vec![Lane { name: "tests", runs: vec![run] }])
    };
    match arguments {
        TestArgs { kubelet: true, .. } => {
            one(&["--package", "imagewarm", "--test", "kubelet", "--", "--nocapture"])
        }
        TestArgs { knative: true, .. } => one(&["--package", "imagewarm", "--test", "knative"]),
        TestArgs { filter: Some(filter), .. } => one(&["--workspace", "--no-fail-fast", filter]),
        TestArgs { .. } => {
            let built = cargo("test").args(["--workspace", "--no-run"]).status().await?;
            anyhow::ensure!(built.success(), "the tests do not build");
            let metadata = cargo("metadata").args(["--no-deps", "--format-version", "1"]).output();
            let metadata = serde_json::from_slice(&metadata.await?.stdout);
            Ok(all(&test_programs(&metadata.context("read the output of cargo metadata")?)))
        }
    }
}

fn all(programs: &[String]) -> Vec<Lane> {
    let run = |kinds: &[&str], tests: &mut dyn Iterator<Item = &String>| {
        let fixed = ["--workspace", "--no-fail-fast"].iter().chain(kinds);
        let tests = tests.flat_map(|name| ["--test".to_owned(), name.clone()]);
        fixed.map(|&argument| argument.to_owned()).chain(tests).collect::<Vec<_>>()
    };
    let others = &mut programs.iter().filter(|&name| name != LONGEST);
    let others = run(&["--lib", "--bins"], others);
    let documentation = run(&["--doc"], &mut std::iter::empty());
    vec![
        Lane { name: LONGEST, runs: vec![run(&["--test", LONGEST], &mut std::iter::empty())] },
        Lane { name: "others", runs: vec![others, documentation] },
    ]
}

/// The names of the workspace's integration tests, from `cargo metadata`.
fn test_programs(metadata: &Value) -> Vec<String> {
    let items = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let targets = items(metadata, "packages").into_iter().flat_map(|one| items(&one, "targets"));
    targets
        .filter(|target| items(target, "kind").iter().any(|kind| kind == "test"))
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect()
}

/// How the tests of a lane ended.
#[derive(Default)]
struct Ended {
    counts: Counts,
    failures: Failures,
    succeeded: bool,
}

impl Lane {
    async fn run(self, output: Arc<Output>) -> Result<Ended> {
        let mut ended = Ended { succeeded: true, ..Ended::default() };
        let mut lines = Lines { lane: self.name, held: Vec::new(), output };
        for arguments in self.runs {
            let mut command = cargo("test");
            if std::io::stdout().is_terminal() {
                command.args(["--color", "always"]);
            }
            command.args(arguments).stdout(Stdio::piped()).process_group(0);
            let mut tests = command.spawn().context("start cargo test")?;
            // When a signal drops this future, cargo and the tests that it runs end too.
            let group = Group(tests.id().context("cargo test ended at once")?);
            let stdout = tests.stdout.take().context("cargo test without output")?;
            let mut stdout = BufReader::new(stdout);
            let mut line = Vec::new();
            while stdout.read_until(b'\n', &mut line).await? > 0 {
                let text = String::from_utf8_lossy(&line);
                ended.counts.add(&text);
                ended.failures.add(text.trim_end_matches('\n'));
                lines.add(&text)?;
                line.clear();
            }
            ended.succeeded &= tests.wait().await?.success();
            // They have ended: their id may soon be another's.
            std::mem::forget(group);
        }
        Ok(ended)
    }
}

struct Group(u32);

impl Drop for Group {
    fn drop(&mut self) {
        send_group(self.0, Signal::Terminate);
    }
}

/// Which lane writes its lines as they come. Others write when a test program has ended, or when it is
/// their turn.
#[derive(Default)]
struct Output {
    live: Mutex<Option<&'static str>>,
}

/// The output of one lane.
struct Lines {
    lane: &'static str,
    held: Vec<u8>,
    output: Arc<Output>,
}

impl Lines {
    fn add(&mut self, line: &str) -> Result<()> {
        self.held.extend(line.as_bytes());
        let mut live = self.output.live.lock().unwrap_or_else(PoisonError::into_inner);
        let is_live = *live.get_or_insert(self.lane) == self.lane;
        if is_live || line.contains("test result: ") {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(&self.held)?;
            stdout.flush()?;
            self.held.clear();
        }
        Ok(())
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let mut live = self.output.live.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = std::io::stdout().lock().write_all(&self.held);
        if *live == Some(self.lane) {
            *live = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn result_lines_are_summed_and_others_are_not() {
        let mut counts = Counts::default();
        for line in [
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; 0.1s",
            "test result: \u{1b}[31mFAILED\u{1b}(B\u{1b}[m. 3 passed; 2 failed; 0 ignored; 0 measured",
            "test result_is_an_error ... ok",
            "running 5 tests",
        ] {
            counts.add(line);
        }
        assert_eq!(counts, Counts { passed: 15, failed: 2, skipped: 1 });
    }

    #[test]
    fn every_test_program_is_in_one_lane() {
        let metadata = json!({"packages": [
            {"targets": [{"kind": ["lib"], "name": "imagewarm"}, {"kind": ["test"], "name": "e2e"}]},
            {"targets": [{"kind": ["bench"], "name": "cluster"}, {"kind": ["test"], "name": "skew"}]},
        ]});
        let lanes = all(&test_programs(&metadata));
        let runs: Vec<_> =
            lanes.iter().flat_map(|lane| &lane.runs).map(|run| run.join(" ")).collect();
        assert_eq!(
            runs,
            [
                "--workspace --no-fail-fast --test e2e",
                "--workspace --no-fail-fast --lib --bins --test skew",
                "--workspace --no-fail-fast --doc",
            ]
        );
    }

    #[test]
    fn what_a_program_says_of_its_failures_is_kept() {
        let mut failures = Failures::default();
        let output = "test a ... FAILED\n\nfailures:\n\n---- a ----\nno image\n\nfailures:\n    a\n\
                      \ntest result: FAILED. 1 passed\nrunning 1 test\ntest b ... ok\ntest result: ok.";
        output.split('\n').for_each(|line| failures.add(line));
        let said: Vec<&str> = failures.lines.iter().map(String::as_str).collect();
        assert_eq!(said, ["", "---- a ----", "no image", "", "failures:", "    a", ""]);
        assert_eq!(failures.section, None);
    }
}
