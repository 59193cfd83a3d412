//! `imagewarm report`: what warming was worth, by what kubelets have said in Events. Reads ImageWarms and
//! Events with the user's own rights; the counters of the leader are metrics.

use std::io::{self, Write};
use std::time::Duration;

use k8s_openapi::api::core::v1::Event;
use kube::Client;
use kube::api::{Api, ListParams};

use crate::clock::wall_clock;
use crate::commands::listing::{EVENTS, IMAGE_WARMS, ListingError, Scope, list};
use imagewarm_core::api::names::Namespace;
use imagewarm_core::api::{CachedImageWarm, ImageWarm};
use imagewarm_core::report::container_start::ContainerStart;
use imagewarm_core::report::pod_image::{PULLED, field_selector};
use imagewarm_core::report::worth::Worth;
use imagewarm_core::settings::at_least_a_second;
use imagewarm_core::table::worth::{render_worth, render_worth_json};

/// Show what warming was worth: which containers found their image, and how long the others waited
///
/// Of each image and node with an ImageWarm, the first container counts. What the kubelet has said of it comes
/// from Events, which the API server keeps for one hour by default; a longer --since shows no more than it has.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Example:\n  $ imagewarm report -n shop --since 30m")]
pub(crate) struct ReportArgs {
    /// Namespace to report on. By default that of the kubeconfig's context
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<Namespace>,

    /// Report on all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,

    /// How far to look back
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = at_least_a_second)]
    pub since: Duration,

    /// Output format
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: ReportOutput,
}

/// Output format.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ReportOutput {
    /// One line for each Revision and image, and what they come to.
    #[default]
    Table,
    /// One JSON object with `from`, `until`, `summary` and `items`.
    Json,
}

/// Why there is no report. `Display` states the remedy where one is known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReportError {
    /// The list failed.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// The output is closed or full.
    #[error("cannot write the report")]
    Output(#[from] io::Error),
}

/// Prints the report to `out`.
pub(crate) async fn run(
    args: &ReportArgs,
    client: Client,
    out: &mut dyn Write,
) -> Result<(), ReportError> {
    let scope = Scope::new(args.namespace.as_ref(), args.all_namespaces, &client);
    let now = wall_clock();
    let from = now.checked_sub(args.since).unwrap_or_default();
    let image_warms: Api<ImageWarm> = scope.api(client.clone());
    let mut warms: Vec<CachedImageWarm> = Vec::new();
    let listing = list(&image_warms, ListParams::default(), |warm| warms.push(warm.into())).await;
    listing.map_err(|error| IMAGE_WARMS.failed(error, &scope))?;
    let events: Api<Event> = scope.api(client);
    let mut starts = Vec::new();
    let pulled = ListParams::default().fields(&field_selector(PULLED));
    let listing = list(&events, pulled, |event| starts.extend(ContainerStart::of(&event))).await;
    listing.map_err(|error| EVENTS.failed(error, &scope))?;
    let worth = Worth::of(starts, &warms, from);
    let text = match args.output {
        ReportOutput::Table => render_worth(&worth, scope.namespace.is_none(), now),
        ReportOutput::Json => render_worth_json(&worth, now),
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

    /// An API server that answers each list with this.
    fn client(answer: fn(&str) -> (u16, Value)) -> Client {
        let service = tower::service_fn(move |request: Request<Body>| async move {
            let (code, body) = answer(&request.uri().to_string());
            let answer = Response::builder().status(StatusCode::from_u16(code).unwrap());
            Ok::<_, std::convert::Infallible>(
                answer.body(Body::from(body.to_string().into_bytes())).unwrap(),
            )
        });
        Client::new(service, "shop")
    }

    fn refused(code: u16) -> (u16, Value) {
        (
            code,
            json!({"kind": "Status", "status": "Failure", "message": "no", "reason": "No", "code": code}),
        )
    }

    async fn report(client: Client) -> Result<String, String> {
        let args = ReportArgs {
            namespace: None,
            all_namespaces: false,
            since: Duration::from_secs(3_600),
            output: ReportOutput::Json,
        };
        let mut out = Vec::new();
        let reported = run(&args, client, &mut out).await;
        reported.map(|()| String::from_utf8(out).unwrap()).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn what_the_user_may_not_list_is_named_with_its_role() {
        let none = |uri: &str| {
            assert!(uri.contains("/namespaces/shop/"), "{uri}");
            (200, json!({"metadata": {}, "items": []}))
        };
        assert!(report(client(none)).await.unwrap().contains("\"warmStarts\": 0"));
        assert_eq!(
            report(client(|_| refused(403))).await.unwrap_err(),
            "you may not list ImageWarms in namespace shop: the ClusterRole imagewarm-view allows it"
        );
        let no_events = |uri: &str| match uri.contains("/events") {
            true => refused(403),
            false => (200, json!({"metadata": {}, "items": []})),
        };
        assert_eq!(
            report(client(no_events)).await.unwrap_err(),
            "you may not list Events in namespace shop: the ClusterRole view allows it"
        );
        let error = report(client(|_| refused(404))).await.unwrap_err();
        assert!(error.contains("install imagewarm"), "{error}");
        assert_eq!(
            report(client(|_| refused(500))).await.unwrap_err(),
            "cannot list ImageWarms: no"
        );
    }

    #[tokio::test]
    async fn only_events_of_pulled_images_are_asked_for() {
        let answer = |uri: &str| {
            let of_pods = uri.contains("involvedObject.kind%3DPod%2Creason%3DPulled");
            assert!(!uri.contains("/events") || of_pods, "{uri}");
            (200, json!({"metadata": {}, "items": []}))
        };
        report(client(answer)).await.unwrap();
    }
}
