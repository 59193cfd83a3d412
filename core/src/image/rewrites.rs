//! Images that the cluster rewrites when Pods are admitted: what a node needs is the rewritten image.

use std::fmt;
use std::str::FromStr;

use super::Reference;
use super::quoted::quoted;
use super::registry_pattern;

/// A repository prefix for each image that is rewritten: `docker.io=mirror.test/hub,quay.io/team=mirror.test/team`.
/// A prefix ends at a `/` of the repository; of several, the longest decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageRewrites(Vec<Rewrite>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rewrite {
    from: String,
    to: String,
}

/// Why a text is no [`ImageRewrites`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageRewritesError {
    /// It has no `=`.
    #[error("{0} is no rewrite: use PREFIX=PREFIX, as in docker.io=mirror.example/hub")]
    Form(String),
    /// One side is no repository.
    #[error(
        "{0} is no registry or repository: use a domain and perhaps a path, such as docker.io/library"
    )]
    Prefix(String),
    /// Two rewrites of one prefix.
    #[error("{0} is rewritten twice")]
    Twice(String),
}

impl FromStr for ImageRewrites {
    type Err = ImageRewritesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut rewrites: Vec<Rewrite> = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let form = || ImageRewritesError::Form(quoted(part).to_string());
            let (from, to) = part.split_once('=').ok_or_else(form)?;
            let rewrite = Rewrite { from: prefix(from)?, to: prefix(to)? };
            if rewrites.iter().any(|other| other.from == rewrite.from) {
                return Err(ImageRewritesError::Twice(quoted(from).to_string()));
            }
            rewrites.push(rewrite);
        }
        rewrites.sort_by_key(|rewrite| std::cmp::Reverse(rewrite.from.len()));
        Ok(ImageRewrites(rewrites))
    }
}

impl fmt::Display for ImageRewrites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, Rewrite { from, to }) in self.0.iter().enumerate() {
            write!(f, "{}{from}={to}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl ImageRewrites {
    /// The image that Pods pull instead of this one. An image whose rewritten name would be too long stays.
    pub fn of(&self, image: Reference) -> Reference {
        if self.0.is_empty() {
            return image; // every image of every Revision comes by here
        }
        let repository = image.repository();
        let canonical = canonical(repository);
        let rewritten = self.0.iter().find_map(|Rewrite { from, to }| {
            let rest = canonical.strip_prefix(from.as_str())?;
            let is_whole = rest.is_empty() || rest.starts_with('/');
            is_whole.then(|| format!("{to}{rest}{}", &image.as_str()[repository.len()..]))
        });
        rewritten.and_then(|image| Reference::parse(&image).ok()).unwrap_or(image)
    }
}

/// A side of a rewrite. The domain is needed: without one it would be Docker Hub's.
fn prefix(text: &str) -> Result<String, ImageRewritesError> {
    let wrong = || ImageRewritesError::Prefix(quoted(text).to_string());
    let (domain, path) = match text.split_once('/') {
        Some((domain, path)) => (domain, format!("/{path}")),
        None => (text, String::new()),
    };
    let prefix = canonical(&format!("{}{path}", domain.to_ascii_lowercase()));
    let image = Reference::parse(&format!("{prefix}/a/image")).map_err(|_| wrong())?;
    let is_same =
        image.repository() == format!("{prefix}/a/image") && image.tag() == Some("latest");
    if is_same { Ok(prefix) } else { Err(wrong()) }
}

/// With Docker Hub's usual name, whatever it is called.
fn canonical(repository: &str) -> String {
    let domain = repository.split('/').next().unwrap_or_default();
    format!("{}{}", registry_pattern::canonical(domain), &repository[domain.len()..])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_longest_prefix_decides() {
        let rewrites: ImageRewrites =
            "index.docker.io=mirror.test/hub, docker.io/library=mirror.test:5000/official,Quay.IO=q.test"
                .parse()
                .unwrap();
        let digest = format!("sha256:{}", "a".repeat(64));
        let table = [
            ("nginx:1", "mirror.test:5000/official/nginx:1".to_owned()),
            ("team/app", "mirror.test/hub/team/app:latest".to_owned()),
            ("registry-1.docker.io/team/app:1", "mirror.test/hub/team/app:1".to_owned()),
            (&*format!("quay.io/a/b@{digest}"), format!("q.test/a/b@{digest}")),
            ("quay.io.example/a:1", "quay.io.example/a:1".to_owned()),
            ("docker.io/librarything/a:1", "mirror.test/hub/librarything/a:1".to_owned()),
            ("registry.test/docker.io/a:1", "registry.test/docker.io/a:1".to_owned()),
        ];
        for (image, expected) in table {
            let rewritten = rewrites.of(Reference::parse(image).unwrap());
            assert_eq!(rewritten.as_str(), expected, "{image}");
        }
        assert_eq!(rewrites.to_string().parse(), Ok(rewrites));
        let none: ImageRewrites = "".parse().unwrap();
        assert_eq!(
            none.of(Reference::parse("nginx").unwrap()).as_str(),
            "docker.io/library/nginx:latest"
        );
    }

    #[test]
    fn a_name_that_would_be_too_long_stays() {
        let rewrites: ImageRewrites =
            format!("docker.io=mirror.test/{}", "a".repeat(200)).parse().unwrap();
        let long = Reference::parse(&format!("docker.io/{}", "b".repeat(200))).unwrap();
        assert_eq!(rewrites.of(long.clone()), long);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = [
            ("docker.io", "is no rewrite"),
            ("docker.io=", "is no registry"),
            ("=mirror.test", "is no registry"),
            ("library=mirror.test", "is no registry"),
            ("docker.io=mirror.test/Hub", "is no registry"),
            ("docker.io=https://mirror.test", "is no registry"),
            ("docker.io=mirror.test/a:1", "is no registry"),
            ("docker.io=a.test,index.docker.io=b.test", "rewritten twice"),
        ];
        for (text, problem) in table {
            let error = text.parse::<ImageRewrites>().unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }
}
