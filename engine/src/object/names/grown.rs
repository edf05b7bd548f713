//! Containers that grew: which ones may have become too large for their group.
//!
//! Invariant: only what lines were made of is looked at, and no more than [`MOST`] containers at a time: nothing is walked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Decider, NewLine};
use crate::object::group::TotalsOf;
use crate::object::{IndexPolicy, ObjectPath, Result};

/// Containers that are remembered until somebody looks; others come again while they grow.
const MOST: usize = 1024;

/// A container with many lines in one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grown {
    /// Its account.
    pub account: String,
    /// Its name.
    pub container: String,
    /// Its lines in the group.
    pub objects: u64,
}

/// Account and name of containers, by their numbers.
type Containers = HashMap<u64, (Arc<str>, Arc<str>)>;

/// Containers that lines were made in since somebody looked.
#[derive(Debug, Default)]
pub(super) struct Growing(Mutex<Containers>);

impl Growing {
    /// A line was made.
    pub(super) fn note(&self, path: &ObjectPath, line: &NewLine) {
        if line.value.is_none() {
            return;
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < MOST {
            let names = || (Arc::clone(&path.account), Arc::clone(&path.container));
            known.entry(line.container).or_insert_with(names);
        }
    }

    fn take(&self) -> Containers {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Decider {
    /// Of the containers that lines were made in since the last look, the one with the most lines here, if they are more than this.
    pub(super) fn grown(&self, lines: u64) -> Result<Option<Grown>> {
        let mut most: Option<Grown> = None;
        for (id, (account, container)) in self.growing.take() {
            if self.is_eventual(id, &account, &container)? {
                continue;
            }
            let objects = self.group.totals(TotalsOf::Container(id))?.objects;
            if objects > most.as_ref().map_or(lines, |most| most.objects) {
                most =
                    Some(Grown { account: account.to_string(), container: container.to_string(), objects });
            }
        }
        Ok(most)
    }

    /// What is eventual is never divided, however large it is.
    fn is_eventual(&self, id: u64, account: &str, container: &str) -> Result<bool> {
        let row = self.container_row(account, container)?;
        Ok(row.is_some_and(|(_, value)| value.id == id && value.index == IndexPolicy::Eventual))
    }
}
