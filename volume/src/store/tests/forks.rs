//! Members of clones beside their parents' members, on simulated disks.

use quarry_engine::block::{FIRST_PLACE, Fence, Layer, Note, NoteTag, VolumeId, notes, walk};
use quarry_engine::net::{VolumeAnswer, VolumeCall};

use super::replicas::{At, fill, run};
use crate::member::Refusal;

const CLONE: VolumeId = VolumeId([6; 16]);
const OTHER: VolumeId = VolumeId([7; 16]);
/// Where a member's blocks lie first: under its volume's id and the generation 1.
const PARENTS: VolumeId = VolumeId([5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 4, 5, 5, 5]);

/// What is known of another volume's member.
#[derive(Clone, Copy)]
struct Talk(VolumeId, Fence, u64, u64, u32);

const NONE: Fence = Fence { epoch: 1, configuration: 1 };

impl At {
    /// Talks to another volume's member from now on; how it talked before.
    fn talk(&mut self, Talk(volume, fence, session, end, era): Talk) -> Talk {
        let before = Talk(self.volume, self.fence, self.session, self.end, self.era);
        (self.volume, self.fence, self.session, self.end, self.era) = (volume, fence, session, end, era);
        before
    }

    fn to(&mut self, volume: VolumeId) -> Talk {
        self.talk(Talk(volume, NONE, 0, 0, 0))
    }

    fn view(&mut self, blocks: &[u8], era: u32) -> Vec<u8> {
        let seen =
            blocks.iter().map(|block| match self.ask(VolumeCall::Read { run: run(*block, 1), at: 0, era }) {
                VolumeAnswer::Read { data, .. } => data.first().copied().unwrap_or(0),
                other => panic!("{other:?}"),
            });
        seen.collect()
    }

    fn now(&mut self, blocks: &[u8]) -> Vec<u8> {
        self.view(blocks, u32::MAX)
    }

    fn reap_all(&mut self) {
        let members = self.members.clone();
        while self.rig.run(members.reap()).unwrap() {}
        // Rows of what was ended before a restart are the node's to reap.
        let volumes = self.rig.volumes();
        while self.rig.run(volumes.reap()).unwrap() {}
    }

    fn rows_under(&self, id: VolumeId) -> usize {
        let layer = [Layer { volume: id, era: u32::MAX }];
        walk(&self.rig.handle(), &layer, FIRST_PLACE, 100_000).unwrap().0.len()
    }
}

/// The parent has 1 in the blocks 0 to 9 as of the era 0, and 2 in 0 to 4 now.
fn parent(seed: u64) -> At {
    let mut at = At::new(seed);
    at.promise(1);
    at.begin(&[(1, 0)]);
    at.write(1, run(0, 10), 1);
    at.era = 1;
    at.write(2, run(0, 5), 2);
    at
}

fn fork(at: &mut At, clone: VolumeId, era: u32) {
    let call = VolumeCall::Fork { clone, era, at: at.end };
    at.done(call.clone());
    // A message may come twice.
    at.done(call);
}

/// A head of a clone that was just made continues it.
fn attach(at: &mut At, clone: VolumeId, epoch: u64) -> Talk {
    let before = at.to(clone);
    assert_eq!(at.promise(epoch), (vec![(1, 0)], 1, true));
    at.begin(&[(1, 0), (epoch, 1)]);
    before
}

#[test]
fn a_clone_begins_as_the_snapshot_is_and_goes_its_own_way() {
    for keep_index in [true, false] {
        let mut at = parent(1);
        fork(&mut at, CLONE, 0);
        let of_parent = attach(&mut at, CLONE, 2);
        assert_eq!(at.now(&[0, 4, 9, 10]), [1, 1, 1, 0]);
        at.write(2, run(4, 1), 7);
        at.write(3, run(9, 1), 0);
        at.write(4, run(20, 1), 8);
        at.done(VolumeCall::Flush(4));
        assert_eq!(at.now(&[0, 4, 9, 20]), [1, 7, 0, 8]);
        let of_clone = at.talk(of_parent);
        at.write(3, run(0, 30), 3);
        at.done(VolumeCall::Flush(3));
        assert_eq!((at.now(&[0, 4, 9]), at.view(&[0, 4, 9, 20], 0)), (vec![3, 3, 3], vec![1, 1, 1, 0]));
        at.talk(of_clone);
        assert_eq!(at.now(&[0, 4, 9, 20]), [1, 7, 0, 8]);
        // A clone of a clone, as of its snapshot.
        at.era = 1;
        at.write(5, run(0, 1), 9);
        fork(&mut at, OTHER, 0);
        at.restart(keep_index);
        at.to(CLONE);
        let (turns, end, whole) = at.promise(3);
        assert_eq!((turns, end, whole), (vec![(1, 0), (2, 1)], 5, true));
        assert_eq!(at.now(&[0, 4, 9, 20]), [9, 7, 0, 8]);
        attach(&mut at, OTHER, 2);
        assert_eq!(at.now(&[0, 3, 4, 9, 20]), [1, 1, 7, 0, 8]);
    }
}

#[test]
fn only_who_follows_the_parents_order_makes_members_of_clones() {
    let mut at = parent(2);
    let call = VolumeCall::Fork { clone: CLONE, era: 0, at: 2 };
    at.promise(2);
    assert_eq!(at.refused(call.clone()), Refusal::NotBegun, "it was not told how to go on");
    at.ask(VolumeCall::Fill { common: 2, after: 2 });
    assert_eq!(at.refused(call.clone()), Refusal::NotBegun, "it is being filled");
    at.session += 1;
    assert_eq!(at.refused(call.clone()), Refusal::NotPromised);
    at.promise(3);
    at.ask(VolumeCall::Fill { common: 2, after: 2 });
    at.done(VolumeCall::Join { turns: vec![(1, 0), (3, 2)], end: 2 });
    let of_parent = at.to(CLONE);
    at.done(VolumeCall::Delete);
    at.talk(of_parent);
    assert_eq!(at.refused(call), Refusal::Out, "it was deleted before it was there");
}

#[test]
fn what_a_clone_sees_stays_whatever_becomes_of_its_parent() {
    for keep_index in [true, false] {
        let mut at = parent(3);
        fork(&mut at, CLONE, 0);
        // The parent's member went another way: it begins anew, with nothing.
        at.promise(2);
        assert_eq!(at.ask(VolumeCall::Fill { common: 1, after: 9 }), VolumeAnswer::Filling(0));
        at.done(VolumeCall::Join { turns: vec![(2, 0)], end: 9 });
        at.reap_all();
        assert_eq!(at.now(&[0, 9]), [0, 0]);
        let of_parent = attach(&mut at, CLONE, 2);
        assert_eq!(at.now(&[0, 9]), [1, 1]);
        let of_clone = at.talk(of_parent);
        at.done(VolumeCall::Delete);
        at.reap_all();
        at.restart(keep_index);
        at.reap_all();
        assert_eq!(at.refused(VolumeCall::Promise), Refusal::Out, "it is nobody's member");
        assert!(at.rows_under(PARENTS) > 0);
        at.talk(of_clone);
        at.promise(3);
        assert_eq!(at.now(&[0, 9]), [1, 1]);
        at.done(VolumeCall::Delete);
        at.reap_all();
        assert_eq!(at.rows_under(PARENTS), 0, "nobody needs it any more");
        let left = notes(&at.rig.handle(), None).unwrap();
        let ends = |note: &&Note| note.gone && note.key.tag == NoteTag::Volume;
        let gone = |id| left.iter().filter(ends).any(|note| note.key.volume == id);
        assert!(left.iter().all(|note| gone(note.key.volume)), "{left:?}");
    }
}

/// Snapshots of which there were clones could not be deleted.
#[test]
fn a_snapshot_goes_and_what_its_clones_see_stays_until_the_last_of_them_goes() {
    for keep_index in [true, false] {
        let mut at = parent(11);
        at.era = 2;
        at.write(3, run(0, 3), 3);
        fork(&mut at, CLONE, 0);
        // Of the eras 0 and 1 there is no snapshot any more.
        at.done(VolumeCall::Thin { views: vec![], era: 2, at: 3 });
        assert_eq!((at.view(&[0, 4, 9], 0), at.view(&[0, 4], 1)), (vec![1, 1, 1], vec![1, 2]));
        let late = VolumeCall::Fork { clone: OTHER, era: 1, at: 3 };
        assert_eq!(at.refused(late), Refusal::NotBegun, "what it would see is gone");
        let of_parent = attach(&mut at, CLONE, 2);
        assert_eq!(at.now(&[0, 4, 9]), [1, 1, 1]);
        at.restart(keep_index);
        at.talk(of_parent);
        assert_eq!(at.promise(2), (vec![(1, 0)], 3, true));
        at.begin(&[(1, 0), (2, 3)]);
        at.done(VolumeCall::Thin { views: vec![], era: 2, at: 3 });
        let of_parent = at.to(CLONE);
        assert_eq!(at.promise(3), (vec![(1, 0), (2, 1)], 1, true));
        assert_eq!(at.now(&[0, 4, 9]), [1, 1, 1]);
        // The clone has a clone, and is deleted before that is.
        at.begin(&[(1, 0), (2, 1), (3, 1)]);
        fork(&mut at, OTHER, 0);
        at.done(VolumeCall::Delete);
        at.reap_all();
        at.talk(of_parent);
        assert_eq!(at.view(&[0, 4, 9], 0), [1, 1, 1]);
        let of_parent = attach(&mut at, OTHER, 4);
        assert_eq!(at.now(&[0, 4, 9]), [1, 1, 1]);
        at.done(VolumeCall::Delete);
        at.reap_all();
        at.talk(of_parent);
        assert_eq!(at.view(&[0, 4, 9], 0), [0, 0, 1], "nobody needs it any more");
        assert_eq!(at.now(&[0, 3, 4, 9]), [3, 2, 2, 1]);
    }
}

#[test]
fn a_member_that_never_had_the_parent_is_filled_with_all() {
    let (mut source, mut target) = (parent(4), At::new(5));
    // Zeroes of the parent are nothing to the clone.
    source.write(3, run(30, 40), 0);
    source.era = 2;
    fork(&mut source, CLONE, 1);
    attach(&mut source, CLONE, 2);
    source.write(2, run(8, 1), 7);
    source.era = 1;
    source.write(3, run(3, 3), 9);
    target.to(CLONE);
    assert_eq!(target.promise(2), (vec![], 0, true), "it has nothing, and not the first write");
    assert_eq!(target.ask(VolumeCall::Fill { common: 0, after: 3 }), VolumeAnswer::Filling(0));
    target.era = 1;
    for at in [&mut source, &mut target] {
        at.write(4, run(0, 1), 5);
    }
    fill(&mut source, &mut target, 0);
    target.done(VolumeCall::Join { turns: vec![(1, 0), (2, 1)], end: 4 });
    let rows = source.rows();
    assert_eq!(rows, target.rows());
    assert_eq!(rows.len(), 10 + 1, "ten blocks, and the first write's");
    target.restart(false);
    target.promise(3);
    assert_eq!(target.rows(), rows);
}

fn take_over(at: &mut At, oldest: u32) {
    let mut next = Some(FIRST_PLACE);
    while let Some(from) = next {
        next = match at.ask(VolumeCall::TakeOver { from, oldest }) {
            VolumeAnswer::Rows { rows, next, .. } if rows.is_empty() => next,
            other => panic!("{other:?}"),
        };
    }
}

#[test]
fn a_clone_that_took_over_needs_its_parent_no_more() {
    for keep_index in [true, false] {
        let mut at = parent(6);
        fork(&mut at, CLONE, 0);
        let of_parent = attach(&mut at, CLONE, 2);
        at.write(2, run(4, 1), 7);
        at.era = 1;
        at.write(3, run(9, 1), 0);
        at.write(4, run(2, 1), 8);
        let before = (at.view(&[0, 2, 4, 9], 0), at.now(&[0, 2, 4, 9]), at.rows());
        assert_eq!((&before.0[..], &before.1[..]), (&[1, 1, 7, 1][..], &[1, 8, 7, 0][..]));
        take_over(&mut at, 0);
        take_over(&mut at, 0);
        assert_eq!((at.view(&[0, 2, 4, 9], 0), at.now(&[0, 2, 4, 9]), at.rows()), before);
        let of_clone = at.talk(of_parent);
        at.done(VolumeCall::Delete);
        at.reap_all();
        assert_eq!(at.rows_under(PARENTS), 0);
        at.restart(keep_index);
        at.talk(of_clone);
        assert_eq!(at.promise(3), (vec![(1, 0), (2, 1)], 4, true));
        assert_eq!((at.view(&[0, 2, 4, 9], 0), at.now(&[0, 2, 4, 9]), at.rows()), before);
    }
}

/// The members of a clone's own clones go on looking through to the first parent, where what was trimmed goes with its snapshot: what lay
/// below showed again.
#[test]
fn a_clone_that_took_over_hides_its_parent_from_its_own_clones() {
    let mut at = parent(13);
    at.write(3, run(4, 1), 0);
    at.era = 2;
    at.write(4, run(4, 1), 3);
    fork(&mut at, CLONE, 1);
    let of_parent = attach(&mut at, CLONE, 2);
    assert_eq!(at.now(&[3, 4, 5]), [2, 0, 1]);
    at.era = 1;
    fork(&mut at, OTHER, 0);
    let rows = at.rows();
    take_over(&mut at, 0);
    assert_eq!(at.rows(), rows, "zeroes that were taken over are nothing to who is filled");
    let of_clone = at.talk(of_parent);
    at.done(VolumeCall::Thin { views: vec![0], era: 2, at: 4 });
    attach(&mut at, OTHER, 2);
    assert_eq!(at.now(&[3, 4, 5]), [2, 0, 1]);
    at.talk(of_clone);
    assert_eq!(at.now(&[3, 4, 5]), [2, 0, 1]);
}

/// What a clone had overwritten by then was gone for its own clones, where the snapshot that they were made of had been deleted.
#[test]
fn a_clone_that_takes_over_has_for_its_own_clones_what_it_does_not_see_itself() {
    for keep_index in [true, false] {
        let mut at = parent(12);
        fork(&mut at, CLONE, 0);
        attach(&mut at, CLONE, 2);
        fork(&mut at, OTHER, 0);
        at.era = 1;
        at.write(2, run(4, 1), 7);
        at.done(VolumeCall::Thin { views: vec![], era: 1, at: 2 });
        take_over(&mut at, u32::MAX);
        at.restart(keep_index);
        at.to(OTHER);
        assert_eq!(at.promise(3), (vec![(1, 0)], 1, true));
        assert_eq!(at.now(&[0, 4, 9]), [1, 1, 1]);
        at.to(CLONE);
        assert_eq!(at.promise(3), (vec![(1, 0), (2, 1)], 2, true));
        assert_eq!(at.now(&[0, 4, 9]), [1, 7, 1]);
    }
}

/// A power loss while a member of a clone is made leaves none, or one that is not whole; a head fills it as any other.
#[test]
fn a_member_that_was_cut_off_in_being_made_is_no_base() {
    for cut in 1..6 {
        let mut at = parent(10 + cut);
        at.done(VolumeCall::Flush(2));
        let flushes = at.rig.image.counters().flushes;
        at.rig.image.edit_faults(|faults| faults.power_off_at_flush = Some(flushes + cut));
        let answer = at.ask(VolumeCall::Fork { clone: CLONE, era: 0, at: 2 });
        at.rig.image.edit_faults(|faults| faults.power_off_at_flush = None);
        at.restart(true);
        at.to(CLONE);
        let (turns, end, whole) = at.promise(2);
        let made = whole && (&turns[..], end) == (&[(1, 0)][..], 1);
        assert!(made || answer != VolumeAnswer::Done, "it was said to be there");
        if made {
            at.begin(&[(1, 0), (2, 1)]);
            assert_eq!(at.now(&[0, 9]), [1, 1]);
            continue;
        }
        assert!(!whole || turns != [(1, 0)], "{turns:?} {end}");
        // What a whole member sends.
        let mut source = parent(50);
        fork(&mut source, CLONE, 0);
        attach(&mut source, CLONE, 2);
        at.ask(VolumeCall::Fill { common: 0, after: 1 });
        fill(&mut source, &mut at, 0);
        at.done(VolumeCall::Join { turns: vec![(1, 0), (2, 1)], end: 1 });
        assert_eq!(at.rows(), source.rows());
        assert_eq!(at.now(&[0, 9, 10]), [1, 1, 0]);
    }
}
