//! The command line of `quarry`.
//!
//! Invariant: a failure prints one line, `quarry: verb object: reason; what to do`, and exits with 1; wrong usage
//! exits with 2.

mod cluster;
mod compare;
mod config;
mod dev;
mod disk;
mod policy;
mod progress;
mod ring;
mod serve;
mod status;
mod user;
mod volume;
mod wish;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::config::parse_size;

/// A storage node: objects on bare disks, for Swift clients.
#[derive(Debug, Parser)]
#[command(name = "quarry", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node from its configuration file.
    Serve {
        /// The configuration; `quarry config example` prints one.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Run a node for development: everything in one directory, generated credentials, on 127.0.0.1.
    Dev(DevArgs),
    /// Check a configuration file, or print an example.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Work on disks that no node has open, or say what a running cluster shall do with one.
    #[command(subcommand)]
    Disk(disk::DiskCommand),
    /// Build rings: which devices hold which partitions.
    #[command(subcommand)]
    Ring(ring::RingCommand),
    /// Make a cluster and let machines join it.
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Say what a running cluster shall do with a node.
    #[command(subcommand)]
    Node(wish::NodeCommand),
    /// Say who may use a running cluster.
    #[command(subcommand)]
    User(user::UserCommand),
    /// Say how a running cluster keeps objects.
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Make, show and change the block volumes of a running node.
    #[command(subcommand)]
    Volume(volume::VolumeCommand),
    /// Make this machine a node of a cluster.
    Join(cluster::JoinArgs),
    /// Show the disks and workers of a running node.
    Status {
        /// Admin listener; default: $QUARRY_ADMIN_URL, else http://127.0.0.1:6000.
        #[arg(long, value_name = "URL")]
        admin_url: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the version.
    Version,
}

/// `quarry dev`
#[derive(Debug, clap::Args)]
struct DevArgs {
    /// Directory of everything; made when absent.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// OpenStack's ports (8080, 5000, and 6000 for the operator), or free ones.
    #[arg(long, value_enum, default_value_t = Ports::Default)]
    ports: Ports,
    /// Size of the disk file, given at the first start; it is written once in full. Default: 10G.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    size: Option<u64>,
    /// Add the users of Swift's test suites, whose keys everybody knows.
    #[arg(long)]
    test_users: bool,
}

/// Which ports `quarry dev` listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Ports {
    /// 8080, 5000, 8776 and 6000.
    Default,
    /// Free ones.
    Auto,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Read and validate a file, and say what is wrong with it.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Print a file with every setting and its default.
    Example,
}

/// A size as in the configuration: `10G`.
fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| "allowed: bytes, or with K, M, G or T, such as 10G".to_owned())
}

/// Why a command failed: `verb object: reason; what to do`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Failure(String);

impl Failure {
    /// From its parts.
    pub(crate) fn new(what: impl std::fmt::Display, reason: impl std::fmt::Display) -> Self {
        Self(format!("{what}: {reason}"))
    }
}

impl From<crate::node::NodeError> for Failure {
    fn from(error: crate::node::NodeError) -> Self {
        Self(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new("write output", error)
    }
}

/// Makes a data directory, for its owner alone.
fn make_private_directory(path: &std::path::Path) -> Result<(), Failure> {
    Ok(crate::node::make_private_directory(path)?)
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = std::io::stdout().lock();
    let done = match cli.command {
        Command::Serve { config } => {
            drop(out);
            serve::run(&config)
        }
        Command::Dev(args) => {
            drop(out);
            dev::run(&args)
        }
        Command::Config(ConfigCommand::Check { file }) => config::check(&file, &mut out),
        Command::Config(ConfigCommand::Example) => {
            out.write_all(crate::config::EXAMPLE.as_bytes()).map_err(Into::into)
        }
        Command::Disk(command) => disk::run(&command, &mut out),
        Command::Ring(command) => ring::run(&command, &mut out),
        Command::Cluster(command) => cluster::run(&command, &mut out),
        Command::Node(command) => wish::run_node(&command, &mut out),
        Command::User(command) => user::run(&command, &mut out),
        Command::Policy(command) => policy::run(&command, &mut out),
        Command::Volume(command) => volume::run(&command, &mut out),
        Command::Join(args) => cluster::join(&args, &mut out),
        Command::Status { admin_url, json } => status::run(admin_url.as_deref(), json, &mut out),
        Command::Version => writeln!(out, "quarry {}", env!("CARGO_PKG_VERSION")).map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nothing is left to be done when standard error is closed.
            let _ = writeln!(std::io::stderr(), "quarry: {failure}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_parse() {
        for line in [
            "quarry serve --config quarry.toml",
            "quarry dev --data d --ports auto --size 2G --test-users",
            "quarry config check quarry.toml",
            "quarry config example",
            "quarry disk format d --size 1G --cluster 00112233445566778899aabbccddeeff",
            "quarry disk check d",
            "quarry disk rebuild-index d --index i",
            "quarry ring create o.builder --part-power 18 --replicas 3.25 --overload 12.5% --class ssd",
            "quarry ring add o.builder 1.2.7:4000:hdd:store7/sdb 1.2.8:4000",
            "quarry ring set-weight o.builder 1=0 2=500",
            "quarry ring rebalance o.builder --stored 40T --dry-run",
            "quarry cluster init --data d",
            "quarry cluster token --data d --address 192.0.2.1:7000 --valid 30m",
            "quarry cluster renew --data d",
            "quarry cluster show --data d",
            "quarry cluster compare --json",
            "quarry join quarry-join-AAAA --data d",
            "quarry policy list",
            "quarry policy add cold 4+2 --alias ec --default",
            "quarry policy set Policy-0 --rename std --deprecate --admin-url http://127.0.0.1:6000",
            "quarry user set test:ann --group .admin --new-secret",
            "quarry user set ann --project demo --role admin --secret-stdin",
            "quarry user remove ann --admin-url http://127.0.0.1:6000",
            "quarry join quarry-join-AAAA --data d --replace",
            "quarry disk replace 00112233445566778899aabbccddeeff ffeeddccbbaa99887766554433221100 --dead",
            "quarry volume create vol 10G --description disk",
            "quarry volume list --json",
            "quarry volume show vol",
            "quarry volume extend vol 20G",
            "quarry volume snapshot vol monday --delete",
            "quarry volume delete vol --admin-url http://127.0.0.1:6000",
            "quarry status --json",
            "quarry version",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        assert_eq!(Cli::try_parse_from(["quarry", "dev"]).unwrap_err().exit_code(), 2);
        assert!(Cli::try_parse_from("quarry dev --data d --size much".split(' ')).is_err());
        assert!(Cli::try_parse_from("quarry cluster token --data d --valid 1s".split(' ')).is_err());
    }
}
