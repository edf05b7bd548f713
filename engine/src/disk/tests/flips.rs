//! A byte flipped anywhere on the device: the right value or a typed error, never wrong bytes, never a panic.

use std::sync::Arc;

use super::kv::Rig;
use crate::disk::format::superblock::COPIES;
use crate::disk::{DiskError, OpenError};
use crate::index::MemoryIndex;
use crate::io::{BLOCK, SplitMix64};

fn bytes(n: u64) -> Vec<u8> {
    let mut out = vec![0; usize::try_from([0, 1, 500, 5000, 40_000, 70_000][(n % 6) as usize]).unwrap()];
    SplitMix64::new(n).fill(&mut out);
    out
}

const KEYS: u64 = 9;

fn written() -> Rig {
    let mut rig = Rig::new(12, 1);
    for n in 1..=KEYS {
        rig.put(&format!("k{n}"), n, &bytes(n)).unwrap();
    }
    let handle = rig.handle();
    rig.sim().run(handle.close()).unwrap();
    rig.sim = None;
    rig
}

/// Opens with its index or without and reads everything. True: something was noticed.
fn open_and_read(rig: &mut Rig, with_index: bool, context: &str) -> bool {
    let kept = rig.index.clone();
    if !with_index {
        rig.lose_index();
    }
    let mut noticed = false;
    match rig.try_open() {
        Err(OpenError::Damaged(_) | OpenError::Unformatted | OpenError::Newer(_)) => noticed = true,
        Err(e) => panic!("{context}: {e}"),
        Ok(report) => {
            let told = !report.lost.is_empty() || report.damaged > 0;
            noticed |= told;
            for n in 1..=KEYS {
                match rig.get(&format!("k{n}")) {
                    Ok(Some((sequence, data))) => {
                        assert!(sequence == n && data == bytes(n), "{context}: k{n} has wrong bytes");
                    }
                    // Nothing after the last batch vouches for it, and here no index either: FORMAT.md, known limit.
                    Ok(None) if n == KEYS && !with_index => noticed = true,
                    Ok(None) => assert!(told, "{context}: k{n} is gone without a word: {report:?}"),
                    Err(DiskError::Corrupt { .. }) => noticed = true,
                    Err(e) => panic!("{context}: k{n}: {e}"),
                }
            }
        }
    }
    rig.sim = None;
    rig.index = kept;
    noticed
}

fn flip_each(places: impl Iterator<Item = u64>) -> (u32, u32) {
    let mut rig = written();
    let image = rig.image.snapshot();
    let (mut tried, mut noticed) = (0, 0);
    for at in places {
        for with_index in [true, false] {
            rig.image.restore(&image);
            rig.image.flip(at, 1 << (at % 8));
            // An opening changes the index: each gets the one that was closed, by a replay over a copy of its rows.
            let index = copy(&rig.index);
            let kept = std::mem::replace(&mut rig.index, index);
            let found = open_and_read(&mut rig, with_index, &format!("byte {at} index {with_index}"));
            rig.index = kept;
            tried += 1;
            noticed += u32::from(found);
        }
    }
    (tried, noticed)
}

fn copy(index: &MemoryIndex) -> Arc<MemoryIndex> {
    use crate::index::{Index, Range, Table, WriteSet};
    let new = MemoryIndex::new();
    let mut set = WriteSet::default();
    for table in Table::ALL {
        for pair in index.scan(table, Range::default()) {
            let (key, value) = pair.unwrap();
            set.changes.push((table, key.into_vec(), Some(value.into_vec())));
        }
    }
    new.apply(set).unwrap();
    new.checkpoint().unwrap();
    Arc::new(new)
}

fn segment_start() -> u64 {
    written_place().0
}

/// Start of the open segment, and end of what is written in it.
fn written_place() -> (u64, u64) {
    let mut rig = written();
    rig.open();
    let (at, place) = rig.place("k9");
    let start = rig.handle().shared.layout.segment_start(at.segment);
    (start, place + u64::from(at.len))
}

#[test]
fn in_either_superblock() {
    for copy in COPIES {
        flip_each((copy..copy + 96).step_by(2).chain([copy + 500, copy + 4095]));
    }
}

#[test]
fn in_the_segment_header_and_the_first_batch_header() {
    let start = segment_start();
    let batch = start + BLOCK as u64;
    flip_each((start..start + 64).step_by(3).chain((batch..batch + 160).step_by(3)));
}

#[test]
fn in_every_part_of_the_log() {
    let (start, end) = written_place();
    let (tried, noticed) = flip_each((start + BLOCK as u64..end).step_by(1733));
    assert!(tried > 100 && noticed > 60, "{noticed} of {tried} flips hit something that counts");
}

/// Both copies at once: refused, and nothing on the device is touched.
#[test]
fn in_both_superblocks_at_once_the_device_is_refused_untouched() {
    let mut rig = written();
    for copy in COPIES {
        rig.image.flip(copy + 20, 1);
    }
    let writes = rig.image.counters().writes;
    assert!(matches!(rig.try_open(), Err(OpenError::Damaged(_))));
    assert_eq!(rig.image.counters().writes, writes);
}

/// With one copy damaged the opening repairs it, and at no moment is the whole one the only one being written.
#[test]
fn a_damaged_superblock_is_repaired_even_if_the_power_fails_meanwhile() {
    use crate::io::{CrashPlan, SimFaults};
    for copy in COPIES {
        for cut in 1..=4 {
            for plan in [CrashPlan::LOSE_ALL, CrashPlan::KEEP_ALL, CrashPlan::MIXED] {
                let mut rig = written();
                rig.image.flip(copy + 20, 1);
                let flushes = rig.image.counters().flushes;
                let writes = rig.image.counters().writes;
                rig.image.edit_faults(|faults: &mut SimFaults| {
                    faults.power_off_at_flush = Some(flushes + cut);
                    // The write under way may also be destroyed by the cut.
                    faults.rotten_writes.insert(writes + cut, (20, 1));
                });
                let _interrupted = rig.try_open();
                rig.crash(plan, &mut SplitMix64::new(cut));
                rig.image.edit_faults(|faults| *faults = SimFaults::default());
                rig.index.crash_at(usize::MAX);
                rig.open();
                assert_eq!(rig.get("k3").unwrap(), Some((3, bytes(3).into())), "copy {copy} cut {cut}");
            }
        }
    }
}
