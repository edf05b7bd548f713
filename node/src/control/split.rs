//! What a node tells the control group of index groups that it has, and when a container that grew is split.
//!
//! Only a group's leader decides that it has too much of a container; [`super::children`] says how it goes on from there.
//!
//! Invariant: of one group one range is given away at a time, and a try that failed is not repeated at once.
//! Invariant: containers that do not grow cost nothing, however many they are.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quarry_engine::consensus::Group;
use quarry_engine::net::{Request, Response, Transport, Wish};
use quarry_engine::object::Voter;
use quarry_engine::object::names::Grown;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::children;
use super::groups::Own;
use super::join::{self, Joiner};
use super::seating::{self, Seat};
use super::state::{KeyValue, State};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// How long it may take to write down what is asked for.
const WITHIN: Duration = Duration::from_secs(5);
/// Pause after a try that failed, and the longest; each is twice the one before.
const RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// Tries before the container is forgotten: it is found again when it grows further.
const TRIES: u32 = 10;

/// Looks after the index groups of this node.
pub(crate) struct Splitter {
    pub(crate) groups: Own,
    pub(crate) net: Arc<dyn Transport>,
    pub(crate) state: watch::Receiver<Arc<State>>,
    /// Lines of one container in one group above which it is split.
    pub(crate) lines: u64,
    pub(crate) joiner: Joiner,
}

/// A container that has too many lines in a group.
struct Task {
    grown: Grown,
    under_way: Option<JoinHandle<bool>>,
    tries: u32,
    next: Instant,
}

/// The tasks of groups, and what was said of them.
#[derive(Default)]
struct Tasks {
    of: BTreeMap<u32, Task>,
    said: BTreeMap<u32, String>,
}

impl Splitter {
    /// Looks for as long as it is polled.
    pub(crate) async fn run(mut self) {
        let mut tasks = Tasks::default();
        let mut pause = tokio::time::interval(PAUSE);
        pause.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            pause.tick().await;
            let state = Arc::clone(&self.state.borrow());
            for group in self.groups.index.open_groups() {
                let done = match self.row_wanted(&group, &state) {
                    Some((row, fresh)) => self.wish(row, fresh).await,
                    None if group.status().leads => {
                        self.joiner.look(&group);
                        self.look(&group, &state, &mut tasks).await
                    }
                    None => Ok(()),
                };
                tasks.say(group.id(), done);
            }
        }
    }

    /// The row that the seats of a group shall have, or one of its children, as this node knows better; whether there is none yet.
    fn row_wanted(&self, group: &Group, state: &State) -> Option<(KeyValue, bool)> {
        if group.status().leads
            && let Some(child) = join::over(group, state)
        {
            return Some((children::row_over(child, group.id()), false));
        }
        let (number, own) = (group.id(), Seat { node: group.node(), device: group.disk().device() });
        let known = state.groups.get(&number);
        let parent = state.children.get(&number).and_then(|parent| state.groups.get(parent));
        let parent = parent.filter(|_| !state.over.contains(&number));
        let mut seats = match (known, parent) {
            (Some(seats), _) if !seats.contains(&own) => seats.clone(),
            (None, Some(parent)) if group.status().leads => first_seats(group, parent, state),
            _ => return None,
        };
        let own_seat = seats.iter_mut().find(|seat| seat.node == own.node)?;
        *own_seat = own;
        Some(((seating::group_key(number), seating::encode(&seats)), known.is_none()))
    }

    /// Asks the leader of the control group to write a row.
    async fn wish(&self, (key, value): KeyValue, fresh: bool) -> Result<(), String> {
        let wish = Request::Wish(Wish::Row { key, value: Some(value), fresh });
        match self.net.call(self.net.local(), wish, WITHIN).await {
            Ok(Response::Done) => Ok(()),
            Ok(Response::Failed(failure)) => Err(failure.to_string()),
            Ok(_) => Err("the leader answered another question".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Goes a step on with what a group that is led here has too much of.
    async fn look(&self, group: &Group, state: &State, tasks: &mut Tasks) -> Result<(), String> {
        let number = group.id();
        let task = match tasks.of.entry(number) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(free) => {
                let grown = self.groups.index.names().grown(number, self.lines).map_err(|e| e.to_string())?;
                let Some(grown) = grown else { return Ok(()) };
                free.insert(Task { grown, under_way: None, tries: 0, next: Instant::now() })
            }
        };
        if let Some(under_way) = task.under_way.take_if(|under_way| under_way.is_finished()) {
            task.tries += 1;
            if under_way.await.unwrap_or(false) || task.tries >= TRIES {
                tasks.of.remove(&number);
                return Ok(());
            }
            let pause = RETRY.saturating_mul(1 << (task.tries - 1)).min(LONGEST_RETRY);
            task.next = Instant::now() + pause;
        }
        if task.under_way.is_some() || task.next > Instant::now() {
            return Ok(());
        }
        let given = group.given().into_iter().chain(group.returned());
        let given: BTreeSet<u32> = given.map(|given| given.group).collect();
        let Some(child) = children::spare(state, number, &given) else {
            let next = children::next_number(state).ok_or("no number is left for another index group")?;
            return self.wish(children::row(next, number), true).await;
        };
        if let Some(voter) = self.groups.index.voter(number) {
            let (own, grown, most) = (self.groups.clone(), task.grown.clone(), (self.lines / 2).max(1));
            task.under_way = Some(tokio::spawn(split(own, voter, grown, child, most)));
        }
        Ok(())
    }
}

impl Tasks {
    /// Says what went wrong, once.
    fn say(&mut self, group: u32, done: Result<(), String>) {
        match done {
            Ok(()) => drop(self.said.remove(&group)),
            Err(why) if self.said.get(&group) == Some(&why) => {}
            Err(why) => {
                tracing::warn!(group, "look after index group: {why}; it is tried again");
                self.said.insert(group, why);
            }
        }
    }
}

/// The voters of a child, as it was founded: on the disks that have its parent; in the order of the parent's seats.
fn first_seats(child: &Group, parent: &[Seat], state: &State) -> Vec<Seat> {
    let mut voters = child.status().voters;
    let mut seats: Vec<Seat> = parent.iter().filter(|seat| voters.remove(&seat.node)).copied().collect();
    // One that left the parent meanwhile: it says itself, if it is another disk.
    seats.extend(voters.into_iter().filter_map(|node| {
        let own = state.devices.iter().find(|(_, device)| device.node == node);
        own.map(|(device, _)| Seat { node, device: *device })
    }));
    seats
}

/// Gives lines to a child. True: there is nothing more to do.
async fn split(own: Own, voter: Arc<Voter>, grown: Grown, child: u32, most: u64) -> bool {
    let parent = voter.group().id();
    let Grown { account, container, objects } = grown;
    tracing::info!(parent, child, account, container, lines = objects, "split container");
    let led = || own.group(child).is_some_and(|group| group.leader().is_some());
    let began = Instant::now();
    match voter.split_last(&account, &container, child, most, led).await {
        Ok(true) => {
            let took = began.elapsed().as_millis();
            let from = voter.group().given().into_iter().find(|given| given.group == child);
            let from = from.map(|given| given.from);
            tracing::info!(parent, child, from, milliseconds = took, "lines are another group's");
            true
        }
        Ok(false) | Err(quarry_engine::object::Error::NoContainer) => true,
        Err(error) => {
            tracing::info!(parent, child, container, %error, "container is not split now");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_between_tries_grow_and_end() {
        let pauses: Vec<u64> =
            (1..TRIES).map(|n| RETRY.saturating_mul(1 << (n - 1)).min(LONGEST_RETRY).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }
}
