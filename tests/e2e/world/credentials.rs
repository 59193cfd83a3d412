//! Which words of a Secret's content are credentials.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

/// Passwords and tokens in a Docker configuration; a content that is text is one altogether.
pub fn found_in(content: &Value) -> Vec<String> {
    match content {
        Value::String(text) => vec![text.clone()],
        Value::Object(fields) => {
            fields.iter().flat_map(|(key, value)| of_field(key, value)).collect()
        }
        _ => vec![],
    }
}

fn of_field(key: &str, value: &Value) -> Vec<String> {
    match (key, value.as_str()) {
        ("username", _) => vec![],
        ("auth", Some(auth)) => vec![password_of(auth)],
        ("password" | "identitytoken" | "registrytoken", Some(text)) => vec![text.to_owned()],
        _ if value.is_object() => found_in(value),
        _ => vec![],
    }
}

/// The password of `base64(user:password)`; all of it where it has another form.
fn password_of(auth: &str) -> String {
    let decoded = BASE64_STANDARD.decode(auth).ok().and_then(|it| String::from_utf8(it).ok());
    match decoded {
        Some(pair) => {
            pair.split_once(':').map_or(pair.clone(), |(_, password)| password.to_owned())
        }
        None => auth.to_owned(),
    }
}
