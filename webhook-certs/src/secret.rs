//! The bundle in its Secret (type `kubernetes.io/tls`, with `ca.crt` and `ca.key` beside
//! `tls.crt` and `tls.key`). Any of several replicas may create or replace it: creation is decided
//! by the API server (409 means: use the winner's), replacement by `resourceVersion`.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{Api, PostParams};
use tracing::info;

use crate::check::{BundleError, Part, Validity};
use crate::issue::{Bundle, IssueError, Lifetimes};

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
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    Issue(#[from] IssueError),
    /// A newly made bundle does not pass its own check.
    #[error("a new certificate would not be usable")]
    Unusable(#[source] BundleError),
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

    /// Reads the bundle; creates it where there is none, replaces it where it is bad or due.
    /// What is returned was checked for `names` at `now`.
    pub async fn settle(
        &self,
        names: &[String],
        lifetimes: Lifetimes,
        now: Timestamp,
    ) -> Result<(Bundle, Validity), StoreError> {
        let post = PostParams::default();
        for _ in 0..ATTEMPTS {
            let found = self.request("read", self.api.get_opt(&self.name)).await?;
            let Some(secret) = found else {
                let bundle = Bundle::issue(names, lifetimes, now)?;
                let validity = bundle.check(names, now).map_err(StoreError::Unusable)?;
                let secret = self.new_secret(&bundle);
                let created = self.api.create(&post, &secret);
                match self.request("create", created).await {
                    Ok(_) => {
                        info!(secret = %self.path(), "created certificates");
                        return Ok((bundle, validity));
                    }
                    Err(error) if is_conflict(&error) => continue,
                    Err(error) => return Err(error),
                }
            };
            let next = match decide(from_secret(&secret), names, lifetimes, now)? {
                Decision::Keep(bundle, validity) => return Ok((bundle, validity)),
                Decision::Replace(bundle, why) => {
                    info!(secret = %self.path(), %why, "replacing certificates");
                    bundle
                }
            };
            let validity = next.check(names, now).map_err(StoreError::Unusable)?;
            let mut secret = secret;
            secret.data.get_or_insert_default().extend(to_data(&next));
            // The resourceVersion that was read goes with it: a change since then is a 409.
            let replaced = self.api.replace(&self.name, &post, &secret);
            match self.request("replace", replaced).await {
                Ok(_) => return Ok((next, validity)),
                Err(error) if is_conflict(&error) || is_not_found(&error) => continue,
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Contended { secret: self.path() })
    }

    fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    fn new_secret(&self, bundle: &Bundle) -> Secret {
        Secret {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(self.namespace.clone()),
                labels: (!self.labels.is_empty()).then(|| self.labels.clone()),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(to_data(bundle).collect()),
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

/// What is to be done with the bundle that was found.
#[derive(Debug)]
enum Decision {
    Keep(Bundle, Validity),
    /// The new bundle, and why.
    Replace(Bundle, String),
}

/// A good CA is kept as long as it can sign a whole serving certificate: each change of the CA
/// has to reach the API server and all clients.
fn decide(
    found: Result<Bundle, BundleError>,
    names: &[String],
    lifetimes: Lifetimes,
    now: Timestamp,
) -> Result<Decision, IssueError> {
    let anew = |why: String| Ok(Decision::Replace(Bundle::issue(names, lifetimes, now)?, why));
    let bundle = match found {
        Ok(bundle) => bundle,
        Err(error) => return anew(error.to_string()),
    };
    let why = match bundle.check(names, now) {
        Ok(validity) if !validity.is_due(now) => return Ok(Decision::Keep(bundle, validity)),
        Ok(validity) => format!("tls.crt ends at {}", validity.not_after),
        Err(error) => error.to_string(),
    };
    match bundle.check_ca(now) {
        Ok(ca_not_after) if ca_not_after.duration_since(now) >= lifetimes.serving => {
            let renewed = bundle.renew(names, lifetimes, ca_not_after, now)?;
            Ok(Decision::Replace(renewed, why))
        }
        Ok(ca_not_after) => anew(format!("ca.crt ends at {ca_not_after}")),
        Err(error) => anew(error.to_string()),
    }
}

fn from_secret(secret: &Secret) -> Result<Bundle, BundleError> {
    let text = |part: Part| {
        let corrupted = |detail: &str| BundleError::Corrupted { part, detail: detail.to_owned() };
        let data = secret.data.as_ref().and_then(|data| data.get(part.key()));
        let data = data.ok_or_else(|| corrupted("the Secret has no such key"))?;
        String::from_utf8(data.0.clone()).map_err(|_| corrupted("it is not text"))
    };
    Ok(Bundle {
        ca_cert_pem: text(Part::CaCertificate)?,
        ca_key_pem: text(Part::CaKey)?,
        cert_pem: text(Part::Certificate)?,
        key_pem: text(Part::Key)?,
    })
}

fn to_data(bundle: &Bundle) -> impl Iterator<Item = (String, ByteString)> {
    [
        (Part::CaCertificate, &bundle.ca_cert_pem),
        (Part::CaKey, &bundle.ca_key_pem),
        (Part::Certificate, &bundle.cert_pem),
        (Part::Key, &bundle.key_pem),
    ]
    .map(|(part, pem)| (part.key().to_owned(), ByteString(pem.clone().into_bytes())))
    .into_iter()
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
