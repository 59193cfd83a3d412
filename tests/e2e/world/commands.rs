//! Commands that people run, and the logs that they would read.

use super::*;

impl World {
    /// Runs `imagewarm` as an operator does; returns its exit code and what it printed.
    pub async fn imagewarm(&self, arguments: &[&str]) -> Result<(i32, String)> {
        self.command(BINARY.as_ref(), arguments).await
    }

    /// Runs `kubectl`, which must succeed; returns what it printed.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let (code, said) = self.command(self.cluster.kubectl(), arguments).await?;
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

    /// Every password that the tests use, plain and as it stands in pull secrets.
    pub fn passwords(&self) -> Vec<String> {
        let real = self.cluster.registry_tls.as_ref().and_then(|tls| tls.password.clone());
        let mut words: Vec<String> = real.into_iter().collect();
        words.extend(["canary-not-the-password".into(), "canary-mistyped".into()]);
        let encode = |word: &String| {
            let pair = format!("{}:{word}", xtask::cluster::USER);
            base64::Engine::encode(&base64::prelude::BASE64_STANDARD, pair)
        };
        let encoded: Vec<_> = words.iter().map(encode).collect();
        words.into_iter().chain(encoded).filter(|word| !word.is_empty()).collect()
    }
}
