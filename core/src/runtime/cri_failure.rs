//! Maps gRPC errors of containerd and CRI-O to typed reasons. Codes are imprecise (most failures
//! are `Unknown`, and a missing platform is `NotFound`), so the text decides first. Pure.

use super::failure;
use crate::api::Reason;
use crate::image::Reference;

/// The gRPC status codes that affect the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// 1.
    Cancelled,
    /// 3.
    InvalidArgument,
    /// 4.
    DeadlineExceeded,
    /// 5.
    NotFound,
    /// 7.
    PermissionDenied,
    /// 12.
    Unimplemented,
    /// 14.
    Unavailable,
    /// 16.
    Unauthenticated,
    /// Any other, most often 2 (`UNKNOWN`).
    Unknown,
}

impl From<i32> for Code {
    /// By the number of <https://grpc.io/docs/guides/status-codes/>.
    fn from(number: i32) -> Self {
        match number {
            1 => Code::Cancelled,
            3 => Code::InvalidArgument,
            4 => Code::DeadlineExceeded,
            5 => Code::NotFound,
            7 => Code::PermissionDenied,
            12 => Code::Unimplemented,
            14 => Code::Unavailable,
            16 => Code::Unauthenticated,
            _ => Code::Unknown,
        }
    }
}

/// The reason for a failure of `image` that the runtime reported. The image's names in the text have
/// no influence.
pub fn classify(code: Code, text: &str, image: Option<&Reference>) -> Reason {
    match code {
        // An image in a format that containerd no longer takes.
        Code::Unimplemented if text.contains("media type ") => return Reason::InvalidImage,
        // The node's containerd answers, but without the interface: as Docker's own does.
        Code::Unimplemented => return Reason::RuntimeUnavailable,
        // The server's deadline, not ours: the runtime stopped a pull without progress.
        Code::Cancelled => return Reason::TimedOut,
        // containerd is pulling the same content for somebody else.
        Code::Unavailable if text.contains(" locked for ") => return Reason::Pulling,
        // One part of the runtime does not reach another.
        Code::Unavailable if text.contains("dial unix") => return Reason::RuntimeUnavailable,
        _ => {}
    }
    failure::by_message(text, image).unwrap_or(match code {
        Code::NotFound => Reason::NotFound,
        Code::InvalidArgument => Reason::InvalidImage,
        Code::PermissionDenied | Code::Unauthenticated => Reason::Unauthorized,
        Code::DeadlineExceeded => Reason::TimedOut,
        Code::Unavailable => Reason::RuntimeUnavailable,
        // Unknown failures are most often caused by the registry, and transient.
        _ => Reason::RegistryUnreachable,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use Reason::*;

    #[test]
    fn what_cri_runtimes_say_has_a_typed_reason() {
        let table = [
            // containerd 1.6
            (
                Code::Unknown,
                "failed to pull and unpack image \"r.test/a:v1\": failed to resolve reference \"r.test/a:v1\": unexpected status code [manifests v1]: 401 Unauthorized",
                Unauthorized,
            ),
            (
                Code::NotFound,
                "failed to pull and unpack image \"r.test/a:v9\": failed to resolve reference \"r.test/a:v9\": r.test/a:v9: not found",
                NotFound,
            ),
            (
                Code::NotFound,
                "failed to pull and unpack image \"r.test/a:v1\": no match for platform in manifest sha256:00: not found",
                PlatformMismatch,
            ),
            (
                Code::Unknown,
                "failed to pull and unpack image: failed to resolve reference: failed to do request: Head \"https://127.0.0.1:1/v2/a/manifests/v1\": dial tcp 127.0.0.1:1: connect: connection refused",
                RegistryUnreachable,
            ),
            (
                Code::Unknown,
                "failed to pull and unpack image: failed to copy: httpReadSeeker: failed open: unexpected EOF",
                RegistryUnreachable,
            ),
            (Code::Unknown, "x509: certificate signed by unknown authority", RegistryUnreachable),
            (
                Code::Unknown,
                "failed to copy: write /var/lib/containerd/io.containerd.content.v1.content/ingest/1/data: no space left on device",
                DiskPressure,
            ),
            (Code::Unknown, "unexpected status code: 429 Too Many Requests", RateLimited),
            (Code::InvalidArgument, "failed to parse image reference", InvalidImage),
            (Code::Unimplemented, "unknown service runtime.v1.ImageService", RuntimeUnavailable),
            (
                Code::Unavailable,
                "connection error: desc = \"transport: Error while dialing: dial unix /run/containerd/containerd.sock: connect: connection refused\"",
                RuntimeUnavailable,
            ),
            (Code::Unavailable, "server is not initialized yet", RuntimeUnavailable),
            // containerd 2
            (
                Code::Unimplemented,
                "failed to pull and unpack image \"r.test/a:v1\": failed to resolve image: not implemented: media type \"application/vnd.docker.distribution.manifest.v1+prettyjws\" is no longer supported since containerd v2.1, please rebuild the image as \"application/vnd.docker.distribution.manifest.v2+json\"",
                InvalidImage,
            ),
            (
                Code::Unavailable,
                "failed to pull and unpack image \"r.test/a:v1\": failed to copy: ref layer-sha256:00 locked for 1.2s (since 2026-01-01 00:00:00 +0000 UTC): unavailable",
                Pulling,
            ),
            // containerd 2.2
            (
                Code::Unknown,
                "pull access denied, repository does not exist or may require authorization: authorization failed: no basic auth credentials",
                Unauthorized,
            ),
            (
                Code::Unknown,
                "unexpected status from HEAD request to https://r.test/v2/a/manifests/v1: 401 Unauthorized",
                Unauthorized,
            ),
            (Code::NotFound, "r.test/a:v9: not found", NotFound),
            (
                Code::NotFound,
                "no match for platform in manifest sha256:00: not found",
                PlatformMismatch,
            ),
            (
                Code::Cancelled,
                "failed to pull and unpack image \"r.test/a:v1\": context canceled",
                TimedOut,
            ),
            (
                Code::NotFound,
                "failed to pull and unpack image \"r.test/a:v1\": failed to extract layer sha256:00: failed to get reader from content store: content digest sha256:00: not found",
                RuntimeUnavailable,
            ),
            (Code::PermissionDenied, "unexpected status from GET request", Unauthorized),
            // CRI-O
            (
                Code::Unknown,
                "initializing source docker://r.test/a:v1: reading manifest v1 in r.test/a: authentication required",
                Unauthorized,
            ),
            (Code::Unknown, "reading manifest v9 in r.test/a: manifest unknown", NotFound),
            (
                Code::Unknown,
                "choosing an image from manifest list docker://r.test/a:v1: no image found in image index for architecture \"amd64\", variant \"\", OS \"linux\"",
                PlatformMismatch,
            ),
            (
                Code::Unknown,
                "RegistryUnavailable: pinging container registry r.test: Get \"https://r.test/v2/\": dial tcp: connect: connection refused",
                RegistryUnreachable,
            ),
            (
                Code::Unknown,
                "pinging container registry 127.0.0.1:1: Get \"https://127.0.0.1:1/v2/\": http: server gave HTTP response to HTTPS client",
                RegistryUnreachable,
            ),
            (Code::Unknown, "copying system image: unexpected EOF", RegistryUnreachable),
            // nobody's words
            (Code::Unknown, "", RegistryUnreachable),
            (Code::NotFound, "", NotFound),
            (Code::DeadlineExceeded, "", TimedOut),
        ];
        for (code, text, reason) in table {
            super::super::metamorphic::check(text, reason, |text, image| {
                classify(code, text, Some(image))
            });
        }
    }

    #[test]
    fn codes_have_the_numbers_of_grpc() {
        let known = [
            (1, Code::Cancelled),
            (3, Code::InvalidArgument),
            (4, Code::DeadlineExceeded),
            (5, Code::NotFound),
            (7, Code::PermissionDenied),
            (12, Code::Unimplemented),
            (14, Code::Unavailable),
            (16, Code::Unauthenticated),
        ];
        for number in -1..20 {
            let expected = known.iter().find(|(known, _)| *known == number);
            let expected = expected.map_or(Code::Unknown, |(_, code)| *code);
            assert_eq!(Code::from(number), expected, "{number}");
        }
    }
}
