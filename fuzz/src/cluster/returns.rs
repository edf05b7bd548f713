//! Lines that come back to who gave them away: clients delete them, somebody may hear of that later than all others, and tries to take
//! them back come all the time.
//!
//! What of it can go wrong goes wrong where a voter has applied that they came back, and not yet what was deleted before. So mostly the
//! one who is away votes, and leads nothing: the others go on without it. And mostly parent and child are led by different nodes.
//!
//! And it goes wrong where the parent gives what is made anew a time before that of its tombstone. So often the clock of who leads the
//! child is ahead of that of who leads the parent when clients delete, and when they have spared the names for a while they write them.

use std::time::Duration;

use quarry_engine::consensus::Given;
use quarry_engine::io::SplitMix64;
use quarry_engine::object::Condition;

use super::assembly::NAMES as FIRST;
use super::history::History;
use super::profile::{CONTAINERS, MANY_WRITES};
use super::trouble::Trouble;
use crate::store::model::{NAMES, OBJECTS, Op, account_name, account_of, container_name};
use crate::store::oracle::Violation;

/// Longest pause between two tries to take lines back. This and what else takes its time here is shorter where clients are quick: a
/// history ends after so many operations.
const RETURN: Duration = Duration::from_secs(1);
/// Out of a thousand tries, before how many clients delete what is in such lines.
const EMPTIED: u32 = 300;
/// Out of a thousand times, how often the lead of the child goes elsewhere then.
const HANDED: u32 = 700;
/// Out of a thousand times, how often somebody is away then, and for how long.
const ABSENT: u32 = 700;
const ABSENCE: Duration = Duration::from_secs(3);
/// Out of a thousand times, how often clocks are set then, where clocks jump; and by how many milliseconds one is ahead of the other at
/// least, and at most.
const SKEWED: u32 = 600;
const AHEAD: (i64, u64) = (20_000, 40_000);
/// For so long nobody makes anew what was deleted.
const SPARED: Duration = Duration::from_secs(2);
/// The pauses of clients for which these times are.
const THINK: Duration = Duration::from_millis(300);
/// Sets the numbers of those tries apart.
const APART: u64 = 0x7265_7475_726e_7321;

/// When lines are taken back: by numbers of its own, apart from all else.
pub(super) struct Returns {
    rng: SplitMix64,
    at: Duration,
    spared: Option<Spared>,
    /// When somebody last tried to take lines back.
    tried: Duration,
}

/// Names from one on, in which nobody writes for a while.
struct Spared {
    c: usize,
    from: String,
    until: Duration,
}

fn is_of(c: usize, given: &Given) -> bool {
    account_name(account_of(c)) == given.of.account && container_name(c) == given.of.container
}

impl Returns {
    pub(super) fn new(seed: u64) -> Self {
        let rng = SplitMix64::new(seed.rotate_left(32) ^ APART);
        Self { rng, at: Duration::ZERO, spared: None, tried: Duration::ZERO }
    }

    /// When somebody last tried to take lines back.
    pub(super) fn tried_at(&self) -> Duration {
        self.tried
    }

    /// What a client does that leaves alone what was just deleted.
    pub(super) fn spared(&self, op: Op, now: Duration) -> Op {
        let within = |c: usize, o: usize| {
            let spared = self.spared.as_ref().filter(|spared| now < spared.until);
            spared.is_some_and(|spared| spared.c == c && *NAMES[o] >= *spared.from)
        };
        match op {
            Op::Put { c, o, .. } | Op::Post { c, o } if within(c, o) => Op::Get { c, o },
            other => other,
        }
    }
}

impl History {
    /// Somebody tries to take lines back, if it is time.
    pub(super) fn return_some(&mut self) -> Result<(), Violation> {
        let now = self.world.now();
        if now < self.returns.at {
            return Ok(());
        }
        self.rewrite_some()?;
        let spared = self.returns.spared.as_ref().is_some_and(|spared| now < spared.until);
        let longest = self.paced(if spared { RETURN / 4 } else { RETURN });
        let longest = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
        self.returns.at = now + Duration::from_micros(self.returns.rng.below(longest));
        if !spared && self.returns.rng.chance(EMPTIED) {
            self.empty_some()?;
        }
        if let Some(said) = self.world.take_back(&mut self.returns.rng) {
            self.returns.tried = now;
            self.note(&said);
        }
        Ok(())
    }

    /// A time, or a shorter one.
    fn paced(&self, time: Duration) -> Duration {
        let (think, usual) = (self.profile.think.as_millis(), THINK.as_millis());
        time * u32::try_from(think.min(usual)).unwrap_or(1) / u32::try_from(usual).unwrap_or(1)
    }

    /// What was spared is written anew, when it was spared for long enough.
    fn rewrite_some(&mut self) -> Result<(), Violation> {
        let now = self.world.now();
        let Some(Spared { c, from, .. }) = self.returns.spared.take_if(|spared| spared.until <= now) else {
            return Ok(());
        };
        for o in (0..OBJECTS).filter(|o| *NAMES[*o] >= *from) {
            if self.oracle.writes((c, o)) < MANY_WRITES {
                let condition = Condition::default();
                self.begin_anywhere(Op::Put { c, o, condition, wrong_md5: false }, None)?;
            }
        }
        Ok(())
    }

    /// Perhaps the clock of who will lead the child is ahead from now on, and that of who leads the parent is not.
    fn skew(&mut self, parent: usize, child: Option<usize>) -> Result<(), Violation> {
        let Some(child) = child.filter(|child| *child != parent) else { return Ok(()) };
        let jumps = self.profile.trouble.is_some() && !self.profile.eventual;
        if !jumps || !self.returns.rng.chance(SKEWED) {
            return Ok(());
        }
        let (least, more) = AHEAD;
        let off = least + i64::try_from(self.returns.rng.below(more)).unwrap_or(0);
        self.strike(Trouble::Clock(parent, 0), Duration::ZERO)?;
        self.strike(Trouble::Clock(child, off), Duration::ZERO)
    }

    /// Clients delete what is in a range that was given away.
    fn empty_some(&mut self) -> Result<(), Violation> {
        let given = self.world.given();
        if given.is_empty() {
            return Ok(());
        }
        let (leader, given) = given[self.returns.rng.index(given.len())].clone();
        let Some(c) = (0..CONTAINERS).find(|c| is_of(*c, &given)) else {
            return Ok(());
        };
        let away = self.send_away(leader, &given)?;
        let until = self.world.now() + self.paced(SPARED);
        for o in (0..OBJECTS).filter(|o| *NAMES[*o] >= *given.from) {
            if self.oracle.writes((c, o)) < MANY_WRITES {
                self.begin_anywhere(Op::Delete { c, o, condition: Condition::default() }, away)?;
            }
        }
        self.returns.spared = Some(Spared { c, from: given.from, until });
        Ok(())
    }

    /// Perhaps the child is led elsewhere from now on, and perhaps somebody hears of what comes only when the lines have been taken back.
    fn send_away(&mut self, leader: usize, given: &Given) -> Result<Option<usize>, Violation> {
        let mut leads = vec![leader];
        leads.extend(self.world.leads(FIRST));
        let mut child = self.world.leads(given.group);
        leads.extend(child);
        let rng = &mut self.returns.rng;
        let mut others = self.world.voters(given.group);
        others.retain(|n| !leads.contains(n));
        if child == Some(leader) && !others.is_empty() && rng.chance(HANDED) {
            let to = others.swap_remove(rng.index(others.len()));
            self.world.hand_over(given.group, leader, to);
            self.note(&format!("group {} is handed over to {to}", given.group));
            child = Some(to);
        }
        self.skew(leader, child)?;
        let rng = &mut self.returns.rng;
        let any = rng.index(self.world.machines.len());
        let away = others.get(rng.index(others.len().max(1))).copied().unwrap_or(any);
        let cut = Trouble::CutOff(away);
        let may = self.profile.trouble.is_some() && self.troubles.allow(&self.world, cut);
        if !may || !self.returns.rng.chance(ABSENT) {
            return Ok(None);
        }
        self.strike(cut, self.paced(ABSENCE))?;
        Ok(Some(away))
    }
}
