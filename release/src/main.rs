//! `cargo xtask dist`: the flags, a line for each step, and the exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use imagewarm_release::dist::Release;
use imagewarm_release::platform::Platform;
use imagewarm_release::program::{Program, compiler};
use imagewarm_release::source::{Source, VERSION};

/// Makes the files of a release: image, archives, manual, SBOM, notices, manifests, checksums.
#[derive(Parser)]
#[command(name = "cargo xtask dist", bin_name = "cargo xtask dist")]
struct Arguments {
    /// Folder for the files.
    #[arg(long, default_value = "dist", value_name = "FOLDER")]
    out: PathBuf,
    /// Target to build the program for; may be repeated. By default this machine's.
    #[arg(long = "target", value_name = "TRIPLE")]
    targets: Vec<Platform>,
    /// A program that is built already, linked statically; may be repeated. Nothing is built then.
    #[arg(long = "program", value_name = "PATH", conflicts_with = "targets")]
    programs: Vec<PathBuf>,
    /// Where the sources are on the web, such as https://github.com/OWNER/imagewarm. Without it there is no
    /// krew manifest, which has the addresses of the archives.
    #[arg(long, value_name = "URL")]
    repository: Option<String>,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let repository = arguments.repository.map(|url| url.trim_end_matches('/').to_owned());
    let source = Source::of_checkout(repository)?;
    if source.revision.ends_with("-dirty") {
        eprintln!(
            "warning: files differ from the commit; no other machine can make the same release"
        );
    }
    let programs = if arguments.programs.is_empty() {
        build(arguments.targets)?
    } else {
        arguments.programs.iter().map(|path| Program::read(path)).collect::<Result<_>>()?
    };
    for program in &programs {
        eprintln!("packing imagewarm {VERSION} for {}", program.platform);
    }
    if source.repository.is_none() {
        eprintln!("no krew manifest: --repository is not set");
    }
    let dist = Release { programs, source, compiler: compiler()? }.assemble()?;
    dist.write(&arguments.out)?;
    for (name, size) in dist.list() {
        println!("{size:>11}  {}", arguments.out.join(name).display());
    }
    println!("{:>11}  {}", "OCI layout", arguments.out.join("image").display());
    Ok(())
}

fn build(targets: Vec<Platform>) -> Result<Vec<Program>> {
    let targets = if targets.is_empty() {
        let own = Platform::of_this_machine();
        vec![own.context("releases are not made for this machine's architecture: name --target")?]
    } else {
        targets
    };
    targets
        .into_iter()
        .map(|platform| {
            eprintln!("building imagewarm {VERSION} for {} (some minutes)", platform.triple());
            Program::build(platform)
        })
        .collect()
}
