//! The protocol with a plugin: the request that it reads, and the answer that it gives. What is wrong
//! with an answer is named without any of its content, which is secret.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::failure::{LONGEST_RESPONSE, ProviderFailure};
use super::fields::{Field, Object, Unique};
use super::go_duration;
use crate::image::{Credential, Reference};

const GROUP: &str = "credentialprovider.kubelet.k8s.io/";

/// A version of the protocol that the kubelet speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiVersion {
    /// `v1`.
    V1,
    /// `v1beta1`.
    V1Beta1,
    /// `v1alpha1`.
    V1Alpha1,
}

impl ApiVersion {
    const ALL: [Self; 3] = [ApiVersion::V1, ApiVersion::V1Beta1, ApiVersion::V1Alpha1];

    /// The version with this name, group and version.
    pub fn from_name(name: &str) -> Option<Self> {
        let version = name.strip_prefix(GROUP)?;
        Self::ALL.into_iter().find(|it| it.version() == version)
    }

    fn version(self) -> &'static str {
        match self {
            ApiVersion::V1 => "v1",
            ApiVersion::V1Beta1 => "v1beta1",
            ApiVersion::V1Alpha1 => "v1alpha1",
        }
    }

    /// What a plugin reads on its standard input.
    pub fn request(self, image: &Reference) -> String {
        let request = json!({
            "kind": "CredentialProviderRequest",
            "apiVersion": self.to_string(),
            "image": image.repository(),
        });
        format!("{request}\n")
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{GROUP}{}", self.version())
    }
}

/// Which images an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheKeyType {
    /// Images of the same repository.
    Image,
    /// Images of the same registry.
    Registry,
    /// All images of the provider.
    Global,
}

/// The answer of a plugin. Its Debug prints no secret.
#[derive(Clone)]
pub struct Response {
    /// Which images it is for.
    pub cache_key_type: CacheKeyType,
    /// How long it holds, if the plugin says so; zero for not at all.
    pub cache_duration: Option<Duration>,
    /// Credentials by the names of their registries.
    pub entries: Vec<(String, Credential)>,
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Response(redacted)")
    }
}

/// Reads what a plugin wrote to its standard output.
pub fn parse_response(answer: &[u8], expected: ApiVersion) -> Result<Response, ProviderFailure> {
    if answer.len() > LONGEST_RESPONSE {
        return Err(ProviderFailure::TooLong);
    }
    if answer.trim_ascii().is_empty() {
        return Err(ProviderFailure::NoAnswer);
    }
    let Ok(Unique(value)) = serde_json::from_slice(answer) else {
        return Err(ProviderFailure::Malformed("it is not JSON"));
    };
    read(&value, expected).map_err(ProviderFailure::Malformed)
}

fn read(value: &Value, expected: ApiVersion) -> Result<Response, &'static str> {
    const FIELDS: [&str; 5] = ["kind", "apiVersion", "cacheKeyType", "cacheDuration", "auth"];
    if !value.is_object() {
        return Err("it is not an object");
    }
    let response = Field::root(value).object(&FIELDS).map_err(|_| "it has an unknown field")?;
    if text(&response, "kind")? != "CredentialProviderResponse" {
        return Err("its kind is not CredentialProviderResponse");
    }
    if text(&response, "apiVersion")? != expected.to_string() {
        return Err("its apiVersion is not that of the request");
    }
    let cache_key_type = match text(&response, "cacheKeyType")? {
        "Image" => CacheKeyType::Image,
        "Registry" => CacheKeyType::Registry,
        "Global" => CacheKeyType::Global,
        _ => return Err("its cacheKeyType is none of Image, Registry, Global"),
    };
    let cache_duration = match response.get("cacheDuration") {
        None => None,
        Some(field) => {
            let nanoseconds = field.text().ok().and_then(go_duration::parse);
            let nanoseconds = nanoseconds.ok_or("its cacheDuration is no duration")?;
            // What has expired already holds not at all.
            Some(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0)))
        }
    };
    Ok(Response { cache_key_type, cache_duration, entries: entries(value.get("auth"))? })
}

fn text<'v>(object: &Object<'v>, name: &str) -> Result<&'v str, &'static str> {
    object.text(name).map_err(|_| "a field of it that must be a string is none")
}

fn entries(auth: Option<&Value>) -> Result<Vec<(String, Credential)>, &'static str> {
    let auth = match auth {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(auth)) => auth,
        Some(_) => return Err("its auth is no object"),
    };
    let entry = |(registry, value): (&String, &Value)| {
        let mut credential = Credential {
            username: String::new(),
            password: String::new(),
            identity_token: String::new(),
            registry_token: String::new(),
        };
        if !value.is_null() {
            let field = Field::root(value).object(&["username", "password"]);
            let field = field.map_err(|_| "an entry of its auth is no username and password")?;
            text(&field, "username")?.clone_into(&mut credential.username);
            text(&field, "password")?.clone_into(&mut credential.password);
        }
        Ok((registry.clone(), credential))
    };
    auth.iter().map(entry).collect()
}

#[cfg(test)]
mod tests;
