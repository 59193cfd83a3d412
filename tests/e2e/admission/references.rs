//! Image references, malformed and well-formed, by the grammar of
//! <https://github.com/distribution/reference/blob/v0.6.0/reference.go>. Written down by hand: no
//! parser, least of all ours, decides which is which.

const LOWER_CASE: &str = "must be lower case";
const TAG: &str = "invalid tag";
const DIGEST: &str = "invalid digest";
const DIGEST_LENGTH: &str = "hexadecimal digits, not 64";
const ALGORITHM: &str = "is not supported: use sha256";
const EMPTY_PART: &str = "has an empty part";
const NAME: &str = "invalid repository name";
const CHARACTER: &str = "invalid character";
const HOST: &str = "invalid registry host";
const SCHEME: &str = "has no scheme";
const IDENTIFIER: &str = "is an image ID";

/// Each with what is wrong about it.
pub const MALFORMED: [(&str, &str); 78] = [
    ("App", LOWER_CASE),
    ("app:", TAG),
    ("app@", DIGEST),
    ("app@sha256:abc", DIGEST_LENGTH),
    (":v1", EMPTY_PART),
    ("-app", NAME),
    ("app-", NAME),
    ("app..b", NAME),
    ("app//b", EMPTY_PART),
    ("/app", EMPTY_PART),
    ("app/", EMPTY_PART),
    ("a b", CHARACTER),
    ("app:v 1", CHARACTER),
    ("app:-v", TAG),
    ("http://app", SCHEME),
    ("app:v1:v2", TAG),
    ("app@sha256", DIGEST),
    ("app@sha256:", DIGEST_LENGTH),
    ("app@md4:0123", ALGORITHM),
    ("app__", NAME),
    ("app___b", NAME),
    (".app", NAME),
    ("app.", NAME),
    ("registry.example.com/", EMPTY_PART),
    ("app@@", DIGEST),
    ("registry.example.com:port/app", HOST),
    ("café", NAME),
    ("app:\u{301}", TAG),
    ("app\tb", CHARACTER),
    ("[::1/app", HOST),
    ("app#1", NAME),
    ("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", IDENTIFIER),
    ("app?x", NAME),
    ("app:v1@sha256:zz", DIGEST),
    ("app;v1", NAME),
    ("$(IMAGE)", LOWER_CASE),
    ("${IMAGE}", LOWER_CASE),
    ("app,b", NAME),
    ("app%20", NAME),
    ("registry.example.com/team/App", LOWER_CASE),
    ("registry.example.com/team/app:", TAG),
    ("registry.example.com/team/app@", DIGEST),
    ("registry.example.com/team/app@sha256:abc", DIGEST_LENGTH),
    ("registry.example.com/team/:v1", EMPTY_PART),
    ("registry.example.com/team/-app", NAME),
    ("registry.example.com/team/app-", NAME),
    ("registry.example.com/team/app..b", NAME),
    ("registry.example.com/team/app//b", EMPTY_PART),
    ("registry.example.com/team//app", EMPTY_PART),
    ("registry.example.com/team/app/", EMPTY_PART),
    ("registry.example.com/team/a b", CHARACTER),
    ("registry.example.com/team/app:v 1", CHARACTER),
    ("registry.example.com/team/app:-v", TAG),
    ("registry.example.com/team/http://app", TAG),
    ("registry.example.com/team/app:v1:v2", TAG),
    ("registry.example.com/team/app@sha256", DIGEST),
    ("registry.example.com/team/app@sha256:", DIGEST_LENGTH),
    ("registry.example.com/team/app@md4:0123", ALGORITHM),
    ("registry.example.com/team/app__", NAME),
    ("registry.example.com/team/app___b", NAME),
    ("registry.example.com/team/.app", NAME),
    ("registry.example.com/team/app.", NAME),
    ("registry.example.com/team/registry.example.com/", EMPTY_PART),
    ("registry.example.com/team/app@@", DIGEST),
    ("registry.example.com/team/registry.example.com:port/app", TAG),
    ("registry.example.com/team/café", NAME),
    ("registry.example.com/team/app:\u{301}", TAG),
    ("registry.example.com/team/app\tb", CHARACTER),
    ("registry.example.com/team/[::1/app", NAME),
    ("registry.example.com/team/app#1", NAME),
    ("registry.example.com/team/app?x", NAME),
    ("registry.example.com/team/UPPER/app", LOWER_CASE),
    ("registry.example.com/team/app:v1@sha256:zz", DIGEST),
    ("registry.example.com/team/app;v1", NAME),
    ("registry.example.com/team/$(IMAGE)", LOWER_CASE),
    ("registry.example.com/team/${IMAGE}", LOWER_CASE),
    ("registry.example.com/team/app,b", NAME),
    ("registry.example.com/team/app%20", NAME),
];

/// Names that may stand alone, and before each of [`SUFFIXES`].
pub const WELL_FORMED: [&str; 12] = [
    "app",
    "team/app",
    "registry.example.com/app",
    "registry.example.com:5000/team/app",
    "localhost/app",
    "127.0.0.1:5000/a/b/c",
    "[::1]:5000/app",
    "app__x",
    "a.b-c/d_e",
    "REGISTRY.example/app",
    // Upper case makes a host of it.
    "UPPER/app",
    // Only alone it is an image ID.
    "registry.example.com/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
];

pub const SUFFIXES: [&str; 5] = [
    "",
    ":v1",
    ":V1.0_x-y",
    "@sha256:abababababababababababababababababababababababababababababababab",
    ":v1@sha256:abababababababababababababababababababababababababababababababab",
];
