//! Members of volumes that have several, each on a simulated disk, as a head sees them.

use std::sync::Arc;

use bytes::Bytes;
use quarry_engine::block::{
    BlockPlace, ChunkId, FIRST_PLACE, Fence, Layer, Position, Run, SliceId, VolumeId, walk,
};
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::{BlockWrite, TurnFields, VolumeAnswer, VolumeCall};

use super::rig::Rig;
use crate::member::Refusal;
use crate::store::Members;
use crate::store::replica::{answer_of, refusal_of};

const DEVICE: DeviceId = DeviceId([9; 16]);
const VOLUME: VolumeId = VolumeId([5; 16]);

/// A disk's members, and what a head knows of the one that it talks to.
pub(super) struct At {
    pub(super) rig: Rig,
    pub(super) members: Arc<Members>,
    pub(super) volume: VolumeId,
    pub(super) fence: Fence,
    pub(super) session: u64,
    /// Where it was at the last promise.
    pub(super) end: u64,
    /// That its head writes in.
    pub(super) era: u32,
}

pub(super) fn run(block: u8, blocks: u16) -> Run {
    Run { slice: SliceId(0), chunk: ChunkId(3), first: block, blocks }
}

fn bytes(value: u8, blocks: u16) -> Bytes {
    vec![value; usize::from(blocks) * 4096].into()
}

/// What a member has: place, position, first byte.
pub(super) type Rows = Vec<(BlockPlace, Position, u8)>;

impl At {
    pub(super) fn new(seed: u64) -> Self {
        let rig = Rig::new(seed);
        let members = Arc::new(Members::open(vec![rig.handle()]).unwrap());
        let fence = Fence { epoch: 1, configuration: 1 };
        Self { rig, members, volume: VOLUME, fence, session: 0, end: 0, era: 0 }
    }

    pub(super) fn restart(&mut self, keep_index: bool) {
        self.rig.crash(keep_index);
        self.members = Arc::new(Members::open(vec![self.rig.handle()]).unwrap());
    }

    pub(super) fn ask(&mut self, call: VolumeCall) -> VolumeAnswer {
        let (members, volume) = (Arc::clone(&self.members), self.volume);
        let (fence, session) = (self.fence, self.session);
        answer_of(self.rig.run(async move { members.act(DEVICE, volume, fence, session, call).await }))
    }

    pub(super) fn refused(&mut self, call: VolumeCall) -> Refusal {
        match self.ask(call) {
            VolumeAnswer::Refused(why, one, two) => refusal_of(why, one, two),
            other => panic!("{other:?}"),
        }
    }

    /// History and whether it is whole.
    pub(super) fn promise(&mut self, epoch: u64) -> (Vec<TurnFields>, u64, bool) {
        self.fence = Fence { epoch, configuration: 1 };
        match self.ask(VolumeCall::Promise) {
            VolumeAnswer::Promised { session, turns, end, whole, .. } => {
                assert!(session > self.session, "sessions are not given twice");
                (self.session, self.end) = (session, end);
                (turns, end, whole)
            }
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn done(&mut self, call: VolumeCall) {
        assert_eq!(self.ask(call), VolumeAnswer::Done);
    }

    pub(super) fn begin(&mut self, turns: &[TurnFields]) {
        self.done(VolumeCall::Begin { turns: turns.to_vec(), end: self.end });
    }

    fn written(&self, sequence: u64, run: Run, value: u8) -> VolumeCall {
        let position = Position { epoch: self.fence.epoch, sequence };
        let writes = vec![BlockWrite { position, run, era: self.era, zeroes: value == 0 }];
        let data = if value == 0 { Bytes::new() } else { bytes(value, run.blocks) };
        VolumeCall::Write { writes, data, flush: false }
    }

    pub(super) fn write(&mut self, sequence: u64, run: Run, value: u8) {
        let call = self.written(sequence, run, value);
        self.done(call);
    }

    pub(super) fn first_byte(&mut self, block: u8, at: u64) -> u8 {
        match self.ask(VolumeCall::Read { run: run(block, 1), at, era: u32::MAX }) {
            VolumeAnswer::Read { data, .. } => data.first().copied().unwrap_or(0),
            other => panic!("{other:?}"),
        }
    }

    fn page(&mut self, from: BlockPlace, above: u64) -> (Vec<BlockWrite>, Option<BlockPlace>, Bytes) {
        match self.ask(VolumeCall::Rows { from, above, data: true, era: u32::MAX, since: 0 }) {
            VolumeAnswer::Rows { rows, next, data } => (rows, next, data),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn rows(&mut self) -> Rows {
        let (mut all, mut from) = (Rows::new(), Some(FIRST_PLACE));
        while let Some(place) = from {
            let (rows, next, mut data) = self.page(place, 0);
            for BlockWrite { position, run, zeroes, .. } in rows {
                for nth in 0..run.blocks {
                    let block = run.first + u8::try_from(nth).unwrap();
                    let value = if zeroes { 0 } else { data.split_to(4096)[0] };
                    all.push((BlockPlace { slice: run.slice, chunk: run.chunk, block }, position, value));
                }
            }
            from = next;
        }
        all
    }
}

/// Copies rows as a head does; `between` is called with the target after each page.
pub(super) fn fill(source: &mut At, target: &mut At, above: u64) {
    let mut from = Some(FIRST_PLACE);
    while let Some(place) = from {
        let (rows, next, data) = source.page(place, above);
        target.done(VolumeCall::Put { rows, data });
        from = next;
    }
}

#[test]
fn a_member_is_a_prefix_and_says_which() {
    for keep_index in [true, false] {
        let mut at = At::new(1);
        assert_eq!(at.refused(VolumeCall::Confirm), Refusal::NotPromised);
        assert_eq!(at.promise(1), (vec![], 0, true));
        let early = at.written(1, run(0, 1), 1);
        assert_eq!(at.refused(early), Refusal::NotBegun);
        at.begin(&[(1, 0)]);
        at.write(1, run(0, 4), 1);
        at.write(2, run(2, 1), 2);
        let astray = at.written(4, run(0, 1), 9);
        assert_eq!(at.refused(astray), Refusal::OutOfOrder(3));
        at.done(VolumeCall::Flush(2));
        at.write(3, run(3, 1), 0);
        assert_eq!([0, 2, 3].map(|block| at.first_byte(block, 3)), [1, 2, 0]);
        at.restart(keep_index);
        assert_eq!(at.refused(VolumeCall::Confirm), Refusal::NotPromised, "sessions end with a life");
        let (turns, end, whole) = at.promise(2);
        assert!(whole && turns == [(1, 0)] && (2..=3).contains(&end), "{turns:?} {end}");
        at.begin(&[(1, 0), (2, end)]);
        at.fence.epoch = 1;
        assert!(matches!(at.refused(VolumeCall::Confirm), Refusal::Fenced(_)), "reads of old heads too");
        at.fence.epoch = 2;
        at.write(end + 1, run(0, 1), 7);
        at.done(VolumeCall::Flush(end + 1));
        assert_eq!(at.promise(3), (vec![(1, 0), (2, end)], end + 1, true));
    }
}

#[test]
fn a_session_ends_with_the_next_promise() {
    let mut at = At::new(2);
    at.promise(1);
    at.begin(&[(1, 0)]);
    at.write(1, run(0, 1), 1);
    let old = at.session;
    at.promise(1);
    let now = std::mem::replace(&mut at.session, old);
    let late = at.written(2, run(0, 1), 2);
    assert_eq!(at.refused(late), Refusal::NotPromised);
    at.session = now;
    at.begin(&[(1, 0)]);
    at.write(2, run(0, 1), 3);
    assert_eq!(at.first_byte(0, 2), 3);
}

#[test]
fn a_member_is_filled_while_writes_go_on_and_has_the_same_rows() {
    let (mut source, mut target) = (At::new(3), At::new(4));
    source.promise(1);
    source.begin(&[(1, 0)]);
    for n in 1..=40_u8 {
        source.write(n.into(), run(n, 1 + u16::from(n % 3)), n);
    }
    source.write(41, run(5, 2), 0);
    target.promise(1);
    assert_eq!(target.ask(VolumeCall::Fill { common: 0, after: 41 }), VolumeAnswer::Filling(0));
    // A write that comes first, and is newer than the row of its block that is sent.
    for at in [&mut source, &mut target] {
        at.write(42, run(10, 1), 200);
    }
    fill(&mut source, &mut target, 0);
    assert_eq!(
        target.promise(1),
        (Vec::new(), 0, true),
        "as before: what it was sent is void until it is told that it is whole"
    );
    let mut target = At { session: target.session, ..target };
    // It was left; it begins anew, under the next id.
    assert_eq!(target.ask(VolumeCall::Fill { common: 42, after: 42 }), VolumeAnswer::Filling(0));
    assert_eq!(target.rows(), Rows::new());
    fill(&mut source, &mut target, 0);
    target.done(VolumeCall::Join { turns: vec![(1, 0)], end: 42 });
    for at in [&mut source, &mut target] {
        at.write(43, run(11, 1), 201);
        at.done(VolumeCall::Flush(43));
    }
    let rows = source.rows();
    assert!(rows.len() > 40 && rows == target.rows());
    target.restart(false);
    assert_eq!(target.promise(2), (vec![(1, 0)], 43, true));
    assert_eq!(target.rows(), rows, "also from the log alone");
}

#[test]
fn what_went_another_way_is_void() {
    let (mut source, mut target) = (At::new(5), At::new(6));
    for at in [&mut source, &mut target] {
        at.promise(1);
        at.begin(&[(1, 0)]);
        at.write(1, run(0, 1), 1);
        at.done(VolumeCall::Flush(1));
    }
    // Never acknowledged, and unknown to the head of epoch 2.
    target.write(2, run(0, 1), 66);
    target.write(3, run(9, 1), 66);
    target.done(VolumeCall::Flush(3));
    for at in [&mut source, &mut target] {
        at.promise(2);
    }
    source.begin(&[(1, 0), (2, 1)]);
    source.write(2, run(1, 1), 2);
    assert_eq!(target.ask(VolumeCall::Fill { common: 1, after: 2 }), VolumeAnswer::Filling(0));
    fill(&mut source, &mut target, 0);
    target.done(VolumeCall::Join { turns: vec![(1, 0), (2, 1)], end: 2 });
    assert_eq!((source.rows(), target.first_byte(9, 0)), (target.rows(), 0));
    target.restart(true);
    target.promise(3);
    assert_eq!(source.rows(), target.rows());
    let members = Arc::clone(&target.members);
    assert_eq!(members.list(), [(DEVICE, VOLUME)]);
}

#[test]
fn a_beginning_is_filled_from_its_end() {
    let (mut source, mut target) = (At::new(7), At::new(8));
    for at in [&mut source, &mut target] {
        at.promise(1);
        at.begin(&[(1, 0)]);
        at.write(1, run(0, 200), 1);
        at.done(VolumeCall::Flush(1));
    }
    source.write(2, run(4, 1), 2);
    target.promise(1);
    assert_eq!(target.ask(VolumeCall::Fill { common: 1, after: 2 }), VolumeAnswer::Filling(1));
    assert_eq!(source.page(FIRST_PLACE, 1).0.len(), 1, "no more than what it lacks");
    fill(&mut source, &mut target, 1);
    target.done(VolumeCall::Join { turns: vec![(1, 0)], end: 2 });
    assert_eq!(source.rows(), target.rows());
}

/// Deleted images came back when dead disks returned (Vitastor): a promise that was long on its way must make no member.
#[test]
fn a_deleted_volume_has_no_member_ever_again() {
    let mut at = At::new(9);
    at.promise(1);
    at.begin(&[(1, 0)]);
    at.write(1, run(0, 9), 1);
    at.done(VolumeCall::Delete);
    assert_eq!(at.refused(VolumeCall::Promise), Refusal::Out);
    let members = Arc::clone(&at.members);
    while at.rig.run(members.reap()).unwrap() {}
    at.restart(false);
    assert_eq!(at.refused(VolumeCall::Promise), Refusal::Out);
    assert!(at.members.list().is_empty());
    at.done(VolumeCall::Delete);
}

/// A member was filled when it died. What it had acknowledged before counted for clients, and had it said where the filling had come
/// to, a shorter history could have been taken for all, or a whole one for too short.
#[test]
fn who_is_filled_says_what_it_had_acknowledged_before() {
    let mut at = At::new(10);
    at.promise(1);
    at.begin(&[(1, 0)]);
    at.write(1, run(0, 1), 1);
    at.write(2, run(1, 1), 2);
    at.done(VolumeCall::Flush(2));
    assert_eq!(at.promise(4), (vec![(1, 0)], 2, true));
    assert_eq!(at.ask(VolumeCall::Fill { common: 2, after: 7 }), VolumeAnswer::Filling(2));
    at.write(8, run(2, 1), 8);
    at.done(VolumeCall::Flush(8));
    for restart in [false, true] {
        if restart {
            at.restart(true);
        }
        assert_eq!(at.promise(5), (vec![(1, 0)], 2, false));
        // Filled again: it is still what it had when it was whole.
        assert_eq!(at.ask(VolumeCall::Fill { common: 2, after: 9 }), VolumeAnswer::Filling(0));
    }
    at.restart(false);
    assert_eq!(at.promise(6), (vec![(1, 0)], 2, false));
    at.ask(VolumeCall::Fill { common: 2, after: 9 });
    at.done(VolumeCall::Join { turns: vec![(1, 0), (4, 3)], end: 9 });
    at.write(10, run(2, 1), 9);
    at.done(VolumeCall::Flush(10));
    at.restart(true);
    assert_eq!(at.promise(7), (vec![(1, 0), (4, 3)], 10, true));
}

/// Each attempt to attach a volume emptied the members that were filled for it, and those that had gone another way by a single write: what
/// was left of it lay with one member in the end, though no disk had failed.
#[test]
fn who_is_not_filled_to_the_end_is_what_it_was() {
    for keep_index in [true, false] {
        let (mut source, mut at) = (At::new(20), At::new(21));
        for one in [&mut source, &mut at] {
            one.promise(1);
            one.begin(&[(1, 0)]);
            one.write(1, run(0, 9), 1);
            one.done(VolumeCall::Flush(1));
        }
        at.write(2, run(1, 1), 2);
        at.done(VolumeCall::Flush(2));
        let rows = at.rows();
        for (epoch, restart) in [(4, false), (5, true), (6, false), (7, true), (7, false)] {
            assert_eq!(at.promise(epoch), (vec![(1, 0)], 2, true), "{epoch}");
            assert_eq!(at.rows(), rows);
            assert_eq!(at.ask(VolumeCall::Fill { common: 1, after: 7 }), VolumeAnswer::Filling(0));
            assert_eq!(at.rows(), Rows::new(), "what it is sent is kept apart");
            at.write(8, run(1, 1), 8);
            at.done(VolumeCall::Flush(8));
            let members = Arc::clone(&at.members);
            while at.rig.run(members.reap()).unwrap() {}
            if restart {
                at.restart(keep_index);
            }
        }
        source.promise(8);
        source.begin(&[(1, 0), (8, 1)]);
        assert_eq!(at.promise(8), (vec![(1, 0)], 2, true));
        assert_eq!(at.ask(VolumeCall::Fill { common: 1, after: 1 }), VolumeAnswer::Filling(0));
        fill(&mut source, &mut at, 0);
        at.done(VolumeCall::Join { turns: vec![(1, 0), (8, 1)], end: 1 });
        // From here on there is nothing to go back to.
        let members = Arc::clone(&at.members);
        while at.rig.run(members.reap()).unwrap() {}
        // What was ended before the last restart is reaped with the volumes of one member.
        for generation in [1, 5, 6] {
            let mut id = VOLUME.0;
            id[12] ^= generation;
            let layer = Layer { volume: VolumeId(id), era: u32::MAX };
            let (left, _) = walk(&at.rig.handle(), &[layer], FIRST_PLACE, 9).unwrap();
            assert_eq!(left.len(), 0, "generation {generation} is void");
        }
        at.restart(keep_index);
        assert_eq!(at.promise(9), (vec![(1, 0), (8, 1)], 1, true));
        assert_eq!(at.rows(), source.rows());
    }
}

/// One row of a broken member, and no node that had taken it could be started again.
#[test]
fn a_sequence_that_nothing_has_come_to_is_refused() {
    let mut at = At::new(24);
    at.promise(1);
    assert!(matches!(at.refused(VolumeCall::Fill { common: 0, after: u64::MAX }), Refusal::Elsewhere(_)));
    assert_eq!(at.ask(VolumeCall::Fill { common: 0, after: 1 }), VolumeAnswer::Filling(0));
    let position = Position { epoch: 1, sequence: u64::MAX };
    let rows = vec![BlockWrite { position, run: run(0, 1), era: 0, zeroes: true }];
    assert!(matches!(at.refused(VolumeCall::Put { rows, data: Bytes::new() }), Refusal::Elsewhere(_)));
    at.restart(true);
    at.promise(2);
}

/// A decision that nobody could carry out: a member that was left while it was filled refused to be the volume.
#[test]
fn by_decision_a_member_that_was_left_is_the_volume_as_it_is() {
    for keep_index in [true, false] {
        let mut at = At::new(23);
        at.promise(1);
        at.begin(&[(1, 0)]);
        at.write(1, run(0, 2), 1);
        at.done(VolumeCall::Flush(1));
        at.promise(2);
        assert_eq!(at.ask(VolumeCall::Fill { common: 1, after: 4 }), VolumeAnswer::Filling(1));
        at.write(5, run(1, 1), 5);
        at.done(VolumeCall::Flush(5));
        at.restart(keep_index);
        assert_eq!(at.promise(3), (vec![(1, 0)], 1, false));
        let other = VolumeCall::Begin { turns: vec![(1, 0), (3, 2)], end: 2 };
        assert!(matches!(at.refused(other), Refusal::Elsewhere(_)));
        at.begin(&[(1, 0), (3, 1)]);
        assert_eq!([at.first_byte(0, 1), at.first_byte(1, 1)], [1, 5]);
        at.write(2, run(1, 1), 7);
        at.done(VolumeCall::Flush(2));
        assert_eq!(at.first_byte(1, 2), 7, "newer than what it was sent of the other order");
        at.restart(keep_index);
        assert_eq!(at.promise(4), (vec![(1, 0), (3, 1)], 2, true));
        assert_eq!([at.first_byte(0, 0), at.first_byte(1, 0)], [1, 7]);
    }
}

/// The order of one head only grows: what it has sent is a part of it. Another head's may be another.
#[test]
fn the_same_head_goes_on_with_a_member_that_it_was_filling() {
    let mut at = At::new(22);
    at.promise(1);
    at.begin(&[(1, 0)]);
    at.write(1, run(0, 1), 1);
    at.done(VolumeCall::Flush(1));
    at.promise(2);
    assert_eq!(at.ask(VolumeCall::Fill { common: 1, after: 4 }), VolumeAnswer::Filling(1));
    at.write(5, run(1, 1), 5);
    assert_eq!(at.promise(2), (vec![(1, 0)], 1, false));
    assert_eq!(at.ask(VolumeCall::Fill { common: 1, after: 6 }), VolumeAnswer::Filling(1));
    assert_eq!(at.rows().len(), 2);
    at.promise(3);
    assert_eq!(at.ask(VolumeCall::Fill { common: 1, after: 6 }), VolumeAnswer::Filling(0));
    assert_eq!(at.rows().len(), 0);
}

#[test]
fn a_member_knows_its_eras_after_a_restart_and_gives_back_what_no_snapshot_sees() {
    for keep_index in [true, false] {
        let mut at = At::new(12);
        at.promise(1);
        at.begin(&[(1, 0)]);
        let views = |at: &mut At| {
            [0, 1, u32::MAX].map(|era| match at.ask(VolumeCall::Read { run: run(0, 1), at: 0, era }) {
                VolumeAnswer::Read { data, .. } => data.first().copied().unwrap_or(0),
                other => panic!("{other:?}"),
            })
        };
        for (era, value) in [(0, 10), (1, 11), (2, 12)] {
            at.era = era;
            at.write(u64::from(era) + 1, run(0, 1), value);
        }
        assert_eq!(views(&mut at), [10, 11, 12]);
        at.done(VolumeCall::Flush(3));
        at.restart(keep_index);
        assert_eq!(at.promise(2), (vec![(1, 0)], 3, true));
        assert_eq!(views(&mut at), [10, 11, 12]);
        at.begin(&[(1, 0), (2, 3)]);
        at.write(4, run(0, 1), 13);
        at.done(VolumeCall::Flush(4));
        assert_eq!(views(&mut at), [10, 11, 13]);
        // The first is deleted; then the other.
        at.done(VolumeCall::Thin { views: vec![1], era: 2, at: 4 });
        assert_eq!(views(&mut at), [0, 11, 13]);
        at.done(VolumeCall::Thin { views: vec![], era: 2, at: 4 });
        assert_eq!(views(&mut at), [0, 0, 13]);
        at.done(VolumeCall::Thin { views: vec![], era: 2, at: 4 });
        assert_eq!(at.rows().len(), 1);
    }
}

/// What a head says of its snapshots may come late: some were made meanwhile, and what they saw was given back.
#[test]
fn what_is_said_late_of_snapshots_takes_nothing_from_newer_ones() {
    let mut at = At::new(13);
    at.promise(1);
    at.begin(&[(1, 0)]);
    for (era, value) in [(0, 10), (1, 11), (2, 12), (3, 13)] {
        at.era = era;
        at.write(u64::from(era) + 1, run(0, 1), value);
    }
    at.done(VolumeCall::Flush(4));
    at.done(VolumeCall::Thin { views: vec![], era: 1, at: 3 });
    let seen = [0, 1, 2, 3].map(|era| match at.ask(VolumeCall::Read { run: run(0, 1), at: 0, era }) {
        VolumeAnswer::Read { data, .. } => data.first().copied().unwrap_or(0),
        other => panic!("{other:?}"),
    });
    assert_eq!(seen, [0, 11, 12, 13]);
}

#[test]
fn a_session_begins_once_and_takes_nothing_before() {
    let mut at = At::new(11);
    at.promise(1);
    at.begin(&[(1, 0)]);
    at.write(1, run(0, 1), 1);
    // The same head asks again: what comes before it said how to go on is not taken, and neither is a second beginning.
    at.promise(1);
    let early = at.written(2, run(0, 1), 2);
    assert_eq!(at.refused(early.clone()), Refusal::NotBegun);
    assert_eq!(at.ask(VolumeCall::Fill { common: 1, after: 1 }), VolumeAnswer::Filling(1));
    assert!(matches!(at.refused(VolumeCall::Fill { common: 1, after: 1 }), Refusal::Elsewhere(_)));
    at.done(early);
    at.done(VolumeCall::Join { turns: vec![(1, 0)], end: 2 });
    assert_eq!(at.refused(VolumeCall::Join { turns: vec![(1, 0)], end: 2 }), Refusal::NotBegun);
    assert_eq!(at.first_byte(0, 2), 2, "what came twice threw nothing away");
    at.promise(1);
    let astray = VolumeCall::Begin { turns: vec![(1, 0)], end: 1 };
    assert!(matches!(at.refused(astray), Refusal::Elsewhere(_)), "it stands elsewhere");
}
