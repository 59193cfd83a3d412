//! `imagewarm reference`: parses image names by the webhook's grammar. Contacts no registry.

use std::io::{self, BufRead, Write};

use clap::Args;
use serde::Serialize;

use imagewarm_core::image::Named;
use imagewarm_core::image::quoted::{QUOTED_MAX, printable, quoted};

/// Show how image names are parsed: registry, path, tag, digest and canonical form
#[derive(Args, Clone, Debug)]
pub(crate) struct ReferenceArgs {
    /// Print one JSON object for each name instead of text, with the keys input, ok, domain, path,
    /// tag, digest, canonical and error (null where absent)
    #[arg(long)]
    pub json: bool,

    /// Image names such as app, registry.example.com/team/app:v1 or app@sha256:…; `-` reads names
    /// from standard input, one per line
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

/// One name and its parts. Absent parts are null in JSON.
#[derive(Serialize)]
struct Row<'a> {
    input: &'a str,
    ok: bool,
    domain: Option<&'a str>,
    path: Option<&'a str>,
    tag: Option<&'a str>,
    digest: Option<&'a str>,
    canonical: Option<&'a str>,
    error: Option<&'a str>,
}

/// Prints a result for each name, valid or not, in order. Returns false if any is invalid.
pub(crate) fn run(
    args: &ReferenceArgs,
    out: &mut dyn Write,
    input: &mut dyn BufRead,
) -> io::Result<bool> {
    let mut printer = Printer { json: args.json, is_first: true, all_valid: true, out };
    for image in &args.images {
        if image != "-" {
            printer.print(image, None)?;
            continue;
        }
        let mut line = Vec::new();
        while input.read_until(b'\n', &mut line)? > 0 {
            if line.last() == Some(&b'\n') {
                line.pop();
            }
            match std::str::from_utf8(&line) {
                Ok(text) => printer.print(text, None)?,
                Err(_) => {
                    let text = String::from_utf8_lossy(&line);
                    printer.print(&text, Some("image reference is not UTF-8"))?;
                }
            }
            line.clear();
        }
    }
    printer.out.flush()?;
    Ok(printer.all_valid)
}

struct Printer<'a> {
    json: bool,
    is_first: bool,
    all_valid: bool,
    out: &'a mut dyn Write,
}

impl Printer<'_> {
    /// `refused` is the error of an input that is not text.
    fn print(&mut self, input: &str, refused: Option<&str>) -> io::Result<()> {
        let result = match refused {
            Some(error) => Err(error.to_owned()),
            None => Named::parse(input).map_err(|error| error.to_string()),
        };
        self.all_valid &= result.is_ok();
        let canonical = result.as_ref().ok().map(Named::canonical);
        let named = result.as_ref().ok();
        let row = Row {
            input,
            ok: result.is_ok(),
            domain: named.map(Named::domain),
            path: named.map(Named::path),
            tag: named.and_then(Named::tag),
            digest: named.and_then(Named::digest),
            canonical: canonical.as_ref().map(|canonical| canonical.as_str()),
            error: result.as_ref().err().map(String::as_str),
        };
        if self.json {
            serde_json::to_writer(&mut self.out, &row)?;
            return writeln!(self.out);
        }
        if !std::mem::take(&mut self.is_first) {
            writeln!(self.out)?;
        }
        print_text(self.out, &row)
    }
}

fn print_text(out: &mut dyn Write, row: &Row<'_>) -> io::Result<()> {
    // Escaped if a terminal could interpret it, quoted if it would be invisible.
    let is_plain = printable(row.input, QUOTED_MAX) == row.input && !row.input.contains(' ');
    if row.input.is_empty() || !is_plain {
        writeln!(out, "{}", quoted(row.input))?;
    } else {
        writeln!(out, "{}", row.input)?;
    }
    if let Some(error) = row.error {
        return writeln!(out, "  error      {error}");
    }
    let parts = [
        ("domain", row.domain),
        ("path", row.path),
        ("tag", row.tag),
        ("digest", row.digest),
        ("canonical", row.canonical),
    ];
    for (name, value) in parts {
        let value = value.filter(|value| !value.is_empty()).unwrap_or("-");
        writeln!(out, "  {name:<9}  {value}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: ReferenceArgs,
    }

    fn output(args: &[&str], mut input: &[u8]) -> (bool, String) {
        let arguments = ["reference"].iter().chain(args);
        let args = Cli::try_parse_from(arguments).unwrap().args;
        let mut out = Vec::new();
        let all_valid = run(&args, &mut out, &mut input).unwrap();
        (all_valid, String::from_utf8(out).unwrap())
    }

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
        assert!(Cli::try_parse_from(["reference"]).is_err());
    }

    #[test]
    fn text_is_aligned() {
        let (all_valid, text) =
            output(&["app:v1", "App", "my_host.example/app", "a\u{1b}[2J"], b"");
        assert!(!all_valid);
        insta::assert_snapshot!(text, @r#"
        app:v1
          domain     docker.io
          path       library/app
          tag        v1
          digest     -
          canonical  docker.io/library/app:v1

        App
          error      repository name must be lower case: "App" in "App"

        my_host.example/app
          domain     -
          path       my_host.example/app
          tag        -
          digest     -
          canonical  my_host.example/app:latest

        "a\u{1b}[2J"
          error      invalid character '\u{1b}' at position 2 of "a\u{1b}[2J": remove it
        "#);
    }

    #[test]
    fn json_is_one_object_for_each_name() {
        let (all_valid, text) = output(&["--json", "app:v1", "App"], b"");
        assert!(!all_valid);
        insta::assert_snapshot!(text, @r#"
        {"input":"app:v1","ok":true,"domain":"docker.io","path":"library/app","tag":"v1","digest":null,"canonical":"docker.io/library/app:v1","error":null}
        {"input":"App","ok":false,"domain":null,"path":null,"tag":null,"digest":null,"canonical":null,"error":"repository name must be lower case: \"App\" in \"App\""}
        "#);
    }

    #[test]
    fn reads_lines_from_standard_input() {
        let (all_valid, text) = output(&["--json", "a", "-", "z"], b"b:1\n\nc d\n\xff\ne");
        let inputs: Vec<(String, bool)> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .map(|row: serde_json::Value| {
                (row["input"].as_str().unwrap().to_owned(), row["ok"].as_bool().unwrap())
            })
            .collect();
        let expected = [
            ("a", true),
            ("b:1", true),
            ("", false),
            ("c d", false),
            ("\u{fffd}", false),
            ("e", true),
            ("z", true),
        ];
        assert_eq!(inputs, expected.map(|(input, ok)| (input.to_owned(), ok)));
        assert!(!all_valid);
        assert!(output(&["-"], b"a\nb\n").0);
        assert!(output(&["-"], b"").0);
    }
}
