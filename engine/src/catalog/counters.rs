//! Exact totals of containers and accounts, derived from the rows that stand.
//!
//! ```text
//! container  varint objects | varint bytes | while the container's row stands: u8 1, account, or, in a policy other than the
//!            first, u8 2, varint policy, account; else u8 0
//! account    varint containers | varint objects | varint bytes | for each policy but the first that has any of them:
//!            varint policy | varint containers | varint objects | varint bytes
//! ```
//!
//! Invariant: a container's totals are the sums over the lines of its listing, whether its row stands or not.
//! Invariant: an account's totals are the sums over its standing containers. So any order of rows ends in the same
//! totals, and records never carry them.

use std::collections::BTreeMap;

use super::keys::{GroupId, RowKey, account_totals, container_totals, marked_account};
use super::newest::{Source, damaged};
use super::rows::{AccountValue, ContainerValue, ListingValue};
use super::value::BadValue;
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
    /// Listed bytes.
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
    /// Listed bytes.
    pub bytes: u64,
}

impl Share {
    fn shift(&mut self, delta: Delta) {
        self.containers = self.containers.saturating_add_signed(delta.containers);
        self.objects = self.objects.saturating_add_signed(delta.objects);
        self.bytes = self.bytes.saturating_add_signed(delta.bytes);
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
        let policy = match r.u8()? {
            0 => None,
            2 => Some(policy(&mut r)?),
            _ => Some(0),
        };
        let name = std::str::from_utf8(r.rest()).map_err(|_| BadValue::Field("account"))?;
        let account = policy.map(|policy| (policy, name.to_owned()));
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
    match &totals.account {
        None => out.push(0),
        Some((0, _)) => out.push(1),
        Some((policy, _)) => {
            out.push(2);
            out.put_varint(u64::from(*policy));
        }
    }
    out.extend_from_slice(totals.account.as_ref().map_or("", |(_, account)| account).as_bytes());
    tx.put(Table::System, key, out);
}

/// Totals of a container by its id.
pub(crate) fn of_container(from: &impl Source, group: GroupId, id: u64) -> Result<Totals, IndexError> {
    let totals = container(from, group, id)?;
    Ok(Totals { objects: totals.objects, bytes: totals.bytes, ..Totals::default() })
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

fn shift_container(tx: &mut Tx<'_>, group: GroupId, id: u64, delta: Delta) -> Result<(), IndexError> {
    let mut totals = container(tx, group, id)?;
    totals.objects = totals.objects.saturating_add_signed(delta.objects);
    totals.bytes = totals.bytes.saturating_add_signed(delta.bytes);
    put_container(tx, group, id, &totals);
    match totals.account {
        Some((policy, account)) => shift_account(tx, group, policy, &account, delta),
        None => Ok(()),
    }
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
    let sign = if stands { 1 } else { -1 };
    let delta = Delta {
        containers: sign,
        objects: sign * signed(totals.objects),
        bytes: sign * signed(totals.bytes),
    };
    shift_account(tx, group, policy, account, delta)
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
