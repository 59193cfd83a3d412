//! Builds and asks the Go programs beside this file: the originals that our own code is compared
//! with. Nothing of imagewarm itself is written in Go.
#![allow(clippy::panic, clippy::unwrap_used)]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The same random numbers on every run, or those of the seed in `IMAGEWARM_TEST_SEED`.
pub fn seeded() -> StdRng {
    let seed = match std::env::var("IMAGEWARM_TEST_SEED") {
        Ok(seed) => seed.parse().unwrap_or_else(|_| {
            panic!("IMAGEWARM_TEST_SEED must be a number from 0 to {}, not {seed:?}", u64::MAX)
        }),
        Err(_) => 1,
    };
    println!("to repeat this run: IMAGEWARM_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// Asks the Go program of this folder all questions, each a line of JSON, and reads its answers.
pub fn ask<Q: Serialize, A: DeserializeOwned>(program: &str, questions: &[Q]) -> Vec<A> {
    let binary = build(program);
    let input = binary.with_extension("questions.jsonl");
    let mut file = File::create(&input).unwrap();
    let mut lines = Vec::new();
    for question in questions {
        serde_json::to_writer(&mut lines, question).unwrap();
        lines.push(b'\n');
    }
    file.write_all(&lines).unwrap();
    let output = Command::new(&binary)
        .stdin(File::open(&input).unwrap())
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|error| panic!("{} does not start: {error}", binary.display()));
    assert!(output.status.success(), "{} ended with {}", binary.display(), output.status);
    let answers: Vec<A> = output
        .stdout
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    assert_eq!(answers.len(), questions.len(), "{} left questions open", binary.display());
    answers
}

fn build(program: &str) -> PathBuf {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/go").join(program);
    let binary = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("go-{program}"));
    let status = Command::new("go")
        .args(["build", "-buildvcs=false", "-o"])
        .arg(&binary)
        .arg(".")
        .current_dir(&module)
        .env("CGO_ENABLED", "0")
        .status()
        .unwrap_or_else(|error| {
            panic!("this test compares with a Go program and needs Go: {error}")
        });
    assert!(status.success(), "go build in {} ended with {status}", module.display());
    binary
}
