//! `cargo xtask test`: prepares the programs, runs every test of the workspace, and closes with what
//! failed and why, and one line of counts.

use std::io::{BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::prerequisites::{self, Prerequisite};
use crate::process::{Signal, send_group};
use crate::workspace;

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

/// Runs the tests. The exit code is non-zero when one failed, or when the build did.
pub async fn run(arguments: TestArgs) -> Result<ExitCode> {
    prerequisites::ensure(Prerequisite::all()).await?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg("test").current_dir(workspace());
    match (arguments.kubelet, arguments.knative) {
        (true, _) => command.args(["--package", "imagewarm", "--test", "kubelet"]),
        (_, true) => command.args(["--package", "imagewarm", "--test", "knative"]),
        (false, false) => command.args(["--workspace", "--no-fail-fast"]),
    };
    if std::io::stdout().is_terminal() {
        command.args(["--color", "always"]);
    }
    if arguments.kubelet {
        command.args(["--", "--nocapture"]);
    }
    command.args(&arguments.filter).stdin(Stdio::null()).stdout(Stdio::piped());
    let tests = command.process_group(0).spawn().context("start cargo test")?;
    // When a signal drops this future, cargo and the tests that it runs end too.
    let group = Group(tests.id());
    let outcome = tokio::task::spawn_blocking(move || follow(tests, &arguments)).await?;
    // They have ended: their id may soon be another's.
    std::mem::forget(group);
    outcome
}

struct Group(u32);

impl Drop for Group {
    fn drop(&mut self) {
        send_group(self.0, Signal::Terminate);
    }
}

fn follow(mut tests: Child, arguments: &TestArgs) -> Result<ExitCode> {
    let output = tests.stdout.take().context("cargo test without output")?;
    let (mut counts, mut failures) = (Counts::default(), Failures::default());
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        counts.add(&line);
        failures.add(&line);
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{line}")?;
        stdout.flush()?;
    }
    let status = tests.wait()?;
    for line in &failures.lines {
        println!("{line}");
    }
    println!("{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped);
    if !status.success() || counts.failed > 0 {
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

#[cfg(test)]
mod tests {
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
