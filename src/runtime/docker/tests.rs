//! Responses of dockerd, verbatim, and their interpretation.
#![allow(clippy::unwrap_used)]
use super::*;

fn line(json: serde_json::Value) -> CreateImageInfo {
    serde_json::from_value(json).unwrap()
}

#[test]
fn progress_sums_the_layers_and_the_last_line_decides() {
    let mut output = PullOutput::default();
    let mut last = None;
    for json in [
        serde_json::json!({"status": "Pulling from app", "id": "v1"}),
        serde_json::json!({"status": "Pulling fs layer", "progressDetail": {}, "id": "a"}),
        serde_json::json!({"status": "Downloading", "progressDetail": {"current": 5, "total": 10}, "id": "a"}),
        serde_json::json!({"status": "Downloading", "progressDetail": {"current": 1, "total": 4}, "id": "b"}),
        serde_json::json!({"status": "Download complete", "progressDetail": {}, "id": "a"}),
        serde_json::json!({"status": "Extracting", "progressDetail": {"current": 2, "total": 10}, "id": "a"}),
    ] {
        last = output.take(&line(json)).or(last);
    }
    assert_eq!(last, Some(PullProgress { downloaded_bytes: 11, total_bytes: 14 }));
    assert_eq!(output.downloaded, None);
    let retrying = serde_json::json!({"status": "Retrying in 5 seconds", "id": "b"});
    assert_eq!(output.take(&line(retrying)), None);
    output.take(&line(serde_json::json!({"status": "Digest: sha256:00"})));
    assert_eq!(output.digest, None, "no digest");
    let digest = format!("sha256:{}", "0a".repeat(32));
    output.take(&line(serde_json::json!({"status": format!("Digest: {digest}")})));
    output.take(&line(serde_json::json!({"status": "Status: Downloaded newer image for app:v1"})));
    assert_eq!((output.digest.as_deref(), output.downloaded), (Some(&*digest), Some(true)));
    output.take(&line(serde_json::json!({"status": "Status: Image is up to date for app:v1"})));
    assert_eq!(output.downloaded, Some(false));
}

#[test]
fn docker_hub_is_found_in_both_spellings() {
    let names = |text: &str| spellings(&Reference::parse(text).unwrap());
    assert_eq!(names("busybox"), ["docker.io/library/busybox:latest", "busybox:latest"]);
    assert_eq!(names("docker.io/team/app:v1"), ["docker.io/team/app:v1", "team/app:v1"]);
    assert_eq!(names("r.test/app:v1"), ["r.test/app:v1"]);
}

#[test]
fn credentials_are_sent_in_the_alphabet_that_dockerd_reads() {
    let request = http::Request::builder().header("X-Registry-Auth", "ab+/cd==");
    let body = bollard::body_full(bytes::Bytes::new());
    let request = with_url_safe_credential(request.body(body).unwrap());
    assert_eq!(request.headers()["X-Registry-Auth"], "ab-_cd==");
}

#[test]
fn platforms_differ_only_where_both_are_known() {
    let engine = RuntimeVersion {
        name: "docker".into(),
        version: "1".into(),
        os: "linux".into(),
        architecture: "amd64".into(),
    };
    assert!(same_platform((Some("linux"), Some("amd64")), &engine));
    assert!(same_platform((None, Some("")), &engine));
    assert!(same_platform((Some("linux"), Some("386")), &engine));
    assert!(!same_platform((Some("linux"), Some("arm64")), &engine));
    assert!(!same_platform((Some("windows"), Some("386")), &engine));
}

#[test]
fn failures_are_short_and_hold_no_key() {
    let table = [
        ("  no such\n\timage\u{7} ", "no such image"),
        (
            "Get \"https://u:p@blobs.test/a/b?X-Signature=abc&x=1\": EOF",
            "Get \"https://blobs.test/a/b?…\": EOF",
        ),
        ("from https://blobs.test/a?sig=abc: EOF", "from https://blobs.test/a?…: EOF"),
        ("Head \"http://r.test/v2/\": refused", "Head \"http://r.test/v2/\": refused"),
    ];
    for (message, expected) in table {
        let error = failure(Error::DockerStreamError { error: message.into() }, None);
        assert_eq!(error.message, expected);
    }
    let long = failure(Error::DockerStreamError { error: "ä".repeat(5_000) }, None);
    // Whole characters, and the mark of what was left out.
    assert_eq!(long.message, ["ä".repeat((LONGEST_MESSAGE - 3) / 2), "…".into()].concat());

    let credential = Credential {
        username: "u".into(),
        password: "hunter22".into(),
        identity_token: String::new(),
        registry_token: String::new(),
    };
    let error = RuntimeError { reason: Reason::Unauthorized, message: "u:hunter22 no".into() };
    assert_eq!(without(Some(&credential), error).message, "u:… no");
}

/// Serves each request the next of `answers`, status and body; returns the requests' heads.
async fn dockerd(
    answers: &'static [(&'static str, &'static str)],
) -> (tempfile::TempDir, Docker, tokio::task::JoinHandle<Vec<String>>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("docker.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let served = tokio::spawn(async move {
        let mut heads = Vec::new();
        for (status, body) in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            heads.push(String::from_utf8(head).unwrap());
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        heads
    });
    let docker = Docker::connect(&socket).unwrap();
    (folder, docker, served)
}

async fn pulled(
    image: &str,
    answers: &'static [(&'static str, &'static str)],
) -> (Result<PulledImage, RuntimeError>, Vec<String>) {
    let (_folder, docker, served) = dockerd(answers).await;
    let image = Reference::parse(image).unwrap();
    let credential = Credential {
        username: "user".into(),
        password: "??>>~~pass".into(),
        identity_token: String::new(),
        registry_token: String::new(),
    };
    let result = docker.pull_image(&image, Some(&credential), &|_| {}).await;
    (result, served.await.unwrap())
}

#[tokio::test]
async fn a_pull_without_its_last_line_has_failed() {
    let (result, heads) =
        pulled("r.test/app:v1", &[("200 OK", "{\"status\":\"Digest: sha256:00\"}\n")]).await;
    assert_eq!(result.unwrap_err().reason, Reason::RuntimeUnavailable);
    let head = heads[0].to_ascii_lowercase();
    assert!(head.contains("tag=v1"), "{head}");
    let sent = head.split("x-registry-auth: ").nth(1).unwrap().lines().next().unwrap();
    assert!(sent.len() > 20 && !sent.contains(['+', '/']), "{sent}");

    let answers = &[(
        "200 OK",
        r#"{"errorDetail":{"message":"no space left on device"},"error":"no space left on device"}"#,
    )];
    assert_eq!(pulled("r.test/app:v1", answers).await.0.unwrap_err().reason, Reason::DiskPressure);
}

#[tokio::test]
async fn no_pull_is_without_a_tag_or_digest() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let table = [
        ("r.test/app".to_owned(), "tag=latest".to_owned()),
        (format!("r.test/app:v1@{digest}"), format!("tag={}", digest.replace(':', "%3a"))),
    ];
    for (image, tag) in table {
        let (_, heads) =
            pulled(&image, &[("500 Internal Server Error", "{\"message\":\"x\"}")]).await;
        let head = heads[0].to_ascii_lowercase();
        assert!(head.contains(&tag), "{head}");
    }
}

#[tokio::test]
async fn an_image_for_another_platform_is_not_there() {
    let answers = &[
        ("200 OK", "{\"Id\":\"x\",\"Os\":\"linux\",\"Architecture\":\"s390x\"}"),
        ("200 OK", "{\"ApiVersion\":\"1.41\",\"Os\":\"linux\",\"Arch\":\"amd64\"}"),
        ("200 OK", "{\"ApiVersion\":\"1.41\",\"Os\":\"linux\",\"Arch\":\"amd64\"}"),
    ];
    let (_folder, docker, served) = dockerd(answers).await;
    let image = Reference::parse("r.test/app:v1").unwrap();
    assert_eq!(docker.present(&image, &Sandboxes::new("team", &[])).await, Ok(None));
    assert_eq!(served.await.unwrap().len(), 3);
}
