//! A group of rows as the object layer's index group.
//!
//! Invariant: times up to the ceiling are reserved: the greatest version time that was ever applied, which every later leader's
//! times must be above.

use std::sync::Arc;

use super::group::Group;
use super::types::{Entry, GroupError, Outcome, RowChange};
use crate::catalog::{Row, Totals};
use crate::clock::Timestamp;
use crate::disk::Class;
use crate::disk::format::record::DeviceId;
use crate::index::Range;
use crate::object::{
    BoxFuture, Claim, Draft, Error, IndexGroup, Leader, Locks, Permit, Result, Rows, TotalsOf,
};

/// The row that raises the ceiling: in no range that names are in.
const CEILING: &[u8] = b"k\0ceiling";
/// How far the ceiling is raised above what is asked for, in microseconds: one proposal for so much time.
const AHEAD: u64 = 1_000_000;

/// An index group that several nodes hold in common.
#[derive(Debug)]
pub struct IndexVoter {
    group: Group,
    locks: Arc<Locks>,
}

impl IndexVoter {
    /// Decides where `group` is led.
    #[must_use]
    pub fn new(group: Group) -> Self {
        Self { group, locks: Arc::new(Locks::new()) }
    }
}

impl From<GroupError> for Error {
    fn from(e: GroupError) -> Self {
        match e {
            GroupError::NoSpace => Self::NoSpace,
            GroupError::Limit(what) => Self::Refused(format!("too much: {what}")),
            GroupError::Damaged { .. } => Self::Corrupt { what: e.to_string() },
            GroupError::NotLeader(_) | GroupError::Unavailable(_) | GroupError::Members(_) => {
                Self::Unavailable { reason: e.to_string() }
            }
        }
    }
}

fn change(draft: Draft) -> RowChange {
    let Draft { deleted, sequence, key, meta, .. } = draft;
    RowChange { key, sequence, value: (!deleted).then_some(meta) }
}

impl IndexGroup for IndexVoter {
    fn leader(&self) -> Leader {
        let status = self.group.status();
        match status.leader {
            _ if status.leads => Leader::Own,
            Some(node) if node != self.group.node() => Leader::Other(node),
            _ => Leader::Unknown,
        }
    }

    fn term(&self) -> u64 {
        self.group.status().term
    }

    fn home(&self) -> Option<DeviceId> {
        None
    }

    fn claim<'a>(&'a self, claim: Claim<'a>) -> BoxFuture<'a, Permit> {
        Box::pin(async move {
            let mut permit = self.locks.claim(claim).await;
            permit.term = self.term();
            permit
        })
    }

    fn barrier(&self) -> Option<BoxFuture<'static, Result<()>>> {
        let group = self.group.clone();
        Some(Box::pin(async move {
            group.barrier().await?;
            Ok(())
        }))
    }

    fn ceiling(&self) -> Timestamp {
        Timestamp(self.group.max_sequence())
    }

    fn raise(&self, to: Timestamp) -> BoxFuture<'static, Result<()>> {
        let (group, term) = (self.group.clone(), self.term());
        Box::pin(async move {
            let sequence = to.0.saturating_add(AHEAD);
            let row = RowChange { key: CEILING.to_vec(), sequence, value: Some(Vec::new()) };
            let entry = Entry { term: Some(term), guards: Vec::new(), rows: vec![row] };
            match group.propose(entry).await? {
                Outcome::Applied => Ok(()),
                // Somebody else raised it meanwhile.
                Outcome::Stale { above, .. } if above >= to.0 => Ok(()),
                _ => {
                    Err(Error::Unavailable { reason: "the leader of the index group has changed".to_owned() })
                }
            }
        })
    }

    fn row(&self, key: &[u8]) -> Result<Option<Row>> {
        Ok(self.group.row(key)?)
    }

    fn totals(&self, of: TotalsOf<'_>) -> Result<Totals> {
        Ok(self.group.totals(of)?)
    }

    fn scan(&self, range: Range) -> Rows<'_> {
        match self.group.scan(&range) {
            Ok(rows) => Box::new(rows.map(|row| {
                let (key, row) = row?;
                Ok((key.into_boxed_slice(), row))
            })),
            Err(e) => Box::new(std::iter::once(Err(e.into()))),
        }
    }

    fn marked_accounts(&self, limit: usize) -> Result<Vec<String>> {
        Ok(self.group.marked_accounts(limit)?)
    }

    fn append(&self, rows: Vec<Draft>, _: Class, term: u64) -> BoxFuture<'static, Result<()>> {
        let group = self.group.clone();
        Box::pin(async move {
            let rows = rows.into_iter().map(change).collect();
            let entry = Entry { term: Some(term), guards: Vec::new(), rows };
            match group.propose(entry).await? {
                Outcome::Applied => Ok(()),
                Outcome::Stale { .. } => Err(Error::Superseded),
                Outcome::Fenced { .. } | Outcome::Refused(_) | Outcome::Repeated => {
                    Err(Error::Unavailable { reason: "the leader of the index group has changed".to_owned() })
                }
            }
        })
    }
}
