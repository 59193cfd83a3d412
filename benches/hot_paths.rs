//! Cost of one admission, one plan, one credential lookup and one burst of ImageWarms, without any
//! network: `cargo bench --bench hot_paths`. Allocations of the admission path are counted first.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use imagewarm::admission::review::Request;
use imagewarm_core::api::cached::Shared;
use imagewarm_core::api::{CachedImageWarm, KnativeImage, Revision};
use imagewarm_core::assignment::{Budget, Index};
use imagewarm_core::demand::Cluster;
use imagewarm_core::demand::consumers::demands;
use imagewarm_core::demand::pull_context::PullContext;
use imagewarm_core::demand::revision::demand;
use imagewarm_core::image::{Keychain, Reference};
use imagewarm_core::placement::{NodeFacts, RuntimeClasses};
use imagewarm_core::plan::diff::{GracePeriods, diff};
use imagewarm_core::plan::fan_out::fan_out;
use imagewarm_core::plan::{ImageWarmIndex, Observed, placements};
use imagewarm_core::policy::Policy;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

const REVIEW: &[u8] =
    include_bytes!("../tests/fixtures/knative/admission-review.revision-create.mutating.json");

fn references(criterion: &mut Criterion) {
    let digest = "a".repeat(64);
    let cases = [
        ("short", "nginx".to_owned()),
        ("usual", "registry.example.com:5000/team/app:v1.2.3".to_owned()),
        ("digest", format!("registry.example.com/team/app:v1@sha256:{digest}")),
    ];
    for (name, text) in cases {
        criterion.bench_function(&format!("reference/{name}"), |bencher| {
            bencher.iter(|| Reference::parse(black_box(&text)).unwrap());
        });
    }
}

fn admission(criterion: &mut Criterion) {
    let see = || {
        let request = Request::parse(Some("application/json"), black_box(REVIEW)).unwrap();
        let admitted = request.admitted_revision().unwrap();
        assert!(admitted.images().is_some());
        admitted
    };
    let read = || demand(&see().revision().unwrap(), false, &Policy::default());
    count_allocations("before the answer", see);
    count_allocations("and behind it", read);
    criterion.bench_function("admission/before the answer", |bencher| bencher.iter(see));
    criterion.bench_function("admission/review to demand", |bencher| bencher.iter(read));
}

fn count_allocations<T>(name: &str, work: impl Fn() -> T) {
    let region = Region::new(ALLOCATOR);
    black_box(work());
    let used = region.change();
    println!(
        "admission, {name}: {} allocations, {} bytes for a review of {} bytes",
        used.allocations,
        used.bytes_allocated,
        REVIEW.len()
    );
}

fn nodes(count: usize) -> Vec<Node> {
    let node = |at: usize| {
        serde_json::from_value(json!({
            "metadata": {"name": format!("node-{at:05}"), "labels": {
                "kubernetes.io/hostname": format!("node-{at:05}"), "kubernetes.io/os": "linux",
                "topology.kubernetes.io/zone": format!("zone-{}", at % 3),
            }},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        }))
        .unwrap()
    };
    (0..count).map(node).collect()
}

fn revision(name: &str, images: &[String]) -> Revision {
    let containers: Vec<_> = images
        .iter()
        .enumerate()
        .map(|(at, image)| json!({"name": format!("c{at}"), "image": image}))
        .collect();
    serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
        "metadata": {"name": name, "namespace": "team", "uid": name,
            "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"containers": containers},
    }))
    .unwrap()
}

fn plans(criterion: &mut Criterion) {
    let nodes = nodes(5_000);
    let facts: Vec<_> = nodes.iter().map(|node| NodeFacts::new(node, &BTreeSet::new())).collect();
    let policy = Policy::default();
    let images: Vec<String> =
        (0..3).map(|at| format!("registry.example.com/team/app-{at}:v1")).collect();
    let one = revision("r-00001", &images);
    let asks = demand(&one, false, &policy);
    let mut group = criterion.benchmark_group("plan");
    group.sample_size(10);
    group.bench_function("fan-out of 3 images to 5,000 nodes", |bencher| {
        bencher.iter(|| fan_out(&one, &asks, &facts, &policy));
    });
    let revisions: Vec<Arc<Revision>> = (0..20)
        .map(|at| {
            let image = format!("registry.example.com/team/service-{at}:v1");
            Arc::new(revision(&format!("service-{at}-00001"), &[image]))
        })
        .collect();
    let mut shared = Shared::default();
    let warms: Vec<Arc<CachedImageWarm>> = revisions
        .iter()
        .flat_map(|one| fan_out(one, &demand(one, false, &policy), &facts, &policy))
        .map(|warm| Arc::new(CachedImageWarm::new(warm, &mut shared)))
        .collect();
    let none: Vec<Arc<KnativeImage>> = Vec::new();
    group.bench_function("settled: 20 images on 5,000 nodes", |bencher| {
        bencher.iter(|| {
            let image_warms = ImageWarmIndex::new(&warms);
            let demanded = demands(&revisions, &none, &Cluster::default(), &policy);
            let observed = Observed {
                image_warms: &image_warms,
                elsewhere: 0,
                demands: &demanded.consumers,
                every_revision: &placements(demanded.consumers.iter()),
                nodes: &facts,
                runtime_classes: &RuntimeClasses::default(),
                terminating: &BTreeSet::new(),
                may_delete: true,
            };
            let plan = diff(&observed, &policy, GracePeriods::default(), Timestamp::MAX);
            assert!(plan.create.is_empty() && plan.delete.is_empty());
        });
    });
    group.finish();
}

fn keychains(criterion: &mut Criterion) {
    let mut keychain = Keychain::default();
    let auths: serde_json::Map<_, _> = (0..100)
        .map(|at| {
            let entry = json!({"username": "u", "password": format!("p{at}")});
            (format!("registry-{at}.example.com/team"), entry)
        })
        .collect();
    keychain.add_docker_config_json(json!({"auths": auths}).to_string().as_bytes()).unwrap();
    let image = Reference::parse("registry-77.example.com/team/app:v1").unwrap();
    criterion.bench_function("keychain/1 of 100 entries", |bencher| {
        bencher.iter(|| assert_eq!(keychain.lookup(black_box(&image)).len(), 1));
    });
}

fn index(criterion: &mut Criterion) {
    let policy = Policy::default();
    let nodes = nodes(5_000);
    let facts: Vec<_> = nodes.iter().map(|node| NodeFacts::new(node, &BTreeSet::new())).collect();
    let one = revision("r-00001", &["registry.example.com/team/app:v1".to_owned()]);
    let mut warms = fan_out(&one, &demand(&one, false, &policy), &facts, &policy);
    for (at, warm) in warms.iter_mut().enumerate() {
        warm.metadata.uid = Some(format!("uid-{at}"));
    }
    let mut shared = Shared::default();
    let kept = |warm| Arc::new(CachedImageWarm::new(warm, &mut shared));
    let warms: Vec<Arc<CachedImageWarm>> = warms.into_iter().map(kept).collect();
    let mut group = criterion.benchmark_group("dispatch");
    group.sample_size(20);
    group.bench_function("5,000 image_warms into the index", |bencher| {
        bencher.iter_batched(
            || (Index::new(Budget::of_pulls(500), 8_000, 0), warms.clone()),
            |(mut index, warms)| {
                for warm in warms {
                    index.apply(warm, PullContext::default(), 0);
                }
                index.take_effects().len()
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, references, admission, plans, keychains, index);
criterion_main!(benches);
