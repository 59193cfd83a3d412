//! The Helm chart's own files: what it shares with the kustomizations is the same text, its values are
//! described and have a schema, and `docs/helm.md` lists them. How it renders is an end-to-end test.
//! `UPDATE_DOCS=1 cargo test --test deploy` copies the shared files and writes the table anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use imagewarm::cli::Cli;
use serde_json::{Value, json};

use crate::{folder, list, read, text};

fn chart() -> PathBuf {
    folder().join("helm/imagewarm")
}

fn updating() -> bool {
    std::env::var_os("UPDATE_DOCS").is_some()
}

fn content(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn schema() -> Value {
    serde_json::from_str(&content(&chart().join("values.schema.json"))).expect("a schema is JSON")
}

fn values() -> Value {
    read(&chart().join("values.yaml")).remove(0)
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn files(folder: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("the folder can be read").path();
        match path.is_dir() {
            true => files(&path, found),
            false => _ = found.insert(path),
        }
    }
}

/// `shared/overlays/X` is a copy of `overlays/X`, `shared/X` one of `deploy/X`.
#[test]
fn what_is_shared_with_the_kustomizations_is_the_same_text() {
    let shared = chart().join("shared");
    let mut copies = BTreeSet::new();
    files(&shared, &mut copies);
    assert!(copies.len() >= 10, "{copies:?}");
    for copy in copies {
        let place = copy.strip_prefix(&shared).expect("a file below it");
        let original = match place.strip_prefix("overlays") {
            Ok(place) => crate::overlay("").join(place),
            Err(_) => folder().join(place),
        };
        let original = content(&original);
        if updating() {
            fs::write(&copy, &original).expect("the copy can be written");
        }
        let place = place.display();
        let advice = "run UPDATE_DOCS=1 cargo test --test deploy";
        assert!(content(&copy) == original, "shared/{place} is another text; {advice}");
    }
}

#[test]
fn the_chart_is_of_the_programs_version() {
    let about = read(&chart().join("Chart.yaml")).remove(0);
    assert_eq!(about["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(about["appVersion"], env!("CARGO_PKG_VERSION"));
    assert_eq!(about["description"], json!(Cli::command().get_about().map(ToString::to_string)));
    let annotations = &about["annotations"];
    assert_eq!(annotations["artifacthub.io/license"], "Apache-2.0");
    let crd = read(&folder().join("crd/imagewarms.yaml")).remove(0);
    let listed: Value = serde_saphyr::from_str(text(&annotations["artifacthub.io/crds"]))
        .expect("the annotation is YAML");
    assert_eq!(listed[0]["name"], crd["metadata"]["name"]);
    assert_eq!(listed[0]["kind"], crd["spec"]["names"]["kind"]);
    assert_eq!(listed[0]["version"], crd["spec"]["versions"][0]["name"]);
}

#[test]
fn each_overlay_has_its_values() {
    let names = |folder: PathBuf| -> BTreeSet<String> {
        let entries = fs::read_dir(folder).expect("the folder can be read");
        let paths = entries.map(|entry| entry.expect("the folder can be read").path());
        paths.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect()
    };
    let presets = names(chart().join("presets"));
    assert_eq!(presets, names(crate::overlay("")));
    let docs = content(&docs());
    for preset in presets {
        assert!(docs.contains(&format!("| `overlays/{preset}` |")), "docs/helm.md lacks {preset}");
    }
}

/// Each object of the schema, with the path of its value.
fn objects(schema: &Value) -> Vec<(String, Value)> {
    let mut found = vec![(String::new(), schema.clone())];
    let mut next = 0;
    while let Some((path, object)) = found.get(next).cloned() {
        for (name, property) in entries(&object["properties"]) {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            found.push((path, property.clone()));
        }
        next += 1;
    }
    found.remove(0);
    found
}

fn is_leaf(property: &Value) -> bool {
    property["properties"].is_null()
}

/// The objects that Kubernetes defines, and labels.
const FREE: [&str; 4] = ["resources", "affinity", "global", "commonLabels"];

#[test]
fn every_value_is_described_and_no_other_is_taken() {
    let schema = schema();
    assert_eq!(schema["additionalProperties"], false);
    for (path, property) in objects(&schema) {
        let description = text(&property["description"]);
        assert!(description.len() > 6 || path == "openshift", "{path} is not described");
        assert!(!description.ends_with('.'), "{path}: {description}");
        let name = path.rsplit('.').next().unwrap_or_default();
        if property["type"] == "object" && !FREE.contains(&name) {
            let others = &property["additionalProperties"];
            assert!(*others == false || others["type"] == "string", "{path} takes anything");
        }
    }
}

fn at<'a>(values: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(values, |value, name| &value[name])
}

#[test]
fn schema_and_values_have_the_same_keys() {
    let values = values();
    let has_no_default = |path: &str| path == "global" || path.starts_with("settings.");
    let mut known = BTreeSet::new();
    for (path, property) in objects(&schema()) {
        if is_leaf(&property)
            && !has_no_default(&path)
            && !path.starts_with("certManager.issuerRef.")
        {
            let parent = path.rsplit_once('.').map_or(&values, |(parent, _)| at(&values, parent));
            let name = path.rsplit('.').next().unwrap_or_default();
            assert!(parent.get(name).is_some(), "values.yaml lacks {path}");
        }
        known.insert(path);
    }
    // And nothing that the schema would refuse, which Helm says only when somebody installs.
    let properties: BTreeMap<String, Value> = objects(&schema()).into_iter().collect();
    let mut left: Vec<(String, &Value)> =
        entries(&values).map(|(name, value)| (name.clone(), value)).collect();
    while let Some((path, value)) = left.pop() {
        assert!(known.contains(&path), "the schema lacks {path}");
        if !is_leaf(&properties[&path]) {
            left.extend(entries(value).map(|(name, value)| (format!("{path}.{name}"), value)));
        }
    }
}

/// The program's flags by the name of their setting: collectGrace for --collect-grace.
fn flags(program: &str) -> BTreeMap<String, clap::Arg> {
    let command = Cli::command();
    let program = command.find_subcommand(program).expect("a command");
    let mut flags = BTreeMap::new();
    for flag in program.get_arguments() {
        let Some(long) = flag.get_long() else { continue };
        let mut words = long.split('-');
        let mut name = words.next().unwrap_or_default().to_owned();
        for word in words {
            let (first, rest) = word.split_at(1);
            name.push_str(&first.to_uppercase());
            name.push_str(rest);
        }
        flags.insert(name, flag.clone());
    }
    flags
}

fn program_default(flag: &clap::Arg) -> String {
    let values = flag.get_default_values().iter().filter_map(|value| value.to_str());
    values.collect::<Vec<_>>().join(",")
}

#[test]
fn settings_are_flags_of_the_programs() {
    let schema = schema();
    for program in ["controller", "warmer"] {
        let flags = flags(program);
        let settings = &schema["properties"]["settings"]["properties"][program]["properties"];
        assert!(entries(settings).count() > 10, "{program}");
        for (name, setting) in entries(settings) {
            let flag = flags.get(name);
            assert!(flag.is_some(), "{program} has no flag for {name}");
            let values = flag.map(clap::Arg::get_possible_values).unwrap_or_default();
            let values: Vec<_> =
                values.iter().map(clap::builder::PossibleValue::get_name).collect();
            let choice: Vec<_> = list(&setting["enum"]).iter().map(text).collect();
            if !choice.is_empty() && !values.is_empty() {
                assert_eq!(choice, values, "{name}");
            }
        }
    }
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/helm.md")
}

fn kind(property: &Value) -> String {
    if let [one, two] = list(&property["type"]) {
        return format!("{} or {}", text(one), text(two));
    }
    if let "array" = text(&property["type"]) {
        return format!("list of {}s", text(&property["items"]["type"]));
    }
    let choice: Vec<_> =
        list(&property["enum"]).iter().map(text).filter(|one| !one.is_empty()).collect();
    if choice.is_empty() { text(&property["type"]).to_owned() } else { choice.join(", ") }
}

/// Long ones are in values.yaml.
fn shown(value: &Value) -> String {
    let json = match value {
        Value::Null => return String::new(),
        Value::String(text) if text.is_empty() => return String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string().replace(['"'], "").replace(',', ", ").replace(':', ": "),
    };
    if json.len() > 60 { "see `values.yaml`".to_owned() } else { format!("`{json}`") }
}

fn table() -> String {
    let (schema, values) = (schema(), values());
    let flags = ["controller", "warmer"].map(flags);
    let mut table = "\n| value | type | default | what it is |\n|---|---|---|---|\n".to_owned();
    let mut properties = objects(&schema);
    properties.retain(|(path, property)| is_leaf(property) && path != "global");
    // In the order of values.yaml, whose maps are read in the order of their names.
    properties.sort_by(|(one, _), (other, _)| one.cmp(other));
    for (path, property) in properties {
        let default = match path.strip_prefix("settings.").and_then(|rest| rest.split_once('.')) {
            Some((program, name)) => {
                let flags = &flags[usize::from(program == "warmer")];
                shown(&json!(program_default(&flags[name])))
            }
            None => shown(at(&values, &path)),
        };
        let description = text(&property["description"]).replace('|', "\\|");
        let kind = kind(&property);
        let _ = writeln!(table, "| `{path}` | {kind} | {default} | {description} |");
    }
    table.push('\n');
    table
}

#[test]
fn the_documentation_lists_all_values() {
    const BEGIN: &str = "<!-- values: made from values.schema.json -->";
    const END: &str = "<!-- end of the values -->";
    let page = content(&docs());
    let (before, rest) = page.split_once(BEGIN).expect("the page has a place for the table");
    let (_, after) = rest.split_once(END).expect("the table has an end");
    let wanted = format!("{before}{BEGIN}\n{}{END}{after}", table());
    if updating() {
        fs::write(docs(), &wanted).expect("the page can be written");
    }
    let advice = "run UPDATE_DOCS=1 cargo test --test deploy";
    assert!(content(&docs()) == wanted, "docs/helm.md lists other values; {advice}");
}
