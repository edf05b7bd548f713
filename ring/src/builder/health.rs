//! How good a table is: balance and dispersion, in millionths.
//!
//! Invariant: integers only, so that all machines say the same.

use super::share::{ONE, even};
use super::tree::{DomainId, TIERS, Tree};
use super::work::NONE;

const MILLION: u64 = 1_000_000;
/// The balance of a device that shall hold nothing and holds something: 999.99 %.
const FULL_OF_WHAT_IT_SHOULD_NOT: u64 = 9_999_900;

/// How good a table is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Of the device that is furthest from its share by weight: how far, in millionths of the share.
    pub balance: u64,
    /// Of the device that is furthest from what it shall hold when dispersion counts before weight: how far, in millionths.
    pub off_target: u64,
    /// Replicas that are in one domain with more of their partition than need be there, in millionths of all. Each
    /// partition counts at the tier where it is worst.
    pub crowded: u64,
    /// The same at each tier: region, zone, node, device.
    pub crowded_at: [u64; TIERS],
    /// Replicas that have no device yet.
    pub unplaced: u64,
}

/// One device's part of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Replicas on it.
    pub replicas: u64,
    /// What it shall hold by weight alone, in millionths of a replica.
    pub by_weight: u64,
    /// What it shall hold when dispersion counts before weight, in millionths of a replica.
    pub target: u64,
}

impl Load {
    /// How far it is from its share by weight, in millionths of that; negative: below.
    #[must_use]
    pub fn balance(&self) -> i64 {
        off(self.replicas, self.by_weight)
    }
}

/// Distance of a count from an amount in millionths, in millionths of the amount.
fn off(count: u64, amount: u64) -> i64 {
    let (count, amount) = (i128::from(count) * i128::from(MILLION), i128::from(amount));
    let full = i64::try_from(FULL_OF_WHAT_IT_SHOULD_NOT).unwrap_or(i64::MAX);
    match (count, amount) {
        (0, 0) => 0,
        (_, 0) => full,
        _ => i64::try_from((count - amount) * i128::from(MILLION) / amount).unwrap_or(i64::MAX),
    }
}

/// Fixed point to millionths.
pub(crate) fn millionths(amount: u64) -> u64 {
    u64::try_from(u128::from(amount) * u128::from(MILLION) / u128::from(ONE)).unwrap_or(u64::MAX)
}

/// Judge a table; `loads` are those of all devices.
pub(crate) fn health(tree: &Tree, rows: &[Vec<u16>], loads: &[Load]) -> Health {
    let worst = |of: fn(&Load) -> u64| {
        loads.iter().map(|load| off(load.replicas, of(load)).unsigned_abs()).max().unwrap_or(0)
    };
    let needed = needed(tree, u64::try_from(rows.len()).unwrap_or(u64::MAX));
    let (mut at_tiers, mut at_worst, mut unplaced, mut entries) = ([0_u64; TIERS], 0_u64, 0_u64, 0_u64);
    let mut devices = Vec::with_capacity(rows.len());
    for partition in 0..rows.iter().map(Vec::len).max().unwrap_or(0) {
        let held = rows.iter().filter_map(|row| row.get(partition));
        devices.clear();
        devices.extend(held.clone().filter(|&&device| device != NONE).map(|&device| usize::from(device)));
        let all = held.count() as u64;
        entries += all;
        unplaced += all - devices.len() as u64;
        let here = crowded(tree, &devices, &needed);
        at_worst += here.iter().max().unwrap_or(&0);
        for (sum, here) in at_tiers.iter_mut().zip(here) {
            *sum += here;
        }
    }
    let share = |crowded: u64| (crowded * MILLION).checked_div(entries).unwrap_or(0);
    Health {
        balance: worst(|load| load.by_weight),
        off_target: worst(|load| load.target),
        crowded: share(at_worst),
        crowded_at: at_tiers.map(share),
        unplaced,
    }
}

/// Most replicas of a partition that each domain must hold when it is spread as far as the tree permits.
fn needed(tree: &Tree, replicas: u64) -> Vec<u64> {
    let mut needed = vec![0; tree.domains.len()];
    needed[0] = replicas;
    for domain in tree.inner() {
        let children = tree.children(domain);
        let devices: Vec<_> =
            tree.domains[children.clone()].iter().map(|child| u64::from(child.active)).collect();
        let split = even(&devices, needed[domain as usize]);
        for (child, (_, most)) in children.zip(split) {
            needed[child] = most;
        }
    }
    needed
}

/// Replicas of one partition above what is needed, at each tier.
fn crowded(tree: &Tree, devices: &[usize], needed: &[u64]) -> [u64; TIERS] {
    let mut crowded = [0; TIERS];
    for (tier, sum) in crowded.iter_mut().enumerate() {
        let domain = |device: usize| -> DomainId { tree.paths[device][tier] };
        for (number, &device) in devices.iter().enumerate() {
            let domain_here = domain(device);
            let needed = needed[domain_here as usize];
            let earlier =
                devices[..number].iter().filter(|&&other| domain(other) == domain_here).count() as u64;
            // Every replica above the number that is needed counts once.
            *sum += u64::from(earlier >= needed);
        }
    }
    crowded
}
