//! What becomes of log entries: pure.
//!
//! An entry's rows and the marker that counts it lie in one group of records, so a crash leaves rows and marker at one exact
//! prefix of entries. What the marker counts is skipped when the log is applied again, and not judged anew.
//!
//! Invariant: the outcome of an entry depends on the log alone: on the rows that stand, which are the same on every voter, and
//! on the marker; never on tombstones, which each disk drops when it can.
//! Invariant: version times of one key ascend: none is at or below the row that stands, nor at or below the greatest of all
//! earlier terms; within a term the one leader gives them.

use std::collections::HashMap;

use super::codec::Marker;
use super::limits::MAX_ENTRY_ROWS;
use super::raft::{Command, LogEntry, Payload, StoredMembership};
use super::types::{Entry, Expected, Failed, Outcome, RowChange};
use crate::index::IndexError;

/// Rows that go into the log together, and the marker behind them.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) rows: Vec<RowChange>,
    pub(crate) marker: Marker,
}

/// Applies log entries in order.
pub(crate) struct Judge<F> {
    stands: F,
    /// What stands after the steps so far, where it is not what `stands` says.
    overlay: HashMap<Vec<u8>, Option<u64>>,
    marker: Marker,
    rows: Vec<RowChange>,
    steps: Vec<Step>,
}

impl<F: Fn(&[u8]) -> Result<Option<u64>, IndexError>> Judge<F> {
    /// `stands` says which version time a key's row has, if one stands.
    pub(crate) fn new(marker: Marker, stands: F) -> Self {
        Self { stands, overlay: HashMap::new(), marker, rows: Vec::new(), steps: Vec::new() }
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
        self.take(&entry.rows)?;
        Ok(Outcome::Applied)
    }

    fn take(&mut self, rows: &[RowChange]) -> Result<(), IndexError> {
        if self.rows.len() + rows.len() > MAX_ENTRY_ROWS {
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
        let rows = std::mem::take(&mut self.rows);
        self.steps.push(Step { rows, marker: self.marker.clone() });
    }

    /// What to write, in order, and the marker after it.
    pub(crate) fn finish(mut self) -> (Vec<Step>, Marker) {
        self.step();
        (self.steps, self.marker)
    }
}
