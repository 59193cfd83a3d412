//! Exit codes of the process.

/// Exit code of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The command succeeded.
    Done = 0,
    /// The user's request failed or was denied.
    Failed = 1,
    /// An unexpected error. clap uses 2 for wrong usage.
    Unexpected = 3,
    /// What was waited for did not come in time.
    TimedOut = 4,
}

impl From<bool> for Exit {
    fn from(good: bool) -> Self {
        if good { Exit::Done } else { Exit::Failed }
    }
}
