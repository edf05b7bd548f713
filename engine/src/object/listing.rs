//! Listings: prefix, delimiter, markers, direction, as a walk over sorted names.
//!
//! The rules are Swift's (container listings of its API, and what its container server does at the edges):
//! a rolled-up name that equals the bound before the walk is not shown again, and `path=` shows direct children only.
//!
//! Invariant: names under a rolled-up name are skipped by a seek, never walked.
//! Invariant: memory is bounded by the limit.

use super::{Entry, Listing, Result};
use crate::index::{Range, after_prefix};

/// A sorted collection of names to walk.
pub(crate) trait Sorted {
    /// What a name stands for.
    type Row;
    /// Names of a range, without their common prefix in the index.
    fn scan(&self, range: Range) -> Box<dyn Iterator<Item = Result<(String, Self::Row)>> + '_>;
}

/// Bounds of what is still to be walked. `from` inclusive, `to` exclusive.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bounds {
    from: Vec<u8>,
    to: Option<Vec<u8>>,
}

/// What becomes of a name.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Show,
    /// Not shown; the walk goes on behind it.
    Omit,
    /// Rolled up into this prefix; the walk goes on behind all names under it.
    Roll(String),
    /// Under this prefix, which is not shown either.
    Skip(String),
}

struct Plan<'a> {
    prefix: String,
    delimiter: &'a str,
    path: bool,
    bounds: Bounds,
    /// The bound before the walk: a rolled-up name equal to it was shown on the page before.
    shown: &'a str,
    reverse: bool,
}

fn larger(a: Vec<u8>, b: Vec<u8>) -> Vec<u8> {
    if a >= b { a } else { b }
}

fn plan(listing: &Listing) -> Plan<'_> {
    let (prefix, delimiter) = match listing.path.as_deref() {
        None => (listing.prefix.clone(), listing.delimiter.as_str()),
        Some("") => (String::new(), "/"),
        Some(path) => (format!("{}/", path.trim_end_matches('/')), "/"),
    };
    let (low, high) = if listing.reverse {
        (&listing.end_marker, &listing.marker)
    } else {
        (&listing.marker, &listing.end_marker)
    };
    // Just behind the marker: the marker and a zero byte.
    let behind = if low.is_empty() { Vec::new() } else { [low.as_bytes(), &[0]].concat() };
    let from = larger(behind, prefix.as_bytes().to_vec());
    let end = if prefix.is_empty() { None } else { after_prefix(prefix.as_bytes()) };
    let high = (!high.is_empty()).then(|| high.as_bytes().to_vec());
    let to = match (end, high) {
        (Some(end), Some(high)) => Some(end.min(high)),
        (end, high) => end.or(high),
    };
    let bounds = Bounds { from, to };
    Plan { prefix, delimiter, path: listing.path.is_some(), bounds, shown: low, reverse: listing.reverse }
}

impl Plan<'_> {
    fn fate(&self, name: &str) -> Fate {
        if self.delimiter.is_empty() {
            return Fate::Show;
        }
        if self.path && name == self.prefix {
            return Fate::Omit;
        }
        let rest = name.get(self.prefix.len()..).unwrap_or("");
        let Some(at) = rest.find(self.delimiter) else { return Fate::Show };
        let end = self.prefix.len() + at + self.delimiter.len();
        let rolled = name.get(..end).unwrap_or(name).to_owned();
        match self.path {
            true if end == name.len() => Fate::Show,
            true => Fate::Skip(rolled),
            false => Fate::Roll(rolled),
        }
    }

    /// Goes on behind everything under `rolled`. A pseudo-directory's own marker object is no name under it for `path=`.
    fn seek_past(&mut self, rolled: &str) {
        match (self.reverse, self.path) {
            (false, _) => {
                let next = after_prefix(rolled.as_bytes());
                match next {
                    Some(next) => self.bounds.from = next,
                    None => self.bounds.to = Some(Vec::new()),
                }
            }
            (true, false) => self.bounds.to = Some(rolled.as_bytes().to_vec()),
            (true, true) => self.bounds.to = Some([rolled.as_bytes(), &[0]].concat()),
        }
    }

    fn finished(&self) -> bool {
        self.bounds.to.as_ref().is_some_and(|to| *to <= self.bounds.from)
    }
}

/// One page of a listing.
pub(crate) fn page<N: Sorted>(names: &N, listing: &Listing) -> Result<Vec<Entry<N::Row>>> {
    let mut plan = plan(listing);
    let mut entries = Vec::new();
    // Each turn walks until a name is rolled up or the range ends.
    while entries.len() < listing.limit && !plan.finished() {
        let Bounds { from, to } = plan.bounds.clone();
        let range = Range { from: Some(from), to, reverse: plan.reverse };
        let mut rolled_up = None;
        for pair in names.scan(range) {
            let (name, row) = pair?;
            match plan.fate(&name) {
                Fate::Show => entries.push(Entry::Row(row)),
                Fate::Omit => {}
                Fate::Skip(rolled) => {
                    rolled_up = Some(rolled);
                    break;
                }
                Fate::Roll(rolled) => {
                    if rolled != plan.shown {
                        entries.push(Entry::Subdir(rolled.clone()));
                    }
                    rolled_up = Some(rolled);
                    break;
                }
            }
            if entries.len() == listing.limit {
                return Ok(entries);
            }
        }
        match rolled_up {
            Some(rolled) => plan.seek_past(&rolled),
            None => break,
        }
    }
    Ok(entries)
}

#[cfg(test)]
#[path = "listing_tests.rs"]
mod tests;
