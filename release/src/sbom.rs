//! The bill of materials of the program on one platform, as CycloneDX 1.5 in JSON: what it is linked with, in
//! which versions, under which licences, and what needs what.

use anyhow::{Context, Result, bail};
use cyclonedx_bom::external_models::date_time::DateTime;
use cyclonedx_bom::external_models::normalized_string::NormalizedString;
use cyclonedx_bom::external_models::spdx::SpdxExpression;
use cyclonedx_bom::external_models::uri::{Purl, Uri};
use cyclonedx_bom::models::bom::{Bom, SpecVersion};
use cyclonedx_bom::models::component::{Classification, Component, Components};
use cyclonedx_bom::models::dependency::{Dependencies as Edges, Dependency};
use cyclonedx_bom::models::external_reference::{
    ExternalReference, ExternalReferenceType, ExternalReferences, Uri as Reference,
};
use cyclonedx_bom::models::hash::{Hash, HashAlgorithm, HashValue, Hashes};
use cyclonedx_bom::models::license::{LicenseChoice, Licenses};
use cyclonedx_bom::models::metadata::Metadata;
use cyclonedx_bom::prelude::Validate as _;

use crate::checksums::sha256;
use crate::dependencies::{Dependencies, Id, Package};
use crate::source::Source;

const LIBC: &str = "pkg:generic/glibc";

/// The document for a program.
pub(crate) fn document(
    dependencies: &Dependencies,
    program: &[u8],
    (source, compiler): (&Source, &str),
) -> Result<Vec<u8>> {
    let mut components = Vec::new();
    let mut edges = Vec::new();
    for (id, package) in &dependencies.packages {
        if *id != dependencies.root {
            components.push(component(Classification::Library, id, package)?);
        }
        let needs = dependencies.needs.get(id).into_iter().flatten();
        let mut needs = needs.map(name).collect::<Result<Vec<_>>>()?;
        if *id == dependencies.root {
            needs.extend([standard_library(compiler), LIBC.to_owned()]);
        }
        edges.push(Dependency { dependency_ref: name(id)?, dependencies: needs });
    }
    components.push(linked(
        "std",
        Some(compiler),
        &standard_library(compiler),
        "MIT OR Apache-2.0",
    )?);
    components.push(linked("glibc", None, LIBC, "LGPL-2.1-or-later")?);
    let root = dependencies.packages.get(&dependencies.root).context("no program")?;
    let mut root = component(Classification::Application, &dependencies.root, root)?;
    root.hashes = Some(hashes(&sha256(program)));
    let bom = Bom {
        // One of its own for each document would make two builds differ.
        serial_number: None,
        metadata: Some(Metadata {
            timestamp: Some(DateTime::try_from(source.time()?)?),
            component: Some(root),
            ..Metadata::default()
        }),
        components: Some(Components(components)),
        dependencies: Some(Edges(edges)),
        ..Bom::default()
    };
    let checked = bom.validate_version(SpecVersion::V1_5);
    if !checked.passed() {
        bail!("the SBOM is not valid: {checked:?}");
    }
    let mut text = Vec::new();
    bom.output_as_json_v1_5(&mut text)?;
    text.push(b'\n');
    Ok(text)
}

fn component(kind: Classification, id: &Id, package: &Package) -> Result<Component> {
    let name = name(id)?;
    let mut component = Component::new(kind, &id.0, &id.1, Some(name.clone()));
    component.purl = Some(Purl::new("cargo", &id.0, &id.1)?);
    component.description = package.description.as_deref().map(NormalizedString::new);
    component.licenses = package.license.as_deref().map(licence).transpose()?;
    component.hashes = package.checksum.as_deref().map(hashes);
    component.external_references = package.repository.as_deref().map(|url| {
        let url = Reference::Url(Uri::new(url));
        ExternalReferences(vec![ExternalReference::new(ExternalReferenceType::Vcs, url)])
    });
    Ok(component)
}

/// A library that is no crate.
fn linked(name: &str, version: Option<&str>, reference: &str, license: &str) -> Result<Component> {
    let mut component =
        Component::new(Classification::Library, name, "", Some(reference.to_owned()));
    component.version = version.map(NormalizedString::new);
    component.licenses = Some(licence(license)?);
    Ok(component)
}

fn standard_library(compiler: &str) -> String {
    format!("pkg:generic/rust-std@{compiler}")
}

fn name(id: &Id) -> Result<String> {
    Ok(Purl::new("cargo", &id.0, &id.1)?.to_string())
}

/// Older manifests have a slash for OR.
fn licence(text: &str) -> Result<Licenses> {
    let expression = SpdxExpression::parse_lax(text.to_owned())
        .with_context(|| format!("the licence {text:?} is no SPDX expression"))?;
    Ok(Licenses(vec![LicenseChoice::Expression(expression)]))
}

fn hashes(sha256: &str) -> Hashes {
    let content = HashValue(sha256.to_owned());
    Hashes(vec![Hash { alg: HashAlgorithm::SHA_256, content }])
}
