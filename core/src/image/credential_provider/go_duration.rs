//! Durations as Go's `time.ParseDuration` reads them: `12h`, `1h30m`, `1.5s`, `0`.

/// Nanoseconds; negative durations are durations too. `None` for what is none.
pub(super) fn parse(text: &str) -> Option<i64> {
    let (is_negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut sum: u128 = 0;
    while !rest.is_empty() {
        let whole = digits(&mut rest);
        let fraction = match rest.strip_prefix('.') {
            Some(after) => {
                rest = after;
                Some(digits(&mut rest))
            }
            None => None,
        };
        if whole.is_empty() && fraction.is_none_or(str::is_empty) {
            return None;
        }
        let end = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
        let (unit, after) = rest.split_at(end);
        rest = after;
        let unit = nanoseconds(unit)?;
        let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        sum = sum.checked_add(whole.checked_mul(unit)?)?.checked_add(part(fraction, unit))?;
        if sum > 1 << 63 {
            return None;
        }
    }
    let sum = i128::try_from(sum).ok()?;
    i64::try_from(if is_negative { -sum } else { sum }).ok()
}

fn digits<'t>(rest: &mut &'t str) -> &'t str {
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (digits, after) = rest.split_at(end);
    *rest = after;
    digits
}

/// What the digits behind the point stand for. No unit has more than 13 that count.
fn part(fraction: Option<&str>, unit: u128) -> u128 {
    let digits = fraction.unwrap_or_default();
    let digits = &digits[..digits.len().min(18)];
    let scale = 10_u128.pow(u32::try_from(digits.len()).unwrap_or(0));
    digits.parse::<u128>().map_or(0, |value| value * unit / scale)
}

fn nanoseconds(unit: &str) -> Option<u128> {
    Some(match unit {
        "ns" => 1,
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn reads_what_go_reads() {
        const SECOND: i64 = 1_000_000_000;
        for (text, expected) in [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("0s", Some(0)),
            ("12h", Some(12 * 3600 * SECOND)),
            ("1h30m", Some(5400 * SECOND)),
            ("1h0m30.5s", Some(3630 * SECOND + SECOND / 2)),
            ("+5s", Some(5 * SECOND)),
            ("-5s", Some(-5 * SECOND)),
            (".5s", Some(SECOND / 2)),
            ("1.s", Some(SECOND)),
            ("3us", Some(3_000)),
            ("3µs", Some(3_000)),
            ("3μs", Some(3_000)),
            ("7ns", Some(7)),
            ("1.5ns", Some(1)),
            ("2562047h47m16.854775807s", Some(i64::MAX)),
            ("-2562047h47m16.854775808s", Some(i64::MIN)),
            ("2562047h47m16.854775808s", None),
            ("99999999999999999999999999999999999999999h", None),
            ("", None),
            ("-", None),
            (".s", None),
            ("5", None),
            ("5 s", None),
            ("5d", None),
            ("1h-5m", None),
            ("5S", None),
            ("PT5S", None),
            ("soon", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }
}
