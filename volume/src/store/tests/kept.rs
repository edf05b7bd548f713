//! What a member was, and stays: on a nearly full disk, emptied by an older program, chosen as it is.

use std::sync::Arc;

use quarry_engine::block::{Fence, NoteTag, Position};
use quarry_engine::net::{BlockWrite, VolumeAnswer, VolumeCall};

use super::replicas::{At, Rows, fill, run};
use crate::head::Turn;
use crate::member::Refusal;
use crate::store::label::MemberLabel;
use crate::store::promise::{NEARLY_FULL, NO_PLACE};
use crate::store::replica::{answer_of, refused};
use crate::store::seat::Seat;

fn kept_of(at: &mut At) -> bool {
    match at.ask(VolumeCall::Promise) {
        VolumeAnswer::Promised { session, end, kept, .. } => {
            (at.session, at.end) = (session, end);
            kept
        }
        other => panic!("{other:?}"),
    }
}

/// As long as this is there, disks are nearly full.
struct NearlyFull;

impl NearlyFull {
    fn new() -> Self {
        NEARLY_FULL.set(true);
        Self
    }
}

impl Drop for NearlyFull {
    fn drop(&mut self) {
        NEARLY_FULL.set(false);
    }
}

/// As long as this is there, no volume is placed on a disk.
struct NoPlace;

impl NoPlace {
    fn new() -> Self {
        NO_PLACE.set(true);
        Self
    }
}

impl Drop for NoPlace {
    fn drop(&mut self) {
        NO_PLACE.set(false);
    }
}

fn put(sequence: u64) -> VolumeCall {
    let position = Position { epoch: 1, sequence };
    let rows = vec![BlockWrite { position, run: run(7, 1), era: 0, zeroes: false }];
    VolumeCall::Put { rows, data: vec![7; 4096].into() }
}

/// Where a disk was nearly full, what a member was went before a row had come, for want of room; and no row was taken, for want of room. What
/// was left of the volume lay with one member, and the emptied one said that it had it all.
#[test]
fn a_member_on_a_nearly_full_disk_stays_what_it_was() {
    let mut at = At::new(30);
    at.promise(1);
    at.begin(&[(1, 0)]);
    at.write(1, run(0, 9), 1);
    at.write(2, run(3, 1), 2);
    at.done(VolumeCall::Flush(2));
    let _full = NearlyFull::new();
    for (epoch, restart) in [(4, false), (5, true), (6, false)] {
        assert_eq!(at.promise(epoch), (vec![(1, 0)], 2, true), "{epoch}");
        assert_eq!(at.ask(VolumeCall::Fill { common: 1, after: 7 }), VolumeAnswer::Tight);
        let members = Arc::clone(&at.members);
        while at.rig.run(members.reap()).unwrap() {}
        assert_eq!([at.first_byte(0, 0), at.first_byte(3, 0)], [1, 2]);
        if restart {
            at.restart(true);
        }
    }
    // What lacks little of what it has is filled all the same. When that is cut off it stays what it is as well.
    assert_eq!(at.promise(7), (vec![(1, 0)], 2, true));
    assert_eq!(at.ask(VolumeCall::Fill { common: 2, after: 7 }), VolumeAnswer::Filling(2));
    assert_eq!(at.promise(8), (vec![(1, 0)], 2, false));
    assert_eq!(at.ask(VolumeCall::Fill { common: 2, after: 7 }), VolumeAnswer::Tight);
    assert!(kept_of(&mut at), "it may be the volume by decision");
    assert_eq!([at.first_byte(0, 0), at.first_byte(3, 0)], [1, 2]);
}

/// A member that has nothing, on a nearly full disk, took the last room of all that is there.
#[test]
fn a_member_without_anything_is_not_filled_on_a_nearly_full_disk() {
    let mut at = At::new(31);
    at.promise(1);
    let _full = NearlyFull::new();
    assert_eq!(at.promise(2), (vec![], 0, true));
    assert_eq!(at.ask(VolumeCall::Fill { common: 0, after: 9 }), VolumeAnswer::Tight);
}

/// A member that began anew filled its disk up to the mark at which nobody writes any more to any volume there; and again, when that had been
/// given back.
#[test]
fn where_no_volume_is_placed_none_is_copied() {
    let mut at = At::new(37);
    at.promise(1);
    at.begin(&[(1, 0)]);
    at.write(1, run(0, 9), 1);
    at.write(2, run(3, 1), 2);
    at.done(VolumeCall::Flush(2));
    at.promise(2);
    let full = NoPlace::new();
    assert_eq!(at.ask(VolumeCall::Fill { common: 1, after: 7 }), VolumeAnswer::Tight);
    drop(full);
    assert_eq!(at.promise(3), (vec![(1, 0)], 2, true));
    assert_eq!(at.ask(VolumeCall::Fill { common: 1, after: 7 }), VolumeAnswer::Filling(0));
    at.done(put(1));
    let _full = NoPlace::new();
    assert_eq!(at.ask(put(2)), VolumeAnswer::Tight);
    assert_eq!(at.promise(4), (vec![(1, 0)], 2, true));
    // It has all but a little.
    assert_eq!(at.ask(VolumeCall::Fill { common: 2, after: 7 }), VolumeAnswer::Filling(2));
    at.done(put(3));
}

/// A member that had nothing kept what it was sent when there was no room for the rest.
#[test]
fn one_that_has_nothing_gives_back_what_it_was_sent() {
    let mut at = At::new(38);
    at.promise(1);
    assert_eq!(at.ask(VolumeCall::Fill { common: 0, after: 9 }), VolumeAnswer::Filling(0));
    at.done(put(1));
    assert_eq!(at.promise(2), (vec![], 0, true));
    let members = Arc::clone(&at.members);
    while at.rig.run(members.reap()).unwrap() {}
    at.begin(&[(2, 0)]);
    assert_eq!(at.rows(), []);
}

fn note_down(at: &mut At, label: &MemberLabel) {
    let seat = Seat::open(at.rig.handle(), label.id()).unwrap();
    at.rig.run(seat.note_down(NoteTag::Member, &label.encode())).unwrap();
    at.restart(true);
    // Notes count for each generation.
    at.session = 0;
}

/// Older programs emptied members, and noted what they had had.
#[test]
fn who_was_emptied_says_so_and_is_not_the_volume() {
    let mut at = At::new(32);
    at.promise(1);
    at.begin(&[(1, 0)]);
    at.write(1, run(0, 1), 1);
    at.done(VolumeCall::Flush(1));
    let turns = vec![Turn { epoch: 1, base: 0 }];
    let (volume, former) = (at.volume, None);
    let mut label = MemberLabel { volume, generation: 2, whole: false, turns, end: 1, kept: false, former };
    note_down(&mut at, &label);
    assert_eq!(at.promise(2), (vec![(1, 0)], 1, false));
    assert!(!kept_of(&mut at));
    let begin = VolumeCall::Begin { turns: vec![(2, 1)], end: 1 };
    assert!(matches!(at.refused(begin), Refusal::Elsewhere(_)));
    // What goes back to such a one is such a one.
    at.promise(3);
    assert_eq!(at.ask(VolumeCall::Fill { common: 1, after: 1 }), VolumeAnswer::Filling(0));
    at.restart(true);
    assert_eq!(at.promise(4), (vec![(1, 0)], 1, false));
    assert!(!kept_of(&mut at));
    // A sequence that nothing has come to.
    (label.generation, label.end, label.kept) = (9, u64::MAX, true);
    note_down(&mut at, &label);
    at.promise(5);
    let begin = VolumeCall::Begin { turns: vec![(5, u64::MAX)], end: u64::MAX };
    assert!(matches!(at.refused(begin), Refusal::Elsewhere(_)));
}

/// A member that was chosen as it is said after a restart, before a write had come, that it had all up to the highest row that it had been sent
/// of the order that was left: acknowledgements of the new order were counted on it that it had never given.
#[test]
fn who_was_chosen_claims_nothing_of_the_order_that_was_left() {
    for keep_index in [true, false] {
        let mut at = At::new(33);
        at.promise(1);
        at.begin(&[(1, 0)]);
        at.write(1, run(0, 2), 1);
        at.done(VolumeCall::Flush(1));
        at.promise(2);
        assert_eq!(at.ask(VolumeCall::Fill { common: 1, after: 40 }), VolumeAnswer::Filling(1));
        at.write(41, run(1, 1), 5);
        at.done(VolumeCall::Flush(41));
        assert_eq!(at.promise(3), (vec![(1, 0)], 1, false));
        at.begin(&[(3, 1)]);
        at.restart(keep_index);
        assert_eq!(at.promise(4), (vec![(3, 1)], 1, true));
        at.begin(&[(3, 1), (4, 1)]);
        assert_eq!(at.first_byte(1, 1), 5);
        at.write(2, run(1, 1), 7);
        at.done(VolumeCall::Flush(2));
        at.restart(keep_index);
        assert_eq!(at.promise(5), (vec![(3, 1), (4, 1)], 2, true));
        assert_eq!([at.first_byte(0, 0), at.first_byte(1, 0)], [1, 7]);
    }
}

/// Hours of filling were void because a head that was none any more asked once more.
#[test]
fn a_head_that_is_fenced_ends_no_session() {
    let (mut source, mut at) = (At::new(34), At::new(35));
    for one in [&mut source, &mut at] {
        one.promise(1);
        one.begin(&[(1, 0)]);
        one.write(1, run(0, 1), 1);
        one.done(VolumeCall::Flush(1));
    }
    at.write(2, run(0, 1), 66);
    source.promise(3);
    source.begin(&[(1, 0), (3, 1)]);
    at.promise(3);
    assert_eq!(at.ask(VolumeCall::Fill { common: 1, after: 1 }), VolumeAnswer::Filling(0));
    at.fence.epoch = 2;
    assert!(matches!(at.refused(VolumeCall::Promise), Refusal::Fenced(_)));
    at.fence.epoch = 3;
    fill(&mut source, &mut at, 0);
    at.done(VolumeCall::Join { turns: vec![(1, 0), (3, 1)], end: 1 });
    assert_eq!(at.rows(), source.rows());
}

/// There was no space for a write to a member that was filled: it never promised again, though what it was before was sound.
#[test]
fn a_member_whose_filling_failed_is_what_it_was() {
    let mut at = At::new(36);
    at.promise(1);
    at.begin(&[(1, 0)]);
    at.write(1, run(0, 1), 1);
    at.done(VolumeCall::Flush(1));
    let rows: Rows = at.rows();
    at.promise(2);
    assert_eq!(at.ask(VolumeCall::Fill { common: 0, after: 1 }), VolumeAnswer::Filling(0));
    at.write(2, run(1, 1), 2);
    let replica = at.members.list().first().and_then(|(device, volume)| at.members.member(*device, *volume));
    let replica = replica.unwrap();
    at.rig.run(async { replica.look().await.seat.state().fail() });
    let call = VolumeCall::Confirm;
    assert_eq!(at.refused(call), Refusal::Out);
    assert_eq!(at.promise(3), (vec![(1, 0)], 1, true));
    assert_eq!(at.rows(), rows);
    // And what it was sent is given back.
    let members = Arc::clone(&at.members);
    while at.rig.run(members.reap()).unwrap() {}
    at.begin(&[(1, 0), (3, 1)]);
    at.restart(true);
    assert_eq!(at.promise(4), (vec![(1, 0), (3, 1)], 1, true));
    let (device, volume, fence, session) = (at.rig.handle().device(), at.volume, at.fence, at.session);
    let members = Arc::clone(&at.members);
    let confirm = async move { members.act(device, volume, fence, session, VolumeCall::Confirm).await };
    assert_eq!(answer_of(at.rig.run(confirm)), VolumeAnswer::Done);
}

/// A head gave up its promise while the disk hung, and asked again: all of them were made, one after the other, when the disk was back.
#[test]
fn a_head_has_one_promise_under_way() {
    let mut at = At::new(39);
    at.promise(1);
    let device = at.rig.handle().device();
    let (members, volume) = (Arc::clone(&at.members), at.volume);
    let ask = |epoch| {
        let (members, fence) = (Arc::clone(&members), Fence { epoch, configuration: 1 });
        async move { answer_of(members.act(device, volume, fence, 0, VolumeCall::Promise).await) }
    };
    let three = futures_util::future::join3(ask(2), ask(2), ask(3));
    let (first, again, newer) = at.rig.run(three);
    assert!(matches!(first, VolumeAnswer::Promised { .. }), "{first:?}");
    assert_eq!(again, refused(Refusal::Busy));
    assert!(matches!(newer, VolumeAnswer::Promised { .. }), "another head waits its turn: {newer:?}");
    at.promise(3);
}
