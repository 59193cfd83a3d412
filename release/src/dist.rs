//! All files of a release, and the folder that they are written to.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::archive::{Files, gzip};
use crate::checksums::{sha256, sums};
use crate::dependencies::Dependencies;
use crate::krew::{self, Download};
use crate::platform::Platform;
use crate::program::Program;
use crate::source::{Source, VERSION};
use crate::{changelog, image, manual, notices, sbom, workspace};

/// What is released.
pub struct Release {
    /// The program for each platform.
    pub programs: Vec<Program>,
    /// The sources that they were built from.
    pub source: Source,
    /// The version of the compiler.
    pub compiler: String,
}

/// The files of a release by their name.
pub struct Dist {
    /// What is downloaded.
    files: BTreeMap<String, Vec<u8>>,
    /// The OCI layout, a folder of its own.
    layout: Files,
}

/// What differs between platforms.
struct Packed<'a> {
    program: &'a Program,
    licenses: Files,
    sbom: Vec<u8>,
}

impl Release {
    /// Makes all files.
    pub fn assemble(&self) -> Result<Dist> {
        let mut seen: Vec<Platform> = self.programs.iter().map(|one| one.platform).collect();
        seen.sort_unstable();
        seen.dedup();
        ensure!(seen.len() == self.programs.len(), "there are two programs for one platform");
        let mut packed =
            self.programs.iter().map(|one| self.pack(one)).collect::<Result<Vec<_>>>()?;
        packed.sort_by_key(|one| one.program.platform);
        let mut files = BTreeMap::new();
        let mut downloads = Vec::new();
        for one in packed.iter() {
            let name = format!("imagewarm-{VERSION}-{}", one.program.platform);
            let archive = gzip(&self.content(one, &name)?.tar(self.source.epoch)?)?;
            downloads.push(self.download(one.program.platform, &name, &archive));
            files.insert(format!("{name}.tar.gz"), archive);
            files.insert(format!("{name}.cdx.json"), one.sbom.clone());
        }
        let images: Vec<_> = packed.iter().map(|one| (one.program, &one.licenses)).collect();
        let layout = image::layout(&images, &self.source)?;
        files.insert(format!("imagewarm-{VERSION}-image.tar"), layout.tar(self.source.epoch)?);
        files.insert(format!("imagewarm-{VERSION}-manifests.tar.gz"), self.manifests()?);
        files.insert(format!("imagewarm-{VERSION}.tgz"), self.chart()?);
        if let Some(homepage) = &self.source.repository {
            let downloads: Vec<Download> = downloads.into_iter().flatten().collect();
            let manifest = krew::manifest(&downloads, homepage)?;
            files.insert("imagewarm.yaml".to_owned(), manifest.into_bytes());
        }
        let changelog = std::fs::read_to_string(workspace().join("CHANGELOG.md"))?;
        let notes = changelog::notes(&changelog, VERSION)?;
        files.insert("RELEASE-NOTES.md".to_owned(), notes.into_bytes());
        let sums = sums(&files);
        files.insert("SHA256SUMS".to_owned(), sums.into_bytes());
        Ok(Dist { files, layout })
    }

    fn pack<'a>(&self, program: &'a Program) -> Result<Packed<'a>> {
        let dependencies = Dependencies::of(program.platform)?;
        let licenses = notices::files(&dependencies)?;
        let sbom = sbom::document(&dependencies, &program.content, (&self.source, &self.compiler))?;
        Ok(Packed { program, licenses, sbom })
    }

    /// An archive's files, in one folder.
    fn content(&self, packed: &Packed<'_>, folder: &str) -> Result<Files> {
        let mut content = manual::files()?;
        content.add_program("imagewarm", packed.program.content.as_slice());
        content.add_below("licenses", packed.licenses.clone());
        for name in ["README.md", "CHANGELOG.md"] {
            content.add(name, std::fs::read(workspace().join(name))?);
        }
        let mut archive = Files::default();
        archive.add_below(folder, content);
        Ok(archive)
    }

    fn download(&self, platform: Platform, name: &str, archive: &[u8]) -> Option<Download> {
        let repository = self.source.repository.as_ref()?;
        Some(Download {
            platform,
            url: format!("{repository}/releases/download/v{VERSION}/{name}.tar.gz"),
            sha256: sha256(archive),
            folder: name.to_owned(),
        })
    }

    /// What `kubectl apply --kustomize` takes: the installation and its overlays.
    fn manifests(&self) -> Result<Vec<u8>> {
        let mut files = Files::default();
        for folder in ["deploy", "overlays"] {
            let below = format!("imagewarm-{VERSION}/{folder}");
            let manifests = Files::of_folder(&workspace().join(folder), &[".yaml", ".json"])?;
            files.add_below(&below, self.with_addresses(manifests.without("helm"))?);
        }
        gzip(&files.tar(self.source.epoch)?)
    }

    /// The chart, as `helm package` names and packs it.
    fn chart(&self) -> Result<Vec<u8>> {
        let ends = [".yaml", ".json", ".tpl", ".txt", ".md", ".helmignore"];
        let chart = Files::of_folder(&workspace().join("deploy/helm/imagewarm"), &ends)?;
        let mut files = Files::default();
        files.add_below("imagewarm", self.with_addresses(chart)?);
        gzip(&files.tar(self.source.epoch)?)
    }

    /// Runbooks are in the sources: alerts get the address of this version's.
    fn with_addresses(&self, manifests: Files) -> Result<Files> {
        let Some(repository) = &self.source.repository else { return Ok(manifests) };
        let address = format!("runbook_url: {repository}/blob/v{VERSION}/docs/");
        let mut files = Files::default();
        for (path, file) in manifests.iter() {
            let text = std::str::from_utf8(&file.content).with_context(|| path.to_owned())?;
            files.add(path, text.replace("runbook_url: docs/", &address));
        }
        Ok(files)
    }
}

impl Dist {
    /// Names and sizes.
    pub fn list(&self) -> impl Iterator<Item = (&str, usize)> {
        self.files.iter().map(|(name, content)| (name.as_str(), content.len()))
    }

    /// Writes all of them, and the layout into the folder `image`. What was there is replaced.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let image = folder.join("image");
        if image.exists() {
            std::fs::remove_dir_all(&image)
                .with_context(|| format!("remove {}", image.display()))?;
        }
        for (name, content) in &self.files {
            write(&folder.join(name), content)?;
        }
        for (path, file) in self.layout.iter() {
            write(&image.join(path), &file.content)?;
        }
        Ok(())
    }
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    let written = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    written
        .and_then(|()| std::fs::write(path, content))
        .with_context(|| format!("write {}", path.display()))
}
