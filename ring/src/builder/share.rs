//! How many replicas each domain shall hold: dispersion first, then weight, as far as overload permits.
//!
//! Amounts are entries of the table in fixed point, `ONE` to the entry, so that all machines agree.
//!
//! Invariant: the targets of a domain's children sum up to its own, at every tier.
//! Invariant: no device's target is above one replica of every partition, nor above (1 + overload) x its share by weight.
//! Invariant: within that, a domain with `r` replicas of a partition on average has `floor(r)` or `ceil(r)` of each, and
//! its children share them as evenly as their numbers of devices permit.
//! Invariant: a quota is its target rounded down or up, and up where the domain already has more: nothing moves for
//! the sake of rounding.

use super::tree::{DomainId, Tree};
use crate::Device;

/// Fixed point of amounts.
const FRACTION_BITS: u32 = 20;
/// One entry.
pub(crate) const ONE: u64 = 1 << FRACTION_BITS;
/// Precision of the level that bisection looks for.
const LEVEL_BITS: u32 = 24;
/// Hundredths of a percent in a whole.
const WHOLE: u64 = 10_000;

// 2^24 partitions x 32 replicas in fixed point, times the highest level, still fits.
const _: () = assert!(29 + FRACTION_BITS + (29 + FRACTION_BITS + LEVEL_BITS) < 128);

/// How far a device may be filled above its weight for the sake of dispersion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overload(u32);

impl Overload {
    /// Weight does not matter where dispersion is at stake.
    pub const UNLIMITED: Self = Self(u32::MAX);
    /// A tenth: enough for most clusters, and a full cluster notices it before its disks do.
    pub const DEFAULT: Self = Self(1000);

    /// From hundredths of a percent.
    #[must_use]
    pub const fn from_hundredths(hundredths: u32) -> Self {
        Self(hundredths)
    }

    /// In hundredths of a percent.
    #[must_use]
    pub const fn hundredths(self) -> u32 {
        self.0
    }
}

/// What is known of a ring before any replica is placed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) partitions: u64,
    /// Entries of the table.
    pub(crate) entries: u64,
    pub(crate) overload: Overload,
}

/// Amounts of every domain.
#[derive(Debug)]
pub(crate) struct Shares {
    /// By weight alone.
    pub(crate) weighted: Vec<u64>,
    /// What is aimed at.
    pub(crate) target: Vec<u64>,
}

/// What a domain may take: `low <= amount <= high`, else in proportion to `weight`.
#[derive(Debug, Clone, Copy)]
struct Claim {
    weight: u64,
    low: u64,
    high: u64,
}

impl Claim {
    fn at(&self, level: u128) -> u64 {
        let raw = (u128::from(self.weight) * level) >> LEVEL_BITS;
        u64::try_from(raw).unwrap_or(u64::MAX).clamp(self.low, self.high)
    }
}

/// The shares of all domains of a tree; `devices` by position.
pub(crate) fn shares(tree: &Tree, devices: &[Device], sizes: Sizes) -> Shares {
    let full = sizes.partitions * ONE;
    let claims: Vec<_> = devices
        .iter()
        .map(|device| {
            let high = if device.weight > 0 { full } else { 0 };
            Claim { weight: u64::from(device.weight), low: 0, high }
        })
        .collect();
    let by_weight = fill(sizes.entries * ONE, &claims);
    let most = |position: usize| match sizes.overload {
        Overload::UNLIMITED => claims[position].high,
        Overload(extra) => {
            let most = u128::from(by_weight[position]) * u128::from(WHOLE + u64::from(extra));
            u64::try_from(most / u128::from(WHOLE)).unwrap_or(u64::MAX).min(claims[position].high)
        }
    };
    let weighted = tree.sums(|position| by_weight[position]);
    let most = tree.sums(most);
    let mut target = vec![0; tree.domains.len()];
    target[0] = sizes.entries * ONE;
    for domain in tree.inner() {
        let children = tree.children(domain);
        let split = split(tree, domain, target[domain as usize], sizes.partitions, &weighted, &most);
        target[children].copy_from_slice(&split);
    }
    Shares { weighted, target }
}

/// What the children of `domain` get of its `total`.
fn split(
    tree: &Tree,
    domain: DomainId,
    total: u64,
    partitions: u64,
    weighted: &[u64],
    most: &[u64],
) -> Vec<u64> {
    let children = tree.children(domain);
    let devices: Vec<u64> =
        tree.domains[children.clone()].iter().map(|child| u64::from(child.active)).collect();
    // On average `total / partitions` replicas: so many partitions have the number rounded down, so many one more.
    let full = partitions * ONE;
    let (whole, more) = (total / full, total % full);
    let fewer = even(&devices, whole);
    let greater = even(&devices, whole + 1);
    let mix = |one: u64, other: u64| one * (full - more) + other * more;
    let bounds: Vec<_> = fewer
        .iter()
        .zip(&greater)
        .map(|(&(low, high), &(low_more, high_more))| (mix(low, low_more), mix(high, high_more)))
        .collect();
    let claim = |(child, &(low, high)): (usize, &(u64, u64))| {
        let (low, high) = (low.min(most[child]), high.min(most[child]));
        Claim { weight: weighted[child], low, high }
    };
    let claims: Vec<_> = children.clone().zip(&bounds).map(claim).collect();
    let room: u64 = claims.iter().map(|claim| claim.high).sum();
    if room >= total {
        return fill(total, &claims);
    }
    // Dispersion would overload devices: weight decides about what is left.
    let claims: Vec<_> = children
        .zip(&claims)
        .map(|(child, claim)| Claim { low: claim.high, high: most[child], ..*claim })
        .collect();
    fill(total, &claims)
}

/// Replicas of one partition over children with so many devices, as evenly as they permit: least and most of each.
pub(crate) fn even(devices: &[u64], replicas: u64) -> Vec<(u64, u64)> {
    let filled = |level: u64| devices.iter().map(|&devices| devices.min(level)).sum::<u64>();
    let mut level = 0;
    while level < replicas && filled(level + 1) <= replicas {
        level += 1;
    }
    let more = if filled(level) >= replicas { level } else { level + 1 };
    devices.iter().map(|&devices| (devices.min(level), devices.min(more))).collect()
}

/// Distribute `total` in proportion to weight within every claim's bounds.
fn fill(total: u64, claims: &[Claim]) -> Vec<u64> {
    let weights: u64 = claims.iter().map(|claim| claim.weight).sum();
    if weights > 0 {
        let plain = proportional(total, claims, |_| true);
        if plain.iter().zip(claims).all(|(&amount, claim)| (claim.low..=claim.high).contains(&amount)) {
            return plain;
        }
    }
    let sum = |level: u128| claims.iter().map(|claim| claim.at(level)).sum::<u64>();
    let (mut low, mut high) = (0_u128, 1_u128 << (29 + FRACTION_BITS + LEVEL_BITS));
    while high - low > 1 {
        let middle = low.midpoint(high);
        if sum(middle) <= total { low = middle } else { high = middle }
    }
    let mut amounts: Vec<u64> = claims.iter().map(|claim| claim.at(low)).collect();
    // What lies between the bounds is shared out exactly; what sticks to one keeps it.
    let free = |claim: &Claim| (claim.low + 1..claim.high).contains(&claim.at(low));
    let stuck: u64 =
        claims.iter().zip(&amounts).filter(|(claim, _)| !free(claim)).map(|(_, amount)| amount).sum();
    if claims.iter().any(free) && stuck <= total {
        let exact = proportional(total - stuck, claims, free);
        for ((amount, claim), exact) in amounts.iter_mut().zip(claims).zip(exact) {
            if free(claim) {
                *amount = exact.clamp(claim.low, claim.high);
            }
        }
    }
    settle(total, claims, &mut amounts);
    amounts
}

/// Exactly `total` over the claims that `take` part, in proportion.
fn proportional(total: u64, claims: &[Claim], take: impl Fn(&Claim) -> bool) -> Vec<u64> {
    let weights: u128 = claims.iter().filter(|claim| take(claim)).map(|claim| u128::from(claim.weight)).sum();
    let (mut before, mut given) = (0_u128, 0_u64);
    let share = |claim: &Claim| {
        if !take(claim) || weights == 0 {
            return 0;
        }
        before += u128::from(claim.weight);
        let until = u64::try_from(u128::from(total) * before / weights).unwrap_or(total);
        let share = until - given;
        given = until;
        share
    };
    claims.iter().map(share).collect()
}

/// Correct the last few units of rounding, within the bounds.
fn settle(total: u64, claims: &[Claim], amounts: &mut [u64]) {
    let mut sum: u64 = amounts.iter().sum();
    for (amount, claim) in amounts.iter_mut().zip(claims) {
        if sum < total && claim.weight > 0 {
            let more = (total - sum).min(claim.high - *amount);
            *amount += more;
            sum += more;
        } else if sum > total {
            let less = (sum - total).min(*amount - claim.low);
            *amount -= less;
            sum -= less;
        }
    }
}

/// Whole entries of every domain; `counts` is what each has now.
pub(crate) fn quotas(tree: &Tree, target: &[u64], counts: &[u64]) -> Vec<u32> {
    let mut quotas: Vec<u64> = target.iter().map(|target| target / ONE).collect();
    for domain in tree.inner() {
        let children = tree.children(domain);
        let below: u64 = quotas[children.clone()].iter().sum();
        let mut left = quotas[domain as usize].saturating_sub(below);
        let mut order: Vec<usize> = children.filter(|&child| !target[child].is_multiple_of(ONE)).collect();
        // First those that already have more, then those nearest to the next entry.
        order.sort_by_key(|&child| {
            (counts[child] <= quotas[child], std::cmp::Reverse(target[child] % ONE), child)
        });
        for child in order {
            let more = left.min(1);
            quotas[child] += more;
            left -= more;
        }
        assert_eq!(left, 0, "the targets of children sum up to their parent's");
    }
    quotas.into_iter().map(|quota| u32::try_from(quota).expect("at most 2^29 entries")).collect()
}

#[cfg(test)]
#[path = "share_tests.rs"]
mod tests;
