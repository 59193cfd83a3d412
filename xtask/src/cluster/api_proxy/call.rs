//! What a request asks of the API server, read from its method and path.

use http::{Method, Uri};

/// What is done, in the words of RBAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// One object, or what is no resource (`/version`, discovery).
    Get,
    /// All objects of a type.
    List,
    /// Changes of a type.
    Watch,
    /// POST.
    Create,
    /// PUT.
    Update,
    /// PATCH.
    Patch,
    /// DELETE, of one or of all.
    Delete,
}

impl Verb {
    /// Whether it changes anything.
    pub fn writes(self) -> bool {
        !matches!(self, Verb::Get | Verb::List | Verb::Watch)
    }
}

/// One request. What does not apply is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What is done.
    pub verb: Verb,
    /// Plural, such as `imagewarms`.
    pub resource: String,
    /// Such as `status`.
    pub subresource: String,
    /// The object's namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
}

impl Call {
    pub(super) fn read(method: &Method, uri: &Uri) -> Self {
        let mut parts = uri.path().split('/').filter(|part| !part.is_empty());
        // /api/VERSION/… or /apis/GROUP/VERSION/…
        let skipped = match parts.next() {
            Some("api") => 1,
            Some("apis") => 2,
            _ => usize::MAX,
        };
        let parts: Vec<&str> = parts.skip(skipped).collect();
        let (namespace, rest) = match parts[..] {
            ["namespaces", namespace, _, ..] if !matches!(parts[2], "status" | "finalize") => {
                (namespace, &parts[2..])
            }
            _ => ("", &parts[..]),
        };
        let word = |at: usize| rest.get(at).copied().unwrap_or_default().to_owned();
        let watches = uri.query().is_some_and(|query| {
            query.split('&').any(|one| matches!(one, "watch=true" | "watch=1" | "watch"))
        });
        let verb = match *method {
            Method::POST => Verb::Create,
            Method::PUT => Verb::Update,
            Method::PATCH => Verb::Patch,
            Method::DELETE => Verb::Delete,
            _ if watches => Verb::Watch,
            _ if rest.len() == 1 => Verb::List,
            _ => Verb::Get,
        };
        let (resource, name, subresource) = (word(0), word(1), word(2));
        Self { verb, resource, subresource, namespace: namespace.to_owned(), name }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn paths() {
        let cases = [
            ("GET", "/version", "Get / "),
            ("GET", "/apis/serving.knative.dev/v1", "Get / "),
            ("GET", "/api/v1/nodes?limit=500", "List nodes/ "),
            ("GET", "/api/v1/nodes?limit=5&watch=true", "Watch nodes/ "),
            ("GET", "/api/v1/nodes/a", "Get nodes/ a"),
            ("GET", "/api/v1/namespaces", "List namespaces/ "),
            ("DELETE", "/api/v1/namespaces/ns", "Delete namespaces/ ns"),
            ("PUT", "/api/v1/namespaces/ns/finalize", "Update namespaces/finalize ns"),
            ("POST", "/apis/g/v1/namespaces/ns/imagewarms?a=b", "Create imagewarms/ ns/"),
            (
                "PATCH",
                "/apis/g/v1/namespaces/ns/imagewarms/a/status",
                "Patch imagewarms/status ns/a",
            ),
            ("DELETE", "/apis/g/v1/namespaces/ns/imagewarms/a", "Delete imagewarms/ ns/a"),
            ("GET", "/apis/g/v1/namespaces/ns/imagewarms", "List imagewarms/ ns/"),
        ];
        for (method, path, expected) in cases {
            let call = Call::read(&method.parse().unwrap(), &path.parse().unwrap());
            let namespace = match call.namespace.as_str() {
                "" => String::new(),
                namespace => format!("{namespace}/"),
            };
            let (resource, subresource) = (&call.resource, &call.subresource);
            let read = format!("{:?} {resource}/{subresource} {namespace}{}", call.verb, call.name);
            assert_eq!(read, expected, "{method} {path}");
        }
    }
}
