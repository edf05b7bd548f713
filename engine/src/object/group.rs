//! The index-group seam: where rows live and where changes of names are decided; and its body of one voter.
//!
//! Invariant: what is decided under a [`Permit`] was decided on the state that all earlier permits left behind.
//! Invariant: rows are read where the group is led, behind its barrier; nobody else's rows are believed.

use std::sync::Arc;

use super::Result;
use super::locks::{Claim, Locks, Permit};
use super::replica::{BoxFuture, Draft, Local, Replica};
use crate::catalog::{self, Row, Totals};
use crate::clock::Timestamp;
use crate::consensus::{Given, Part};
use crate::disk::format::record::DeviceId;
use crate::disk::{Class, DiskHandle, Durability};
use crate::index::{Range, Table};
use crate::net::NodeId;

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

/// Who leads a group, as far as this node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leader {
    /// This node.
    Own,
    /// Another.
    Other(NodeId),
    /// Nobody, for now.
    Unknown,
}

/// Rows of accounts, containers and listings, and the order of decisions about them. Keys are those of
/// [`crate::catalog`], without what tells groups apart on a disk.
pub trait IndexGroup: Send + Sync {
    /// Who decides.
    fn leader(&self) -> Leader;
    /// The present term of the group: a node that stops to lead and leads again does so in another.
    fn term(&self) -> u64;
    /// The device in whose log alone rows become durable: a record for that device may carry rows in its group. `None` where
    /// they need other nodes.
    fn home(&self) -> Option<DeviceId>;
    /// The right to decide about names; waits until it is granted.
    fn claim<'a>(&'a self, claim: Claim<'a>) -> BoxFuture<'a, Permit>;
    /// What must be waited for before rows are read: then they are what was acknowledged before this call, or this node does
    /// not lead. `None`: nothing.
    fn barrier(&self) -> Option<BoxFuture<'static, Result<()>>>;
    /// The same, where another voter has asked, who said with its question that it follows this node in a term ([`IndexGroup::follows`]).
    fn barrier_with(&self, follower: NodeId, term: u64) -> Option<BoxFuture<'static, Result<()>>> {
        let _ = (follower, term);
        self.barrier()
    }
    /// The term in which this node's voter follows a leader, to be said with what is asked of that.
    fn follows(&self, leader: NodeId) -> Option<u64> {
        let _ = leader;
        None
    }
    /// Version times above this must be reserved before they are given out, so that no later leader gives them again.
    fn ceiling(&self) -> Timestamp;
    /// Raises the ceiling to at least this. Whoever leads reserves anew before it gives its first time, and then further ahead than
    /// [`IndexGroup::overtaken`] can miss.
    fn raise(&self, to: Timestamp) -> BoxFuture<'static, Result<()>>;
    /// Whether somebody who led before may have granted a greater version time than this, which was granted then, without knowing what
    /// became of this one. What was granted in the present term is not meant: [`Permit::is_overtaken`] knows of that.
    fn overtaken(&self, at: Timestamp) -> bool {
        let _ = at;
        false
    }
    /// A grant of this time has ended, and it is not known here whether its line will be made: it may be asked for under another leader.
    /// To be called before the permit passes on: whatever is granted then, that one can tell ([`IndexGroup::overtaken`]).
    fn abandon(&self, at: Timestamp) {
        let _ = at;
    }
    /// A standing row.
    fn row(&self, key: &[u8]) -> Result<Option<Row>>;
    /// Exact totals.
    fn totals(&self, of: TotalsOf<'_>) -> Result<Totals>;
    /// Standing rows of a range.
    fn scan(&self, range: Range) -> Rows<'_>;
    /// Accounts marked deleted, behind `marker`, in order.
    fn marked_accounts(&self, marker: &str, limit: usize) -> Result<Vec<String>>;
    /// Ranges of lines that other groups have taken over from this one.
    fn given(&self) -> Vec<Given> {
        Vec::new()
    }
    /// What this group has of a container, if it has nothing but a range that it took over.
    fn part(&self) -> Option<Part> {
        None
    }
    /// Greatest version time of a row that was ever applied; of nothing that others are told, where lines are never given away.
    fn max_sequence(&self) -> u64 {
        0
    }
    /// Log rows, durably and applied, all or nothing; nothing when the group is in another term than `term`.
    fn append(&self, rows: Vec<Draft>, class: Class, term: u64) -> BoxFuture<'static, Result<()>>;
}

/// A group of one voter, in the log of one disk.
pub(crate) struct SingleVoter {
    disk: DiskHandle,
    log: Local,
    locks: Arc<Locks>,
}

impl SingleVoter {
    pub(crate) fn new(disk: DiskHandle) -> Self {
        let log = Local::new(disk.clone());
        Self { disk, log, locks: Arc::new(Locks::new()) }
    }
}

impl IndexGroup for SingleVoter {
    fn leader(&self) -> Leader {
        Leader::Own
    }

    /// It leads for ever.
    fn term(&self) -> u64 {
        0
    }

    fn home(&self) -> Option<DeviceId> {
        Some(self.disk.device())
    }

    fn claim<'a>(&'a self, claim: Claim<'a>) -> BoxFuture<'a, Permit> {
        Box::pin(self.locks.claim(claim))
    }

    fn barrier(&self) -> Option<BoxFuture<'static, Result<()>>> {
        None
    }

    /// The clock starts above everything on the disk, and nobody else gives times.
    fn ceiling(&self) -> Timestamp {
        Timestamp(u64::MAX)
    }

    fn raise(&self, _: Timestamp) -> BoxFuture<'static, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
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

    fn marked_accounts(&self, marker: &str, limit: usize) -> Result<Vec<String>> {
        Ok(catalog::marked_accounts(self.disk.index(), marker, limit)?)
    }

    fn append(&self, rows: Vec<Draft>, class: Class, _: u64) -> BoxFuture<'static, Result<()>> {
        self.log.append(rows, Durability::Durable, class)
    }
}
