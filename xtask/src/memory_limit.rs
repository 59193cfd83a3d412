//! A memory cgroup around a process, as the container runtime makes one for a Pod with a limit.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::workspace;

/// A cgroup with a limit, of version 1 or 2. It goes when it is dropped and its processes have ended.
pub struct MemoryLimit {
    folder: PathBuf,
    is_unified: bool,
}

impl MemoryLimit {
    /// The limit of the controller in `deploy/`, around a process that runs already.
    pub fn as_shipped(pid: u32) -> Result<MemoryLimit> {
        let deployment = workspace().join("deploy/controller/deployment.yaml");
        let deployment = fs::read_to_string(deployment)?;
        let limits = deployment.split("limits:").nth(1).context("no limits")?;
        let mebibytes = limits.lines().find_map(|line| line.trim().strip_prefix("memory: "));
        let mebibytes = mebibytes.and_then(|text| text.strip_suffix("Mi")?.parse::<u64>().ok());
        MemoryLimit::around(pid, mebibytes.context("no memory limit in Mi")? << 20)
    }

    fn around(pid: u32, bytes: u64) -> Result<MemoryLimit> {
        let root = Path::new("/sys/fs/cgroup");
        let is_unified = root.join("cgroup.controllers").exists();
        let name = format!("imagewarm-test-{}-{pid}", std::process::id());
        let folder = if is_unified { root.join(name) } else { root.join("memory").join(name) };
        if is_unified {
            // Without it a new group has no memory files.
            let _ = fs::write(root.join("cgroup.subtree_control"), "+memory");
        }
        fs::create_dir(&folder).with_context(|| format!("make the cgroup {}", folder.display()))?;
        let group = MemoryLimit { folder, is_unified };
        let limit = if is_unified { "memory.max" } else { "memory.limit_in_bytes" };
        group.write(limit, bytes)?;
        group.write("cgroup.procs", u64::from(pid))?;
        Ok(group)
    }

    /// How many processes were killed for want of memory.
    pub fn kills(&self) -> Result<u64> {
        let file = if self.is_unified { "memory.events" } else { "memory.oom_control" };
        let text = self.read(file)?;
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.with_context(|| format!("{file} names no oom_kill: {text}"))?
            .trim()
            .parse()
            .context("a count")
    }

    /// The most memory that was used, in MiB.
    pub fn peak(&self) -> Result<u64> {
        let file = if self.is_unified { "memory.peak" } else { "memory.max_usage_in_bytes" };
        Ok(self.read(file)?.trim().parse::<u64>()? >> 20)
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.folder.join(file);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    fn write(&self, file: &str, value: u64) -> Result<()> {
        let path = self.folder.join(file);
        fs::write(&path, value.to_string()).with_context(|| format!("write {}", path.display()))
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // Processes that still run go back to the group above.
        let parent = self.folder.parent().map(|parent| parent.join("cgroup.procs"));
        if let (Ok(pids), Some(parent)) = (self.read("cgroup.procs"), parent) {
            for pid in pids.lines() {
                let _ = fs::write(&parent, pid);
            }
        }
        let _ = fs::remove_dir(&self.folder);
    }
}
