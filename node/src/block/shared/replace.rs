//! Members on disks that are to be empty, or are out, give their places to others.
//!
//! ```text
//! members        joining   wanted   next
//! A B C          -         3        C leaves: D joins, and is filled
//! A B C          D         3        wait
//! A B C D        -         3        C goes
//! A B C D E      -         5        no sixth may join: E goes first, when all others count
//! A B C D        -         5        and then another joins
//! ```
//!
//! What is next follows from the volume's row alone, so that whoever goes on after a crash, or a change of heads, does the same. It is done by
//! the head's node; where nobody is the head, by the first node with a member that answers.
//!
//! Invariant: a member goes only when as many others count as the volume shall have, but of five, the most that there may be.
//! Invariant: before a member comes or goes it is written how many there shall be, so that there are as many in the end.
//! Invariant: no volume is taken from who uses it.
//! Invariant: a member that went keeps its bytes, under the old epoch, until its volume is deleted: it may be wanted again.

use std::collections::HashSet;

use futures_util::stream::{self, StreamExt};
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::NodeId;
use quarry_volume::head::{Configuration, MAX_MEMBERS};
use quarry_volume::store::{Replicated, VolumeError};

use super::super::moving::end_of;
use super::{PAUSE, Shared, TRIES};
use crate::cluster::watch::{Patience, is_first};
use crate::control::state::{State, Wanted};
use crate::control::volumes::Row;

/// Volumes with which something is done at a time.
const TOGETHER: usize = 16;

/// What is next with a volume's members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Nothing,
    Wait,
    Add(DeviceId),
    Remove(DeviceId),
    /// There is no disk to take another member.
    Stuck,
}

/// Which step is next; `wanted`: how many members the volume shall have, 0 if as many as it has.
fn next(
    configuration: &Configuration,
    wanted: usize,
    stays: impl Fn(DeviceId) -> bool,
    spare: Option<DeviceId>,
) -> Step {
    let Configuration { members, joining, .. } = configuration;
    let wanted = if wanted > 0 { wanted } else { members.len() + joining.len() };
    let staying = configuration.all().filter(|device| stays(*device)).count();
    let counting = members.iter().filter(|device| stays(**device)).count();
    let full = members.len() + joining.len() >= MAX_MEMBERS;
    if staying < wanted && !full {
        return spare.map_or(Step::Stuck, Step::Add);
    }
    let leaves = |device: &&DeviceId| !stays(**device);
    if let Some(idle) = joining.iter().find(leaves) {
        // It does not count: nothing is lost with it.
        return Step::Remove(*idle);
    }
    match members.iter().find(leaves) {
        // Who was to go stays after all.
        None if staying > wanted && counting >= wanted => {
            joining.last().or(members.last()).map_or(Step::Nothing, |last| Step::Remove(*last))
        }
        None => Step::Nothing,
        Some(old) if counting >= wanted || (full && joining.is_empty()) => Step::Remove(*old),
        Some(_) => Step::Wait,
    }
}

/// The first of these disks whose node has no member: none but such as are on a disk that is out, in whose place another one of its node may come.
fn spare(state: &State, configuration: &Configuration, candidates: Vec<DeviceId>) -> Option<DeviceId> {
    let known = |device: DeviceId| state.devices.get(&device);
    let serving = configuration.all().filter_map(known).filter(|disk| disk.wanted != Wanted::Out);
    let taken: HashSet<NodeId> = serving.map(|disk| disk.node).collect();
    let is_member = |device: DeviceId| configuration.all().any(|member| member == device);
    let fresh = |device: DeviceId| known(device).is_some_and(|disk| !taken.contains(&disk.node));
    candidates.into_iter().find(|device| fresh(*device) && !is_member(*device))
}

/// A head whose node was restarted is not there before somebody uses the volume, and nobody else fills who lacks something. That head
/// rests when all have everything. It comes back at its own node: another one, for which that is silent for some seconds, would take the volume from who
/// uses it.
fn after_all(step: Step, head: Option<NodeId>, configuration: &Configuration) -> Step {
    match step {
        Step::Nothing if head.is_some() && !configuration.joining.is_empty() => Step::Wait,
        step => step,
    }
}

/// How many members a volume shall have, to be written before a step: afterwards it is not as many as it has.
fn noted(step: Step, row: &Configuration, wanted: u8) -> Option<u8> {
    let counts = matches!(step, Step::Add(_) | Step::Remove(_)) && wanted == 0;
    counts.then(|| u8::try_from(row.all().count()).unwrap_or(u8::MAX))
}

impl Shared {
    /// One step with each volume that needs one; with several at a time, for some take long to be served.
    pub(crate) async fn replace(&self) {
        let each = stream::iter(self.list()).for_each_concurrent(TOGETHER, |row| async move {
            if let Err(error) = self.replace_of(&row).await {
                tracing::warn!(volume = %row.name, %error, "replace a member of a volume");
            }
        });
        each.await;
    }

    fn step(&self, row: &Row) -> Step {
        let state = self.state.borrow().clone();
        let stays = |device| state.stays(device);
        let configuration = &row.configuration;
        let head = row.head.filter(|head| *head == self.local() || !state.takes_part(*head));
        if row.wanted == 0 && configuration.all().all(stays) {
            return after_all(Step::Nothing, head, configuration);
        }
        let spare = spare(&state, configuration, self.candidates(row.id).unwrap_or_default());
        after_all(next(configuration, row.wanted.into(), stays, spare), head, configuration)
    }

    /// Nodes that may do it: the head's, those of members that stay, the others.
    pub(in crate::block) fn doers(&self, row: &Row) -> Vec<NodeId> {
        let state = self.state.borrow().clone();
        let mut members: Vec<DeviceId> = row.configuration.all().collect();
        members.sort_by_key(|device| !state.stays(*device));
        let nodes = members.iter().filter_map(|device| Some(state.devices.get(device)?.node));
        let head = row.head.filter(|head| state.takes_part(*head));
        head.into_iter().chain(nodes).collect()
    }

    async fn replace_of(&self, row: &Row) -> Result<(), VolumeError> {
        let step = self.step(row);
        if matches!(step, Step::Nothing | Step::Stuck) || row.is_being_made() || end_of(&row.name).is_some() {
            return Ok(());
        }
        let doers = self.doers(row);
        if !is_first(self.register.net(), &doers, Patience::Whole).await {
            return Ok(());
        }
        let (local, epoch) = (self.local(), row.epoch);
        let (head, _) =
            self.attach_if(&row.name, |now| now.epoch == epoch || now.head == Some(local)).await?;
        if let Some(wanted) = noted(step, &row.configuration, row.wanted) {
            let note = |now: &mut Row| {
                if now.wanted == 0 {
                    now.wanted = wanted;
                }
            };
            self.change(row.id, note).await?;
        }
        match step {
            Step::Add(device) => self.add(row, &head, device).await,
            Step::Remove(device) => {
                tracing::info!(volume = %row.name, %device, "a member of a volume goes");
                head.remove_member(device)?;
                self.committed(row, |now| now.all().all(|known| known != device)).await
            }
            _ => Ok(()),
        }
    }

    async fn add(&self, row: &Row, head: &Replicated, device: DeviceId) -> Result<(), VolumeError> {
        tracing::info!(volume = %row.name, %device, "another member of a volume joins");
        head.add_member(device)?;
        self.committed(row, |now| now.all().any(|known| known == device)).await
    }

    /// Waits until a change is committed, for a while: what it waits for may take longer, and is asked for again.
    async fn committed(&self, row: &Row, done: impl Fn(&Configuration) -> bool) -> Result<(), VolumeError> {
        for _ in 0..TRIES {
            match self.register.row(row.id)? {
                Some((now, _)) if !done(&now.configuration) => tokio::time::sleep(PAUSE).await,
                _ => break,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::state::Device;

    fn device(n: u8) -> DeviceId {
        DeviceId([n; 16])
    }

    fn step(members: &[u8], joining: &[u8], wanted: usize, leaving: &[u8], spare: Option<u8>) -> Step {
        let all = |list: &[u8]| list.iter().map(|n| device(*n)).collect();
        let configuration = Configuration { version: 1, members: all(members), joining: all(joining) };
        let stays = |known: DeviceId| leaving.iter().all(|n| device(*n) != known);
        next(&configuration, wanted, stays, spare.map(device))
    }

    #[test]
    fn a_member_goes_when_another_counts_in_its_place() {
        let (add, remove) = (Step::Add(device(4)), Step::Remove(device(3)));
        assert_eq!(step(&[1, 2, 3], &[], 0, &[], Some(4)), Step::Nothing);
        assert_eq!(step(&[1, 2, 3], &[], 0, &[3], Some(4)), add);
        assert_eq!(step(&[1, 2, 3], &[], 0, &[3], None), Step::Stuck);
        assert_eq!(step(&[1, 2, 3], &[4], 3, &[3], Some(5)), Step::Wait);
        assert_eq!(step(&[1, 2, 3, 4], &[], 3, &[3], Some(5)), remove);
        assert_eq!(step(&[1, 2, 4], &[], 3, &[3], Some(5)), Step::Nothing);
        // One that is lost was put out of those that count already.
        assert_eq!(step(&[1, 2], &[3], 0, &[3], Some(4)), add);
        assert_eq!(step(&[1, 2], &[3, 4], 3, &[3], Some(5)), remove);
    }

    #[test]
    fn who_was_to_go_and_stays_leaves_no_member_too_many() {
        assert_eq!(step(&[1, 2, 3], &[4], 3, &[], None), Step::Remove(device(4)));
        assert_eq!(step(&[1, 2, 3, 4], &[], 3, &[], None), Step::Remove(device(4)));
        assert_eq!(step(&[1, 2], &[3, 4], 3, &[], None), Step::Nothing, "first somebody counts again");
    }

    /// A node that was restarted while it filled a member, of a volume that nobody used then, left it with less than it should have for good.
    #[test]
    fn a_head_that_is_gone_comes_back_for_who_joins() {
        let joining =
            Configuration { version: 1, members: vec![device(1), device(2)], joining: vec![device(3)] };
        let here = Some(NodeId([1; 16]));
        assert_eq!(after_all(Step::Nothing, here, &joining), Step::Wait);
        assert_eq!(after_all(Step::Nothing, None, &joining), Step::Nothing, "it was given back");
        assert_eq!(after_all(Step::Stuck, here, &joining), Step::Stuck);
        let whole = Configuration { version: 1, members: vec![device(1), device(2)], joining: Vec::new() };
        assert_eq!(after_all(Step::Nothing, here, &whole), Step::Nothing);
    }

    /// Three nodes with a member each: none had no member, and a volume whose disk was replaced by another one of the same node had two for good.
    #[test]
    fn another_disk_of_a_node_takes_the_place_of_one_that_is_out() {
        let mut state = State::default();
        for (n, node, wanted) in [
            (1, 1, Wanted::Share),
            (2, 2, Wanted::Share),
            (3, 3, Wanted::Out),
            (4, 3, Wanted::Share),
            (5, 1, Wanted::Share),
        ] {
            let (node, class) = (NodeId([node; 16]), quarry_ring::Class::Ssd);
            let known = Device { node, bytes: 1 << 30, region: 1, zone: 1, class, wanted, away: false };
            state.devices.insert(device(n), known);
        }
        let members = Configuration::new([1, 2, 3].map(device).to_vec());
        let ring = || [5, 3, 4, 2].map(device).to_vec();
        assert_eq!(spare(&state, &members, ring()), Some(device(4)));
        state.devices.get_mut(&device(3)).unwrap().wanted = Wanted::Empty;
        assert_eq!(
            spare(&state, &members, ring()),
            None,
            "it serves while it is emptied: two would be on one node"
        );
    }

    #[test]
    fn of_five_one_goes_before_another_comes() {
        assert_eq!(step(&[1, 2, 3, 4, 5], &[], 0, &[5], Some(6)), Step::Remove(device(5)));
        assert_eq!(step(&[1, 2, 3, 4], &[5], 0, &[4], Some(6)), Step::Wait, "another is away");
    }

    /// Nobody knew any more that there had been five, and none came in the place of the one that had gone.
    #[test]
    fn of_five_of_which_one_was_replaced_there_are_five() {
        let (mut members, mut wanted) = (vec![1, 2, 3, 4, 5], 0_u8);
        let mut steps = Vec::new();
        for _ in 0..3 {
            let next = step(&members, &[], wanted.into(), &[5], Some(6));
            let all = Configuration::new(members.iter().map(|n| device(*n)).collect());
            wanted = noted(next, &all, wanted).unwrap_or(wanted);
            match next {
                Step::Add(new) => members.push(new.0[0]),
                Step::Remove(old) => members.retain(|n| device(*n) != old),
                _ => {}
            }
            steps.push(next);
        }
        assert_eq!(steps, [Step::Remove(device(5)), Step::Add(device(6)), Step::Nothing]);
        assert_eq!(members.len(), 5);
    }
}
