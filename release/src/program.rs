//! The program: built so that its bytes do not depend on the machine, and looked at before it is packed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use object::Object as _;
use object::elf::{FileHeader64, PT_INTERP};
use object::endian::Endianness;
use object::read::elf::{ElfFile64, ProgramHeader as _};

use crate::dependencies::cargo;
use crate::platform::Platform;
use crate::workspace;

/// A program that runs without any other file.
#[derive(Clone, Debug)]
pub struct Program {
    /// What it runs on.
    pub platform: Platform,
    /// The file.
    pub content: Vec<u8>,
}

impl Program {
    /// Reads a program that is built already.
    pub fn read(path: &Path) -> Result<Self> {
        let content = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let platform = check(&content).with_context(|| path.display().to_string())?;
        Ok(Self { platform, content })
    }

    /// Builds it with the profile for releases. That takes some minutes.
    pub fn build(platform: Platform) -> Result<Self> {
        let path = build(platform)?;
        let program = Self::read(&path)?;
        ensure!(program.platform == platform, "{} is for {}", path.display(), program.platform);
        for folder in [workspace(), cargo_home()?] {
            let folder = folder.display().to_string();
            let is_there = contains(&program.content, folder.as_bytes());
            ensure!(!is_there, "{} contains the path {folder} of this machine", path.display());
        }
        Ok(program)
    }
}

/// The version of the compiler.
pub fn compiler() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").current_dir(workspace()).output();
    let output = String::from_utf8(output.context("start rustc")?.stdout)?;
    let version = output.split_whitespace().nth(1).context("rustc prints no version")?;
    Ok(version.to_owned())
}

fn build(platform: Platform) -> Result<PathBuf> {
    let triple = platform.triple();
    let (sources, crates) = (workspace(), cargo_home()?);
    let map = |from: &Path, to: &str| -> OsString {
        let mut mapped = from.as_os_str().to_owned();
        mapped.push("=");
        mapped.push(to);
        mapped
    };
    let maps = [map(&crates, "/cargo"), map(&sources, "/imagewarm")];
    // With --target, the flags are for the program only, not for build scripts and macros.
    let mut flags = OsString::from("-Ctarget-feature=+crt-static");
    let mut c_flags = OsString::new();
    for map in &maps {
        flags.push("\u{1f}--remap-path-prefix=");
        flags.push(map);
        c_flags.push("-ffile-prefix-map=");
        c_flags.push(map);
        c_flags.push(" ");
    }
    let mut command = cargo("build");
    command
        .args(["--locked", "--release", "--package", "imagewarm", "--bin", "imagewarm"])
        .args(["--target", triple, "--message-format=json-render-diagnostics"])
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env(format!("CFLAGS_{}", triple.replace('-', "_")), c_flags)
        .stdout(Stdio::piped());
    if Platform::of_this_machine() != Some(platform) {
        // What Debian calls the cross compiler; cc finds it by itself.
        let linker = format!("CARGO_TARGET_{}_LINKER", triple.to_uppercase().replace('-', "_"));
        if std::env::var_os(&linker).is_none() {
            command
                .env(linker, format!("{}-linux-gnu-gcc", triple.split('-').next().unwrap_or("")));
        }
    }
    let output = command.spawn().and_then(std::process::Child::wait_with_output);
    let output = output.context("start cargo build")?;
    ensure!(
        output.status.success(),
        "the program does not build for {triple}. For another architecture than this machine's it takes \
         `rustup target add {triple}` and a cross compiler"
    );
    executable(&String::from_utf8(output.stdout)?).context("cargo build names no program")
}

/// The program that cargo's messages name, one JSON object a line.
fn executable(messages: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message["executable"].as_str()?))
    })
}

fn cargo_home() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("CARGO_HOME").filter(|folder| !folder.is_empty()) {
        return Ok(folder.into());
    }
    let home = std::env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?;
    Ok(PathBuf::from(home).join(".cargo"))
}

/// The platform of a program that is linked statically; an error for any other file.
fn check(content: &[u8]) -> Result<Platform> {
    let elf: ElfFile64<Endianness> = match ElfFile64::parse(content) {
        Ok(elf) => elf,
        Err(error) => bail!("it is no 64-bit ELF program: {error}"),
    };
    let Some(platform) = Platform::of_program(elf.architecture()) else {
        bail!("it is for {:?}: releases are made for amd64 and arm64", elf.architecture());
    };
    let headers: &[<FileHeader64<Endianness> as object::read::elf::FileHeader>::ProgramHeader] =
        elf.elf_program_headers();
    let dynamic = headers.iter().any(|header| header.p_type(elf.endian()) == PT_INTERP);
    ensure!(!dynamic, "it is linked dynamically: the image has no libraries");
    Ok(platform)
}

fn contains(content: &[u8], part: &[u8]) -> bool {
    content.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn files_that_do_not_run_in_an_empty_image_are_refused() {
        let text = check(b"#!/bin/sh\n").unwrap_err().to_string();
        assert!(text.starts_with("it is no 64-bit ELF program"), "{text}");
        // This test itself needs the C library.
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let text = check(&own).unwrap_err().to_string();
        assert_eq!(text, "it is linked dynamically: the image has no libraries");
        let mut other = own;
        other[18..20].copy_from_slice(&object::elf::EM_S390.to_le_bytes());
        let text = check(&other).unwrap_err().to_string();
        assert_eq!(text, "it is for S390x: releases are made for amd64 and arm64");
    }

    #[test]
    fn the_program_is_the_one_that_cargo_names() {
        let messages = "{\"executable\":null}\n{\"executable\":\"/target/imagewarm\"}\n";
        assert_eq!(executable(messages), Some(PathBuf::from("/target/imagewarm")));
    }
}
