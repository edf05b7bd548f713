//! An eventual container that clients make and delete: what a write there may say, and leave behind.
//!
//! Whether a container stands, its group alone decides. But a line may come later than its object: whoever deletes the container
//! meanwhile is told that it was empty, and takes along what no line tells of yet. And a node that is away from the group goes on to
//! write into the container that it knew: when that was made anew meanwhile, what it writes is in the new one if its time is later, by
//! clocks that leaders may be ahead of; else it goes, as what was in the old one does.
//!
//! Invariant: what was acknowledged while nothing was wrong is in the listing: its container is not empty.
//! Invariant: nothing is written in vain but by a node that was away, into a container whose name was deleted before, and that was made
//! less than [`SLACK`] before the write began.
//! Invariant: what was over before a container was made is not in it, unless a node that was away wrote it less than [`SLACK`] before:
//! its time may be the later one.
//! Invariant: of two who put an object that shall be new one finds the other, unless something is removed in between: a node that is away
//! puts nothing with a condition.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quarry_engine::object::EtagMatch;

use super::place::{Place, Spot};
use crate::store::model::{Cell, Op, OpId, Outcome};

/// By how much the clocks of leaders may be ahead: each leader begins above what the one before it may have given.
const SLACK: Duration = Duration::from_secs(10);
/// What a PUT is told that was written into a container which is gone.
pub(super) const IN_VAIN: Outcome = Outcome::Absent;

/// How an operation of a client went, as far as the harness saw.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Course {
    /// When it was over.
    pub(crate) now: Duration,
    /// Nothing was wrong with anything while it was under way.
    pub(crate) calm: bool,
    /// A node that was away may have decided about it alone.
    pub(crate) alone: bool,
    /// It was told that it changed something.
    pub(crate) changed: bool,
}

/// What is known of the lines of a name.
#[derive(Debug, Default)]
pub(super) struct Lag {
    /// PUTs whose lines may be on their way.
    unlisted: BTreeSet<OpId>,
    /// PUTs of what shall be new.
    fresh: BTreeSet<OpId>,
    /// A line may stand that no object is behind any more.
    behind: bool,
    /// PUTs that may have been decided by a node alone, and when they were over.
    strays: BTreeMap<OpId, Duration>,
    /// Those that no write followed which changed something. Of others a line may stand still.
    standing: BTreeSet<OpId>,
    /// When PUTs of the container began.
    making: BTreeMap<OpId, Duration>,
    /// When clients were told that a container was made.
    made: BTreeMap<OpId, Duration>,
    /// Somebody began to delete the container.
    removed: bool,
}

/// Whether it is to put an object where none is.
fn wants_new(op: &Op) -> bool {
    matches!(op, Op::Put { condition, .. } if condition.if_none_match == Some(EtagMatch::Any))
}

impl Lag {
    pub(super) fn began(&mut self, id: OpId, op: &Op, now: Duration) {
        match op {
            Op::PutContainer { .. } => drop(self.making.insert(id, now)),
            Op::DeleteContainer { .. } | Op::DeleteAccount { .. } => self.removed = true,
            Op::Put { .. } => {
                // Until its client is told of it.
                self.unlisted.insert(id);
                self.fresh.extend(wants_new(op).then_some(id));
            }
            _ => {}
        }
    }

    /// A client was told nothing.
    pub(super) fn lost(&mut self, id: OpId, op: &Op, now: Duration) {
        if matches!(op, Op::Put { .. }) {
            self.stray(id, now);
        }
    }

    fn stray(&mut self, id: OpId, over: Duration) {
        self.strays.insert(id, over);
        self.standing.insert(id);
    }

    /// An operation was told something. What was told nothing stays as it began.
    pub(super) fn said(&mut self, id: OpId, op: &Op, began: Duration, course: Course) {
        if matches!(op, Op::Put { .. } | Op::Delete { .. }) && course.changed {
            self.standing.retain(|stray| self.strays[stray] > began);
        }
        if matches!(op, Op::Put { .. }) && course.alone {
            self.stray(id, course.now);
        }
        match op {
            Op::PutContainer { .. } => drop(self.made.insert(id, course.now)),
            Op::Put { .. } if course.calm => drop(self.unlisted.remove(&id)),
            _ => {}
        }
        self.behind |= !course.calm && !op.reads();
    }

    /// All lines are as their objects are.
    pub(super) fn heal(&mut self) {
        self.unlisted.clear();
        self.strays.clear();
        self.standing.clear();
        self.behind = false;
    }

    /// Whether lines may stand that no object is behind.
    pub(super) fn is_behind(&self) -> bool {
        self.behind
    }

    /// All that a write may say and leave behind when it happens to this name.
    pub(super) fn steps(&self, id: OpId, op: &Op, began: Duration, spot: Spot) -> Vec<(Outcome, Spot)> {
        let Spot { cell, place } = spot;
        match op {
            Op::DeleteContainer { .. } => {
                let mut all = spot.changed(id, op);
                if place.stands() && self.unlisted.contains(&cell.data) {
                    all.extend(Spot { cell: Cell::default(), place }.removals());
                }
                all
            }
            Op::PutContainer { .. } => {
                let strays = self.standing.iter().filter(|stray| self.comes_before(**stray, id));
                let strays: Vec<OpId> = strays.copied().collect();
                let mut all = spot.changed(id, op);
                if let Some(made) = all.iter().find(|(outcome, _)| *outcome == Outcome::Made(true)).cloned() {
                    let with = |data| Spot { cell: Cell { data, meta: data }, ..made.1 };
                    all.extend(strays.into_iter().map(|stray| (Outcome::Made(true), with(stray))));
                }
                all
            }
            Op::DeleteAccount { .. } => spot.changed(id, op),
            Op::Put { .. } => {
                let done = Spot { cell: Cell { data: id, meta: id }, place };
                let mut all = match place.stands() {
                    true if wants_new(op) && self.fresh.contains(&cell.data) => Vec::new(),
                    true => vec![(Outcome::Done, done)],
                    false => vec![(Outcome::NoContainer, spot)],
                };
                if self.may_miss(place, began) {
                    all.push((IN_VAIN, spot));
                }
                all
            }
            Op::Delete { .. } => vec![(Outcome::Gone, Spot { cell: Cell::default(), place })],
            _ => vec![(Outcome::Absent, spot)],
        }
    }

    /// Whether a PUT that was over before a container was made may be in it.
    fn comes_before(&self, put: OpId, made: OpId) -> bool {
        let over = self.strays.get(&put).zip(self.making.get(&made));
        over.is_some_and(|(over, making)| *over + SLACK > *making)
    }

    /// The containers in which the line of a PUT may be that was over before they were made.
    pub(super) fn comes_into(&self, put: OpId) -> BTreeSet<OpId> {
        self.making.keys().copied().filter(|made| self.comes_before(put, *made)).collect()
    }

    /// Whether a write may have gone into a container that had this name before.
    fn may_miss(&self, place: Place, began: Duration) -> bool {
        let made = place.container().and_then(|made| self.made.get(&made));
        self.removed && made.is_none_or(|made| began < *made + SLACK)
    }
}

#[cfg(test)]
mod tests {
    use quarry_engine::object::Condition;

    use super::*;
    use crate::cluster::register::Register;
    use crate::store::model::{Book, Fact};

    const MAKE: Op = Op::PutContainer { c: 2 };
    const REMOVE: Op = Op::DeleteContainer { c: 2 };
    const LIST: Op = Op::ListContainers { a: 1 };
    const DELETE: Op =
        Op::Delete { c: 2, o: 0, condition: Condition { if_match: None, if_none_match: None } };

    fn put(new: bool) -> Op {
        let condition = Condition { if_match: None, if_none_match: new.then_some(EtagMatch::Any) };
        Op::Put { c: 2, o: 0, condition, wrong_md5: false }
    }

    struct Bench {
        register: Register,
        book: Book,
        next: OpId,
    }

    impl Bench {
        fn new() -> Self {
            let mut bench =
                Self { register: Register::fleeting().loose(), book: vec![Fact::default(); 30], next: 1 };
            bench.done(MAKE, 0, true, &Outcome::Made(true)).unwrap();
            bench
        }

        fn began(&mut self, op: Op, second: u64) -> OpId {
            self.next += 1;
            self.register.began(self.next, op, Duration::from_secs(second));
            self.next
        }

        fn said(&mut self, id: OpId, second: u64, calm: bool, outcome: &Outcome) -> Result<(), String> {
            let changed = [Outcome::Done, Outcome::Gone].contains(outcome);
            let now = Duration::from_secs(second);
            self.register.went(id, Course { now, calm, alone: !calm, changed });
            let said = self.register.said(id, &|said| said == outcome, &self.book);
            said.map_err(|violation| violation.0)
        }

        fn done(&mut self, op: Op, second: u64, calm: bool, outcome: &Outcome) -> Result<(), String> {
            let id = self.began(op, second);
            self.said(id, second, calm, outcome)
        }

        /// What is there when all is healed.
        fn found(&mut self, data: OpId) -> Result<(), String> {
            self.register.heal();
            let cell = (data != 0).then_some(Cell { data, meta: data });
            self.done(LIST, 100, true, &Outcome::Version(cell))
        }
    }

    #[test]
    fn a_container_goes_with_what_is_not_listed_yet_and_with_nothing_else() {
        for calm in [true, false] {
            let mut bench = Bench::new();
            bench.done(put(false), 1, calm, &Outcome::Done).unwrap();
            assert_eq!(bench.done(REMOVE, 2, true, &Outcome::Gone).is_err(), calm);
            if !calm {
                bench.done(MAKE, 3, true, &Outcome::Made(true)).unwrap();
                bench.found(0).unwrap();
                assert!(bench.found(3).is_err(), "it was in the one that is gone");
            }
        }
        let mut bench = Bench::new();
        bench.done(put(false), 1, false, &Outcome::Done).unwrap();
        bench.register.heal();
        assert!(bench.done(REMOVE, 2, true, &Outcome::Gone).is_err(), "all is listed");
    }

    #[test]
    fn what_is_acknowledged_stays_unless_it_was_for_a_container_that_is_gone() {
        let mut bench = Bench::new();
        bench.done(put(false), 1, false, &Outcome::Done).unwrap();
        assert!(bench.found(0).is_err());
        for (second, lost) in [(3, true), (30, false)] {
            let mut bench = Bench::new();
            bench.done(REMOVE, 1, true, &Outcome::Gone).unwrap();
            bench.done(MAKE, 2, true, &Outcome::Made(true)).unwrap();
            let id = bench.began(put(false), second);
            let now = Duration::from_secs(second);
            bench.register.went(id, Course { now, alone: true, changed: true, calm: false });
            let fits = |said: &Outcome| [Outcome::Done, IN_VAIN].contains(said);
            bench.register.said(id, &fits, &bench.book).unwrap();
            assert_eq!(bench.found(0).is_ok(), lost, "{second}");
        }
    }

    /// An object that was put alone, in the moment in which its container was deleted, was in the one that was made then: its time was
    /// the later one, by microseconds.
    #[test]
    fn what_a_node_wrote_alone_may_be_in_the_container_that_is_made_next() {
        let again = |alone, second, deleted| {
            let mut bench = Bench::new();
            let put = bench.began(put(false), 1);
            bench.done(REMOVE, 1, true, &Outcome::Gone).unwrap();
            let now = Duration::from_secs(2);
            bench.register.went(put, Course { now, alone, calm: false, changed: true });
            let fits = |said: &Outcome| *said == Outcome::Done || alone && *said == IN_VAIN;
            bench.register.said(put, &fits, &bench.book).unwrap();
            if deleted {
                bench.done(DELETE, 3, false, &Outcome::Gone).unwrap();
            }
            bench.done(MAKE, second, true, &Outcome::Made(true)).unwrap();
            let comes = bench.register.comes_into(put).contains(&bench.next);
            (comes, bench.found(put).is_ok())
        };
        assert_eq!(again(true, 3, false), (true, true));
        assert_eq!(again(true, 4, true), (true, false), "its line at most, when it was deleted meanwhile");
        for (alone, second) in [(false, 3), (true, 13)] {
            assert_eq!(again(alone, second, false), (false, false), "{alone} {second}");
        }
    }

    #[test]
    fn of_two_that_shall_be_new_one_finds_the_other() {
        let mut bench = Bench::new();
        let ids = [1, 1].map(|second| bench.began(put(true), second));
        bench.said(ids[0], 2, false, &Outcome::Done).unwrap();
        assert!(bench.said(ids[1], 2, false, &Outcome::Done).is_err());
        let mut bench = Bench::new();
        bench.done(put(true), 1, false, &Outcome::Done).unwrap();
        bench.done(DELETE, 2, false, &Outcome::Gone).unwrap();
        bench.done(put(true), 3, false, &Outcome::Done).unwrap();
        bench.found(5).unwrap();
    }

    #[test]
    fn what_was_refused_has_changed_nothing() {
        let mut bench = Bench::new();
        let id = bench.began(put(true), 1);
        bench.register.in_vain(id).unwrap();
        bench.found(0).unwrap();
        assert!(bench.found(id).is_err());
    }
}
