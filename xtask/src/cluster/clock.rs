//! Programs with a wall clock that is off, by libfaketime.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Writes a program that runs `binary` so, with whatever arguments it is given, in the same process.
pub(super) fn program(binary: &Path, seconds: i64, folder: &Path) -> Result<PathBuf> {
    let library = library()?;
    let (library, binary) = (library.display(), std::path::absolute(binary)?);
    let script = format!(
        "#!/bin/sh\nexec env LD_PRELOAD={library} FAKETIME={seconds:+}s DONT_FAKE_MONOTONIC=1 \
         NO_FAKE_STAT=1 {} \"$@\"\n",
        binary.display()
    );
    let path = folder.join(format!("clock{seconds:+}.sh"));
    fs::write(&path, script).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// The variant for programs with threads, below the folder of this machine's architecture.
fn library() -> Result<PathBuf> {
    let folders = fs::read_dir("/usr/lib").context("read /usr/lib")?;
    let library = |folder: fs::DirEntry| folder.path().join("faketime/libfaketimeMT.so.1");
    let found = folders.flatten().map(library).find(|path| path.is_file());
    found.context("libfaketimeMT.so.1 is not below /usr/lib: install the package libfaketime")
}
