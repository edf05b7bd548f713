//! Counting the lines of a range while rows change.
//!
//! Lines are counted on a snapshot of the index, at leisure; what changes meanwhile is followed where entries are applied.
//!
//! Invariant: the count begins between two entries: what its snapshot has not, is followed.
//! Invariant: nothing is counted, and nothing looked up for it, where no count is under way.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::judge::Step;
use super::territory::Territory;
use crate::catalog::{self, ListingValue, Totals};
use crate::index::{Index, IndexError, Range, Table};

/// A count that may be under way.
#[derive(Default)]
pub(crate) struct Count {
    applying: tokio::sync::Mutex<()>,
    followed: Mutex<Option<Followed>>,
}

struct Followed {
    lines: Range,
    objects: i64,
    bytes: i64,
}

fn broken(e: catalog::BadValue) -> IndexError {
    IndexError::Store { verb: "decode", reason: e.to_string() }
}

fn size(value: Option<&[u8]>) -> Result<Option<u64>, IndexError> {
    value.map(ListingValue::size_of).transpose().map_err(broken)
}

/// Adds up lines.
pub(crate) fn add(totals: &mut Totals, value: &[u8]) -> Result<(), IndexError> {
    let row = catalog::decode_row(value)?;
    totals.objects += 1;
    totals.bytes = totals.bytes.wrapping_add(size(Some(&row.value))?.unwrap_or(0));
    Ok(())
}

impl Count {
    fn lock(&self) -> MutexGuard<'_, Option<Followed>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held while entries are applied, and while a count begins.
    pub(crate) async fn applying(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.applying.lock().await
    }

    /// From now on changes of these lines are followed. To be called while nothing is applied.
    pub(crate) fn begin(&self, lines: Range) {
        *self.lock() = Some(Followed { lines, objects: 0, bytes: 0 });
    }

    /// Ends a count: what changed since its beginning, added to `counted`.
    pub(crate) fn end(&self, counted: &Totals) -> Option<Totals> {
        let Followed { objects, bytes, .. } = self.lock().take()?;
        let objects = counted.objects.wrapping_add_signed(objects);
        Some(Totals { objects, bytes: counted.bytes.wrapping_add_signed(bytes), ..Totals::default() })
    }

    /// Follows what is about to be written.
    pub(crate) fn follow(
        &self,
        index: &dyn Index,
        territory: &Territory,
        steps: &[Step],
    ) -> Result<(), IndexError> {
        let mut guard = self.lock();
        let Some(followed) = guard.as_mut() else { return Ok(()) };
        let mut sizes: HashMap<&[u8], Option<u64>> = HashMap::new();
        for row in steps.iter().flat_map(|step| &step.rows) {
            let Range { from, to, .. } = &followed.lines;
            let key = row.key.as_slice();
            if from.as_ref().is_some_and(|from| key < from.as_slice())
                || to.as_ref().is_some_and(|to| key >= to.as_slice())
            {
                continue;
            }
            let before = match sizes.get(key) {
                Some(before) => *before,
                None => match index.get(Table::Rows, &territory.place(key))? {
                    Some(bytes) => size(Some(&catalog::decode_row(&bytes)?.value))?,
                    None => None,
                },
            };
            let after = size(row.value.as_deref())?;
            sizes.insert(key, after);
            followed.objects += i64::from(after.is_some()) - i64::from(before.is_some());
            let more = after.unwrap_or(0).wrapping_sub(before.unwrap_or(0)).cast_signed();
            followed.bytes = followed.bytes.wrapping_add(more);
        }
        Ok(())
    }
}
