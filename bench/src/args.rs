//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::failure::Failure;

/// Smallest budget with which every scenario still fits.
const LEAST_BUDGET: u64 = 2 << 30;

/// Measures the engine and the node beside a raw loop on the same disk.
#[derive(Debug, Parser)]
#[command(name = "quarry-bench", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) options: Options,
}

/// What is measured; everything when nothing is named.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Put and get through the disk engine.
    Engine,
    /// PUT and GET through a node of its own process.
    Http,
    /// How fast an auditor reads a disk when it may.
    Scrub,
    /// Time to open after a crash, memory and index size.
    Recovery,
    /// Time to build, change and look up in rings; beside swift-ring-builder where it is installed.
    Ring,
    /// Calls between nodes, over QUIC, over TCP with TLS, and to the own node.
    Transport,
    /// How long clients wait while half the lines of a large container become a group of their own.
    Split,
    /// What snapshots and clones of a large volume cost, and random writes after a hundred of them.
    Volume,
    /// Everything, but for those two.
    All,
    /// The process that is killed, and the one that opens what it left.
    #[command(hide = true)]
    Child(Child),
}

/// Options of every suite.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Where scratch files go; not on a tmpfs.
    #[arg(long, global = true, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Raw block device for the engine suite. EVERYTHING ON IT IS DESTROYED. Its last quarter takes the raw loop.
    #[arg(long, global = true, value_name = "DEVICE")]
    pub(crate) device: Option<PathBuf>,
    /// Seconds of one pass; a pass also ends when its share of the budget is written.
    #[arg(long, global = true, value_name = "N", default_value_t = 0.25)]
    pub(crate) seconds: f64,
    /// Passes of each kind in a scenario.
    #[arg(long, global = true, value_name = "N", default_value_t = 15)]
    pub(crate) rounds: u32,
    /// Object sizes.
    #[arg(long, global = true, value_name = "SIZE", value_parser = size, value_delimiter = ',', default_value = "4K,64K,1M")]
    pub(crate) size: Vec<u64>,
    /// Operations in flight.
    #[arg(long, global = true, value_name = "N", value_delimiter = ',', default_value = "1,32")]
    pub(crate) in_flight: Vec<usize>,
    /// Clients of the HTTP suite.
    #[arg(long, global = true, value_name = "N", value_delimiter = ',', default_value = "1,8,32")]
    pub(crate) clients: Vec<usize>,
    /// Objects of the recovery suite.
    #[arg(long, global = true, value_name = "N", default_value_t = 1_000_000)]
    pub(crate) objects: u64,
    /// Lines of the split suite.
    #[arg(long, global = true, value_name = "N", default_value_t = 5_000_000)]
    pub(crate) lines: u64,
    /// Bytes that the map of the volume suite covers.
    #[arg(long, global = true, value_name = "SIZE", value_parser = size, default_value = "100G")]
    pub(crate) map: u64,
    /// Volume suite: how fast a volume is read in order that was overwritten at random, instead of snapshots and clones.
    #[arg(long, global = true)]
    pub(crate) fragmented: bool,
    /// Bytes of the volume that is fragmented; at most a quarter of the budget.
    #[arg(long, global = true, value_name = "SIZE", value_parser = size, default_value = "1G")]
    pub(crate) volume: u64,
    /// Disk space that the run may take.
    #[arg(long, global = true, value_name = "SIZE", value_parser = size, default_value = "6G")]
    pub(crate) budget: u64,
    /// The node's program; default: `quarry` beside this one.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) quarry: Option<PathBuf>,
    /// A Python environment with Swift, for the ring suite; default: the one of `swift-ring-builder` on PATH.
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) swift: Option<PathBuf>,
}

impl Options {
    /// Refuses what cannot be run.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let refuse = |why: &str| Err(Failure::Other(why.to_owned()));
        if !(0.05..=600.0).contains(&self.seconds) {
            return refuse("--seconds: give 0.05 to 600");
        }
        if !(1..=100).contains(&self.rounds) {
            return refuse("--rounds: give 1 to 100");
        }
        if self.budget < LEAST_BUDGET {
            return refuse("--budget: give 2G or more");
        }
        if self.fragmented && !(64 << 20..=self.budget / 4).contains(&self.volume) {
            return refuse("--volume: give 64M to a quarter of --budget");
        }
        if self.size.iter().any(|size| !(1..=1 << 20).contains(size)) {
            return refuse("--size: give 1 to 1M");
        }
        let counts = self.in_flight.iter().chain(&self.clients);
        if counts.copied().any(|n| !(1..=4096).contains(&n)) {
            return refuse("--in-flight, --clients: give 1 to 4096");
        }
        Ok(())
    }

    /// Time of one pass.
    pub(crate) fn pass(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// Bytes of the file that the engine or the node gets.
    pub(crate) fn engine_bytes(&self) -> u64 {
        (self.budget / 3 * 2).next_multiple_of(1 << 20)
    }

    /// Bytes of the file of the raw loop.
    pub(crate) fn raw_bytes(&self) -> u64 {
        (self.budget / 6).next_multiple_of(1 << 20)
    }
}

/// Arguments of the recovery suite's child.
#[derive(Debug, Args)]
pub(crate) struct Child {
    /// What to do.
    #[arg(value_enum)]
    pub(crate) act: Act,
    /// The engine's file.
    #[arg(long)]
    pub(crate) disk: PathBuf,
    /// The index directory.
    #[arg(long)]
    pub(crate) index: PathBuf,
}

/// What the child does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Act {
    /// Format, fill, report, wait to be killed.
    Fill,
    /// Open, report, close.
    Open,
}

/// `4K`, `1M`, `6G` or bytes.
fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let number = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
    number.ok_or_else(|| "allowed: bytes, or with K, M or G, such as 64K".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_unit_and_refused_when_they_overflow() {
        assert_eq!(size("4K"), Ok(4096));
        assert_eq!(size("3g"), Ok(3 << 30));
        assert_eq!(size("17"), Ok(17));
        for bad in ["", "K", "-1", "99999999999G", "4KiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn suite_and_options_may_stand_in_any_order() {
        for line in ["b engine --size 4K,1M --rounds 3", "b --rounds 3 --size 4K,1M engine"] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(cli.options.rounds, 3);
            assert_eq!(cli.options.size, [4096, 1 << 20]);
            cli.options.check().unwrap();
        }
    }
}
