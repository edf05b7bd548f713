//! Who votes in the index groups, and on which disk: rows of the control group, and what they shall be next, as a pure function.
//!
//! Voters of a group are spread over zones first and then evenly over nodes; the first one is the one that shall lead.
//!
//! Invariant: a step keeps a majority of a group's voters, or only takes some away; a node whose disk is of no use any more
//! leaves before it comes back with another.
//! Invariant: a step moves no voter that can stay, unless that makes the spread over zones or the load of nodes better.
//! Invariant: a seat stays on a disk that is away, which may come back; no new seat is given to one.
//! Invariant: equal states give equal steps; nothing to do is no step.

use std::collections::{BTreeMap, BTreeSet};

use quarry_engine::disk::format::bytes::{Put, Reader};
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::NodeId;

use super::state::{BadState, State, Wanted, key, reader};

/// Voters of a group, where there are nodes enough.
const VOTERS: usize = 3;
/// Voters where objects have as many copies.
const MORE_VOTERS: usize = 5;
/// Most voters in a row.
const MAX_SEATS: u64 = 16;

/// A voter of a group, and the disk on which it keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seat {
    pub(crate) node: NodeId,
    pub(crate) device: DeviceId,
}

/// The voters of groups.
pub(crate) type Seating = BTreeMap<u32, Vec<Seat>>;

/// Key of a group's row.
pub(crate) fn group_key(group: u32) -> Vec<u8> {
    key(b'g', &group.to_be_bytes())
}

/// Value of a group's row.
pub(crate) fn encode(seats: &[Seat]) -> Vec<u8> {
    let mut out = vec![super::state::VERSION];
    out.put_varint(seats.len() as u64);
    for seat in seats {
        out.extend_from_slice(&seat.node.0);
        out.extend_from_slice(&seat.device.0);
    }
    out
}

pub(super) fn decode(bytes: &[u8]) -> Result<Vec<Seat>, BadState> {
    let mut r: Reader<'_> = reader(bytes)?;
    let count = Some(r.varint()?).filter(|count| (1..=MAX_SEATS).contains(count));
    let count = count.ok_or(BadState::Field("voters of a group"))?;
    (0..count).map(|_| Ok(Seat { node: NodeId(r.array()?), device: DeviceId(r.array()?) })).collect()
}

pub(crate) fn nodes(seats: &[Seat]) -> BTreeSet<NodeId> {
    seats.iter().map(|seat| seat.node).collect()
}

/// A node that may vote.
struct Desk {
    zone: u16,
    /// Groups that it votes in, and those that it shall lead.
    load: usize,
    leads: usize,
    /// Its disks, and how many groups each has.
    disks: BTreeMap<DeviceId, usize>,
}

/// What is being decided.
struct Plan<'a> {
    state: &'a State,
    desks: BTreeMap<NodeId, Desk>,
    wanted: usize,
}

/// How many voters a group shall have.
pub(crate) fn wanted(state: &State) -> usize {
    Plan::of(state).wanted
}

/// Rows that shall be others next: a step for each group. Nothing, when all is as it shall be.
pub(crate) fn next(state: &State) -> Seating {
    let mut plan = Plan::of(state);
    if plan.wanted == 0 {
        return Seating::new();
    }
    let mut changed = Seating::new();
    for (group, seats) in &state.groups {
        let step = plan.mend(seats);
        if step != *seats {
            plan.count(seats, &step);
            changed.insert(*group, step);
        }
    }
    if changed.is_empty() {
        changed.extend(plan.disperse().or_else(|| plan.balance()));
    }
    if changed.is_empty() { plan.leaders() } else { changed }
}

impl<'a> Plan<'a> {
    fn of(state: &'a State) -> Self {
        let mut desks: BTreeMap<NodeId, Desk> = BTreeMap::new();
        let stays = |node: &NodeId| state.members.get(node).is_some_and(|member| !member.leaving);
        for (id, device) in state.devices.iter().filter(|(_, device)| stays(&device.node)) {
            if device.wanted == Wanted::Share {
                let fresh = || Desk { zone: device.zone, load: 0, leads: 0, disks: BTreeMap::new() };
                desks.entry(device.node).or_insert_with(fresh).disks.insert(*id, 0);
            }
        }
        let copies = state.settings.map_or(0, |settings| usize::from(settings.replicas));
        let wanted = match desks.len() {
            few @ 0..=2 => few.min(1),
            many if many >= MORE_VOTERS && copies >= MORE_VOTERS => MORE_VOTERS,
            _ => VOTERS,
        };
        let mut plan = Self { state, desks, wanted };
        for seats in state.groups.values() {
            plan.count(&[], seats);
        }
        plan
    }

    /// Moves what is counted from some seats of a group to others.
    fn count(&mut self, before: &[Seat], after: &[Seat]) {
        for seat in before {
            if let Some(desk) = self.desks.get_mut(&seat.node) {
                desk.load -= 1;
                desk.disks.entry(seat.device).and_modify(|groups| *groups -= 1);
            }
        }
        for seat in after {
            if let Some(desk) = self.desks.get_mut(&seat.node) {
                desk.load += 1;
                desk.disks.entry(seat.device).and_modify(|groups| *groups += 1);
            }
        }
        for (seats, add) in [(before, false), (after, true)] {
            if let Some(desk) = seats.first().and_then(|seat| self.desks.get_mut(&seat.node)) {
                desk.leads = if add { desk.leads + 1 } else { desk.leads - 1 };
            }
        }
    }

    fn good(&self, seat: &Seat) -> bool {
        let here = self.desks.get(&seat.node);
        here.is_some_and(|desk| desk.disks.contains_key(&seat.device))
    }

    fn zone(&self, node: &NodeId) -> Option<u16> {
        self.desks.get(node).map(|desk| desk.zone)
    }

    fn zones(&self, seats: &[Seat]) -> BTreeSet<u16> {
        seats.iter().filter_map(|seat| self.zone(&seat.node)).collect()
    }

    fn load(&self, node: &NodeId) -> usize {
        self.desks.get(node).map_or(0, |desk| desk.load)
    }

    /// A seat at a node, on the disk that has the fewest groups of those that serve.
    fn seat(&self, node: NodeId) -> Option<Seat> {
        let disks = self.desks.get(&node)?.disks.iter().filter(|(device, _)| self.state.may_take(**device));
        let device = disks.min_by_key(|(_, groups)| **groups).map(|(device, _)| *device)?;
        Some(Seat { node, device })
    }

    /// Who had best join these: none of `barred`, of a zone that they have not, with few groups.
    fn candidate(&self, seats: &[Seat], barred: &BTreeSet<NodeId>) -> Option<Seat> {
        let zones = self.zones(seats);
        let free =
            self.desks.iter().filter(|(node, _)| !barred.contains(node) && self.seat(**node).is_some());
        let best = free.min_by_key(|(node, desk)| (zones.contains(&desk.zone), desk.load, **node));
        self.seat(*best?.0)
    }

    /// The step of a group that has the wrong number of voters, or such as cannot stay.
    fn mend(&self, seats: &[Seat]) -> Vec<Seat> {
        let mut step: Vec<Seat> = seats.iter().filter(|seat| self.good(seat)).copied().collect();
        while step.len() > self.wanted {
            let crowded = |seat: &Seat| {
                let same = |other: &&Seat| self.zone(&other.node) == self.zone(&seat.node);
                (step.iter().filter(same).count() > 1, self.load(&seat.node), seat.node)
            };
            let Some(most) = (0..step.len()).max_by_key(|at| step.get(*at).map(crowded)) else { break };
            step.remove(most);
        }
        let barred = |step: &[Seat]| nodes(seats).union(&nodes(step)).copied().collect();
        let mut joined = 0;
        while step.len() < self.wanted {
            let Some(seat) = self.candidate(&step, &barred(&step)) else { break };
            step.push(seat);
            joined += 1;
        }
        if step.is_empty() {
            return seats.to_vec();
        }
        // Others take over before these go.
        let majority = seats.len() / 2 + 1;
        let stay = step.len() - joined;
        let mut back = seats.iter().filter(|seat| !self.good(seat));
        for _ in stay..majority {
            if joined > 0 {
                step.extend(back.next());
            }
        }
        while joined > 1 && step.len() > self.wanted {
            joined -= 1;
            step.remove(stay + joined);
        }
        step
    }

    /// A voter moves from a zone that has two of a group to one that has none.
    fn disperse(&self) -> Option<(u32, Vec<Seat>)> {
        self.state.groups.iter().find_map(|(group, seats)| {
            let doubled = |at: &usize| {
                let others: Vec<Seat> = without(seats, *at);
                self.zones(&others) == self.zones(seats)
            };
            let load = |at: &usize| seats.get(*at).map(|seat| self.load(&seat.node));
            let at = (0..seats.len()).filter(doubled).max_by_key(load)?;
            let seat = self.candidate(seats, &nodes(seats))?;
            let fresh = self.zone(&seat.node).is_some_and(|zone| !self.zones(seats).contains(&zone));
            self.replace(seats, at, seat).filter(|_| fresh).map(|step| (*group, step))
        })
    }

    /// A voter moves from a node with many groups to one with at least two fewer.
    fn balance(&self) -> Option<(u32, Vec<Seat>)> {
        let mut pairs = Vec::new();
        for (from, many) in &self.desks {
            let fewer = self.desks.iter().filter(|(_, few)| few.load + 2 <= many.load);
            pairs.extend(fewer.map(|(to, few)| (few.load, usize::MAX - many.load, *from, *to)));
        }
        pairs.sort_unstable();
        pairs.into_iter().find_map(|(_, _, from, to)| {
            self.state.groups.iter().find_map(|(group, seats)| {
                let at = seats.iter().position(|seat| seat.node == from)?;
                if nodes(seats).contains(&to) {
                    return None;
                }
                let step = self.replace(seats, at, self.seat(to)?)?;
                (self.zones(&step).len() >= self.zones(seats).len()).then_some((*group, step))
            })
        })
    }

    /// One voter instead of another; of one or two, beside it at first.
    fn replace(&self, seats: &[Seat], at: usize, seat: Seat) -> Option<Vec<Seat>> {
        let mut step = if seats.len() > 2 { without(seats, at) } else { seats.to_vec() };
        let small = seats.len() <= self.wanted;
        step.push(seat);
        small.then_some(step)
    }

    /// Groups whose first voter leads more groups than another one would.
    fn leaders(&mut self) -> Seating {
        let mut changed = Seating::new();
        for (group, seats) in &self.state.groups {
            let leads = |seat: &Seat| self.desks.get(&seat.node).map_or(usize::MAX, |desk| desk.leads);
            let Some(first) = seats.first() else { continue };
            let Some(at) = (0..seats.len()).min_by_key(|at| seats.get(*at).map(leads)) else { continue };
            if seats.get(at).is_some_and(|seat| leads(seat).saturating_add(1) < leads(first)) {
                let mut step = seats.clone();
                step.swap(0, at);
                self.count(seats, &step);
                changed.insert(*group, step);
            }
        }
        changed
    }
}

fn without(seats: &[Seat], at: usize) -> Vec<Seat> {
    let others = seats.iter().enumerate().filter(|(other, _)| *other != at);
    others.map(|(_, seat)| *seat).collect()
}

#[cfg(test)]
#[path = "seating_tests.rs"]
mod tests;
