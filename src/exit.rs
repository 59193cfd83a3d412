//! How the process ends.

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// What the user asked for failed or was denied.
    Failed = 1,
    /// Something unexpected. 2, wrong usage, is clap's.
    Unexpected = 3,
}

impl From<bool> for Exit {
    fn from(good: bool) -> Self {
        if good { Exit::Done } else { Exit::Failed }
    }
}
