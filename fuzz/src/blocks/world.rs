//! Machines with a drive each, their network and their time, and the control group's row.
//!
//! Invariant: everything that decides what happens comes from the seed; there is no clock, no thread and no order of a hash map.

use std::sync::Arc;
use std::time::Duration;

use quarry_engine::consensus::SimRuntime;
use quarry_engine::disk::{OpenError, Report};
use quarry_engine::io::{CrashPlan, SplitMix64};
use quarry_engine::net::{LateService, SimFaults, SimNet};
use quarry_volume::head::Configuration;

use super::control::{CONTROL, Control};
use super::part::{Making, Part};
use super::plant::Plant;
use crate::cluster::machine::{Drive, device_id, node_id};
use crate::store::oracle::Violation;
use crate::store::world::IndexFate;

/// Segments of a drive: enough that writes are answered early while it is not half full.
const SEGMENTS: u64 = 24;

/// A machine.
pub(crate) struct Machine {
    pub(crate) drive: Drive,
    pub(crate) part: Option<Part>,
}

/// The machines, and what is between them.
pub(crate) struct World {
    pub(crate) machines: Vec<Machine>,
    pub(crate) net: SimNet,
    pub(crate) control: Control,
    runtime: SimRuntime,
    plant: Plant,
    turns: u64,
}

/// As a cluster's: tasks and handlers hold what holds them.
impl Drop for World {
    fn drop(&mut self) {
        for (n, machine) in self.machines.iter_mut().enumerate() {
            machine.drive.image.power_off();
            self.net.stop(node_id(n));
            self.runtime.kill(node_id(n));
            machine.part = None;
        }
        self.net.stop(CONTROL);
    }
}

impl World {
    /// All machines with formatted drives, down; a member on each of the first `members`.
    pub(crate) fn new(
        machines: usize,
        members: usize,
        faults: SimFaults,
        rng: &mut SplitMix64,
        plant: Plant,
    ) -> Result<Self, Violation> {
        let runtime = SimRuntime::new(rng.next_u64());
        let net = SimNet::new(rng.next_u64(), faults);
        let control = Control::new(Configuration::new((0..members).map(|n| device_id(n, 0)).collect()));
        let machine = |n| Drive::new(device_id(n, 0), SEGMENTS, rng.next_u64());
        let drives = (0..machines).map(machine).collect::<Result<Vec<_>, _>>()?;
        let machines = drives.into_iter().map(|drive| Machine { drive, part: None }).collect();
        net.start(CONTROL, Arc::new(control.clone()));
        Ok(Self { machines, net, control, runtime, plant, turns: 0 })
    }

    pub(crate) fn now(&self) -> Duration {
        self.runtime.now()
    }

    pub(crate) fn is_up(&self, n: usize) -> bool {
        self.machines[n].part.is_some()
    }

    pub(crate) fn up(&self) -> Vec<usize> {
        (0..self.machines.len()).filter(|n| self.is_up(*n)).collect()
    }

    /// Starts a machine: recovery runs here.
    pub(crate) fn start(&mut self, n: usize) -> Result<Result<Report, OpenError>, Violation> {
        let machine = &mut self.machines[n];
        let report = match machine.drive.open(&self.plant.catalog()) {
            Ok(report) => report,
            Err(error) => return Ok(Err(error)),
        };
        let late = LateService::default();
        let net = Arc::new(self.net.start(node_id(n), Arc::new(late.clone())));
        let disks = machine.drive.handle().into_iter().collect();
        let (runtime, control, plant) = (self.runtime.node(node_id(n)), self.control.clone(), self.plant);
        let part = Part::new(Making { disks, net, runtime, control, plant });
        let part = part.map_err(|why| Violation(format!("the members of {n} do not open: {why}")))?;
        late.set(part.door(None));
        machine.part = Some(part);
        Ok(Ok(report))
    }

    /// Takes a machine down from whatever it is doing; with `plan` its power fails.
    pub(crate) fn down(&mut self, n: usize, plan: Option<CrashPlan>, fate: IndexFate, rng: &mut SplitMix64) {
        let machine = &mut self.machines[n];
        if plan.is_some() {
            // Nothing that is dropped below may reach a drive.
            machine.drive.image.power_off();
        }
        self.net.stop(node_id(n));
        self.runtime.kill(node_id(n));
        machine.part = None;
        machine.drive.down(plan, fate, rng);
    }

    /// Everything that can happen now happens; then time goes on.
    pub(crate) fn turn(&mut self) {
        self.turns += 1;
        let (machines, turns) = (&mut self.machines, self.turns);
        let mut disks = || machines.iter_mut().for_each(|machine| machine.drive.turn(turns));
        self.runtime.turn(&self.net, &mut disks);
    }
}
