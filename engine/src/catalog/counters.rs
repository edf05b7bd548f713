//! Exact totals of containers and accounts, derived from the rows that stand.
//!
//! ```text
//! container  varint objects | varint bytes | u8 1, account while the container's row stands, else u8 0
//! account    varint containers | varint objects | varint bytes
//! ```
//!
//! Invariant: a container's totals are the sums over the lines of its listing, whether its row stands or not.
//! Invariant: an account's totals are the sums over its standing containers. So any order of rows ends in the same
//! totals, and records never carry them.

use super::keys::{GroupId, RowKey, account_totals, container_totals, marked_account};
use super::newest::{Source, damaged};
use super::rows::{AccountValue, ContainerValue, ListingValue};
use super::value::BadValue;
use crate::disk::catalog::Tx;
use crate::disk::format::bytes::{Put, Reader};
use crate::index::{IndexError, Table};

/// Exact totals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Containers (of an account).
    pub containers: u64,
    /// Objects.
    pub objects: u64,
    /// Listed bytes.
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct ContainerTotals {
    objects: u64,
    bytes: u64,
    account: Option<String>,
}

/// A change of totals.
#[derive(Debug, Clone, Copy, Default)]
struct Delta {
    containers: i64,
    objects: i64,
    bytes: i64,
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn container(from: &impl Source, group: GroupId, id: u64) -> Result<ContainerTotals, IndexError> {
    let Some(bytes) = from.value(Table::System, &container_totals(group, id))? else {
        return Ok(Default::default());
    };
    let decode = || -> Result<ContainerTotals, BadValue> {
        let mut r = Reader::new(&bytes);
        let (objects, sum) = (r.varint()?, r.varint()?);
        let account = match r.u8()? {
            0 => None,
            _ => Some(std::str::from_utf8(r.rest()).map_err(|_| BadValue::Field("account"))?.to_owned()),
        };
        Ok(ContainerTotals { objects, bytes: sum, account })
    };
    decode().map_err(damaged)
}

fn put_container(tx: &mut Tx<'_>, group: GroupId, id: u64, totals: &ContainerTotals) {
    let key = container_totals(group, id);
    if *totals == ContainerTotals::default() {
        return tx.delete(Table::System, key);
    }
    let mut out = Vec::with_capacity(32);
    out.put_varint(totals.objects);
    out.put_varint(totals.bytes);
    out.push(u8::from(totals.account.is_some()));
    out.extend_from_slice(totals.account.as_deref().unwrap_or("").as_bytes());
    tx.put(Table::System, key, out);
}

/// Totals of a container by its id.
pub(crate) fn of_container(from: &impl Source, group: GroupId, id: u64) -> Result<Totals, IndexError> {
    let totals = container(from, group, id)?;
    Ok(Totals { containers: 0, objects: totals.objects, bytes: totals.bytes })
}

/// Totals of an account.
pub(crate) fn of_account(from: &impl Source, group: GroupId, account: &str) -> Result<Totals, IndexError> {
    let Some(bytes) = from.value(Table::System, &account_totals(group, account))? else {
        return Ok(Totals::default());
    };
    let mut r = Reader::new(&bytes);
    let mut field = || r.varint().map_err(|e| damaged(e.into()));
    Ok(Totals { containers: field()?, objects: field()?, bytes: field()? })
}

fn shift_account(tx: &mut Tx<'_>, group: GroupId, account: &str, delta: Delta) -> Result<(), IndexError> {
    let old = of_account(tx, group, account)?;
    let new = Totals {
        containers: old.containers.saturating_add_signed(delta.containers),
        objects: old.objects.saturating_add_signed(delta.objects),
        bytes: old.bytes.saturating_add_signed(delta.bytes),
    };
    let key = account_totals(group, account);
    if new == Totals::default() {
        tx.delete(Table::System, key);
        return Ok(());
    }
    let mut out = Vec::with_capacity(16);
    out.put_varint(new.containers);
    out.put_varint(new.objects);
    out.put_varint(new.bytes);
    tx.put(Table::System, key, out);
    Ok(())
}

fn shift_container(tx: &mut Tx<'_>, group: GroupId, id: u64, delta: Delta) -> Result<(), IndexError> {
    let mut totals = container(tx, group, id)?;
    totals.objects = totals.objects.saturating_add_signed(delta.objects);
    totals.bytes = totals.bytes.saturating_add_signed(delta.bytes);
    put_container(tx, group, id, &totals);
    match totals.account {
        Some(account) => shift_account(tx, group, &account, delta),
        None => Ok(()),
    }
}

/// The row of container `id` begins (`stands`) or ceases to stand in `account`.
fn own(tx: &mut Tx<'_>, group: GroupId, id: u64, account: &str, stands: bool) -> Result<(), IndexError> {
    let mut totals = container(tx, group, id)?;
    totals.account = stands.then(|| account.to_owned());
    put_container(tx, group, id, &totals);
    let sign = if stands { 1 } else { -1 };
    let delta = Delta {
        containers: sign,
        objects: sign * signed(totals.objects),
        bytes: sign * signed(totals.bytes),
    };
    shift_account(tx, group, account, delta)
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
        RowKey::Control(_) => Ok(()),
        RowKey::Listing { id, .. } => {
            let size = |value: Option<&[u8]>| value.map(ListingValue::size_of).transpose().map_err(damaged);
            let (old, new) = (size(before)?, size(after)?);
            let bytes = signed(new.unwrap_or(0)).saturating_sub(signed(old.unwrap_or(0)));
            let objects = i64::from(new.is_some()) - i64::from(old.is_some());
            if bytes == 0 && objects == 0 {
                return Ok(());
            }
            shift_container(tx, group, *id, Delta { containers: 0, objects, bytes })
        }
        RowKey::Container { account, .. } => {
            let id = |value: Option<&[u8]>| value.map(ContainerValue::decode).transpose().map_err(damaged);
            let (old, new) = (id(before)?.map(|v| v.id), id(after)?.map(|v| v.id));
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
