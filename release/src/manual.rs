//! What shells and `man` need of the command line: completions and man pages, both made from the commands
//! and flags of the program itself.

use anyhow::Result;
use clap::{Command, CommandFactory as _};
use clap_complete::{Shell, generate};
use clap_mangen::Man;
use imagewarm::cli::Cli;

use crate::archive::Files;

/// Calls bash's completion of `imagewarm` for kubectl, which passes the words after `kubectl imagewarm`.
/// <https://kubernetes.io/docs/tasks/extend-kubectl/kubectl-plugins/> has the protocol of the answer: a line
/// for each word, then what the shell is to do.
const FOR_KUBECTL: &str = r#"
# Nothing is completed in a shell here: bash's own functions for that do nothing.
complete() { :; }
compopt() { :; }
"#;

const ANSWER: &str = r#"
COMP_WORDS=(imagewarm "$@")
COMP_CWORD=$#
COMPREPLY=()
_imagewarm imagewarm "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
if [ "${#COMPREPLY[@]}" -eq 0 ]; then
  # Names of files.
  echo ":0"
else
  printf '%s\n' "${COMPREPLY[@]}"
  echo ":4"
fi
"#;

/// The folders `completions` and `man`, and the program that kubectl calls.
pub(crate) fn files() -> Result<Files> {
    let mut files = Files::default();
    let bash = completion(Shell::Bash);
    files.add_program("kubectl_complete-imagewarm", for_kubectl(&bash));
    files.add("completions/imagewarm.bash", bash);
    files.add("completions/_imagewarm", completion(Shell::Zsh));
    files.add("completions/imagewarm.fish", completion(Shell::Fish));
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    add_pages(&mut files, &root)?;
    Ok(files)
}

/// The completion script for a shell.
fn completion(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "imagewarm", &mut script);
    script
}

fn for_kubectl(bash: &[u8]) -> Vec<u8> {
    let head =
        "#!/usr/bin/env bash\n# Completes `kubectl imagewarm`: kubectl calls it from the PATH.\n";
    [head.as_bytes(), FOR_KUBECTL.as_bytes(), bash, ANSWER.as_bytes()].concat()
}

/// The page of a command, and those of its own commands.
fn add_pages(files: &mut Files, command: &Command) -> Result<()> {
    for subcommand in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        add_pages(files, subcommand)?;
    }
    let page = Man::new(command.clone()).manual("imagewarm");
    let mut text = Vec::new();
    page.render(&mut text)?;
    files.add(format!("man/man1/{}", page.get_filename()), text);
    Ok(())
}
