//! What the leaders of the groups do: members become voters, disks become a ring.
//!
//! Invariant: every change is made on what the group says after a barrier, and guarded by it: two leaders that both believe to
//! be one do no harm.
//! Invariant: a step that fails is tried again from the beginning, from what stands then.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quarry_engine::clock::{Clock, Timestamp};
use quarry_engine::consensus::{Group, GroupStatus};
use quarry_engine::net::NodeId;

use super::groups::{Both, ControlError, Table, change, put};
use super::plan;
use super::state::{State, ring_rows, stale_parts};
use crate::storage::random_bytes;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(500);
/// A member that lags by so many entries has caught up enough to vote.
const CAUGHT_UP: u64 = 500;
/// Rows of one change.
const ROWS: usize = 4;

/// Governs for as long as it is polled.
pub(crate) async fn govern(groups: Both, clock: Arc<Clock>) {
    let mut last: Option<String> = None;
    let mut pause = tokio::time::interval(PAUSE);
    pause.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        pause.tick().await;
        let failed = step(&groups, &clock).await.err().map(|error| error.to_string());
        if failed != last
            && let Some(why) = &failed
        {
            tracing::warn!("govern cluster: {why}; it is tried again");
        }
        last = failed;
    }
}

async fn step(groups: &Both, clock: &Clock) -> Result<(), ControlError> {
    let leads_control = groups.control.status().leads;
    let led: Vec<&Group> =
        [&groups.control, &groups.names].into_iter().filter(|group| group.status().leads).collect();
    if led.is_empty() {
        return Ok(());
    }
    if leads_control {
        let leading = groups.control.barrier().await?;
        clock.observe(Timestamp(leading.above));
    }
    let table = Table::read(&groups.control)?;
    let state = table.state()?;
    for group in led {
        members(group, &state).await?;
    }
    if leads_control {
        people(&groups.control, clock, &table, &state).await?;
        ring(&groups.control, clock, &table, &state).await?;
    }
    Ok(())
}

/// Brings members and voters of a group one step nearer to those of the cluster.
async fn members(group: &Group, state: &State) -> Result<(), ControlError> {
    let status = group.status();
    if status.changing {
        return Ok(());
    }
    let known = |node: &NodeId| status.voters.contains(node) || status.learners.contains(node);
    if let Some(node) = state.members.keys().find(|node| !known(node)) {
        tracing::info!(group = group.id(), %node, "add member");
        return Ok(group.add_learner(*node).await?);
    }
    let wanted = plan::voters(state, &status.voters);
    if wanted != status.voters && wanted.iter().all(|node| caught_up(&status, node)) {
        let names: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        tracing::info!(group = group.id(), voters = names.join(" "), "change voters");
        return Ok(group.change_voters(wanted).await?);
    }
    let gone: BTreeSet<&NodeId> =
        status.learners.iter().filter(|node| !state.members.contains_key(node)).collect();
    match gone.first() {
        Some(node) => Ok(group.remove_learner(**node).await?),
        None => Ok(()),
    }
}

fn caught_up(status: &GroupStatus, node: &NodeId) -> bool {
    let matched = status.matched.get(node).copied().flatten();
    status.voters.contains(node)
        || matched.zip(status.last).is_some_and(|(matched, last)| matched + CAUGHT_UP >= last)
}

/// Makes the next key of tokens when it is due, and drops what is over.
async fn people(group: &Group, clock: &Clock, table: &Table, state: &State) -> Result<(), ControlError> {
    let rows = state.people.due(clock.unix_seconds(), random_bytes, ROWS);
    if rows.is_empty() { Ok(()) } else { change(group, clock, table, rows).await }
}

/// Publishes the next ring, if another is wanted.
async fn ring(group: &Group, clock: &Clock, table: &Table, state: &State) -> Result<(), ControlError> {
    let hour = u32::try_from(clock.unix_seconds() / 3600).unwrap_or(u32::MAX);
    let next = match plan::ring(state, hour) {
        Ok(Some(next)) => next,
        Ok(None) => return sweep(group, clock, table).await,
        Err(error) => {
            tracing::error!(%error, "the devices of the cluster make no ring");
            return Ok(());
        }
    };
    let (parts, present) = ring_rows(&next);
    for some in parts.chunks(ROWS) {
        change(group, clock, table, put(some.to_vec())).await?;
    }
    change(group, clock, table, put([present])).await?;
    let devices = next.members().len();
    tracing::info!(version = next.version(), devices, "ring is published");
    Ok(())
}

/// Removes parts of rings that are not the present one.
async fn sweep(group: &Group, clock: &Clock, table: &Table) -> Result<(), ControlError> {
    for some in stale_parts(&table.rows).chunks(ROWS) {
        let rows = some.iter().map(|key| (key.clone(), None)).collect();
        change(group, clock, table, rows).await?;
    }
    Ok(())
}
