//! Limits on pulls of all nodes together, for each registry.

use std::fmt;
use std::str::FromStr;

use crate::image::quoted::quoted;
use crate::image::registry_pattern::RegistryPattern;

/// Limits on one registry for all nodes together; 0 means no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Pulls at the same time.
    pub pulls: usize,
    /// Pulls that begin in one second.
    pub per_second: usize,
}

impl Limits {
    /// The number of the slice of time at `now`, and pulls that may begin in it. Slices are short, so
    /// that no second begins with a burst; those of one second have its pulls together.
    pub(super) fn slice(self, now: i64) -> (i64, usize) {
        match self.per_second {
            0 => (now / 1_000, usize::MAX),
            few @ ..10 => (now / 1_000, few),
            many => {
                let slice = now / 100;
                let of_second = usize::try_from(slice.rem_euclid(10)).unwrap_or(0);
                let until = |slices: usize| many.saturating_mul(slices) / 10;
                (slice, until(of_second + 1) - until(of_second))
            }
        }
    }

    pub(super) fn pulls(self) -> usize {
        if self.pulls == 0 { usize::MAX } else { self.pulls }
    }
}

/// The limits of every registry.
#[derive(Clone, Debug)]
pub struct RegistryLimits {
    /// Pulls at the same time.
    pub pulls: PerRegistry,
    /// Pulls that begin in one second.
    pub per_second: PerRegistry,
}

impl RegistryLimits {
    /// Those of one registry.
    pub fn of(&self, registry: &str) -> Limits {
        Limits { pulls: self.pulls.of(registry), per_second: self.per_second.of(registry) }
    }
}

impl From<Limits> for RegistryLimits {
    fn from(limits: Limits) -> Self {
        let Limits { pulls, per_second } = limits;
        RegistryLimits { pulls: pulls.into(), per_second: per_second.into() }
    }
}

/// A count for each registry: `500,docker.io=2,*.example.com=50`. The first pattern that matches decides; the
/// count without one is that of all other registries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PerRegistry {
    others: usize,
    named: Vec<(RegistryPattern, usize)>,
}

impl From<usize> for PerRegistry {
    fn from(others: usize) -> Self {
        PerRegistry { others, named: Vec::new() }
    }
}

impl FromStr for PerRegistry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut others, mut named) = (None, Vec::new());
        for part in text.split(',').map(str::trim) {
            let (pattern, count) = match part.rsplit_once('=') {
                Some((pattern, count)) => (Some(pattern), count),
                None => (None, part),
            };
            let count = count.parse().map_err(|_| {
                let part = quoted(part);
                format!("{part} is neither a whole number nor REGISTRY=NUMBER, as in docker.io=2")
            })?;
            match pattern {
                Some(pattern) => {
                    let pattern = pattern.parse().map_err(|error| format!("{error}"))?;
                    named.push((pattern, count));
                }
                None if others.is_some() => {
                    return Err(format!(
                        "{} is a second number for all other registries",
                        quoted(part)
                    ));
                }
                None => others = Some(count),
            }
        }
        let others = others.ok_or_else(|| {
            format!(
                "{} has no number for all other registries, as in 500,docker.io=2",
                quoted(text)
            )
        })?;
        Ok(PerRegistry { others, named })
    }
}

impl fmt::Display for PerRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.others)?;
        self.named.iter().try_for_each(|(pattern, count)| write!(f, ",{pattern}={count}"))
    }
}

impl PerRegistry {
    fn of(&self, registry: &str) -> usize {
        let named = self.named.iter().find(|(pattern, _)| pattern.matches(registry));
        named.map_or(self.others, |(_, count)| *count)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_registry_may_have_a_limit_of_its_own() {
        let counts: PerRegistry = "500, index.docker.io=2,quay.io=0,*.io=9".parse().unwrap();
        let expected =
            [("docker.io", 2), ("quay.io", 0), ("ghcr.io", 9), ("registry.test:5000", 500)];
        for (registry, count) in expected {
            assert_eq!(counts.of(registry), count, "{registry}");
        }
        assert_eq!(counts.to_string(), "500,docker.io=2,quay.io=0,*.io=9");
        assert_eq!(counts.to_string().parse(), Ok(counts));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = [
            ("", "neither a whole number nor"),
            ("many", "neither a whole number nor"),
            ("5,docker.io=-1", "\"docker.io=-1\" is neither"),
            ("5,6", "\"6\" is a second number"),
            ("docker.io=2", "no number for all other registries"),
            ("5,a/b=2", "is no registry"),
        ];
        for (text, problem) in table {
            let error = text.parse::<PerRegistry>().unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }
}
