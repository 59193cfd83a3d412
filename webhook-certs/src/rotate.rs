//! Rotation of the stored certificates: a pure step from (stored state, now, policy) to the next
//! state. A new CA is trusted before it signs serving certificates, and the old one stays trusted
//! for a while: clients and replicas that lag behind always receive a chain that they trust.
//!
//! Own code: `rcgen` issues the certificates, but no crate rotates a CA among replicas that share a
//! Secret. Where cert-manager runs, `--tls-cert-dir` takes its certificates instead.
//!
//! ```text
//! CA ──▶ CA + next CA ──publish lag──▶ next CA serves, old stays ──retire lag──▶ next CA alone
//! ```

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::check::{BundleError, Validity};
use crate::issue::{Bundle, CLOCK_SKEW, IssueError, Lifetimes, new_ca};

/// When certificates are issued, used and retired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Lifetimes of new certificates.
    pub lifetimes: Lifetimes,
    /// A serving certificate is renewed this long before it expires.
    pub serving_renew_before: SignedDuration,
    /// The next CA is issued this long before the current one expires.
    pub ca_renew_before: SignedDuration,
    /// The next CA signs serving certificates only after it has been published for this long.
    pub publish_lag: SignedDuration,
    /// A CA that no longer signs is trusted for this long.
    pub retire_lag: SignedDuration,
}

impl Default for Policy {
    fn default() -> Self {
        let days = |days: i64| SignedDuration::from_hours(24 * days);
        Policy {
            lifetimes: Lifetimes::default(),
            serving_renew_before: days(30),
            ca_renew_before: days(180),
            publish_lag: SignedDuration::from_hours(1),
            retire_lag: SignedDuration::from_hours(1),
        }
    }
}

/// A policy by which certificates would expire before their successors are trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The renewal time is longer than the lifetime.
    #[error(
        "the lifetime of a serving certificate must be longer than the time before its expiry at which it is renewed"
    )]
    ServingRenewal,
    /// The same for the CA.
    #[error(
        "the lifetime of a CA must be longer than that of a serving certificate, and than the time before its expiry at which the next is issued"
    )]
    CaRenewal,
    /// The rotation would not complete before the CA expires.
    #[error(
        "the next CA must be issued earlier before the current one expires: publish lag and retire lag do not fit in between"
    )]
    Overlap,
}

impl Policy {
    /// Whether every rotation completes before the CA that it replaces expires.
    pub fn check(&self) -> Result<(), PolicyError> {
        let Lifetimes { ca, serving } = self.lifetimes;
        if self.serving_renew_before >= serving {
            return Err(PolicyError::ServingRenewal);
        }
        if self.ca_renew_before >= ca || serving > ca {
            return Err(PolicyError::CaRenewal);
        }
        if self.publish_lag.saturating_add(self.retire_lag) >= self.ca_renew_before {
            return Err(PolicyError::Overlap);
        }
        Ok(())
    }
}

/// The stored state. `bundle.ca_cert_pem` holds every CA to trust, the current one first: code that
/// does not support rotation publishes all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The serving certificate, and the CAs to trust.
    pub bundle: Bundle,
    /// The next CA; its certificate is among those of the bundle.
    pub next: Option<NextCa>,
    /// When CAs that are neither the current one nor the next are removed from the bundle.
    pub retire_at: Option<Timestamp>,
}

/// The next CA.
#[derive(Clone, PartialEq, Eq)]
pub struct NextCa {
    /// Its private key.
    pub key_pem: String,
    /// When it was issued.
    pub since: Timestamp,
}

impl fmt::Debug for NextCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NextCa").field("since", &self.since).field("key_pem", &"redacted").finish()
    }
}

impl State {
    /// A state without a rotation in progress.
    pub fn settled(bundle: Bundle) -> Self {
        State { bundle, next: None, retire_at: None }
    }

    /// The certificate of the next CA, if one matches its key.
    pub fn next_certificate(&self) -> Option<&str> {
        let key = KeyPair::from_pem(&self.next.as_ref()?.key_pem).ok()?;
        certificates(&self.bundle.ca_cert_pem).into_iter().skip(1).find(|pem| {
            parsed(pem, |certificate| {
                certificate.public_key().raw == key.subject_public_key_info().as_slice()
            })
            .unwrap_or(false)
        })
    }

    /// CAs that are neither the current one nor the next.
    fn others(&self) -> Vec<&str> {
        let next = self.next_certificate();
        let all = certificates(&self.bundle.ca_cert_pem).into_iter().skip(1);
        all.filter(|pem| Some(*pem) != next).collect()
    }
}

/// The action to take.
#[derive(Debug)]
pub enum Step {
    /// Nothing to do until the next check.
    Keep(Validity),
    /// Store a new state.
    Store {
        /// The next state.
        state: Box<State>,
        /// Why, for the log.
        why: String,
        /// The fault of the previous state, if any.
        fault: Option<BundleError>,
    },
}

/// One step. `published` returns the time from which clients can have observed the next CA, given
/// its certificate and the time at which it was issued.
pub fn step(
    found: Result<State, BundleError>,
    names: &[String],
    policy: &Policy,
    now: Timestamp,
    published: impl FnOnce(&str, Timestamp) -> Option<Timestamp>,
) -> Result<Step, IssueError> {
    let state = match found {
        Ok(state) => state,
        Err(fault) => return reissue(names, policy, now, fault),
    };
    let mut validity = match state.bundle.check(names, now) {
        Ok(validity) => validity,
        Err(fault) => return repair(state, names, policy, now, fault),
    };
    validity.renew_at = validity.not_after - policy.serving_renew_before;

    if let Some((state, why)) = retire(&state, policy, now) {
        return Ok(store(state, why));
    }

    match (state.next_certificate().map(str::to_owned), &state.next) {
        (Some(certificate), Some(next)) => {
            let since = published(&certificate, next.since);
            if since.is_some_and(|since| now >= since.max(next.since) + policy.publish_lag) {
                return switch(&state, &certificate, names, policy, now);
            }
        }
        _ if now >= validity.ca_not_after - policy.ca_renew_before
            || outlives(validity.ca_not_after, policy.lifetimes.ca, now) =>
        {
            let (certificate, key_pem) = new_ca(policy.lifetimes, now)?;
            let mut bundle = state.bundle;
            let mut all: Vec<&str> = certificates(&bundle.ca_cert_pem);
            all.insert(1, &certificate);
            bundle.ca_cert_pem = all.concat();
            let next = Some(NextCa { key_pem, since: now });
            return Ok(store(
                State { bundle, next, retire_at: state.retire_at },
                "the next CA is published",
            ));
        }
        _ => {}
    }
    let too_long = outlives(validity.not_after, policy.lifetimes.serving, now);
    // A certificate that expires with its CA cannot be extended by the same CA.
    if too_long || validity.is_due(now) && validity.not_after < validity.ca_not_after {
        let why = format!("tls.crt expires at {}", validity.not_after);
        let bundle = state.bundle.renew(names, policy.lifetimes, validity.ca_not_after, now)?;
        return Ok(store(State { bundle, ..state }, why));
    }
    Ok(Step::Keep(validity))
}

/// The state in which CAs that no longer sign are retired, or scheduled to retire, and why; `None`
/// when neither is due.
fn retire(state: &State, policy: &Policy, now: Timestamp) -> Option<(State, &'static str)> {
    let others = state.others();
    if others.is_empty() {
        return None;
    }
    let all = state.retire_at.is_some_and(|at| at <= now);
    let over = |pem: &&str| all || end_of(pem).is_none_or(|end| end < now);
    let retired: Vec<&str> = others.iter().copied().filter(over).collect();
    if !retired.is_empty() {
        let published = certificates(&state.bundle.ca_cert_pem).into_iter();
        let ca_cert_pem = published.filter(|pem| !retired.contains(pem)).collect();
        let retire_at = state.retire_at.filter(|_| retired.len() < others.len());
        let bundle = Bundle { ca_cert_pem, ..state.bundle.clone() };
        let next = state.next.clone();
        return Some((State { bundle, retire_at, next }, "an old CA retires"));
    }
    if state.retire_at.is_none() {
        let retire_at = Some(now + policy.retire_lag);
        let why = "a CA that no longer signs is scheduled to retire";
        return Some((State { retire_at, ..state.clone() }, why));
    }
    None
}

/// Replaces a bundle that cannot be served, by the change that affects clients least.
fn repair(
    state: State,
    names: &[String],
    policy: &Policy,
    now: Timestamp,
    fault: BundleError,
) -> Result<Step, IssueError> {
    let with_fault = |step| match step {
        Step::Store { state, why, .. } => Step::Store { state, why, fault: Some(fault.clone()) },
        keep @ Step::Keep(_) => keep,
    };
    if let Ok(ca_not_after) = state.bundle.check_ca(now)
        && ca_not_after > now + policy.publish_lag
    {
        let bundle = state.bundle.renew(names, policy.lifetimes, ca_not_after, now)?;
        if bundle.check(names, now).is_ok() {
            return Ok(with_fault(store(State { bundle, ..state }, fault.to_string())));
        }
    }
    let next = state.next_certificate().map(str::to_owned);
    if let Some(certificate) = next.filter(|pem| end_of(pem).is_some_and(|end| end > now)) {
        return Ok(with_fault(switch(&state, &certificate, names, policy, now)?));
    }
    reissue(names, policy, now, fault)
}

fn reissue(
    names: &[String],
    policy: &Policy,
    now: Timestamp,
    fault: BundleError,
) -> Result<Step, IssueError> {
    let state = Box::new(State::settled(Bundle::issue(names, policy.lifetimes, now)?));
    Ok(Step::Store { state, why: fault.to_string(), fault: Some(fault) })
}

/// Whether it expires later than a certificate issued now: the configured lifetime was longer then.
/// Differences within the clock skew come from a replica whose clock is ahead.
fn outlives(end: Timestamp, lifetime: SignedDuration, now: Timestamp) -> bool {
    end.duration_since(now) > lifetime.saturating_add(CLOCK_SKEW)
}

/// The next CA becomes the current one.
fn switch(
    state: &State,
    certificate: &str,
    names: &[String],
    policy: &Policy,
    now: Timestamp,
) -> Result<Step, IssueError> {
    let mut all = certificates(&state.bundle.ca_cert_pem);
    all.retain(|pem| *pem != certificate);
    all.insert(0, certificate);
    let next = state.next.as_ref();
    let bundle = Bundle {
        ca_cert_pem: all.concat(),
        ca_key_pem: next.map(|next| next.key_pem.clone()).unwrap_or_default(),
        ..state.bundle.clone()
    };
    let end = end_of(certificate).unwrap_or(now);
    let bundle = bundle.renew(names, policy.lifetimes, end, now)?;
    let retire_at = Some(now + policy.retire_lag);
    Ok(store(State { bundle, next: None, retire_at }, "the next CA is in use"))
}

fn store(state: State, why: impl Into<String>) -> Step {
    Step::Store { state: Box::new(state), why: why.into(), fault: None }
}

/// The PEM certificates in a text, each with its line feed.
pub fn certificates(pem: &str) -> Vec<&str> {
    const END: &str = "-----END CERTIFICATE-----\n";
    let ended = pem.split_inclusive(END);
    ended
        .filter_map(|part| part.find("-----BEGIN CERTIFICATE-----").map(|at| &part[at..]))
        .collect()
}

/// The expiry of one certificate; `None` if it cannot be parsed.
pub fn end_of(pem: &str) -> Option<Timestamp> {
    let seconds = parsed(pem, |certificate| certificate.validity().not_after.timestamp())?;
    Timestamp::from_second(seconds).ok()
}

fn parsed<T>(pem: &str, read: impl FnOnce(&X509Certificate<'_>) -> T) -> Option<T> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    Some(read(&certificate))
}

#[cfg(test)]
mod tests;
