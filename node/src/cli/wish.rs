//! `quarry disk add|drain|remove|replace` and `quarry node drain|keep`: what a running cluster shall do with a disk or node.
//!
//! The cluster is told and begins; it goes on by itself whatever becomes of this command, and `quarry cluster status` shows
//! how far it is.

use std::io::Write;

use clap::{Args, Subcommand};

use super::{Failure, status};
use crate::control::operator::{Wanted, What};

#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// Empty all disks of a node, one replica of a partition after the other, and let it vote no more.
    Drain(Which),
    /// Let a node that is being drained stay after all.
    Keep(Which),
}

/// A disk or node, and whom to tell.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// Its identity, 32 hex digits: `quarry cluster status` shows it.
    id: String,
    #[command(flatten)]
    admin: Admin,
}

/// Whom to tell.
#[derive(Debug, Args)]
pub(super) struct Admin {
    /// Admin listener of any node; default: $QUARRY_ADMIN_URL, else http://127.0.0.1:6000.
    #[arg(long = "admin-url", value_name = "URL")]
    url: Option<String>,
}

/// Runs `quarry node`.
pub(super) fn run_node(command: &NodeCommand, out: &mut impl Write) -> Result<(), Failure> {
    let (which, wanted) = match command {
        NodeCommand::Drain(which) => (which, What::Empty),
        NodeCommand::Keep(which) => (which, What::Share),
    };
    tell(&which.admin, &Wanted { device: None, node: Some(which.id.clone()), wanted }, out)
}

/// Tells what is wanted of a disk.
pub(super) fn of_disk(which: &Which, wanted: What, out: &mut impl Write) -> Result<(), Failure> {
    tell(&which.admin, &Wanted { device: Some(which.id.clone()), node: None, wanted }, out)
}

fn tell(admin: &Admin, wanted: &Wanted, out: &mut impl Write) -> Result<(), Failure> {
    let url = status::admin_url(admin.url.as_deref());
    let body = serde_json::to_string(wanted).map_err(|e| Failure::new("write wish", e))?;
    status::ask(&url, "POST", "/cluster/wish", &body)?;
    writeln!(out, "the cluster does it; `quarry cluster status` shows how far it is")?;
    Ok(())
}
