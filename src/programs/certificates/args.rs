//! Flags of the certificates.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, Args};
use imagewarm_webhook_certs::{Lifetimes, Policy, PolicyError};
use jiff::SignedDuration;

use imagewarm_core::settings::duration;

/// The source of certificates, their lifetimes and their renewal times.
#[derive(Args, Clone, Debug)]
pub struct CertificateArgs {
    /// Directory with tls.crt, tls.key and ca.crt that another program renews, such as
    /// cert-manager. By default the controller issues certificates and stores them in a Secret
    #[arg(long, env = "IMAGEWARM_TLS_CERT_DIR", value_name = "DIR")]
    pub tls_cert_dir: Option<PathBuf>,

    /// Have the leader publish the CA in the webhook configurations. Set to false where another
    /// program does, such as cert-manager's injector
    #[arg(long, env = "IMAGEWARM_PUBLISH_CA_BUNDLE", value_name = "BOOL",
          default_value_t = true, default_missing_value = "true", num_args = 0..=1,
          action = ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub publish_ca_bundle: bool,

    /// Have the leader publish the webhooks' paths in the webhook configurations, and rotate them.
    /// Set to false where the installer sets them there. If --publish-ca-bundle is false too, the
    /// controller does not change webhook configurations
    #[arg(long, env = "IMAGEWARM_PUBLISH_WEBHOOK_PATHS", value_name = "BOOL",
          default_value_t = true, default_missing_value = "true", num_args = 0..=1,
          action = ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub publish_webhook_paths: bool,

    /// Lifetime of a CA
    #[arg(long, env = "IMAGEWARM_CA_LIFETIME", value_name = "DURATION",
          default_value = "87600h", value_parser = duration)]
    pub ca_lifetime: Duration,

    /// How long before a CA expires the next one is issued
    #[arg(long, env = "IMAGEWARM_CA_RENEW_BEFORE", value_name = "DURATION",
          default_value = "4320h", value_parser = duration)]
    pub ca_renew_before: Duration,

    /// Lifetime of a serving certificate
    #[arg(long, env = "IMAGEWARM_SERVING_LIFETIME", value_name = "DURATION",
          default_value = "2160h", value_parser = duration)]
    pub serving_lifetime: Duration,

    /// How long before a serving certificate expires it is renewed
    #[arg(long, env = "IMAGEWARM_SERVING_RENEW_BEFORE", value_name = "DURATION",
          default_value = "720h", value_parser = duration)]
    pub serving_renew_before: Duration,

    /// How long a new CA is published before it signs serving certificates: longer than API
    /// servers and kubelets take to observe a change
    #[arg(long, env = "IMAGEWARM_CA_PUBLISH_LAG", value_name = "DURATION",
          default_value = "1h", value_parser = duration)]
    pub ca_publish_lag: Duration,

    /// How long an old CA stays published after it stops signing: longer than replicas take to
    /// serve certificates that the new CA has signed
    #[arg(long, env = "IMAGEWARM_CA_RETIRE_LAG", value_name = "DURATION",
          default_value = "1h", value_parser = duration)]
    pub ca_retire_lag: Duration,

    /// How often the Secret or directory is checked, by the wall clock
    #[arg(long, env = "IMAGEWARM_CERTIFICATE_CHECK_INTERVAL", value_name = "DURATION",
          default_value = "60s", value_parser = duration)]
    pub certificate_check_interval: Duration,
}

/// Why the flags do not go together.
#[derive(Debug, thiserror::Error)]
pub enum CertificateArgsError {
    /// A duration beyond all calendars.
    #[error("a lifetime of certificates is too long: use one of less than 1000 years")]
    TooLong,
    /// No room for a rotation.
    #[error("certificates would end before their successors are trusted")]
    Policy(#[from] PolicyError),
    /// Replicas would notice too late.
    #[error(
        "--certificate-check-interval must be shorter than --ca-publish-lag and --ca-retire-lag: \
         replicas would notice a rotation only when it is over"
    )]
    CheckInterval,
}

impl CertificateArgs {
    /// The policy, once all flags go together.
    pub fn policy(&self) -> Result<Policy, CertificateArgsError> {
        let signed = |wanted: Duration| {
            let wanted = SignedDuration::try_from(wanted).ok();
            let limit = SignedDuration::from_hours(1000 * 365 * 24);
            wanted.filter(|wanted| *wanted < limit).ok_or(CertificateArgsError::TooLong)
        };
        let policy = Policy {
            lifetimes: Lifetimes {
                ca: signed(self.ca_lifetime)?,
                serving: signed(self.serving_lifetime)?,
            },
            serving_renew_before: signed(self.serving_renew_before)?,
            ca_renew_before: signed(self.ca_renew_before)?,
            publish_lag: signed(self.ca_publish_lag)?,
            retire_lag: signed(self.ca_retire_lag)?,
        };
        policy.check()?;
        if self.certificate_check_interval >= self.ca_publish_lag.min(self.ca_retire_lag) {
            return Err(CertificateArgsError::CheckInterval);
        }
        Ok(policy)
    }
}
