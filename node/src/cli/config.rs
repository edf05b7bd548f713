//! `quarry config`.

use std::io::Write;
use std::path::Path;

use super::Failure;
use crate::config::{Config, LoadError};

/// Validates a file.
pub(super) fn check(file: &Path, out: &mut impl Write) -> Result<(), Failure> {
    let config = load(file)?;
    writeln!(out, "{}: good; {} disk(s)", file.display(), config.disks.len())?;
    Ok(())
}

/// Reads a file, with an error that says what to do.
pub(super) fn load(file: &Path) -> Result<Config, Failure> {
    Config::load(file).map_err(|error| match error {
        LoadError::Read { .. } => {
            Failure::new("read configuration", format!("{error}; `quarry config example` prints one"))
        }
        LoadError::Refused(_) => Failure::new("read configuration", error),
    })
}
