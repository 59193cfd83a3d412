//! The notices of what is linked into the program: which work is under which licence, and the texts.
//!
//! A crate without a text gets that of its licence from SPDX's list; one without either is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use spdx::{Expression, ParseMode};

use crate::archive::Files;
use crate::dependencies::{Dependencies, Id, Package};
use crate::source::VERSION;
use crate::workspace;

/// How names of files with a licence or a notice begin.
const NAMES: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];

/// Texts, each with the works that it is for.
type Texts = BTreeMap<String, BTreeSet<String>>;

/// The files of the folder `licenses`.
pub(crate) fn files(dependencies: &Dependencies) -> Result<Files> {
    let mut files = Files::default();
    files.add("LICENSE", std::fs::read(workspace().join("LICENSE")).context("read LICENSE")?);
    files.add("THIRD-PARTY-NOTICES.txt", third_party(dependencies)?);
    files.add("rust-standard-library.html", standard_library()?);
    Ok(files)
}

fn third_party(dependencies: &Dependencies) -> Result<String> {
    let mut works = String::new();
    let mut texts = Texts::new();
    for (id, package) in &dependencies.packages {
        if package.folder.starts_with(workspace()) {
            continue;
        }
        let license = package.license.as_deref().unwrap_or("see its text");
        writeln!(works, "{:<40} {license}", format!("{} {}", id.0, id.1))?;
        for text in texts_of(id, package)? {
            texts.entry(text).or_default().insert(format!("{} {}", id.0, id.1));
        }
    }
    let libc = "The GNU C Library";
    writeln!(works, "{libc:<40} LGPL-2.1-or-later")?;
    for text in spdx_texts("LGPL-2.1-or-later")? {
        texts.entry(text).or_default().insert(libc.to_owned());
    }
    let mut sorted: Vec<(BTreeSet<String>, String)> =
        texts.into_iter().map(|(text, works)| (works, text)).collect();
    sorted.sort();
    let mut notices = format!(
        "imagewarm {VERSION} is under the Apache License 2.0. It is linked with these works:\n\n{works}\n\
         The Rust standard library has a file of its own. The program is linked statically with the GNU C\n\
         Library; with the sources of this version it can be linked with another one.\n"
    );
    let line = "=".repeat(78);
    for (works, text) in sorted {
        let works: Vec<String> = works.into_iter().collect();
        write!(notices, "\n{line}\nFor {}:\n\n{text}\n", works.join(", "))?;
    }
    Ok(notices)
}

/// What the standard library is made of, as its distribution has it.
fn standard_library() -> Result<Vec<u8>> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .args(["--print", "sysroot"])
        .current_dir(workspace())
        .output()
        .context("start rustc")?;
    let sysroot = PathBuf::from(String::from_utf8(output.stdout)?.trim());
    let path = sysroot.join("share/doc/rust/COPYRIGHT-library.html");
    std::fs::read(&path).with_context(|| {
        format!(
            "the notices of the Rust standard library, {}: rustup installs them",
            path.display()
        )
    })
}

fn texts_of(id: &Id, package: &Package) -> Result<Vec<String>> {
    let mut paths = found_in(&package.folder).with_context(|| {
        format!("read the licences of {} in {}", id.0, package.folder.display())
    })?;
    paths.extend(package.license_file.iter().map(|file| package.folder.join(file)));
    let mut texts = Vec::new();
    for path in paths {
        let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let text = String::from_utf8_lossy(&text).replace('\r', "").trim_end().to_owned();
        if !text.trim().is_empty() {
            texts.push(text);
        }
    }
    if !texts.is_empty() {
        return Ok(texts);
    }
    let Some(license) = &package.license else {
        bail!("{} {} has no licence text and names no licence", id.0, id.1);
    };
    spdx_texts(license).with_context(|| format!("{} {} has no licence text", id.0, id.1))
}

/// Licences in a crate's folder, and in a folder of that name.
fn found_in(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_uppercase();
        if !NAMES.iter().any(|start| name.starts_with(start)) {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => {
                for file in std::fs::read_dir(entry.path())? {
                    found.insert(file?.path());
                }
            }
            false => {
                found.insert(entry.path());
            }
        }
    }
    Ok(found)
}

/// The texts of all licences and exceptions that an expression names.
fn spdx_texts(license: &str) -> Result<Vec<String>> {
    let expression = Expression::parse_mode(license, ParseMode::LAX)
        .with_context(|| format!("the licence {license:?} is no SPDX expression"))?;
    let mut texts = Vec::new();
    for requirement in expression.requirements() {
        let id = requirement.req.license.id();
        let id =
            id.with_context(|| format!("{license:?} names a licence that SPDX does not list"))?;
        texts.push(id.text().trim_end().to_owned());
        if let Some(spdx::AdditionItem::Spdx(exception)) = &requirement.req.addition {
            texts.push(exception.text().trim_end().to_owned());
        }
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::platform::Platform;

    #[test]
    fn every_crate_has_a_text() {
        for platform in Platform::ALL {
            let dependencies = Dependencies::of(platform).unwrap();
            let notices = third_party(&dependencies).unwrap();
            for (id, package) in &dependencies.packages {
                let work = format!("{} {}", id.0, id.1);
                let has = notices.lines().any(|line| {
                    let works = line.strip_prefix("For ").and_then(|line| line.strip_suffix(':'));
                    works.is_some_and(|works| works.split(", ").any(|one| one == work))
                });
                assert_eq!(has, !package.folder.starts_with(workspace()), "{work}");
            }
            assert!(notices.contains("GNU LESSER GENERAL PUBLIC LICENSE"));
            assert!(!notices.contains(&workspace().display().to_string()));
        }
    }

    #[test]
    fn a_crate_without_a_text_gets_that_of_its_licence_or_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let id: Id = ("bare".into(), "1.0.0".into());
        let with = |license: Option<&str>| Package {
            license: license.map(str::to_owned),
            folder: folder.path().to_owned(),
            ..Package::default()
        };
        assert_eq!(texts_of(&id, &with(Some("MIT OR Apache-2.0"))).unwrap().len(), 2);
        let with_exception = with(Some("Apache-2.0 WITH LLVM-exception"));
        assert_eq!(texts_of(&id, &with_exception).unwrap().len(), 2);
        for (license, message) in [
            (None, "bare 1.0.0 has no licence text and names no licence"),
            (Some("LicenseRef-mine"), "bare 1.0.0 has no licence text"),
        ] {
            let error = texts_of(&id, &with(license)).unwrap_err().to_string();
            assert_eq!(error, message);
        }
        std::fs::write(folder.path().join("Licence.md"), "Do as you like.\r\n").unwrap();
        assert_eq!(texts_of(&id, &with(None)).unwrap(), ["Do as you like."]);
    }
}
