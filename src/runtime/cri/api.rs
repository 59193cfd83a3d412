//! The container runtime interface's client, generated from `proto/cri/runtime/v1/api.proto`.
#![allow(missing_docs, clippy::all, clippy::unwrap_used)] // generated

use std::fmt;

tonic::include_proto!("runtime.v1");

/// Redacted, so that no log contains a password.
impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthConfig(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_prints_no_password() {
        let auth = AuthConfig { password: "canary".into(), ..AuthConfig::default() };
        let request = PullImageRequest { auth: Some(auth), ..PullImageRequest::default() };
        assert!(!format!("{request:?}").contains("canary"));
    }
}
