//! Commands that people run, and the logs that they would read.

use super::*;

impl World {
    /// Runs `imagewarm` as an operator does; returns its exit code and what it printed.
    pub async fn imagewarm(&self, arguments: &[&str]) -> Result<(i32, String)> {
        self.command(BINARY.as_ref(), arguments).await
    }

    /// Runs `kubectl`, which must succeed; returns what it printed.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let (code, said) = self.command(self.cluster.kubectl()?, arguments).await?;
        if code != 0 {
            bail!("kubectl {arguments:?} ended with {code}:\n{said}");
        }
        Ok(said)
    }

    async fn command(&self, program: &Path, arguments: &[&str]) -> Result<(i32, String)> {
        let command = tokio::process::Command::new(program)
            .args(arguments)
            .env("KUBECONFIG", self.cluster.kubeconfig_path())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(DEADLINE, command)
            .await
            .with_context(|| format!("{program:?} {arguments:?} did not end"))??;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned()))
    }

    /// What the API server's audit log has so far.
    pub fn audit_events(&self) -> Result<Vec<serde_json::Value>> {
        self.cluster.audit_events()
    }

    /// The logs of all controllers and warmers, by process.
    pub fn logs(&self) -> Vec<(String, String)> {
        let processes = self.cluster.imagewarm_processes();
        processes.iter().map(|process| (process.name().to_owned(), process.log())).collect()
    }
}
