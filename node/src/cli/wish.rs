//! `quarry disk add|drain|remove|replace` and `quarry node drain|keep`: what a running cluster shall do with a disk or node.
//!
//! A node of the cluster, on this machine, is told, and the cluster begins; it goes on by itself whatever becomes of this command, and `quarry cluster status` shows
//! how far it is.

use std::collections::BTreeSet;
use std::io::Write;

use clap::{Args, Subcommand};

use super::{Failure, status};
use crate::control::operator::{Demand, What};
use crate::status::ClusterStatus;

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

/// `quarry disk replace`
#[derive(Debug, Args)]
pub(super) struct Replace {
    /// Identity of the old disk, 32 hex digits.
    old: String,
    /// Identity of the new one: `quarry cluster status` shows it as soon as a node with it has been started.
    new: String,
    /// The old one cannot be read any more.
    #[arg(long)]
    dead: bool,
    #[command(flatten)]
    admin: Admin,
}

/// Whom to tell.
#[derive(Debug, Args)]
pub(super) struct Admin {
    /// Admin listener of this machine's node, which takes changes from its own machine alone; default: $QUARRY_ADMIN_URL, else http://127.0.0.1:6000.
    #[arg(long = "admin-url", value_name = "URL")]
    url: Option<String>,
}

/// Runs `quarry node`.
pub(super) fn run_node(command: &NodeCommand, out: &mut impl Write) -> Result<(), Failure> {
    let (which, wanted) = match command {
        NodeCommand::Drain(which) => (which, What::Empty),
        NodeCommand::Keep(which) => (which, What::Share),
    };
    if matches!(command, NodeCommand::Drain(_))
        && let Ok(cluster) = status::cluster_of(&status::admin_url(which.admin.url.as_deref()))
        && let Some(warning) = warning_before_drain(&cluster, &which.id)
    {
        writeln!(out, "{warning}")?;
    }
    tell(&which.admin, &Demand { device: None, node: Some(which.id.clone()), wanted }, out)
}

/// What an operator should know who empties a node: with fewer than three nodes that stay an index group has one voter.
fn warning_before_drain(cluster: &ClusterStatus, node: &str) -> Option<String> {
    let leaving = |node: &str| cluster.members.iter().any(|m| m.node == node && m.state == "leaving");
    let used = cluster.devices.iter().filter(|disk| disk.state == "in" && !leaving(&disk.node));
    let nodes: BTreeSet<&str> = used.map(|disk| disk.node.as_str()).collect();
    let stay = nodes.iter().filter(|known| **known != node).count();
    (nodes.contains(node) && (1..3).contains(&stay)).then(|| {
        let nodes = if stay == 1 { "one node stays" } else { "two nodes stay" };
        format!(
            "warning: {nodes}: each index group (accounts, containers, listings) will be on one disk, and lost with it; \
             `quarry node keep {node}` takes this back"
        )
    })
}

/// Tells what is wanted of a disk.
pub(super) fn of_disk(which: &Which, wanted: What, out: &mut impl Write) -> Result<(), Failure> {
    tell(&which.admin, &Demand { device: Some(which.id.clone()), node: None, wanted }, out)
}

/// Tells that a disk takes over from another. Both are looked at first: nothing is emptied for a disk that is not there.
pub(super) fn replace_disk(replace: &Replace, out: &mut impl Write) -> Result<(), Failure> {
    let Replace { old, new, dead, admin } = replace;
    let failed = |why: &str| Failure::new("replace disk", why);
    let known = status::cluster_of(&status::admin_url(admin.url.as_deref()))?.devices;
    let find = |id: &str| known.iter().find(|disk| disk.device == *id);
    let Some(before) = find(old) else { return Err(failed("the cluster does not know the old disk")) };
    let Some(after) = find(new).filter(|_| old != new) else {
        return Err(failed("the cluster does not know the new disk; format it, list it, and start its node"));
    };
    if after.state == "away" {
        return Err(failed("the new disk does not serve; its node's log and `quarry status` say why"));
    }
    if after.bytes < before.bytes {
        writeln!(out, "the new disk is smaller than the old one: others take what it cannot hold")?;
    }
    let wish = |device: &str, wanted| Demand { device: Some(device.to_owned()), node: None, wanted };
    if after.state != "in" {
        tell_quietly(admin, &wish(new, What::Share))?;
    }
    tell(admin, &wish(old, if *dead { What::Out } else { What::Empty }), out)
}

fn tell_quietly(admin: &Admin, wanted: &Demand) -> Result<(), Failure> {
    tell(admin, wanted, &mut std::io::sink())
}

fn tell(admin: &Admin, wanted: &Demand, out: &mut impl Write) -> Result<(), Failure> {
    let url = status::admin_url(admin.url.as_deref());
    let body = serde_json::to_string(wanted).map_err(|e| Failure::new("write wish", e))?;
    status::ask(&url, "POST", "/cluster/wish", &body)?;
    writeln!(out, "the cluster does it; `quarry cluster status` shows how far it is")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{DeviceStatus, MemberStatus};

    fn cluster(nodes: &[(&str, &str, &str)]) -> ClusterStatus {
        let text = |text: &&str| (*text).to_owned();
        let member = |(node, state, _): &(&str, &str, &str)| MemberStatus {
            node: text(node),
            state: text(state),
            ..MemberStatus::default()
        };
        let device = |(node, _, state): &(&str, &str, &str)| DeviceStatus {
            node: text(node),
            state: text(state),
            ..DeviceStatus::default()
        };
        let (members, devices) = (nodes.iter().map(member).collect(), nodes.iter().map(device).collect());
        ClusterStatus { members, devices, ..ClusterStatus::default() }
    }

    /// A cluster of three that was made one of two kept each listing on one disk, and nothing said so.
    #[test]
    fn who_drains_a_node_hears_that_two_are_left() {
        let all = ["a", "b", "c", "d"].map(|node| (node, "member", "in"));
        let warns = |nodes: &[_], node| warning_before_drain(&cluster(nodes), node);
        assert_eq!(warns(&all, "d"), None);
        assert!(warns(&all[..3], "c").unwrap().contains("two nodes stay"));
        assert!(warns(&all[..2], "a").unwrap().contains("one node stays"));
        assert_eq!(warns(&all[..1], "a"), None, "nothing stays: it is refused elsewhere");
        assert_eq!(warns(&all[..3], "x"), None, "no node of this cluster");
        let leaves = [all[0], all[1], all[2], ("d", "leaving", "draining")];
        assert!(warns(&leaves, "c").is_some());
        assert_eq!(warns(&leaves, "d"), None, "it leaves already");
        let spare = [all[0], all[1], all[2], ("d", "member", "out")];
        assert!(warns(&spare, "c").is_some());
    }
}
