//! Issues the CA and the serving certificate (ECDSA P-256). No I/O and no clock; keys are random.

use std::fmt;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

/// Certificates are valid from this long before they are issued, for clients whose clock is behind, and
/// for replicas: with clocks further apart they would replace each other's.
pub const CLOCK_SKEW: SignedDuration = SignedDuration::from_hours(3);

/// Lifetimes of new certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of the CA.
    pub ca: SignedDuration,
    /// Of the serving certificate; limited by the CA's expiry.
    pub serving: SignedDuration,
}

impl Default for Lifetimes {
    /// Ten years and ninety days.
    fn default() -> Self {
        Lifetimes {
            ca: SignedDuration::from_hours(10 * 365 * 24),
            serving: SignedDuration::from_hours(90 * 24),
        }
    }
}

/// A CA and the serving certificate that it signed, with both keys, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Bundle {
    /// The CAs that clients trust. If there are several, the first belongs to `ca_key_pem`.
    pub ca_cert_pem: String,
    /// The CA's private key.
    pub ca_key_pem: String,
    /// The serving certificate, optionally followed by its chain.
    pub cert_pem: String,
    /// The serving certificate's private key.
    pub key_pem: String,
}

/// Redacted, so that no log contains a key.
impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bundle")
            .field("ca_cert_pem", &self.ca_cert_pem)
            .field("ca_key_pem", &"redacted")
            .field("cert_pem", &self.cert_pem)
            .field("key_pem", &"redacted")
            .finish()
    }
}

/// Why no certificate could be issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// A certificate needs at least one name.
    #[error("no server name is given: at least one DNS name or IP address is required")]
    NoNames,
    /// The lifetime exceeds the range of dates, or is not positive.
    #[error(
        "a lifetime of {0} is not possible: it must be positive and expire before the year 9999"
    )]
    Lifetime(SignedDuration),
    /// The key or certificate library returned an error, usually for a name.
    #[error("the certificate cannot be issued")]
    Crypto(#[from] rcgen::Error),
}

impl Bundle {
    /// Issues a new CA and a serving certificate for `names` (DNS names or IP addresses).
    pub fn issue(
        names: &[String],
        lifetimes: Lifetimes,
        now: Timestamp,
    ) -> Result<Self, IssueError> {
        let (ca_cert_pem, ca_key_pem) = new_ca(lifetimes, now)?;
        let empty = String::new;
        let bundle = Bundle { ca_cert_pem, ca_key_pem, cert_pem: empty(), key_pem: empty() };
        bundle.renew(names, lifetimes, end(now, lifetimes.ca)?, now)
    }

    /// Issues a new serving certificate from the same CA, which must be valid until `ca_not_after`.
    pub fn renew(
        &self,
        names: &[String],
        lifetimes: Lifetimes,
        ca_not_after: Timestamp,
        now: Timestamp,
    ) -> Result<Self, IssueError> {
        let key = KeyPair::from_pem(&self.ca_key_pem)?;
        let issuer = Issuer::from_ca_cert_pem(&self.ca_cert_pem, key)?;
        let not_after = end(now, lifetimes.serving)?.min(ca_not_after);
        let (cert_pem, key_pem) = serving(&issuer, names, not_after, now)?;
        Ok(Bundle { cert_pem, key_pem, ..self.clone() })
    }
}

/// Certificate and private key of a new CA.
pub(crate) fn new_ca(lifetimes: Lifetimes, now: Timestamp) -> Result<(String, String), IssueError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    // The time makes the CA's name unique: a client that trusts two selects the right one.
    params.distinguished_name = common_name(&format!("webhook CA {now:.0}"));
    set_validity(&mut params, now, end(now, lifetimes.ca)?)?;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn serving(
    issuer: &Issuer<'_, KeyPair>,
    names: &[String],
    not_after: Timestamp,
    now: Timestamp,
) -> Result<(String, String), IssueError> {
    if names.is_empty() {
        return Err(IssueError::NoNames);
    }
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name = common_name("webhook server");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, now, not_after)?;
    let certificate = params.signed_by(&key, issuer)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn end(now: Timestamp, lifetime: SignedDuration) -> Result<Timestamp, IssueError> {
    if !lifetime.is_positive() {
        return Err(IssueError::Lifetime(lifetime));
    }
    now.checked_add(lifetime).map_err(|_| IssueError::Lifetime(lifetime))
}

fn set_validity(
    params: &mut CertificateParams,
    now: Timestamp,
    not_after: Timestamp,
) -> Result<(), IssueError> {
    // rcgen uses the `time` crate's type; only this function converts to it.
    let from_epoch = |at: Timestamp| {
        let seconds = u64::try_from(at.as_second()).unwrap_or(0);
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds)
    };
    let not_before = now.checked_sub(CLOCK_SKEW).map_err(|_| IssueError::Lifetime(CLOCK_SKEW))?;
    params.not_before = from_epoch(not_before);
    params.not_after = from_epoch(not_after);
    Ok(())
}
