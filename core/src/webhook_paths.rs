//! The paths at which the API server calls the admission webhooks. Each has an unguessable part, so
//! that nobody else can post a review. The leader publishes them in the webhook configurations and
//! rotates them, unless the installer does; every replica serves those that it finds there, and for a
//! while those that it found before.
//!
//! A rotation has two steps, because a replica must serve a path before the API server uses it: the
//! next paths are first announced in an annotation, which every replica reads, and replace the
//! current ones later. Pure; `now` is monotonic, in milliseconds.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The webhook that receives Revisions. Its path is for Revisions only, the others' for ImageWarms
/// only: an error of a webhook that may deny quotes its URL to the user.
pub const REVISIONS_WEBHOOK: &str = "revisions.caching.knative.dev";

/// Annotation of a webhook configuration with its next paths, by webhook: JSON, such as
/// `{"revisions.caching.knative.dev": "/mutate/0123…"}`.
pub const NEXT_PATHS_ANNOTATION: &str = "caching.knative.dev/next-webhook-paths";

/// How long paths are in use before they are rotated. Each change costs every API server a transport,
/// which those before client-go 0.36 never free.
pub const ROTATE_AFTER_MS: i64 = 24 * 3_600_000;
/// How long the next paths are announced before they are used: replicas look every ten seconds.
pub const ANNOUNCE_FOR_MS: i64 = 60_000;
/// How long a path is served after it was last seen: API servers learn of a change within seconds.
pub const SERVE_FOR_MS: i64 = 600_000;

/// What a path answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    /// Mutating webhooks.
    Mutate,
    /// Validating webhooks.
    Validate,
}

impl Endpoint {
    const fn prefix(self) -> &'static str {
        match self {
            Endpoint::Mutate => "/mutate/",
            Endpoint::Validate => "/validate/",
        }
    }
}

/// The reviews that a path accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reviews {
    /// Of Revisions.
    Revisions,
    /// Of ImageWarms.
    ImageWarms,
}

impl Reviews {
    fn of_webhook(name: &str) -> Self {
        if name == REVISIONS_WEBHOOK { Reviews::Revisions } else { Reviews::ImageWarms }
    }
}

/// The text without unguessable parts of paths: an API server that cannot call a webhook quotes its URL.
pub fn without_secrets(text: &str) -> String {
    let mut text = text.to_owned();
    for endpoint in [Endpoint::Mutate, Endpoint::Validate] {
        let prefix = endpoint.prefix();
        let mut parts = text.split(prefix);
        let mut rest = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let end = part.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(part.len());
            let hidden = if end == 0 { "" } else { "…" };
            rest = format!("{rest}{prefix}{hidden}{}", &part[end..]);
        }
        text = rest;
    }
    text
}

/// A path with an unguessable part of 128 bits, such as `/mutate/` and 32 hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WebhookPath(String);

impl WebhookPath {
    /// The path with this unguessable part.
    pub fn new(endpoint: Endpoint, secret: u128) -> Self {
        WebhookPath(format!("{}{secret:032x}", endpoint.prefix()))
    }

    /// A published path; `None` for any other text.
    pub fn parse(endpoint: Endpoint, text: &str) -> Option<Self> {
        let secret = text.strip_prefix(endpoint.prefix())?;
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let is_secret = secret.len() == 32 && secret.bytes().all(is_hex);
        is_secret.then(|| WebhookPath(text.to_owned()))
    }

    /// The path, which begins with a slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Logs must not reveal it.
impl std::fmt::Debug for WebhookPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WebhookPath(…)")
    }
}

/// Paths by webhook.
pub type Paths = BTreeMap<String, WebhookPath>;

/// What a webhook configuration holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Each webhook, and its path if that has the right form.
    pub current: BTreeMap<String, Option<WebhookPath>>,
    /// The announced paths.
    pub next: Paths,
}

impl Published {
    /// From the webhooks' names and paths, and the value of [`NEXT_PATHS_ANNOTATION`]. Ignores what
    /// has another form. A path is of one webhook, as it decides which reviews are accepted: a second
    /// webhook with the same path counts as one without.
    pub fn read<'a>(
        endpoint: Endpoint,
        webhooks: impl IntoIterator<Item = (&'a str, Option<&'a str>)>,
        annotation: Option<&str>,
    ) -> Self {
        let parse = |text: &str| WebhookPath::parse(endpoint, text);
        let mut taken = BTreeSet::new();
        let mut own = |path: &WebhookPath| taken.insert(path.clone());
        let current: BTreeMap<_, _> = webhooks
            .into_iter()
            .map(|(name, path)| (name.to_owned(), path.and_then(parse).filter(&mut own)))
            .collect();
        let announced: BTreeMap<String, String> =
            annotation.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let next = announced
            .into_iter()
            .filter(|(name, _)| current.contains_key(name))
            .filter_map(|(name, path)| Some((name, parse(&path)?)))
            .collect();
        Published { current, next }
    }

    /// Whether the API server can call every webhook.
    pub fn is_complete(&self) -> bool {
        self.current.values().all(Option::is_some)
    }
}

/// What the leader has to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Keep,
    /// These paths, of some or all webhooks; the annotation is removed.
    Publish(Paths),
    /// The annotation, with these paths.
    Announce(Paths),
}

/// What a replica remembers of the paths of one webhook configuration.
#[derive(Debug)]
pub struct WebhookPaths {
    endpoint: Endpoint,
    published: Published,
    current_since: i64,
    next_since: i64,
    /// The last path of each webhook.
    last: Paths,
    /// Paths that are served, and when each was seen last.
    served: HashMap<WebhookPath, (Reviews, i64)>,
}

impl WebhookPaths {
    /// Nothing is known yet.
    pub fn new(endpoint: Endpoint) -> Self {
        WebhookPaths {
            endpoint,
            published: Published::default(),
            current_since: 0,
            next_since: 0,
            last: Paths::new(),
            served: HashMap::new(),
        }
    }

    /// The configuration was read.
    pub fn observe(&mut self, published: Published, now: i64) {
        if self.published.current != published.current {
            self.current_since = now;
        }
        if self.published.next != published.next {
            self.next_since = now;
        }
        let current = published.current.iter();
        let current = current.filter_map(|(name, path)| Some((name, path.as_ref()?)));
        for (name, path) in current.clone() {
            self.last.insert(name.clone(), path.clone());
        }
        for (name, path) in current.chain(&published.next) {
            self.served.insert(path.clone(), (Reviews::of_webhook(name), now));
        }
        self.served.retain(|_, (_, seen)| now - *seen < SERVE_FOR_MS);
        self.published = published;
    }

    /// The leader's next step. Paths to be written are served from now on.
    pub fn step(&mut self, now: i64, mut secret: impl FnMut() -> u128) -> Step {
        let endpoint = self.endpoint;
        let mut fresh = || WebhookPath::new(endpoint, secret());
        let published = &self.published;
        let step = if !published.is_complete() {
            // After the manifest was replaced, replicas still serve the last ones.
            let missing = published.current.iter().filter(|(_, path)| path.is_none());
            let mut path = |name: &String| self.last.get(name).cloned().unwrap_or_else(&mut fresh);
            Step::Publish(missing.map(|(name, _)| name).map(|n| (n.clone(), path(n))).collect())
        } else if !published.next.is_empty() {
            if now - self.next_since < ANNOUNCE_FOR_MS {
                return Step::Keep;
            }
            Step::Publish(published.next.clone())
        } else if now - self.current_since >= ROTATE_AFTER_MS && !published.current.is_empty() {
            Step::Announce(published.current.keys().map(|name| (name.clone(), fresh())).collect())
        } else {
            return Step::Keep;
        };
        if let Step::Publish(paths) | Step::Announce(paths) = &step {
            for (name, path) in paths {
                self.served.insert(path.clone(), (Reviews::of_webhook(name), now));
            }
        }
        step
    }

    /// All paths that are served, and what each accepts.
    pub fn served(&self) -> impl Iterator<Item = (&WebhookPath, Reviews)> {
        self.served.iter().map(|(path, (reviews, _))| (path, *reviews))
    }
}

/// The paths that a replica serves now, from both configurations.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ServedPaths(HashMap<String, (Endpoint, Reviews)>);

/// Logs must not reveal them.
impl std::fmt::Debug for ServedPaths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServedPaths").field("paths", &self.0.len()).finish()
    }
}

impl ServedPaths {
    /// What the replica remembers of each configuration.
    pub fn of<'a>(all: impl IntoIterator<Item = &'a WebhookPaths>) -> Self {
        let all = all.into_iter().flat_map(|one| {
            one.served().map(|(path, reviews)| (path.0.clone(), (one.endpoint, reviews)))
        });
        ServedPaths(all.collect())
    }

    /// What is served at this path.
    pub fn get(&self, path: &str) -> Option<(Endpoint, Reviews)> {
        self.0.get(path).copied()
    }
}

#[cfg(test)]
mod tests;
