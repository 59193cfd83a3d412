//! How values of flags are read, the same for all programs.

use std::net::Ipv6Addr;
use std::time::Duration;

use jiff::SignedDuration;

use crate::image::quoted::quoted;

/// Reads `5s`, `1m30s`, `PT5S`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("{} is no duration: use a positive one such as 5s or 1m30s", quoted(text));
    let duration: SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(duration).ok().filter(|duration| !duration.is_zero()).ok_or_else(wrong)
}

/// Reads a number of things of which there must be some.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or("not a whole number of at least 1".into())
}

/// Reads `15%`, up to `99%`, as 15.
pub fn percentage(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').and_then(|number| number.parse().ok());
    let wrong = || {
        format!("{} is no percentage: use a whole one from 0% to 99%, such as 15%", quoted(text))
    };
    number.filter(|number| *number < 100).ok_or_else(wrong)
}

/// Reads a number of bytes as Kubernetes writes them: `512Mi`, `2G`, `1000`.
pub fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "" => Some(1),
        "k" => Some(1_000),
        "M" => Some(1_000_000),
        "G" => Some(1_000_000_000),
        "Ki" => Some(1 << 10),
        "Mi" => Some(1 << 20),
        "Gi" => Some(1 << 30),
        _ => None,
    };
    let number: Option<u64> = number.parse().ok();
    factor
        .and_then(|factor| number?.checked_mul(factor))
        .ok_or_else(|| format!("{} is no size: use a whole one such as 512Mi or 2G", quoted(text)))
}

/// Reads `host:port`. A Pod's IPv6 address before `:port` gets the brackets that it lacks: a
/// manifest can only put the two side by side.
pub fn host_and_port(text: &str) -> Result<String, String> {
    let wrong = || format!("{} is no address: use host:port", quoted(text));
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
    let address = match host.parse::<Ipv6Addr>() {
        Ok(host) => format!("[{host}]:{port}"),
        Err(_) => text.to_owned(),
    };
    let authority: http::uri::Authority = address.parse().map_err(|_| wrong())?;
    if authority.host().is_empty() || address.contains('@') { Err(wrong()) } else { Ok(address) }
}

/// A [`duration`] of a second or more: shorter ones would only keep a node busy.
pub fn at_least_a_second(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration < Duration::from_secs(1) {
        let text = quoted(text);
        return Err(format!("{text} is too short: use a second or more, such as 90s or 2m"));
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit_and_a_positive_value() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        for bad in ["", "5", "-5s", "0s", "soon"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn counts_are_at_least_one() {
        assert_eq!((at_least_one("1"), at_least_one("7")), (Ok(1), Ok(7)));
        for bad in ["", "0", "-1", "1.5", "many"] {
            assert!(at_least_one(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_need_a_host_and_a_port() {
        for (text, address) in [
            ("10.0.0.1:8444", "10.0.0.1:8444"),
            ("controller.example:1", "controller.example:1"),
            ("[fd00::1]:8444", "[fd00::1]:8444"),
            ("fd00::1:8444", "[fd00::1]:8444"),
        ] {
            assert_eq!(host_and_port(text).as_deref(), Ok(address), "{text}");
        }
        for bad in ["", "host", ":8444", "host:", "host:0", "host:99999", "a b:1", "u@h:1"] {
            assert!(host_and_port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn percentages_and_sizes_have_their_unit() {
        assert_eq!((percentage("0%"), percentage("99%")), (Ok(0), Ok(99)));
        for bad in ["", "15", "100%", "-1%", "1.5%", "%"] {
            assert!(percentage(bad).is_err(), "{bad}");
        }
        for (text, size) in [
            ("0", 0),
            ("7k", 7_000),
            ("3M", 3_000_000),
            ("2G", 2_000_000_000),
            ("5Ki", 5 << 10),
            ("512Mi", 512 << 20),
            ("4Gi", 4 << 30),
        ] {
            assert_eq!(bytes(text), Ok(size), "{text}");
        }
        for bad in ["", "Mi", "1.5Gi", "-1", "1 M", "1MB", "99999999999Gi"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_shorter_than_a_second_can_be_refused() {
        assert_eq!(at_least_a_second("1s"), Ok(Duration::from_secs(1)));
        assert!(at_least_a_second("10ms").is_err_and(|error| error.contains("90s or 2m")));
        assert!(at_least_a_second("soon").is_err());
    }
}
