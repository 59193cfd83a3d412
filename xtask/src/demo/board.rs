//! What the demo shows: live bars on a terminal, one line per change elsewhere, a table at the end.

use std::io::IsTerminal as _;
use std::time::Duration;

use comfy_table::{LineStyle, Table, TableStyle};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::arrival::Arrival;

const TABLE: TableStyle =
    TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// Where progress goes.
pub(super) enum Board {
    Bars {
        // Draws the bars; they stay while it lives.
        _all: MultiProgress,
        bars: Vec<ProgressBar>,
    },
    /// The last state printed of each.
    Lines(Vec<String>),
}

impl Board {
    pub(super) fn new(arrivals: &[Arrival]) -> Self {
        if !std::io::stdout().is_terminal() {
            return Self::Lines(vec![String::new(); arrivals.len()]);
        }
        let template = "{prefix} {bar:32.green} {bytes:>10} of {total_bytes:<10} {msg}";
        let style = ProgressStyle::with_template(template)
            .map_or_else(|_| ProgressStyle::default_bar(), |style| style.progress_chars("━━╌"));
        let all = MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::stdout());
        let bars = arrivals.iter().map(|one| {
            let bar = all.add(ProgressBar::new(one.total).with_style(style.clone()));
            bar.set_prefix(format!("{:<8} {:<16}", one.node, one.image.short));
            bar.tick();
            bar
        });
        let bars = bars.collect();
        Self::Bars { _all: all, bars }
    }

    /// Shows how far one is.
    pub(super) fn show(&mut self, index: usize, one: &Arrival, now: Duration) {
        let state = match (&one.present, one.state.as_str()) {
            (_, "") => "ordered".to_owned(),
            (Some(_), state) if one.ready => format!("{state}, on the node"),
            (_, state) => state.to_owned(),
        };
        match self {
            Self::Bars { bars, .. } => {
                let Some(bar) = bars.get(index) else { return };
                bar.set_length(one.total);
                bar.set_position(one.downloaded);
                bar.set_message(state);
            }
            Self::Lines(shown) => {
                let Some(last) = shown.get_mut(index) else { return };
                if *last != state {
                    let (node, image) = (&one.node, &one.image.short);
                    let so_far = format!("{} of {}", bytes(one.downloaded), bytes(one.total));
                    println!(
                        "{:>7.2} s  {node:<8} {image:<16} {so_far:<24} {state}",
                        now.as_secs_f32()
                    );
                    *last = state;
                }
            }
        }
    }

    /// Leaves the last state on the screen.
    pub(super) fn close(&self) {
        if let Self::Bars { bars, .. } = self {
            for bar in bars {
                bar.abandon();
            }
        }
    }
}

/// Prints node, image, state, size and time of all.
pub(super) fn print_table(arrivals: &[Arrival]) {
    let mut table = Table::new();
    table.load_style(TABLE);
    table.set_header(["node", "image", "state", "size", "pull took", "on the node after"]);
    for one in arrivals {
        let state = match (one.state.as_str(), one.ordered) {
            ("", None) => "no ImageWarm".to_owned(),
            ("", Some(_)) => "no status".to_owned(),
            (state, _) if one.ready || one.message.is_empty() => state.to_owned(),
            (state, _) => format!("{state}: {}", one.message),
        };
        table.add_row([
            one.node.clone(),
            one.image.short.clone(),
            state,
            one.size.map(bytes).unwrap_or_default(),
            one.took.clone().unwrap_or_default(),
            one.present.map_or("never".to_owned(), |at| format!("{:.2} s", at.as_secs_f32())),
        ]);
    }
    println!("{table}");
}

/// A size for people, such as `34.0 MiB`.
pub(super) fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}
