//! Logs of everything, libraries included.

use super::*;

const WARMER: [&str; 4] = ["--presence-interval", "1s", "--log-level", "trace"];

impl World {
    /// Starts the controllers, and the warmers of these nodes, anew at the most verbose level.
    pub async fn log_everything(&self, nodes: &[String]) -> Result<()> {
        self.stop_controllers().await?;
        let mut flags = CONTROLLER_FLAGS;
        flags[flags.len() - 1] = "trace";
        for name in ["controller-1", "controller-2"] {
            let started = self.cluster.start_controller(BINARY.as_ref(), name, &flags).await?;
            locked(&self.controllers).insert(name.to_owned(), started);
        }
        self.controllers_are_ready().await?;
        for node in nodes {
            self.stop_warmer(node).await?;
            self.start_warmer_with(node, &WARMER).await?;
        }
        Ok(())
    }

    /// As they were, for tests that come after.
    pub async fn log_as_before(&self, nodes: &[String]) -> Result<()> {
        self.restart_controllers().await?;
        for node in nodes {
            self.stop_warmer(node).await?;
            self.start_warmer_with(node, &crate::conformance::WARMER_FLAGS).await?;
        }
        Ok(())
    }
}
