//! The cluster: machines, their network, their time, and the ring over them.
//!
//! Invariant: everything that decides what happens comes from the seed; there is no clock, no thread and no order of a hash map.
//! Invariant: in one term one node leads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use quarry_engine::consensus::{Given, Group, SimRuntime};
use quarry_engine::disk::{OpenError, Report, SimulatedDisk};
use quarry_engine::index::Index;
use quarry_engine::io::{CrashPlan, SplitMix64};
use quarry_engine::net::{LateService, NodeId, SimNet};
use quarry_engine::object::names::returnable;
use quarry_volume::head::Configuration;

use super::assembly::{self, Making, NAMES, locked, voters};
use super::board::Board;
use super::machine::{Life, Machine, Wall, device_id, node_id};
use super::plant::Plant;
use super::profile::{ALL, Profile};
use super::rings::Rings;
use crate::blocks::control::{CONTROL, Control};
use crate::store::model::{account_name, account_of, container_name};
use crate::store::oracle::Violation;
use crate::store::world::IndexFate;

/// Pause between two looks at whether the ring shall change, as a node that leads has it.
const GOVERN: Duration = Duration::from_millis(500);
/// Most groups that are made.
const MOST_CHILDREN: u32 = 6;
/// Turns between two looks at who leads.
const LOOK: u64 = 8;

/// A cluster.
pub(crate) struct World {
    pub(crate) machines: Vec<Machine>,
    pub(crate) net: SimNet,
    pub(crate) runtime: SimRuntime,
    pub(crate) board: Board,
    pub(crate) rings: Rings,
    /// Of the volume, if there is one.
    pub(crate) control: Option<Control>,
    slept: Arc<AtomicI64>,
    governed: Duration,
    plant: Plant,
    turns: u64,
    leaders: BTreeMap<u64, NodeId>,
    /// The last number that a group was given.
    numbered: u32,
}

/// Tasks and handlers hold the runtime and the network that hold them: whoever does not end them keeps all of a history.
impl Drop for World {
    fn drop(&mut self) {
        // Nothing that is dropped below may reach a drive.
        self.machines.iter().for_each(Machine::cut_power);
        for machine in &mut self.machines {
            self.net.stop(machine.node);
            self.runtime.kill(machine.node);
            machine.life = None;
        }
        self.net.stop(CONTROL);
    }
}

impl World {
    /// All machines with formatted drives, the group founded on the first, everything down.
    pub(crate) fn new(profile: &Profile, rng: &mut SplitMix64, plant: Plant) -> Result<Self, Violation> {
        let runtime = SimRuntime::new(rng.next_u64());
        let slept = Arc::new(AtomicI64::new(0));
        let machine = |n| {
            let wall = Wall::new(runtime.clone(), slept.clone());
            Machine::new(n, profile.drives, profile.segments, wall, rng)
        };
        let machines = (0..profile.machines).map(machine).collect::<Result<Vec<_>, _>>()?;
        let mut rings = Rings::new(&machines, profile.code)?;
        let first = rings.next()?.ok_or_else(|| Violation("there is no ring".to_owned()))?;
        let board = Board::new(first);
        let net = SimNet::new(rng.next_u64(), profile.net);
        let control = profile
            .volume
            .map(|members| Control::new(Configuration::new((0..members).map(|n| device_id(n, 0)).collect())));
        if let Some(control) = &control {
            net.start(CONTROL, Arc::new(control.clone()));
        }
        let mut world = Self {
            machines,
            net,
            runtime,
            board,
            rings,
            control,
            slept,
            governed: Duration::ZERO,
            plant,
            turns: 0,
            leaders: BTreeMap::new(),
            numbered: NAMES,
        };
        world.found()?;
        Ok(world)
    }

    /// Makes the group on the first drive, with one voter; its leader makes others voters.
    fn found(&mut self) -> Result<(), Violation> {
        let bad = |e: &dyn std::fmt::Display| Violation(format!("found group: {e}"));
        let drive = &self.machines[0].drives[0];
        let index = drive.index.clone() as Arc<dyn Index>;
        let opened = SimulatedDisk::open(Box::new(drive.image.open()), index, self.plant.catalog());
        let (mut sim, _) = opened.map_err(|e| bad(&e))?;
        let voters = BTreeSet::from([node_id(0)]);
        let handle = sim.handle();
        let founded = sim.run(async move { Group::found(&handle, NAMES, voters, 0).await });
        founded.map_err(|e| bad(&e))?;
        let handle = sim.handle();
        sim.run(async move { handle.checkpoint().await }).map_err(|e| bad(&e))
    }

    pub(crate) fn now(&self) -> Duration {
        self.runtime.now()
    }

    /// Starts a machine: recovery runs here, the rest as time passes.
    pub(crate) fn start(&mut self, n: usize, random: u64) -> Result<Vec<Report>, OpenError> {
        let machine = &mut self.machines[n];
        let reports = machine.open(self.plant)?;
        let late = LateService::default();
        let net = self.net.start(machine.node, Arc::new(late.clone()));
        machine.life = Some(assembly::start(Making {
            disks: machine.handles(),
            net,
            late,
            runtime: self.runtime.node(machine.node),
            wall: machine.wall.clone(),
            board: self.board.clone(),
            plant: self.plant,
            control: self.control.clone(),
            random,
        }));
        Ok(reports)
    }

    /// Takes a machine down from whatever it is doing; with `plan` its power fails.
    pub(crate) fn down(&mut self, n: usize, plan: Option<CrashPlan>, fate: IndexFate, rng: &mut SplitMix64) {
        let machine = &mut self.machines[n];
        if plan.is_some() {
            // Nothing that is dropped below may reach a drive.
            machine.cut_power();
        }
        self.net.stop(machine.node);
        self.runtime.kill(machine.node);
        machine.down(plan, fate, rng);
    }

    /// Everything that can happen now happens; then time goes on.
    pub(crate) fn turn(&mut self) -> Result<(), Violation> {
        self.turns += 1;
        let (machines, turns) = (&mut self.machines, self.turns);
        self.runtime.turn(&self.net, &mut || machines.iter_mut().for_each(|machine| machine.turn(turns)));
        if self.governed + GOVERN < self.now() {
            self.governed = self.now();
            if let Some(next) = self.rings.next()? {
                self.board.publish(next);
            }
        }
        if self.turns.is_multiple_of(LOOK) { self.look() } else { Ok(()) }
    }

    fn look(&mut self) -> Result<(), Violation> {
        for machine in &self.machines {
            let group = machine.life.as_ref().and_then(|life| life.groups.get(NAMES));
            let Some(status) = group.map(|group| group.status()).filter(|status| status.leads) else {
                continue;
            };
            let first = *self.leaders.entry(status.term).or_insert(machine.node);
            if first != machine.node {
                let term = status.term;
                return Err(Violation(format!("{first} and {} lead in term {term}", machine.node)));
            }
        }
        Ok(())
    }

    /// Whether somebody leads as many voters as there shall be.
    pub(crate) fn is_founded(&self) -> bool {
        let wanted = voters(self.machines.len());
        let leader = self.leader().and_then(|n| self.machines[n].life.as_ref()?.groups.get(NAMES));
        leader.is_some_and(|group| {
            let status = group.status();
            status.changing.is_none() && status.voters.len() == wanted
        })
    }

    /// Who leads the index group, as it believes itself.
    pub(crate) fn leader(&self) -> Option<usize> {
        self.leads(NAMES)
    }

    /// Every wall clock goes on by so much while nothing happens.
    pub(crate) fn sleep(&mut self, time: Duration) {
        let by = i64::try_from(time.as_micros()).unwrap_or(0);
        self.slept.fetch_add(by, Ordering::Relaxed);
        self.machines.iter_mut().for_each(|machine| machine.pass(time));
    }

    /// Has a leader of some group give half of what that has of a container to a new group; what becomes of it is seen later. Says
    /// which.
    pub(crate) fn split(&mut self, rng: &mut SplitMix64) -> Option<String> {
        if self.numbered >= NAMES + MOST_CHILDREN {
            return None;
        }
        let mut led = Vec::new();
        for machine in &self.machines {
            let voters = machine.running().map(|running| running.voters);
            let voters = voters.map(|voters| locked(&voters).values().cloned().collect::<Vec<_>>());
            let leads = voters.into_iter().flatten().filter(|voter| voter.group().status().leads);
            led.extend(leads.map(|voter| (machine.node, voter)));
        }
        if led.is_empty() {
            return None;
        }
        let (node, voter) = led.swap_remove(rng.index(led.len()));
        let any = rng.index(ALL);
        let any = (account_name(account_of(any)), container_name(any));
        let of = voter.group().part().map(|part| part.value.of);
        let (account, container) = of.map_or(any, |of| (of.account, of.container));
        self.numbered += 1;
        let (child, life) = (self.numbered, self.machines.iter().find(|m| m.node == node)?.life.clone()?);
        let said =
            format!("group {} at {node} gives of {account}/{container} to {child}", voter.group().id());
        self.runtime.node(node).spawn(Box::pin(async move {
            let led = || life.groups.get(child).is_some_and(|group| group.leader().is_some());
            let _either = voter.split(&account, &container, child, led).await;
        }));
        Some(said)
    }

    /// Has a leader of some group take back what it gave to another, if nothing is left there; what becomes of it is seen later. Says
    /// which.
    pub(crate) fn take_back(&mut self, rng: &mut SplitMix64) -> Option<String> {
        let mut led = Vec::new();
        for machine in &self.machines {
            let Some(running) = machine.running() else { continue };
            let voters: Vec<_> = locked(&running.voters).values().cloned().collect();
            for voter in voters.into_iter().filter(|voter| voter.group().status().leads) {
                let given = returnable(voter.group().given());
                led.extend(
                    given
                        .into_iter()
                        .map(|given| (machine.node, running.divided.clone(), voter.clone(), given)),
                );
            }
        }
        if led.is_empty() {
            return None;
        }
        let (node, divided, voter, given) = led.swap_remove(rng.index(led.len()));
        let (group, child) = (voter.group().id(), given.group);
        self.runtime.node(node).spawn(Box::pin(async move {
            let _either = divided.take_back(&voter, &given).await;
        }));
        Some(format!("group {group} at {node} takes back from {child}"))
    }

    /// What groups have given away, and where these are led, as their leaders know.
    pub(super) fn given(&self) -> Vec<(usize, Given)> {
        let groups = |life: &Life| life.groups.all().into_iter().filter(|group| group.status().leads);
        let led =
            self.machines.iter().enumerate().filter_map(|(n, machine)| Some((n, machine.life.as_ref()?)));
        led.flat_map(|(n, life)| groups(life).flat_map(|group| group.given()).map(move |given| (n, given)))
            .collect()
    }

    /// Who leads a group, as it believes itself.
    pub(super) fn leads(&self, group: u32) -> Option<usize> {
        let leads = |machine: &Machine| {
            let group = machine.life.as_ref().and_then(|life| life.groups.get(group));
            group.is_some_and(|group| group.status().leads)
        };
        self.machines.iter().position(leads)
    }

    /// Machines that vote in a group, as far as these know.
    pub(super) fn voters(&self, group: u32) -> Vec<usize> {
        let votes = |n: &usize| {
            let machine = &self.machines[*n];
            let group = machine.life.as_ref().and_then(|life| life.groups.get(group));
            group.is_some_and(|group| group.status().voters.contains(&machine.node))
        };
        (0..self.machines.len()).filter(votes).collect()
    }

    /// Has the leader of a group hand over to another machine; what becomes of it is seen later.
    pub(super) fn hand_over(&mut self, group: u32, from: usize, to: usize) {
        let (to, machine) = (self.machines[to].node, &self.machines[from]);
        let Some(group) = machine.life.as_ref().and_then(|life| life.groups.get(group)) else { return };
        self.runtime.node(machine.node).spawn(Box::pin(async move {
            let _either = group.hand_over(to).await;
        }));
    }

    /// Groups whose lines were taken back.
    pub(crate) fn returned(&self) -> usize {
        self.board.end(BTreeSet::new()).len()
    }

    /// Groups that took over lines of others.
    pub(crate) fn splits(&self) -> usize {
        let lives = self.machines.iter().filter_map(|machine| machine.life.as_ref());
        let given = lives.flat_map(|life| life.groups.all()).flat_map(|group| group.given());
        given.map(|given| given.group).chain(self.board.end(BTreeSet::new())).collect::<BTreeSet<_>>().len()
    }

    /// Changes that nodes which run began while their group was away.
    pub(crate) fn changes_alone(&self) -> u64 {
        let running = self.machines.iter().filter_map(Machine::running);
        running.map(|running| running.store.changes_alone()).sum()
    }

    /// Terms in which somebody led.
    pub(crate) fn terms(&self) -> usize {
        self.leaders.len()
    }
}
