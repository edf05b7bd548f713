//! The index-group seam: where rows live and where changes of names are decided; and its body of one voter.
//!
//! Invariant: what is decided under a [`Permit`] was decided on the state that all earlier permits left behind.

use std::sync::Arc;

use super::Result;
use super::locks::{Claim, Locks, Permit};
use super::replica::{BoxFuture, Draft, Local, Replica};
use crate::catalog::{self, Row, Totals};
use crate::disk::format::record::DeviceId;
use crate::disk::{Class, DiskHandle, Durability};
use crate::index::{Range, Table};

/// Rows in key order.
pub type Rows<'a> = Box<dyn Iterator<Item = Result<(Box<[u8]>, Row)>> + Send + 'a>;

/// Whose totals.
#[derive(Debug, Clone, Copy)]
pub enum TotalsOf<'a> {
    /// An account's, by name.
    Account(&'a str),
    /// A container's, by id.
    Container(u64),
}

/// Rows of accounts, containers and listings, and the order of decisions about them.
pub trait IndexGroup: Send + Sync {
    /// The device in whose log this node's voter keeps its rows: a record for that device may carry rows in its group.
    fn home(&self) -> DeviceId;
    /// The right to decide about names; waits until it is granted.
    fn claim<'a>(&'a self, claim: Claim<'a>) -> BoxFuture<'a, Permit>;
    /// A standing row.
    fn row(&self, key: &[u8]) -> Result<Option<Row>>;
    /// Exact totals.
    fn totals(&self, of: TotalsOf<'_>) -> Result<Totals>;
    /// Standing rows of a range.
    fn scan(&self, range: Range) -> Rows<'_>;
    /// Log rows, durably and applied, all or nothing.
    fn append(&self, rows: Vec<Draft>, class: Class) -> BoxFuture<'static, Result<()>>;
}

/// A group of one voter, in the log of one disk.
pub(crate) struct SingleVoter {
    disk: DiskHandle,
    locks: Arc<Locks>,
}

impl SingleVoter {
    pub(crate) fn new(disk: DiskHandle) -> Self {
        Self { disk, locks: Arc::new(Locks::new()) }
    }
}

impl IndexGroup for SingleVoter {
    fn home(&self) -> DeviceId {
        self.disk.device()
    }

    fn claim<'a>(&'a self, claim: Claim<'a>) -> BoxFuture<'a, Permit> {
        Box::pin(self.locks.claim(claim))
    }

    fn row(&self, key: &[u8]) -> Result<Option<Row>> {
        Ok(catalog::row(self.disk.index(), key)?)
    }

    fn totals(&self, of: TotalsOf<'_>) -> Result<Totals> {
        Ok(match of {
            TotalsOf::Account(account) => catalog::account_totals(self.disk.index(), account)?,
            TotalsOf::Container(id) => catalog::container_totals(self.disk.index(), id)?,
        })
    }

    fn scan(&self, range: Range) -> Rows<'_> {
        Box::new(self.disk.index().scan(Table::Rows, range).map(|pair| {
            let (key, value) = pair?;
            Ok((key, catalog::decode_row(&value)?))
        }))
    }

    fn append(&self, rows: Vec<Draft>, class: Class) -> BoxFuture<'static, Result<()>> {
        Local(self.disk.clone()).append(rows, Durability::Durable, class)
    }
}
