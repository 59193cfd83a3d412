//! The platforms of a release: what Rust, OCI and ELF call each of them.

use std::fmt;
use std::str::FromStr;

use anyhow::{Error, bail};
use object::Architecture;

/// A platform that releases are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Platform {
    /// Linux on x86-64.
    Amd64,
    /// Linux on 64-bit ARM.
    Arm64,
}

impl Platform {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    /// The name of the compiler's target.
    pub fn triple(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// The architecture as OCI and Kubernetes name it.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    pub(crate) fn of_program(architecture: Architecture) -> Option<Self> {
        match architecture {
            Architecture::X86_64 => Some(Self::Amd64),
            Architecture::Aarch64 => Some(Self::Arm64),
            _ => None,
        }
    }

    /// The platform of this machine.
    pub fn of_this_machine() -> Option<Self> {
        Self::ALL.into_iter().find(|platform| platform.triple().starts_with(std::env::consts::ARCH))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux-{}", self.architecture())
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(triple: &str) -> Result<Self, Error> {
        match Self::ALL.into_iter().find(|platform| platform.triple() == triple) {
            Some(platform) => Ok(platform),
            None => {
                bail!("releases are made for {} and {}", Self::Amd64.triple(), Self::Arm64.triple())
            }
        }
    }
}
