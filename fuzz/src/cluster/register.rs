//! One name: whether what clients were told of it can have happened, checked as answers arrive.
//!
//! As in [`crate::store::oracle`], a world is one way in which it may have gone so far. Names do not depend on one another here,
//! so each has worlds of its own, and a cluster may leave many writes unanswered before their number grows.
//!
//! A read makes no worlds: each world keeps all that the read may have seen there.
//!
//! Of an eventual container a *loose* register is kept: its writes happen whatever stands, in an order that what clients were told
//! allows, and only the last of them is judged, by reads when all is healed; but whether the container stands is judged at once ([`super::lag`]).
//!
//! A delete without a condition whose grant is lost, with the leader that gave it or by time, is told that the object is gone when it is,
//! whoever removed it meanwhile (`engine::object::names`, leases): two that are under way together may both be told so. Not where
//! the grant held ([`Register::held`]).
//!
//! A container that comes and goes is judged by each of its names: a change of it is a write of all of them ([`super::place`]). A PUT of
//! one that is asked again makes anew what was deleted meanwhile, while its client waits.
//!
//! Invariant: a write takes effect once, between its beginning and its answer; one without an answer takes effect once or
//! never, and never after the effect of a write that began when nobody could be at it any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quarry_engine::object::{Condition, EtagMatch};

use super::lag::{Course, Lag};
use super::place::{Place, Spot};
use crate::store::model::{Book, Cell, Op, OpId, Outcome};
use crate::store::oracle::Violation;

/// Nobody works on a write for longer than this after its client was told nothing.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// What a write said whose client was told nothing: whatever it was, worlds do not differ by it.
const TOLD_NOBODY: Outcome = Outcome::Absent;
/// Worlds at which the harness gives up.
const MAX_WORLDS: usize = 50_000;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
struct World {
    spot: Spot,
    done: BTreeMap<OpId, Outcome>,
    seen: BTreeMap<OpId, Seen>,
    /// Deletes without a condition that were under way when another removed what stood, and whether they are told that they did.
    outrun: BTreeMap<OpId, bool>,
}

/// What stood since a read began.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    /// It is judged by whether the container stands, and which. Worlds do not differ by objects that it may have seen: in seconds
    /// in which a container comes and goes there are thousands of ways of those.
    places_alone: bool,
    spots: BTreeSet<Spot>,
}

impl Seen {
    fn begin(places_alone: bool, spot: Spot) -> Self {
        let mut seen = Self { places_alone, spots: BTreeSet::new() };
        seen.see(spot);
        seen
    }

    fn see(&mut self, spot: Spot) {
        self.spots.insert(if self.places_alone { Spot { cell: Cell::default(), ..spot } } else { spot });
    }
}

impl World {
    fn may_say(&self, id: OpId, Pending { op, loose, .. }: &Pending) -> BTreeSet<Outcome> {
        let shown = |spot: &Spot| if *loose { spot.shown_loosely(op) } else { spot.shown(op) };
        let seen = self.seen.get(&id).into_iter().flat_map(|seen| &seen.spots);
        self.done.get(&id).cloned().into_iter().chain(seen.map(shown)).collect()
    }

    fn forget(&mut self, id: OpId) {
        self.done.remove(&id);
        self.seen.remove(&id);
        self.outrun.remove(&id);
    }

    /// This world after a write.
    fn after(&self, id: OpId, outcome: Outcome, spot: Spot) -> Self {
        let mut next = self.moved(spot);
        next.done.insert(id, outcome);
        next
    }

    /// This world when something else stands.
    fn moved(&self, spot: Spot) -> Self {
        let mut next = self.clone();
        next.spot = spot;
        next.seen.values_mut().for_each(|seen| seen.see(spot));
        next
    }
}

#[derive(Debug, Clone)]
struct Pending {
    op: Op,
    began: Duration,
    /// In an eventual container, before all is healed.
    loose: bool,
    /// Nobody can have taken its grant.
    held: bool,
    lost: Option<Lost>,
}

/// When a client was told nothing, and the first number of an operation that began later.
#[derive(Debug, Clone, Copy)]
struct Lost {
    at: Duration,
    next: OpId,
}

/// All that may be true of a name.
#[derive(Debug)]
pub(crate) struct Register {
    worlds: BTreeSet<World>,
    /// Its container is eventual, and not all is healed.
    loose: bool,
    lag: Lag,
    pending: BTreeMap<OpId, Pending>,
}

impl Default for Register {
    fn default() -> Self {
        Self::at(Place::LASTING)
    }
}

fn holds(condition: &Condition, cell: Cell, book: &Book) -> bool {
    let stands = cell.data != 0;
    let etag = book.get(cell.data as usize).map_or("", |fact| fact.etag.as_str());
    let matches = |wanted: &EtagMatch| match wanted {
        EtagMatch::Any => true,
        EtagMatch::OneOf(etags) => etags.iter().any(|known| known == etag),
    };
    condition.if_match.as_ref().is_none_or(|wanted| stands && matches(wanted))
        && !condition.if_none_match.as_ref().is_some_and(|wanted| stands && matches(wanted))
}

/// All that a write may say and leave behind when it happens to this name.
fn step(id: OpId, op: &Op, spot: Spot, book: &Book) -> Vec<(Outcome, Spot)> {
    match op {
        Op::PutContainer { .. } | Op::DeleteContainer { .. } | Op::DeleteAccount { .. } => {
            spot.changed(id, op)
        }
        Op::Put { .. } if !spot.place.stands() => vec![(Outcome::NoContainer, spot)],
        Op::Post { .. } if !spot.place.stands() => {
            vec![(Outcome::NoContainer, spot), (Outcome::NoObject, spot)]
        }
        _ => {
            let (outcome, cell) = object_step(id, op, spot.cell, book);
            vec![(outcome, Spot { cell, ..spot })]
        }
    }
}

/// The same of an object whose container stands, or is not needed.
fn object_step(id: OpId, op: &Op, cell: Cell, book: &Book) -> (Outcome, Cell) {
    match op {
        Op::Put { condition, .. } | Op::Delete { condition, .. } if !holds(condition, cell, book) => {
            (Outcome::ConditionFailed, cell)
        }
        Op::Put { .. } => (Outcome::Done, Cell { data: id, meta: id }),
        Op::Delete { .. } if cell.data == 0 => (Outcome::Absent, cell),
        Op::Delete { .. } => (Outcome::Gone, Cell::default()),
        Op::Post { .. } if cell.data == 0 => (Outcome::NoObject, cell),
        Op::Post { .. } => (Outcome::Done, Cell { meta: id, ..cell }),
        _ => (Outcome::Absent, cell),
    }
}

/// Whether this is a delete that is told no more than that the object is gone.
fn removes_anything(op: &Op) -> bool {
    matches!(op, Op::Delete { condition, .. } if *condition == Condition::default())
}

impl Register {
    fn at(place: Place) -> Self {
        let world = World { spot: Spot { place, ..Spot::default() }, ..World::default() };
        Self { worlds: BTreeSet::from([world]), loose: false, lag: Lag::default(), pending: BTreeMap::new() }
    }

    /// Of a name in a container that clients make and delete, and that is not there yet.
    pub(crate) fn fleeting() -> Self {
        Self::at(Place::default())
    }

    /// The same of a name in an eventual container.
    pub(crate) fn loose(self) -> Self {
        Self { loose: true, ..self }
    }

    /// An operation said that it changed nothing, or what is not judged.
    pub(crate) fn in_vain(&mut self, id: OpId) -> Result<(), Violation> {
        self.worlds.retain(|world| !world.done.contains_key(&id));
        self.forget_one(id);
        match self.worlds.is_empty() {
            true => Err(Violation("it was seen to have changed something".to_owned())),
            false => Ok(()),
        }
    }

    /// How an operation went that is about to say something.
    pub(crate) fn went(&mut self, id: OpId, course: Course) {
        if let Some(pending) = self.pending.get(&id).filter(|pending| pending.loose) {
            self.lag.said(id, &pending.op, pending.began, course);
        }
    }

    /// The containers in which the line of a PUT may be that was over before they were made.
    pub(crate) fn comes_into(&self, put: OpId) -> BTreeSet<OpId> {
        self.lag.comes_into(put)
    }

    /// Whether a line may stand that no object is behind.
    pub(crate) fn is_behind(&self) -> bool {
        self.lag.is_behind()
    }

    /// From here on it is judged as any other.
    pub(crate) fn heal(&mut self) {
        self.loose = false;
        self.lag.heal();
    }

    pub(crate) fn began(&mut self, id: OpId, op: Op, now: Duration) {
        if op.reads() {
            let begun = std::mem::take(&mut self.worlds).into_iter().map(|mut world| {
                world.seen.insert(id, Seen::begin(self.loose, world.spot));
                world
            });
            self.worlds = begun.collect();
        }
        if self.loose {
            self.lag.began(id, &op, now);
        }
        self.pending.insert(id, Pending { op, began: now, loose: self.loose, held: false, lost: None });
    }

    /// No leader changed while an operation was under way, and it did not take so long that its grant ran out.
    pub(crate) fn held(&mut self, id: OpId) {
        if let Some(pending) = self.pending.get_mut(&id) {
            pending.held = true;
        }
    }

    /// An operation said something that `fits`.
    pub(crate) fn said(
        &mut self,
        id: OpId,
        fits: &dyn Fn(&Outcome) -> bool,
        book: &Book,
    ) -> Result<(), Violation> {
        let (mut right, mut could) = (BTreeSet::new(), BTreeSet::new());
        let pending = self.pending.get(&id).cloned();
        let held = pending.as_ref().is_some_and(|pending| pending.held);
        for world in std::mem::take(&mut self.worlds) {
            for mut world in self.reachable(world, book)? {
                if held && world.outrun.get(&id) == Some(&true) {
                    continue;
                }
                let says = pending.as_ref().map(|pending| world.may_say(id, pending)).unwrap_or_default();
                match says.iter().find(|outcome| fits(outcome)) {
                    Some(outcome) => {
                        let effect = matches!(outcome, Outcome::Done | Outcome::Gone);
                        world.forget(id);
                        right.insert((effect, world));
                    }
                    None => could.extend(says.iter().map(|outcome| format!("{outcome:?}"))),
                }
            }
        }
        let began = self.pending.remove(&id).map_or(Duration::ZERO, |pending| pending.began);
        if right.is_empty() {
            let could: Vec<_> = could.into_iter().collect();
            return Err(Violation(format!("right would be {}", could.join(" or "))));
        }
        if right.len() > MAX_WORLDS {
            return Err(self.too_many(right.len()));
        }
        let effect = right.iter().all(|(effect, _)| *effect);
        self.worlds = right.into_iter().map(|(_, world)| world).collect();
        if effect {
            self.forget(|pending| pending.lost.is_some_and(|lost| lost.at + FORGOTTEN < began));
        }
        self.forget_outlived();
        Ok(())
    }

    /// An operation will say nothing; `next`: number of the first that begins from here on.
    pub(crate) fn lose(&mut self, id: OpId, now: Duration, next: OpId) {
        let Some(pending) = self.pending.get_mut(&id) else { return };
        pending.lost = Some(Lost { at: now, next });
        if pending.loose {
            self.lag.lost(id, &pending.op, now);
        }
        let may_come_again = matches!(pending.op, Op::PutContainer { .. });
        if pending.op.reads() {
            self.forget_one(id);
            return;
        }
        self.change_all(|world| {
            world.outrun.remove(&id);
            if may_come_again {
                // It may have been asked again, just before.
                world.done.remove(&id);
            } else if let Some(outcome) = world.done.get_mut(&id) {
                *outcome = TOLD_NOBODY;
            }
        });
    }

    /// Forgets what was lost and could only have meant what does not stand any more.
    fn forget_outlived(&mut self) {
        let over = |(id, pending): &(&OpId, &Pending)| {
            let Some(lost) = pending.lost else { return false };
            let stands = |world: &World| world.spot.place.is_before(&pending.op, lost.next);
            let makes = |(other, pending): (&OpId, &Pending)| {
                other != *id && *other < lost.next && matches!(pending.op, Op::PutContainer { .. })
            };
            !self.worlds.iter().any(stands) && !self.pending.iter().any(makes)
        };
        let ids: Vec<OpId> = self.pending.iter().filter(over).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.forget_one(id));
    }

    /// The reaper has done: no account is marked any more.
    pub(crate) fn reap(&mut self) {
        self.change_all(|world| {
            while let Some(next) = world.spot.reaped() {
                *world = world.moved(next);
            }
        });
    }

    fn change_all(&mut self, change: impl Fn(&mut World)) {
        let changed = std::mem::take(&mut self.worlds).into_iter().map(|mut world| {
            change(&mut world);
            world
        });
        self.worlds = changed.collect();
    }

    /// What was lost takes effect no more.
    pub(crate) fn settle(&mut self) {
        self.forget(|pending| pending.lost.is_some());
    }

    fn forget(&mut self, over: impl Fn(&Pending) -> bool) {
        let ids: Vec<OpId> = self.pending.iter().filter(|(_, p)| over(p)).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.forget_one(id));
    }

    fn forget_one(&mut self, id: OpId) {
        self.pending.remove(&id);
        self.change_all(|world| world.forget(id));
    }

    /// Writes that may still take effect.
    pub(crate) fn writes(&self) -> usize {
        self.pending.values().filter(|pending| !pending.op.reads()).count()
    }

    /// All cells that may stand now.
    pub(crate) fn cells(&self, book: &Book) -> Result<BTreeSet<Cell>, Violation> {
        let mut cells = BTreeSet::new();
        for world in &self.worlds {
            cells.extend(self.reachable(world.clone(), book)?.into_iter().map(|world| world.spot.cell));
        }
        Ok(cells)
    }

    /// Whether its container may be absent, as far as was told.
    pub(crate) fn may_lie_nowhere(&self) -> bool {
        self.worlds.iter().any(|world| !world.spot.place.stands())
    }

    /// Deletes without a condition that are under way when something else removes what stands, and have not taken effect.
    fn outrun_by(&self, delete: Option<OpId>, world: &World) -> Vec<OpId> {
        let under_way = |(id, pending): &(&OpId, &Pending)| {
            Some(**id) != delete
                && pending.lost.is_none()
                && removes_anything(&pending.op)
                && !world.done.contains_key(id)
        };
        self.pending.iter().filter(under_way).map(|(id, _)| *id).collect()
    }

    /// A world in which something was removed: by this operation, or by the reaper.
    fn removed(&self, by: Option<OpId>, mut next: World) -> World {
        let outrun = self.outrun_by(by, &next).into_iter().map(|id| (id, false));
        next.outrun.extend(outrun);
        next
    }

    /// The worlds that a world becomes when one thing happens that is under way.
    fn next(&self, world: &World, book: &Book) -> Vec<World> {
        let mut all = Vec::new();
        if let Some(spot) = world.spot.reaped() {
            let next = world.moved(spot);
            all.push(if spot.cell == world.spot.cell { next } else { self.removed(None, next) });
        }
        let writes = self.pending.iter().filter(|(_, pending)| !pending.op.reads());
        for (id, pending) in writes.filter(|(id, _)| !world.done.contains_key(id)) {
            if pending.lost.is_some_and(|lost| !world.spot.place.is_before(&pending.op, lost.next)) {
                continue;
            }
            self.take_effect(*id, pending, world, book, &mut all);
        }
        all
    }

    fn take_effect(&self, id: OpId, pending: &Pending, world: &World, book: &Book, all: &mut Vec<World>) {
        let steps = match pending.loose {
            true => self.lag.steps(id, &pending.op, pending.began, world.spot),
            false => step(id, &pending.op, world.spot, book),
        };
        let will_be_asked_again = matches!(pending.op, Op::PutContainer { .. }) && pending.lost.is_none();
        for (outcome, spot) in steps {
            if will_be_asked_again && spot.place != world.spot.place {
                all.push(world.moved(spot));
            }
            // What says nothing and changes nothing need not have happened.
            if pending.lost.is_some() && spot == world.spot {
                continue;
            }
            if outcome == Outcome::Absent && world.outrun.contains_key(&id) {
                let mut also = world.after(id, Outcome::Gone, spot);
                also.outrun.insert(id, true);
                all.push(also);
            }
            let told = if pending.lost.is_some() { TOLD_NOBODY } else { outcome };
            let next = world.after(id, told, spot);
            let removed = spot.cell != world.spot.cell && matches!(pending.op, Op::Delete { .. });
            all.push(if removed { self.removed(Some(id), next) } else { next });
        }
    }

    /// The harness gives up.
    fn too_many(&self, worlds: usize) -> Violation {
        let under_way = self.pending.iter().map(|(id, pending)| {
            let lost = if pending.lost.is_some() { ", lost" } else { "" };
            format!("{id} {:?}{lost}", pending.op)
        });
        let under_way: Vec<String> = under_way.collect();
        Violation(format!("harness: {worlds} worlds of what is under way: {}", under_way.join("; ")))
    }

    /// Every world that `world` may become when some of what is under way takes effect, in any order.
    fn reachable(&self, world: World, book: &Book) -> Result<BTreeSet<World>, Violation> {
        let mut found = BTreeSet::from([world.clone()]);
        let mut queue = vec![world];
        while let Some(world) = queue.pop() {
            for next in self.next(&world, book) {
                if found.insert(next.clone()) {
                    queue.push(next);
                }
            }
            if found.len() > MAX_WORLDS {
                return Err(self.too_many(found.len()));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::model::Fact;

    const GET: Op = Op::Get { c: 0, o: 0 };

    fn put() -> Op {
        Op::Put { c: 0, o: 0, condition: Condition::default(), wrong_md5: false }
    }

    fn delete() -> Op {
        Op::Delete { c: 0, o: 0, condition: Condition::default() }
    }

    fn version(id: OpId) -> Outcome {
        Outcome::Version(Some(Cell { data: id, meta: id }))
    }

    struct Bench {
        register: Register,
        book: Book,
    }

    impl Bench {
        fn new() -> Self {
            Self { register: Register::default(), book: vec![Fact::default(); 30] }
        }

        fn began(&mut self, id: OpId, op: Op, second: u64) {
            self.register.began(id, op, Duration::from_secs(second));
        }

        fn said(&mut self, id: OpId, outcome: &Outcome) -> Result<(), Violation> {
            self.register.said(id, &|said| said == outcome, &self.book)
        }

        fn read(&mut self, id: OpId, outcome: &Outcome) -> Result<(), Violation> {
            self.began(id, GET, 0);
            self.said(id, outcome)
        }
    }

    #[test]
    fn a_write_that_was_acknowledged_is_seen_until_the_next() {
        let mut bench = Bench::new();
        bench.began(1, put(), 0);
        bench.said(1, &Outcome::Done).unwrap();
        bench.read(2, &version(1)).unwrap();
        assert!(bench.read(3, &Outcome::Version(None)).is_err());
    }

    #[test]
    fn a_write_without_an_answer_may_come_late_and_then_stays() {
        let mut bench = Bench::new();
        bench.began(1, put(), 0);
        bench.register.lose(1, Duration::from_secs(1), 2);
        bench.read(2, &Outcome::Version(None)).unwrap();
        bench.read(3, &version(1)).unwrap();
        assert!(bench.read(4, &Outcome::Version(None)).is_err());
    }

    /// The leader of two deletes changes between their grants and their ends (seed 23).
    #[test]
    fn two_deletes_that_are_under_way_together_may_both_have_removed_an_object() {
        for (second, later) in [(Outcome::Gone, false), (Outcome::Absent, false), (Outcome::Gone, true)] {
            let mut bench = Bench::new();
            bench.began(1, put(), 0);
            bench.said(1, &Outcome::Done).unwrap();
            bench.began(2, delete(), 1);
            if !later {
                bench.began(3, delete(), 1);
            }
            bench.said(2, &Outcome::Gone).unwrap();
            if later {
                bench.began(3, delete(), 1);
            }
            assert_eq!(bench.said(3, &second).is_err(), later, "{second:?} {later}");
        }
        let mut bench = Bench::new();
        bench.began(1, put(), 0);
        bench.said(1, &Outcome::Done).unwrap();
        bench.began(2, delete(), 1);
        bench.began(3, delete(), 1);
        bench.register.held(2);
        bench.said(2, &Outcome::Gone).unwrap();
        bench.register.held(3);
        assert!(bench.said(3, &Outcome::Gone).is_err(), "nobody took their grants");
    }

    #[test]
    fn a_delete_that_depends_on_what_stands_is_told_what_became_of_it() {
        let mut bench = Bench::new();
        bench.began(1, put(), 0);
        bench.said(1, &Outcome::Done).unwrap();
        let condition = Condition { if_match: Some(EtagMatch::Any), ..Condition::default() };
        bench.began(2, delete(), 1);
        bench.began(3, Op::Delete { c: 0, o: 0, condition }, 1);
        bench.register.held(2);
        bench.said(2, &Outcome::Gone).unwrap();
        assert!(bench.said(3, &Outcome::Gone).is_err());
    }

    #[test]
    fn an_object_that_was_put_after_two_deletes_is_not_removed_by_the_second() {
        let mut bench = Bench::new();
        for (id, op) in [(1, put()), (2, delete()), (3, delete())] {
            bench.began(id, op, 1);
            if id < 3 {
                continue;
            }
            bench.said(1, &Outcome::Done).unwrap();
            bench.said(2, &Outcome::Gone).unwrap();
            bench.began(4, put(), 2);
            bench.said(4, &Outcome::Done).unwrap();
            bench.said(3, &Outcome::Gone).unwrap();
        }
        bench.read(5, &version(4)).unwrap();
    }

    #[test]
    fn a_write_without_an_answer_is_over_when_a_much_later_one_was_acknowledged() {
        let mut bench = Bench::new();
        bench.began(1, put(), 0);
        bench.register.lose(1, Duration::from_secs(1), 2);
        bench.began(2, delete(), 30);
        bench.said(2, &Outcome::Absent).unwrap();
        assert_eq!(bench.register.writes(), 1, "it may still come");
        bench.began(3, put(), 80);
        bench.said(3, &Outcome::Done).unwrap();
        bench.began(4, delete(), 90);
        bench.said(4, &Outcome::Gone).unwrap();
        assert_eq!(bench.register.writes(), 0);
        assert!(bench.read(5, &version(1)).is_err(), "it was deleted, and comes back");
    }

    #[test]
    fn a_deleted_object_does_not_come_back() {
        let mut bench = Bench::new();
        for (id, op, said) in [(1, put(), Outcome::Done), (2, delete(), Outcome::Gone)] {
            bench.began(id, op, 0);
            bench.said(id, &said).unwrap();
        }
        assert!(bench.read(3, &version(1)).is_err());
    }

    const MAKE: Op = Op::PutContainer { c: 2 };
    const REMOVE: Op = Op::DeleteContainer { c: 2 };
    const MARK: Op = Op::DeleteAccount { a: 1 };
    const LIST: Op = Op::ListContainers { a: 1 };

    /// Operations that were answered one after the other.
    fn fleeting(said: &[(Op, Outcome)]) -> Bench {
        let mut bench = Bench { register: Register::fleeting(), ..Bench::new() };
        for (id, (op, outcome)) in (1..).zip(said.iter().cloned()) {
            bench.began(id, op, 0);
            bench.said(id, &outcome).unwrap();
        }
        bench
    }

    #[test]
    fn a_container_is_deleted_when_it_is_empty_and_only_then() {
        let mut bench = fleeting(&[
            (put(), Outcome::NoContainer),
            (MAKE, Outcome::Made(true)),
            (MAKE, Outcome::Made(false)),
            (put(), Outcome::Done),
            (REMOVE, Outcome::NotEmpty),
        ]);
        bench.began(10, REMOVE, 1);
        assert!(bench.said(10, &Outcome::Gone).is_err(), "an object is in it");
        let mut bench = fleeting(&[
            (MAKE, Outcome::Made(true)),
            (put(), Outcome::Done),
            (delete(), Outcome::Gone),
            (REMOVE, Outcome::Gone),
            (REMOVE, Outcome::Absent),
            (MAKE, Outcome::Made(true)),
        ]);
        assert!(bench.read(10, &version(2)).is_err(), "it was in the one that is gone");
    }

    #[test]
    fn a_late_delete_of_a_container_leaves_what_was_made_anew() {
        for (again, late) in [(false, false), (true, true)] {
            let mut bench = fleeting(&[(MAKE, Outcome::Made(true))]);
            bench.began(2, REMOVE, 1);
            bench.register.lose(2, Duration::from_secs(2), 3);
            if again {
                for (id, op, said) in [(3, REMOVE, Outcome::Gone), (4, MAKE, Outcome::Made(true))] {
                    bench.began(id, op, 3);
                    bench.said(id, &said).unwrap();
                }
            }
            assert_eq!(bench.read(5, &Outcome::NoContainer).is_err(), late);
        }
    }

    #[test]
    fn what_was_put_into_a_container_without_an_answer_is_not_in_the_next_one() {
        let mut bench = fleeting(&[(MAKE, Outcome::Made(true))]);
        bench.began(2, put(), 1);
        bench.register.lose(2, Duration::from_secs(2), 3);
        for (id, op, said) in [(3, REMOVE, Outcome::Gone), (4, MAKE, Outcome::Made(true))] {
            bench.began(id, op, 3);
            bench.said(id, &said).unwrap();
        }
        assert_eq!(bench.register.writes(), 0, "nobody waits for it any more");
        assert!(bench.read(5, &version(2)).is_err());
    }

    #[test]
    fn under_a_deleted_account_all_goes_and_nothing_is_made() {
        let said = [(MAKE, Outcome::Made(true)), (put(), Outcome::Done), (MARK, Outcome::Gone)];
        // All may have been reaped meanwhile; who then made it, and was asked again, says that it was there.
        for outcome in [Outcome::NoAccount, Outcome::Made(true), Outcome::Made(false)] {
            let mut bench = fleeting(&said);
            bench.began(10, MAKE, 1);
            bench.said(10, &outcome).unwrap();
            let made = outcome != Outcome::NoAccount;
            assert_eq!(bench.read(11, &version(2)).is_err(), made, "{outcome:?}: what is made is empty");
        }
        let mut bench = fleeting(&said);
        bench.began(10, MARK, 1);
        assert!(bench.said(10, &Outcome::Gone).is_err(), "it was marked");
        let mut bench = fleeting(&said);
        bench.register.reap();
        bench.began(10, LIST, 1);
        bench.said(10, &Outcome::NoAccount).unwrap();
        assert!(bench.read(11, &version(2)).is_err(), "the reaper has done");
    }

    #[test]
    fn a_late_delete_of_an_account_leaves_what_was_made_anew() {
        let mut bench = fleeting(&[(MAKE, Outcome::Made(true))]);
        bench.began(2, MARK, 1);
        bench.register.lose(2, Duration::from_secs(2), 3);
        bench.began(3, MARK, 3);
        bench.said(3, &Outcome::Gone).unwrap();
        bench.register.reap();
        for (id, op, said) in [(4, MAKE, Outcome::Made(true)), (5, put(), Outcome::Done)] {
            bench.began(id, op, 3);
            bench.said(id, &said).unwrap();
        }
        assert!(bench.read(6, &Outcome::NoContainer).is_err());
    }
}
