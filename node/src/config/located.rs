//! Errors of the configuration that name file, line and key.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Why a configuration file was refused.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from one.
    pub line: usize,
    /// The key with its tables: `limits.connections`. Empty for the file as a whole.
    pub key: String,
    /// What was found and what is allowed.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file.display(), self.line)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.problem)
    }
}

impl std::error::Error for ConfigError {}

/// A file's name and text, so that a span becomes a line and a key.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Where the text came from.
    pub file: &'a Path,
    /// The whole text.
    pub text: &'a str,
}

impl Source<'_> {
    /// Reads the text as a `T`.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        toml::from_str(self.text).map_err(|error| {
            let problem = error.message().lines().collect::<Vec<_>>().join("; ");
            self.error(error.span().unwrap_or(0..0), problem)
        })
    }

    /// An error about what stands at `span`.
    #[must_use]
    pub fn error(&self, span: Range<usize>, problem: impl Into<String>) -> ConfigError {
        let (line, key) = locate(self.text, span.start);
        ConfigError { file: self.file.to_owned(), line, key, problem: problem.into() }
    }
}

/// The line (from one) and the dotted key that a byte offset belongs to.
fn locate(text: &str, offset: usize) -> (usize, String) {
    let mut start = 0;
    let mut table = "";
    let mut found = (1, String::new());
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let end = start + line.len();
        let trimmed = line.trim();
        let header =
            trimmed.starts_with('[').then(|| trimmed.trim_start_matches('[').split(']').next().unwrap_or(""));
        if let Some(name) = header {
            table = name.trim();
        }
        if offset < end || end == text.len() {
            let key = match (header, trimmed.split_once('=')) {
                (None, Some((key, _))) if !trimmed.starts_with('#') => key.trim(),
                _ => "",
            };
            let dot = if table.is_empty() || key.is_empty() { "" } else { "." };
            found = (number + 1, format!("{table}{dot}{key}"));
            break;
        }
        start = end;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_becomes_a_line_and_a_key() {
        let text = "a = 1\n[limits]\n# note = 2\nconnections = 0\n\n[[disk]]\npath = \"x\"\n";
        let at = |needle: &str| locate(text, text.find(needle).unwrap());
        assert_eq!(at("1"), (1, "a".to_owned()));
        assert_eq!(at("0"), (4, "limits.connections".to_owned()));
        assert_eq!(at("\"x\""), (7, "disk.path".to_owned()));
        assert_eq!(at("[[disk"), (6, "disk".to_owned()));
        assert_eq!(locate("", 0), (1, String::new()));
    }
}
