//! The builder of a ring: its devices, its table, and what may move when.
//!
//! Invariant: the caller brings the hour; equal calls give equal builders, byte for byte.
//! Invariant: an edit changes what is wanted; the table changes in `rebalance` only, and the ring's version with it.
//! Invariant: in one rebalance at most one replica of a partition moves, and none within `min_part_hours` of the last,
//! but for replicas on removed devices: those move at once, all of them.
//! Invariant: a refused edit or rebalance changes nothing.

mod chain;
mod chooser;
mod edit;
mod format;
mod health;
mod history;
mod mend;
mod phases;
mod rebalance;
mod share;
mod tree;
mod work;

pub use edit::EditError;
pub use format::{BUILDER_FORMAT_VERSION, BuilderDecodeError, decode_builder, encode_builder};
pub use health::{Health, Load};
pub use history::{Change, Event};
pub(crate) use rebalance::first_rows;
pub use rebalance::{RebalanceError, Rebalanced};
pub use share::Overload;

use std::collections::BTreeSet;

use crate::{Class, Device, InvalidRing, MAX_DEVICES, MAX_PART_POWER, MAX_REPLICAS, Replicas, Ring};
use share::{Shares, Sizes, shares};
use tree::Tree;
use work::NONE;

/// Longest name of a device, in bytes.
pub const MAX_LABEL: usize = 64;
/// Events that are kept; the oldest go first.
pub const MAX_HISTORY: usize = 1 << 16;
/// Highest version: none that counts up gets there.
pub const MAX_VERSION: u64 = 1 << 62;
/// Longest time between two moves of a partition: a year.
pub const MAX_MIN_PART_HOURS: u16 = 8784;

/// What a ring is to be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// 2 to the power of this many partitions; never changes.
    pub part_power: u8,
    /// Replicas of each partition.
    pub replicas: Replicas,
    /// Hours in which a partition moves no second time, counted from the end of the hour in which it moved; zero: it moves at any time.
    pub min_part_hours: u16,
    /// How far weight gives way to dispersion.
    pub overload: Overload,
    /// Number of the storage policy that the ring is for; never changes.
    pub policy: u16,
    /// The only class of devices that the policy takes; never changes.
    pub class: Option<Class>,
}

/// A device as the builder knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// As in the ring.
    pub device: Device,
    /// For people: where it is, what it is called.
    pub label: String,
    /// To go with the next rebalance.
    pub removed: bool,
}

/// Everything in a builder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// What is wanted.
    pub settings: Settings,
    /// Version of the ring that was built last; 0: none yet.
    pub version: u64,
    /// Id of the next device; no device ever had it.
    pub next_id: u32,
    /// Ids ascending.
    pub members: Vec<Member>,
    /// Replicas that the table has; they follow the settings with the next rebalance. `None`: no table yet.
    pub built: Option<Replicas>,
    /// A row for each replica; entries are positions in `members`, `u16::MAX` for a replica without a device.
    pub rows: Vec<Vec<u16>>,
    /// Hour of each partition's last move; 0: none.
    pub last_moved: Vec<u32>,
    /// Oldest first.
    pub history: Vec<Event>,
}

/// Why parts are no builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBuilder {
    /// What a ring may not have either.
    #[error(transparent)]
    Ring(#[from] InvalidRing),
    /// A device has an id that is still to be given.
    #[error("device {0} is not below the next id")]
    NextId(u32),
    /// A label that is too long or has control characters.
    #[error("device {0} has a label that is longer than {MAX_LABEL} bytes or has control characters")]
    Label(u32),
    /// More than [`MAX_MIN_PART_HOURS`].
    #[error("{0} hours between moves are more than {MAX_MIN_PART_HOURS}")]
    MinPartHours(u16),
    /// Not one hour for each partition.
    #[error("{0} hours of last moves")]
    LastMoved(usize),
    /// More than [`MAX_HISTORY`].
    #[error("{0} events are more than {MAX_HISTORY}")]
    TooManyEvents(usize),
    /// More than [`MAX_VERSION`].
    #[error("version {0} is above {MAX_VERSION}")]
    Version(u64),
    /// A device of another class than the policy takes.
    #[error("device {0} is of a class that the policy does not take")]
    Class(u32),
}

/// The builder of one policy's ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Builder(Parts);

impl Builder {
    /// An empty builder.
    pub fn new(settings: Settings, hour: u32) -> Result<Self, InvalidBuilder> {
        let partitions = 1_usize.checked_shl(u32::from(settings.part_power)).unwrap_or(0);
        let last_moved = if settings.part_power <= MAX_PART_POWER { vec![0; partitions] } else { Vec::new() };
        let parts = Parts {
            settings,
            version: 0,
            next_id: 0,
            members: Vec::new(),
            built: None,
            rows: Vec::new(),
            last_moved,
            history: vec![Event { version: 1, hour, change: Change::Created }],
        };
        Self::from_parts(parts)
    }

    /// From its parts, if they are valid together.
    pub fn from_parts(parts: Parts) -> Result<Self, InvalidBuilder> {
        let settings = &parts.settings;
        check_replicas(settings.replicas)?;
        if settings.part_power > MAX_PART_POWER {
            return Err(InvalidRing::PartPower(settings.part_power).into());
        }
        if settings.min_part_hours > MAX_MIN_PART_HOURS {
            return Err(InvalidBuilder::MinPartHours(settings.min_part_hours));
        }
        if parts.version > MAX_VERSION {
            return Err(InvalidBuilder::Version(parts.version));
        }
        if parts.last_moved.len() != 1 << settings.part_power {
            return Err(InvalidBuilder::LastMoved(parts.last_moved.len()));
        }
        if parts.history.len() > MAX_HISTORY {
            return Err(InvalidBuilder::TooManyEvents(parts.history.len()));
        }
        check_members(&parts)?;
        check_table(&parts)?;
        Ok(Self(parts))
    }

    /// Everything in it.
    #[must_use]
    pub fn parts(&self) -> &Parts {
        &self.0
    }

    /// What is wanted.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Version of the ring that was built last; 0: none yet.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.0.version
    }

    /// Devices, ids ascending, removed ones until the next rebalance.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.0.members
    }

    /// What was done, oldest first.
    #[must_use]
    pub fn history(&self) -> &[Event] {
        &self.0.history
    }

    /// Changes that the next rebalance will take up.
    pub fn pending(&self) -> impl Iterator<Item = &Event> {
        self.0.history.iter().filter(|event| event.version > self.0.version)
    }

    /// Partitions of the ring.
    #[must_use]
    pub fn partitions(&self) -> usize {
        self.0.last_moved.len()
    }

    /// Hours of each partition's last move; 0: none.
    #[must_use]
    pub fn last_moved(&self) -> &[u32] {
        &self.0.last_moved
    }

    /// The ring that was built last; `None` before the first rebalance, or when replicas have no device yet.
    pub fn ring(&self) -> Result<Option<Ring>, InvalidRing> {
        let Some(replicas) = self.0.built else { return Ok(None) };
        if self.0.rows.iter().flatten().any(|&entry| entry == NONE) {
            return Ok(None);
        }
        let devices = self.wanted_devices();
        let rows = self.0.rows.clone();
        Ring::new(self.0.version, self.0.settings.part_power, replicas, devices, rows).map(Some)
    }

    /// How good the table is.
    #[must_use]
    pub fn health(&self) -> Health {
        let devices = self.wanted_devices();
        let tree = Tree::new(&devices);
        let loads = self.loads_of(&tree, &self.counts(), &self.shares(&tree, &devices));
        health::health(&tree, &self.0.rows, &loads)
    }

    /// Replicas on each device, and what it shall hold, in the order of the devices.
    #[must_use]
    pub fn loads(&self) -> Vec<Load> {
        let devices = self.wanted_devices();
        let tree = Tree::new(&devices);
        self.loads_of(&tree, &self.counts(), &self.shares(&tree, &devices))
    }

    fn loads_of(&self, tree: &Tree, counts: &[u64], shares: &Shares) -> Vec<Load> {
        let load = |(position, &replicas): (usize, &u64)| {
            let leaf = tree.leaf(position) as usize;
            let (by_weight, target) = (shares.weighted[leaf], shares.target[leaf]);
            Load { replicas, by_weight: health::millionths(by_weight), target: health::millionths(target) }
        };
        counts.iter().enumerate().map(load).collect()
    }

    /// Devices as the next ring knows them: what is to go has no weight.
    fn wanted_devices(&self) -> Vec<Device> {
        let wanted = |member: &Member| {
            let weight = if member.removed { 0 } else { member.device.weight };
            Device { weight, ..member.device.clone() }
        };
        self.0.members.iter().map(wanted).collect()
    }

    /// Replicas on each device, by position.
    fn counts(&self) -> Vec<u64> {
        let mut counts = rebalance::counts(&self.0.rows);
        counts.truncate(self.0.members.len());
        counts
    }

    /// Entries that the table shall have.
    fn wanted_entries(&self) -> u64 {
        let Settings { part_power, replicas, .. } = self.0.settings;
        (0..replicas.rows()).map(|row| replicas.row_length(row, part_power) as u64).sum()
    }

    fn shares(&self, tree: &Tree, devices: &[Device]) -> Shares {
        let active = devices.iter().filter(|device| device.weight > 0).count() as u64;
        let partitions = self.partitions() as u64;
        let entries = self.wanted_entries().min(active * partitions);
        shares(tree, devices, Sizes { partitions, entries, overload: self.0.settings.overload })
    }
}

fn check_replicas(replicas: Replicas) -> Result<(), InvalidRing> {
    if replicas.hundredths() == 0 || replicas > MAX_REPLICAS {
        return Err(InvalidRing::Replicas(replicas.hundredths()));
    }
    Ok(())
}

/// Whether a text may be a label.
fn is_label(label: &str) -> bool {
    label.len() <= MAX_LABEL && !label.chars().any(char::is_control)
}

fn check_members(parts: &Parts) -> Result<(), InvalidBuilder> {
    let members = &parts.members;
    if members.len() > MAX_DEVICES {
        return Err(InvalidRing::TooManyDevices(members.len()).into());
    }
    if let Some(pair) = members.windows(2).find(|pair| pair[0].device.id >= pair[1].device.id) {
        return Err(InvalidRing::DeviceOrder(pair[1].device.id).into());
    }
    for Member { device, label, .. } in members {
        if device.id >= parts.next_id {
            return Err(InvalidBuilder::NextId(device.id));
        }
        if !is_label(label) {
            return Err(InvalidBuilder::Label(device.id));
        }
        if parts.settings.class.is_some_and(|class| class != device.class) {
            return Err(InvalidBuilder::Class(device.id));
        }
    }
    Ok(())
}

fn check_table(parts: &Parts) -> Result<(), InvalidBuilder> {
    let built = parts.built.unwrap_or(Replicas::whole(0));
    if built > MAX_REPLICAS || parts.built == Some(Replicas::whole(0)) {
        return Err(InvalidRing::Replicas(built.hundredths()).into());
    }
    if parts.rows.len() != built.rows() {
        return Err(InvalidRing::RowLength { row: parts.rows.len().min(built.rows()) }.into());
    }
    let part_power = parts.settings.part_power;
    let wrong = |(row, devices): (usize, &Vec<u16>)| devices.len() != built.row_length(row, part_power);
    if let Some(row) = parts.rows.iter().enumerate().position(wrong) {
        return Err(InvalidRing::RowLength { row }.into());
    }
    let mut held = BTreeSet::new();
    let many = parts.rows.len() > 8;
    for partition in 0..parts.last_moved.len() {
        held.clear();
        for (row, devices) in parts.rows.iter().enumerate() {
            let Some(&device) = devices.get(partition).filter(|&&device| device != NONE) else { continue };
            if usize::from(device) >= parts.members.len() {
                return Err(InvalidRing::NoSuchDevice { partition }.into());
            }
            let twice = if many {
                !held.insert(device)
            } else {
                parts.rows[..row].iter().any(|earlier| earlier[partition] == device)
            };
            if twice {
                return Err(InvalidRing::SameDevice { partition }.into());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
