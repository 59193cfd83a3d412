//! Test images made on the spot: an OCI configuration and layers of random bytes, pushed straight
//! to a registry. They can be pulled; they run only when a program is put into them.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::upload::{INDEX, MANIFEST, Target};

const CONFIGURATION: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image to make: how large its layers are, and for which platforms it is.
#[derive(Clone, Debug)]
pub struct TestImage {
    layers: Vec<usize>,
    /// Size of a layer that is small until it is unpacked.
    bomb: Option<usize>,
    /// Number of empty files in a layer of their own.
    files: Option<usize>,
    /// Who runs it; root if empty.
    user: String,
    program: Option<ProgramFile>,
    seed: u64,
    platforms: Vec<(String, String)>,
    index: bool,
}

/// A program in an image, and with which arguments it runs.
#[derive(Clone, Debug)]
struct ProgramFile {
    name: String,
    content: Vec<u8>,
    command: Vec<String>,
}

impl TestImage {
    /// An image of this machine's platform, with one layer of random bytes for each size.
    pub fn new(layers: &[usize]) -> Self {
        Self {
            layers: layers.to_vec(),
            bomb: None,
            files: None,
            user: String::new(),
            program: None,
            seed: rand::random(),
            platforms: vec![("linux".to_owned(), architecture().to_owned())],
            index: false,
        }
    }

    /// The same seed and sizes make the same bytes, and so the same digest.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Adds a layer with so many bytes of zeros (a multiple of 1 MiB), a thousandth as large to download.
    pub fn bomb(mut self, size: usize) -> Self {
        self.bomb = Some(size);
        self
    }

    /// Runs as the user of this number.
    pub fn user(mut self, number: u32) -> Self {
        self.user = number.to_string();
        self
    }

    /// Adds a layer with so many empty files.
    pub fn files(mut self, count: usize) -> Self {
        self.files = Some(count);
        self
    }

    /// Puts a static busybox into it, so that it runs and does nothing for long.
    pub fn running(self, busybox: &Path) -> Result<Self> {
        let command = ["/busybox", "sleep", "1000000"];
        self.program(busybox, &command)
    }

    /// Puts a program that is linked statically into it, in its top folder under the name that the
    /// file has; containers run this command.
    pub fn program(mut self, file: &Path, command: &[&str]) -> Result<Self> {
        let content = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
        let loader = b"/ld-linux";
        if content.windows(loader.len()).any(|part| part == loader) {
            bail!(
                "{} is linked dynamically: a program in an image must be linked statically \
                 (Debian's busybox-static is)",
                file.display()
            );
        }
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let command = command.iter().map(|&part| part.to_owned()).collect();
        self.program = Some(ProgramFile { name, content, command });
        Ok(self)
    }

    /// Makes an index with one image for each platform, such as `("linux", "s390x")`: with ours
    /// among them a multi-platform image, without it one that no node here can pull.
    pub fn platforms(mut self, platforms: &[(&str, &str)]) -> Self {
        let owned = platforms.iter().map(|(os, arch)| ((*os).to_owned(), (*arch).to_owned()));
        self.platforms = owned.collect();
        self.index = true;
        self
    }

    /// Makes it for another platform only, without an index that says so.
    pub fn only_for(mut self, (os, arch): (&str, &str)) -> Self {
        self.platforms = vec![(os.to_owned(), arch.to_owned())];
        self
    }

    pub(crate) async fn push(
        &self,
        registry: &kube::Client,
        repository: &str,
        tag: &str,
    ) -> Result<String> {
        let target = Target { registry, repository };
        let (layers, unpacked) = self.push_layers(&target).await?;
        let command = match &self.program {
            Some(program) => program.command.clone(),
            None => vec!["/nothing".to_owned()],
        };
        let mut manifests = Vec::new();
        for (os, arch) in &self.platforms {
            let configuration = json!({
                "os": os,
                "architecture": arch,
                "config": {"Cmd": command, "User": self.user},
                "rootfs": {
                    "type": "layers",
                    "diff_ids": unpacked,
                },
                // Two images without layers would otherwise be one.
                "history": [{"created_by": format!("imagewarm test image {}", self.seed)}],
            });
            let configuration = configuration.to_string().into_bytes();
            let manifest = json!({
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": target.blob(CONFIGURATION, configuration).await?,
                "layers": layers,
            });
            let reference = (!self.index).then_some(tag);
            let mut descriptor = target.manifest(MANIFEST, reference, &manifest).await?;
            descriptor["platform"] = json!({"os": os, "architecture": arch});
            manifests.push(descriptor);
        }
        let pushed = if self.index {
            let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
            target.manifest(INDEX, Some(tag), &index).await?
        } else {
            manifests.pop().context("an image needs a platform")?
        };
        Ok(pushed["digest"].as_str().unwrap_or_default().to_owned())
    }

    /// Returns the descriptors of the layers, and the digest of what is in each.
    async fn push_layers(&self, target: &Target<'_>) -> Result<(Vec<Value>, Vec<Value>)> {
        let mut layers = Vec::new();
        if let Some(program) = &self.program {
            layers.push(target.blob(LAYER, program_layer(program)).await?);
        }
        for (number, size) in self.layers.iter().enumerate() {
            let (size, seed) = (*size, self.seed.wrapping_add(number as u64));
            let layer = tokio::task::spawn_blocking(move || layer(size, seed)).await?;
            layers.push(target.blob(LAYER, layer).await?);
        }
        if let Some(count) = self.files {
            layers.push(target.blob(LAYER, layer_of_files(count)).await?);
        }
        // Layers that are not compressed: what is in one has the layer's own digest.
        let mut unpacked: Vec<Value> = layers.iter().map(|layer| layer["digest"].clone()).collect();
        if let Some(size) = self.bomb {
            layers.push(target.blob(GZIP_LAYER, bomb(size)?).await?);
            // Its true digest is that of all the zeros: nobody unpacks it to the end.
            unpacked.push(json!(format!("sha256:{}", "0".repeat(64))));
        }
        Ok((layers, unpacked))
    }
}

/// A tar archive with one file of random bytes.
fn layer(size: usize, seed: u64) -> Vec<u8> {
    let mut block = vec![0; size.min(1 << 20)];
    StdRng::seed_from_u64(seed).fill_bytes(&mut block);
    let mut archive = tar_header(&format!("random-{seed:016x}"), 0o644, size).to_vec();
    archive.reserve(size + 2_048);
    for number in 0u64.. {
        let left = size - (archive.len() - 512);
        if left == 0 {
            break;
        }
        // One block of random bytes again and again, numbered: quick even in a debug build, and
        // nothing here is compressed.
        let length = left.min(block.len());
        let mark = number.to_le_bytes();
        let marked = mark.len().min(length);
        block[..marked].copy_from_slice(&mark[..marked]);
        archive.extend_from_slice(&block[..length]);
    }
    end_archive(&mut archive, size);
    archive
}

/// A tar archive with the program alone.
fn program_layer(program: &ProgramFile) -> Vec<u8> {
    let length = program.content.len();
    let mut archive = tar_header(&program.name, 0o755, length).to_vec();
    archive.extend_from_slice(&program.content);
    end_archive(&mut archive, length);
    archive
}

/// A tar archive with so many empty files.
fn layer_of_files(count: usize) -> Vec<u8> {
    let mut archive = Vec::with_capacity(count * 512 + 1024);
    for number in 0..count {
        archive.extend_from_slice(&tar_header(&format!("file-{number}"), 0o644, 0));
    }
    end_archive(&mut archive, 0);
    archive
}

/// A tar archive with one file of zeros, compressed with gzip: a member of the stream that holds the
/// head, and the same member for each MiB.
fn bomb(size: usize) -> Result<Vec<u8>> {
    let mut stream = gzip(&tar_header("zeros", 0o644, size))?;
    let zeros = gzip(&vec![0; 1 << 20])?;
    for _ in 0..size >> 20 {
        stream.extend_from_slice(&zeros);
    }
    stream.extend_from_slice(&gzip(&[0; 1024])?);
    Ok(stream)
}

fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    let mut gzip = std::process::Command::new("gzip")
        .args(["--best", "--no-name"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .context("start gzip")?;
    // Less than a pipe holds comes out before all is in.
    gzip.stdin.take().context("gzip has no input")?.write_all(content)?;
    Ok(gzip.wait_with_output()?.stdout)
}

fn end_archive(archive: &mut Vec<u8>, size: usize) {
    let padding = size.next_multiple_of(512) - size;
    archive.resize(archive.len() + padding + 1_024, 0);
}

fn tar_header(name: &str, mode: u32, size: usize) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put = |offset: usize, text: &str| {
        header[offset..offset + text.len()].copy_from_slice(text.as_bytes());
    };
    put(0, name);
    put(100, &format!("{mode:07o}\0"));
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// This machine's architecture in OCI's words.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_layer_is_a_tar_archive_and_repeats_by_seed() {
        for size in [0, 1, 511, 512, 513, 3_000_000] {
            let made = layer(size, 7);
            assert_eq!(made.len() % 512, 0, "size {size}");
            assert_eq!(made, layer(size, 7));
            if size > 8 {
                assert_ne!(made, layer(size, 8));
            }
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("layer.tar");
            std::fs::write(&path, &made).unwrap();
            let list = std::process::Command::new("tar").arg("-tvf").arg(&path).output().unwrap();
            assert!(list.status.success());
            let text = String::from_utf8_lossy(&list.stdout).into_owned();
            assert!(text.contains(&format!(" {size} ")), "{text}");
        }
    }
}
