//! The kubelet's `CredentialProviderConfig`: read and validated as the kubelet does it. What imagewarm
//! does not support is refused, and not passed over: a provider that silently never answers would be
//! searched for long.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde_json::Value;

use super::fields::{Field, FieldError, Object, Unique};
use super::go_duration;
use super::response::ApiVersion;
use crate::image::Reference;
use crate::image::location::Location;
use crate::image::quoted::quoted;

const KIND: &str = "CredentialProviderConfig";
const API_VERSIONS: [&str; 3] =
    ["kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1", "kubelet.config.k8s.io/v1alpha1"];
const TOKEN_ATTRIBUTES: &str = "is not supported: the plugin would need a token of the Pod's \
    ServiceAccount, and imagewarm pulls before there is a Pod. Give the warmer a copy of the file \
    without this provider, and use imagePullSecrets for its images";

/// An environment variable of a plugin. Its Debug does not print the value, which may be a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct ExecEnvVar {
    /// The variable's name.
    pub name: String,
    /// Its value.
    pub value: String,
}

impl fmt::Debug for ExecEnvVar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=redacted", self.name)
    }
}

/// One provider of the configuration.
#[derive(Clone, Debug)]
pub struct CredentialProvider {
    /// The name of its program in the folder of plugins.
    pub name: String,
    /// The version of its protocol.
    pub api_version: ApiVersion,
    match_images: Vec<Location>,
    /// How long an answer holds that does not say so itself.
    pub default_cache_duration: Duration,
    /// Arguments of the program.
    pub args: Vec<String>,
    /// Environment variables, beside those of this process.
    pub env: Vec<ExecEnvVar>,
}

impl CredentialProvider {
    /// Whether the plugin is asked for credentials of this image.
    pub fn matches(&self, image: &Reference) -> bool {
        let target = Location::parse(image.repository().as_bytes());
        target.is_some_and(|target| self.match_images.iter().any(|it| it.matches(&target)))
    }
}

/// Reads the providers of a file, YAML or JSON. `seen` has the names of the files before it: the kubelet
/// refuses the same name twice.
pub fn parse_config(
    content: &[u8],
    seen: &mut BTreeSet<String>,
) -> Result<Vec<CredentialProvider>, FieldError> {
    let value = decode(content)?;
    let file = Field::root(&value).object(&["apiVersion", "kind", "providers"])?;
    if file.text("kind")? != KIND {
        let fault = format!("is {}: it must be {KIND}", quoted(file.text("kind")?));
        return Err(FieldError::new("kind", fault));
    }
    let api_version = file.text("apiVersion")?;
    if !API_VERSIONS.contains(&api_version) {
        let fault = format!("is {}: it must be {}", quoted(api_version), API_VERSIONS[0]);
        return Err(FieldError::new("apiVersion", fault));
    }
    let providers = file.list("providers")?;
    if providers.is_empty() {
        return Err(FieldError::new("providers", "must have at least one provider"));
    }
    providers.into_iter().map(|field| provider(field, seen)).collect()
}

/// The kubelet takes for JSON what begins with a brace. Syntax errors do not quote the file: the
/// environment of a plugin may hold a secret.
fn decode(content: &[u8]) -> Result<Value, FieldError> {
    let syntax = |format: &str, line: u64, column: u64| {
        let fault = format!(
            "is not {format}, or has a field twice: syntax error at line {line}, column {column}"
        );
        FieldError::new("the file", fault)
    };
    let text = std::str::from_utf8(content)
        .map_err(|_| FieldError::new("the file", "is not UTF-8: it must be YAML or JSON"))?;
    if text.trim_start().starts_with('{') {
        let Unique(value) = serde_json::from_str(text)
            .map_err(|error| syntax("JSON", error.line() as u64, error.column() as u64))?;
        return Ok(value);
    }
    serde_saphyr::from_str(text).map_err(|error| {
        let at = error.location();
        syntax("YAML", at.map_or(0, |at| at.line()), at.map_or(0, |at| at.column()))
    })
}

fn provider(
    field: Field<'_>,
    seen: &mut BTreeSet<String>,
) -> Result<CredentialProvider, FieldError> {
    let provider = field.object(&[
        "name",
        "matchImages",
        "defaultCacheDuration",
        "apiVersion",
        "args",
        "env",
        "tokenAttributes",
    ])?;
    if let Some(attributes) = provider.get("tokenAttributes") {
        return Err(attributes.error(TOKEN_ATTRIBUTES));
    }
    let text = |field: Field<'_>| field.text().map(str::to_owned);
    Ok(CredentialProvider {
        name: name(&provider, seen)?,
        api_version: api_version(&provider)?,
        match_images: match_images(&provider)?,
        default_cache_duration: cache_duration(&provider)?,
        args: provider.list("args")?.into_iter().map(text).collect::<Result<_, _>>()?,
        env: provider.list("env")?.into_iter().map(variable).collect::<Result<_, _>>()?,
    })
}

fn name(provider: &Object<'_>, seen: &mut BTreeSet<String>) -> Result<String, FieldError> {
    let name = provider.text("name")?;
    let fault = match name {
        "" => Some("must not be empty"),
        "." | ".." => Some("must not be . or .."),
        name if name.contains('/') => Some("must not contain /"),
        name if name.contains(' ') => Some("must not contain spaces"),
        name if !seen.insert(name.to_owned()) => Some("is the name of another provider, too"),
        _ => None,
    };
    match fault {
        None => Ok(name.to_owned()),
        Some(fault) => {
            let fault = format!(
                "{} {fault}: it is the name of a program in the folder of plugins",
                quoted(name)
            );
            Err(FieldError::new(provider.path_of("name"), fault))
        }
    }
}

fn api_version(provider: &Object<'_>) -> Result<ApiVersion, FieldError> {
    let version = provider.text("apiVersion")?;
    ApiVersion::from_name(version).ok_or_else(|| {
        let fault = format!(
            "{} is not supported: use {}, or what the plugin speaks of its older versions",
            quoted(version),
            ApiVersion::V1
        );
        FieldError::new(provider.path_of("apiVersion"), fault)
    })
}

fn match_images(provider: &Object<'_>) -> Result<Vec<Location>, FieldError> {
    let patterns = provider.list("matchImages")?;
    if patterns.is_empty() {
        let fault = "must have at least one pattern, such as *.dkr.ecr.*.amazonaws.com";
        return Err(FieldError::new(provider.path_of("matchImages"), fault));
    }
    let parse = |field: Field<'_>| {
        let text = field.text()?;
        Location::parse(text.as_bytes()).ok_or_else(|| {
            let fault = "is no pattern: it must be a host, then a port and a path where they \
                matter, such as *.registry.example:5000/team";
            field.error(format!("{} {fault}", quoted(text)))
        })
    };
    patterns.into_iter().map(parse).collect()
}

fn cache_duration(provider: &Object<'_>) -> Result<Duration, FieldError> {
    const FORM: &str = "must be a duration of 0s or more, such as 12h or 1h30m";
    let wrong = |fault: String| FieldError::new(provider.path_of("defaultCacheDuration"), fault);
    let Some(field) = provider.get("defaultCacheDuration") else {
        return Err(wrong(format!("is required: it {FORM}")));
    };
    let text = field.text()?;
    let nanoseconds = go_duration::parse(text).and_then(|it| u64::try_from(it).ok());
    match nanoseconds {
        Some(nanoseconds) => Ok(Duration::from_nanos(nanoseconds)),
        None => Err(wrong(format!("{} {FORM}", quoted(text)))),
    }
}

fn variable(field: Field<'_>) -> Result<ExecEnvVar, FieldError> {
    let variable = field.object(&["name", "value"])?;
    Ok(ExecEnvVar {
        name: variable.text("name")?.to_owned(),
        value: variable.text("value")?.to_owned(),
    })
}

#[cfg(test)]
mod tests;
