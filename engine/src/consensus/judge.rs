//! What becomes of log entries: pure.
//!
//! An entry's rows and the marker that counts it lie in one group of records, so a crash leaves rows and marker at one exact
//! prefix of entries. What the marker counts is skipped when the log is applied again, and not judged anew.
//!
//! Invariant: the outcome of an entry depends on the log alone: on the rows that stand, which are the same on every voter, and
//! on the marker; never on tombstones, which each disk drops when it can.
//! Invariant: version times of one key ascend: none is at or below the row that stands, nor at or below the greatest of all
//! earlier terms; within a term the one leader gives them.
//! Invariant: from the entry that gives a range away on, no entry changes a line of it or is decided by one.

use std::collections::HashMap;
use std::sync::Arc;

use super::codec::Marker;
use super::limits::MAX_ENTRY_ROWS;
use super::raft::{Command, LogEntry, Payload, StoredMembership};
use super::territory::Territory;
use super::types::{Entry, Expected, Failed, Given, Outcome, RowChange};
use crate::catalog::{GIVEN, GroupId};
use crate::index::IndexError;

/// Rows that go into the log together, and the marker behind them.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) rows: Vec<RowChange>,
    pub(crate) marker: Marker,
    /// Its one row gives a range away, for the first time; and the marker as the entry left it.
    pub(crate) gives: Option<Marker>,
}

/// Applies log entries in order.
pub(crate) struct Judge<F> {
    stands: F,
    /// What stands after the steps so far, where it is not what `stands` says.
    overlay: HashMap<Vec<u8>, Option<u64>>,
    marker: Marker,
    rows: Vec<RowChange>,
    steps: Vec<Step>,
    territory: Arc<Territory>,
    /// What was given away in the steps so far.
    given: Vec<Given>,
    /// The step that is being made gives a range away: nothing else goes with it.
    gives: Option<Marker>,
}

impl<F: Fn(&[u8]) -> Result<Option<u64>, IndexError>> Judge<F> {
    /// `stands` says which version time a key's row has, if one stands.
    pub(crate) fn new(marker: Marker, territory: Arc<Territory>, stands: F) -> Self {
        let (overlay, rows, steps, given) = (HashMap::new(), Vec::new(), Vec::new(), Vec::new());
        Self { stands, overlay, marker, rows, steps, territory, given, gives: None }
    }

    /// Who has taken over a line that the entry is about.
    fn moved(&self, entry: &Entry) -> Option<GroupId> {
        if self.territory.away().next().is_none() && self.given.is_empty() {
            return None;
        }
        let moved = |key: &Vec<u8>| {
            let now = || self.given.iter().find(|given| given.has(key)).map(|given| given.group);
            self.territory.moved(key).or_else(now)
        };
        let rows = entry.rows.iter().map(|row| &row.key);
        rows.chain(entry.guards.iter().map(|guard| &guard.key)).find_map(moved)
    }

    fn standing(&self, key: &[u8]) -> Result<Option<u64>, IndexError> {
        match self.overlay.get(key) {
            Some(known) => Ok(*known),
            None => (self.stands)(key),
        }
    }

    /// Applies one log entry: an outcome for each of its entries.
    pub(crate) fn apply(&mut self, entry: &LogEntry) -> Result<Vec<Outcome>, IndexError> {
        let term = entry.log_id.leader_id.term;
        if term != self.marker.term {
            self.marker.floor = self.marker.max_sequence;
            self.marker.term = term;
        }
        let mut outcomes = Vec::new();
        match &entry.payload {
            Payload::Blank => {}
            Payload::Membership(membership) => {
                self.marker.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
            }
            Payload::Normal(Command(entries)) => {
                let done = self.marker.part;
                for (number, entry) in (0u64..).zip(entries.iter()) {
                    outcomes.push(if number < done { Outcome::Repeated } else { self.entry(term, entry)? });
                    self.marker.part = self.marker.part.max(number + 1);
                }
            }
        }
        self.marker.part = 0;
        self.marker.applied = Some(entry.log_id);
        Ok(outcomes)
    }

    fn entry(&mut self, term: u64, entry: &Entry) -> Result<Outcome, IndexError> {
        if entry.term.is_some_and(|wanted| wanted != term) {
            return Ok(Outcome::Fenced { term });
        }
        if let Some(group) = self.moved(entry) {
            return Ok(Outcome::Moved(group));
        }
        let mut failed = Vec::new();
        for (guard, wanted) in entry.guards.iter().enumerate() {
            let stands = self.standing(&wanted.key)?;
            let holds = match wanted.expected {
                Expected::Absent => stands.is_none(),
                Expected::Sequence(sequence) => stands == Some(sequence),
            };
            if !holds {
                failed.push(Failed { guard, stands });
            }
        }
        if !failed.is_empty() {
            return Ok(Outcome::Refused(failed));
        }
        for (row, change) in entry.rows.iter().enumerate() {
            let above = self.standing(&change.key)?.unwrap_or(0).max(self.marker.floor);
            if change.sequence <= above {
                return Ok(Outcome::Stale { row, above });
            }
        }
        match entry.rows.as_slice() {
            [row] if row.key.first() == Some(&GIVEN) => self.give(row)?,
            rows => self.take(rows)?,
        }
        Ok(Outcome::Applied)
    }

    /// The row of a range is alone in its step: more records go with it.
    fn give(&mut self, row: &RowChange) -> Result<(), IndexError> {
        let given = row.value.as_ref().and_then(|value| Given::of_row(&row.key, value).ok());
        let first =
            self.standing(&row.key)?.is_none() && given.as_ref().is_some_and(|given| given.back.is_none());
        self.step();
        self.take(std::slice::from_ref(row))?;
        if let Some(given) = given.filter(|_| first) {
            self.gives = Some(self.marker.clone());
            self.given.push(given);
        }
        Ok(())
    }

    fn take(&mut self, rows: &[RowChange]) -> Result<(), IndexError> {
        if self.gives.is_some() || self.rows.len() + rows.len() > MAX_ENTRY_ROWS {
            self.step();
        }
        for row in rows {
            self.marker.max_sequence = self.marker.max_sequence.max(row.sequence);
            // The going of what is not there needs no record.
            if row.value.is_none() && self.standing(&row.key)?.is_none() {
                continue;
            }
            self.overlay.insert(row.key.clone(), row.value.as_ref().map(|_| row.sequence));
            self.rows.push(row.clone());
        }
        Ok(())
    }

    fn step(&mut self) {
        let (rows, gives) = (std::mem::take(&mut self.rows), self.gives.take());
        self.steps.push(Step { rows, marker: self.marker.clone(), gives });
    }

    /// What to write, in order, and the marker after it.
    pub(crate) fn finish(mut self) -> (Vec<Step>, Marker) {
        self.step();
        (self.steps, self.marker)
    }
}
