//! How lengths of time are written for people. Pure.

/// `0.4s`, `59s`, `3m 5s`, `2h 7m`: two units at most.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round().max(0.0) as u64;
    match whole {
        0..10 => format!("{:.1}s", seconds.max(0.0)),
        10..60 => format!("{whole}s"),
        60..3_600 => two(whole / 60, "m", whole % 60, "s"),
        3_600..86_400 => two(whole / 3_600, "h", whole % 3_600 / 60, "m"),
        _ => two(whole / 86_400, "d", whole % 86_400 / 3_600, "h"),
    }
}

fn two(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    match small {
        0 => format!("{large}{large_unit}"),
        _ => format!("{large}{large_unit} {small}{small_unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_two_units_at_most() {
        for (seconds, text) in [
            (-1.0, "0.0s"),
            (0.04, "0.0s"),
            (9.44, "9.4s"),
            (9.96, "10s"),
            (59.4, "59s"),
            (60.0, "1m"),
            (185.0, "3m 5s"),
            (3_600.0, "1h"),
            (7_620.0, "2h 7m"),
            (266_400.0, "3d 2h"),
        ] {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
    }
}
