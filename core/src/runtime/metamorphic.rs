//! Replaces the image's name in a runtime's message by many others, those of the reasons' own words
//! among them: the reason must stay.
#![allow(clippy::unwrap_used, clippy::panic)]

use crate::api::Reason;
use crate::image::Reference;

/// How many names each message is tried with; all messages together are some 70.
const NAMES: usize = 10_000;

/// What people, and attackers, might call an image: words of messages, of status codes, and of
/// chance.
const WORDS: [&str; 40] = [
    "toomanyrequests",
    "too-many-requests",
    "rate",
    "limit",
    "retry-after",
    "3600",
    "429",
    "401",
    "403",
    "404",
    "unauthorized",
    "denied",
    "forbidden",
    "access",
    "certificate",
    "x509",
    "connection",
    "refused",
    "reset",
    "timeout",
    "not-found",
    "not",
    "found",
    "unknown",
    "manifest",
    "manifests",
    "name",
    "for",
    "in",
    "image",
    "repository",
    "platform",
    "no-match",
    "space",
    "left",
    "invalid",
    "reference",
    "registryunavailable",
    "api",
    "v1",
];

/// SplitMix64: the same names in each run.
struct Names(u64);

impl Names {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }

    fn word(&mut self) -> String {
        if self.below(4) > 0 {
            return WORDS[self.below(WORDS.len())].to_owned();
        }
        (0..=self.below(10)).map(|_| char::from(b'a' + self.below(26) as u8)).collect()
    }

    /// Domain, path and tag.
    fn image(&mut self) -> (String, String, String) {
        let domain = format!("{}.test", self.word());
        let path: Vec<String> = (0..=self.below(3)).map(|_| self.word()).collect();
        (domain, path.join("/"), self.word())
    }
}

/// The message with other names: those of the tables are `r.test/a` with the tags `v1` and `v9`,
/// `127.0.0.1:1/a`, and `library/nope` of Docker Hub.
fn renamed(text: &str, domain: &str, path: &str, tag: &str) -> (String, String) {
    if text.contains("library/nope") {
        let name = path.replace('/', "-");
        let text = text.replace("library/nope", &format!("library/{name}"));
        return (text, format!("docker.io/library/{name}:{tag}"));
    }
    let text = text
        .replace("r.test/a", &format!("{domain}/{path}"))
        .replace("/v2/a/", &format!("/v2/{path}/"))
        .replace("r.test", domain)
        .replace(":v1", &format!(":{tag}"))
        .replace(":v9", &format!(":{tag}"))
        .replace("manifests/v1", &format!("manifests/{tag}"))
        .replace("manifests v1]", &format!("manifests {tag}]"))
        .replace("manifest v1 ", &format!("manifest {tag} "))
        .replace("manifest v1:", &format!("manifest {tag}:"))
        .replace("manifest v9 ", &format!("manifest {tag} "));
    (text, format!("{domain}/{path}:{tag}"))
}

/// Checks that the message has this reason, whatever its image is called.
pub(super) fn check(text: &str, reason: Reason, classify: impl Fn(&str, &Reference) -> Reason) {
    let original = Reference::parse("r.test/a:v1").unwrap();
    assert_eq!(classify(text, &original), reason, "{text}");
    let mut names = Names(1);
    for _ in 0..NAMES {
        let (domain, path, tag) = names.image();
        let (text, image) = renamed(text, &domain, &path, &tag);
        let Ok(image) = Reference::parse(&image) else { panic!("{image} is no reference") };
        assert_eq!(classify(&text, &image), reason, "{image}: {text}");
    }
}
