//! What a crash leaves on the device and recovery does not take must never come back; what was promised must.

use super::kv::{Rig, SEGMENT, put_record};
use crate::disk::{Class, DiskError, Durability, State};
use crate::io::{BLOCK, CrashPlan, SplitMix64};

fn bytes(n: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    SplitMix64::new(n).fill(&mut out);
    out
}

/// Where the batch of a record that has a batch of its own begins.
fn batch_of(rig: &Rig, key: &str) -> u64 {
    rig.place(key).1 / BLOCK as u64 * BLOCK as u64
}

/// Ten durable puts, each in a batch of its own; returns their LSNs. The index is as of before them.
fn ten(rig: &mut Rig) -> Vec<u64> {
    (1..=10).map(|n| rig.put(&format!("k{n}"), n, &bytes(n, 3000)).unwrap()).collect()
}

fn reopen_without_unsaved(rig: &mut Rig) -> crate::disk::Report {
    rig.sim = None;
    rig.index.crash();
    rig.open()
}

#[test]
fn rot_in_the_middle_is_reported_by_lsn_and_what_follows_is_there() {
    // In the data, in a head, in the batch header: each costs exactly its record.
    for part in ["data", "head", "batch"] {
        let mut rig = Rig::new(12, 1);
        let lsns = ten(&mut rig);
        let (batch, record) = (batch_of(&rig, "k5"), rig.place("k5").1);
        let at = match part {
            "data" => record + 1000,
            "head" => record + 10,
            _ => batch + 20,
        };
        rig.image.flip(at, 0x20);
        let report = reopen_without_unsaved(&mut rig);
        assert_eq!(report.lost, vec![lsns[4]..lsns[5]], "{report:?}");
        for n in (1..=10).filter(|n| *n != 5) {
            let found = rig.get(&format!("k{n}")).unwrap();
            assert_eq!(found, Some((n, bytes(n, 3000).into())), "k{n}");
        }
        // What has a sound head is known, and known to be damaged.
        match rig.get("k5") {
            Err(DiskError::Corrupt { .. }) if part == "data" => {}
            Ok(None) if part != "data" => {}
            other => panic!("{part}: {other:?}"),
        }
        // And the log goes on.
        rig.put("k5", 50, b"again").unwrap();
        let report = reopen_without_unsaved(&mut rig);
        assert!(report.lost.is_empty(), "reported once: {report:?}");
        assert_eq!(rig.get("k5").unwrap(), Some((50, b"again".as_slice().into())));
    }
}

/// A damaged byte cost all records that were in a batch with it, and older ones of the same keys stood in their places.
#[test]
fn what_is_sound_of_a_damaged_batch_stays() {
    for index_lost in [false, true] {
        let mut rig = Rig::new(12, 1);
        rig.put("b", 1, &bytes(1, 3000)).unwrap();
        let handle = rig.handle();
        rig.sim().run(handle.checkpoint()).unwrap();
        let records = ["a", "b", "c"].map(|key| put_record(&handle, key, 2, &bytes(2, 3000))).to_vec();
        rig.sim().run(handle.append(records, Durability::Durable, Class::Client)).unwrap();
        rig.put("after", 3, &bytes(3, 3000)).unwrap();
        let at = rig.place("b").1 + 1000;
        rig.image.flip(at, 0x20);
        rig.sim = None;
        if index_lost {
            rig.lose_index();
        } else {
            rig.index.crash();
        }
        let report = rig.open();
        assert_eq!((report.lost.len() as u64).max(report.damaged), 1, "{report:?}");
        for (key, n) in [("a", 2), ("c", 2), ("after", 3)] {
            assert_eq!(rig.get(key).unwrap(), Some((n, bytes(n, 3000).into())), "{key}");
        }
        let found = rig.get("b");
        assert!(matches!(found, Err(DiskError::Corrupt { .. })), "{found:?}");
    }
}

#[test]
fn a_torn_tail_is_no_loss_and_no_report() {
    let mut rig = Rig::new(12, 2);
    ten(&mut rig);
    rig.put_appended("tail", 11, &bytes(11, 9000)).unwrap();
    let handle = rig.handle();
    let hot = handle.shared.segments().iter().find(|(_, s)| s.state == State::Open).unwrap().0;
    let start = handle.shared.layout.segment_start(hot);
    // Find the last batch: the one that is not yet in the index.
    let mut at = batch_of(&rig, "k10") + BLOCK as u64;
    assert!(rig.image.peek(at, 4) == b"QBAT" && at < start + SEGMENT);
    at += 2 * BLOCK as u64;
    rig.image.flip(at, 1);
    let report = reopen_without_unsaved(&mut rig);
    assert!(report.torn_tail && report.lost.is_empty(), "{report:?}");
    assert_eq!(rig.get("tail").unwrap(), None);
    assert_eq!(rig.get("k10").unwrap(), Some((10, bytes(10, 3000).into())));
}

/// The batch that was in flight at a crash is torn; but its header is whole and says that the one before it was durable.
/// That one has rotted. It was acknowledged, so it is a loss to report, not a torn tail to pass over.
#[test]
fn the_word_of_a_torn_batch_that_an_earlier_one_was_durable_counts() {
    let mut rig = Rig::new(12, 3);
    let lsns = ten(&mut rig);
    rig.image.flip(batch_of(&rig, "k9") + 2000, 1);
    rig.image.flip(batch_of(&rig, "k10") + 2000, 1);
    let report = reopen_without_unsaved(&mut rig);
    assert_eq!(report.lost, vec![lsns[8]..lsns[9]], "{report:?}");
    for n in 1..=8 {
        assert_eq!(rig.get(&format!("k{n}")).unwrap(), Some((n, bytes(n, 3000).into())));
    }
    rig.put("k9", 20, b"again").unwrap();
    assert!(reopen_without_unsaved(&mut rig).lost.is_empty());
}

/// The header of a segment that was opened after the last checkpoint rots: the replay did not look into it, and ended
/// with "torn tail" where everything acknowledged since was lost.
#[test]
fn a_rotten_segment_header_hides_no_acknowledged_batch() {
    for index_lost in [false, true] {
        let mut rig = Rig::new(12, 4);
        for n in 1..=25 {
            rig.put(&format!("k{n}"), n, &bytes(n, 1 << 20)).unwrap();
        }
        let (at, _) = rig.place("k25");
        let start = rig.handle().shared.layout.segment_start(at.segment);
        rig.image.flip(start + 40, 1);
        if index_lost {
            rig.lose_index();
            rig.open();
        } else {
            reopen_without_unsaved(&mut rig);
        }
        for n in 1..=25 {
            assert_eq!(rig.get(&format!("k{n}")).unwrap(), Some((n, bytes(n, 1 << 20).into())), "k{n}");
        }
    }
}

/// Three batches were written and not flushed; the crash took the middle one. The third is whole, was never acknowledged
/// and follows on nothing. Replay passed it over, and a later rebuild brought it back.
#[test]
fn a_batch_beyond_a_torn_tail_never_comes_back() {
    for life in ["replay", "rebuild", "rebuild at once"] {
        let mut rig = Rig::new(12, 5);
        rig.put("first", 1, b"durable").unwrap();
        for (n, key) in ["a", "b", "c"].into_iter().enumerate() {
            rig.put_appended(key, 2 + n as u64, &bytes(n as u64, 3000)).unwrap();
        }
        // "first" is the first batch of its segment; each takes one block.
        let b = batch_of(&rig, "first") + 2 * BLOCK as u64;
        let c = b + BLOCK as u64;
        assert!(rig.image.peek(b, 4) == b"QBAT" && rig.image.peek(c, 4) == b"QBAT");
        rig.sim = None;
        rig.index.crash();
        rig.image.crash(CrashPlan::KEEP_ALL, &mut SplitMix64::new(1));
        rig.image.poke(b, &[0; BLOCK]);
        if life == "rebuild at once" {
            rig.lose_index();
        }
        let report = rig.open();
        assert!(report.lost.is_empty(), "{life} {report:?}");
        let seen = |rig: &mut Rig| ["first", "a", "b", "c"].map(|key| rig.get(key).unwrap().is_some());
        assert_eq!(seen(&mut rig), [true, true, false, false], "{life}");
        if life == "replay" {
            rig.put("late", 9, b"goes on").unwrap();
        }
        for round in 0..2 {
            rig.lose_index();
            rig.open();
            assert_eq!(seen(&mut rig), [true, true, false, false], "{life} {round}");
        }
        assert_eq!(rig.get("late").unwrap().is_some(), life == "replay");
    }
}

/// A full segment's footer goes out with the first batch of the next segment. The crash took that batch and left the
/// footer; the segment was still the head, and took more batches. A rebuild believed the old footer, and did not see them.
#[test]
fn a_footer_that_survived_the_batch_it_was_written_with_hides_nothing() {
    let mut rig = Rig::new(12, 6);
    for n in 1..=15 {
        rig.put(&format!("k{n}"), n, &bytes(n, 1 << 20)).unwrap();
    }
    let (at, _) = rig.place("k15");
    let (kept, image) = (rig.index.unsaved(), rig.image.snapshot());
    rig.put("next", 16, &bytes(16, 1 << 20)).unwrap();
    assert_ne!(rig.place("next").0.segment, at.segment, "it opened a segment");
    let end = rig.handle().shared.layout.segment_start(at.segment) + SEGMENT;
    let footer = rig.image.peek(end - 2 * BLOCK as u64, 2 * BLOCK);
    assert_eq!(&footer[BLOCK..BLOCK + 8], b"QUARRYFT");
    rig.sim = None;
    rig.image.restore(&image);
    rig.image.poke(end - 2 * BLOCK as u64, &footer);
    rig.index.crash_at(kept);
    rig.open();
    rig.put("late", 17, b"acknowledged").unwrap();
    assert_eq!(rig.place("late").0.segment, at.segment, "it went into the old segment");
    rig.lose_index();
    rig.open();
    assert_eq!(rig.get("late").unwrap(), Some((17, b"acknowledged".as_slice().into())));
    for n in 1..=15 {
        assert_eq!(rig.get(&format!("k{n}")).unwrap().map(|(n, _)| n), Some(n));
    }
}

#[test]
fn the_old_bytes_of_a_recycled_segment_never_come_back() {
    let mut rig = Rig::new(12, 7);
    let keys = 20;
    let mut recycled = 0;
    let mut n = 0;
    while recycled < 4 {
        n += 1;
        rig.put(&format!("k{}", n % keys), n, &bytes(n, 1 << 20)).unwrap();
        let handle = rig.handle();
        while handle.usage().free < handle.usage().capacity / 2 {
            let Some(victim) = handle.victim(&[]) else { break };
            rig.sim().run(handle.clean(victim)).unwrap();
            rig.sim().run(handle.checkpoint()).unwrap();
            for _ in 0..10 {
                rig.sim().turn();
            }
        }
        let (at, place) = rig.place(&format!("k{}", n % keys));
        let first = u64::from(at.offset) < 2 * BLOCK as u64;
        let second_use = rig.handle().shared.segments().get(at.segment).seq > 12;
        if !first || !second_use || !rig.image.peek(place + (8 << 20), 64).iter().any(|b| *b != 0) {
            continue;
        }
        // The first batch of a used segment is there, old bytes lie behind it: crash here.
        recycled += 1;
        rig.crash(CrashPlan::MIXED, &mut SplitMix64::new(n));
        if recycled % 2 == 0 {
            rig.lose_index();
        } else {
            rig.index.crash_by(n);
        }
        let report = rig.open();
        assert!(report.lost.is_empty() && report.damaged == 0, "{report:?}");
        for old in n + 1 - keys..=n {
            let found = rig.get(&format!("k{}", old % keys)).unwrap();
            assert_eq!(found, Some((old, bytes(old, 1 << 20).into())), "put {old} of {n}");
        }
    }
}

/// Segments freed with a high sequence, then two losses of the index: the first rebuild gave the same sequence out again,
/// and the second believed the footer of the earlier use.
#[test]
fn a_rebuild_never_gives_a_sequence_out_again() {
    let mut rig = Rig::new(12, 8);
    for n in 1..=40 {
        rig.put("k", n, &bytes(n, 1 << 20)).unwrap();
    }
    let handle = rig.handle();
    while let Some(victim) = handle.victim(&[]) {
        rig.sim().run(handle.clean(victim)).unwrap();
    }
    rig.sim().run(handle.checkpoint()).unwrap();
    for _ in 0..20 {
        rig.sim().turn();
    }
    let highest = |rig: &Rig| rig.handle().shared.segments().iter().map(|(_, s)| s.seq).max().unwrap();
    rig.put("last", 99, b"x").unwrap();
    let before = highest(&rig);
    // The newest segment's own header says freed: as if its last record had just been moved out.
    let (at, _) = rig.place("last");
    let start = rig.handle().shared.layout.segment_start(at.segment);
    let header = crate::disk::format::segment::SegmentHeader::decode(&rig.image.peek(start, BLOCK)).unwrap();
    let freed = crate::disk::format::segment::SegmentHeader { freed: true, ..header };
    rig.image.poke(start, &freed.encode());
    rig.lose_index();
    rig.open();
    rig.put("more", 100, b"y").unwrap();
    assert!(highest(&rig) > before, "{} after {before}", highest(&rig));
}

/// The crash tore the first batch of a segment, and the segment's header rots: what recovery did not take was not destroyed, as the header
/// did not say so any more. A rebuild goes by the first batch then, and believes it.
#[test]
fn a_stale_opening_whose_header_rots_is_destroyed_as_well() {
    let mut rig = Rig::new(12, 9);
    for n in 1..=15 {
        rig.put(&format!("k{n}"), n, &bytes(n, 1 << 20)).unwrap();
    }
    let kept = rig.index.unsaved();
    let (before, _) = rig.place("k15");
    rig.put("next", 16, &bytes(16, 1 << 20)).unwrap();
    let (at, place) = rig.place("next");
    assert_ne!(at.segment, before.segment, "it opened a segment");
    let start = rig.handle().shared.layout.segment_start(at.segment);
    let seq = rig.handle().shared.segments().get(at.segment).seq;
    rig.sim = None;
    rig.index.crash_at(kept);
    rig.image.flip(place + (1 << 19), 1);
    rig.image.flip(start + 40, 1);
    let report = rig.open();
    assert!(report.batches == 0 && report.lost.is_empty(), "{report:?}");
    let header = crate::disk::format::segment::SegmentHeader::decode(&rig.image.peek(start, BLOCK)).unwrap();
    assert!(header.freed && header.seq == seq, "{header:?}");
    for n in 17..=34 {
        rig.put("more", n, &bytes(n, 1 << 20)).unwrap();
    }
    let newest = rig.place("more").0.segment;
    assert!(rig.handle().shared.segments().get(newest).seq > seq, "no sequence is given out twice");
    rig.lose_index();
    let report = rig.open();
    assert!(report.lost.is_empty() && rig.get("next").unwrap().is_none(), "{report:?}");
}
