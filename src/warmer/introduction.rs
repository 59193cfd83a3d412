//! What the warmer says of itself and of its runtime when a stream opens, and in the log once.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::runtime::Runtime;
use imagewarm_core::protocol::{Hello, PROTOCOL_VERSION};
use imagewarm_core::runtime::RuntimeVersion;

const VERSION_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks the runtime who it is, but not for long; without an answer the stream opens as well.
pub(super) async fn hello(
    runtime: Arc<dyn Runtime>,
    epoch: u64,
    pulling: Vec<String>,
    introduced: Arc<OnceLock<RuntimeVersion>>,
) -> Hello {
    let version = tokio::time::timeout(VERSION_TIMEOUT, runtime.version()).await;
    let version = match version {
        Ok(Ok(version)) => {
            if introduced.set(version.clone()).is_ok() {
                introduce(&version, runtime.as_ref());
            }
            version
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "the runtime does not answer");
            unknown_version()
        }
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
        runtime_reports: tells(runtime.as_ref()).map(Into::into).collect(),
    }
}

/// What the runtime tells by itself.
fn tells(runtime: &dyn Runtime) -> impl Iterator<Item = &'static str> {
    let all = [(runtime.reports_progress(), "progress"), (runtime.reports_removals(), "removals")];
    all.into_iter().filter_map(|(does, word)| does.then_some(word))
}

fn introduce(version: &RuntimeVersion, runtime: &dyn Runtime) {
    let RuntimeVersion { name, version, architecture, .. } = version;
    let tells = tells(runtime).collect::<Vec<_>>().join(", ");
    tracing::info!(runtime = name, version, architecture, tells, "the runtime answers");
}

fn unknown_version() -> RuntimeVersion {
    RuntimeVersion {
        name: String::new(),
        version: String::new(),
        os: String::new(),
        architecture: String::new(),
    }
}
