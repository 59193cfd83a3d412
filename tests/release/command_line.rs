//! Completions, asked for in each shell itself and through kubectl, and man pages, judged by mandoc.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use xtask::prerequisites::{Prerequisite, Programs, ensure};

use crate::{run, unpacked};

async fn programs(wanted: &[Prerequisite]) -> Programs {
    ensure(wanted).await.unwrap()
}

fn completion(name: &str) -> PathBuf {
    unpacked().join("completions").join(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn bash_completes() {
    let script = r#"source "$1"; COMP_WORDS=(imagewarm st); COMP_CWORD=1; _imagewarm imagewarm st imagewarm
        echo "${COMPREPLY[@]}"; complete -p imagewarm"#;
    let bash = ["--noprofile", "--norc", "-c", script, "bash"];
    let said = run(Command::new("bash").args(bash).arg(completion("imagewarm.bash")));
    assert!(said.starts_with("status\n"), "{said}");
    assert!(said.contains("-F _imagewarm"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn zsh_completes() {
    let programs = programs(&[Prerequisite::Zsh]).await;
    // A shell in a pseudo-terminal, with the function in its path as it is installed; the tabulator asks.
    let script = r#"zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PS1=; fpath=($1 \$fpath); autoload -U compinit; compinit -u -D; echo ready-\$((1 + 1))"
zpty -r -m shell line '*ready-2*'
zpty -w -n shell $'imagewarm repor\t-'
zpty -w shell $'-version-is-not-run'
zpty -r -m shell line '*imagewarm report *'
print -r -- "$line"
zpty -d shell"#;
    let zsh = programs.path(Prerequisite::Zsh).unwrap();
    let said = run(Command::new("timeout")
        .arg("60")
        .arg(zsh)
        .args(["-f", "-c", script, "zsh"])
        .arg(unpacked().join("completions"))
        .env("TERM", "dumb"));
    assert!(said.contains("imagewarm report "), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fish_completes() {
    let programs = programs(&[Prerequisite::Fish]).await;
    let fish = programs.path(Prerequisite::Fish).unwrap();
    let script = "source $argv[1]; complete --do-complete 'imagewarm st'";
    let home = tempfile::tempdir().unwrap();
    let said = run(Command::new(fish)
        .args(["--no-config", "-c", script])
        .arg(completion("imagewarm.fish"))
        .env("HOME", home.path()));
    assert!(said.starts_with("status\tShow which images are warm"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_completes_its_plugin() {
    let programs = programs(&[Prerequisite::Kubectl]).await;
    // What users put into their PATH.
    let folder = tempfile::tempdir().unwrap();
    for (file, name) in [
        ("imagewarm", "kubectl-imagewarm"),
        ("kubectl_complete-imagewarm", "kubectl_complete-imagewarm"),
    ] {
        symlink(unpacked().join(file), folder.path().join(name)).unwrap();
    }
    let complete = |words: &[&str]| {
        run(Command::new(programs.path(Prerequisite::Kubectl).unwrap())
            .args(["__complete", "imagewarm"])
            .args(words)
            .env("PATH", format!("{}:/usr/bin:/bin", folder.path().display()))
            .env("HOME", folder.path()))
    };
    // The last line says that these are no names of files.
    assert_eq!(complete(&["st"]), "status\n:4\n");
    assert!(complete(&["status", "--out"]).starts_with("--output\n"));
    let version = run(Command::new(programs.path(Prerequisite::Kubectl).unwrap())
        .args(["imagewarm", "--version"])
        .env("PATH", folder.path())
        .env("HOME", folder.path()));
    assert!(version.starts_with("imagewarm "), "{version}");
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_a_page_for_every_command() {
    let programs = programs(&[Prerequisite::Mandoc]).await;
    let folder = unpacked().join("man/man1");
    let help = run(Command::new(unpacked().join("imagewarm")).arg("--help"));
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let lines = commands.lines().take_while(|line| !line.is_empty());
    let names = lines.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let mut pages = vec![folder.join("imagewarm.1")];
    for name in names.filter(|name| !name.is_empty() && *name != "help") {
        pages.push(folder.join(format!("imagewarm-{name}.1")));
    }
    assert!(pages.len() > 5, "{pages:?}");
    for page in pages {
        let mandoc = programs.path(Prerequisite::Mandoc).unwrap();
        // Errors, and not the style that the generator has.
        run(Command::new(mandoc).args(["-T", "lint", "-W", "error"]).arg(&page));
        let name = page.file_stem().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&page).unwrap();
        assert!(text.contains(&format!("\n.TH {name} 1 ")), "{text}");
    }
}
