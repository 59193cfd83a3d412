//! Plugins are a shell: the folder of plugins has `/bin/sh` under the provider's name, and the arguments are
//! the script. No test waits for a time; each waits for what it needs to see.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::Write;
use std::path::PathBuf;

use super::*;
use imagewarm_core::image::credential_provider::{CallResult, parse_config};

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);
const RESPONSE: &str = r#"{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Registry","auth":{"r.test":{"username":"u","password":"opensesame"}}}"#;

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/bin/sh", folder.path().join("cloud-a")).unwrap();
        Place { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A provider whose plugin runs this script; `$F` is the folder, and `$R` an answer.
    fn provider(&self, script: &str, timeout: Duration) -> CredentialProviders {
        let config = serde_json::json!({
            "kind": "CredentialProviderConfig",
            "apiVersion": "kubelet.config.k8s.io/v1",
            "providers": [{
                "name": "cloud-a",
                "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
                "matchImages": ["r.test", "*.r.test"],
                "defaultCacheDuration": "1h",
                "args": ["-c", script],
                "env": [
                    {"name": "F", "value": self.folder.path()},
                    {"name": "R", "value": RESPONSE},
                ],
            }],
        });
        let config = config.to_string();
        let [config] = <[_; 1]>::try_from(
            parse_config(config.as_bytes(), &mut std::collections::BTreeSet::new()).unwrap(),
        )
        .unwrap();
        let metrics = CredentialProviderMetrics::default();
        let provider = Provider::new(config, self.folder.path(), timeout, metrics);
        CredentialProviders([Arc::new(provider)].into())
    }

    fn shell(&self, script: &str) {
        let mut shell = std::process::Command::new("sh");
        let ended = shell.args(["-c", script]).current_dir(self.folder.path()).status();
        assert!(ended.unwrap().success(), "{script}");
    }

    fn lines(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The line that a plugin writes to this file.
    async fn line(&self, name: &str) -> String {
        until(|| self.lines(name).first().cloned()).await
    }
}

async fn until<T>(seen: impl Fn() -> Option<T>) -> T {
    let poll = async {
        loop {
            match seen() {
                Some(seen) => return seen,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(LIMIT, poll).await.expect("it is seen in time")
}

fn image(name: &str) -> Reference {
    Reference::parse(name).unwrap()
}

async fn failure(providers: &CredentialProviders) -> ProviderFailure {
    let found = providers.lookup(&image("r.test/app")).await;
    assert!(found.credentials.is_empty());
    let [(name, failure)] = found.failures.as_slice() else { panic!("{:?}", found.failures) };
    assert_eq!(name, "cloud-a");
    failure.clone()
}

/// Waits until a process is no more, or waits for its parent to take note of its end.
async fn is_gone(pid: &str) {
    let stat = format!("/proc/{pid}/stat");
    until(|| match std::fs::read_to_string(&stat) {
        Ok(stat) => {
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')).then_some(())
        }
        Err(_) => Some(()),
    })
    .await;
}

#[tokio::test]
async fn one_call_serves_all_images_that_its_answer_is_for() {
    let place = Place::new();
    let providers = place.provider("echo call >> $F/calls; echo \"$R\"", LIMIT);
    let images: Vec<_> = (0..50).map(|number| image(&format!("r.test/app-{number}"))).collect();
    for _ in 0..2 {
        let found = join_all(images.iter().map(|image| providers.lookup(image))).await;
        for found in found {
            assert_eq!(found.failures, []);
            assert_eq!(found.credentials[0].password, "opensesame");
        }
    }
    assert_eq!(place.lines("calls").len(), 1);
    // An answer of another registry, and an image that no provider matches.
    assert!(providers.lookup(&image("x.r.test/app")).await.credentials.is_empty());
    assert_eq!(place.lines("calls").len(), 2);
    let other = providers.lookup(&image("other.test/app")).await;
    assert!(other.is_configured && other.matching.is_empty() && other.credentials.is_empty());
    assert_eq!(place.lines("calls").len(), 2);
}

#[tokio::test]
async fn a_plugin_gets_the_kubelets_request_arguments_and_environment() {
    let place = Place::new();
    let script = "cat > $F/request; echo $HOME$PATH > $F/environment; echo \"$R\"";
    let providers = place.provider(script, LIMIT);
    assert_eq!(providers.lookup(&image("r.test/team/app:v1")).await.credentials.len(), 1);
    let request: serde_json::Value = serde_json::from_str(&place.line("request").await).unwrap();
    let expected = serde_json::json!({
        "kind": "CredentialProviderRequest",
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "image": "r.test/team/app",
    });
    assert_eq!(request, expected);
    let own = |name: &str| std::env::var(name).unwrap_or_default();
    assert_eq!(place.line("environment").await, own("HOME") + &own("PATH"));
}

#[tokio::test]
async fn each_way_to_fail_has_its_reason() {
    let place = Place::new();
    let cases = [
        ("exit 3", ProviderFailure::Exited(3), CallResult::Crashed),
        ("kill -9 $$", ProviderFailure::Signalled(9), CallResult::Crashed),
        ("exit 0", ProviderFailure::NoAnswer, CallResult::Malformed),
        ("echo opensesame", ProviderFailure::Malformed("it is not JSON"), CallResult::Malformed),
        ("head -c 1100000 /dev/zero; sleep 1000", ProviderFailure::TooLong, CallResult::Malformed),
        // An answer before a bad end is none.
        ("echo \"$R\"; exit 1", ProviderFailure::Exited(1), CallResult::Crashed),
    ];
    for (script, expected, result) in cases {
        let providers = place.provider(script, LIMIT);
        let failure = failure(&providers).await;
        assert_eq!((failure.result(), &failure), (result, &expected), "{script}");
    }
    let providers = place.provider("exit 0", LIMIT);
    std::fs::remove_file(place.path("cloud-a")).unwrap();
    assert_eq!(failure(&providers).await, ProviderFailure::Missing);
    // Written by another process: in this one, a fork of another test might hold the file open.
    place.shell("printf '#!/no/such/shell\\n' > cloud-a && chmod +x cloud-a");
    assert_eq!(failure(&place.provider("", LIMIT)).await, ProviderFailure::NoInterpreter);
    place.shell("chmod -x cloud-a");
    assert!(matches!(failure(&place.provider("", LIMIT)).await, ProviderFailure::NotStarted(_)));
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_with_what_it_started() {
    let place = Place::new();
    let script = "sleep 1000 & echo $! > $F/child; echo $$ > $F/self; wait";
    let providers = place.provider(script, Duration::from_secs(1));
    let images: Vec<_> = (0..9).map(|number| image(&format!("r.test/{number}"))).collect();
    let found = join_all(images.iter().map(|image| providers.lookup(image))).await;
    for found in found {
        assert_eq!(found.failures, [("cloud-a".into(), ProviderFailure::TimedOut(1))]);
    }
    for file in ["self", "child"] {
        is_gone(&place.line(file).await).await;
    }
}

#[tokio::test]
async fn a_pull_that_is_cancelled_neither_stops_nor_repeats_the_call() {
    let place = Place::new();
    let script = "echo call >> $F/calls; until test -e $F/go; do sleep 0.01; done; echo \"$R\"";
    let providers = place.provider(script, LIMIT);
    let first = tokio::spawn({
        let providers = providers.clone();
        async move { providers.lookup(&image("r.test/a")).await }
    });
    place.line("calls").await;
    let second = tokio::spawn({
        let providers = providers.clone();
        async move { providers.lookup(&image("r.test/b")).await }
    });
    first.abort();
    assert!(first.await.is_err_and(|error| error.is_cancelled()));
    std::fs::write(place.path("go"), "").unwrap();
    assert_eq!(second.await.unwrap().credentials.len(), 1);
    // Nor is the answer lost where all are cancelled.
    assert_eq!(providers.lookup(&image("r.test/a")).await.credentials.len(), 1);
    assert_eq!(place.lines("calls").len(), 1);
}

#[tokio::test]
async fn plugins_end_with_the_warmer() {
    for by_drop in [false, true] {
        let place = Place::new();
        let providers = place.provider("echo $$ > $F/self; sleep 1000", LIMIT);
        let waiting = tokio::spawn({
            let providers = providers.clone();
            async move { providers.lookup(&image("r.test/a")).await }
        });
        let pid = place.line("self").await;
        if by_drop {
            waiting.abort();
            assert!(waiting.await.is_err());
            drop(providers);
        } else {
            providers.shutdown().await;
            let found = waiting.await.unwrap();
            assert_eq!(found.failures, [("cloud-a".into(), ProviderFailure::Abandoned)]);
        }
        is_gone(&pid).await;
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// One thread: all that is logged is logged to this test's own log.
#[tokio::test]
async fn what_a_plugin_writes_is_in_no_log() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let place = Place::new();
    for script in [
        "echo opensesame >&2; echo \"$R\"",
        "echo opensesame >&2; echo opensesame",
        "echo $R; exit 1",
    ] {
        place.provider(script, LIMIT).lookup(&image("r.test/app")).await;
    }
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(!log.contains("opensesame"), "{log}");
    let failed = "credential provider failed";
    assert_eq!(log.matches(failed).count(), 2, "{log}");
    assert!(log.contains("provider=\"cloud-a\"") && log.contains("kind=\"Malformed\""), "{log}");
}
