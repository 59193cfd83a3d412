//! The bundle in its Secret (type `kubernetes.io/tls`, with `ca.crt` and `ca.key` beside
//! `tls.crt` and `tls.key`). Any of several replicas may create or replace it: the API server
//! decides creation (409: use the existing Secret), and `resourceVersion` decides replacement.

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

/// Maximum number of attempts after conflicts before an error is returned.
const ATTEMPTS: usize = 5;
/// Timeout of one request to the API server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the bundle is not available.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The API server returned an error, or could not be reached.
    #[error("cannot {verb} Secret {secret}")]
    Api {
        /// `read`, `create` or `replace`.
        verb: &'static str,
        /// Namespace and name.
        secret: String,
        /// The cause.
        source: Box<kube::Error>,
    },
    /// The API server did not respond in time.
    #[error("cannot {verb} Secret {secret}: no response within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout {
        /// `read`, `create` or `replace`.
        verb: &'static str,
        /// Namespace and name.
        secret: String,
    },
    /// Every attempt to change the Secret conflicted with another writer.
    #[error("cannot update Secret {secret}: it conflicts with other writers on every attempt")]
    Contended {
        /// Namespace and name.
        secret: String,
    },
    /// The Secret must change, but is immutable.
    #[error(
        "cannot replace Secret {secret} because it is immutable: delete it to have a new one created ({why})"
    )]
    Immutable {
        /// Namespace and name.
        secret: String,
        /// Why it must change.
        why: String,
    },
    /// A certificate could not be issued.
    #[error("cannot issue a certificate")]
    Issue(#[from] IssueError),
    /// A newly issued bundle does not pass its check.
    #[error("the new certificate is unusable")]
    Unusable(#[source] BundleError),
}

/// Keys that are in the Secret only during a CA rotation.
const ROTATION_KEYS: [&str; 3] = [NEXT_KEY, NEXT_SINCE, RETIRE_AT];
const NEXT_KEY: &str = "next-ca.key";
const NEXT_SINCE: &str = "next-ca.since";
const RETIRE_AT: &str = "retire-at";

/// The stored state, checked.
#[derive(Debug)]
pub struct Settled {
    /// The state in the Secret.
    pub state: State,
    /// Its validity.
    pub validity: Validity,
    /// The fault of the previous state, if any.
    pub fault: Option<BundleError>,
}

impl Settled {
    fn checked(
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

/// The time from which clients can have observed the next CA.
#[derive(Clone, Debug, Default)]
pub struct Publication {
    /// The CAs that were last observed as published; without it, stored CAs count as published.
    watched: Option<watch::Receiver<Option<Arc<str>>>>,
    /// The next CA, and when it was first observed there.
    first: Option<(String, Timestamp)>,
}

impl Publication {
    /// Counts from the time at which the next CA is among those in `watched` (PEM).
    pub fn watch(watched: watch::Receiver<Option<Arc<str>>>) -> Self {
        Publication { watched: Some(watched), first: None }
    }

    fn since(&mut self, ca: &str, made: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let Some(watched) = &self.watched else { return Some(made) };
        let published =
            watched.borrow().as_ref().is_some_and(|all| certificates(all).contains(&ca));
        if !published {
            // Overwritten by another writer: the lag restarts once the CA is published again.
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

/// The Secret that stores the bundle.
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

    /// Reads the state; creates it if absent, and applies one step of rotation if due. The returned
    /// state is checked for `names` at `now`.
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
                let settled = Settled::checked(state, names, policy, now, None)?;
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
            let current = found.as_ref().ok().cloned();
            let published = |ca: &str, since| publication.since(ca, since, now);
            let (state, why, fault) = match (step(found, names, policy, now, published)?, current) {
                (Step::Keep(validity), Some(state)) => {
                    return Ok(Settled { state, validity, fault: None });
                }
                // Unreachable: `step` never keeps an unreadable state.
                (Step::Keep(_), None) => continue,
                (Step::Store { state, why, fault }, _) => (*state, why, fault),
            };
            if secret.immutable == Some(true) {
                return Err(StoreError::Immutable { secret: self.path(), why });
            }
            self.log_replacement(fault.as_ref(), &why);
            let settled = Settled::checked(state, names, policy, now, fault)?;
            let secret = with_state(secret, &settled.state);
            // Sends the resourceVersion that was read: a change since then is a 409.
            let replaced = self.api.replace(&self.name, &post, &secret);
            match self.request("replace", replaced).await {
                Ok(_) => return Ok(settled),
                Err(error) if is_conflict(&error) || is_not_found(&error) => continue,
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Contended { secret: self.path() })
    }

    fn log_replacement(&self, fault: Option<&BundleError>, why: &str) {
        match fault {
            Some(fault) => {
                let reason = fault.reason();
                warn!(secret = %self.path(), reason, %fault, "replacing invalid certificates");
            }
            None => info!(secret = %self.path(), %why, "replacing certificates"),
        }
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

    /// Waits for a response for so long as is useful here. The library's own: whoever uses it has
    /// other clients, timeouts and errors.
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

/// The Secret with another state; whatever else it holds stays.
fn with_state(mut secret: Secret, state: &State) -> Secret {
    let data = secret.data.get_or_insert_default();
    for key in ROTATION_KEYS {
        data.remove(key);
    }
    data.extend(to_data(state));
    secret
}

/// The state in a Secret. Without the keys of a rotation, none is in progress.
pub fn from_secret(secret: &Secret) -> Result<State, BundleError> {
    let text = |part: Part| {
        let corrupted = |detail: &str| BundleError::Corrupted { part, detail: detail.to_owned() };
        let data = secret.data.as_ref().and_then(|data| data.get(part.key()));
        let data = data.ok_or_else(|| corrupted("the Secret has no such key"))?;
        String::from_utf8(data.0.clone()).map_err(|_| corrupted("the value is not UTF-8"))
    };
    let bundle = Bundle {
        ca_cert_pem: text(Part::CaCertificate)?,
        ca_key_pem: text(Part::CaKey)?,
        cert_pem: text(Part::Certificate)?,
        key_pem: text(Part::Key)?,
    };
    // The bundle is valid without these: a rotation with corrupted keys restarts.
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
