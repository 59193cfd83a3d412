//! The development cluster itself, on real parts. One test function: bringing it up is what costs.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use bollard::query_parameters::CreateImageOptionsBuilder;
use futures::TryStreamExt as _;
use k8s_openapi::api::authentication::v1::TokenReview;
use k8s_openapi::api::core::v1::{Node as NodeObject, Secret};
use kube::api::{Api, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::json;
use xtask::cluster::{Cluster, Node, Options, Registry, TokenFor, USER, manifests};
use xtask::images::TestImage;
use xtask::wait::wait_for;

async fn pull(node: &Node, image: &str, registry: &Registry) -> Result<(), String> {
    let credentials = registry.password.clone().map(|password| bollard::auth::DockerCredentials {
        username: Some(USER.to_owned()),
        password: Some(password),
        ..Default::default()
    });
    let options = CreateImageOptionsBuilder::default().from_image(image).build();
    let docker = node.docker().unwrap();
    let pull = docker.create_image(Some(options), None, credentials);
    let steps: Vec<_> = pull.try_collect().await.map_err(|error| error.to_string())?;
    match steps.into_iter().find_map(|step| step.error_detail) {
        Some(error) => Err(error.message.unwrap_or_default()),
        None => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_does_what_tests_rely_on() {
    let options = Options { nodes: 2, tls_registry: true, deploy: false, ..Options::default() };
    let cluster = Cluster::start(options).await.unwrap();
    let folder = cluster.folder().to_owned();
    let client = cluster.client();

    nodes_are_ready(&cluster).await;
    images_reach_dockerd(&cluster).await;
    a_killed_dockerd_comes_back(&cluster).await;
    pod_tokens_name_their_node(&cluster).await;
    fixtures_are_accepted_and_owners_cascade(&cluster).await;
    kubectl_works_and_requests_are_counted(&cluster);

    let second = Cluster::start(Options { nodes: 1, deploy: false, ..Options::default() });
    let second = second.await.unwrap();
    assert_ne!(second.server_url(), cluster.server_url());
    let other = second.folder().to_owned();
    drop(second);
    assert!(!other.exists(), "the second cluster leaves nothing");

    drop((client, cluster));
    assert!(!folder.exists(), "the cluster leaves nothing");
    let environments = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|process| std::fs::read(process.path().join("environ")).ok());
    let marker = format!("IMAGEWARM_CLUSTER={}", folder.display());
    for environment in environments {
        let mut variables = environment.split(|byte| *byte == 0);
        assert!(!variables.any(|variable| variable == marker.as_bytes()), "a process is left");
    }
}

async fn nodes_are_ready(cluster: &Cluster) {
    let api: Api<NodeObject> = Api::all(cluster.client());
    for node in cluster.nodes() {
        let object = api.get(&node.name).await.unwrap();
        let conditions = object.status.unwrap().conditions.unwrap();
        assert!(conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
        assert_eq!(object.spec.unwrap().taints, None);
        assert_eq!(object.metadata.labels.unwrap()["kubernetes.io/hostname"], node.name);
    }
}

async fn images_reach_dockerd(cluster: &Cluster) {
    let (plain, tls) = (&cluster.registry_plain, cluster.registry_tls.as_ref().unwrap());
    let node = cluster.node(1).unwrap();
    let app = TestImage::new(&[3 << 20, 1000]).seed(1);
    let digest = plain.push(&app, "team/app", "v1").await.unwrap();
    assert_eq!(plain.push(&app, "team/app", "again").await.unwrap(), digest);
    let image = plain.image("team/app", "v1");
    assert_eq!(node.image_id(&image).await, None);
    pull(&node, &image, plain).await.unwrap();
    let held = node.inspect(&image).await.unwrap();
    let by_digest = format!("{}/team/app@{digest}", plain.address);
    assert_eq!(held.repo_digests.unwrap(), [by_digest]);
    node.remove_image(&image).await.unwrap();
    assert_eq!(node.image_id(&image).await, None);

    let index = TestImage::new(&[1000]).platforms(&[("linux", "amd64"), ("linux", "arm64")]);
    plain.push(&index, "team/multi", "v1").await.unwrap();
    pull(&node, &plain.image("team/multi", "v1"), plain).await.unwrap();
    let foreign = TestImage::new(&[1000]).platforms(&[("linux", "s390x")]);
    plain.push(&foreign, "team/foreign", "v1").await.unwrap();
    let refused = pull(&node, &plain.image("team/foreign", "v1"), plain).await.unwrap_err();
    assert!(refused.contains("no matching manifest"), "{refused}");

    let private = tls.image("private/app", "v1");
    tls.push(&TestImage::new(&[1 << 20]), "private/app", "v1").await.unwrap();
    let refused = pull(&node, &private, plain).await.unwrap_err();
    assert!(refused.contains("no basic auth credentials"), "{refused}");
    pull(&node, &private, tls).await.unwrap();
    assert!(node.image_id(&private).await.is_some());
    tls.stop();
    let refused = pull(&node, &private, tls).await.unwrap_err();
    assert!(refused.contains("connection refused"), "{refused}");
    tls.start().await.unwrap();
    pull(&node, &private, tls).await.unwrap();
}

async fn a_killed_dockerd_comes_back(cluster: &Cluster) {
    let image = cluster.registry_plain.image("team/multi", "v1");
    let node = cluster.node(1).unwrap();
    node.kill();
    assert!(node.docker().is_err() || node.docker().unwrap().ping().await.is_err());
    node.start_runtime().await.unwrap();
    assert!(node.image_id(&image).await.is_some());
    node.stop_runtime().await.unwrap();
    node.start_runtime().await.unwrap();
    assert!(node.image_id(&image).await.is_some());
}

async fn pod_tokens_name_their_node(cluster: &Cluster) {
    let account = ("default", "default");
    let pod = ("warmer-1", "node-1");
    let token = cluster.token_for_pod(account, pod, "imagewarm", 600).await.unwrap();
    let reviews: Api<TokenReview> = Api::all(cluster.client());
    let review = async |audience: &str| {
        let review = json!({"metadata": {}, "spec": {"token": token, "audiences": [audience]}});
        let review = serde_json::from_value(review).unwrap();
        reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap()
    };
    let status = review("imagewarm").await;
    assert_eq!(status.authenticated, Some(true));
    let extra = status.user.unwrap().extra.unwrap();
    assert_eq!(extra["authentication.kubernetes.io/node-name"], ["node-1"]);
    assert_ne!(review("other").await.authenticated, Some(true));

    let token = TokenFor {
        namespace: "default",
        service_account: "default",
        pod: None,
        audience: None,
        seconds: 600,
    };
    assert!(!cluster.token(&token).await.unwrap().is_empty());
}

async fn fixtures_are_accepted_and_owners_cascade(cluster: &Cluster) {
    let gvk = GroupVersionKind::gvk("serving.knative.dev", "v1", "Configuration");
    let resource = ApiResource::from_gvk(&gvk);
    let configurations: Api<DynamicObject> =
        Api::namespaced_with(cluster.client(), "default", &resource);
    let configuration = DynamicObject::new("hello", &resource).data(json!({"spec": {}}));
    let owner = configurations.create(&PostParams::default(), &configuration).await.unwrap();
    let fixtures = xtask::workspace().join("tests/fixtures/knative");
    for file in ["revision.yaml", "revision.multi-container.yaml", "image.yaml"] {
        cluster
            .apply_manifests(&fixtures.join(file), |mut object| {
                let metadata = object["metadata"].as_object_mut().unwrap();
                for server_side in ["uid", "resourceVersion", "creationTimestamp", "generation"] {
                    metadata.remove(server_side);
                }
                metadata["ownerReferences"][0]["uid"] = json!(owner.metadata.uid);
                metadata["ownerReferences"][0]["kind"] = json!("Configuration");
                metadata["ownerReferences"][0]["apiVersion"] = json!("serving.knative.dev/v1");
                metadata["ownerReferences"][0]["name"] = json!("hello");
                Some(object)
            })
            .await
            .unwrap();
    }
    let gvk = GroupVersionKind::gvk("serving.knative.dev", "v1", "Revision");
    let revisions: Api<DynamicObject> =
        Api::namespaced_with(cluster.client(), "default", &ApiResource::from_gvk(&gvk));
    let revision = revisions.get("hello-00001").await.unwrap();
    assert_eq!(revision.data["spec"]["timeoutSeconds"], 300);
    configurations.delete("hello", &Default::default()).await.unwrap();
    wait_for(Duration::from_secs(30), "the Revisions to go with their owner", async || {
        revisions.list(&Default::default()).await.ok()?.items.is_empty().then_some(())
    })
    .await
    .unwrap();
    cluster.remove_knative().await.unwrap();
    cluster.install_knative().await.unwrap();
    let secrets: Api<Secret> = Api::namespaced(cluster.client(), "default");
    assert!(secrets.list(&Default::default()).await.unwrap().items.is_empty());
    assert!(manifests::read(&fixtures.join("revision.yaml")).unwrap().len() == 1);
}

fn kubectl_works_and_requests_are_counted(cluster: &Cluster) {
    let nodes = std::process::Command::new(cluster.kubectl().unwrap())
        .args(["get", "nodes", "-o", "name", "--kubeconfig"])
        .arg(cluster.kubeconfig_path())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&nodes.stdout), "node/node-1\nnode/node-2\n");
    let events = cluster.audit_events().unwrap();
    let reviews = events.iter().filter(|event| {
        event["objectRef"]["resource"] == "tokenreviews" && event["verb"] == "create"
    });
    assert_eq!(reviews.count(), 2);
}
