//! All that the system has left so far, and whether a word stands in it: plain, in base64 wherever
//! in the encoded text it lies, or percent-encoded.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use kube::api::DynamicObject;
use kube::discovery::{Discovery, verbs};

use anyhow::{Context, Result, ensure};
use kube::Api;
use xtask::cluster::NAMESPACE;
use xtask::http_get::http_get;

use super::system::System;

/// Files of other people, below the cluster's folder.
const OTHERS: [&str; 5] = [
    "control-plane/etcd",
    "control-plane/audit.log",
    "registry-plain",
    "registry-tls",
    "registry-untrusted",
];
/// Files for one call of grep.
const AT_ONCE: usize = 200;

/// What was gathered, in numbers.
#[derive(Debug, Default)]
pub struct Seen {
    /// Kinds and versions of objects.
    pub kinds: usize,
    pub objects: usize,
    /// Files below the cluster's folder, and those that our processes hold open.
    pub files: usize,
    /// Metrics and readiness of the processes that run.
    pub pages: usize,
    /// What commands and denials have printed.
    pub outputs: usize,
}

/// Files to search: those that are there, and copies of all else.
pub struct Findings {
    pub seen: Seen,
    folder: tempfile::TempDir,
    files: BTreeSet<PathBuf>,
}

impl System {
    /// Whether no credential that any test has put into a Secret stands in what the whole run has
    /// left. Prints where one does.
    pub async fn keeps_credentials_to_itself(&self) -> bool {
        let words = self.credentials();
        let searched = async {
            let findings = Findings::collect(self, &[]).await?;
            Ok::<_, anyhow::Error>((findings.of(&words)?, findings.seen))
        };
        match searched.await {
            Ok((found, seen)) if found.is_empty() => {
                eprintln!("credentials: none of {} stands in {seen:?}", words.len());
                true
            }
            Ok((found, _)) => {
                eprintln!("credentials: they stand in what the run has left");
                found.iter().for_each(|one| eprintln!("    {one}"));
                false
            }
            Err(error) => {
                eprintln!("credentials: they cannot be searched for: {error:#}");
                false
            }
        }
    }
}

impl Findings {
    /// Gathers all that there is now, and these outputs.
    pub async fn collect(system: &System, outputs: &[String]) -> Result<Findings> {
        let folder = tempfile::tempdir()?;
        let mut all = Findings { seen: Seen::default(), folder, files: BTreeSet::new() };
        for output in outputs {
            all.seen.outputs += 1;
            all.keep("output", output)?;
        }
        all.objects(system).await?;
        all.processes(system).await?;
        let root = system.cluster.folder().to_owned();
        let others: Vec<_> = OTHERS.iter().map(|path| root.join(path)).collect();
        all.walk(&root, &others);
        all.seen.files = all.files.iter().filter(|it| !it.starts_with(all.folder.path())).count();
        Ok(all)
    }

    fn keep(&mut self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.path().join(format!("{}-{name}", self.files.len()));
        std::fs::write(&path, text)?;
        self.files.insert(path);
        Ok(())
    }

    /// Every object of every kind in every version. Of Secrets, only our own.
    async fn objects(&mut self, system: &System) -> Result<()> {
        let discovery = Discovery::new(system.client()).run().await?;
        for group in discovery.groups() {
            for version in group.versions() {
                for (kind, can) in group.versioned_resources(version) {
                    if !can.supports_operation(verbs::LIST) {
                        continue;
                    }
                    let api: Api<DynamicObject> = match kind.kind.as_str() {
                        "Secret" => Api::namespaced_with(system.client(), NAMESPACE, &kind),
                        _ => Api::all_with(system.client(), &kind),
                    };
                    let objects = api.list(&Default::default()).await;
                    let objects = objects.with_context(|| format!("list {}", kind.plural))?.items;
                    self.seen.kinds += 1;
                    self.seen.objects += objects.len();
                    self.keep(&kind.plural, &serde_json::to_string(&objects)?)?;
                }
            }
        }
        Ok(())
    }

    /// What our processes that run show of themselves.
    async fn processes(&mut self, system: &System) -> Result<()> {
        for process in system.cluster.imagewarm_processes() {
            if !process.is_running() {
                continue;
            }
            let address = process.health().context("no health port")?;
            for page in ["/metrics", "/readyz", "/livez"] {
                let (_, text) = http_get(address, page).await?;
                ensure!(!text.is_empty(), "{} shows no {page}", process.name());
                self.seen.pages += 1;
                self.keep(process.name(), &text)?;
            }
            let proc = PathBuf::from(format!("/proc/{}", process.pid()));
            for about in ["cmdline", "environ"] {
                let text = std::fs::read(proc.join(about))?;
                self.keep(about, &String::from_utf8_lossy(&text))?;
            }
            for open in std::fs::read_dir(proc.join("fd"))? {
                let target = std::fs::read_link(open?.path());
                let file = target.ok().filter(|it| it.is_file() && !it.starts_with("/proc"));
                self.files.extend(file);
            }
        }
        Ok(())
    }

    /// Files may go while one looks.
    fn walk(&mut self, folder: &Path, without: &[PathBuf]) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                _ if without.contains(&path) => {}
                Ok(kind) if kind.is_dir() => self.walk(&path, without),
                Ok(kind) if kind.is_file() => drop(self.files.insert(path)),
                _ => {}
            }
        }
    }

    /// Where which of the words stand.
    pub fn of(&self, words: &[String]) -> Result<Vec<String>> {
        let forms: Vec<_> = words.iter().map(|word| forms(word)).collect();
        let mut patterns = tempfile::NamedTempFile::new()?;
        for form in forms.iter().flatten() {
            writeln!(patterns, "{form}")?;
        }
        // Each search must find these, or it finds nothing at all.
        let known = tempfile::tempdir()?;
        let mut hidden = BTreeSet::new();
        for (number, text) in words.iter().flat_map(|word| examples(word)).enumerate() {
            let path = known.path().join(number.to_string());
            std::fs::write(&path, text)?;
            hidden.insert(path);
        }
        let files: Vec<_> = self.files.iter().collect();
        let mut found = vec![];
        for some in files.chunks(AT_ONCE) {
            let hits = grep(patterns.path(), some.iter().copied().chain(&hidden))?;
            ensure!(hidden.is_subset(&hits), "a word that is known to be there was not found");
            for path in hits.difference(&hidden) {
                let text = std::fs::read(path).unwrap_or_default();
                let text = String::from_utf8_lossy(&text);
                for (word, forms) in words.iter().zip(&forms) {
                    if let Some(form) = forms.iter().find(|form| text.contains(form.as_str())) {
                        found.push(format!("{}: {word} as {form}", path.display()));
                    }
                }
            }
        }
        Ok(found)
    }
}

/// The files that hold a line of `patterns`.
fn grep<'a>(
    patterns: &Path,
    files: impl Iterator<Item = &'a PathBuf>,
) -> Result<BTreeSet<PathBuf>> {
    let output = Command::new("grep")
        .args(["--text", "--fixed-strings", "--files-with-matches", "--no-messages", "--null"])
        .arg("--file")
        .arg(patterns)
        .arg("--")
        .args(files)
        .env("LC_ALL", "C")
        .output()
        .context("grep")?;
    let names = output.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| PathBuf::from(String::from_utf8_lossy(name).into_owned())).collect())
}

/// How a word may be written.
fn forms(word: &str) -> BTreeSet<String> {
    let mut forms = BTreeSet::from([word.to_owned()]);
    let percent = |keep: &[u8], upper: bool| -> String {
        let encode = |byte: u8| match (byte.is_ascii_alphanumeric() || keep.contains(&byte), upper)
        {
            (true, _) => char::from(byte).to_string(),
            (false, true) => format!("%{byte:02X}"),
            (false, false) => format!("%{byte:02x}"),
        };
        word.bytes().map(encode).collect()
    };
    for keep in [&b"-._~"[..], b"-._~/", b"-._*"] {
        for encoded in [percent(keep, true), percent(keep, false)] {
            forms.insert(encoded.replace("%20", "+"));
            forms.insert(encoded);
        }
    }
    // As JSON is written where it may stand in HTML.
    let html = [('<', "\\u003c"), ('>', "\\u003e"), ('&', "\\u0026")];
    forms.insert(html.iter().fold(word.to_owned(), |text, (from, to)| text.replace(*from, to)));
    // Three bytes are four letters: what lies before and after the word shifts and joins the ends.
    for before in 0..3 {
        let text = [&b"xx"[..before], word.as_bytes()].concat();
        let (first, last) = ((before * 4).div_ceil(3), text.len() / 3 * 4);
        for engine in [&BASE64_STANDARD, &BASE64_URL_SAFE] {
            forms.insert(engine.encode(&text)[first..last].to_owned());
        }
    }
    forms
}

/// Texts in which a word stands.
fn examples(word: &str) -> Vec<String> {
    let mut texts = vec![format!("a {word} b"), format!("?a={}&b", percent_encoded(word))];
    for before in ["", "u:", "user:", "{\"a\":\""] {
        for after in ["", "\"", "\"}"] {
            let text = format!("{before}{word}{after}");
            texts.push(BASE64_STANDARD.encode(&text));
            texts.push(BASE64_URL_SAFE.encode(&text));
        }
    }
    texts
}

fn percent_encoded(word: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    word.bytes().map(byte).collect()
}
