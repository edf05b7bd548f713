//! A container that comes and goes, with its account, beside those that stay: clients of its own make it, fill it, empty it and delete
//! it, and make it anew at once.
//!
//! What can go wrong goes wrong where a DELETE is late, or asked again, and meant the container that was there before. So there are times
//! in which these clients mostly put, and times in which they mostly delete; and whoever was told that the container is gone makes it
//! anew most of the time. Often whoever deletes does not hear the leader's answer and asks again; meanwhile another one makes anew what
//! is gone and leaves it empty. All by numbers of their own, apart from all else (`returns.rs`).
//!
//! In an eventual container one of them often goes on to write at a node that does not hear the leader, while the other one deletes the
//! container and makes it anew elsewhere.

use std::time::Duration;

use quarry_engine::io::SplitMix64;
use quarry_engine::object::{Condition, IndexPolicy};

use super::history::History;
use super::profile::{Profile, condition, everything};
use super::trouble::Trouble;
use crate::store::model::{Op, OpId, account_of};
use crate::store::oracle::Violation;

/// The container, of an account of its own.
pub(crate) const FLEETING: usize = 2;
/// Its account.
pub(crate) const ACCOUNT: usize = account_of(FLEETING);
/// Names in it that are used, the first ones.
pub(crate) const FLEETING_OBJECTS: usize = 3;
/// Clients that are at it.
const CLIENTS: usize = 2;
/// Writes of a name, under way or unanswered, at which it is only read for a while.
const MANY_WRITES: usize = 5;
/// Operations after which its clients mostly do the other thing, at most.
const TIDE: u64 = 24;
/// Out of a thousand DELETEs of all, how many answers of the leader are lost where there is trouble; how soon, and for how long at most.
const UNHEARD: u32 = 500;
const LOST_AFTER: Duration = Duration::from_millis(6);
const LOST_FOR: Duration = Duration::from_secs(3);
/// Out of a thousand operations in eventual containers where there is trouble, before how many somebody ceases to hear the leader, for
/// how long at least and how much longer; for longer than its node asks in vain before it goes on alone.
const STRAY: u32 = 60;
const STRAYS_FOR: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(5));
/// Out of a thousand times that the container is made, how often it is eventual, where it may be either.
const STRICT_TOO: u32 = 700;
/// Sets the numbers apart.
const APART: u64 = 0x666c_6565_7469_6e67;

/// Clients of the container that comes and goes.
pub(super) struct Fleeting {
    pub(super) rng: SplitMix64,
    /// When each does what it does next.
    at: [Duration; CLIENTS],
    /// Operations before the tide turns, and whether they mostly delete until then.
    left: u64,
    emptying: bool,
    /// Somebody was told that the container is gone.
    gone: bool,
    /// A DELETE whose answer shall be lost.
    late: Option<Late>,
    /// Out of a thousand times that the container is made, how often it is eventual.
    eventual: u32,
    /// Somebody who does not hear the leader and writes all the same, and until when.
    stray: Option<(usize, Duration)>,
}

#[derive(Clone, Copy)]
struct Late {
    id: OpId,
    /// Who asks.
    at: usize,
    /// When the answers are lost from; none: they are, or were.
    from: Option<Duration>,
}

impl Fleeting {
    pub(super) fn new(seed: u64, profile: &Profile) -> Self {
        let rng = SplitMix64::new(seed.rotate_left(17) ^ APART);
        let (at, left) = ([Duration::ZERO; CLIENTS], TIDE);
        let eventual = match profile.eventual {
            false => 0,
            // What is strict may be divided, and is then not made eventual.
            true if profile.splits.is_some() || seed.is_multiple_of(3) => 1000,
            true => STRICT_TOO,
        };
        Self { rng, at, left, emptying: false, gone: true, late: None, eventual, stray: None }
    }

    /// What shall hold of the container, when it is made, while its group has no leader.
    pub(super) fn index(&mut self) -> Option<IndexPolicy> {
        let eventual = match self.eventual {
            0 | 1000.. => self.eventual > 0,
            some => self.rng.chance(some),
        };
        eventual.then_some(IndexPolicy::Eventual)
    }

    /// Whether every container that was made was eventual.
    pub(super) fn is_eventual(&self) -> bool {
        self.eventual == 1000
    }

    /// An answer of a client.
    pub(super) fn heard(&mut self, op: &Op, gone: bool) {
        self.gone |= gone && matches!(op, Op::DeleteContainer { .. });
    }

    fn below(&mut self, longest: Duration) -> Duration {
        Duration::from_micros(self.rng.below(u64::try_from(longest.as_micros()).unwrap_or(u64::MAX)))
    }

    /// While a DELETE is asked again: nothing is put.
    fn wait(&mut self) -> Op {
        let o = self.rng.index(FLEETING_OBJECTS);
        if self.rng.chance(300) { Op::PutContainer { c: FLEETING } } else { read(o, self.rng.below(40)) }
    }

    /// `emptying`: whether it is mostly to delete; else as the tide is.
    fn draw(&mut self, absent: bool, writes: usize, emptying: Option<bool>) -> Op {
        if self.left == 0 {
            self.left = 1 + self.rng.below(TIDE);
            self.emptying = !self.emptying;
        }
        self.left -= 1;
        let emptying = emptying.unwrap_or(self.emptying);
        let (c, o, rng) = (FLEETING, self.rng.index(FLEETING_OBJECTS), &mut self.rng);
        let what = rng.below(100);
        if writes >= MANY_WRITES {
            return read(o, what * 4 / 10);
        }
        if std::mem::take(&mut self.gone) && rng.chance(800) || absent && rng.chance(400) {
            return Op::PutContainer { c };
        }
        let [puts, deletes, removals] = if emptying { [8, 40, 24] } else { [42, 12, 4] };
        let mut sum = 0;
        let mut below = |share| {
            sum += share;
            what < sum
        };
        if below(puts) {
            Op::Put { c, o, condition: condition(rng, ""), wrong_md5: false }
        } else if below(deletes) {
            Op::Delete { c, o, condition: Condition::default() }
        } else if below(removals) {
            Op::DeleteContainer { c }
        } else if below(3) {
            Op::PutContainer { c }
        } else if below(2) {
            Op::DeleteAccount { a: ACCOUNT }
        } else if below(4) {
            // The oracle of an eventual container knows no such write (`profile.rs`).
            if self.eventual > 0 { Op::Get { c, o } } else { Op::Post { c, o } }
        } else {
            read(o, rng.below(40))
        }
    }
}

fn read(o: usize, what: u64) -> Op {
    let c = FLEETING;
    match what {
        0..14 => Op::Get { c, o },
        14..28 => Op::List { c, listing: everything() },
        28..34 => Op::HeadContainer { c },
        _ => Op::ListContainers { a: ACCOUNT },
    }
}

impl History {
    /// Its clients do something, if it is time.
    pub(super) fn flit(&mut self) -> Result<(), Violation> {
        let now = self.world.now();
        self.lose_answers()?;
        for client in 0..CLIENTS {
            if self.fleeting.at[client] > now {
                continue;
            }
            let pause = self.fleeting.below(self.profile.think);
            self.fleeting.at[client] = now + pause;
            if self.under_way(FLEETING) >= CLIENTS {
                continue;
            }
            if self.fleeting.late.is_some() {
                let op = self.fleeting.wait();
                self.begin_anywhere(op, None)?;
                continue;
            }
            let absent = self.oracle.may_be_absent(FLEETING);
            let writes = (0..FLEETING_OBJECTS).map(|o| self.oracle.writes((FLEETING, o))).max();
            let strays = self.fleeting.stray.is_some_and(|(_, until)| now < until);
            let op = self.fleeting.draw(absent, writes.unwrap_or(0), strays.then_some(client > 0));
            if !self.stray(client, &op)? && !self.delete_unheard(&op)? {
                self.begin_anywhere(op, None)?;
            }
        }
        Ok(())
    }

    /// Perhaps the first client is at a node that does not hear the leader, and the others elsewhere.
    fn stray(&mut self, client: usize, op: &Op) -> Result<bool, Violation> {
        if self.fleeting.eventual == 0 || self.profile.trouble.is_none() {
            return Ok(false);
        }
        let now = self.world.now();
        let Some((at, _)) = self.fleeting.stray.filter(|(_, until)| now < *until) else {
            self.fleeting.stray = None;
            return self.begin_to_stray();
        };
        let writes = matches!(op, Op::Put { .. } | Op::Delete { .. } | Op::Get { .. });
        let there = self.serving().into_iter().find(|(n, _)| *n == at);
        match there.filter(|_| client == 0 && writes) {
            Some((_, running)) => self.begin(at, &running, op.clone()).map(|_| true),
            None => self.begin_anywhere(op.clone(), Some(at)),
        }
    }

    /// Somebody may cease to hear the leader; what was to be done is done as ever.
    fn begin_to_stray(&mut self) -> Result<bool, Violation> {
        let Some(leader) = self.world.leader().filter(|_| self.fleeting.rng.chance(STRAY)) else {
            return Ok(false);
        };
        let at = self.fleeting.rng.index(self.world.machines.len());
        let unheard = Trouble::Unheard(leader, at);
        if at != leader && self.troubles.allow(&self.world, unheard) {
            let lasts = STRAYS_FOR.0 + self.fleeting.below(STRAYS_FOR.1);
            self.fleeting.stray = Some((at, self.world.now() + lasts));
            self.strike(unheard, lasts)?;
        }
        Ok(false)
    }

    /// Perhaps a DELETE of all is one that does not hear its answer.
    fn delete_unheard(&mut self, op: &Op) -> Result<bool, Violation> {
        let deletes = matches!(op, Op::DeleteContainer { .. } | Op::DeleteAccount { .. });
        if !deletes || self.profile.trouble.is_none() || !self.fleeting.rng.chance(UNHEARD) {
            return Ok(false);
        }
        let leader = self.world.leader();
        let mut serving = self.serving();
        serving.retain(|(n, _)| Some(*n) != leader);
        if serving.is_empty() {
            return Ok(false);
        }
        let (at, running) = serving.swap_remove(self.fleeting.rng.index(serving.len()));
        let id = self.begin(at, &running, op.clone())?;
        let from = Some(self.world.now() + self.fleeting.below(LOST_AFTER));
        self.fleeting.late = Some(Late { id, at, from });
        Ok(true)
    }

    /// What the leader says to whoever deletes is lost from some moment on.
    fn lose_answers(&mut self) -> Result<(), Violation> {
        let now = self.world.now();
        let Some(Late { id, at, from }) = self.fleeting.late else { return Ok(()) };
        if !self.is_under_way(id) {
            self.fleeting.late = None;
            return Ok(());
        }
        if from.is_none_or(|from| from > now) {
            return Ok(());
        }
        self.fleeting.late = Some(Late { id, at, from: None });
        let Some(leader) = self.world.leader().filter(|leader| *leader != at) else { return Ok(()) };
        let unheard = Trouble::Unheard(leader, at);
        if self.troubles.allow(&self.world, unheard) {
            let lasts = self.fleeting.below(LOST_FOR);
            self.strike(unheard, lasts)?;
        }
        Ok(())
    }
}
