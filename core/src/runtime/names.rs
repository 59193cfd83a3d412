//! Removes an image's names from a runtime's message. Whoever names an image chooses its words: they
//! must not decide the reason of its failure, nor how long a registry is backed off.

use crate::image::Reference;

/// The text in lower case, without URLs and without the names of `image`: in full, its repository,
/// its registry, and its tag or its short name where runtimes and registries write these alone.
pub fn without_names(text: &str, image: &Reference) -> String {
    let text = text.to_ascii_lowercase();
    let names = Names::of(image);
    let words: Vec<&str> = text.split_whitespace().collect();
    let word = |at: usize| words.get(at).copied().unwrap_or_default();
    let is_name = |at: usize| {
        let before = |steps: usize| at.checked_sub(steps).map_or("", word);
        names.are_in(word(at), [before(2), before(1)], word(at + 1))
    };
    let kept = (0..words.len()).filter(|at| !is_name(*at)).map(word);
    kept.collect::<Vec<_>>().join(" ")
}

struct Names {
    domain: String,
    /// The repository without its registry; both as written in full and in Docker Hub's short form.
    paths: Vec<String>,
    tag: Option<String>,
    digest: Option<String>,
}

impl Names {
    fn of(image: &Reference) -> Self {
        let path = image.path().to_ascii_lowercase();
        let short = path.strip_prefix("library/").map(str::to_owned);
        Names {
            domain: image.domain().to_ascii_lowercase(),
            paths: std::iter::once(path).chain(short).collect(),
            tag: image.tag().map(str::to_ascii_lowercase),
            digest: image.digest().map(str::to_ascii_lowercase),
        }
    }

    /// Whether the word, with the two before it and the one after it, is or contains a name.
    fn are_in(&self, word: &str, [earlier, before]: [&str; 2], after: &str) -> bool {
        if word.contains("://") || word.contains(&self.domain) {
            return true;
        }
        if self.digest.as_ref().is_some_and(|digest| word.contains(digest)) {
            return true;
        }
        // A path with a slash is no word of anybody else.
        if self.paths.iter().any(|path| path.contains('/') && word.contains(path)) {
            return true;
        }
        let bare = word.trim_matches(['"', '\'', '`', '\\', '[', ']', '(', ')', ',', ':', ';']);
        // `reading manifest v1 in r.test/a`, `unexpected status code [manifests v1]: 401`.
        if self.tag.as_deref() == Some(bare) {
            return before == "manifest" && (after == "in" || earlier == "reading")
                || before == "[manifests" && word.contains(']');
        }
        // `map[name:a]`, and `a:v1`.
        let (key, bare) = bare.rsplit_once("name:").map_or(("", bare), |(_, name)| ("name", name));
        let is_path = |text: &str| self.paths.iter().any(|path| path == text);
        let name_and_tag = bare.split_once([':', '@']).map(|(path, _)| path);
        // `pull access denied for a, repository …`, `repository a not found`.
        let is_placed = key == "name"
            || before == "for" && word.ends_with(',')
            || before == "repository" && after == "not";
        name_and_tag.is_some_and(is_path) || is_placed && is_path(bare)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_go_and_the_message_stays() {
        let kept = |text: &str, image: &str| without_names(text, &Reference::parse(image).unwrap());
        for (image, text, expected) in [
            (
                "r.test/x/toomanyrequests/retry-after:3600",
                "failed to resolve reference \"r.test/x/toomanyrequests/retry-after:3600\": not found",
                "failed to resolve reference not found",
            ),
            (
                "r.test/a:unknown",
                "reading manifest unknown in r.test/a: manifest unknown",
                "reading manifest in manifest unknown",
            ),
            (
                "denied:v1",
                "pull access denied for denied, repository does not exist: denied: requested \
                 access to the resource is denied",
                "pull access denied for repository does not exist: denied: requested access to \
                 the resource is denied",
            ),
            (
                "r.test/a:403",
                "unexpected status code [manifests 403]: 401",
                "unexpected status code [manifests 401",
            ),
            (
                "certificate.test/a",
                "dial tcp: lookup certificate.test on 10.0.0.1:53: no such host",
                "dial tcp: lookup on 10.0.0.1:53: no such host",
            ),
            (
                "r.test/unauthorized",
                "name unknown: repository unauthorized not found",
                "name unknown: repository not found",
            ),
            ("r.test/unauthorized", "Get \"https://r.test/v2/\": Unauthorized", "get unauthorized"),
        ] {
            assert_eq!(kept(text, image), expected, "{image}");
        }
    }
}
