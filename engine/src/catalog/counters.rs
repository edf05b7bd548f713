//! Exact totals of containers and accounts, derived from the rows that stand.
//!
//! ```text
//! container  varint objects | varint bytes | while the container's row stands: u8 1, account, or, in a policy other than the
//!            first, u8 2, varint policy, account; else u8 0. With ranges that u8 is greater by 4, the account has its length
//!            before it, and there follow varint count | (first name, varint objects, varint bytes)*
//! account    varint containers | varint objects | varint bytes | for each policy but the first that has any of them:
//!            varint policy | varint containers | varint objects | varint bytes
//! ```
//!
//! Invariant: a container's totals are the sums over the lines of its listing that are in no range, whether its row stands or
//! not; a range's are those over its lines, and no account's.
//! Invariant: sums are modulo 2^64: a rebuild may see lines go before they come, and ranges in any order. It counts ranges anew at
//! its end.
//! Invariant: an account's totals are the sums over its standing containers. So any order of rows ends in the same
//! totals, and records never carry them.

use std::collections::BTreeMap;

use super::entry::Head;
use super::keys::{GroupId, RowKey, account_totals, container_totals, marked_account};
use super::newest::{Source, damaged};
use super::ranges::Bound;
use super::rows::{AccountValue, ContainerValue, ListingValue};
use super::spaces::lines_in;
use super::value::{BadValue, put_text, text};
use crate::disk::catalog::Tx;
use crate::disk::format::bytes::{Put, Reader};
use crate::index::{IndexError, Table};

/// Exact totals.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Totals {
    /// Containers (of an account).
    pub containers: u64,
    /// Objects.
    pub objects: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// The shares of policies other than the first (of an account), by their numbers.
    pub policies: BTreeMap<u16, Share>,
}

/// What of an account's totals is in one policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// Containers.
    pub containers: u64,
    /// Objects.
    pub objects: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
}

impl Share {
    fn shift(&mut self, delta: Delta) {
        self.containers = self.containers.wrapping_add_signed(delta.containers);
        self.objects = self.objects.wrapping_add_signed(delta.objects);
        self.bytes = self.bytes.wrapping_add_signed(delta.bytes);
    }

    fn put(self, out: &mut Vec<u8>) {
        out.put_varint(self.containers);
        out.put_varint(self.objects);
        out.put_varint(self.bytes);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, BadValue> {
        Ok(Self { containers: r.varint()?, objects: r.varint()?, bytes: r.varint()? })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct ContainerTotals {
    objects: u64,
    bytes: u64,
    /// Where its row stands, and in which policy.
    account: Option<(u16, String)>,
    /// By their first names.
    ranges: Vec<RangeTotals>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct RangeTotals {
    from: String,
    objects: u64,
    bytes: u64,
}

/// Added to what is said of the container's row.
const RANGES: u8 = 4;

/// A change of totals.
#[derive(Debug, Clone, Copy, Default)]
struct Delta {
    containers: i64,
    objects: i64,
    bytes: i64,
}

impl Delta {
    fn of(objects: u64, bytes: u64) -> Self {
        Self { containers: 0, objects: objects.cast_signed(), bytes: bytes.cast_signed() }
    }

    fn minus(self) -> Self {
        let Self { containers, objects, bytes } = self;
        Self {
            containers: containers.wrapping_neg(),
            objects: objects.wrapping_neg(),
            bytes: bytes.wrapping_neg(),
        }
    }
}

fn container(from: &impl Source, group: GroupId, id: u64) -> Result<ContainerTotals, IndexError> {
    let Some(bytes) = from.value(Table::System, &container_totals(group, id))? else {
        return Ok(Default::default());
    };
    decode_container(&bytes).map_err(damaged)
}

fn decode_container(bytes: &[u8]) -> Result<ContainerTotals, BadValue> {
    let mut r = Reader::new(bytes);
    let (objects, sum, tag) = (r.varint()?, r.varint()?, r.u8()?);
    let policy = match tag & !RANGES {
        0 => None,
        2 => Some(policy(&mut r)?),
        _ => Some(0),
    };
    let name = match tag & RANGES {
        0 => std::str::from_utf8(r.rest()).map_err(|_| BadValue::Field("account"))?,
        _ => text(&mut r)?,
    };
    let account = policy.map(|policy| (policy, name.to_owned()));
    let mut totals = ContainerTotals { objects, bytes: sum, account, ranges: Vec::new() };
    if tag & RANGES != 0 {
        for _ in 0..r.varint()? {
            let from = text(&mut r)?.to_owned();
            totals.ranges.push(RangeTotals { from, objects: r.varint()?, bytes: r.varint()? });
        }
    }
    Ok(totals)
}

/// Whether totals have ranges: they count lines of groups that go on when the container's own is gone.
pub(crate) fn has_ranges(totals: &[u8]) -> Result<bool, IndexError> {
    decode_container(totals).map(|totals| !totals.ranges.is_empty()).map_err(damaged)
}

fn put_container(tx: &mut Tx<'_>, group: GroupId, id: u64, totals: &ContainerTotals) {
    let key = container_totals(group, id);
    if *totals == ContainerTotals::default() {
        return tx.delete(Table::System, key);
    }
    let mut out = Vec::with_capacity(32);
    out.put_varint(totals.objects);
    out.put_varint(totals.bytes);
    let ranges = if totals.ranges.is_empty() { 0 } else { RANGES };
    match &totals.account {
        None => out.push(ranges),
        Some((0, _)) => out.push(1 + ranges),
        Some((policy, _)) => {
            out.push(2 + ranges);
            out.put_varint(u64::from(*policy));
        }
    }
    let account = totals.account.as_ref().map_or("", |(_, account)| account);
    if totals.ranges.is_empty() {
        out.extend_from_slice(account.as_bytes());
    } else {
        put_text(&mut out, account);
        out.put_varint(totals.ranges.len() as u64);
        for RangeTotals { from, objects, bytes } in &totals.ranges {
            put_text(&mut out, from);
            out.put_varint(*objects);
            out.put_varint(*bytes);
        }
    }
    tx.put(Table::System, key, out);
}

/// Totals of a container by its id.
pub(crate) fn of_container(from: &impl Source, group: GroupId, id: u64) -> Result<Totals, IndexError> {
    let totals = container(from, group, id)?;
    Ok(Totals { objects: totals.objects, bytes: totals.bytes, ..Totals::default() })
}

/// Totals of a range of a container, which begins with this name.
pub(crate) fn of_range(
    from: &impl Source,
    group: GroupId,
    id: u64,
    first: &str,
) -> Result<Totals, IndexError> {
    let totals = container(from, group, id)?;
    let range = totals.ranges.iter().find(|range| range.from == first);
    let (objects, bytes) = range.map_or((0, 0), |range| (range.objects, range.bytes));
    Ok(Totals { objects, bytes, ..Totals::default() })
}

/// Totals of an account.
pub(crate) fn of_account(from: &impl Source, group: GroupId, account: &str) -> Result<Totals, IndexError> {
    let Some(bytes) = from.value(Table::System, &account_totals(group, account))? else {
        return Ok(Totals::default());
    };
    let decode = || -> Result<Totals, BadValue> {
        let mut r = Reader::new(&bytes);
        let Share { containers, objects, bytes } = Share::read(&mut r)?;
        let mut policies = BTreeMap::new();
        while !r.rest().is_empty() {
            policies.insert(policy(&mut r)?, Share::read(&mut r)?);
        }
        Ok(Totals { containers, objects, bytes, policies })
    };
    decode().map_err(damaged)
}

fn policy(r: &mut Reader<'_>) -> Result<u16, BadValue> {
    u16::try_from(r.varint()?).map_err(|_| BadValue::Field("policy"))
}

fn shift_account(
    tx: &mut Tx<'_>,
    group: GroupId,
    policy: u16,
    account: &str,
    delta: Delta,
) -> Result<(), IndexError> {
    let Totals { containers, objects, bytes, mut policies } = of_account(tx, group, account)?;
    let mut all = Share { containers, objects, bytes };
    all.shift(delta);
    if policy != 0 {
        policies.entry(policy).or_default().shift(delta);
        policies.retain(|_, share| *share != Share::default());
    }
    let key = account_totals(group, account);
    if all == Share::default() && policies.is_empty() {
        tx.delete(Table::System, key);
        return Ok(());
    }
    let mut out = Vec::with_capacity(16);
    all.put(&mut out);
    for (policy, share) in policies {
        out.put_varint(u64::from(policy));
        share.put(&mut out);
    }
    tx.put(Table::System, key, out);
    Ok(())
}

/// Changes what is in no range.
fn shift_base(
    tx: &mut Tx<'_>,
    group: GroupId,
    id: u64,
    mut totals: ContainerTotals,
    delta: Delta,
) -> Result<(), IndexError> {
    totals.objects = totals.objects.wrapping_add_signed(delta.objects);
    totals.bytes = totals.bytes.wrapping_add_signed(delta.bytes);
    put_container(tx, group, id, &totals);
    match totals.account {
        Some((policy, account)) => shift_account(tx, group, policy, &account, delta),
        None => Ok(()),
    }
}

impl RangeTotals {
    fn shift(&mut self, delta: Delta) {
        self.objects = self.objects.wrapping_add_signed(delta.objects);
        self.bytes = self.bytes.wrapping_add_signed(delta.bytes);
    }
}

impl ContainerTotals {
    /// The range that a name is in.
    fn range_of(&mut self, name: &str) -> Option<&mut RangeTotals> {
        let behind = self.ranges.partition_point(|range| range.from.as_str() <= name);
        self.ranges.get_mut(behind.checked_sub(1)?)
    }
}

/// From this name on lines are counted apart.
pub(crate) fn bound(tx: &mut Tx<'_>, bound: &Bound) -> Result<(), IndexError> {
    let mut totals = container(tx, bound.space, bound.id)?;
    let at = match totals.ranges.binary_search_by(|range| range.from.as_str().cmp(&bound.from)) {
        // The record came twice.
        Ok(_) => return Ok(()),
        Err(at) => at,
    };
    let less = Delta::of(bound.objects, bound.bytes).minus();
    let enclosing = totals.range_of(&bound.from).map(|range| range.shift(less)).is_some();
    let (from, objects, bytes) = (bound.from.clone(), bound.objects, bound.bytes);
    totals.ranges.insert(at, RangeTotals { from, objects, bytes });
    if enclosing {
        put_container(tx, bound.space, bound.id, &totals);
        return Ok(());
    }
    shift_base(tx, bound.space, bound.id, totals, less)
}

/// Lines from this name on are counted with those before it again.
pub(crate) fn unbound(tx: &mut Tx<'_>, bound: &Bound) -> Result<(), IndexError> {
    let mut totals = container(tx, bound.space, bound.id)?;
    // Where none is, the record came twice, or before the one that it ends, which counts no more then.
    let Ok(at) = totals.ranges.binary_search_by(|range| range.from.as_str().cmp(&bound.from)) else {
        return Ok(());
    };
    let RangeTotals { objects, bytes, .. } = totals.ranges.remove(at);
    let more = Delta::of(objects, bytes);
    if totals.range_of(&bound.from).map(|range| range.shift(more)).is_some() {
        put_container(tx, bound.space, bound.id, &totals);
        return Ok(());
    }
    shift_base(tx, bound.space, bound.id, totals, more)
}

/// Counts the ranges of a container anew, from the lines in the index; what is in none is the rest of what was counted.
pub(crate) fn recount(tx: &mut Tx<'_>, space: GroupId, id: u64) -> Result<(), IndexError> {
    let mut totals = container(tx, space, id)?;
    let (mut before, mut after) = ((0u64, 0u64), (0u64, 0u64));
    let ends: Vec<Option<String>> =
        totals.ranges.iter().skip(1).map(|range| Some(range.from.clone())).chain([None]).collect();
    for (range, to) in totals.ranges.iter_mut().zip(ends) {
        let keys = lines_in(space, id, &range.from, to.as_deref());
        let (mut objects, mut bytes) = (0u64, 0u64);
        for pair in tx.stored(Table::Rows, keys) {
            let (_, value) = pair?;
            let (_, value) = Head::decode(&value).map_err(damaged)?;
            objects += 1;
            bytes = bytes.wrapping_add(ListingValue::size_of(value).map_err(damaged)?);
        }
        before = (before.0.wrapping_add(range.objects), before.1.wrapping_add(range.bytes));
        after = (after.0.wrapping_add(objects), after.1.wrapping_add(bytes));
        (range.objects, range.bytes) = (objects, bytes);
    }
    let more = Delta::of(before.0.wrapping_sub(after.0), before.1.wrapping_sub(after.1));
    shift_base(tx, space, id, totals, more)
}

/// A line's size went from `before` to `after`.
fn line_changed(
    tx: &mut Tx<'_>,
    group: GroupId,
    (id, name): (u64, &str),
    before: Option<u64>,
    after: Option<u64>,
) -> Result<(), IndexError> {
    let bytes = after.unwrap_or(0).wrapping_sub(before.unwrap_or(0)).cast_signed();
    let objects = i64::from(after.is_some()) - i64::from(before.is_some());
    if bytes == 0 && objects == 0 {
        return Ok(());
    }
    let delta = Delta { containers: 0, objects, bytes };
    let mut totals = container(tx, group, id)?;
    if let Some(range) = totals.range_of(name) {
        range.shift(delta);
        put_container(tx, group, id, &totals);
        return Ok(());
    }
    shift_base(tx, group, id, totals, delta)
}

/// The row of a container begins (`stands`) or ceases to stand in `account`.
fn own(
    tx: &mut Tx<'_>,
    group: GroupId,
    (id, policy): (u64, u16),
    account: &str,
    stands: bool,
) -> Result<(), IndexError> {
    let mut totals = container(tx, group, id)?;
    totals.account = stands.then(|| (policy, account.to_owned()));
    put_container(tx, group, id, &totals);
    let all = Delta { containers: 1, ..Delta::of(totals.objects, totals.bytes) };
    shift_account(tx, group, policy, account, if stands { all } else { all.minus() })
}

/// A row's standing value went from `before` to `after`.
pub(crate) fn row_changed(
    tx: &mut Tx<'_>,
    group: GroupId,
    key: &RowKey<'_>,
    before: Option<&[u8]>,
    after: Option<&[u8]>,
) -> Result<(), IndexError> {
    match key {
        RowKey::Control(_) | RowKey::Part | RowKey::Going | RowKey::Given { .. } => Ok(()),
        RowKey::Listing { id, object } => {
            let size = |value: Option<&[u8]>| value.map(ListingValue::size_of).transpose().map_err(damaged);
            line_changed(tx, group, (*id, object), size(before)?, size(after)?)
        }
        RowKey::Container { account, .. } => {
            let id = |value: Option<&[u8]>| value.map(ContainerValue::decode).transpose().map_err(damaged);
            let (old, new) = (id(before)?.map(|v| (v.id, v.policy)), id(after)?.map(|v| (v.id, v.policy)));
            if old == new {
                return Ok(());
            }
            if let Some(id) = old {
                own(tx, group, id, account, false)?;
            }
            if let Some(id) = new {
                own(tx, group, id, account, true)?;
            }
            Ok(())
        }
        RowKey::Account(account) => {
            let marked =
                after.map(AccountValue::decode).transpose().map_err(damaged)?.is_some_and(|v| v.marked);
            let was =
                before.map(AccountValue::decode).transpose().map_err(damaged)?.is_some_and(|v| v.marked);
            match (was, marked) {
                (false, true) => tx.put(Table::System, marked_account(group, account), Vec::new()),
                (true, false) => tx.delete(Table::System, marked_account(group, account)),
                _ => {}
            }
            Ok(())
        }
    }
}
