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
