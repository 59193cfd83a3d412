//! `imagewarm crds`: prints the CustomResourceDefinition of `ImageWarm` as YAML, byte for byte
//! the content of `deploy/crd/imagewarms.yaml`. Connects to nothing.

use std::collections::BTreeMap;
use std::io::{self, Write};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use imagewarm_core::api::ImageWarm;

/// Why the CRD could not be printed.
#[derive(Debug, thiserror::Error)]
pub enum CrdsError {
    /// The generated CRD cannot be serialized as YAML.
    #[error("cannot write the CRD as YAML")]
    Yaml(#[from] serde_saphyr::SerializeError),
    /// The output is closed or full.
    #[error("cannot write the CRD to the output")]
    Output(#[from] io::Error),
}

/// The CRD as it is shipped.
pub fn crd() -> CustomResourceDefinition {
    let mut crd = ImageWarm::crd();
    let labels = crd.metadata.labels.get_or_insert_with(BTreeMap::new);
    labels.insert("app.kubernetes.io/part-of".into(), "imagewarm".into());
    crd
}

/// The CRD as YAML.
pub fn yaml() -> Result<String, CrdsError> {
    // Through JSON, so that the text depends on the fields alone and not on serde attributes
    // that YAML would render as tags.
    let value = serde_json::to_value(crd()).map_err(io::Error::from)?;
    Ok(serde_saphyr::to_string(&value)?)
}

/// Prints the CRD to `out`.
pub fn run(out: &mut dyn Write) -> Result<(), CrdsError> {
    out.write_all(yaml()?.as_bytes())?;
    Ok(out.flush()?)
}
