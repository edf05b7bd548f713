//! The volume of a history, beside its objects: clients at its heads on the same machines, disks and network.
//!
//! Invariant: what happens to objects and to the volume comes from different numbers of the seed.

use std::time::Duration;

use quarry_engine::io::SplitMix64;

use super::history::History;
use crate::blocks::clients::Clients;
use crate::blocks::control::Control;
use crate::blocks::healing::{self, Ground};
use crate::blocks::part::Part;
use crate::store::oracle::Violation;

/// Longest pause of its clients, in microseconds.
const THINK: u64 = 60_000;

/// The volume.
pub(crate) struct Volume {
    pub(crate) clients: Clients,
    control: Control,
    members: usize,
    rng: SplitMix64,
    next: Duration,
}

impl Volume {
    pub(crate) fn new(members: usize, control: Control, rng: SplitMix64) -> Self {
        Self { clients: Clients::new(), control, members, rng, next: Duration::ZERO }
    }
}

impl History {
    /// A client asks for something, if it is time; where there is no head, somebody becomes it.
    pub(super) fn ask_volume(&mut self) {
        let (now, parts) = (self.world.now(), self.parts());
        let Some(volume) = self.volume.as_mut().filter(|volume| volume.next <= now && !parts.is_empty())
        else {
            return;
        };
        let rng = &mut volume.rng;
        volume.next = now + Duration::from_micros(rng.below(THINK));
        let none = volume.clients.current().is_none() && !volume.clients.is_attaching();
        let mut said = Vec::new();
        if rng.chance(if none { 300 } else { 5 }) {
            let (n, part) = parts[rng.index(parts.len())].clone();
            volume.clients.attach(n, part, now);
            said.push(format!("{n} attaches the volume"));
        }
        said.extend(volume.clients.ask(rng, now));
        said.iter().for_each(|said| self.note(said));
    }

    fn parts(&self) -> Vec<(usize, Part)> {
        let machines = self.world.machines.iter().enumerate();
        machines.filter_map(|(n, machine)| Some((n, machine.running()?.part?))).collect()
    }

    /// Answers that have come are judged.
    pub(super) fn hear_volume(&mut self) -> Result<(), Violation> {
        let now = self.world.now();
        let Some(volume) = &mut self.volume else { return Ok(()) };
        let said = volume.clients.poll(now)?;
        said.iter().for_each(|said| self.note(said));
        Ok(())
    }

    /// Without trouble all members are whole again, and hold what clients were told.
    pub(super) fn heal_volume(&mut self) -> Result<(), Violation> {
        let Some(volume) = &mut self.volume else { return Ok(()) };
        let (members, n) = (volume.members, volume.rng.index(self.world.machines.len()));
        healing::pass(self, healing::NOTICED)?;
        healing::look_at_all(self, n, members)
    }
}

impl Ground for History {
    fn now(&self) -> Duration {
        self.world.now()
    }

    fn tick(&mut self) -> Result<(), Violation> {
        Self::tick(self)
    }

    fn note(&mut self, what: &str) {
        Self::note(self, what);
    }

    fn part(&self, n: usize) -> Option<Part> {
        self.world.machines[n].running()?.part
    }

    fn clients(&mut self) -> (&mut Clients, &Control) {
        let Some(volume) = &mut self.volume else { unreachable!("only a volume is healed") };
        (&mut volume.clients, &volume.control)
    }
}
