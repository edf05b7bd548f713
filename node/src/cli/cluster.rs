//! `quarry cluster` and `quarry join`: make a cluster, let machines in, become one of its nodes.
//!
//! Invariant: an identity is made or taken over whole, and never replaced by another.

use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use quarry_engine::disk::format::superblock::ClusterId;

use super::Failure;
use crate::cluster::authority::{self, unix_now};
use crate::cluster::identity::{self, Files};
use crate::cluster::join::{self, Joined, TOKEN_LIFE};
use crate::cluster::token::{self, Token};
use crate::cluster::{Identity, IdentityError};
use crate::config::parse_span;
use crate::control::founding;
use crate::control::state::{MAX_INDEX_GROUPS, Settings};
use crate::hidden::Hidden;
use crate::storage::{self, cluster_text};

/// Shortest and longest time that a token may be good, in milliseconds.
const TOKEN_LIVES: std::ops::RangeInclusive<u64> = 60_000..=30 * 86_400_000;

#[derive(Debug, Subcommand)]
pub(super) enum ClusterCommand {
    /// Make a cluster whose first node has this data directory: its authority, its id, the node's certificate.
    Init {
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        settled: Settled,
    },
    /// Make a word with which one machine may join, once. The node of this directory must run with a [cluster] section.
    Token {
        #[command(flatten)]
        data: Data,
        /// Where the machine reaches the node; default: where the running node says that it is reached.
        #[arg(long, value_name = "IP:PORT")]
        address: Option<SocketAddr>,
        /// How long the word is good, such as 30m, 1h, 7d.
        #[arg(long, value_name = "TIME", value_parser = life)]
        valid: Option<Duration>,
    },
    /// Make a new certificate for this node; a running one takes it up by itself. Where the authority is; elsewhere join again.
    Renew(Data),
    /// Show which node of which cluster this is.
    Show(Data),
    /// Ask all disks of a running cluster whether the copies of each partition are equal, and where they belong.
    Compare {
        /// Admin listener of any node; default: $QUARRY_ADMIN_URL, else http://127.0.0.1:6000.
        #[arg(long, value_name = "URL")]
        admin_url: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show the nodes, disks, groups and ring of a running cluster.
    Status {
        /// Admin listener of any node; default: $QUARRY_ADMIN_URL, else http://127.0.0.1:6000.
        #[arg(long, value_name = "URL")]
        admin_url: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// What is settled for a cluster when it is made.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Settled {
    /// Copies of each object, as soon as there are as many nodes.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=32))]
    replicas: u16,
    /// The ring has 2 to the power of this many partitions, for ever: about a hundred for each disk that will ever be.
    #[arg(long, value_name = "P", default_value_t = 12, value_parser = clap::value_parser!(u8).range(1..=24))]
    part_power: u8,
    /// Hours in which a partition moves no second time: as long as a pass of replication may take.
    #[arg(long, value_name = "HOURS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=8784))]
    min_part_hours: u16,
    /// Groups of voters that keep the names, for ever, a power of two: an account is in one of them, with all its listings.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = index_groups)]
    index_groups: u32,
}

/// Which data directory.
#[derive(Debug, Args)]
pub(super) struct Data {
    /// The node's data directory.
    #[arg(long = "data", value_name = "DIR")]
    data: PathBuf,
}

/// `quarry join`
#[derive(Debug, Args)]
pub(super) struct JoinArgs {
    /// What `quarry cluster token` printed on a node of the cluster; `-`: read it from standard input, where no list of processes shows it.
    token: Hidden,
    /// Make the machine of a node whose disk is lost another node, which takes the old one's place when it is started.
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    data: Data,
}

fn index_groups(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|n: &u32| n.is_power_of_two() && *n <= MAX_INDEX_GROUPS);
    number.ok_or_else(|| format!("allowed: a power of two up to {MAX_INDEX_GROUPS}"))
}

fn life(text: &str) -> Result<Duration, String> {
    let millis = parse_span(text).filter(|millis| TOKEN_LIVES.contains(millis));
    millis.map(Duration::from_millis).ok_or_else(|| "allowed: 1m to 30d, such as 1h".to_owned())
}

/// Runs `quarry cluster`.
pub(super) fn run(command: &ClusterCommand, out: &mut impl Write) -> Result<(), Failure> {
    match command {
        ClusterCommand::Init { data: Data { data }, settled } => init(data, *settled, out),
        ClusterCommand::Token { data: Data { data }, address, valid } => {
            make_token(data, *address, valid.unwrap_or(TOKEN_LIFE), out)
        }
        ClusterCommand::Renew(Data { data }) => {
            let node = authority::renew(data).map_err(|e| Failure::new("renew certificate", e))?;
            writeln!(out, "node {node} has a new certificate; the running node takes it up within seconds")?;
            Ok(())
        }
        ClusterCommand::Show(Data { data }) => show(data, out),
        ClusterCommand::Compare { admin_url, json } => super::compare::run(admin_url.as_deref(), *json, out),
        ClusterCommand::Status { admin_url, json } => {
            super::status::run_cluster(admin_url.as_deref(), *json, out)
        }
    }
}

fn init(data: &Path, settled: Settled, out: &mut impl Write) -> Result<(), Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::new("make cluster", e);
    super::make_private_directory(data)?;
    let known = storage::known_cluster(data)?;
    let cluster = known.unwrap_or_else(storage::random_cluster);
    let Settled { replicas, part_power, min_part_hours, index_groups } = settled;
    let settings = Settings { replicas, part_power, min_part_hours, index_groups };
    let settle = || {
        founding::write(data, settings)?;
        storage::remember_cluster(data, cluster).map_err(|e| IdentityError::invalid(data, e))
    };
    let node = authority::found(data, cluster, settle).map_err(|e| failed(&e))?;
    writeln!(out, "cluster {}", cluster_text(cluster))?;
    writeln!(out, "node    {node}")?;
    writeln!(out)?;
    writeln!(
        out,
        "{} holds the authority's key: whoever has it can let anybody in.",
        Files::of(data).authority_key.display()
    )?;
    say_how_to_format(cluster, out)?;
    writeln!(out, "Give the node a [cluster] section with `listen`, start it, and let machines join:")?;
    writeln!(out, "  quarry cluster token --data {}", data.display())?;
    Ok(())
}

/// Devices are formatted by hand, and for one cluster.
fn say_how_to_format(cluster: ClusterId, out: &mut impl Write) -> std::io::Result<()> {
    let cluster = cluster_text(cluster);
    writeln!(
        out,
        "Format its devices with `quarry disk format DEVICE --cluster {cluster}`; disk files are made at the first start."
    )
}

fn make_token(
    data: &Path,
    address: Option<SocketAddr>,
    valid: Duration,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::new("make token", e);
    let files = Files::of(data);
    // Only a node that can sign lets others join.
    let authority = authority::Authority::load(data).map_err(|e| failed(&e))?;
    let address = match address {
        Some(address) => address,
        None => written_address(&files.address).map_err(|e| failed(&e))?,
    };
    let token = token::give(data, address, unix_now(), valid).map_err(|e| failed(&e))?;
    tracing::debug!(cluster = %cluster_text(authority.cluster()), "made token");
    writeln!(out, "{token}")?;
    Ok(())
}

/// Where the running node wrote that it is reached.
fn written_address(file: &Path) -> Result<SocketAddr, String> {
    let advice = "start the node with a [cluster] section, or give --address";
    let text = identity::read(file).map_err(|e| format!("{e}; {advice}"))?;
    let text = String::from_utf8_lossy(&text);
    text.trim().parse().map_err(|_| format!("{}: not an address; {advice}", file.display()))
}

fn show(data: &Path, out: &mut impl Write) -> Result<(), Failure> {
    let identity = Identity::load(data).map_err(|e| Failure::new("show cluster", e))?;
    let files = Files::of(data);
    writeln!(out, "cluster    {}", cluster_text(identity.cluster))?;
    writeln!(out, "node       {}", identity.node)?;
    writeln!(
        out,
        "authority  {}",
        if files.authority_key.exists() { "its key is here" } else { "elsewhere" }
    )?;
    let address =
        written_address(&files.address).map_or_else(|_| "unknown".to_owned(), |address| address.to_string());
    writeln!(out, "address    {address}")?;
    Ok(())
}

/// A token from the first line of what is read.
fn read_token(from: &mut impl BufRead) -> Result<Token, Failure> {
    let mut line = Hidden::<String>::default();
    from.read_line(&mut line).map_err(|e| Failure::new("read token from standard input", e))?;
    line.trim().parse().map_err(|e: token::TokenError| Failure::new("join cluster", e))
}

/// Runs `quarry join`.
pub(super) fn join(args: &JoinArgs, out: &mut impl Write) -> Result<(), Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::new("join cluster", e);
    let data = &args.data.data;
    let token: Token = if args.token.as_str() == "-" {
        read_token(&mut std::io::stdin().lock())?
    } else {
        args.token.parse().map_err(|e: token::TokenError| failed(&e))?
    };
    super::make_private_directory(data)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new("start threads", e))?;
    if args.replace {
        // Another identity under a running node would be shown as its own.
        let _stopped = crate::node::claim_data(data)?;
        let (old, joined) = runtime.block_on(join::replace(data, &token)).map_err(|e| failed(&e))?;
        writeln!(out, "cluster {}", cluster_text(joined.cluster))?;
        writeln!(out, "node    {}", joined.node)?;
        writeln!(out)?;
        writeln!(
            out,
            "It takes the place of node {old} when it is started: that one votes no more, its disks are out,"
        )?;
        writeln!(
            out,
            "and the others make copies of what they held. `quarry cluster status` shows how far they are."
        )?;
        return Ok(());
    }
    let joined = runtime.block_on(join::join(data, &token)).map_err(|e| failed(&e))?;
    let Joined { cluster, node, renewed, host } = joined;
    if renewed {
        writeln!(out, "node {node} has a new certificate; the running node takes it up within seconds")?;
        return Ok(());
    }
    writeln!(out, "cluster {}", cluster_text(cluster))?;
    writeln!(out, "node    {node}")?;
    writeln!(out)?;
    say_how_to_format(cluster, out)?;
    writeln!(
        out,
        "Give the node a [cluster] section with the address at which others reach it, and start it:"
    )?;
    writeln!(out, "  [cluster]\n  listen = \"IP:PORT\"")?;
    tracing::debug!(%host, "joined");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(command: &ClusterCommand) -> Result<String, String> {
        let mut out = Vec::new();
        run(command, &mut out).map_err(|e| e.to_string())?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn init_of(data: Data) -> ClusterCommand {
        let settled = Settled { replicas: 3, part_power: 8, min_part_hours: 1, index_groups: 2 };
        ClusterCommand::Init { data, settled }
    }

    #[test]
    fn a_cluster_is_made_once_and_gives_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made");
        let data = || Data { data: path.clone() };
        let error = output(&ClusterCommand::Show(data())).unwrap_err();
        assert!(error.contains("quarry cluster init"), "{error}");
        let made = output(&init_of(data())).unwrap();
        let shown = output(&ClusterCommand::Show(data())).unwrap();
        let node = made.lines().find_map(|line| line.strip_prefix("node    ")).unwrap();
        assert!(shown.contains(node) && shown.contains("its key is here"), "{shown}");
        let error = output(&init_of(data())).unwrap_err();
        assert!(error.contains("is there already") && error.contains("use another one"), "{error}");
        assert!(made.contains("--cluster "), "{made}");
        let token = |address| ClusterCommand::Token { data: data(), address, valid: None };
        let error = output(&token(None)).unwrap_err();
        assert!(error.contains("--address"), "{error}");
        let address = "192.0.2.1:7000".parse().unwrap();
        let text = output(&token(Some(address))).unwrap();
        assert_eq!(text.trim().parse::<Token>().unwrap().address, address);
        // As it comes through a pipe.
        assert_eq!(read_token(&mut text.as_bytes()).unwrap().address, address);
        assert!(read_token(&mut &b""[..]).is_err());
        assert!(output(&ClusterCommand::Renew(data())).unwrap().contains(node));
    }

    #[test]
    fn the_cluster_of_the_disks_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let cluster = storage::random_cluster();
        storage::remember_cluster(dir.path(), cluster).unwrap();
        let made = output(&init_of(Data { data: dir.path().to_owned() })).unwrap();
        assert!(made.contains(&cluster_text(cluster)), "{made}");
    }

    /// The node's identity came before what was wanted of the cluster: killed between, it was a node of a cluster that nobody would found.
    #[test]
    fn a_cluster_that_cannot_be_settled_has_no_node() {
        let dir = tempfile::tempdir().unwrap();
        let data = || Data { data: dir.path().to_owned() };
        // Nothing can be renamed over a directory with something in it.
        std::fs::create_dir_all(dir.path().join("cluster").join("founder").join("full")).unwrap();
        let path = Files::of(dir.path()).node;
        let error = output(&init_of(data())).unwrap_err();
        assert!(!path.exists(), "{error}");
        let error = output(&init_of(data())).unwrap_err();
        assert!(error.contains("did not finish here"), "{error}");
        std::fs::remove_dir_all(dir.path().join("cluster")).unwrap();
        output(&init_of(data())).unwrap();
        assert!(path.exists() && Files::of(dir.path()).founder.exists());
    }

    #[test]
    fn what_is_no_token_is_said_to_be_none() {
        let dir = tempfile::tempdir().unwrap();
        let args = JoinArgs {
            token: "quarry-join-x".to_owned().into(),
            replace: false,
            data: Data { data: dir.path().to_owned() },
        };
        let error = join(&args, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.starts_with("join cluster: found something that is no token"), "{error}");
    }
}
