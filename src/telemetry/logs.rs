//! Logs to standard error, one line per event, as text or JSON. Commands print their results to
//! standard output.

use std::io::{self, IsTerminal};
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use imagewarm_core::image::quoted::{MESSAGE_MAX, Quoted, printable, quoted};

/// Format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Which events are logged: a level, or the filter language of `tracing`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogFilter(String);

impl LogFilter {
    fn directives(&self) -> String {
        let LogFilter(text) = self;
        if text.contains("kube_client") {
            return text.clone();
        }
        // That module logs each failed call; the caller logs it too, with the purpose of the call.
        format!("{text},kube_client::client::builder=off")
    }
}

impl FromStr for LogFilter {
    type Err = LogError;

    fn from_str(text: &str) -> Result<Self, LogError> {
        // EnvFilter would accept a single name that is not a level as the name of a module.
        let is_single_name = !text.contains(['=', ',', '[']);
        if text.is_empty()
            || is_single_name && tracing_subscriber::filter::LevelFilter::from_str(text).is_err()
        {
            return Err(LogError::filter(text, "unknown level"));
        }
        match EnvFilter::try_new(text) {
            Ok(_) => Ok(LogFilter(text.to_owned())),
            Err(error) => Err(LogError::filter(text, &error.to_string())),
        }
    }
}

/// Why logging cannot be initialized.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// The filter is invalid.
    #[error(
        "{text} is not a log filter ({detail}): use off, error, warn, info, debug, trace, or \
         directives such as info,imagewarm::webhook=debug"
    )]
    Filter {
        /// The filter.
        text: Quoted,
        /// The parser's error.
        detail: String,
    },
    /// Logging is already initialized.
    #[error("logging is already initialized")]
    AlreadyInitialized,
}

impl LogError {
    fn filter(text: &str, detail: &str) -> Self {
        LogError::Filter { text: quoted(text), detail: printable(detail, MESSAGE_MAX) }
    }
}

/// Settings of logs.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct LogArgs {
    /// Format of log lines: `text` for people, `json` with one object per line for log collectors
    #[arg(
        long,
        global = true,
        env = "IMAGEWARM_LOG_FORMAT",
        value_enum,
        value_name = "FORMAT",
        default_value_t,
        help_heading = "Logs"
    )]
    pub log_format: LogFormat,

    /// Log level: off, error, warn, info, debug, trace, or directives for single modules such as
    /// `info,imagewarm::webhook=debug`. The API client's own line for each failed call is left
    /// out unless a directive names `kube_client`
    #[arg(
        long,
        global = true,
        env = "IMAGEWARM_LOG_LEVEL",
        value_name = "FILTER",
        default_value = "info",
        help_heading = "Logs"
    )]
    pub log_level: LogFilter,
}

/// Initializes logging; once per process.
pub(crate) fn init(args: &LogArgs) -> Result<(), LogError> {
    let filter = EnvFilter::try_new(args.log_level.directives())
        .map_err(|error| LogError::filter(&args.log_level.0, &error.to_string()))?;
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(true);
    let result = match args.log_format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
    };
    result.map_err(|_| LogError::AlreadyInitialized)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn filters_are_validated_at_start() {
        for good in ["info", "DEBUG", "off", "warn,imagewarm::webhook=trace", "imagewarm=debug"] {
            LogFilter::from_str(good).unwrap();
        }
        for (given, used) in [
            ("info", "info,kube_client::client::builder=off"),
            ("info,kube_client=debug", "info,kube_client=debug"),
        ] {
            let filter = LogFilter::from_str(given).unwrap();
            assert_eq!(filter.directives(), used);
            EnvFilter::try_new(used).unwrap();
        }
        for bad in ["", "loud", "imagewarm=loud", "a=b=c"] {
            let error = LogFilter::from_str(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")) && error.contains("info"), "{error}");
        }
    }
}
