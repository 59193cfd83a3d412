//! The kernel's numbers of a process: CPU time to the nanosecond, and its peak memory.

use std::fs;

use anyhow::{Context, Result};

/// CPU time of all its threads so far, in nanoseconds. Excludes threads that have ended.
pub fn cpu_nanoseconds(pid: u32) -> Result<f64> {
    let mut sum = 0.0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the two.
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        let on_cpu = text.split_whitespace().next().context("an empty schedstat")?;
        sum += on_cpu.parse::<f64>()?;
    }
    Ok(sum)
}

/// Resets the kernel's value of [`peak_bytes`].
pub fn forget_peak(pid: u32) -> Result<()> {
    Ok(fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

/// The most resident memory since the start or since [`forget_peak`], in bytes.
pub fn peak_bytes(pid: u32) -> Result<f64> {
    status(pid, "VmHWM:")
}

/// Resident memory that is no page of a file, in bytes: what nothing else could use meanwhile.
pub fn anonymous_bytes(pid: u32) -> Result<f64> {
    status(pid, "RssAnon:")
}

fn status(pid: u32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.with_context(|| format!("no {field}"))?.parse::<f64>()? * 1024.0)
}
