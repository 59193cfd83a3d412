//! Lists for commands: of which namespaces, and page by page.

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use kube::api::{Api, ListParams};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;

use crate::kubernetes::request::{RequestError, request};
use imagewarm_core::api::names::Namespace;

/// Timeout of one page.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
const PAGE: u32 = 500;

/// The namespaces to list.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    /// `None`: all namespaces.
    pub(super) namespace: Option<String>,
}

impl Scope {
    /// All, this one, or that of the kubeconfig's context.
    pub(super) fn new(namespace: Option<&Namespace>, all: bool, client: &Client) -> Self {
        let one = || match namespace {
            Some(namespace) => namespace.to_string(),
            None => client.default_namespace().to_owned(),
        };
        Scope { namespace: (!all).then(one) }
    }

    pub(super) fn api<K>(&self, client: Client) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::all(client),
        }
    }

    pub(super) fn description(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("in namespace {namespace}"),
            None => "in any namespace".into(),
        }
    }
}

/// Why a list is not shown. `Display` states the remedy where one is known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListingError {
    /// The API server does not serve ImageWarms.
    #[error("this cluster knows no ImageWarms: install imagewarm with `kubectl apply -k deploy`")]
    NotInstalled,
    /// The user may not list these.
    #[error("you may not list {kind} {scope}: the ClusterRole {role} allows it")]
    Forbidden {
        /// What was to be listed.
        kind: &'static str,
        /// The namespace, or all.
        scope: String,
        /// The role that has the right.
        role: &'static str,
    },
    /// The request failed.
    #[error("cannot list {kind}: {error}")]
    Request {
        /// What was to be listed.
        kind: &'static str,
        /// Why not.
        error: RequestError,
    },
}

/// What is listed, and the role that allows it.
#[derive(Clone, Copy)]
pub(super) struct Listed {
    kind: &'static str,
    role: &'static str,
}

pub(super) const IMAGE_WARMS: Listed = Listed { kind: "ImageWarms", role: "imagewarm-view" };
pub(super) const REVISIONS: Listed =
    Listed { kind: "Revisions", role: "knative-serving-namespaced-view" };
pub(super) const NODES: Listed =
    Listed { kind: "Nodes", role: "view-nodes (get and list on nodes)" };
pub(super) const EVENTS: Listed = Listed { kind: "Events", role: "view" };

impl Listed {
    /// The error of a list that failed.
    pub(super) fn failed(self, error: RequestError, scope: &Scope) -> ListingError {
        let Listed { kind, role } = self;
        match error.status_code() {
            Some(404) if kind == IMAGE_WARMS.kind => ListingError::NotInstalled,
            Some(403) => ListingError::Forbidden { kind, scope: scope.description(), role },
            _ => ListingError::Request { kind, error },
        }
    }
}

/// Calls `each` with all objects of the list, page by page.
pub(super) async fn list<K: Clone + Debug + DeserializeOwned>(
    api: &Api<K>,
    params: ListParams,
    mut each: impl FnMut(K),
) -> Result<(), RequestError> {
    let mut params = params.limit(PAGE);
    loop {
        let page = request(PAGE_TIMEOUT, api.list(&params)).await?;
        page.items.into_iter().for_each(&mut each);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(()),
        }
    }
}
