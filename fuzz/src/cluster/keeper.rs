//! The groups that a node votes in: the first one, and those that took ranges of its lines over, as `node/src/control/seats.rs` keeps
//! them.
//!
//! Invariant: a group whose lines were taken back is left by everybody, as soon as anybody knows.
//! Invariant: a child is opened when its parent has applied here what made it, and not before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quarry_engine::clock::Clock;
use quarry_engine::consensus::{Group, GroupOptions, Groups, held};
use quarry_engine::net::MonotonicClock;
use quarry_engine::object::names::{Divided, NamesService, Seats};
use quarry_engine::object::{Options, Voter};

use super::assembly::locked;
use super::board::Board;

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(10);

/// The voters of a node, by their groups.
pub(crate) type Voters = Arc<Mutex<BTreeMap<u32, Voter>>>;

pub(super) struct Keeper {
    pub(super) with: GroupOptions,
    pub(super) groups: Groups,
    pub(super) seats: Seats,
    pub(super) divided: Divided,
    pub(super) clock: Arc<Clock>,
    pub(super) options: Options,
    pub(super) since: MonotonicClock,
    pub(super) voters: Voters,
    pub(super) board: Board,
}

impl Keeper {
    /// This node answers for a group from now on.
    pub(super) fn seat(&self, group: &Group) {
        let voter = Voter::new(group.clone(), self.clock.clone());
        locked(&self.voters).insert(group.id(), voter.clone());
        let (voter, clock) = (Arc::new(voter), self.clock.clone());
        self.seats.take(NamesService::new(group.id(), voter, clock, &self.options, self.since.clone()));
    }

    /// For as long as it is polled.
    pub(super) async fn run(self) {
        loop {
            let over = self.end_over().await;
            for group in self.groups.all() {
                let status = group.status();
                self.divided.voters(group.id(), status.voters.iter().copied().collect());
                if !status.voters.contains(&group.node()) {
                    continue;
                }
                // Of what is over this node's parent may not have heard yet.
                for given in group.given().into_iter().filter(|given| !over.contains(&given.group)) {
                    if self.groups.get(given.group).is_some() {
                        continue;
                    }
                    let opened = self.open(given.group).await;
                    if let Some(child) = opened.filter(|_| group.status().leads) {
                        // Later elections are not its business.
                        self.with.runtime.spawn(Box::pin(async move { drop(child.elect_first().await) }));
                    }
                }
            }
            self.with.runtime.sleep(LOOK).await;
        }
    }

    async fn open(&self, number: u32) -> Option<Group> {
        // What fails is tried again.
        let group = self.groups.open(number, self.with.clone()).await.ok()?;
        self.seat(&group);
        Some(group)
    }

    /// Leaves groups whose lines were taken back; those are all such.
    async fn end_over(&self) -> BTreeSet<u32> {
        let over = self.board.end(self.groups.over());
        for number in over.iter().copied() {
            self.seats.end(number);
            locked(&self.voters).remove(&number);
            if self.groups.get(number).is_some() {
                // What fails is tried again.
                let _failed = self.groups.give_up(number, &self.with.disk).await;
            }
        }
        over
    }

    /// What the drive has.
    pub(super) async fn open_held(&self) {
        for number in held(&self.with.disk).await.unwrap_or_default() {
            if self.groups.get(number).is_none() {
                let _tried_again = self.open(number).await;
            }
        }
    }
}
