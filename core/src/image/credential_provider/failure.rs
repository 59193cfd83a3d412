//! Why a plugin gave no credentials. Nothing of its output is in here: that may hold a secret.

use crate::labels;

/// The longest answer that is read, in bytes. Answers of real plugins have some thousand.
pub const LONGEST_RESPONSE: usize = 1 << 20;

labels! {
    /// How a call of a credential provider's plugin ended.
    pub enum CallResult {
        /// The plugin answered, with or without credentials.
        Answered,
        /// The plugin's program does not exist, or cannot be started.
        NotStarted,
        /// The plugin did not answer in time, and was killed.
        TimedOut,
        /// The plugin ended with an exit code other than 0, or by a signal.
        Crashed,
        /// The plugin's answer was empty, too long, or malformed.
        Malformed,
    }
}

/// Why a call of a plugin failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProviderFailure {
    /// There is no such program.
    #[error("there is no such program in --image-credential-provider-bin-dir")]
    Missing,
    /// The program is there, but the interpreter or loader that it names is not.
    #[error(
        "its program is there, but not the interpreter or loader that it needs: it must be a \
         static program"
    )]
    NoInterpreter,
    /// The operating system does not start the program.
    #[error("its program cannot be started: {0}")]
    NotStarted(String),
    /// It was killed after this many seconds.
    #[error("it did not answer within {0} s")]
    TimedOut(u64),
    /// It ended with this exit code.
    #[error("it ended with exit code {0}")]
    Exited(i32),
    /// It was ended by this signal.
    #[error("it was ended by signal {0}")]
    Signalled(i32),
    /// It ended well, and wrote nothing.
    #[error("it ended without an answer")]
    NoAnswer,
    /// It wrote too much.
    #[error("its answer is longer than {LONGEST_RESPONSE} bytes")]
    TooLong,
    /// It wrote something else than an answer.
    #[error("its answer is malformed: {0}")]
    Malformed(&'static str),
    /// The call itself failed.
    #[error("the call was given up")]
    Abandoned,
}

impl ProviderFailure {
    /// The kind of failure, for the metric and the log.
    pub fn result(&self) -> CallResult {
        match self {
            ProviderFailure::Missing
            | ProviderFailure::NoInterpreter
            | ProviderFailure::NotStarted(_)
            | ProviderFailure::Abandoned => CallResult::NotStarted,
            ProviderFailure::TimedOut(_) => CallResult::TimedOut,
            ProviderFailure::Exited(_) | ProviderFailure::Signalled(_) => CallResult::Crashed,
            ProviderFailure::NoAnswer
            | ProviderFailure::TooLong
            | ProviderFailure::Malformed(_) => CallResult::Malformed,
        }
    }
}
