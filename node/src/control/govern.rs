//! What the leaders of the groups do: members become voters, disks become a ring.
//!
//! Invariant: every change is made on what the group says after a barrier, and guarded by it: two leaders that both believe to
//! be one do no harm.
//! Invariant: a step that fails is tried again from the beginning, from what stands then.
//! Invariant: the row of an index group becomes another one when the group is as its row says, or to take back what has not happened.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quarry_engine::clock::{Clock, Timestamp};
use quarry_engine::consensus::Group;
use quarry_engine::net::{NodeId, Transport};

use super::groups::{ControlError, Own, Table, change, put};
use super::seating::{self, Seat};
use super::seats::Members;
use super::state::{State, ring_rows, stale_parts};
use super::{plan, seats};
use crate::storage::random_bytes;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a step may take: whoever stops to lead in the middle of a change of members may never hear of its end.
const STEP: Duration = Duration::from_secs(120);
/// Rows of one change.
const ROWS: usize = 4;
/// Index groups whose voters change at the same time: those that join are sent all rows.
const MOVING: usize = 2;
/// How long a group stays where it is before it is handed over, again.
const HAND_OVER: Duration = Duration::from_secs(15);

/// Governs for as long as it is polled.
pub(crate) async fn govern(groups: Own, net: Arc<dyn Transport>, clock: Arc<Clock>) {
    let mut last: Option<String> = None;
    let mut pause = tokio::time::interval(PAUSE);
    pause.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut governor = Governor { groups, net, clock, moving: BTreeMap::new(), handed: BTreeMap::new() };
    loop {
        pause.tick().await;
        let failed = match tokio::time::timeout(STEP, governor.step()).await {
            Ok(done) => done.err().map(|error| error.to_string()),
            Err(_) => Some("a step took too long".to_owned()),
        };
        if failed != last
            && let Some(why) = &failed
        {
            tracing::warn!("govern cluster: {why}; it is tried again");
        }
        last = failed;
    }
}

struct Governor {
    groups: Own,
    net: Arc<dyn Transport>,
    clock: Arc<Clock>,
    /// Index groups whose voters were changed and may not be so yet, with those who were to join.
    moving: BTreeMap<u32, BTreeSet<NodeId>>,
    /// When this node began to lead an index group that another shall lead, or tried last to hand it over.
    handed: BTreeMap<u32, Instant>,
}

impl Governor {
    async fn step(&mut self) -> Result<(), ControlError> {
        let groups = self.groups.clone();
        let led: Vec<Group> = groups.all().into_iter().filter(|group| group.status().leads).collect();
        if led.is_empty() {
            return Ok(());
        }
        let leads_control = groups.control.status().leads;
        if leads_control {
            let leading = groups.control.barrier().await?;
            self.clock.observe(Timestamp(leading.above));
        }
        let table = Table::read(&groups.control)?;
        let state = table.state()?;
        // What fails for one of them is no reason to leave the others as they are.
        let mut done = Ok(());
        for group in &led {
            let brought = match state.groups.get(&group.id()) {
                Some(row) => self.index_members(group, row).await,
                None if group.id() == groups.control.id() => {
                    let voters = plan::voters(&state, &group.status().voters);
                    let all = state.members.keys().copied().filter(|node| state.takes_part(*node));
                    group.bring_members(&all.collect(), &voters).await.map(drop).map_err(Into::into)
                }
                // It is about to be written down.
                None => Ok(()),
            };
            done = done.and(brought);
        }
        if leads_control { done.and(self.control(&table, &state).await) } else { done }
    }

    /// What the leader of the control group does.
    async fn control(&mut self, table: &Table, state: &State) -> Result<(), ControlError> {
        let control = self.groups.control.clone();
        people(&control, &self.clock, table, state).await?;
        for policy in plan::policies(state).into_keys() {
            ring(&control, &self.clock, table, state, policy).await?;
        }
        self.seat(table, state).await
    }

    /// Brings the voters of an index group nearer to its row, and hands it over to the first of them.
    async fn index_members(&mut self, group: &Group, row: &[Seat]) -> Result<(), ControlError> {
        let wanted = seating::nodes(row);
        if !group.bring_members(&wanted, &wanted).await? {
            return Ok(());
        }
        let first = row.first().map(|seat| seat.node).filter(|first| *first != group.node());
        let Some(first) = first else {
            self.handed.remove(&group.id());
            return Ok(());
        };
        let since = *self.handed.entry(group.id()).or_insert_with(Instant::now);
        if since.elapsed() >= HAND_OVER {
            self.handed.insert(group.id(), Instant::now());
            // One that is away is tried again and again: nothing to be told of.
            if group.hand_over(first).await? {
                tracing::info!(group = group.id(), to = %first, "handed index group over");
            }
        }
        Ok(())
    }

    /// Writes down who shall vote in index groups next, a few at a time.
    async fn seat(&mut self, table: &Table, state: &State) -> Result<(), ControlError> {
        let mut settled = Vec::new();
        for (group, joining) in &self.moving {
            let Some(row) = state.groups.get(group) else { continue };
            // Who was to join on a disk that does not serve any more keeps no others waiting.
            let waits = row.iter().any(|seat| joining.contains(&seat.node) && !state.may_take(seat.device));
            if waits || self.is_settled(*group, row).await {
                settled.push(*group);
            }
        }
        self.moving.retain(|group, _| !settled.contains(group));
        let mut rows = Vec::new();
        for (group, next) in seating::next(state) {
            let Some(row) = state.groups.get(&group) else { continue };
            let moves = seating::nodes(row) != seating::nodes(&next);
            if moves {
                let full = self.moving.len() >= MOVING || self.moving.contains_key(&group);
                if full
                    || !self.may_follow(group, state, &next).await
                    || !self.may_join(group, row, &next).await
                {
                    continue;
                }
                let names: Vec<String> = next.iter().map(|seat| seat.node.to_string()).collect();
                tracing::info!(group, voters = names.join(" "), "seat index group");
                let joining = seating::nodes(&next).difference(&seating::nodes(row)).copied().collect();
                self.moving.insert(group, joining);
            }
            rows.push((seating::group_key(group), seating::encode(&next)));
        }
        for some in rows.chunks(ROWS) {
            change(&self.groups.control, &self.clock, table, put(some.to_vec())).await?;
        }
        Ok(())
    }

    /// Whether the members of a group are those of its row.
    async fn is_settled(&self, group: u32, row: &[Seat]) -> bool {
        let wanted = seating::nodes(row);
        seats::members(&*self.net, group, &wanted).await == Some(wanted)
    }

    /// Whether another row may follow that of a group as its members stand now.
    async fn may_follow(&self, group: u32, state: &State, next: &[Seat]) -> bool {
        let Some(row) = state.groups.get(&group) else { return false };
        let wanted = seating::nodes(row);
        let mut members = seats::members_of(&*self.net, group, &wanted).await;
        if members.is_none() && row.iter().any(|seat| !state.stays(seat.device)) {
            // It may be led still by one that is to go, which its row does not name.
            let all = state.members.keys().copied().filter(|node| state.takes_part(*node)).collect();
            members = seats::members_of(&*self.net, group, &all).await;
        }
        members.is_some_and(|members| follows(&members, &wanted, &seating::nodes(next)))
    }

    /// Whether those who are to join have nothing of the group: what they had before, they must have given up.
    async fn may_join(&self, group: u32, row: &[Seat], next: &[Seat]) -> bool {
        for node in seating::nodes(next).difference(&seating::nodes(row)) {
            if !seats::has_nothing(&*self.net, group, *node).await {
                return false;
            }
        }
        true
    }
}

/// Whether a row with these voters may follow one that wants others: the members are those that are wanted; or who was to join has not come to vote, and
/// is wanted no more, and most of those that vote stay. Its disk died while it was filled: it would never join, and keep the group as it was.
fn follows(members: &Members, wanted: &BTreeSet<NodeId>, next: &BTreeSet<NodeId>) -> bool {
    let late: BTreeSet<_> = wanted.difference(&members.voters).collect();
    let stay = members.voters.intersection(next).count();
    members.all() == *wanted
        || !late.is_empty() && late.iter().all(|node| !next.contains(node)) && stay > members.voters.len() / 2
}

/// Makes the next key of tokens when it is due, and drops what is over.
async fn people(group: &Group, clock: &Clock, table: &Table, state: &State) -> Result<(), ControlError> {
    let rows = state.people.due(clock.unix_seconds(), random_bytes, ROWS);
    if rows.is_empty() { Ok(()) } else { change(group, clock, table, rows).await }
}

/// Publishes the next ring, if another is wanted.
async fn ring(
    group: &Group,
    clock: &Clock,
    table: &Table,
    state: &State,
    policy: u16,
) -> Result<(), ControlError> {
    let hour = u32::try_from(clock.unix_seconds() / 3600).unwrap_or(u32::MAX);
    let next = match plan::ring(state, policy, hour) {
        Ok(Some(next)) => next,
        Ok(None) => return sweep(group, clock, table, policy).await,
        Err(error) => {
            tracing::error!(%error, policy, "the devices of the cluster make no ring");
            return Ok(());
        }
    };
    let (parts, present) = ring_rows(&next);
    for some in parts.chunks(ROWS) {
        change(group, clock, table, put(some.to_vec())).await?;
    }
    change(group, clock, table, put([present])).await?;
    let devices = next.members().len();
    tracing::info!(policy, version = next.version(), devices, "ring is published");
    Ok(())
}

/// Removes parts of a policy's rings that are not the present one.
async fn sweep(group: &Group, clock: &Clock, table: &Table, policy: u16) -> Result<(), ControlError> {
    for some in stale_parts(&table.rows, policy).chunks(ROWS) {
        let rows = some.iter().map(|key| (key.clone(), None)).collect();
        change(group, clock, table, rows).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Cluster, node, seated, until};
    use super::*;

    #[test]
    fn a_row_is_followed_by_another_when_the_group_is_as_it_says_or_nobody_is_to_join_it_any_more() {
        let set = |nodes: &[u8]| nodes.iter().copied().map(node).collect::<BTreeSet<_>>();
        let may = |voters: &[u8], learners: &[u8], row: &[u8], next: &[u8]| {
            follows(&Members { voters: set(voters), learners: set(learners) }, &set(row), &set(next))
        };
        assert!(may(&[1, 2, 3], &[], &[1, 2, 3], &[1, 2, 4]));
        assert!(!may(&[1, 2, 3], &[4], &[1, 2, 4], &[1, 4, 5]), "4 is being filled, and stays");
        // The disk of 4 died while it was filled.
        assert!(may(&[1, 2, 3], &[4], &[1, 2, 4], &[1, 2, 5]));
        assert!(may(&[1, 2, 3], &[4], &[1, 2, 4], &[1, 2]), "there is no other node");
        assert!(may(&[1, 2, 3], &[], &[1, 2, 4], &[1, 2, 5]), "it was not even asked to join");
        assert!(!may(&[1, 2, 3], &[4], &[1, 2, 4], &[1, 5]), "most of those that vote would go");
        assert!(!may(&[1, 2, 3, 4], &[], &[1, 2, 4], &[1, 2, 5]), "4 votes already, 3 is about to go");
        assert!(!may(&[1, 2, 4], &[3], &[1, 2, 4], &[1, 2, 5]), "3 is about to be let go");
    }

    /// Nobody joined any group while the voters of one could not be changed.
    #[tokio::test]
    async fn one_group_that_fails_keeps_the_governor_from_no_other() {
        let cluster = Cluster::start(2).await;
        let first = &cluster.nodes[0];
        let (groups, net, clock) = (first.groups.clone(), Arc::clone(&first.net), Arc::clone(&first.clock));
        let mut governor = Governor { groups, net, clock, moving: BTreeMap::new(), handed: BTreeMap::new() };
        let [one, two] = [1, 2].map(|group| first.groups.group(group).unwrap());
        cluster.write(vec![seated(1, &[1, 2, 3], &cluster), seated(2, &[1], &cluster)]).await;
        until("three nodes vote", async || governor.step().await.is_ok() && one.status().voters.len() == 3)
            .await;
        // Node 2 shall have it alone, and is away.
        cluster.kill(2);
        cluster.write(vec![seated(1, &[2], &cluster), seated(2, &[1, 3], &cluster)]).await;
        until("node 3 joins the other group", async || {
            let done = governor.step().await;
            assert!(matches!(done, Err(ControlError::Group(_))), "{done:?}");
            two.status().voters.contains(&node(3))
        })
        .await;
        cluster.revive(2);
        until("node 2 has the first one", async || {
            drop(governor.step().await);
            one.status().leader == Some(node(2))
        })
        .await;
        cluster.stop().await;
    }
}
