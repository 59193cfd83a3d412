//! Settings of the webhook server.

use std::net::SocketAddr;
use std::time::Duration;

use imagewarm_core::settings::duration;

/// Settings of the webhook server.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Webhook")]
pub struct WebhookArgs {
    /// Address that serves admission requests over TLS
    #[arg(
        long,
        env = "IMAGEWARM_WEBHOOK_LISTEN",
        value_name = "ADDR:PORT",
        default_value = "[::]:8443"
    )]
    pub webhook_listen: SocketAddr,

    /// Maximum number of open connections; further ones wait
    #[arg(
        long,
        env = "IMAGEWARM_WEBHOOK_MAX_CONNECTIONS",
        value_name = "COUNT",
        default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub webhook_max_connections: u32,

    /// Maximum size of a request body; the API server sends objects of up to 3 MiB, twice on updates
    #[arg(
        long,
        env = "IMAGEWARM_WEBHOOK_MAX_BODY",
        value_name = "BYTES",
        default_value_t = 8 * 1024 * 1024,
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..)
    )]
    pub webhook_max_body: usize,

    /// Timeout of a TLS handshake
    #[arg(
        long,
        env = "IMAGEWARM_WEBHOOK_HANDSHAKE_TIMEOUT",
        value_name = "DURATION",
        default_value = "5s",
        value_parser = duration
    )]
    pub webhook_handshake_timeout: Duration,

    /// Timeout of a request's head, from its first byte
    #[arg(
        long,
        env = "IMAGEWARM_WEBHOOK_HEAD_TIMEOUT",
        value_name = "DURATION",
        default_value = "5s",
        value_parser = duration
    )]
    pub webhook_head_timeout: Duration,

    /// Timeout of a request's body
    #[arg(
        long,
        env = "IMAGEWARM_WEBHOOK_BODY_TIMEOUT",
        value_name = "DURATION",
        default_value = "10s",
        value_parser = duration
    )]
    pub webhook_body_timeout: Duration,

    /// Timeout of a connection without a request; longer than the 90s after which the API server
    /// itself closes one, so that no request meets a closing connection
    #[arg(
        long,
        env = "IMAGEWARM_WEBHOOK_IDLE_TIMEOUT",
        value_name = "DURATION",
        default_value = "3m",
        value_parser = duration
    )]
    pub webhook_idle_timeout: Duration,

    /// Timeout of requests in progress after shutdown begins
    #[arg(
        long,
        env = "IMAGEWARM_WEBHOOK_DRAIN_TIMEOUT",
        value_name = "DURATION",
        default_value = "15s",
        value_parser = duration
    )]
    pub webhook_drain_timeout: Duration,

    /// Timeout for reading all pull secrets of one ImageWarm; less where the API server announces
    /// a shorter timeout
    #[arg(
        long,
        env = "IMAGEWARM_WEBHOOK_SECRETS_TIMEOUT",
        value_name = "DURATION",
        default_value = "4s",
        value_parser = duration
    )]
    pub webhook_secrets_timeout: Duration,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use clap::{Args, Command, FromArgMatches};

    #[test]
    fn defaults_are_valid_and_nonsense_is_refused() {
        let command = WebhookArgs::augment_args(Command::new("test"));
        command.clone().debug_assert();
        let matches = command.clone().try_get_matches_from(["test"]).unwrap();
        let args = WebhookArgs::from_arg_matches(&matches).unwrap();
        assert_eq!(args.webhook_idle_timeout, Duration::from_secs(180));
        for bad in ["", "5", "-5s", "0s", "soon"] {
            let flag = format!("--webhook-head-timeout={bad}");
            let error = command.clone().try_get_matches_from(["test", &flag]).unwrap_err();
            assert!(error.to_string().contains("1m30s") || bad.is_empty(), "{error}");
        }
    }
}
