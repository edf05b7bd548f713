//! Groups that take ranges of lines over from others: their numbers, and who their parents are, as rows of the control group.
//!
//! How a container that grew comes to be in two groups, and who does what:
//!
//! 1. The parent's leader sees that the container has too many lines, and asks for a number: row `kc`, child to parent. The
//!    leader of the control group writes it if nobody has the number and the parent has no other that is unused.
//! 2. The parent's leader proposes the entry that gives the range away, with that number. Voters of the parent found the child in
//!    the same group of records that applies the entry, and open it at once; the parent's leader calls the child's election.
//! 3. The child's leader asks for the row of its seats, `kg`: its voters, which are the parent's at the entry's place in the log,
//!    each with the disk on which it has the parent. From then on its seats are moved like those of any group.
//!
//! And how they come to be in one again: when the parent's leader has taken the lines back (a child that has had none for long), it says
//! so in row `kc`: the child is over. Nodes that have anything of it leave it then, without asking anybody. Its number serves no more.
//!
//! A crash before 2 leaves a number that the parent's next leader uses; one before 3 leaves a child that works, whose leader, or
//! the next, asks again. Every message may be lost or come twice: what is asked for again and is so changes nothing.
//!
//! Invariant: a number has one parent, for ever, and gives one range its group: the parent's log says which.
//! Invariant: a node opens a child of which it has nothing only when no ancestor of the child is here, or is to be here, that has
//! not applied what makes it: opened before, it would be empty where it is about to be founded.
//! Invariant: before a child has a row of its seats its voters are what the entry made them.

use std::collections::{BTreeMap, BTreeSet};

use quarry_engine::disk::format::bytes::Put;

use super::seating::{self, Seat};
use super::state::{BadState, KeyValue, MAX_INDEX_GROUPS, State, VERSION, key, reader};

/// Tag of the rows.
pub(super) const TAG: u8 = b'c';
/// The greatest number of a group.
const MAX_NUMBER: u32 = 65_535;

/// The parents of groups that took ranges over, or are about to.
pub(crate) type Children = BTreeMap<u32, u32>;

/// Behind the parent, when the child is over.
const OVER: u8 = 1;

/// The row of a child.
pub(crate) fn row(child: u32, parent: u32) -> KeyValue {
    let mut value = vec![VERSION];
    value.put_varint(u64::from(parent));
    (key(TAG, &child.to_be_bytes()), value)
}

/// The row of a child whose lines its parent has taken back.
pub(crate) fn row_over(child: u32, parent: u32) -> KeyValue {
    let (key, mut value) = row(child, parent);
    value.push(OVER);
    (key, value)
}

/// What a row says of its child: the parent, and whether the child is over.
fn parse(value: &[u8]) -> Result<(u32, bool), BadState> {
    let mut r = reader(value)?;
    let parent = u32::try_from(r.varint()?).map_err(|_| BadState::Field("parent"))?;
    match r.rest() {
        [] => Ok((parent, false)),
        [OVER] => Ok((parent, true)),
        _ => Err(BadState::Field("end of a child")),
    }
}

/// Takes a row with this key behind the tag.
pub(super) fn take(state: &mut State, rest: &[u8], value: &[u8]) -> Result<(), BadState> {
    let child = rest.try_into().map_err(|_| BadState::Field("number of a child"))?;
    let (child, (parent, over)) = (u32::from_be_bytes(child), parse(value)?);
    state.children.insert(child, parent);
    if over {
        state.over.insert(child);
    }
    Ok(())
}

/// A number that no group has: greater than all, and than those of groups that accounts are divided into.
pub(crate) fn next_number(state: &State) -> Option<u32> {
    let last = state.children.keys().chain(state.groups.keys()).copied().max().unwrap_or(0);
    Some(last.max(MAX_INDEX_GROUPS) + 1).filter(|next| *next <= MAX_NUMBER)
}

/// The number that a parent has and did not use; `given`: those that it used.
pub(crate) fn spare(state: &State, parent: u32, given: &BTreeSet<u32>) -> Option<u32> {
    let own = state.children.iter().filter(|(_, of)| **of == parent).map(|(child, _)| *child);
    own.into_iter().find(|child| !given.contains(child) && is_unused(state, *child))
}

fn is_unused(state: &State, child: u32) -> bool {
    !state.groups.contains_key(&child) && !state.over.contains(&child)
}

/// A group's parent, its parent, and so on, each behind its child.
pub(crate) fn lineage(state: &State, group: u32) -> Vec<(u32, u32)> {
    let mut line = Vec::new();
    let mut child = group;
    while let Some(parent) = state.children.get(&child).copied().filter(|parent| *parent < child) {
        line.push((child, parent));
        child = parent;
    }
    line
}

/// What a node has of a group's parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parent {
    /// Nothing, and it shall have nothing.
    Elsewhere,
    /// Nothing yet.
    Coming,
    /// It is open, and has applied what makes the child, or not.
    Here { gave: bool },
}

/// Whether a node may open a group of which it has nothing. `of`: what it has of the parent of a child.
pub(crate) fn may_open(lineage: &[(u32, u32)], of: impl Fn(u32, u32) -> Parent) -> bool {
    lineage.iter().all(|(child, parent)| match of(*child, *parent) {
        Parent::Elsewhere | Parent::Here { gave: true } => true,
        Parent::Coming | Parent::Here { gave: false } => false,
    })
}

/// Whether a row with this key may be written as a node wishes; `None`: it is about something else.
pub(crate) fn may_write(state: &State, key: &[u8], value: Option<&[u8]>) -> Option<Result<(), String>> {
    let (tag, number) = key.strip_prefix(b"k")?.split_first()?;
    let number = u32::from_be_bytes(number.try_into().ok()?);
    match *tag {
        TAG => Some(judge_child(state, number, value)),
        b'g' => Some(judge_seats(state, number, value)),
        _ => None,
    }
}

fn judge_child(state: &State, child: u32, value: Option<&[u8]>) -> Result<(), String> {
    let value = value.ok_or("a group's number is never given back")?;
    let (parent, over) = parse(value).map_err(|bad| bad.to_string())?;
    let (known, was_over) = (state.children.get(&child) == Some(&parent), state.over.contains(&child));
    match (known, was_over, over) {
        (true, false, _) | (true, true, true) => return Ok(()),
        (true, true, false) => return Err(format!("index group {child} is over")),
        (false, _, true) => return Err(format!("{child} is no child of index group {parent}")),
        (false, _, false) => {}
    }
    if !state.groups.contains_key(&parent) {
        return Err(format!("there is no index group {parent}"));
    }
    if next_number(state) != Some(child) {
        return Err(format!("{child} is not the next number of a group"));
    }
    let unused = |(known, of): (&u32, &u32)| *of == parent && is_unused(state, *known);
    if state.children.iter().any(unused) {
        return Err(format!("index group {parent} has a number that it did not use"));
    }
    Ok(())
}

/// The first seats of a child, or another disk of one node's.
fn judge_seats(state: &State, group: u32, value: Option<&[u8]>) -> Result<(), String> {
    let seats = seating::decode(value.ok_or("a group's seats stay")?).map_err(|bad| bad.to_string())?;
    let owned = |seat: &Seat| state.devices.get(&seat.device).is_some_and(|device| device.node == seat.node);
    let same = |known: &[Seat]| {
        let changed = known.iter().zip(&seats).filter(|(one, other)| one != other);
        let nodes = known.iter().zip(&seats).all(|(one, other)| one.node == other.node);
        known.len() == seats.len() && nodes && changed.count() <= 1
    };
    if !seats.iter().all(owned) || seating::nodes(&seats).len() != seats.len() {
        return Err("a seat is a disk of its node, one of each node".to_owned());
    }
    match state.groups.get(&group) {
        None if state.children.contains_key(&group) && !state.over.contains(&group) => Ok(()),
        Some(known) if same(known) => Ok(()),
        _ => Err(format!("who votes in index group {group} is not for a node to say")),
    }
}

#[cfg(test)]
mod tests {
    use quarry_engine::disk::format::record::DeviceId;
    use quarry_engine::net::NodeId;
    use quarry_ring::Class;

    use super::super::state::{Device, Wanted};
    use super::*;

    fn seat(node: u8, device: u8) -> Seat {
        Seat { node: NodeId([node; 16]), device: DeviceId([device; 16]) }
    }

    fn state() -> State {
        let mut state = State::default();
        for (node, device) in [(1, 1), (1, 11), (2, 2), (3, 3)] {
            let (region, zone, class, wanted) = (0, 0, Class::Hdd, Wanted::Share);
            let device_row =
                Device { node: NodeId([node; 16]), bytes: 1, region, zone, class, wanted, away: false };
            state.devices.insert(DeviceId([device; 16]), device_row);
        }
        state.groups.insert(1, vec![seat(1, 1), seat(2, 2), seat(3, 3)]);
        state.groups.insert(2, vec![seat(1, 1), seat(2, 2), seat(3, 3)]);
        state
    }

    fn wish(state: &State, (key, value): KeyValue) -> bool {
        may_write(state, &key, Some(&value)).unwrap().is_ok()
    }

    #[test]
    fn rows_have_these_bytes_for_ever_and_come_back() {
        let (key, value) = row(1025, 300);
        assert_eq!(
            (hex::encode(&key), hex::encode(&value)),
            ("6b6300000401".to_owned(), "01ac02".to_owned())
        );
        let mut state = State::default();
        take(&mut state, &key[2..], &value).unwrap();
        assert_eq!((&state.children, state.over.len()), (&[(1025, 300)].into(), 0));
        assert!(take(&mut state, &key[3..], &value).is_err());
        assert!(take(&mut state, &key[2..], &value[..1]).is_err());
        let (same, over) = row_over(1025, 300);
        assert_eq!((same, hex::encode(&over)), (key.clone(), "01ac0201".to_owned()));
        take(&mut state, &key[2..], &over).unwrap();
        assert_eq!((state.children, state.over), ([(1025, 300)].into(), [1025].into()));
    }

    #[test]
    fn a_child_that_is_over_stays_so_and_its_number_serves_no_more() {
        let mut state = state();
        assert!(!wish(&state, row_over(1025, 1)), "nobody has it yet");
        state.children.insert(1025, 1);
        assert!(!wish(&state, row_over(1025, 2)), "it is another's");
        assert!(wish(&state, row_over(1025, 1)));
        state.over.insert(1025);
        assert!(wish(&state, row_over(1025, 1)), "asked again");
        assert!(!wish(&state, row(1025, 1)));
        assert_eq!(spare(&state, 1, &BTreeSet::new()), None, "it was used");
        assert!(wish(&state, row(1026, 1)), "the next number is free");
        let seats = (seating::group_key(1025), seating::encode(&[seat(1, 1)]));
        assert!(!wish(&state, seats), "it has no voters any more");
    }

    #[test]
    fn a_number_is_given_once_and_a_parent_has_one_that_is_unused() {
        let mut state = state();
        assert_eq!(next_number(&state), Some(1025));
        assert!(!wish(&state, row(1026, 1)), "it is not the next");
        assert!(!wish(&state, row(7, 1)), "accounts may be divided into as many groups");
        assert!(!wish(&state, row(1025, 9)), "no such parent");
        assert!(wish(&state, row(1025, 1)));
        state.children.insert(1025, 1);
        assert!(wish(&state, row(1025, 1)), "asked again");
        assert!(!wish(&state, row(1025, 2)), "it is another's");
        assert!(!wish(&state, row(1026, 1)), "the first is unused");
        assert!(wish(&state, row(1026, 2)));
        let none = BTreeSet::new();
        assert_eq!((spare(&state, 1, &none), spare(&state, 2, &none)), (Some(1025), None));
        assert_eq!(spare(&state, 1, &[1025].into()), None);
        state.groups.insert(1025, vec![seat(1, 1)]);
        assert_eq!(spare(&state, 1, &none), None);
        assert!(wish(&state, row(1026, 1)) && wish(&state, row(1026, 1025)));
        state.children.insert(65_535, 2);
        assert_eq!(next_number(&state), None);
        assert!(may_write(&state, &row(1025, 1).0, None).unwrap().is_err());
        assert_eq!(may_write(&state, b"ks", None), None);
    }

    #[test]
    fn a_child_says_its_first_seats_and_a_node_its_disk_and_nothing_else() {
        let mut state = state();
        let seats = |group, seats: &[Seat]| (seating::group_key(group), seating::encode(seats));
        let all = [seat(1, 1), seat(2, 2), seat(3, 3)];
        assert!(!wish(&state, seats(1025, &all)), "nobody's child");
        state.children.insert(1025, 1);
        assert!(wish(&state, seats(1025, &all)));
        assert!(!wish(&state, seats(1025, &[seat(1, 2)])), "another node's disk");
        assert!(!wish(&state, seats(1025, &[seat(1, 1), seat(1, 11)])), "a node twice");
        state.groups.insert(1025, all.to_vec());
        assert!(wish(&state, seats(1025, &all)), "asked again");
        assert!(wish(&state, seats(1025, &[seat(1, 11), seat(2, 2), seat(3, 3)])));
        assert!(!wish(&state, seats(1025, &[seat(2, 2), seat(1, 1), seat(3, 3)])));
        assert!(!wish(&state, seats(1025, &all[..2])));
        assert!(may_write(&state, &seating::group_key(1025), None).unwrap().is_err());
    }

    #[test]
    fn a_child_is_not_opened_where_it_is_about_to_be_founded() {
        let mut state = state();
        state.children.extend([(1025, 1), (1026, 1025)]);
        let line = lineage(&state, 1026);
        assert_eq!(line, [(1026, 1025), (1025, 1)]);
        assert!(may_open(&lineage(&state, 1), |_, _| Parent::Coming), "it is nobody's child");
        let (gone, coming) = (Parent::Elsewhere, Parent::Coming);
        let here = |gave| Parent::Here { gave };
        for (parent, grandparent, may) in [
            (gone, gone, true),
            (here(true), here(true), true),
            (here(true), gone, true),
            (gone, here(true), true),
            (here(false), gone, false),
            (coming, gone, false),
            // The parent is founded here when the grandparent has caught up, and the child by the parent's log then.
            (gone, here(false), false),
            (gone, coming, false),
        ] {
            let of = |child, _| if child == 1026 { parent } else { grandparent };
            assert_eq!(may_open(&line, of), may, "{parent:?} {grandparent:?}");
        }
    }
}
