//! The folder tree is the design. What `imagewarm-core` may not do, its `Cargo.toml` says, and the
//! compiler checks. This checks what Cargo cannot say: that rooms of the program use only those
//! below them, and that no two files import each other, directly or in a circle.
#![allow(clippy::panic, clippy::unwrap_used)] // a source that cannot be read fails the test

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Item, UseTree};

/// The rooms of `src/` from top to bottom. A room may use those of the rows below its own.
const LAYERS: &[&[&str]] = &[
    &["main"],
    &["lib", "cli"],
    &["programs"],
    &["admission", "commands", "fan_out", "leader", "sessions", "warmer"],
    &["kubernetes", "runtime"],
    &["telemetry"],
    &["listener"],
    &["backoff", "clock", "exit", "protocol"],
];

/// A tree of modules, each the sources of one crate.
struct Tree {
    /// The crate's name in paths, such as `imagewarm_core`.
    name: &'static str,
    /// Its folder, from the workspace's root.
    folder: &'static str,
}

const TREES: &[Tree] = &[
    Tree { name: "imagewarm", folder: "src" },
    Tree { name: "imagewarm_core", folder: "core/src" },
    Tree { name: "imagewarm_webhook_certs", folder: "webhook-certs/src" },
    Tree { name: "xtask", folder: "xtask/src" },
    Tree { name: "imagewarm_release", folder: "release/src" },
    Tree { name: "cluster", folder: "benches/cluster" },
    Tree { name: "monkey", folder: "tests/monkey" },
    Tree { name: "e2e", folder: "tests/e2e" },
    Tree { name: "knative", folder: "tests/knative" },
];

/// The path of a module within its crate: `["plan", "diff"]`.
type Module = Vec<String>;

/// One source file: what it names, and what its names stand for.
struct Source {
    file: PathBuf,
    /// Absolute paths within the crate that it names anywhere.
    paths: BTreeSet<Vec<String>>,
    /// Names that its `use` items bring in, and the absolute path of each: what other modules find
    /// when they name something through this one.
    names: BTreeMap<String, Vec<String>>,
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn module_of(file: &Path, folder: &Path) -> Module {
    let relative = file.strip_prefix(folder).unwrap().with_extension("");
    let mut module: Module =
        relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    if module.len() == 1 && ["lib", "main"].contains(&module[0].as_str()) {
        module.pop();
    }
    module
}

/// Collects the paths of one file. Inline modules are taken as part of it.
struct Collector {
    module: Module,
    crate_name: &'static str,
    depth: usize,
    source: Source,
}

impl Collector {
    /// The absolute path, or `None` where it begins outside the crate.
    fn absolute(&self, path: &[String]) -> Option<Vec<String>> {
        let mut base: Vec<String> = match path.first()?.as_str() {
            "crate" => Vec::new(),
            "self" | "super" => {
                let inline = (0..self.depth).map(|_| "<inline>".to_owned());
                self.module.iter().cloned().chain(inline).collect()
            }
            first if first == self.crate_name => Vec::new(),
            _ => return None,
        };
        let mut rest = path;
        while let Some((first, tail)) = rest.split_first() {
            match first.as_str() {
                "super" => {
                    base.pop()?;
                }
                "crate" | "self" => {}
                first if first == self.crate_name && rest.len() == path.len() => {}
                _ => break,
            }
            rest = tail;
        }
        base.retain(|part| part != "<inline>");
        Some(base.into_iter().chain(rest.iter().cloned()).collect())
    }

    fn take(&mut self, path: &[String], name: Option<&str>) {
        let absolute = self.absolute(path).or_else(|| {
            // Within a module its own submodules need no prefix.
            let own = self.module.iter().chain(path).cloned().collect();
            (path.len() > 1).then_some(own)
        });
        let Some(absolute) = absolute else { return };
        if let Some(name) = name {
            self.source.names.insert(name.to_owned(), absolute.clone());
        }
        self.source.paths.insert(absolute);
    }

    fn tree(&mut self, prefix: &mut Vec<String>, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.tree(prefix, &path.tree);
                prefix.pop();
            }
            UseTree::Group(group) => group.items.iter().for_each(|item| self.tree(prefix, item)),
            UseTree::Glob(_) => self.take(prefix, None),
            UseTree::Name(name) if name.ident == "self" => {
                let last = prefix.last().cloned();
                self.take(prefix, last.as_deref());
            }
            UseTree::Name(name) => {
                prefix.push(name.ident.to_string());
                self.take(prefix, Some(&name.ident.to_string()));
                prefix.pop();
            }
            UseTree::Rename(rename) => {
                prefix.push(rename.ident.to_string());
                self.take(prefix, Some(&rename.rename.to_string()));
                prefix.pop();
            }
        }
    }
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_item(&mut self, item: &'ast Item) {
        match item {
            Item::Use(used) => self.tree(&mut Vec::new(), &used.tree),
            Item::Mod(module) if module.content.is_some() => {
                self.depth += 1;
                visit::visit_item(self, item);
                self.depth -= 1;
            }
            _ => visit::visit_item(self, item),
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> =
            path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.take(&segments, None);
        visit::visit_path(self, path);
    }
}

fn read(tree: &Tree) -> BTreeMap<Module, Source> {
    let folder = workspace().join(tree.folder);
    let mut found = Vec::new();
    files(&folder, &mut found);
    let mut sources = BTreeMap::new();
    for file in found {
        let text = fs::read_to_string(&file).unwrap();
        let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        let module = module_of(&file, &folder);
        let mut collector = Collector {
            module: module.clone(),
            crate_name: tree.name,
            depth: 0,
            source: Source { file, paths: BTreeSet::new(), names: BTreeMap::new() },
        };
        collector.visit_file(&parsed);
        let known: &mut Source = sources.entry(module).or_insert(Source {
            file: collector.source.file.clone(),
            paths: BTreeSet::new(),
            names: BTreeMap::new(),
        });
        known.paths.extend(collector.source.paths);
        known.names.extend(collector.source.names);
    }
    sources
}

/// The module in which what `path` names is defined: re-exports are followed.
fn defined_in(sources: &BTreeMap<Module, Source>, path: &[String]) -> Option<Module> {
    let mut path = path.to_vec();
    for _ in 0..8 {
        let module = (0..=path.len()).rev().map(|end| path[..end].to_vec());
        let module = module.into_iter().find(|module| sources.contains_key(module))?;
        let named = path.get(module.len());
        match named.and_then(|name| sources[&module].names.get(name)) {
            Some(target) if *target != path => path.clone_from(target),
            _ => return Some(module),
        }
    }
    None
}

/// Who imports whom. A module and those inside it are one subject: they may use each other.
fn imports(sources: &BTreeMap<Module, Source>) -> BTreeMap<Module, BTreeSet<Module>> {
    let mut all = BTreeMap::new();
    for (module, source) in sources {
        let targets = source.paths.iter().filter_map(|path| defined_in(sources, path));
        let others = targets.filter(|target| {
            !target.is_empty() && !target.starts_with(module) && !module.starts_with(target)
        });
        all.insert(module.clone(), others.collect::<BTreeSet<Module>>());
    }
    all
}

/// A circle of imports, if there is one.
fn circle(imports: &BTreeMap<Module, BTreeSet<Module>>) -> Option<Vec<Module>> {
    fn visit(
        at: &Module,
        imports: &BTreeMap<Module, BTreeSet<Module>>,
        done: &mut BTreeSet<Module>,
        path: &mut Vec<Module>,
    ) -> Option<Vec<Module>> {
        if let Some(start) = path.iter().position(|seen| seen == at) {
            return Some(path[start..].to_vec());
        }
        if !done.insert(at.clone()) {
            return None;
        }
        path.push(at.clone());
        let found = imports[at].iter().find_map(|next| visit(next, imports, done, path));
        path.pop();
        found
    }
    let mut done = BTreeSet::new();
    imports.keys().find_map(|module| visit(module, imports, &mut done, &mut Vec::new()))
}

#[test]
fn no_two_files_import_each_other() {
    let mut circles = Vec::new();
    for tree in TREES {
        let sources = read(tree);
        assert!(sources.len() > 1, "{} has no sources", tree.folder);
        let mut imports = imports(&sources);
        // Each circle once: what closes it is cut, and the rest looked through again.
        while let Some(circle) = circle(&imports) {
            let names: Vec<String> = circle.iter().map(|module| module.join("::")).collect();
            circles.push(format!("{}: {}", tree.folder, names.join(" -> ")));
            let (last, first) = (&circle[circle.len() - 1], &circle[0]);
            imports.get_mut(last).unwrap().remove(first);
        }
    }
    assert!(circles.is_empty(), "move what two share down:\n{}", circles.join("\n"));
}

#[test]
fn rooms_use_only_those_below_them() {
    let layer = |room: &str| {
        LAYERS.iter().position(|layer| layer.contains(&room)).unwrap_or_else(|| {
            panic!("src/{room} has no layer: give it one in tests/architecture.rs")
        })
    };
    let sources = read(&TREES[0]);
    let mut wrong = Vec::new();
    for (module, targets) in imports(&sources) {
        let Some(room) = module.first() else { continue };
        // A test of one room may use another to drive it.
        if module.iter().any(|part| part == "tests") {
            continue;
        }
        for target in targets.iter().filter_map(|target| target.first()) {
            if room != target && layer(target) <= layer(room) {
                wrong.push(format!("{} uses {target}", sources[&module].file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn circles_are_found() {
    let module = |name: &str| vec![name.to_owned()];
    let graph = |arrows: &[(&str, &str)]| {
        let mut imports: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
        for (from, to) in arrows {
            imports.entry(module(from)).or_default().insert(module(to));
            imports.entry(module(to)).or_default();
        }
        imports
    };
    assert_eq!(circle(&graph(&[("a", "b"), ("b", "c"), ("a", "c")])), None);
    let found = circle(&graph(&[("a", "b"), ("b", "c"), ("c", "b")]));
    assert_eq!(found, Some(vec![module("b"), module("c")]));
}

/// Every file says at its head what it holds.
#[test]
fn every_file_opens_with_what_it_holds() {
    let mut silent = Vec::new();
    for tree in TREES {
        for source in read(tree).values() {
            let text = fs::read_to_string(&source.file).unwrap();
            let is_tests = source.file.components().any(|part| {
                part.as_os_str().to_string_lossy().trim_end_matches(".rs").ends_with("tests")
            });
            if !text.starts_with("//!") && !is_tests {
                silent.push(source.file.display().to_string());
            }
        }
    }
    assert!(silent.is_empty(), "no //! at the head of:\n{}", silent.join("\n"));
}
