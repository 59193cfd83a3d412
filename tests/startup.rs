//! What the program says of input that it cannot start with, as a user meets it: one line that names
//! what is wrong and where, and an exit code. The real binary is run, in an empty environment.
#![allow(clippy::panic)]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::CommandFactory;
use imagewarm::cli::Cli;

/// Longer than any of these takes; a program that starts in spite of its input is ended then.
const LIMIT: Duration = Duration::from_secs(60);

struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// A folder with the home of the user, and the files of one test.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Place(tempfile::tempdir().expect("there is room for a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.path(name), text).expect("there is room for a file");
        self.path(name)
    }

    /// A kubeconfig for `server`, with more fields of its cluster and its user.
    fn kubeconfig(&self, server: &str, cluster: &str, user: &str) -> PathBuf {
        self.write(
            "kubeconfig",
            &format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
                 contexts: [{{name: here, context: {{cluster: it, user: me}}}}]\n\
                 clusters: [{{name: it, cluster: {{server: '{server}'{cluster}}}}}]\n\
                 users: [{{name: me, user: {{token: opensesame{user}}}}}]\n"
            ),
        )
    }

    fn run(&self, words: &[&str]) -> Outcome {
        self.run_with(words, &[])
    }

    fn run_with(&self, words: &[&str], environment: &[(&str, &Path)]) -> Outcome {
        let child = Command::new(env!("CARGO_BIN_EXE_imagewarm"))
            .args(words)
            .env_clear()
            .env("HOME", self.0.path())
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = child.expect("the program is built");
        let stdout = read_all(child.stdout.take().expect("piped"));
        let stderr = read_all(child.stderr.take().expect("piped"));
        let status = wait(&mut child);
        let stdout = stdout.join().expect("the reader ends");
        let stderr = stderr.join().expect("the reader ends");
        let status = status.unwrap_or_else(|| panic!("{words:?} still runs: {stdout}{stderr}"));
        Outcome { code: status.code(), stdout, stderr }
    }

    /// Runs and expects one line on standard error that has all of `parts`, and exit code 1.
    fn fails(&self, words: &[&str], parts: &[&str]) {
        self.run(words).is_one_line(words, parts);
    }
}

impl Outcome {
    fn is_one_line(&self, words: &[&str], parts: &[&str]) {
        let Outcome { code, stdout, stderr } = self;
        assert_eq!(*code, Some(1), "{words:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{words:?}: {stderr}");
        assert!(stderr.starts_with("imagewarm: "), "{words:?}: {stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{words:?}: no {part:?} in {stderr}");
        }
        // Not even where it is the credential's own file that is wrong.
        assert!(!stderr.contains("opensesame"), "{words:?}: {stderr}");
        assert_eq!(stdout, "", "{words:?}");
    }
}

fn read_all(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut text = Vec::new();
        // A broken pipe ends the text.
        let _ = pipe.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// `None` when it had to be killed.
fn wait(child: &mut Child) -> Option<ExitStatus> {
    let began = Instant::now();
    while began.elapsed() < LIMIT {
        if let Some(status) = child.try_wait().expect("it is our child") {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(10));
    }
    child.kill().expect("it is our child");
    child.wait().expect("it is our child");
    None
}

fn controller<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["controller", "--dispatch-advertise=10.0.0.1:8444", "--log-level=info"], more].concat()
}

/// An API server that knows its version and nothing else. It ends with the test's process.
fn version_server(minor: &str) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let body = format!(
        r#"{{"major":"1","minor":"{minor}","gitVersion":"v1.{minor}.0","gitCommit":"","gitTreeState":"","buildDate":"","goVersion":"","compiler":"","platform":""}}"#
    );
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let _ = stream.read(&mut [0; 4096]);
            let length = body.len();
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\
                 content-length: {length}\r\nconnection: close\r\n\r\n{body}"
            );
        }
    });
    format!("http://{address}")
}

#[test]
fn no_kubeconfig() {
    let place = Place::new();
    for words in [controller(&[]), vec!["status"]] {
        place.fails(&words, &["no kubeconfig found", "--kubeconfig FILE", "KUBECONFIG"]);
    }
    let missing = place.path("missing");
    let file = missing.to_str().expect("UTF-8");
    for words in [controller(&[]), vec!["status"]] {
        let with_flag = [words.as_slice(), &["--kubeconfig", file]].concat();
        place.fails(&with_flag, &["cannot use the kubeconfig", file, "No such file"]);
        let outcome = place.run_with(&words, &[("KUBECONFIG", &missing)]);
        outcome.is_one_line(&words, &["cannot use the kubeconfig", file, "No such file"]);
        let outcome = place.run_with(&words, &[("IMAGEWARM_KUBECONFIG", &missing)]);
        outcome.is_one_line(&words, &["cannot use the kubeconfig", file, "No such file"]);
    }
}

#[test]
fn unusable_kubeconfig() {
    let place = Place::new();
    let texts = [
        ("a: [b\n c: : opensesame\n", "YAML"),
        ("token: opensesame\nclusters: 7\n", "YAML"),
        ("", "current context"),
        ("\0\u{1}", "YAML"),
    ];
    for (text, part) in texts {
        let file = place.write("broken", text);
        let file = file.to_str().expect("UTF-8");
        for words in [controller(&["--kubeconfig", file]), vec!["status", "--kubeconfig", file]] {
            place.fails(&words, &["cannot use the kubeconfig", file, part]);
        }
    }
    // The user's own file, which nobody named.
    fs::create_dir(place.path(".kube")).expect("there is room for a folder");
    place.write(".kube/config", "a: [b\n c: : opensesame\n");
    place.fails(&controller(&[]), &["cannot use the kubeconfig ~/.kube/config", "line 2"]);
}

#[test]
fn unusable_parts_of_a_kubeconfig() {
    let place = Place::new();
    // As openssl x509 -req issues it without extensions.
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/certificates");
    let version_1 =
        format!(", client-certificate: {folder}/version-1.crt, client-key: {folder}/version-1.key");
    let table = [
        (", certificate-authority: /nowhere/ca.crt", "", vec!["/nowhere/ca.crt", "No such file"]),
        (", certificate-authority: /", "", vec!["certificate authority", "\"/\""]),
        (", certificate-authority-data: '!'", "", vec!["certificate authority", "base64"]),
        (
            "",
            ", client-certificate: /nowhere/me.crt, client-key: /nowhere/me.key",
            vec!["client certificate", "/nowhere/me.crt", "No such file"],
        ),
        (
            "",
            &version_1,
            vec!["client certificate of the kubeconfig", "X.509 version 1", "version 3"],
        ),
    ];
    for (cluster, user, parts) in table {
        let file = place.kubeconfig("https://127.0.0.1:1", cluster, user);
        let file = file.to_str().expect("UTF-8");
        for words in [controller(&["--kubeconfig", file]), vec!["status", "--kubeconfig", file]] {
            place.fails(&words, &parts);
        }
    }
    let file = place.kubeconfig("https://127.0.0.1:1", "", "");
    let file = file.to_str().expect("UTF-8");
    let words = ["status", "--kubeconfig", file, "--context", "elsewhere"];
    place.fails(&words, &[file, "elsewhere"]);
}

#[test]
fn api_server_that_does_not_answer_or_is_too_old() {
    let place = Place::new();
    // Port 1 is nobody's, and no port that a test is given.
    let file = place.kubeconfig("http://127.0.0.1:1", "", "");
    let file = file.to_str().expect("UTF-8");
    let words = controller(&["--kubeconfig", file]);
    place.fails(&words, &["cannot reach the API server", "Connection refused"]);
    let words = ["status", "--kubeconfig", file];
    place.fails(&words, &["cannot list ImageWarms", "Connection refused"]);

    let file = place.kubeconfig(&version_server("31"), "", "");
    let file = file.to_str().expect("UTF-8");
    place.fails(&controller(&["--kubeconfig", file]), &["Kubernetes v1.31.0", "1.32"]);
}

#[test]
fn contradictory_lease_times() {
    let place = Place::new();
    for more in [
        ["--lease-duration=10s", "--lease-renew-deadline=10s"],
        ["--lease-duration=15s", "--lease-retry=1m"],
        ["--lease-duration=15500ms", "--lease-retry=2s"],
    ] {
        // Found before anything is asked of the API server.
        let parts = ["--lease-duration", "--lease-renew-deadline", "--lease-retry"];
        place.fails(&controller(&more), &parts);
    }
}

#[test]
fn port_that_is_taken() {
    let place = Place::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let taken = listener.local_addr().expect("it is bound").to_string();
    let parts = ["cannot listen on", taken.as_str(), "in use"];
    place.fails(&["warmer", "--health-listen", &taken], &parts);

    let file = place.kubeconfig(&version_server("33"), "", "");
    let file = file.to_str().expect("UTF-8");
    let flags = ["--webhook-listen", "--dispatch-listen", "--health-listen"];
    for flag in flags {
        let mut words = controller(&["--kubeconfig", file, "--log-level=error"]);
        words.retain(|word| *word != "--log-level=info");
        for other in flags {
            words.extend([other, if other == flag { &taken } else { "127.0.0.1:0" }]);
        }
        place.fails(&words, &parts);
    }
}

#[test]
fn unusable_runtime() {
    let place = Place::new();
    let file = place.write("file", "");
    let endpoint = format!("unix://{}", file.display());
    let table = [
        ("unix:///nowhere/docker.sock", vec!["no runtime socket at /nowhere/docker.sock"]),
        ("tcp://127.0.0.1:2375", vec!["tcp://127.0.0.1:2375", "unix://"]),
        ("npipe:////./pipe/docker", vec!["npipe:", "unix://"]),
        ("/var/run/docker.sock", vec!["/var/run/docker.sock", "unix://"]),
        ("unix://relative.sock", vec!["unix://relative.sock", "must look like"]),
        (endpoint.as_str(), vec![file.to_str().expect("UTF-8"), "is not a socket"]),
    ];
    for (endpoint, parts) in table {
        let words = ["warmer", "--health-listen=127.0.0.1:0", "--runtime-endpoint", endpoint];
        place.fails(&words, &parts);
    }
}

#[test]
fn what_credential_providers_need() {
    const RIGHT: &str = "kind: CredentialProviderConfig\napiVersion: kubelet.config.k8s.io/v1\n\
        providers:\n- name: cloud-a\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  \
        defaultCacheDuration: 12h\n  matchImages: [r.test]\n";
    let place = Place::new();
    let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let bin_dir = path(place.0.path());
    let config = path(&place.write("right.yaml", RIGHT));
    let tokens = RIGHT.to_owned() + "  tokenAttributes: {requireServiceAccount: true}\n";
    let tokens = path(&place.write("tokens.yaml", &tokens));
    let variable = RIGHT.to_owned() + "  env: [{name: KEY, valeu: opensesame}]\n";
    let variable = path(&place.write("variable.yaml", &variable));
    let syntax = path(&place.write("syntax.json", "{\"kind\": opensesame}"));
    let long = path(&place.write("long.yaml", &"#".repeat((1 << 20) + 1)));
    let folder = path(&place.path("folder"));
    fs::create_dir_all(place.path("folder/empty")).expect("a folder");
    let empty = path(&place.path("folder/empty"));
    place.write("folder/a.yaml", RIGHT);
    place.write("folder/b.yml", RIGHT);
    place.write("folder/notes.txt", "no configuration");
    let absent = path(&place.path("absent"));
    let (file, folders) =
        ("--image-credential-provider-config", "--image-credential-provider-bin-dir");
    for (config, bin_dir, parts) in [
        (Some(&config), None, vec![file, "is set", folders, "is not", "set both, or neither"]),
        (None, Some(&bin_dir), vec![folders, "is set", file, "is not"]),
        (Some(&config), Some(&absent), vec![folders, &absent, "is not a directory"]),
        (Some(&config), Some(&config), vec![folders, "is not a directory"]),
        (Some(&absent), Some(&bin_dir), vec![file, &absent, "cannot be read", "No such file"]),
        (Some(&empty), Some(&bin_dir), vec![file, &empty, ".json, .yaml or .yml"]),
        (Some(&long), Some(&bin_dir), vec![file, &long, "longer than 1048576 bytes"]),
        (Some(&syntax), Some(&bin_dir), vec![&syntax, "is not JSON", "line 1"]),
        (Some(&variable), Some(&bin_dir), vec!["providers[0].env[0].\"valeu\"", "name, value"]),
        (
            Some(&tokens),
            Some(&bin_dir),
            vec!["providers[0].tokenAttributes: is not supported", "imagePullSecrets"],
        ),
        (Some(&folder), Some(&bin_dir), vec!["b.yml: providers[0].name", "another provider"]),
    ] {
        let mut words = vec!["warmer", "--health-listen=127.0.0.1:0"];
        words.extend(config.into_iter().flat_map(|config| [file, config.as_str()]));
        words.extend(bin_dir.into_iter().flat_map(|bin_dir| [folders, bin_dir.as_str()]));
        place.fails(&words, &parts);
    }
}

#[test]
fn thresholds_that_no_kubelet_takes_are_named() {
    let words = ["warmer", "--health-listen=127.0.0.1:0", "--image-gc-high-threshold=75%"];
    let parts = ["--image-gc-low-threshold 80%", "--image-gc-high-threshold 75%", "kubelet"];
    Place::new().fails(&words, &parts);
}

#[test]
fn bad_flag_values_are_wrong_usage() {
    let place = Place::new();
    let table = [
        ("controller", "--lease-retry", "soon", "5s"),
        ("controller", "--lease-retry", "0s", "positive"),
        ("controller", "--collect-grace", "-1s", "5s"),
        ("controller", "--repair-delay", "5", "5s"),
        ("controller", "--webhook-idle-timeout", "3 fortnights", "5s"),
        ("controller", "--waiting-after", "", "5s"),
        ("controller", "--dispatch-connections", "0", "at least 1"),
        ("controller", "--dispatch-connections", "0", "at least 1"),
        ("controller", "--fan-out-queue", "0", "at least 1"),
        ("controller", "--fan-out-concurrency", "many", "at least 1"),
        ("controller", "--repair-concurrency", "0", "1..=1024"),
        ("controller", "--webhook-max-connections", "0", "1..="),
        ("controller", "--webhook-max-body", "0", "1.."),
        ("controller", "--webhook-listen", "here", "address"),
        ("controller", "--dispatch-listen", ":8444", "address"),
        ("controller", "--health-listen", "[::]:70000", "address"),
        ("controller", "--paused", "maybe", "boolean"),
        ("controller", "--publish-ca-bundle", "maybe", "boolean"),
        ("controller", "--publish-webhook-paths", "maybe", "boolean"),
        ("controller", "--dispatch-advertise", "nowhere", "host:port"),
        ("controller", "--log-level", "loud", "info"),
        ("controller", "--log-format", "xml", "json"),
        ("warmer", "--parallel-pulls", "0", "1..=64"),
        ("warmer", "--max-pulls-per-registry", "0", "1..=64"),
        ("warmer", "--keep-free-disk", "15", "15%"),
        ("warmer", "--pin-share", "0.3", "15%"),
        ("warmer", "--image-gc-high-threshold", "85", "15%"),
        ("warmer", "--image-gc-low-threshold", "100%", "15%"),
        ("warmer", "--assumed-image-size", "1MB", "512Mi"),
        ("warmer", "--pull-idle-timeout", "10ms", "2m"),
        ("warmer", "--presence-interval", "never", "1m30s"),
        ("warmer", "--dispatch-server", "http://controller:8444", "https://"),
        ("warmer", "--health-listen", "8080", "address"),
        ("warmer", "--log-level", "", "info"),
        ("status", "--output", "xml", "yaml"),
        ("status", "--image", "App", "lower case"),
        ("check", "--output", "yaml", "json"),
        ("wait", "--timeout", "soon", "5s"),
    ];
    for (command, flag, value, right) in table {
        let assignment = format!("{flag}={value}");
        let outcome = place.run(&[command, &assignment]);
        let stderr = &outcome.stderr;
        assert_eq!(outcome.code, Some(2), "{assignment}: {stderr}");
        let first = stderr.lines().next().unwrap_or_default();
        for part in ["error: ", flag, value] {
            assert!(first.contains(part), "{assignment}: no {part:?} in {stderr}");
        }
        assert!(stderr.contains(right), "{assignment}: no {right:?} in {stderr}");
        assert_eq!(outcome.stdout, "", "{assignment}");
    }
}

#[test]
fn wrong_usage() {
    let place = Place::new();
    for (words, part) in [
        (vec![], "Usage: imagewarm"),
        (vec!["melt"], "'melt'"),
        (vec!["check", "--timeout", "5s"], "--wait"),
        (vec!["wait", "service/Hello"], "is no name of an object"),
        (vec!["why"], "<TARGET>"),
        (vec!["warm"], "<IMAGE>"),
        (vec!["warm", "App"], "lower case"),
        (vec!["warm", "app", "--pull-secret", "a/b"], "is not the name of a Secret"),
        (vec!["controller"], "--dispatch-advertise"),
        (vec!["crds", "--json"], "--json"),
        (vec!["reference"], "<IMAGE>"),
        (vec!["status", "-n", "shop", "-A"], "--all-namespaces"),
        (vec!["status", "-n", "team/a"], "is not the name of a Namespace"),
    ] {
        let outcome = place.run(&words);
        assert_eq!(outcome.code, Some(2), "{words:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(part), "{words:?}: {}", outcome.stderr);
        assert_eq!(outcome.stdout, "", "{words:?}");
    }
    // Variables are judged like flags, and the flag is named.
    let bad = [("IMAGEWARM_PARALLEL_PULLS", Path::new("0"))];
    let outcome = place.run_with(&["warmer"], &bad);
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("--parallel-pulls"), "{}", outcome.stderr);
}

#[test]
fn references_are_judged_by_the_exit_code() {
    let place = Place::new();
    let keys = ["input", "ok", "domain", "path", "tag", "digest", "canonical", "error"];
    for (images, code, oks) in [
        (vec!["app:v1", "registry.example.com/team/app"], 0, vec![true, true]),
        (vec!["app:v1", "App:v1"], 1, vec![true, false]),
    ] {
        let words = [&["reference", "--json"], images.as_slice()].concat();
        let outcome = place.run(&words);
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(code), ""), "{words:?}");
        let lines = outcome.stdout.lines().map(serde_json::from_str::<serde_json::Value>);
        let objects: Vec<_> = lines.map(|line| line.expect("one object on each line")).collect();
        for (object, ((input, ok), line)) in
            objects.iter().zip(images.iter().zip(&oks).zip(outcome.stdout.lines()))
        {
            assert_eq!(object["input"], *input);
            assert_eq!(object["ok"], *ok, "{line}");
            assert_eq!(object["error"].is_null(), *ok, "{line}");
            // All of them, in this order.
            let mut rest = line;
            for key in keys {
                let (_, after) = rest.split_once(&format!("\"{key}\":")).unwrap_or_else(|| {
                    panic!("no {key} in {line}");
                });
                rest = after;
            }
            assert_eq!(object.as_object().map(serde_json::Map::len), Some(keys.len()), "{line}");
        }
        assert_eq!(objects.len(), images.len());
    }
}

#[test]
fn crds_prints_the_shipped_file() {
    let outcome = Place::new().run(&["crds"]);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/crd/imagewarms.yaml");
    assert_eq!(outcome.code, Some(0));
    assert_eq!(outcome.stdout, fs::read_to_string(file).expect("the CRD is shipped"));
}

#[test]
fn help_explains_every_flag() {
    let place = Place::new();
    let mut tree = Cli::command();
    tree.build();
    let outcome = place.run(&["--help"]);
    assert_eq!(outcome.code, Some(0));
    let mut commands = 0;
    for command in tree.get_subcommands().filter(|command| command.get_name() != "help") {
        let name = command.get_name();
        assert!(outcome.stdout.contains(&format!("\n  {name} ")), "{name}");
        let help = place.run(&[name, "--help"]);
        assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""), "{name}");
        for flag in command.get_arguments() {
            let id = flag.get_id().as_str();
            if let Some(long) = flag.get_long() {
                assert!(help.stdout.contains(&format!("--{long}")), "{name}: --{long}");
            }
            assert!(flag.get_help().is_some(), "{name}: {id} is not explained");
            let own = !["help", "version"].contains(&id);
            // The programs are set up by manifests, the other commands by people.
            if own && (["controller", "warmer"].contains(&name)) {
                let wanted = format!("IMAGEWARM_{}", id.to_uppercase());
                let variable = flag.get_env().and_then(|variable| variable.to_str());
                assert_eq!(variable, Some(wanted.as_str()), "{name}: {id}");
            }
            if let Some(variable) = flag.get_env().and_then(|variable| variable.to_str()) {
                // Wrapped to the width of a terminal.
                let text = help.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
                assert!(text.contains(&format!("[env: {variable}=")), "{name}: {variable}");
            }
        }
        commands += 1;
    }
    assert_eq!(commands, 12);
}

/// Answers one request, with 403. Returns its head.
fn refusing_proxy(listener: TcpListener) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read > 0) {
            head.extend(byte);
        }
        stream.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n").expect("the client reads");
        String::from_utf8(head).expect("text")
    })
}

#[test]
fn the_api_server_is_asked_through_the_proxy_unless_it_is_excepted() {
    let place = Place::new();
    let kubeconfig = place.kubeconfig("https://api.shop.test:6443", "", "").display().to_string();
    let status = ["status", "--kubeconfig", &kubeconfig];
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("an address");
    let copy = listener.try_clone().expect("a listener");
    let proxy = PathBuf::from(format!("http://me:opensesame@{address}"));
    let asked = refusing_proxy(listener);
    let outcome = place.run_with(&status, &[("HTTPS_PROXY", &proxy)]);
    let head = asked.join().expect("the proxy was asked").to_lowercase();
    assert!(head.starts_with("connect api.shop.test:6443 http/1.1\r\n"), "{head}");
    assert!(head.contains("proxy-authorization: basic "), "{head}");
    assert_eq!((outcome.code, outcome.stderr.lines().count()), (Some(1), 1), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("opensesame"), "{}", outcome.stderr);

    copy.set_nonblocking(true).expect("a listener");
    let except = PathBuf::from("127.0.0.1, .shop.test");
    let outcome = place.run_with(&status, &[("HTTPS_PROXY", &proxy), ("NO_PROXY", &except)]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(copy.accept().is_err(), "the proxy was asked all the same");

    let socks = PathBuf::from("socks5://me:opensesame@proxy.test:1080");
    let outcome = place.run_with(&status, &[("HTTPS_PROXY", &socks)]);
    assert!(
        outcome.stderr.contains("the proxy of HTTPS_PROXY cannot be used"),
        "{}",
        outcome.stderr
    );
    assert!(!outcome.stderr.contains("opensesame"), "{}", outcome.stderr);
}
