//! The `Hello` that opens a stream: the versions of the warmer and of the runtime. The runtime's
//! version is also logged once.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::runtime::Runtime;
use imagewarm_core::protocol::{Hello, PROTOCOL_VERSION};
use imagewarm_core::runtime::RuntimeVersion;

const VERSION_TIMEOUT: Duration = Duration::from_secs(5);

/// A `Hello` with the runtime's version, or without it if the runtime does not respond in time.
pub(super) async fn hello(
    runtime: Arc<dyn Runtime>,
    epoch: u64,
    pulling: Vec<String>,
    logged_version: Arc<OnceLock<RuntimeVersion>>,
) -> Hello {
    let version = match runtime.usable() {
        Ok(()) => version(runtime.as_ref(), &logged_version).await,
        // None is selected yet.
        Err(_) => unknown_version(),
    };
    Hello {
        protocol_version: PROTOCOL_VERSION,
        epoch,
        warmer_version: env!("CARGO_PKG_VERSION").into(),
        runtime_name: version.name,
        runtime_version: version.version,
        os: version.os,
        architecture: version.architecture,
        pulling,
        runtime_reports: reports(runtime.as_ref()).map(Into::into).collect(),
    }
}

async fn version(runtime: &dyn Runtime, logged: &OnceLock<RuntimeVersion>) -> RuntimeVersion {
    match tokio::time::timeout(VERSION_TIMEOUT, runtime.version()).await {
        Ok(Ok(version)) => {
            if logged.set(version.clone()).is_ok() {
                log_version(&version, runtime);
            }
            version
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "runtime does not respond");
            unknown_version()
        }
        Err(_) => unknown_version(),
    }
}

/// What the runtime reports by itself.
fn reports(runtime: &dyn Runtime) -> impl Iterator<Item = &'static str> {
    let all = [(runtime.reports_progress(), "progress"), (runtime.reports_removals(), "removals")];
    all.into_iter().filter_map(|(does, name)| does.then_some(name))
}

fn log_version(version: &RuntimeVersion, runtime: &dyn Runtime) {
    let RuntimeVersion { name, version, architecture, .. } = version;
    let reports = reports(runtime).collect::<Vec<_>>().join(", ");
    tracing::info!(runtime = name, version, architecture, reports, "runtime responds");
}

fn unknown_version() -> RuntimeVersion {
    RuntimeVersion {
        name: String::new(),
        version: String::new(),
        os: String::new(),
        architecture: String::new(),
    }
}
