//! The program as tests were built with it, linked statically as a release is: the image has no libraries.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Links `src/main.rs` with the library that these tests were built with, into a folder.
pub fn link(folder: &Path) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let libraries = test.parent().context("this test is in no folder")?;
    let program = folder.join("imagewarm");
    let linked = Command::new("rustc")
        .args(["--crate-name", "imagewarm", "--crate-type", "bin", "--edition", "2024"])
        .args(["-Ctarget-feature=+crt-static", "-Cstrip=symbols", "src/main.rs", "--extern"])
        .arg(format!("imagewarm={}", newest(libraries)?.display()))
        .arg(format!("-Ldependency={}", libraries.display()))
        .arg("-o")
        .arg(&program)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .context("start rustc")?;
    ensure!(linked.status.success(), "{}", String::from_utf8_lossy(&linked.stderr));
    Ok(program)
}

/// The library that was built last, of those with other features or of other versions.
fn newest(folder: &Path) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let hash = name.strip_prefix("libimagewarm-").and_then(|name| name.strip_suffix(".rlib"));
        if hash.is_some() {
            found.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    let newest = found.into_iter().max().context("the library is not built")?;
    Ok(newest.1)
}
