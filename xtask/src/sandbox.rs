//! The cluster's folder, and the janitor that removes it together with every process of the
//! cluster, however this program ends: even when it is killed.
//!
//! Every child carries [`MARKER`] in its environment, and hands it on to its own children
//! (dockerd's containerd, for one). So nothing but our own processes can ever be ended.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::process::{MARKER, Signal, send};

/// Waits until its standard input ends, which happens when this program ends in whatever way. The
/// control groups of containers outlive their processes: those that a containerd here has made go too.
const JANITOR: &str = r#"
trap '' HUP INT TERM
read -r _
for round in 1 2 3; do
  for environ in /proc/[0-9]*/environ; do
    if grep -qzxF "IMAGEWARM_CLUSTER=$1" "$environ" 2>/dev/null; then
      pid="${environ#/proc/}"
      kill -9 "${pid%/environ}" 2>/dev/null
    fi
  done
  left=
  for task in "$1"/*/containerd-state/io.containerd.runtime.v2.task/k8s.io/*; do
    for group in /sys/fs/cgroup/k8s.io/"${task##*/}" /sys/fs/cgroup/*/k8s.io/"${task##*/}"; do
      [ -d "$group" ] || continue
      rmdir "$group" 2>/dev/null || left=yes
      # Where it was the last one.
      rmdir "${group%/*}" 2>/dev/null
    done
  done
  [ -n "$left" ] && [ "$round" != 3 ] && sleep 0.3 && continue
  rm -rf -- "$1" 2>/dev/null && exit 0
  sleep 0.3
done
"#;

/// A fresh folder that is removed at the end, with the processes that were started for it.
#[derive(Debug)]
pub struct Sandbox {
    path: PathBuf,
    janitor: Child,
}

impl Sandbox {
    /// Makes the folder below the system's temporary folder.
    pub fn create() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("imagewarm-").tempdir()?;
        let janitor = Command::new("sh")
            .args(["-c", JANITOR, "imagewarm-janitor"])
            .arg(folder.path())
            .env_remove(MARKER)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Its own group: Ctrl-C in the terminal is not for the janitor.
            .process_group(0)
            .spawn()
            .context("start the janitor")?;
        Ok(Self { path: folder.keep(), janitor })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Process ids of all living processes that carry the marker of this folder.
    pub fn processes(&self) -> Vec<u32> {
        let wanted = format!("{MARKER}={}", self.path.display());
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &u32| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
        })
        .collect()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let living = self.processes();
            if living.is_empty() || Instant::now() > end {
                break;
            }
            for pid in living {
                send(pid, Signal::Kill);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // The end of its input lets the janitor go; it removes the folder.
        if let Some(mut input) = self.janitor.stdin.take() {
            let _ = input.write_all(b"\n");
        }
        let _ = self.janitor.wait();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::process::{Process, Program};

    #[test]
    fn the_end_takes_grandchildren_and_the_folder() {
        let sandbox = Sandbox::create().unwrap();
        let path = sandbox.path().to_owned();
        let script = Program::new("sh").args(["-c", "setsid sleep 600 & sleep 600"]);
        let process = Process::start("sleeper", script, &path).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let living = sandbox.processes();
        assert!(living.len() >= 3, "shell and both sleeps run: {living:?}");
        drop(process);
        drop(sandbox);
        for pid in living {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            assert!(state.is_empty() || state.contains(") Z "), "still alive: {state}");
        }
        assert!(!path.exists());
    }
}
