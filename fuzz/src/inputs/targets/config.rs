//! Configuration files.

use std::path::Path;

use quarry_engine::io::SplitMix64;
use quarry_node::config::{Auth, Config, ConfigError, EXAMPLE, Source};

use super::super::Target;
use super::as_is;

/// A node's configuration.
pub(super) const CONFIG: Target =
    Target { name: "config", run: config, seeds: configs, mend: as_is, words: WORDS };
/// A file of users alone.
pub(super) const AUTH: Target =
    Target { name: "auth-config", run: auth, seeds: auths, mend: as_is, words: WORDS };

const WORDS: &[&str] = &[
    "[node]\n",
    "[[disk]]\n",
    "[limits]\n",
    "[[auth.user]]\n",
    "path = \"a\"\n",
    "index = \"b\"\n",
    "data = \"d\"\n",
    "\"",
    "\"\"\"",
    "\n",
    "[",
    "]",
    "{",
    "}",
    "= 1",
    "0x",
    "1e999",
    "\u{0}",
    "\u{feff}",
    "#",
    "127.0.0.1:0",
    "[::1]:8080",
    "99999999999GiB",
    "-1s",
];

fn configs(_: &mut SplitMix64) -> Vec<Vec<u8>> {
    let users = "[node]\ndata = \"d\"\n[[disk]]\npath = \"p\"\nindex = \"i\"\n[[auth.v1_users]]\naccount = \"a\"\nuser = \"u\"\nkey = \"k\"\ngroups = [\"g\"]\n";
    vec![EXAMPLE.as_bytes().to_vec(), users.as_bytes().to_vec()]
}

fn auths(_: &mut SplitMix64) -> Vec<Vec<u8>> {
    let text = "[[projects]]\nname = \"p\"\n[[users]]\nname = \"u\"\npassword = \"x\"\nroles = { p = [\"member\"] }\n[[v1_users]]\naccount = \"a\"\nuser = \"u\"\nkey = \"k\"\n";
    vec![text.as_bytes().to_vec(), Vec::new()]
}

/// An error names a line of the file.
fn check(text: &str, error: &ConfigError) {
    assert!(error.line >= 1 && error.line <= text.lines().count() + 1, "line {} of {text:?}", error.line);
    assert!(!error.to_string().is_empty());
}

fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match Config::parse(Source { file: Path::new("quarry.toml"), text: &text }) {
        Ok(config) => assert!(!config.disks.is_empty()),
        Err(error) => check(&text, &error),
    }
}

fn auth(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Err(error) = Auth::parse(Source { file: Path::new("users.toml"), text: &text }) {
        check(&text, &error);
    }
}
