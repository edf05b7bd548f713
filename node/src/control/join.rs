//! When what was split off a container is given back: where nothing has been in it for long. [`super::children`] says what comes of it.
//!
//! The leader of the group that gave the lines away asks for them. A child that has been empty at each look for as long as is wanted is
//! taken back, if it lies directly behind what the parent has; the others follow when their turn comes.
//!
//! Invariant: of one group one range is taken back at a time, and a try that failed begins the wait anew.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use quarry_engine::consensus::{Given, Group};
use quarry_engine::object::names::{Divided, returnable};
use tokio::task::JoinHandle;

use super::groups::Own;
use super::state::State;

/// So many looks in the time for which a child must be empty.
const LOOKS: u32 = 6;

/// Looks after children that may have nothing any more.
pub(crate) struct Joiner {
    groups: Own,
    names: Divided,
    after: Duration,
    /// By the groups that gave lines away.
    tasks: BTreeMap<u32, Task>,
}

struct Task {
    next: Instant,
    /// The last look: since when each child has been empty.
    last: Option<JoinHandle<BTreeMap<u32, Instant>>>,
}

/// A child of a group that is led here, which has taken its lines back, and the cluster does not know.
pub(super) fn over(group: &Group, state: &State) -> Option<u32> {
    let back = group.returned().into_iter().map(|back| back.group);
    back.into_iter().find(|child| state.children.contains_key(child) && !state.over.contains(child))
}

impl Joiner {
    pub(crate) fn new(groups: Own, names: Divided, after: Duration) -> Self {
        Self { groups, names, after, tasks: BTreeMap::new() }
    }

    /// Goes a step on with what a group that is led here gave away.
    pub(super) fn look(&mut self, group: &Group) {
        let (given, number) = (returnable(group.given()), group.id());
        if given.is_empty() {
            self.tasks.remove(&number);
            return;
        }
        let fresh = || Task { next: Instant::now(), last: None };
        let task = self.tasks.entry(number).or_insert_with(fresh);
        if task.next > Instant::now() || task.last.as_ref().is_some_and(|last| !last.is_finished()) {
            return;
        }
        task.next = Instant::now() + self.after / LOOKS;
        let (groups, names, after) = (self.groups.clone(), self.names.clone(), self.after);
        let before = task.last.take();
        task.last = Some(tokio::spawn(async move {
            let known = match before {
                // One that panicked knew nothing: the wait begins anew.
                Some(before) => before.await.unwrap_or_default(),
                None => BTreeMap::new(),
            };
            look_at(&groups, &names, number, given, known, after).await
        }));
    }
}

/// Looks at children of a group, and takes one back, if one has been empty for long enough. Since when each is empty.
async fn look_at(
    groups: &Own,
    names: &Divided,
    parent: u32,
    given: Vec<Given>,
    known: BTreeMap<u32, Instant>,
    after: Duration,
) -> BTreeMap<u32, Instant> {
    let (mut empty, now) = (BTreeMap::new(), Instant::now());
    let mut due = None;
    for child in given {
        if matches!(names.is_idle(&child).await, Ok(true)) {
            let since = known.get(&child.group).copied().unwrap_or(now);
            empty.insert(child.group, since);
            due = due.or_else(|| (now.duration_since(since) >= after).then_some(child));
        }
    }
    let Some((child, voter)) = due.and_then(|child| Some((child, groups.index.voter(parent)?))) else {
        return empty;
    };
    // If it was in vain, it waits anew.
    empty.remove(&child.group);
    match names.take_back(&voter, &child).await {
        Ok(true) => tracing::info!(parent, child = child.group, "lines are the parent's again"),
        Ok(false) => tracing::debug!(parent, child = child.group, "lines are not taken back: somebody came"),
        Err(error) => tracing::info!(parent, child = child.group, %error, "lines are not taken back now"),
    }
    empty
}
