//! The bundle in its Secret (type `kubernetes.io/tls`, with `ca.crt` and `ca.key` beside
//! `tls.crt` and `tls.key`). Any of several replicas may create or replace it: creation is decided
//! by the API server (409 means: use the winner's), replacement by `resourceVersion`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::check::{BundleError, Part, Validity};
use crate::issue::{Bundle, IssueError};
use crate::rotate::{NextCa, Policy, State, Step, certificates, step};

/// How often a lost race is tried again before the caller hears of it.
const ATTEMPTS: usize = 5;
/// How long one request to the API server may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the bundle could not be had.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The API server answered with an error, or could not be reached.
    #[error("cannot {verb} Secret {secret}")]
    Api {
        /// `read`, `create` or `replace`.
        verb: &'static str,
        /// Namespace and name.
        secret: String,
        /// What happened.
        source: Box<kube::Error>,
    },
    /// The API server did not answer in time.
    #[error("cannot {verb} Secret {secret}: no answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout {
        /// `read`, `create` or `replace`.
        verb: &'static str,
        /// Namespace and name.
        secret: String,
    },
    /// Others changed the Secret each time that this process wanted to.
    #[error("cannot settle Secret {secret}: others keep changing it")]
    Contended {
        /// Namespace and name.
        secret: String,
    },
    /// The Secret would have to change and may not.
    #[error(
        "cannot replace Secret {secret}, for it is immutable: delete it and a new one is made ({why})"
    )]
    Immutable {
        /// Namespace and name.
        secret: String,
        /// Why it would have to change.
        why: String,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    Issue(#[from] IssueError),
    /// A newly made bundle does not pass its own check.
    #[error("a new certificate would not be usable")]
    Unusable(#[source] BundleError),
}

/// Keys that stand in the Secret only while a CA comes or goes.
const ROTATION_KEYS: [&str; 3] = [NEXT_KEY, NEXT_SINCE, RETIRE_AT];
const NEXT_KEY: &str = "next-ca.key";
const NEXT_SINCE: &str = "next-ca.since";
const RETIRE_AT: &str = "retire-at";

/// What is stored now, as checked.
#[derive(Debug)]
pub struct Settled {
    /// What stands in the Secret.
    pub state: State,
    /// How long it is good for.
    pub validity: Validity,
    /// What was wrong with what stood there before.
    pub fault: Option<BundleError>,
}

impl Settled {
    fn made(
        state: State,
        names: &[String],
        policy: &Policy,
        now: Timestamp,
        fault: Option<BundleError>,
    ) -> Result<Self, StoreError> {
        let mut validity = state.bundle.check(names, now).map_err(StoreError::Unusable)?;
        validity.renew_at = validity.not_after - policy.serving_renew_before;
        Ok(Settled { state, validity, fault })
    }
}

/// Since when clients can have seen the next CA.
#[derive(Clone, Debug, Default)]
pub struct Publication {
    /// The CAs that were last seen published; without it, what is stored counts as published.
    watched: Option<watch::Receiver<Option<Arc<str>>>>,
    /// The next CA, and when it was first seen there.
    first: Option<(String, Timestamp)>,
}

impl Publication {
    /// Counts from when the next CA is among those in `watched` (PEM).
    pub fn watch(watched: watch::Receiver<Option<Arc<str>>>) -> Self {
        Publication { watched: Some(watched), first: None }
    }

    fn since(&mut self, ca: &str, made: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let Some(watched) = &self.watched else { return Some(made) };
        let there = watched.borrow().as_ref().is_some_and(|all| certificates(all).contains(&ca));
        if !there {
            // Overwritten by somebody: the lag counts anew once it is back.
            self.first = None;
            return None;
        }
        match &self.first {
            Some((seen, first)) if seen == ca => Some(*first),
            _ => {
                self.first = Some((ca.to_owned(), now));
                Some(now)
            }
        }
    }
}

/// Where the bundle is kept.
#[derive(Clone)]
pub struct SecretStore {
    api: Api<Secret>,
    namespace: String,
    name: String,
    labels: BTreeMap<String, String>,
}

impl SecretStore {
    /// The Secret `namespace/name`; `labels` are set when it is created.
    pub fn new(
        client: Client,
        namespace: &str,
        name: &str,
        labels: BTreeMap<String, String>,
    ) -> Self {
        SecretStore {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels,
        }
    }

    /// Reads the state; creates it where there is none, takes it one step on where that is due.
    /// What is returned was checked for `names` at `now`.
    pub async fn settle(
        &self,
        names: &[String],
        policy: &Policy,
        now: Timestamp,
        publication: &mut Publication,
    ) -> Result<Settled, StoreError> {
        let post = PostParams::default();
        for _ in 0..ATTEMPTS {
            let found = self.request("read", self.api.get_opt(&self.name)).await?;
            let Some(secret) = found else {
                let state = State::settled(Bundle::issue(names, policy.lifetimes, now)?);
                let settled = Settled::made(state, names, policy, now, None)?;
                let secret = self.new_secret(&settled.state);
                let created = self.api.create(&post, &secret);
                match self.request("create", created).await {
                    Ok(_) => {
                        info!(secret = %self.path(), "created certificates");
                        return Ok(settled);
                    }
                    Err(error) if is_conflict(&error) => continue,
                    Err(error) => return Err(error),
                }
            };
            let found = from_secret(&secret);
            let kept = found.as_ref().ok().cloned();
            let published = |ca: &str, since| publication.since(ca, since, now);
            let (state, why, fault) = match (step(found, names, policy, now, published)?, kept) {
                (Step::Keep(validity), Some(state)) => {
                    return Ok(Settled { state, validity, fault: None });
                }
                // What cannot be read is never kept.
                (Step::Keep(_), None) => continue,
                (Step::Store { state, why, fault }, _) => (*state, why, fault),
            };
            if secret.immutable == Some(true) {
                return Err(StoreError::Immutable { secret: self.path(), why });
            }
            match &fault {
                Some(fault) => {
                    let reason = fault.reason();
                    warn!(secret = %self.path(), reason, %fault, "replacing bad certificates");
                }
                None => info!(secret = %self.path(), %why, "replacing certificates"),
            }
            let settled = Settled::made(state, names, policy, now, fault)?;
            let mut secret = secret;
            let data = secret.data.get_or_insert_default();
            for key in ROTATION_KEYS {
                data.remove(key);
            }
            data.extend(to_data(&settled.state));
            // The resourceVersion that was read goes with it: a change since then is a 409.
            let replaced = self.api.replace(&self.name, &post, &secret);
            match self.request("replace", replaced).await {
                Ok(_) => return Ok(settled),
                Err(error) if is_conflict(&error) || is_not_found(&error) => continue,
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Contended { secret: self.path() })
    }

    fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    fn new_secret(&self, state: &State) -> Secret {
        Secret {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(self.namespace.clone()),
                labels: (!self.labels.is_empty()).then(|| self.labels.clone()),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(to_data(state).collect()),
            ..Secret::default()
        }
    }

    async fn request<T>(
        &self,
        verb: &'static str,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(REQUEST_TIMEOUT, call).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(source)) => {
                Err(StoreError::Api { verb, secret: self.path(), source: Box::new(source) })
            }
            Err(_) => Err(StoreError::Timeout { verb, secret: self.path() }),
        }
    }
}

/// The state in a Secret. One without the keys of a rotation has none under way.
pub fn from_secret(secret: &Secret) -> Result<State, BundleError> {
    let text = |part: Part| {
        let corrupted = |detail: &str| BundleError::Corrupted { part, detail: detail.to_owned() };
        let data = secret.data.as_ref().and_then(|data| data.get(part.key()));
        let data = data.ok_or_else(|| corrupted("the Secret has no such key"))?;
        String::from_utf8(data.0.clone()).map_err(|_| corrupted("it is not text"))
    };
    let bundle = Bundle {
        ca_cert_pem: text(Part::CaCertificate)?,
        ca_key_pem: text(Part::CaKey)?,
        cert_pem: text(Part::Certificate)?,
        key_pem: text(Part::Key)?,
    };
    // Without these the bundle is as good as before: a rotation that is garbled begins again.
    let extra = |key: &str| {
        let data = secret.data.as_ref()?.get(key)?;
        String::from_utf8(data.0.clone()).ok()
    };
    let time = |key: &str| extra(key)?.parse::<Timestamp>().ok();
    let next = extra(NEXT_KEY).zip(time(NEXT_SINCE));
    let next = next.map(|(key_pem, since)| NextCa { key_pem, since });
    Ok(State { bundle, next, retire_at: time(RETIRE_AT) })
}

fn to_data(state: &State) -> impl Iterator<Item = (String, ByteString)> {
    let bundle = &state.bundle;
    let text = |key: &str, text: String| (key.to_owned(), ByteString(text.into_bytes()));
    let next = state.next.iter().flat_map(move |next| {
        [text(NEXT_KEY, next.key_pem.clone()), text(NEXT_SINCE, next.since.to_string())]
    });
    let retire = state.retire_at.map(|at| text(RETIRE_AT, at.to_string()));
    [
        (Part::CaCertificate, &bundle.ca_cert_pem),
        (Part::CaKey, &bundle.ca_key_pem),
        (Part::Certificate, &bundle.cert_pem),
        (Part::Key, &bundle.key_pem),
    ]
    .map(|(part, pem)| (part.key().to_owned(), ByteString(pem.clone().into_bytes())))
    .into_iter()
    .chain(next)
    .chain(retire)
}

fn code(error: &StoreError) -> Option<u16> {
    match error {
        StoreError::Api { source, .. } => match source.as_ref() {
            kube::Error::Api(status) => Some(status.code),
            _ => None,
        },
        _ => None,
    }
}

fn is_conflict(error: &StoreError) -> bool {
    code(error) == Some(409)
}

fn is_not_found(error: &StoreError) -> bool {
    code(error) == Some(404)
}

#[cfg(test)]
mod tests;
