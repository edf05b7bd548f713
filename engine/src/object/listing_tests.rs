//! Listings against a walk over every name, and named edges.

use std::cell::Cell;
use std::collections::BTreeSet;

use super::*;

#[derive(Default)]
struct Set {
    names: BTreeSet<String>,
    read: Cell<usize>,
}

impl Sorted for Set {
    type Row = String;

    fn scan(&self, range: Range) -> Box<dyn Iterator<Item = Result<(String, String)>> + '_> {
        let inside = move |name: &&String| {
            range.from.as_ref().is_none_or(|from| name.as_bytes() >= from.as_slice())
                && range.to.as_ref().is_none_or(|to| name.as_bytes() < to.as_slice())
        };
        let mut names: Vec<&String> = self.names.iter().filter(inside).collect();
        if range.reverse {
            names.reverse();
        }
        Box::new(names.into_iter().map(|name| {
            self.read.set(self.read.get() + 1);
            Ok((name.clone(), name.clone()))
        }))
    }
}

fn set(names: &[&str]) -> Set {
    Set { names: names.iter().map(|n| (*n).to_owned()).collect(), read: Cell::new(0) }
}

fn shown(entries: Vec<Entry<String>>) -> Vec<String> {
    let text = |entry| match entry {
        Entry::Row(name) => name,
        Entry::Subdir(name) => format!("[{name}]"),
    };
    entries.into_iter().map(text).collect()
}

fn list(set: &Set, listing: &Listing) -> Vec<String> {
    shown(page(set, listing).unwrap())
}

/// The same rules, spelt as one walk over all names.
fn slow(set: &Set, l: &Listing) -> Vec<String> {
    let mut names: Vec<&str> = set.names.iter().map(String::as_str).collect();
    let (mut low, mut high) = (l.marker.as_str(), l.end_marker.as_str());
    if l.reverse {
        names.reverse();
        (low, high) = (high, low);
    }
    let mut out: Vec<String> = Vec::new();
    let mut last = None;
    for name in names {
        let inside = (low.is_empty() || name > low) && (high.is_empty() || name < high);
        let Some(rest) = name.strip_prefix(&l.prefix).filter(|_| inside) else { continue };
        match rest.find(&l.delimiter).filter(|_| !l.delimiter.is_empty()) {
            None => out.push(name.to_owned()),
            Some(at) => {
                let dir = &name[..l.prefix.len() + at + l.delimiter.len()];
                if dir != low && last != Some(dir) {
                    out.push(format!("[{dir}]"));
                }
                last = Some(dir);
            }
        }
    }
    out.truncate(l.limit);
    out
}

#[test]
fn pages_agree_with_a_full_walk() {
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = |n: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) % n
    };
    for round in 0..4000 {
        let mut word = |most: u64| -> String {
            (0..next(most + 1))
                .map(|_| ["a", "b", "/", "-", "é"][usize::try_from(next(5)).unwrap()])
                .collect()
        };
        let names: BTreeSet<String> = (0..20).map(|_| word(6)).filter(|n| !n.is_empty()).collect();
        let set = Set { names, read: Cell::new(0) };
        let (prefix, marker, end_marker, delimiter) = (word(2), word(4), word(4), word(2));
        let limit = usize::try_from(next(12)).unwrap();
        let listing =
            Listing { prefix, delimiter, marker, end_marker, limit, reverse: next(2) == 0, path: None };
        assert_eq!(
            list(&set, &listing),
            slow(&set, &listing),
            "round {round}: {listing:?} of {:?}",
            set.names
        );
    }
}

#[test]
fn names_under_a_rolled_up_name_are_not_walked() {
    let mut set = set(&["z"]);
    set.names.extend((0..10_000).map(|n| format!("dir/{n:05}")));
    for reverse in [false, true] {
        set.read.set(0);
        let listing = Listing { delimiter: "/".into(), limit: 100, reverse, ..Listing::default() };
        assert_eq!(list(&set, &listing).len(), 2);
        assert!(set.read.get() <= 4, "{} names read", set.read.get());
    }
}

#[test]
fn path_shows_direct_children_only() {
    let set = set(&["a", "a/", "a/b", "a/b/", "a/b/c", "a/d", "a0", "e"]);
    let listing =
        |path: &str, reverse| Listing { path: Some(path.into()), limit: 100, reverse, ..Listing::default() };
    assert_eq!(list(&set, &listing("a", false)), ["a/b", "a/b/", "a/d"]);
    assert_eq!(list(&set, &listing("a/", false)), ["a/b", "a/b/", "a/d"]);
    assert_eq!(list(&set, &listing("a", true)), ["a/d", "a/b/", "a/b"]);
    assert_eq!(list(&set, &listing("", false)), ["a", "a/", "a0", "e"]);
    assert_eq!(list(&set, &listing("a/b", false)), ["a/b/c"]);
}

#[test]
fn a_page_that_begins_at_a_rolled_up_name_does_not_repeat_it() {
    let set = set(&["a/1", "a/2", "b"]);
    let listing = Listing { delimiter: "/".into(), marker: "a/".into(), limit: 9, ..Listing::default() };
    assert_eq!(list(&set, &listing), ["b"]);
}

#[test]
fn nothing_is_asked_and_nothing_comes() {
    let set = set(&["a"]);
    assert!(list(&set, &Listing::default()).is_empty());
    let crossed = Listing { marker: "x".into(), end_marker: "b".into(), limit: 9, ..Listing::default() };
    assert!(list(&set, &crossed).is_empty());
}
