//! Maps the error text of a runtime to one typed reason. Runtimes report most failures as text
//! only, each with its own wording; the table in the tests holds their real messages.

use super::names::without_names;
use crate::api::Reason;
use crate::image::Reference;

/// Phrases (lower case) and their reasons. The first match decides, so the order matters: Docker
/// Hub answers `pull access denied … does not exist or may require authorization` for both causes,
/// and a missing platform can be reported as "not found".
const PHRASES: &[(Reason, &[&str])] = &[
    (Reason::RuntimeUnavailable, &["client version", "api version"]),
    // What the node's own store lacks, although it once had it: no other node lacks it, too.
    (
        Reason::RuntimeUnavailable,
        &[
            "content digest ",
            "failed to get reader from content store",
            "failed to prepare extraction snapshot",
            "failed to stat snapshot",
            "parent snapshot",
            "snapshot does not exist",
            "layer does not exist",
            "layer not known",
        ],
    ),
    (
        Reason::SignatureRejected,
        &["signaturevalidationfailed", "source image rejected", "rejected by policy"],
    ),
    (
        Reason::RateLimited,
        &["toomanyrequests", "too many requests", "rate limit", "parsing http 429"],
    ),
    (
        Reason::PlatformMismatch,
        &[
            "no matching manifest for",
            "no match for platform",
            "no image found in image index for architecture",
            "does not match the specified platform",
            "cannot be used on this platform",
        ],
    ),
    (
        Reason::DiskPressure,
        &["no space left on device", "disk quota exceeded", "insufficient space"],
    ),
    (
        Reason::InvalidImage,
        &[
            "invalid reference format",
            "unsupported media type",
            "unsupported manifest",
            "unsupported schema version",
            "is no longer supported since containerd",
            "schema 1 support has been removed",
            "mediatype in manifest",
            // Of a manifest of schema version 1.
            "missing signature key",
            "no signatures",
            "parse manifest from blob",
            "failed to register layer",
            "layer verification failed",
            "unexpected commit digest",
            "digest did not match",
        ],
    ),
    (
        Reason::Unauthorized,
        &[
            "no basic auth credentials",
            "unauthorized",
            "authentication required",
            "access denied",
            "access to the resource is denied",
            "403 forbidden",
            "parsing http 403",
            "denied:",
        ],
    ),
    (
        Reason::RegistryUnreachable,
        &[
            "connection refused",
            "connection reset",
            "no such host",
            "server misbehaving",
            "network is unreachable",
            "no route to host",
            "i/o timeout",
            "tls handshake",
            "x509:",
            "certificate",
            "server gave http response to https client",
            "registryunavailable",
            "unexpected eof",
            "client.timeout",
            "context deadline exceeded",
        ],
    ),
    (Reason::NotFound, &["manifest unknown", "name unknown", "repository not found", "not found"]),
];

/// The reason for a failure: `status` is the HTTP status of the runtime's API, where it answered
/// with one; `text` is the runtime's message about `image`, in the answer or in the stream. The
/// image's names in it have no influence.
pub fn classify(status: Option<u16>, text: &str, image: Option<&Reference>) -> Reason {
    match (by_message(text, image), status) {
        (Some(reason), _) => reason,
        (None, Some(400)) => Reason::InvalidImage,
        (None, Some(404)) => Reason::NotFound,
        // Unknown failures are most often caused by the registry, and transient.
        (None, _) => Reason::RegistryUnreachable,
    }
}

/// The reason of a known phrase in the text.
pub(super) fn by_message(text: &str, image: Option<&Reference>) -> Option<Reason> {
    let text = match image {
        Some(image) => without_names(text, image),
        None => text.to_ascii_lowercase(),
    };
    let hit =
        PHRASES.iter().find(|(_, phrases)| phrases.iter().any(|phrase| text.contains(phrase)));
    hit.map(|(reason, _)| *reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Reason::*;

    #[test]
    fn what_runtimes_say_has_a_typed_reason() {
        let table = [
            // dockerd 20.10
            (
                Some(500),
                "Get \"http://r.test/v2/a/manifests/v1\": no basic auth credentials",
                Unauthorized,
            ),
            (
                Some(500),
                "Get \"http://r.test/v2/\": unauthorized: authentication required",
                Unauthorized,
            ),
            (
                Some(404),
                "manifest for r.test/a:v9 not found: manifest unknown: manifest unknown",
                NotFound,
            ),
            (
                Some(404),
                "pull access denied for library/nope, repository does not exist or may require 'docker login': denied: requested access to the resource is denied",
                Unauthorized,
            ),
            (
                None,
                "no matching manifest for linux/amd64 in the manifest list entries",
                PlatformMismatch,
            ),
            (
                Some(400),
                "invalid reference format: repository name must be lowercase",
                InvalidImage,
            ),
            (Some(400), "something new", InvalidImage),
            (
                Some(500),
                "Get \"https://127.0.0.1:1/v2/\": dial tcp 127.0.0.1:1: connect: connection refused",
                RegistryUnreachable,
            ),
            (
                Some(500),
                "Get \"https://r.test/v2/\": x509: certificate signed by unknown authority",
                RegistryUnreachable,
            ),
            (
                Some(500),
                "Get \"https://r.test/v2/\": dial tcp: lookup r.test on 10.0.0.1:53: read udp: i/o timeout",
                RegistryUnreachable,
            ),
            (None, "unexpected EOF", RegistryUnreachable),
            (
                None,
                "write /var/lib/docker/tmp/GetImageBlob1: no space left on device",
                DiskPressure,
            ),
            (None, "missing signature key", InvalidImage),
            (None, "failed to pull and unpack image \"r.test/a:v1\": no signatures", InvalidImage),
            (
                None,
                "unable to try pulling possible OCI artifact: parse manifest from blob: image ID \"00\" is invalid",
                InvalidImage,
            ),
            (
                None,
                "failed to register layer: Error processing tar file(exit status 1)",
                InvalidImage,
            ),
            (None, "failed to register layer: write /x: no space left on device", DiskPressure),
            (Some(500), "toomanyrequests: You have reached your pull rate limit.", RateLimited),
            // dockerd 29
            (
                Some(500),
                "pull access denied, repository does not exist or may require authorization: server message",
                Unauthorized,
            ),
            (
                Some(500),
                "failed to resolve reference \"r.test/a:v1\": unexpected status from HEAD request to https://r.test/v2/a/manifests/v1: 401 Unauthorized",
                Unauthorized,
            ),
            (
                Some(404),
                "failed to resolve reference \"r.test/a:v9\": r.test/a:v9: not found",
                NotFound,
            ),
            (
                Some(404),
                "no matching manifest for linux/amd64 in the manifest list entries",
                PlatformMismatch,
            ),
            (
                Some(400),
                "client version 1.24 is too old. Minimum supported API version is 1.40",
                RuntimeUnavailable,
            ),
            // A damaged store: nothing that the registry says, and nothing that other nodes have.
            (
                None,
                "failed to extract layer sha256:00: failed to get reader from content store: content digest sha256:00: not found",
                RuntimeUnavailable,
            ),
            (None, "failed to get image: content digest sha256:00: not found", RuntimeUnavailable),
            (
                None,
                "failed to prepare extraction snapshot \"extract-1 sha256:00\": parent snapshot sha256:00 does not exist: not found",
                RuntimeUnavailable,
            ),
            (Some(500), "layer does not exist", RuntimeUnavailable),
            (None, "copying layers: layer not known", RuntimeUnavailable),
            // containerd
            (
                None,
                "failed to resolve reference: unexpected status from HEAD request: 401 Unauthorized",
                Unauthorized,
            ),
            (
                None,
                "pull access denied, repository does not exist or may require authorization: authorization failed: no basic auth credentials",
                Unauthorized,
            ),
            (None, "no match for platform in manifest sha256:00: not found", PlatformMismatch),
            (
                None,
                "failed to do request: Head \"https://r.test\": dial tcp: connect: connection refused",
                RegistryUnreachable,
            ),
            // CRI-O
            (
                None,
                "initializing source docker://r.test/a: reading manifest v1: authentication required",
                Unauthorized,
            ),
            (None, "reading manifest v9 in r.test/a: manifest unknown", NotFound),
            (
                None,
                "choosing an image from manifest list: no image found in image index for architecture \"amd64\"",
                PlatformMismatch,
            ),
            (None, "RegistryUnavailable: pinging container registry r.test", RegistryUnreachable),
            (None, "http: server gave HTTP response to HTTPS client", RegistryUnreachable),
            (
                None,
                "SignatureValidationFailed: copying system image from manifest list: Source image rejected: A signature was required, but no signature exists",
                SignatureRejected,
            ),
            (
                None,
                "Source image rejected: Running image docker://r.test/a:v1 is rejected by policy.",
                SignatureRejected,
            ),
            // unknown
            (
                Some(500),
                "received unexpected HTTP status: 503 Service Unavailable",
                RegistryUnreachable,
            ),
            (Some(404), "", NotFound),
            (None, "", RegistryUnreachable),
        ];
        for (status, text, reason) in table {
            let code = status;
            super::super::metamorphic::check(text, reason, |text, image| {
                classify(code, text, Some(image))
            });
        }
    }
}
