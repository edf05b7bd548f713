//! Log output: text for people or one JSON object a line, on standard error.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Format, Level, Log};

/// Of a library that says too much at any level.
const QUIET: &str = "openraft=off";

/// Sets the process's logging up; later calls change nothing. QUARRY_LOG overrides the level, in the notation of
/// `EnvFilter`: `info,quarry::access=debug`.
pub(crate) fn start(log: &Log) {
    let level = match log.level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    let filter =
        EnvFilter::builder().with_default_directive(level.into()).with_env_var("QUARRY_LOG").from_env_lossy();
    // What openraft has to say is for those who develop it; what operators need to know, the groups say themselves.
    let filter = filter.add_directive(QUIET.parse().expect("a directive"));
    let output = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    let started = match log.format {
        Format::Text => registry.with(output.with_ansi(std::io::stderr().is_terminal())).try_init(),
        Format::Json => registry.with(output.json().flatten_event(true)).try_init(),
    };
    if started.is_ok() {
        crate::panics::watch();
    }
}
