//! A real node in a process of its own: started, spoken to, stopped.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::args::Options;
use crate::failure::Failure;

/// A running `quarry dev`.
#[derive(Debug)]
pub(crate) struct Node {
    process: Child,
    variables: HashMap<String, String>,
}

/// The program: as given, or beside our own.
fn program(options: &Options) -> Result<PathBuf, Failure> {
    if let Some(given) = &options.quarry {
        return Ok(given.clone());
    }
    let own = std::env::current_exe().map_err(Failure::io("find own program"))?;
    let beside = own.with_file_name("quarry");
    if beside.exists() {
        return Ok(beside);
    }
    Err(Failure::Other("no `quarry` beside this program; build it, or give --quarry FILE".to_owned()))
}

/// `export NAME='value'` lines, as `quarry dev` writes them.
fn variables(text: &str) -> HashMap<String, String> {
    let pair = |line: &str| {
        let (name, value) = line.strip_prefix("export ")?.split_once('=')?;
        let value = value.strip_prefix('\'').and_then(|v| v.strip_suffix('\'')).unwrap_or(value);
        Some((name.to_owned(), value.replace("'\\''", "'")))
    };
    text.lines().filter_map(pair).collect()
}

impl Node {
    /// Starts a node on `data` with a disk of `bytes`, and waits until it is ready.
    pub(crate) fn start(options: &Options, data: &Path, bytes: u64) -> Result<Self, Failure> {
        let process = Command::new(program(options)?)
            .args(["dev", "--ports", "auto", "--size", &bytes.to_string(), "--data"])
            .arg(data)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Failure::io("start node"))?;
        let mut node = Self { process, variables: HashMap::new() };
        let Some(out) = node.process.stdout.take() else { return Ok(node) };
        let ready = BufReader::new(out).lines().map_while(Result::ok).any(|line| line == "ready");
        if !ready {
            return Err(Failure::Other("the node ended before it was ready".to_owned()));
        }
        let text = std::fs::read_to_string(data.join("client.env"));
        node.variables = variables(&text.map_err(Failure::io("read client.env"))?);
        Ok(node)
    }

    /// A variable of `client.env`.
    pub(crate) fn variable(&self, name: &str) -> Result<&str, Failure> {
        let value = self.variables.get(name);
        value.map(String::as_str).ok_or_else(|| Failure::Other(format!("client.env has no {name}")))
    }

    /// Its process number, for /proc.
    pub(crate) fn id(&self) -> String {
        self.process.id().to_string()
    }

    /// Asks it to stop, and waits.
    pub(crate) fn stop(mut self) -> Result<(), Failure> {
        let pid = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM).map_err(|e| Failure::io("stop node")(e.into()))?;
        }
        let status = self.process.wait().map_err(Failure::io("stop node"))?;
        if status.success() { Ok(()) } else { Err(Failure::Other(format!("the node ended with {status}"))) }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // After `stop` it has ended already; after a failure this is what ends it.
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_read_as_a_shell_reads_them() {
        let found = variables("export ST_USER='a:b'\nexport ST_KEY='it'\\''s'\n# no\n");
        assert_eq!(found["ST_USER"], "a:b");
        assert_eq!(found["ST_KEY"], "it's");
        assert_eq!(found.len(), 2);
    }
}
