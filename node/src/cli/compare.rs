//! `quarry cluster compare`: are the copies of each partition equal?

use std::io::Write;
use std::time::Duration;

use super::{Failure, status};
use crate::control::compare::Compared;
use crate::control::leaving::Left;

/// How long the node may take: it asks every device, and waits for those that hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// Prints what came out; fails when the copies are not equal.
pub(super) fn run(url: Option<&str>, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    let found = of(&status::admin_url(url))?;
    if json {
        let text = serde_json::to_string(&found).map_err(|e| Failure::new("show comparison", e))?;
        writeln!(out, "{text}")?;
    } else {
        print(&found, out)?;
    }
    if found.is_clean() {
        return Ok(());
    }
    let reason = "not everything is equal and in its place; the cluster works on it, ask again";
    Err(Failure::new("compare copies", reason))
}

/// What a node finds.
pub(super) fn of(url: &str) -> Result<Compared, Failure> {
    let text = status::ask_within(Some(PATIENCE), url, "GET", "/cluster/compare", "")?;
    serde_json::from_str(&text).map_err(|e| Failure::new(format!("read comparison of {url}"), e))
}

fn print(found: &Compared, out: &mut impl Write) -> std::io::Result<()> {
    let Compared { different, unknown, silent, handoffs, index_groups, unsettled, .. } = found;
    writeln!(out, "{}", found.summary())?;
    for (policy, parts) in different {
        let named: Vec<String> = parts.iter().map(ToString::to_string).collect();
        writeln!(out, "different: partitions {} of policy {policy}", named.join(" "))?;
    }
    if *unknown > 0 {
        writeln!(out, "unknown: {unknown} partitions, of which a device does not answer")?;
    }
    for (device, why) in silent {
        writeln!(out, "no answer from device {device}: {why}")?;
    }
    for (device, many) in handoffs {
        writeln!(out, "device {device} holds {many} partitions for others")?;
    }
    print_volumes(&found.volumes, out)?;
    let settled = index_groups.saturating_sub(unsettled.len());
    writeln!(
        out,
        "{settled} of {index_groups} index groups have a leader and the voters that they shall have"
    )?;
    if !unsettled.is_empty() {
        let named: Vec<String> = unsettled.iter().map(ToString::to_string).collect();
        writeln!(out, "not so: index groups {}", named.join(" "))?;
    }
    Ok(())
}

/// What is to leave nodes and disks that shall be empty.
fn print_volumes(left: &Left, out: &mut impl Write) -> std::io::Result<()> {
    if left.count() == 0 {
        return Ok(());
    }
    let when =
        left.eta_seconds.map_or("ask again to learn how long".to_owned(), |eta| format!("in about {eta} s"));
    let Left { volumes, members, kept, .. } = left;
    writeln!(
        out,
        "{volumes} volumes, and {members} members of volumes with several, are to go elsewhere; {when}"
    )?;
    for (volume, why) in kept {
        writeln!(out, "volume {volume} stays: {why}")?;
    }
    Ok(())
}
