//! The report of a run: rows with their baselines and limits, as a table, as JSON and as charts.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use comfy_table::Table;
use serde::Serialize;

use crate::plot;
pub use crate::row::{Row, Series, median, percentile, shown};

/// What a row must reach.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// Printed only.
    None,
    /// At most this value.
    Most(f64),
    /// At most this many times the baseline.
    Ratio(f64),
    /// At least this many times the baseline.
    AtLeast(f64),
    /// At most this much more than the baseline.
    Added(f64),
    /// At most this many times the baseline, or at most this much more.
    RatioOrAdded(f64, f64),
}

impl Limit {
    fn holds(self, value: f64, baseline: Option<f64>) -> Option<bool> {
        Some(match (self, baseline) {
            (Limit::None, _) => return None,
            (Limit::Most(most), _) => value <= most,
            (Limit::Ratio(most), Some(baseline)) => value <= most * baseline,
            (Limit::AtLeast(least), Some(baseline)) => value >= least * baseline,
            (Limit::Added(most), Some(baseline)) => value - baseline <= most,
            (Limit::RatioOrAdded(ratio, added), Some(baseline)) => {
                value <= ratio * baseline || value - baseline <= added
            }
            // Nothing to compare with: not shown to hold.
            (_, None) => false,
        })
    }

    fn text(self, unit: &str) -> Option<String> {
        Some(match self {
            Limit::None => return None,
            Limit::Most(most) => format!("≤ {most} {unit}"),
            Limit::Ratio(most) => format!("≤ {most} ×"),
            Limit::AtLeast(least) => format!("≥ {least} ×"),
            Limit::Added(most) => format!("≤ {most} {unit} more"),
            Limit::RatioOrAdded(ratio, added) => format!("≤ {ratio} × or ≤ {added} {unit} more"),
        })
    }
}

/// All lines.
#[derive(Default, Serialize)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Adds a line from the rounds of a measurement.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        series: Series,
        limit: Limit,
    ) {
        let (value, baseline) =
            (median(&series.ours).unwrap_or(f64::NAN), median(&series.baseline));
        let row = Row {
            name: name.into(),
            value,
            unit,
            baseline,
            ratio: baseline.filter(|baseline| *baseline != 0.0).map(|baseline| value / baseline),
            limit: limit.text(unit),
            holds: limit.holds(value, baseline),
            rounds: series,
        };
        eprintln!("  {}: {} {}", row.name, shown(row.value), row.unit);
        self.rows.push(row);
    }

    /// Writes `report.json` and one chart for each unit. The results of earlier benchmarks of
    /// this run are kept even when a later one terminates the program.
    pub fn write(&self) -> Result<PathBuf> {
        let folder = xtask::workspace().join("target/bench");
        fs::create_dir_all(&folder)?;
        let file = folder.join("report.json");
        fs::write(&file, serde_json::to_string_pretty(self)?)?;
        for (name, picture) in plot::pictures(&self.rows) {
            fs::write(folder.join(format!("{name}.svg")), picture)?;
        }
        Ok(file)
    }

    /// The table on standard output.
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header([
            "what", "ours", "spread", "baseline", "spread", "ratio", "limit", "holds",
        ]);
        for row in &self.rows {
            let (unit, rounds) = (row.unit, &row.rounds);
            table.add_row([
                row.name.clone(),
                format!("{} {unit}", shown(row.value)),
                spread(&rounds.ours),
                row.baseline.map(|base| format!("{} {unit}", shown(base))).unwrap_or_default(),
                spread(&rounds.baseline),
                row.ratio.map(|ratio| format!("{ratio:.2} ×")).unwrap_or_default(),
                row.limit.clone().unwrap_or_default(),
                row.holds.map_or("", |holds| if holds { "yes" } else { "NO" }).to_owned(),
            ]);
        }
        table
    }
}

fn spread(values: &[f64]) -> String {
    let (Some(least), Some(most)) = (percentile(values, 0.0), percentile(values, 1.0)) else {
        return String::new();
    };
    if values.len() < 2 { String::new() } else { format!("{}–{}", shown(least), shown(most)) }
}
