//! The healing phase: no more trouble, time passes, and then everything must be as clients were told, alike and in its place.

use std::time::Duration;

use quarry_engine::object::Condition;
use quarry_engine::work::State;

use super::assembly::{IDLE, RECLAIM};
use super::fleeting::{ACCOUNT, FLEETING, FLEETING_OBJECTS};
use super::history::{History, STUCK};
use super::invariants;
use super::profile::{ALL, everything};
use crate::store::model::{OBJECTS, Op};
use crate::store::oracle::Violation;
use crate::store::world::IndexFate;

/// The replicators have all done by then: the slowest of 120 histories took 83 s.
const SETTLED: Duration = Duration::from_secs(480);
/// Workers that are waited for.
const SETTLING: [&str; 3] = ["replicator", "updater", "reaper"];
/// After a night tombstones are kept for so long (a 28th of the reclaim age), and the pruner has looked for them since.
const RESTED: Duration = Duration::from_secs(RECLAIM / 28 + 2 * IDLE);
/// What is younger is left alone by replicators.
const YOUNG: Duration = Duration::from_secs(12);

impl History {
    pub(crate) fn heal(&mut self) -> Result<(), Violation> {
        self.calm()?;
        self.heal_volume()?;
        self.settle()?;
        self.demand_all();
        self.oracle.heal();
        self.oracle.reap();
        self.sweep(0)?;
        // What nobody has seen by now nobody will ever see.
        self.oracle.settle();
        for n in 0..self.world.machines.len() {
            self.sweep(n)?;
        }
        self.renew()?;
        self.sweep(0)?;
        self.settle()?;
        invariants::check(self)?;
        self.restart_all()?;
        self.heal_volume()?;
        let last = self.world.machines.len() - 1;
        self.sweep(last)?;
        self.settle_reads()?;
        invariants::check(self)?;
        self.forget()
    }

    /// Who reads in an eventual container spreads a tombstone that has gone on all devices but one, as those do that a night made old, and each
    /// notes an intent.
    fn settle_reads(&mut self) -> Result<(), Violation> {
        if self.slept { self.settle() } else { Ok(()) }
    }

    /// Tombstones go that a night made old; nothing that they hid is back.
    fn forget(&mut self) -> Result<(), Violation> {
        if !self.slept {
            return Ok(());
        }
        self.pass(RESTED)?;
        self.settle()?;
        self.sweep(0)?;
        self.settle_reads()?;
        invariants::check(self)
    }

    pub(crate) fn pass(&mut self, time: Duration) -> Result<(), Violation> {
        let end = self.world.now() + time;
        while self.world.now() < end {
            self.tick()?;
        }
        Ok(())
    }

    /// Until no version is young: their times are given by the clock that was furthest ahead, and by leaders above what others may have given.
    fn grow_old(&mut self) -> Result<(), Violation> {
        let end = self.world.now() + SETTLED;
        loop {
            self.pass(YOUNG)?;
            let wall = self.world.machines.iter().map(|machine| machine.wall.now()).min();
            let newest = invariants::newest(&self.world)?;
            if u128::from(newest) + YOUNG.as_micros() <= u128::from(wall.unwrap_or(0)) {
                return Ok(());
            }
            if self.world.now() > end {
                return Err(Violation(format!("a version of {newest} is ahead of all clocks: {wall:?}")));
            }
        }
    }

    /// Until every replicator, updater and reaper has twice found nothing to do.
    fn settle(&mut self) -> Result<(), Violation> {
        self.grow_old()?;
        let begun = self.passes();
        let end = self.world.now() + SETTLED;
        loop {
            self.pass(Duration::from_millis(500))?;
            let now = self.passes();
            let twice = begun.len() == now.len()
                && begun.iter().zip(&now).all(|(before, now)| now.0 >= before.0 + 2 && now.1 == State::Idle);
            if twice {
                return Ok(());
            }
            if self.world.now() > end {
                return Err(Violation(format!(
                    "the replicators, updaters and reapers do not settle: {now:?}"
                )));
            }
        }
    }

    /// Rounds of every replicator, updater and reaper, what it is about, and what went wrong with it last.
    fn passes(&self) -> Vec<(u64, State, Option<String>)> {
        let running = self.world.machines.iter().filter_map(|machine| machine.running());
        let reports = running.flat_map(|running| running.reports).map(|report| report.read());
        reports
            .filter(|report| SETTLING.iter().any(|name| report.name.starts_with(name)))
            .map(|report| (report.progress.passes, report.state, report.last_error))
            .collect()
    }

    /// Everything that a client can look at, once, at one node.
    fn sweep(&mut self, n: usize) -> Result<(), Violation> {
        for c in 0..ALL {
            self.alone(n, Op::List { c, listing: everything() })?;
            for o in 0..OBJECTS {
                self.alone(n, Op::Get { c, o })?;
            }
            self.alone(n, Op::HeadContainer { c })?;
        }
        self.alone(n, Op::ListContainers { a: ACCOUNT })
    }

    /// The container that comes and goes is written, and mostly emptied, deleted and made anew, with a node for each of that: nothing is
    /// refused but what the oracle says.
    fn renew(&mut self) -> Result<(), Violation> {
        let machines = self.world.machines.len();
        let first = self.rng.index(machines);
        let c = FLEETING;
        let put = |o| Op::Put { c, o, condition: Condition::default(), wrong_md5: false };
        let delete = |o| Op::Delete { c, o, condition: Condition::default() };
        let mut all = vec![Op::DeleteContainer { c }, Op::PutContainer { c }];
        all.extend((0..FLEETING_OBJECTS).map(put));
        all.push(Op::DeleteContainer { c });
        if self.fleeting.rng.chance(700) {
            all.extend((0..FLEETING_OBJECTS).map(delete));
            // Of what was in it before nothing is there when it is made anew.
            all.extend([Op::DeleteContainer { c }, Op::PutContainer { c }]);
            all.extend((0..OBJECTS).map(|o| Op::Get { c, o }));
            all.push(put(0));
        }
        for (n, op) in all.into_iter().enumerate() {
            self.alone((first + n) % machines, op)?;
        }
        Ok(())
    }

    /// All nodes are killed at once and started again; one has lost its index.
    fn restart_all(&mut self) -> Result<(), Violation> {
        let all = 0..self.world.machines.len();
        let unlucky = self.rng.index(all.len());
        for n in all.clone() {
            let seed = self.rng.next_u64();
            let fate = if n == unlucky { IndexFate::Lost } else { IndexFate::Prefix(seed) };
            if let Some(volume) = &mut self.volume {
                volume.clients.down(n);
            }
            self.world.down(n, None, fate, &mut self.rng);
        }
        for n in all {
            self.start(n)?;
        }
        self.wait_for_all()?;
        self.wait_for_leaders()
    }

    /// Until the voters of every group agree on who leads it: a sweep waits for those of the groups that it reads, and no others.
    fn wait_for_leaders(&mut self) -> Result<(), Violation> {
        let end = self.world.now() + STUCK;
        while let Err(violation) = invariants::check_leaders(&self.world) {
            if self.world.now() > end {
                return Err(violation);
            }
            self.tick()?;
        }
        Ok(())
    }
}
