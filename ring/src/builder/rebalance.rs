//! A new version of the table.

use super::health::{Health, health};
use super::share::{Overload, Shares, Sizes, quotas, shares};
use super::tree::Tree;
use super::work::{ALL_ROWS, NONE, Work};
use super::{Builder, Change, MAX_VERSION};
use crate::{Device, MAX_DEVICES, Replicas};

/// Why nothing could be rebalanced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RebalanceError {
    /// A replica would have no device of its own.
    #[error("{wanted} replicas need as many devices with weight; there are {devices}")]
    TooFewDevices {
        /// Most replicas of a partition.
        wanted: usize,
        /// Devices with weight.
        devices: usize,
    },
    /// [`MAX_VERSION`] is reached.
    #[error("version {MAX_VERSION} is the last")]
    NoVersion,
}

/// What a rebalance did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebalanced {
    /// Version of the ring now.
    pub version: u64,
    /// Whether that is a new one.
    pub changed: bool,
    /// As it was, judged by what is wanted now.
    pub before: Health,
    /// As it is.
    pub after: Health,
    /// Replicas that changed their device.
    pub moved: u64,
    /// Replicas that got their first device.
    pub placed: u64,
    /// Replicas that are no longer wanted.
    pub dropped: u64,
    /// Partitions of which a replica moved.
    pub partitions_moved: u64,
    /// Partitions that were not to be moved, because they were within the last hours.
    pub held_back: u64,
}

impl Builder {
    /// Make the table what the devices and settings want, as far as it may be done in one version.
    pub fn rebalance(&mut self, hour: u32) -> Result<Rebalanced, RebalanceError> {
        let wanted = self.0.settings.replicas.rows();
        let devices = self.wanted_devices().iter().filter(|device| device.weight > 0).count();
        if devices < wanted {
            return Err(RebalanceError::TooFewDevices { wanted, devices });
        }
        if self.0.version >= MAX_VERSION {
            return Err(RebalanceError::NoVersion);
        }
        let before = self.health();
        let pending = self.pending().next().is_some();
        let dropped = self.resize();
        let fresh = self.fresh_partitions();
        let unplaced = self.unplaced();
        self.forget_removed();
        let old = self.0.rows.clone();
        let hours = u32::from(self.0.settings.min_part_hours);
        // Hours are whole: what moved at the end of one has rested for no hour when the next begins.
        let rests = |last: u32| hours > 0 && last > 0 && hour.saturating_sub(last) <= hours;
        let movable =
            movable(&self.0.rows, self.partitions(), |partition| !rests(self.0.last_moved[partition]));
        let held_back = movable.iter().filter(|&&mask| mask == 0).count() as u64;
        let after = self.run(movable);
        let freed = old.iter().flatten().filter(|&&entry| entry == NONE).count() as u64 - unplaced;
        let (moved, partitions_moved) = self.account(&old, &fresh, hour);
        let moved = moved + freed;
        let changed = pending || dropped + moved + unplaced > 0;
        if changed {
            self.0.version += 1;
            let small = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
            let change = Change::Rebalanced { moved: small(moved), placed: small(unplaced) };
            self.record_in(self.0.version, hour, change);
        }
        let version = self.0.version;
        Ok(Rebalanced {
            version,
            changed,
            before,
            after,
            moved,
            placed: unplaced,
            dropped,
            partitions_moved,
            held_back,
        })
    }

    /// Give the rows the lengths of the wanted number of replicas; how many replicas were dropped.
    fn resize(&mut self) -> u64 {
        let (replicas, part_power) = (self.0.settings.replicas, self.0.settings.part_power);
        let mut dropped = 0;
        for (row, entries) in self.0.rows.iter().enumerate() {
            let length = if row < replicas.rows() { replicas.row_length(row, part_power) } else { 0 };
            dropped += entries.iter().skip(length).filter(|&&entry| entry != NONE).count() as u64;
        }
        self.0.rows.resize(replicas.rows(), Vec::new());
        for (row, entries) in self.0.rows.iter_mut().enumerate() {
            entries.resize(replicas.row_length(row, part_power), NONE);
        }
        self.0.built = Some(replicas);
        dropped
    }

    /// Whether each partition has no replica yet: nothing is lost by moving what is placed now.
    fn fresh_partitions(&self) -> Vec<bool> {
        let mut fresh = vec![true; self.partitions()];
        for row in &self.0.rows {
            for (fresh, &entry) in fresh.iter_mut().zip(row) {
                *fresh &= entry == NONE;
            }
        }
        fresh
    }

    fn unplaced(&self) -> u64 {
        self.0.rows.iter().flatten().filter(|&&entry| entry == NONE).count() as u64
    }

    /// Drop removed devices from the list; their replicas have no device now.
    fn forget_removed(&mut self) {
        if self.0.members.iter().all(|member| !member.removed) {
            return;
        }
        let mut next = 0;
        let position = |removed: bool| {
            let position = if removed { NONE } else { next };
            next += u16::from(!removed);
            position
        };
        let mut positions: Vec<u16> =
            self.0.members.iter().map(|member| member.removed).map(position).collect();
        positions.resize(usize::from(NONE) + 1, NONE);
        for entry in self.0.rows.iter_mut().flatten() {
            *entry = positions[usize::from(*entry)];
        }
        self.0.members.retain(|member| !member.removed);
    }

    fn run(&mut self, movable: Vec<u32>) -> Health {
        let devices = self.wanted_devices();
        let tree = Tree::new(&devices);
        let shares = self.shares(&tree, &devices);
        arrange(&tree, &shares, &mut self.0.rows, movable, self.0.version + 1);
        let loads = self.loads_of(&tree, &self.counts(), &shares);
        health(&tree, &self.0.rows, &loads)
    }

    /// Note the hour of every partition that moved; replicas that moved from a device that stays, and partitions.
    fn account(&mut self, old: &[Vec<u16>], fresh: &[bool], hour: u32) -> (u64, u64) {
        let (mut moved, mut partitions) = (0, 0);
        let mut touched = vec![false; self.partitions()];
        for (row, before) in self.0.rows.iter().zip(old) {
            for (touched, (now, before)) in touched.iter_mut().zip(row.iter().zip(before)) {
                *touched |= now != before;
                moved += u64::from(now != before && *before != NONE);
            }
        }
        let hours = self.0.last_moved.iter_mut().zip(fresh.iter().zip(&touched));
        for (last, (&fresh, &touched)) in hours {
            if touched && !fresh {
                *last = hour;
                partitions += 1;
            }
        }
        (moved, partitions)
    }
}

/// Rows for devices that hold nothing yet; weight gives way to dispersion. There are as many devices with weight as rows.
pub(crate) fn first_rows(
    devices: &[Device],
    part_power: u8,
    replicas: Replicas,
    version: u64,
) -> Vec<Vec<u16>> {
    let tree = Tree::new(devices);
    let mut rows: Vec<_> =
        (0..replicas.rows()).map(|row| vec![NONE; replicas.row_length(row, part_power)]).collect();
    let (partitions, entries) = (1_u64 << part_power, rows.iter().map(|row| row.len() as u64).sum());
    let shares = shares(&tree, devices, Sizes { partitions, entries, overload: Overload::UNLIMITED });
    let movable = movable(&rows, 1 << part_power, |_| true);
    arrange(&tree, &shares, &mut rows, movable, version);
    rows
}

/// Make a table what is wanted, as far as it may move.
fn arrange(tree: &Tree, shares: &Shares, rows: &mut [Vec<u16>], movable: Vec<u32>, version: u64) {
    let here = counts(rows);
    let counts = tree.sums(|position| here[position]);
    let quota = quotas(tree, &shares.target, &counts);
    Work::new(tree, rows, movable, quota, &counts).run(version);
}

/// Rows of each partition that may move: those without a device; else any one, if the partition `may`.
fn movable(rows: &[Vec<u16>], partitions: usize, may: impl Fn(usize) -> bool) -> Vec<u32> {
    let mut masks = vec![0_u32; partitions];
    for (row, entries) in rows.iter().enumerate() {
        for (mask, &entry) in masks.iter_mut().zip(entries) {
            *mask |= u32::from(entry == NONE) << row;
        }
    }
    for (partition, mask) in masks.iter_mut().enumerate() {
        if *mask == 0 && may(partition) {
            *mask = ALL_ROWS;
        }
    }
    masks
}

/// Replicas on each device, by position, of as many devices as there can be.
pub(super) fn counts(rows: &[Vec<u16>]) -> Vec<u64> {
    let mut counts = vec![0_u64; MAX_DEVICES + 1];
    for &entry in rows.iter().flatten() {
        counts[usize::from(entry)] += 1;
    }
    counts
}
