//! One line of the report: what the rounds of a measurement gave.

use serde::Serialize;

/// What the rounds of one measurement gave.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Series {
    /// Of imagewarm, one number for each round.
    pub ours: Vec<f64>,
    /// Of what it is compared with, in the same rounds.
    pub baseline: Vec<f64>,
}

impl Series {
    /// A single number with nothing beside it.
    pub fn one(value: f64) -> Self {
        Series { ours: vec![value], baseline: Vec::new() }
    }

    /// Adds a round.
    pub fn round(&mut self, ours: f64, baseline: f64) {
        self.ours.push(ours);
        self.baseline.push(baseline);
    }
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// Median of the rounds.
    pub value: f64,
    /// Unit of `value` and `baseline`.
    pub unit: &'static str,
    /// Median of the baseline's rounds.
    pub baseline: Option<f64>,
    /// `value / baseline`.
    pub ratio: Option<f64>,
    /// What must be reached, in words.
    pub limit: Option<String>,
    /// Whether it is; absent where nothing must be.
    pub holds: Option<bool>,
    /// Every round.
    pub rounds: Series,
}

/// The middle of the values.
pub fn median(values: &[f64]) -> Option<f64> {
    percentile(values, 0.5)
}

/// The value below which this share of the values is.
pub fn percentile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (share * (sorted.len().checked_sub(1)? as f64)).round() as usize;
    sorted.get(at).copied()
}

/// Three digits that matter.
pub fn shown(value: f64) -> String {
    match value.abs() {
        big if big >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
