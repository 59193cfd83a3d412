//! How a measurement grows: the exponent of its power law, how straight its line is, and a chart.

use std::fmt::Write as _;

use crate::report::{median, shown};

/// A measurement over a growing number.
#[derive(Clone, Debug, Default)]
pub struct Curve {
    /// What was measured, with its unit.
    pub name: String,
    /// The number, and what was measured for it.
    pub points: Vec<(f64, f64)>,
}

impl Curve {
    /// The median of the rounds at each number, from the least number on.
    pub fn typical(name: String, rounds: &[Curve]) -> Curve {
        let all = || rounds.iter().flat_map(|round| &round.points);
        let mut numbers: Vec<f64> = all().map(|(x, _)| *x).collect();
        numbers.sort_by(f64::total_cmp);
        numbers.dedup();
        let point = |number: f64| {
            let values: Vec<f64> = all().filter(|(x, _)| *x == number).map(|(_, y)| *y).collect();
            Some((number, median(&values)?))
        };
        Curve { name, points: numbers.into_iter().filter_map(point).collect() }
    }

    /// One more measurement.
    pub fn add(&mut self, number: usize, value: f64) {
        self.points.push((number as f64, value));
    }

    /// The exponent `p` of `a · x^p`, by least squares over the logarithms: 1 is linear.
    pub fn exponent(&self) -> f64 {
        let positive = self.points.iter().filter(|(x, y)| *x > 0.0 && *y > 0.0);
        line(&positive.map(|(x, y)| (x.ln(), y.ln())).collect::<Vec<_>>()).slope
    }

    /// R² of the straight line through the points.
    pub fn straightness(&self) -> f64 {
        line(&self.points).r_squared
    }

    /// What one more of the number costs.
    pub fn slope(&self) -> f64 {
        line(&self.points).slope
    }
}

struct Line {
    slope: f64,
    r_squared: f64,
}

/// Least squares.
fn line(points: &[(f64, f64)]) -> Line {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x_mean, y_mean) = (mean(|point| point.0), mean(|point| point.1));
    let (mut xx, mut xy, mut yy) = (0.0, 0.0, 0.0);
    for (x, y) in points {
        let (x, y) = (x - x_mean, y - y_mean);
        (xx, xy, yy) = (xx + x * x, xy + x * y, yy + y * y);
    }
    Line { slope: xy / xx, r_squared: xy * xy / (xx * yy) }
}

const SIDE: f64 = 260.0;
const MARGIN: f64 = 56.0;

/// All curves side by side, each with logarithmic axes: linear growth rises by 45 degrees.
pub fn chart(curves: &[Curve]) -> String {
    let mut body = String::new();
    for (at, curve) in curves.iter().enumerate() {
        let left = (at % 3) as f64 * (SIDE + 2.0 * MARGIN) + MARGIN;
        let top = (at / 3) as f64 * (SIDE + 2.0 * MARGIN) + MARGIN;
        panel(&mut body, curve, (left, top));
    }
    let rows = curves.len().div_ceil(3) as f64;
    let (width, height) = (3.0 * (SIDE + 2.0 * MARGIN), rows * (SIDE + 2.0 * MARGIN));
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="11">
<rect width="100%" height="100%" fill="white"/>
{body}</svg>
"#
    )
}

fn panel(body: &mut String, curve: &Curve, (left, top): (f64, f64)) {
    let positive = |value: f64| value.max(f64::MIN_POSITIVE).ln();
    let range = |of: fn(&(f64, f64)) -> f64| {
        let values = || curve.points.iter().map(of).filter(|value| *value > 0.0);
        (values().fold(f64::MAX, f64::min), values().fold(f64::MIN_POSITIVE, f64::max))
    };
    let ((x_min, x_max), (y_min, y_max)) = (range(|point| point.0), range(|point| point.1));
    // One scale for both axes, so that the angle shows the exponent.
    let span = (positive(x_max) - positive(x_min)).max(positive(y_max) - positive(y_min)).max(0.1);
    let x_of = |x: f64| left + (positive(x) - positive(x_min)) / span * SIDE;
    let y_of = |y: f64| top + SIDE - (positive(y) - positive(y_min)) / span * SIDE;
    let name = curve.name.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        body,
        r##"<text x="{left}" y="{above}" font-size="12">{name}</text>
<rect x="{left}" y="{top}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#b0b7bf"/>
<text x="{left}" y="{below}">{first} … {last}; exponent {exponent:.2}, R² {straight:.3}</text>
<text x="{before}" y="{bottom}" text-anchor="end">{least}</text>
<text x="{before}" y="{upper}" text-anchor="end">{most}</text>"##,
        above = top - 8.0,
        below = top + SIDE + 16.0,
        first = shown(x_min),
        last = shown(x_max),
        exponent = curve.exponent(),
        straight = curve.straightness(),
        before = left - 4.0,
        bottom = top + SIDE,
        upper = y_of(y_max) + 4.0,
        least = shown(y_min),
        most = shown(y_max),
    );
    let points: Vec<String> = curve
        .points
        .iter()
        .filter(|(x, y)| *x > 0.0 && *y > 0.0)
        .map(|(x, y)| format!("{:.1},{:.1}", x_of(*x), y_of(*y)))
        .collect();
    let path = points.join(" ");
    let _ = writeln!(
        body,
        r##"<polyline points="{path}" fill="none" stroke="#2a6fbb" stroke-width="2"/>"##
    );
}
