//! Whether what clients were told can have happened: linearizability, checked as answers arrive.
//!
//! A world is one way in which it all may have gone so far: a state, and the operations under way that have already taken
//! effect in it with the answer that they will have to give. An answer keeps the worlds in which it is right. (Lowe,
//! "Testing for linearizability", 2016, calls it just-in-time linearization.)
//!
//! Invariant: an operation takes effect once, between its beginning and its answer; one without an answer takes effect
//! once or never, before the next restart.
//! Invariant: operations that do not conflict are never ordered, so the number of worlds stays small.

use std::collections::{BTreeMap, BTreeSet};

use super::model::{Book, Op, OpId, Outcome, Span, State, step};

/// Worlds at which the harness gives up: too much goes on at once to be judged.
const MAX_WORLDS: usize = 20_000;

/// A broken promise, or a harness that cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
struct World {
    state: State,
    done: BTreeMap<OpId, Outcome>,
}

#[derive(Debug)]
struct Pending {
    op: Op,
    span: Span,
    /// Nobody waits for its answer any more.
    lost: bool,
}

/// All worlds that are still possible.
#[derive(Debug)]
pub struct Oracle {
    /// What was written.
    pub book: Book,
    worlds: BTreeSet<World>,
    pending: BTreeMap<OpId, Pending>,
    now: u64,
}

impl Oracle {
    /// An empty store.
    #[must_use]
    pub fn new(now: u64) -> Self {
        let worlds = BTreeSet::from([World::default()]);
        Self { book: vec![Default::default()], worlds, pending: BTreeMap::new(), now }
    }

    /// Any possible state, for choosing what to do next.
    #[must_use]
    pub fn guess(&self) -> State {
        self.worlds.first().map(|world| world.state.clone()).unwrap_or_default()
    }

    /// How many worlds are possible.
    #[must_use]
    pub fn worlds(&self) -> usize {
        self.worlds.len()
    }

    /// Operations whose answers nobody waits for and that may still take effect.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.pending.values().filter(|pending| pending.lost).count()
    }

    /// The wall clock shows this now.
    pub fn clock(&mut self, now: u64) {
        self.now = now;
        for pending in self.pending.values_mut() {
            pending.span.low = pending.span.low.min(now);
            pending.span.high = pending.span.high.max(now);
        }
    }

    /// An operation begins. Its fact was entered in the book under its number.
    pub fn began(&mut self, id: OpId, op: Op) {
        let span = Span { low: self.now, high: self.now };
        self.pending.insert(id, Pending { op, span, lost: false });
    }

    /// An operation said this.
    pub fn said(&mut self, id: OpId, outcome: &Outcome) -> Result<(), Violation> {
        let near = self.near(id);
        let mut right = BTreeSet::new();
        let mut wrong = BTreeSet::new();
        for world in std::mem::take(&mut self.worlds) {
            for mut world in self.reachable(world, &near)? {
                match world.done.get(&id) {
                    Some(said) if said == outcome => {
                        world.done.remove(&id);
                        right.insert(world);
                    }
                    Some(said) if wrong.len() < 4 => {
                        wrong.insert(format!("{said:?}"));
                    }
                    Some(_) | None => {}
                }
            }
        }
        let op = self.pending.remove(&id).map(|pending| pending.op);
        if right.is_empty() {
            let could: Vec<_> = wrong.into_iter().collect();
            return Err(Violation(format!(
                "op {id} {op:?} said {outcome:?}; right would be {}",
                could.join(" or ")
            )));
        }
        if right.len() > MAX_WORLDS {
            return Err(Violation(format!("harness: {} worlds", right.len())));
        }
        self.worlds = right;
        Ok(())
    }

    /// An operation was refused for a reason that the model does not know, such as space: it has no effect.
    pub fn refused(&mut self, id: OpId) -> Result<(), Violation> {
        self.worlds.retain(|world| !world.done.contains_key(&id));
        let op = self.pending.remove(&id).map(|pending| pending.op);
        if self.worlds.is_empty() {
            return Err(Violation(format!("op {id} {op:?} was refused, and its effect was seen")));
        }
        Ok(())
    }

    /// An operation will say nothing. It may take effect until [`Oracle::settle`].
    pub fn lose(&mut self, id: OpId) {
        let Some(pending) = self.pending.get_mut(&id) else { return };
        pending.lost = true;
        if pending.op.reads() {
            self.forget(id);
        }
    }

    /// Every operation under way is lost: the process died.
    pub fn lose_all(&mut self) {
        let all: Vec<OpId> = self.pending.keys().copied().collect();
        for id in all {
            self.lose(id);
        }
    }

    /// What was lost has now taken effect or never will.
    pub fn settle(&mut self) -> Result<(), Violation> {
        let lost: Vec<OpId> = self.pending.iter().filter(|(_, p)| p.lost).map(|(id, _)| *id).collect();
        if lost.is_empty() {
            return Ok(());
        }
        // What is still under way may have happened before.
        let mut near: Vec<OpId> = lost.iter().flat_map(|id| self.near(*id)).collect();
        near.sort_unstable();
        near.dedup();
        let mut all = BTreeSet::new();
        for world in std::mem::take(&mut self.worlds) {
            for mut world in self.reachable(world, &near)? {
                world.done.retain(|id, _| !lost.contains(id));
                all.insert(world);
            }
        }
        for id in lost {
            self.pending.remove(&id);
        }
        self.worlds = all;
        Ok(())
    }

    fn forget(&mut self, id: OpId) {
        self.pending.remove(&id);
        let stripped = std::mem::take(&mut self.worlds).into_iter().map(|mut world| {
            world.done.remove(&id);
            world
        });
        self.worlds = stripped.collect();
    }

    /// The operations under way that conflict with `id`, with those that conflict with them, and so on.
    fn near(&self, id: OpId) -> Vec<OpId> {
        let mut near = vec![id];
        let mut next = 0;
        while let Some(pending) = near.get(next).and_then(|id| self.pending.get(id)) {
            for (other, candidate) in &self.pending {
                if !near.contains(other) && candidate.op.conflicts(&pending.op) {
                    near.push(*other);
                }
            }
            next += 1;
        }
        near
    }

    /// Every world that `world` may become when some of `ops` take effect, in any order.
    fn reachable(&self, world: World, ops: &[OpId]) -> Result<BTreeSet<World>, Violation> {
        let mut found = BTreeSet::from([world.clone()]);
        let mut queue = vec![world];
        while let Some(world) = queue.pop() {
            for id in ops.iter().filter(|id| !world.done.contains_key(id)) {
                let Some(pending) = self.pending.get(id) else { continue };
                for (outcome, state) in step(*id, &pending.op, &world.state, &self.book, pending.span) {
                    // What says nothing and changes nothing need not have happened.
                    if pending.lost && state == world.state {
                        continue;
                    }
                    let mut done = world.done.clone();
                    done.insert(*id, outcome);
                    let next = World { state, done };
                    if found.insert(next.clone()) {
                        queue.push(next);
                    }
                }
            }
            if found.len() > MAX_WORLDS {
                return Err(Violation(format!("harness: {} worlds from one", found.len())));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::model::{Cell, Fact};
    use quarry_engine::object::Condition;

    fn oracle() -> Oracle {
        let mut oracle = Oracle::new(100);
        oracle.book.resize(20, Fact { size: 1, etag: "e".to_owned(), delete_at: None });
        oracle.began(1, Op::PutContainer { c: 0 });
        oracle.said(1, &Outcome::Made(true)).unwrap();
        oracle
    }

    fn put(o: usize) -> Op {
        Op::Put { c: 0, o, condition: Condition::default(), wrong_md5: false }
    }

    fn version(id: OpId) -> Outcome {
        Outcome::Version(Some(Cell { data: id, meta: id }))
    }

    #[test]
    fn a_read_beside_a_write_may_see_either_but_not_go_back() {
        let mut oracle = oracle();
        oracle.began(2, put(0));
        oracle.began(3, Op::Get { c: 0, o: 0 });
        oracle.said(3, &version(2)).unwrap();
        oracle.began(4, Op::Get { c: 0, o: 0 });
        assert!(oracle.said(4, &Outcome::Version(None)).is_err());
    }

    #[test]
    fn a_lost_write_is_there_or_not_and_then_stays() {
        for seen in [version(2), Outcome::Version(None)] {
            let mut oracle = oracle();
            oracle.began(2, put(0));
            oracle.lose_all();
            oracle.settle().unwrap();
            for id in 3..5 {
                oracle.began(id, Op::Get { c: 0, o: 0 });
                oracle.said(id, &seen).unwrap();
            }
            let other = if seen == version(2) { Outcome::Version(None) } else { version(2) };
            oracle.began(6, Op::Get { c: 0, o: 0 });
            assert!(oracle.said(6, &other).is_err());
        }
    }

    #[test]
    fn a_read_may_come_before_a_lost_write_that_is_settled_meanwhile() {
        let mut oracle = oracle();
        oracle.began(2, Op::Get { c: 0, o: 0 });
        oracle.began(3, put(0));
        oracle.lose(3);
        oracle.settle().unwrap();
        oracle.said(2, &Outcome::Version(None)).unwrap();
        oracle.began(4, Op::Get { c: 0, o: 0 });
        oracle.said(4, &version(3)).unwrap();
    }

    #[test]
    fn an_acknowledged_write_that_is_not_there_is_found() {
        let mut oracle = oracle();
        oracle.began(2, put(0));
        oracle.said(2, &Outcome::Done).unwrap();
        oracle.lose_all();
        oracle.settle().unwrap();
        oracle.began(3, Op::HeadContainer { c: 0 });
        assert!(oracle.said(3, &Outcome::Container(Some((1, 0, 0)))).is_err());
    }

    #[test]
    fn of_two_conditional_puts_at_once_one_is_refused() {
        let create = |o| Op::Put {
            c: 0,
            o,
            condition: Condition {
                if_none_match: Some(quarry_engine::object::EtagMatch::Any),
                if_match: None,
            },
            wrong_md5: false,
        };
        let mut oracle = oracle();
        oracle.began(2, create(0));
        oracle.began(3, create(0));
        oracle.said(3, &Outcome::Done).unwrap();
        assert!(oracle.said(2, &Outcome::Done).is_err());
    }
}
