//! What is in the files: the same bytes each time, digests that agree, and one program.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use imagewarm_release::platform::Platform;
use serde_json::{Value, json};

use crate::{made, name, programs, release, run, stand_in, tree, unpacked};

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The blob that a descriptor of the layout names.
fn blob(descriptor: &Value) -> std::path::PathBuf {
    let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    made().join("image/blobs/sha256").join(digest)
}

#[test]
fn two_releases_are_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let mut again = release(programs(), Some("https://forge.test/team/imagewarm"));
    // In whatever order the programs are given.
    again.programs.reverse();
    again.assemble().unwrap().write(folder.path()).unwrap();
    let (first, second) = (tree(made()), tree(folder.path()));
    let names = |files: &std::collections::BTreeMap<String, Vec<u8>>| -> Vec<String> {
        files.keys().cloned().collect()
    };
    assert_eq!(names(&first), names(&second));
    for (name, content) in &first {
        assert!(second[name] == *content, "{name} differs");
    }
}

#[test]
fn digests_are_those_of_the_files() {
    run(Command::new("sha256sum").args(["--check", "--strict", "SHA256SUMS"]).current_dir(made()));
    let sums = std::fs::read_to_string(made().join("SHA256SUMS")).unwrap();
    let summed: BTreeSet<_> = sums.lines().map(|line| line.split_once("  ").unwrap().1).collect();
    let files = tree(made());
    let files: BTreeSet<_> = files
        .keys()
        .map(String::as_str)
        .filter(|name| *name != "SHA256SUMS" && !name.starts_with("image/"))
        .collect();
    assert_eq!(summed, files, "every file that is downloaded has a digest");
    for (path, _) in tree(&made().join("image/blobs/sha256")) {
        let file = made().join("image/blobs/sha256").join(&path);
        assert!(run(Command::new("sha256sum").arg(file)).starts_with(&path));
    }
}

#[test]
fn the_archive_has_the_program_and_what_belongs_to_it() {
    let version = run(Command::new(unpacked().join("imagewarm")).arg("--version").env_clear());
    assert_eq!(version, format!("imagewarm {VERSION}\n"));
    for file in [
        "README.md",
        "CHANGELOG.md",
        "licenses/LICENSE",
        "licenses/THIRD-PARTY-NOTICES.txt",
        "licenses/rust-standard-library.html",
        "kubectl_complete-imagewarm",
        "completions/imagewarm.bash",
        "completions/_imagewarm",
        "completions/imagewarm.fish",
        "man/man1/imagewarm.1",
        "man/man1/imagewarm-status.1",
    ] {
        assert!(unpacked().join(file).is_file(), "{file} is missing");
    }
    let list = format!("{}.tar.gz", name());
    let list =
        run(Command::new("tar").args(["-tvzf", &list, "--full-time", "--utc"]).current_dir(made()));
    for line in list.lines() {
        // Root's, of the release's time, and writable by nobody else.
        assert!(line.contains(" 0/0 ") && line.contains(" 2023-11-14 22:13:20 "), "{line}");
        let mode = &line[..10];
        assert!(["drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x"].contains(&mode), "{line}");
    }
}

#[test]
fn the_image_runs_the_program_as_the_user_of_the_deployment() {
    let index = json_of(&made().join("image/index.json"));
    let [image] = list(&index["manifests"]) else { panic!("one image") };
    assert_eq!(image["annotations"]["org.opencontainers.image.ref.name"], VERSION);
    let platforms = json_of(&blob(image));
    let seen: Vec<_> =
        list(&platforms["manifests"]).iter().map(|one| one["platform"].clone()).collect();
    let linux = |name: &str| json!({"os": "linux", "architecture": name});
    assert_eq!(seen, [linux("amd64"), linux("arm64")]);
    let deployment = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/controller/deployment.yaml");
    let deployment: Value =
        serde_saphyr::from_str(&std::fs::read_to_string(deployment).unwrap()).unwrap();
    let context = &deployment["spec"]["template"]["spec"]["securityContext"];
    let user = format!("{}:{}", context["runAsUser"], context["runAsGroup"]);
    for descriptor in list(&platforms["manifests"]) {
        let manifest = json_of(&blob(descriptor));
        let configuration = json_of(&blob(&manifest["config"]));
        assert_eq!(configuration["architecture"], descriptor["platform"]["architecture"]);
        assert_eq!(configuration["created"], "2023-11-14T22:13:20Z");
        assert_eq!(configuration["config"]["Entrypoint"], json!(["/imagewarm"]));
        assert_eq!(configuration["config"]["User"], *user);
        let labels = &configuration["config"]["Labels"];
        for (label, value) in [
            ("version", VERSION),
            ("revision", "0123456789abcdef0123456789abcdef01234567"),
            ("source", "https://forge.test/team/imagewarm"),
            ("licenses", "Apache-2.0"),
        ] {
            assert_eq!(labels[format!("org.opencontainers.image.{label}")], value);
        }
        let [layer] = list(&manifest["layers"]) else { panic!("one layer") };
        let files = run(Command::new("tar").arg("-tzf").arg(blob(layer)));
        let expected = "licenses/\nimagewarm\nlicenses/LICENSE\nlicenses/THIRD-PARTY-NOTICES.txt\n\
             licenses/rust-standard-library.html\n";
        assert_eq!(files, expected, "nothing else, and nothing of a base");
    }
}

#[test]
fn the_bill_of_materials_is_of_this_program_and_complete() {
    let bill = json_of(&made().join(format!("{}.cdx.json", name())));
    assert_eq!((&bill["bomFormat"], &bill["specVersion"]), (&json!("CycloneDX"), &json!("1.5")));
    assert_eq!(bill["metadata"]["timestamp"], "2023-11-14T22:13:20Z");
    let subject = &bill["metadata"]["component"];
    assert_eq!((&subject["name"], &subject["version"]), (&json!("imagewarm"), &json!(VERSION)));
    let sum = run(Command::new("sha256sum").arg(unpacked().join("imagewarm")));
    let hash = subject["hashes"][0]["content"].as_str().unwrap();
    assert!(sum.starts_with(hash), "{hash} is not of the program: {sum}");
    let mut known: BTreeSet<_> = list(&bill["components"])
        .iter()
        .map(|component| {
            assert!(component["licenses"][0]["expression"].is_string(), "{component}");
            component["bom-ref"].as_str().unwrap()
        })
        .collect();
    assert!(known.iter().any(|name| name.starts_with("pkg:cargo/rustls@")));
    known.insert(subject["bom-ref"].as_str().unwrap());
    // Each is needed by something, and nothing is needed that is not listed.
    let mut needed = BTreeSet::from([subject["bom-ref"].as_str().unwrap()]);
    for edges in list(&bill["dependencies"]) {
        assert!(known.contains(edges["ref"].as_str().unwrap()), "{edges}");
        needed.extend(list(&edges["dependsOn"]).iter().filter_map(Value::as_str));
    }
    assert_eq!(needed, known);
}

#[test]
fn manifests_are_those_of_the_sources_with_the_addresses_of_runbooks() {
    let folder = tempfile::tempdir().unwrap();
    let archive = made().join(format!("imagewarm-{VERSION}-manifests.tar.gz"));
    run(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(folder.path()));
    let inner = folder.path().join(format!("imagewarm-{VERSION}"));
    let files = tree(&inner);
    assert!(
        files.keys().all(|name| name.ends_with(".yaml") || name.ends_with(".json")),
        "what an installer wrote is not shipped"
    );
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
    let address = format!("https://forge.test/team/imagewarm/blob/v{VERSION}/docs/runbooks.md#");
    let mut addresses = 0;
    for (name, content) in files {
        let text = String::from_utf8(content).unwrap();
        addresses += text.matches(&address).count();
        let original = std::fs::read_to_string(sources.join(&name)).unwrap();
        assert_eq!(text.replace(&address, "docs/runbooks.md#"), original, "{name}");
    }
    assert!(addresses > 10, "{addresses} alerts have one");
}

#[test]
fn the_chart_is_that_of_the_sources_with_the_addresses_of_runbooks() {
    let folder = tempfile::tempdir().unwrap();
    let archive = made().join(format!("imagewarm-{VERSION}.tgz"));
    run(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(folder.path()));
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/helm/imagewarm");
    let (packed, mut sources) = (tree(&folder.path().join("imagewarm")), tree(&chart));
    assert_eq!(packed.keys().collect::<Vec<_>>(), sources.keys().collect::<Vec<_>>());
    let address = format!("https://forge.test/team/imagewarm/blob/v{VERSION}/docs/runbooks.md#");
    let mut addresses = 0;
    for (name, content) in packed {
        let text = String::from_utf8(content).unwrap();
        addresses += text.matches(&address).count();
        let original = String::from_utf8(sources.remove(&name).unwrap()).unwrap();
        assert_eq!(text.replace(&address, "docs/runbooks.md#"), original, "{name}");
    }
    assert!(addresses > 10, "{addresses} alerts have one");
}

#[test]
fn a_release_without_an_address_has_no_krew_manifest_and_one_program_for_a_platform() {
    let mut other = release(vec![stand_in(Platform::Arm64)], None);
    let dist = other.assemble().unwrap();
    let names: Vec<_> = dist.list().map(|(name, _)| name.to_owned()).collect();
    assert!(!names.iter().any(|name| name == "imagewarm.yaml"), "{names:?}");
    assert_eq!(names.iter().filter(|name| name.ends_with(".cdx.json")).count(), 1, "{names:?}");
    other.programs.push(other.programs[0].clone());
    let error = other.assemble().map(drop).unwrap_err().to_string();
    assert_eq!(error, "there are two programs for one platform");
}
