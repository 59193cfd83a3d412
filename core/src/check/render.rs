//! The results as text or JSON.

use serde_json::json;

use super::{CheckResult, Outcome, all_hold};

/// How results are marked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// With `✓` and `×`, which a terminal can show, instead of text.
    pub symbols: bool,
    /// In colour.
    pub colour: bool,
}

impl Marks {
    fn of(self, outcome: &Outcome) -> String {
        let (symbol, text, colour) = match outcome {
            Outcome::Passed => ("✓", "ok     ", 32),
            Outcome::Warning { .. } => ("!", "warning", 33),
            Outcome::Failed { .. } => ("×", "FAILED ", 31),
            Outcome::Skipped { .. } => ("–", "skipped", 2),
        };
        let mark = if self.symbols { symbol } else { text };
        match self.colour {
            true => format!("\x1b[{colour}m{mark}\x1b[0m"),
            false => mark.to_owned(),
        }
    }
}

/// One line for each result, with what to do below what does not hold, and what it comes to.
pub fn render(results: &[CheckResult], marks: Marks) -> String {
    let mut text = String::new();
    let width = results.iter().map(|result| result.check.as_str().len()).max().unwrap_or_default();
    for CheckResult { check, outcome, message } in results {
        let mark = marks.of(outcome);
        text.push_str(&format!("{mark} {:width$}  {message}\n", check.as_str()));
        if let Some(hint) = outcome.hint() {
            let indent = " ".repeat(if marks.symbols { 4 } else { 10 } + width);
            text.push_str(&format!("{indent}{hint}\n{indent}{}\n", check.link()));
        }
    }
    text.push_str(&format!("\n{}\n", conclusion(results)));
    text
}

/// `11 of 12 hold, 1 failed: leader`.
fn conclusion(results: &[CheckResult]) -> String {
    let names = |wanted: &dyn Fn(&Outcome) -> bool| -> Vec<&str> {
        let of = results.iter().filter(|result| wanted(&result.outcome));
        of.map(|result| result.check.as_str()).collect()
    };
    let held = names(&|outcome| matches!(outcome, Outcome::Passed | Outcome::Warning { .. }));
    let mut line = format!("{} of {} hold", held.len(), results.len());
    for (what, names) in [
        ("failed", names(&|outcome| matches!(outcome, Outcome::Failed { .. }))),
        ("with a warning", names(&|outcome| matches!(outcome, Outcome::Warning { .. }))),
        ("skipped", names(&|outcome| matches!(outcome, Outcome::Skipped { .. }))),
    ] {
        if !names.is_empty() {
            line.push_str(&format!(", {} {what}: {}", names.len(), names.join(", ")));
        }
    }
    line
}

/// One JSON object: `passed`, and `checks` with name, outcome, message, hint (null where there is nothing to
/// do) and link.
pub fn render_json(results: &[CheckResult]) -> String {
    let checks: Vec<_> = results
        .iter()
        .map(|CheckResult { check, outcome, message }| {
            json!({
                "name": check.as_str(),
                "outcome": outcome.as_str(),
                "message": message,
                "hint": outcome.hint(),
                "link": check.link(),
            })
        })
        .collect();
    format!("{:#}\n", json!({"passed": all_hold(results), "checks": checks}))
}
