//! Which rows are a group's, and where they lie on a disk.
//!
//! A group is its space, without the ranges of lines that it gave away. One that took a range over where it lay has that too, in
//! the space that the lines were written in; a voter that was filled by a snapshot has it in the group's own.
//!
//! Invariant: of two groups on a disk none has a key of the other's.
//! Invariant: what a group gave away it has again only when it has taken it back, and on a disk only when nothing is left there of
//! what the other group made of it ([`super::back`]).

use super::types::{Given, Part};
use crate::catalog::{self, GroupId, group_prefix, lines};
use crate::index::{Range, after_prefix};

/// Lines that a group has in another one's space on this disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    /// The space.
    pub(crate) space: GroupId,
    /// The container.
    pub(crate) id: u64,
    /// The first name.
    pub(crate) from: String,
    /// The name behind the last.
    pub(crate) to: Option<String>,
}

impl Host {
    fn lines(&self) -> Range {
        lines(self.id, &self.from, self.to.as_deref())
    }

    /// Keys of the lines in the index.
    pub(crate) fn keys(&self) -> Range {
        prefixed(&group_prefix(self.space), self.lines())
    }
}

/// The rows of a group on a disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Territory {
    pub(crate) space: GroupId,
    pub(crate) host: Option<Host>,
    pub(crate) given: Vec<Given>,
    /// What was taken back, and may still be unsettled on this disk: nobody reads it.
    pub(crate) returning: Vec<Given>,
    /// All that was ever taken back.
    pub(crate) back: Vec<Given>,
    /// Of the container of which it took a range over.
    pub(crate) part: Option<Part>,
}

fn within(range: &Range, key: &[u8]) -> bool {
    range.from.as_ref().is_none_or(|from| key >= from.as_slice())
        && range.to.as_ref().is_none_or(|to| key < to.as_slice())
}

fn prefixed(prefix: &[u8], range: Range) -> Range {
    let whole = |key: Vec<u8>| [prefix, &key].concat();
    let from = whole(range.from.unwrap_or_default());
    let to = match range.to {
        Some(to) => Some(whole(to)),
        None => after_prefix(prefix),
    };
    Range { from: Some(from), to, reverse: range.reverse }
}

/// What two ranges have in common, in the direction of the second.
fn both(one: &Range, other: &Range) -> Option<Range> {
    let from = one.from.clone().max(other.from.clone());
    let to = match (&one.to, &other.to) {
        (Some(one), Some(other)) => Some(one.min(other).clone()),
        (one, other) => one.clone().or_else(|| other.clone()),
    };
    let empty = to.as_ref().is_some_and(|to| from.as_ref().is_some_and(|from| from >= to));
    (!empty).then_some(Range { from, to, reverse: other.reverse })
}

impl Territory {
    /// The space that a row of the group lies in.
    pub(crate) fn space_of(&self, key: &[u8]) -> GroupId {
        self.host.as_ref().filter(|host| within(&host.lines(), key)).map_or(self.space, |host| host.space)
    }

    /// The key of a row in the index.
    pub(crate) fn place(&self, key: &[u8]) -> Vec<u8> {
        [&group_prefix(self.space_of(key))[..], key].concat()
    }

    /// Who has taken a row over.
    pub(crate) fn moved(&self, key: &[u8]) -> Option<GroupId> {
        self.away().find(|given| given.has(key)).map(|given| given.group)
    }

    /// Ranges whose lines are not its own, or not yet again.
    pub(crate) fn away(&self) -> impl Iterator<Item = &Given> {
        self.given.iter().chain(&self.returning)
    }

    /// Where the name behind the last one of a container is, for what the group has of it: `None` at the container's end.
    pub(crate) fn end_of(&self, id: u64) -> Option<String> {
        let given = self.given.iter().filter(|given| given.id == id).map(|given| given.from.clone()).min();
        given.or_else(|| self.part.as_ref().filter(|part| part.id == id)?.value.to.clone())
    }

    /// Where the group's rows of a range lie in the index, in the range's direction, and how long the prefixes of their keys are.
    pub(crate) fn scans(&self, asked: &Range) -> Vec<(usize, Range)> {
        let own = if self.space == catalog::FIRST_GROUP {
            catalog::row_ranges(self.space)
        } else {
            vec![Range::default()]
        };
        let hosted: Vec<(GroupId, Range)> = self.host.iter().map(|host| (host.space, host.lines())).collect();
        let hosts: Vec<Range> = hosted.iter().map(|(_, lines)| lines.clone()).collect();
        let holes: Vec<Range> = self.away().map(Given::lines).collect();
        let mut pieces: Vec<(GroupId, Range)> = catalog::without(own, &hosts)
            .into_iter()
            .map(|range| (self.space, range))
            .chain(hosted)
            .collect();
        pieces.sort_by(|(_, one), (_, other)| one.from.cmp(&other.from));
        let mut scans = Vec::new();
        for (space, piece) in pieces {
            let prefix = group_prefix(space);
            let left =
                catalog::without(vec![piece], &holes).into_iter().filter_map(|range| both(&range, asked));
            scans.extend(left.map(|range| (prefix.len(), prefixed(&prefix, range))));
        }
        if asked.reverse {
            scans.reverse();
        }
        scans
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Belongs, listing_key};

    fn given(from: &str, to: Option<&str>) -> Given {
        let of = Belongs { account: "a".to_owned(), container: "c".to_owned(), policy: 0 };
        Given { id: 7, from: from.to_owned(), to: to.map(str::to_owned), group: 9, of, back: None }
    }

    #[test]
    fn a_parent_is_its_space_without_what_it_gave_away() {
        for space in [1, 5] {
            let parent = Territory { space, given: vec![given("m", None)], ..Territory::default() };
            assert_eq!(parent.moved(&listing_key(7, "m")), Some(9));
            assert_eq!(parent.moved(&listing_key(7, "l\u{ff}")), None);
            assert_eq!(parent.moved(&listing_key(8, "z")), None);
            assert_eq!(parent.end_of(7), Some("m".to_owned()));
            let all = parent.scans(&Range::default());
            let has =
                |name, id| all.iter().any(|(_, range)| within(range, &parent.place(&listing_key(id, name))));
            assert!(has("a", 7) && has("z", 8) && !has("m", 7) && !has("z", 7));
        }
    }

    #[test]
    fn a_child_has_its_lines_where_they_lay_and_all_else_in_its_own_space() {
        let host = Host { space: 1, id: 7, from: "m".to_owned(), to: Some("t".to_owned()) };
        let child = Territory {
            space: 9,
            host: Some(host),
            given: vec![given("p", Some("t"))],
            ..Territory::default()
        };
        assert_eq!(child.place(&listing_key(7, "n")), listing_key(7, "n"));
        assert_eq!(child.place(b"kt"), [&group_prefix(9)[..], b"kt"].concat());
        let scans = child.scans(&Range::default());
        let froms: Vec<_> = scans.iter().map(|(_, range)| range.from.clone().unwrap()).collect();
        let own = group_prefix(9);
        let behind = [&own[..], &listing_key(7, "t")].concat();
        assert_eq!(froms, [own, listing_key(7, "m"), behind]);
        assert_eq!(scans[1].1.to, Some(listing_key(7, "p")));
        let reverse = child.scans(&Range { reverse: true, ..Range::default() });
        assert_eq!(reverse.len(), 3);
        assert_eq!(reverse[1].1.from, Some(listing_key(7, "m")));
        let few = child.scans(&Range {
            from: Some(listing_key(7, "n")),
            to: Some(listing_key(7, "o")),
            reverse: false,
        });
        assert_eq!(few.len(), 1);
    }
}
