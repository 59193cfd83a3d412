//! `imagewarm pins`: the settings with which CRI-O and cri-dockerd pin what is wanted now. Reads ImageWarms only.
//! Nodes with containerd 2 need no settings: their warmers pin.

use std::io::{self, Write};

use kube::Client;
use kube::api::{Api, ListParams};

use crate::commands::listing::{IMAGE_WARMS, ListingError, Scope, list};
use imagewarm_core::api::names::{Namespace, NodeName};
use imagewarm_core::api::{CachedImageWarm, ImageWarm};
use imagewarm_core::table::pins::{render_cri_dockerd, render_crio, wanted_names};

/// Print the settings with which CRI-O or cri-dockerd pins the images that are wanted now, so that kubelets do not
/// remove them
///
/// These runtimes pin by name, and only what their own configuration names. The list is that of this moment: print it
/// again after deploys. With containerd 2 the warmer pins by itself, see `imagewarm warmer --pin-share`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Example:\n  $ imagewarm pins crio --all-namespaces > 99-imagewarm.conf")]
pub(crate) struct PinsArgs {
    /// Which settings to print
    #[arg(value_enum, value_name = "RUNTIME")]
    pub runtime: PinningRuntime,

    /// Namespace whose images to pin. By default that of the kubeconfig's context
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<Namespace>,

    /// Pin the images of all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,

    /// Only images that are wanted on this node
    #[arg(long, value_name = "NODE")]
    pub node: Option<NodeName>,
}

/// A runtime whose settings name the images to pin.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PinningRuntime {
    /// A file for /etc/crio/crio.conf.d.
    Crio,
    /// Flags of cri-dockerd, for Docker. Versions before September 2026 do not know them.
    CriDockerd,
}

/// Why nothing is printed. `Display` states the remedy where one is known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PinsError {
    /// The list failed.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// The output is closed or full.
    #[error("cannot write the settings")]
    Output(#[from] io::Error),
}

/// Prints the settings to `out`.
pub(crate) async fn run(
    args: &PinsArgs,
    client: Client,
    out: &mut dyn Write,
) -> Result<(), PinsError> {
    let scope = Scope::new(args.namespace.as_ref(), args.all_namespaces, &client);
    let api: Api<ImageWarm> = scope.api(client);
    let params = match &args.node {
        Some(node) => ListParams::default().fields(&format!("spec.nodeName={node}")),
        None => ListParams::default(),
    };
    let mut warms: Vec<CachedImageWarm> = Vec::new();
    let listing = list(&api, params, |warm| warms.push(warm.into())).await;
    listing.map_err(|error| IMAGE_WARMS.failed(error, &scope))?;
    let names = wanted_names(&warms);
    let text = match args.runtime {
        PinningRuntime::Crio => render_crio(&names, &scope.description()),
        PinningRuntime::CriDockerd => render_cri_dockerd(&names),
    };
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use http::{Request, Response, StatusCode};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    /// What is printed when an API server answers each list with this.
    async fn pins(answer: fn(&str) -> (u16, Value)) -> Result<String, String> {
        let service = tower::service_fn(move |request: Request<Body>| async move {
            let (code, body) = answer(&request.uri().to_string());
            let answer = Response::builder().status(StatusCode::from_u16(code).unwrap());
            Ok::<_, std::convert::Infallible>(
                answer.body(Body::from(body.to_string().into_bytes())).unwrap(),
            )
        });
        let args = PinsArgs {
            runtime: PinningRuntime::Crio,
            namespace: None,
            all_namespaces: false,
            node: Some("node-1".into()),
        };
        let mut out = Vec::new();
        let printed = run(&args, Client::new(service, "shop"), &mut out).await;
        printed.map(|()| String::from_utf8(out).unwrap()).map_err(|error| error.to_string())
    }

    fn refused(code: u16) -> (u16, Value) {
        (code, json!({"kind": "Status", "status": "Failure", "message": "no", "code": code}))
    }

    #[tokio::test]
    async fn only_the_images_of_the_node_are_listed() {
        let printed = pins(|uri| {
            assert!(uri.contains("/namespaces/shop/"), "{uri}");
            assert!(uri.contains("fieldSelector=spec.nodeName%3Dnode-1"), "{uri}");
            (200, json!({"metadata": {}, "items": []}))
        });
        assert!(printed.await.unwrap().starts_with("# Images that are wanted in namespace shop"));
    }

    #[tokio::test]
    async fn the_remedy_of_a_refusal_is_named() {
        let error = pins(|_| refused(403)).await.unwrap_err();
        assert!(error.ends_with("the ClusterRole imagewarm-view allows it"), "{error}");
        let error = pins(|_| refused(404)).await.unwrap_err();
        assert!(error.contains("install imagewarm"), "{error}");
    }
}
