//! What a local disk answers.
//!
//! Invariant: a question is checked whole before anything is looked at, and looks at no more than [`MAX_SCAN`] entries.

use std::ops::{Range, RangeInclusive};

use quarry_ring::PathHash;

use super::{Answer, Ask, MAX_POWER, MAX_RUNS, MAX_SCAN, MAX_STAMPS, MAX_SUMS, Parts};
use crate::catalog::{self, POLICIES, weight};
use crate::disk::{DiskHandle, TALLY_BITS};
use crate::object::{Error, Result};

fn bad(what: &str) -> Error {
    Error::Refused(format!("question about {what} that no node asks"))
}

/// Answers all but [`Ask::Record`], which needs the disk.
pub(crate) fn answer(disk: &DiskHandle, ask: &Ask) -> Result<Answer> {
    match ask {
        Ask::Sums { power, parts, group } => {
            believed(disk)?;
            sums(disk, *power, parts, *group).map(Answer::Sums)
        }
        Ask::Stamps { power, part, after, limit, doubt } => {
            if !doubt {
                believed(disk)?;
            }
            let policy = policy(*power, *part).filter(|_| *limit > 0).ok_or_else(|| bad("stamps"))?;
            let range = hashes(*power, &(*part..*part));
            let limit = (*limit as usize).min(MAX_STAMPS);
            Ok(Answer::Stamps(catalog::stamps(disk.index(), Some(policy), range, *after, limit)?))
        }
        Ask::Held { power, from } => held(disk, *power, *from),
        Ask::Record { .. } => Err(bad("records")),
    }
}

/// The policy of a part, if it is one.
fn policy(power: u8, part: u32) -> Option<u16> {
    let policy = (power <= MAX_POWER).then(|| part >> power)?;
    u16::try_from(policy).ok().filter(|policy| *policy < POLICIES)
}

fn believed(disk: &DiskHandle) -> Result<()> {
    if disk.believed() {
        return Ok(());
    }
    Err(Error::Unavailable { reason: format!("what device {} holds is in doubt", disk.device()) })
}

fn sums(disk: &DiskHandle, power: u8, parts: &Parts, group: u32) -> Result<Vec<u128>> {
    let within = parts.ranges().last().is_none_or(|last| policy(power, last.end - 1).is_some());
    if group == 0 || !within {
        return Err(bad("sums"));
    }
    if parts.count().div_ceil(u64::from(group)) > MAX_SUMS as u64 {
        return Err(bad("too many sums"));
    }
    let mut left = MAX_SCAN;
    let mut of = |range: &Range<u32>| match TALLY_BITS.checked_sub(power) {
        Some(bits) => Ok(disk.tallies().sum(range.start << bits..range.end << bits)),
        None => scanned(disk, power, range, &mut left),
    };
    let mut out = Vec::new();
    for group in parts.groups(group) {
        let mut sum = 0_u128;
        for range in &group {
            sum = sum.wrapping_add(of(range)?);
        }
        out.push(sum);
    }
    Ok(out)
}

/// The hashes of the parts from `range.start` to `range.end`, of which the last is one more; all of one policy.
fn hashes(power: u8, range: &Range<u32>) -> RangeInclusive<PathHash> {
    let low = 128 - u32::from(power);
    let first = u128::from(range.start).checked_shl(low).unwrap_or(0);
    let rest = u128::MAX.checked_shl(low).map_or(u128::MAX, |mask| !mask);
    let last = u128::from(range.end).checked_shl(low).unwrap_or(0) | rest;
    first.to_be_bytes()..=last.to_be_bytes()
}

/// The sum of parts that are finer than a tally.
fn scanned(disk: &DiskHandle, power: u8, range: &Range<u32>, left: &mut usize) -> Result<u128> {
    let policy = policy(power, range.start);
    if policy != self::policy(power, range.end - 1) {
        return Err(bad("sums over policies"));
    }
    let range = hashes(power, &(range.start..range.end - 1));
    let (mut sum, mut after) = (0_u128, None);
    loop {
        let page = catalog::stamps(disk.index(), policy, range.clone(), after, MAX_STAMPS)?;
        for stamp in &page.stamps {
            sum = sum.wrapping_add(weight(&stamp.hash, stamp.sequence, stamp.deleted));
        }
        *left = left.checked_sub(page.stamps.len()).ok_or_else(|| bad("too much at once"))?;
        match page.upto {
            Some(upto) if page.more => after = Some(upto),
            _ => return Ok(sum),
        }
    }
}

fn held(disk: &DiskHandle, power: u8, from: u32) -> Result<Answer> {
    let bits = TALLY_BITS.checked_sub(power).zip(policy(power, from));
    let Some((bits, policy)) = bits else { return Err(bad("what is held")) };
    let (mut parts, mut sum, mut next) = (Parts::default(), (from, 0_u128), None);
    let mut end = |parts: &mut Parts, (part, sum): (u32, u128)| {
        if sum != 0 && parts.ranges().len() < MAX_RUNS {
            parts.push(part..part + 1);
        } else if sum != 0 {
            next.get_or_insert(part);
        }
    };
    disk.tallies().visit(from << bits..(u32::from(policy) + 1) << TALLY_BITS, |tally, more| {
        let part = tally >> bits;
        if part != sum.0 {
            end(&mut parts, sum);
            sum = (part, 0);
        }
        sum.1 = sum.1.wrapping_add(more);
    });
    end(&mut parts, sum);
    Ok(Answer::Held { parts, next })
}
