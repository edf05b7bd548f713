//! Where an audit is, as it is noted: a restart goes on there.
//!
//! A page of the index is looked at in the order of the disk, not of its keys. So the note says behind which key the page begins, and up to
//! which place on the disk all of it was looked at. Later the page is walked again, and what lies before that place is left out, if it
//! lay there already when the page was first walked: in a segment that got nothing any more.
//!
//! Invariant: what was written or moved since the page was walked is looked at, wherever it lies now.

use crate::catalog::Grip;
use crate::disk::{DiskHandle, Location};
use crate::index::Table;

/// In the first byte of a note: the rest tells of a page, too.
const IN_PAGE: u8 = 0x80;
const TABLES: [Table; 3] = [Table::Objects, Table::Rows, Table::Blocks];

/// Where in the walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) table: Table,
    pub(super) after: Vec<u8>,
    /// How far the page behind that key was looked at.
    pub(super) reached: Option<Reached>,
}

/// A part of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reached {
    /// The page's last key.
    pub(super) last: Vec<u8>,
    /// Segment and offset: what lies before was looked at.
    pub(super) before: (u32, u32),
    /// When the page was walked, segments that were opened before this one had all that they will ever have.
    pub(super) settled: u64,
}

impl Place {
    pub(super) fn start() -> Self {
        Self::of(Table::Objects)
    }

    /// At the beginning of a table.
    pub(super) fn of(table: Table) -> Self {
        Self { table, after: Vec::new(), reached: None }
    }

    /// Moves past a page.
    pub(super) fn pass(&mut self, last: Vec<u8>) {
        (self.after, self.reached) = (last, None);
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let table = self.table as u8;
        let Some(Reached { last, before, settled }) = &self.reached else {
            return [&[table], self.after.as_slice()].concat();
        };
        let mut out = vec![table | IN_PAGE];
        out.extend_from_slice(&before.0.to_le_bytes());
        out.extend_from_slice(&before.1.to_le_bytes());
        out.extend_from_slice(&settled.to_le_bytes());
        out.extend_from_slice(&u32::try_from(last.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(last);
        out.extend_from_slice(&self.after);
        out
    }

    /// `None`: it is no place that this version knows.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (first, rest) = bytes.split_first()?;
        let table = TABLES.into_iter().find(|table| *table as u8 == first & !IN_PAGE)?;
        if first & IN_PAGE == 0 {
            return Some(Self { table, after: rest.to_vec(), reached: None });
        }
        let (segment, rest) = rest.split_first_chunk()?;
        let (offset, rest) = rest.split_first_chunk()?;
        let (settled, rest) = rest.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (last, after) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        let before = (u32::from_le_bytes(*segment), u32::from_le_bytes(*offset));
        let reached = Reached { last: last.to_vec(), before, settled: u64::from_le_bytes(*settled) };
        Some(Self { table, after: after.to_vec(), reached: Some(reached) })
    }
}

/// Where a place lies in the order in which a page is looked at.
pub(super) fn order(at: Location) -> (u32, u32) {
    (at.segment, at.offset)
}

impl Reached {
    /// Whether this was looked at already.
    pub(super) fn covers(&self, disk: &DiskHandle, grip: &Grip) -> bool {
        let at = grip.head.at;
        order(at) < self.before && disk.opened(at.segment).is_some_and(|opened| opened < self.settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_noted_and_read_back() {
        for table in TABLES {
            for after in [&b""[..], b"some key"] {
                let plain = Place { table, after: after.to_vec(), reached: None };
                assert_eq!(Place::decode(&plain.encode()), Some(plain.clone()));
                let reached = Reached { last: b"to".to_vec(), before: (7, 4096), settled: 9 };
                let within = Place { reached: Some(reached), ..plain };
                let noted = within.encode();
                assert_eq!(Place::decode(&noted), Some(within));
                let shortest = noted.len() - after.len();
                assert!((0..shortest).all(|length| Place::decode(&noted[..length]).is_none()));
            }
        }
        assert_eq!(Place::decode(&[99]), None);
    }
}
