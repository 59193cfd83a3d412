//! Pull secrets: reads them one by one (never a list, never a watch) and resolves them to
//! credentials for one image. `image::keychain` interprets their content.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::{Api, Client};
use serde::de::DeserializeOwned;

use super::request::{RequestError, request};
use imagewarm_core::api::Reason;
use imagewarm_core::api::names::is_dns_subdomain;
use imagewarm_core::demand::PullIdentity;
use imagewarm_core::error_chain::error_chain;
use imagewarm_core::image::keychain::KeychainError;
use imagewarm_core::image::quoted::{MESSAGE_MAX, Quoted, printable, quoted};
use imagewarm_core::image::{Credential, Keychain, Reference};

/// Timeout of one read, including all retries.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Concurrent reads for one image.
const READS_AT_ONCE: usize = 8;
/// Maximum number of identities that are read; the newest come first.
const MAX_IDENTITIES: usize = 32;
/// Maximum number of secrets that are read for one image.
const MAX_SECRETS: usize = 64;
/// ServiceAccount of Pods that name none.
const DEFAULT_SERVICE_ACCOUNT: &str = "default";

const DOCKER_CONFIG_JSON: (&str, &str) = ("kubernetes.io/dockerconfigjson", ".dockerconfigjson");
const DOCKERCFG: (&str, &str) = ("kubernetes.io/dockercfg", ".dockercfg");

/// A requested object. Displayed as `Secret "regcred" in namespace "team"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ObjectRef {
    kind: &'static str,
    namespace: String,
    name: String,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, namespace) = (quoted(&self.name), quoted(&self.namespace));
        write!(f, "{} {name} in namespace {namespace}", self.kind)
    }
}

/// Why a pull secret cannot be used. `Display` states the fault and what would be right, and
/// contains nothing of a secret's content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SecretError {
    /// No object can have this name.
    #[error(
        "{kind} name {name} is not valid: it must be lower case letters, digits, '-' and '.', \
         at most 253 characters, such as regcred"
    )]
    InvalidName {
        /// Kind of the object.
        kind: &'static str,
        /// The name.
        name: Quoted,
    },
    /// The object does not exist.
    #[error("{0} does not exist")]
    NotFound(ObjectRef),
    /// The Secret is not of a type for pull secrets.
    #[error(
        "{object} has type {type_}: a pull secret has type kubernetes.io/dockerconfigjson or \
         kubernetes.io/dockercfg"
    )]
    WrongType {
        /// The Secret.
        object: ObjectRef,
        /// Its type.
        type_: Quoted,
    },
    /// The Secret has the right type, but lacks the key that the type requires.
    #[error("{object} has no {key:?}, which its type requires")]
    MissingKey {
        /// The Secret.
        object: ObjectRef,
        /// The key of `data`.
        key: &'static str,
    },
    /// The Secret's content cannot be parsed.
    #[error("{key:?} of {object}: {problem}")]
    Malformed {
        /// The Secret.
        object: ObjectRef,
        /// The key of `data`.
        key: &'static str,
        /// The fault and its position.
        problem: Box<KeychainError>,
    },
    /// imagewarm is not authorized to read it.
    #[error("not allowed to read {object}: imagewarm's ClusterRole must allow get on {resource}")]
    Forbidden {
        /// The requested object.
        object: ObjectRef,
        /// The resource, as RBAC rules name it.
        resource: &'static str,
    },
    /// The API server gave no usable response.
    #[error("cannot read {object}: {cause}")]
    Unreachable {
        /// The requested object.
        object: ObjectRef,
        /// The cause.
        cause: String,
    },
}

impl SecretError {
    /// The typed reason for a status.
    pub(crate) fn reason(&self) -> Reason {
        Reason::SecretMissing
    }

    /// Whether the object could not be read at all, in contrast to "does not exist".
    pub(crate) fn is_unreadable(&self) -> bool {
        matches!(self, Self::Forbidden { .. } | Self::Unreachable { .. })
    }
}

/// Checks that the Secret exists in the namespace, has a docker type, and parses.
pub(crate) async fn check_pull_secret(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<(), SecretError> {
    let secret = read_secret(client, namespace, name).await?;
    let object = secret_ref(namespace, name);
    let parsing =
        tokio::task::spawn_blocking(move || add_secret(&mut Keychain::default(), &object, &secret));
    parsing.await.unwrap_or_else(|error| {
        let cause = format!("its content was not read: {error}");
        Err(SecretError::Unreachable { object: secret_ref(namespace, name), cause })
    })
}

/// Credentials for `image`, in the order in which they are to be tried. Missing secrets are
/// skipped while any other yields a credential (as for Pods). An error only if no identity yields
/// a credential and a secret that is named cannot be used.
///
/// Empty if no secret is named, or if all that are named are for other registries: then the image
/// is pulled without credentials. A ServiceAccount that does not exist names no secret.
pub(crate) async fn resolve(
    client: &Client,
    namespace: &str,
    identities: &[PullIdentity],
    image: &Reference,
) -> Result<Vec<Credential>, SecretError> {
    let identities = at_most(identities, MAX_IDENTITIES, image);
    let accounts = identities.iter().filter_map(service_account).collect();
    let accounts = for_each(accounts, |name: String| async move {
        let account = read_service_account(client, namespace, &name).await;
        (name, account)
    });
    let accounts = accounts.await;

    let Expanded { lists, mut failure } = expand(identities, &accounts);
    let names: Vec<&str> = lists.iter().flatten().map(String::as_str).collect();
    let names = distinct(&names);
    let names = at_most(&names, MAX_SECRETS, image).iter().map(|name| (*name).to_owned()).collect();
    let secrets = for_each(names, |name: String| async move {
        let secret = read_secret(client, namespace, &name).await;
        (name, secret)
    });
    let secrets = secrets.await;

    // A Secret of 1 MiB takes some milliseconds.
    let (of_namespace, image) = (namespace.to_owned(), image.clone());
    let first = secrets.keys().next().cloned().unwrap_or_default();
    let matching = tokio::task::spawn_blocking(move || {
        let found = credentials(&of_namespace, &lists, &secrets, &image, &mut failure);
        (found, failure)
    });
    let (found, failure) = matching.await.map_err(|error| {
        let cause = format!("the content of pull secrets was not read: {error}");
        SecretError::Unreachable { object: secret_ref(namespace, &first), cause }
    })?;
    match failure {
        Some(failure) if found.is_empty() => Err(failure),
        _ => Ok(found),
    }
}

/// The ServiceAccount whose pull secrets apply, if the identity names none itself.
fn service_account(identity: &PullIdentity) -> Option<String> {
    match identity.service_account.as_deref() {
        Some(name) if identity.secrets.is_empty() => {
            Some(if name.is_empty() { DEFAULT_SERVICE_ACCOUNT } else { name }.to_owned())
        }
        _ => None,
    }
}

#[derive(Debug, Default)]
struct Expanded {
    /// The secrets of each identity, each list once.
    lists: Vec<Vec<String>>,
    failure: Option<SecretError>,
}

type Results<T> = BTreeMap<String, Result<T, SecretError>>;

fn expand(identities: &[PullIdentity], accounts: &Results<ServiceAccount>) -> Expanded {
    let mut expanded = Expanded::default();
    for identity in identities {
        let mut names = identity.secrets.clone();
        if let Some(account) = service_account(identity).and_then(|name| accounts.get(&name)) {
            match account {
                Ok(account) => {
                    let secrets = account.image_pull_secrets.iter().flatten();
                    names.extend(secrets.map(|secret| secret.name.clone()));
                }
                Err(SecretError::NotFound(_)) => {}
                Err(error) => record(&mut expanded.failure, error),
            }
        }
        names.retain(|name| !name.is_empty());
        if !names.is_empty() && !expanded.lists.contains(&names) {
            expanded.lists.push(names);
        }
    }
    expanded
}

/// The credentials for the image in the secrets that were read; the failure to report is set in
/// `failure`. As in the kubelet, one keychain for each list, so that within a list the most
/// specific entry wins.
fn credentials(
    namespace: &str,
    lists: &[Vec<String>],
    secrets: &Results<Secret>,
    image: &Reference,
    failure: &mut Option<SecretError>,
) -> Vec<Credential> {
    let (mut found, mut seen) = (Vec::new(), HashSet::new());
    for names in lists {
        let mut keychain = Keychain::default();
        for (name, answer) in names.iter().filter_map(|name| secrets.get_key_value(name)) {
            let added = match answer {
                Ok(secret) => add_secret(&mut keychain, &secret_ref(namespace, name), secret),
                Err(error) => Err(error.clone()),
            };
            if let Err(error) = added {
                record(failure, &error);
            }
        }
        for credential in keychain.lookup(image) {
            if seen.insert(credential.clone()) {
                found.push(credential);
            }
        }
    }
    found
}

/// Records the failure to report: the first one, but an unreadable object, which may become
/// readable, takes precedence over a fault that requires user action.
fn record(failure: &mut Option<SecretError>, error: &SecretError) {
    match failure {
        Some(first) if first.is_unreadable() || !error.is_unreadable() => {}
        _ => *failure = Some(error.clone()),
    }
}

fn add_secret(
    keychain: &mut Keychain,
    object: &ObjectRef,
    secret: &Secret,
) -> Result<(), SecretError> {
    let object = || object.clone();
    let type_ = secret.type_.as_deref().unwrap_or("Opaque");
    let (_, key) =
        [DOCKER_CONFIG_JSON, DOCKERCFG]
            .into_iter()
            .find(|(right, _)| *right == type_)
            .ok_or_else(|| SecretError::WrongType { object: object(), type_: quoted(type_) })?;
    let content = secret
        .data
        .as_ref()
        .and_then(|data| data.get(key))
        .filter(|content| !content.0.is_empty())
        .ok_or_else(|| SecretError::MissingKey { object: object(), key })?;
    let added = if key == DOCKERCFG.1 {
        keychain.add_dockercfg(&content.0)
    } else {
        keychain.add_docker_config_json(&content.0)
    };
    added.map_err(|problem| SecretError::Malformed {
        object: object(),
        key,
        problem: Box::new(problem),
    })
}

fn distinct<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let mut seen = BTreeSet::new();
    names.iter().copied().filter(|name| seen.insert(*name)).collect()
}

fn at_most<'a, T>(all: &'a [T], most: usize, image: &Reference) -> &'a [T] {
    if all.len() > most {
        tracing::warn!(%image, named = all.len(), used = most, "too many pull secrets");
    }
    all.get(..most).unwrap_or(all)
}

/// Reads the objects of all names, a few at a time.
async fn for_each<T, F>(names: BTreeSet<String>, read: impl Fn(String) -> F) -> Results<T>
where
    F: Future<Output = (String, Result<T, SecretError>)>,
{
    futures::stream::iter(names.into_iter().map(read))
        .buffer_unordered(READS_AT_ONCE)
        .collect()
        .await
}

fn secret_ref(namespace: &str, name: &str) -> ObjectRef {
    ObjectRef { kind: "Secret", namespace: namespace.to_owned(), name: name.to_owned() }
}

async fn read_secret(client: &Client, namespace: &str, name: &str) -> Result<Secret, SecretError> {
    let api = Api::namespaced(client.clone(), namespace);
    read(&api, secret_ref(namespace, name), "secrets", READ_TIMEOUT).await
}

async fn read_service_account(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<ServiceAccount, SecretError> {
    let api = Api::namespaced(client.clone(), namespace);
    let object = ObjectRef { kind: "ServiceAccount", ..secret_ref(namespace, name) };
    read(&api, object, "serviceaccounts", READ_TIMEOUT).await
}

async fn read<K: Clone + DeserializeOwned + fmt::Debug>(
    api: &Api<K>,
    object: ObjectRef,
    resource: &'static str,
    timeout: Duration,
) -> Result<K, SecretError> {
    // The client inserts names into the URL unescaped: a name with a slash would address another
    // object.
    if !is_dns_subdomain(&object.name) {
        let name = quoted(&object.name);
        return Err(SecretError::InvalidName { kind: object.kind, name });
    }
    let error = match request(timeout, api.get(&object.name)).await {
        Ok(found) => return Ok(found),
        Err(error) => error,
    };
    let cause = match &error {
        RequestError::TimedOut(_) => error.to_string(),
        RequestError::Failed(failure) => match &**failure {
            kube::Error::Api(status) if status.code == 404 => {
                return Err(SecretError::NotFound(object));
            }
            kube::Error::Api(status) if status.code == 403 => {
                return Err(SecretError::Forbidden { object, resource });
            }
            kube::Error::Api(status) => {
                let message = printable(&status.message, MESSAGE_MAX);
                format!("the API server answered {}: {message}", status.code)
            }
            // The message of the JSON parser could quote the Secret.
            kube::Error::SerdeError(_) => "the API server's response cannot be decoded".to_owned(),
            failure => error_chain(failure),
        },
    };
    Err(SecretError::Unreachable { object, cause })
}
