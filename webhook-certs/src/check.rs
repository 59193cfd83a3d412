//! Validates a `Bundle` as a client would: readable, within its validity, keys that match their
//! certificates, signed by the CA, issued for the right names. Computes when renewal is due.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{KeyPair, PublicKeyData};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::issue::Bundle;

/// One of the four parts of a `Bundle`; displays as its key in the Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The CA's certificate.
    CaCertificate,
    /// The CA's private key.
    CaKey,
    /// The serving certificate.
    Certificate,
    /// The serving certificate's private key.
    Key,
}

impl Part {
    /// The part's key in the Secret.
    pub const fn key(self) -> &'static str {
        match self {
            Part::CaCertificate => "ca.crt",
            Part::CaKey => "ca.key",
            Part::Certificate => "tls.crt",
            Part::Key => "tls.key",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key())
    }
}

/// The period in which a bundle can be served, and the time to replace it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Start of the serving certificate's validity.
    pub not_before: Timestamp,
    /// Expiry of the serving certificate.
    pub not_after: Timestamp,
    /// When a third of the serving certificate's lifetime is left, or as set by the policy.
    pub renew_at: Timestamp,
    /// Expiry of the CA.
    pub ca_not_after: Timestamp,
}

impl Validity {
    /// Whether the serving certificate is due for renewal.
    pub fn is_due(&self, now: Timestamp) -> bool {
        now >= self.renew_at
    }
}

/// The fault of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// A part is absent or cannot be decoded.
    #[error("{part} cannot be read: {detail}")]
    Corrupted {
        /// The part.
        part: Part,
        /// The decoder's error; without any of the content.
        detail: String,
    },
    /// A certificate has expired.
    #[error("{part} expired at {at}")]
    Expired {
        /// The certificate.
        part: Part,
        /// Its expiry.
        at: Timestamp,
    },
    /// A certificate is not valid yet; the clock may be wrong.
    #[error("{part} is not valid before {at}")]
    NotYetValid {
        /// The certificate.
        part: Part,
        /// The start of its validity.
        at: Timestamp,
    },
    /// A key does not match its certificate.
    #[error("{part} does not match its certificate")]
    KeyMismatch {
        /// The key.
        part: Part,
    },
    /// The serving certificate is signed by another CA, or is not for servers.
    #[error("tls.crt would not be accepted by a client that trusts ca.crt: {0}")]
    Foreign(String),
    /// The serving certificate lacks a name.
    #[error("tls.crt is not issued for {missing}")]
    WrongNames {
        /// The first name that it lacks.
        missing: String,
    },
}

impl BundleError {
    /// The reason, for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            BundleError::Corrupted { .. } => "Corrupted",
            BundleError::Expired { .. } => "Expired",
            BundleError::NotYetValid { .. } => "NotYetValid",
            BundleError::KeyMismatch { .. } => "KeyMismatch",
            BundleError::Foreign(_) => "Foreign",
            BundleError::WrongNames { .. } => "WrongNames",
        }
    }
}

fn corrupted(part: Part, detail: impl fmt::Display) -> BundleError {
    BundleError::Corrupted { part, detail: detail.to_string() }
}

impl Bundle {
    /// Whether a client that trusts the CA would accept the serving certificate for every one of
    /// `names` at `now`, and that the CA can sign the next one.
    pub fn check(&self, names: &[String], now: Timestamp) -> Result<Validity, BundleError> {
        let ca_not_after = self.check_ca(now)?;
        let (not_before, not_after) = self.verify_serving(names, now)?;
        let life = not_after.duration_since(not_before);
        Ok(Validity { not_before, not_after, renew_at: not_after - life / 3, ca_not_after })
    }

    /// The same without the CA's key, which this process may not have. Returns the start and the
    /// expiry of the serving certificate's validity.
    pub fn verify_serving(
        &self,
        names: &[String],
        now: Timestamp,
    ) -> Result<(Timestamp, Timestamp), BundleError> {
        let certified = self.certified_key()?;
        let leaf = &certified.cert[0];
        let (not_before, not_after) = validity(Part::Certificate, leaf, now)?;
        let verifier = self.verifier()?;
        let at = UnixTime::since_unix_epoch(Duration::from_secs(
            u64::try_from(now.as_second()).unwrap_or(0),
        ));
        for name in names {
            let wrong_name = || BundleError::WrongNames { missing: name.clone() };
            let server = ServerName::try_from(name.as_str()).map_err(|_| wrong_name())?;
            let verdict = verifier.verify_server_cert(leaf, &certified.cert[1..], &server, &[], at);
            verdict.map_err(|error| match error {
                rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName
                    | CertificateError::NotValidForNameContext { .. },
                ) => wrong_name(),
                other => BundleError::Foreign(other.to_string()),
            })?;
        }
        Ok((not_before, not_after))
    }

    /// Whether the CA alone is valid: readable, not expired, with its key. Returns its expiry.
    pub fn check_ca(&self, now: Timestamp) -> Result<Timestamp, BundleError> {
        let roots = certificates(Part::CaCertificate, &self.ca_cert_pem)?;
        let (_, certificate) = X509Certificate::from_der(&roots[0])
            .map_err(|error| corrupted(Part::CaCertificate, error))?;
        if !certificate.is_ca() {
            return Err(corrupted(Part::CaCertificate, "the certificate is not a CA"));
        }
        let (_, not_after) = validity(Part::CaCertificate, &roots[0], now)?;
        let key = KeyPair::from_pem(&self.ca_key_pem).map_err(|e| corrupted(Part::CaKey, e))?;
        if key.subject_public_key_info() != certificate.public_key().raw {
            return Err(BundleError::KeyMismatch { part: Part::CaKey });
        }
        Ok(not_after)
    }

    /// The serving certificate and its key, for rustls.
    pub fn certified_key(&self) -> Result<CertifiedKey, BundleError> {
        let chain = certificates(Part::Certificate, &self.cert_pem)?;
        X509Certificate::from_der(&chain[0]).map_err(|e| corrupted(Part::Certificate, e))?;
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .map_err(|error| corrupted(Part::Key, error))?;
        let provider = rustls::crypto::ring::default_provider();
        CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => BundleError::KeyMismatch { part: Part::Key },
            other => corrupted(Part::Key, other),
        })
    }

    fn verifier(&self) -> Result<Arc<WebPkiServerVerifier>, BundleError> {
        let mut roots = RootCertStore::empty();
        for root in certificates(Part::CaCertificate, &self.ca_cert_pem)? {
            roots.add(root).map_err(|error| corrupted(Part::CaCertificate, error))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| corrupted(Part::CaCertificate, error))
    }
}

/// At least one certificate, all readable.
fn certificates(part: Part, pem: &str) -> Result<Vec<CertificateDer<'static>>, BundleError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = all.map_err(|error| corrupted(part, error))?;
    if all.is_empty() {
        return Err(corrupted(part, "it holds no PEM certificate"));
    }
    Ok(all)
}

fn validity(
    part: Part,
    certificate: &CertificateDer<'_>,
    now: Timestamp,
) -> Result<(Timestamp, Timestamp), BundleError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| corrupted(part, e))?;
    let at = |seconds| Timestamp::from_second(seconds).map_err(|error| corrupted(part, error));
    let not_before = at(parsed.validity().not_before.timestamp())?;
    let not_after = at(parsed.validity().not_after.timestamp())?;
    if now > not_after {
        return Err(BundleError::Expired { part, at: not_after });
    }
    if now < not_before {
        return Err(BundleError::NotYetValid { part, at: not_before });
    }
    Ok((not_before, not_after))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;
    use crate::issue::Lifetimes;
    use jiff::SignedDuration;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn now() -> Timestamp {
        "2026-11-23T02:30:00Z".parse().unwrap()
    }

    fn days(days: i64) -> SignedDuration {
        SignedDuration::from_hours(24 * days)
    }

    fn good() -> Bundle {
        Bundle::issue(&names(&["hook.ns.svc", "localhost"]), Lifetimes::default(), now()).unwrap()
    }

    #[test]
    fn a_new_bundle_is_good_and_due_when_a_third_is_left() {
        let validity = good().check(&names(&["hook.ns.svc", "localhost"]), now()).unwrap();
        assert_eq!(validity.not_after, now() + days(90));
        assert_eq!(validity.ca_not_after, now() + days(3650));
        assert!(!validity.is_due(now() + days(59)));
        assert!(validity.is_due(now() + days(61)));
        good().check(&names(&["hook.ns.svc"]), now() + days(89)).unwrap();
    }

    #[test]
    fn each_fault_is_distinguished() {
        let other = good();
        let twisted = |twist: &dyn Fn(&mut Bundle)| {
            let mut bundle = good();
            twist(&mut bundle);
            bundle.check(&names(&["hook.ns.svc"]), now()).unwrap_err()
        };
        type Case<'a> = (&'a str, &'a dyn Fn(&mut Bundle), &'a str);
        let cases: [Case; 9] = [
            ("foreign CA", &|b| (b.ca_cert_pem, b.ca_key_pem) = ca(&other), "Foreign"),
            ("foreign certificate", &|b| (b.cert_pem, b.key_pem) = pair(&other), "Foreign"),
            ("wrong key", &|b| b.key_pem = other.key_pem.clone(), "KeyMismatch"),
            ("wrong CA key", &|b| b.ca_key_pem = other.ca_key_pem.clone(), "KeyMismatch"),
            ("empty certificate", &|b| b.cert_pem.clear(), "Corrupted"),
            ("cut CA", &|b| b.ca_cert_pem.truncate(200), "Corrupted"),
            ("cut key", &|b| b.key_pem.truncate(60), "Corrupted"),
            ("garbled CA key", &|b| b.ca_key_pem = "?".into(), "Corrupted"),
            ("leaf as CA", &|b| b.ca_cert_pem = b.cert_pem.clone(), "Corrupted"),
        ];
        for (name, twist, reason) in cases {
            let error = twisted(twist);
            assert_eq!(error.reason(), reason, "{name}: {error}");
        }
    }

    fn ca(bundle: &Bundle) -> (String, String) {
        (bundle.ca_cert_pem.clone(), bundle.ca_key_pem.clone())
    }

    fn pair(bundle: &Bundle) -> (String, String) {
        (bundle.cert_pem.clone(), bundle.key_pem.clone())
    }

    #[test]
    fn a_flipped_bit_in_the_certificate_is_detected() {
        let mut bundle = good();
        let body = bundle.cert_pem.find("\n").unwrap() + 300;
        let old = bundle.cert_pem.as_bytes()[body];
        let new = if old == b'A' { "B" } else { "A" };
        bundle.cert_pem.replace_range(body..=body, new);
        bundle.check(&names(&["hook.ns.svc"]), now()).unwrap_err();
    }

    #[test]
    fn times_and_names_are_reported() {
        let bundle = good();
        let error = bundle.check(&names(&["hook.ns.svc"]), now() + days(91)).unwrap_err();
        assert_eq!(error.to_string(), "tls.crt expired at 2027-02-21T02:30:00Z");
        let error = bundle.check(&[], now() + days(3651)).unwrap_err();
        assert_eq!(
            error,
            BundleError::Expired { part: Part::CaCertificate, at: now() + days(3650) }
        );
        let error = bundle.check(&[], now() - days(1)).unwrap_err();
        assert_eq!(error.reason(), "NotYetValid");
        let error = bundle.check(&names(&["localhost", "hook.ns.svc.cluster.local"]), now());
        assert_eq!(
            error.unwrap_err().to_string(),
            "tls.crt is not issued for hook.ns.svc.cluster.local"
        );
    }

    #[test]
    fn renewal_keeps_the_ca_and_never_outlives_it() {
        let old = good();
        let later = now() + days(3600);
        let new = old
            .renew(&names(&["new.ns.svc"]), Lifetimes::default(), now() + days(3650), later)
            .unwrap();
        assert_eq!(ca(&old), ca(&new));
        let validity = new.check(&names(&["new.ns.svc"]), later).unwrap();
        assert_eq!(validity.not_after, validity.ca_not_after);
        assert!(old.key_pem != new.key_pem);
    }

    #[test]
    fn nothing_secret_is_printed() {
        let bundle = good();
        let printed = format!("{bundle:?}");
        assert!(printed.contains("BEGIN CERTIFICATE") && !printed.contains("PRIVATE KEY"));
    }

    #[test]
    fn impossible_requests_are_refused() {
        let zero = Lifetimes { serving: SignedDuration::ZERO, ..Lifetimes::default() };
        assert!(Bundle::issue(&names(&["a"]), zero, now()).is_err());
        assert!(Bundle::issue(&[], Lifetimes::default(), now()).is_err());
    }
}
