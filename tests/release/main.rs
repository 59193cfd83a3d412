//! The files of a release, made from the program of these tests: they are the same each time, hang together, and
//! the programs that they are for take them: shells, kubectl, krew, `man`, the forge's workflows. The image runs in
//! `tests/kubelet`.
#![allow(clippy::panic, clippy::unwrap_used)]

mod command_line;
mod files;
mod krew;
mod program;
mod workflows;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use imagewarm_release::dist::Release;
use imagewarm_release::platform::Platform;
use imagewarm_release::program::Program;
use imagewarm_release::source::Source;
use tempfile::TempDir;

/// The point in time of these releases.
const EPOCH: u64 = 1_700_000_000;

/// The program of these tests.
fn program() -> &'static Program {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        Program::read(&program::link(folder.path()).unwrap()).unwrap()
    })
}

/// What stands for a program of a platform where none runs: the head of an ELF file, which is packed in no time.
fn stand_in(platform: Platform) -> Program {
    let mut head = program().content[..4096].to_vec();
    let machine: u16 = match platform {
        Platform::Amd64 => 62,
        Platform::Arm64 => 183,
    };
    head[18..20].copy_from_slice(&machine.to_le_bytes());
    // It has no sections.
    head[40..48].fill(0);
    head[60..64].fill(0);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), head).unwrap();
    Program::read(file.path()).unwrap()
}

/// The program, and a stand-in for the other platform.
fn programs() -> Vec<Program> {
    let own = program().clone();
    let others = Platform::ALL.into_iter().filter(|platform| *platform != own.platform);
    let others: Vec<Program> = others.map(stand_in).collect();
    [own].into_iter().chain(others).collect()
}

fn release(programs: Vec<Program>, repository: Option<&str>) -> Release {
    Release {
        programs,
        source: Source {
            revision: "0123456789abcdef0123456789abcdef01234567".to_owned(),
            epoch: EPOCH,
            repository: repository.map(str::to_owned),
        },
        compiler: "1.95.0".to_owned(),
    }
}

/// A release in a folder; most tests look at the same one.
fn made() -> &'static Path {
    static MADE: OnceLock<TempDir> = OnceLock::new();
    let folder = MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let release = release(programs(), Some("https://forge.test/team/imagewarm"));
        release.assemble().unwrap().write(folder.path()).unwrap();
        folder
    });
    folder.path()
}

/// The folder in the archive of this machine's platform.
fn unpacked() -> PathBuf {
    static UNPACKED: OnceLock<TempDir> = OnceLock::new();
    let folder = UNPACKED.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let archive = made().join(format!("{}.tar.gz", name()));
        run(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(folder.path()));
        folder
    });
    folder.path().join(name())
}

/// What the files of this machine's platform are called.
fn name() -> String {
    let architecture = xtask::images::architecture();
    format!("imagewarm-{}-linux-{architecture}", env!("CARGO_PKG_VERSION"))
}

/// All files below a folder.
fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        match path.is_dir() {
            true => {
                let below = tree(&path).into_iter();
                files.extend(below.map(|(its, content)| (format!("{name}/{its}"), content)));
            }
            false => drop(files.insert(name, fs::read(path).unwrap())),
        }
    }
    files
}

/// What a program prints; it has to succeed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{errors}");
    text
}
