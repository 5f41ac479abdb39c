//! The process's output: tracing's events, as text for people or as JSON for collectors, on stderr
//! ([`Log`]: nobody waits for who reads them); and figures, for those who ask ([`metrics`]; the list of
//! them is [`catalogue`]).
//!
//! Events that belong to a call carry its span's fields, the request id among them: in text before the
//! message, in JSON as the only element of `spans`.
//!
//! No secret gets here: types that hold one have a silent `Debug` (invariant 1). Of other libraries
//! only warnings pass: at finer levels they print what they are given.

pub mod catalogue;
mod log;
pub mod metrics;

pub use log::Log;

use serde::Deserialize;
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt::{self, MakeWriter},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

/// `[log]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// For people or for machines.
    pub format: Format,
    /// The least that is told of this service's own events.
    pub level: Level,
}

/// The form of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A line for people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// The level of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Something failed.
    Error,
    /// Something will fail.
    Warn,
    /// Something that an operator wants to know.
    #[default]
    Info,
    /// Something that a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

impl From<Level> for LevelFilter {
    fn from(level: Level) -> Self {
        match level {
            Level::Error => Self::ERROR,
            Level::Warn => Self::WARN,
            Level::Info => Self::INFO,
            Level::Debug => Self::DEBUG,
            Level::Trace => Self::TRACE,
        }
    }
}

/// Something else in this process already listens to its events.
#[derive(Debug, thiserror::Error)]
#[error("the log was set up twice")]
pub struct AlreadySet;

/// Starts telling through `log`, for the rest of the process. Call once, before anything has something
/// to tell. A panic is told there, too: the library's own report would wait for who reads stderr.
pub fn start(config: &Config, log: &Log) -> Result<(), AlreadySet> {
    start_to(config, log.clone())?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let words = panic.payload_as_str().unwrap_or("no words");
        tracing::error!(place, "panicked: {words}");
    }));
    Ok(())
}

/// [`start`], telling `writer` instead.
pub fn start_to<W>(config: &Config, writer: W) -> Result<(), AlreadySet>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // It would tell its own errors on stderr, and end the process if that is closed.
    let events = fmt::layer().with_writer(writer).with_ansi(false).log_internal_errors(false);
    let told = tracing_subscriber::registry().with(filter(config));
    match config.format {
        Format::Text => told.with(events).try_init(),
        Format::Json => {
            told.with(events.json().flatten_event(true).with_current_span(false)).try_init()
        }
    }
    .map_err(|_| AlreadySet)
}

/// Our events from the configured level; those of libraries from warnings, and never more than ours.
fn filter(config: &Config) -> Targets {
    let ours = LevelFilter::from(config.level);
    let theirs = ours.min(LevelFilter::WARN);
    Targets::new().with_default(theirs).with_target("kms_server", ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_never_finer_than_warnings() {
        let filter = |level| filter(&Config { format: Format::Text, level }).to_string();
        assert_eq!(filter(Level::Trace), "kms_server=trace,warn");
        assert_eq!(filter(Level::Error), "kms_server=error,error");
    }
}
