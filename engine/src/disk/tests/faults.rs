//! Drives that fail, lie or write elsewhere.

use super::kv::{Rig, SEGMENT, put_record};
use crate::disk::{Class, DiskError, Durability};
use crate::io::{BLOCK, CrashPlan, SimFaults, SplitMix64};

fn bytes(n: u64) -> Vec<u8> {
    let mut out = vec![0; usize::try_from(1 + n * 7919 % 60_000).unwrap()];
    SplitMix64::new(n).fill(&mut out);
    out
}

/// Puts, deletes and checkpoints until something fails; then everything else must be refused. Returns what was told.
fn history(rig: &mut Rig) -> (Vec<(String, u64, bool)>, bool) {
    let (mut told, mut out) = (Vec::new(), false);
    for n in 1..=8u64 {
        let key = format!("k{n}");
        let result = rig.put(&key, n, &bytes(n)).map(|_| ());
        assert!(!(out && result.is_ok()), "acknowledged after the disk was out");
        match result {
            Ok(()) => told.push((key, n, false)),
            Err(_) => out = true,
        }
        if n == 4 {
            match rig.delete("k2", 20) {
                Ok(_) => told.push(("k2".to_owned(), 20, true)),
                Err(_) => out = true,
            }
            let handle = rig.handle();
            out |= rig.sim().run(handle.checkpoint()).is_err();
        }
    }
    for _ in 0..5 {
        rig.sim().turn();
    }
    out |= rig.handle().failure().is_some();
    (told, out)
}

fn check(rig: &mut Rig, told: &[(String, u64, bool)], context: &str) {
    for (key, n, delete) in told {
        if !delete && told.iter().any(|(other, _, deleted)| other == key && *deleted) {
            continue;
        }
        let found = rig.get(key).unwrap_or_else(|e| panic!("{context}: {key}: {e}"));
        let wanted = (!delete).then(|| (*n, bytes(*n).into()));
        assert!(found == wanted, "{context}: {key} shows {:?}", found.map(|(n, _)| n));
    }
}

fn fail_each(count: impl Fn(&Rig) -> u64, plant: impl Fn(&mut SimFaults, u64)) -> u64 {
    let mut healthy = Rig::new(12, 1);
    let before = count(&healthy);
    let (told, out) = history(&mut healthy);
    assert!(!out && told.len() == 9);
    let total = count(&healthy) - before;
    for n in 1..=total {
        let mut rig = Rig::new(12, 1);
        let first = count(&rig);
        rig.image.edit_faults(|faults| plant(faults, first + n));
        let (told, out) = history(&mut rig);
        assert!(out, "number {n} of {total} failed and the disk is still in");
        assert!(matches!(rig.put("late", 99, b""), Err(DiskError::Failed(_))));
        assert!(matches!(rig.get("k1"), Ok(None) | Err(DiskError::Failed(_))), "reads are refused as well");
        let handle = rig.handle();
        assert!(rig.sim().run(handle.checkpoint()).is_err());
        rig.crash(CrashPlan::MIXED, &mut SplitMix64::new(n));
        rig.index.crash_by(n);
        rig.image.edit_faults(|faults| *faults = SimFaults::default());
        let report = rig.open();
        assert!(report.lost.is_empty(), "{n}: {report:?}");
        check(&mut rig, &told, &format!("number {n} of {total}"));
    }
    total
}

#[test]
fn any_failed_write_takes_the_disk_out_and_loses_nothing_acknowledged() {
    let plant = |faults: &mut SimFaults, n| {
        faults.fail_writes.insert(n);
    };
    assert!(fail_each(|rig| rig.image.counters().writes, plant) > 8);
}

#[test]
fn any_failed_flush_takes_the_disk_out_and_loses_nothing_acknowledged() {
    let plant = |faults: &mut SimFaults, n| {
        faults.fail_flushes.insert(n);
    };
    assert!(fail_each(|rig| rig.image.counters().flushes, plant) > 8);
}

/// Whoever waited for a checkpoint that was running when the disk went out waited for ever.
#[test]
fn a_checkpoint_that_was_waited_for_is_answered_when_the_index_or_the_disk_fails() {
    let mut rig = Rig::new(12, 2);
    rig.put("k", 1, b"v").unwrap();
    rig.index.fail_after(0);
    let handle = rig.handle();
    assert!(rig.sim().run(handle.checkpoint()).is_err());
    assert!(handle.failure().is_some());
    rig.crash(CrashPlan::LOSE_ALL, &mut SplitMix64::new(1));
    rig.index.crash();
    rig.open();
    assert_eq!(rig.get("k").unwrap(), Some((1, b"v".as_slice().into())));
}

/// Who waits for the log alone is told as soon as it has the record, whatever the index says then.
#[test]
fn a_group_is_durable_before_the_index_has_it() {
    let mut rig = Rig::new(12, 4);
    rig.put("k", 1, b"v").unwrap();
    rig.index.fail_after(0);
    let handle = rig.handle();
    let record = put_record(&handle, "k", 2, b"w");
    let group = handle.submit(vec![record], Durability::Durable, Class::Client);
    let group = rig.sim().run(group).unwrap();
    assert!(rig.sim().run(group.durability().wait()));
    assert!(rig.sim().run(group.done()).is_err());
    rig.crash(CrashPlan::LOSE_ALL, &mut SplitMix64::new(1));
    rig.index.crash();
    rig.open();
    assert_eq!(rig.get("k").unwrap(), Some((2, b"w".as_slice().into())));
}

#[test]
fn a_group_whose_flush_failed_is_never_durable() {
    let mut rig = Rig::new(12, 5);
    rig.put("k", 1, b"v").unwrap();
    let next = rig.image.counters().flushes;
    rig.image.edit_faults(|faults| faults.fail_flushes.extend(next..next + 100));
    let handle = rig.handle();
    let record = put_record(&handle, "k", 2, b"w");
    let group = handle.submit(vec![record], Durability::Durable, Class::Client);
    let group = rig.sim().run(group).unwrap();
    let durability = group.durability();
    assert!(!rig.sim().run(durability.wait()));
    assert!(rig.sim().run(group.done()).is_err());
    assert!(!rig.sim().run(durability.wait()), "nor later");
}

/// An index-only change that failed left the segment map changed and the disk in.
#[test]
fn an_index_that_refuses_a_change_takes_the_disk_out() {
    let mut rig = Rig::new(12, 3);
    rig.put("k", 1, b"v").unwrap();
    rig.index.fail_after(0);
    let handle = rig.handle();
    let change = handle.submit_prune(Box::new(|tx| {
        tx.put(crate::index::Table::Rows, b"x".to_vec(), b"y".to_vec());
        Ok(())
    }));
    assert!(rig.sim().run(change).is_err());
    assert!(matches!(rig.put("k", 2, b"w"), Err(DiskError::Failed(_))));
}

/// Each write of a history is lost, lands elsewhere, or has a byte changed: never wrong bytes, and what is missing is
/// reported or an error.
#[test]
fn lost_misdirected_and_rotten_writes_never_give_wrong_bytes() {
    for what in ["lost", "misdirected", "rotten"] {
        for nth in 1..=11u64 {
            for index_kept in [true, false] {
                let mut rig = Rig::new(12, 4);
                let n = rig.image.counters().writes + nth;
                let elsewhere = rig.handle().shared.layout.segment_start(7) + 3 * BLOCK as u64;
                rig.image.edit_faults(|faults| {
                    match what {
                        "lost" => drop(faults.lost_writes.insert(n)),
                        "misdirected" => drop(faults.misdirected_writes.insert(n, elsewhere)),
                        _ => drop(faults.rotten_writes.insert(n, (150, 8))),
                    };
                });
                let (told, out) = history(&mut rig);
                assert!(!out && told.len() == 9, "the drive said nothing");
                rig.crash(CrashPlan::LOSE_ALL, &mut SplitMix64::new(n));
                rig.image.edit_faults(|faults| *faults = SimFaults::default());
                if index_kept {
                    rig.index.crash_at(usize::MAX);
                } else {
                    rig.index.crash();
                }
                let report = rig.open();
                let known = !report.lost.is_empty() || report.rebuilt.is_some() || report.torn_tail;
                for (key, version, _) in told.iter().filter(|(_, _, delete)| !delete) {
                    match rig.get(key) {
                        Ok(Some((found, data))) => {
                            assert!(found == *version && data == bytes(*version), "{what} {nth} {key}");
                        }
                        Ok(None) if key == "k2" => {}
                        Ok(None) => assert!(known || nth >= 10, "{what} {nth} {key} is gone without a word"),
                        Err(DiskError::Corrupt { .. }) => {}
                        Err(e) => panic!("{what} {nth} {key}: {e}"),
                    }
                }
            }
        }
    }
}

/// A drive that swaps two blocks of the same device: each verifies, at the wrong place.
#[test]
fn a_record_at_the_place_of_another_is_found_by_its_identity() {
    let mut rig = Rig::new(12, 5);
    rig.put("a", 1, &[1; 100]).unwrap();
    rig.put("b", 2, &[2; 100]).unwrap();
    let ((a, at_a), (b, at_b)) = (rig.place("a"), rig.place("b"));
    assert_eq!(a.len, b.len);
    let other = rig.image.peek(at_b, b.len as usize);
    rig.image.poke(at_a, &other);
    let handle = rig.handle();
    let found = rig.sim().run(handle.read_uncached(a)).unwrap();
    assert_eq!(found.view().key, b"b", "verified, but another key: the caller compares it");
    // Below the log's own checks it is a damaged batch.
    rig.sim = None;
    rig.index.crash();
    let report = rig.open();
    assert_eq!(report.lost.len(), 1);
    assert_eq!(rig.get("a").unwrap(), None);
}

/// One sector that cannot be read kept the whole disk from opening.
#[test]
fn a_sector_that_cannot_be_read_does_not_keep_the_disk_from_opening() {
    for index_lost in [false, true] {
        let mut rig = Rig::new(12, 6);
        let (told, _) = history(&mut rig);
        let (_, place) = rig.place("k6");
        let sector = place / BLOCK as u64 * BLOCK as u64;
        rig.image.edit_faults(|faults| faults.unreadable.push(sector..sector + BLOCK as u64));
        rig.sim = None;
        if index_lost {
            rig.lose_index();
        } else {
            rig.index.crash();
        }
        let report = rig.open();
        assert!(report.lost.len() == 1 || report.damaged > 0, "{report:?}");
        assert_eq!(rig.get("k6").unwrap(), None);
        let rest: Vec<_> = told.into_iter().filter(|(key, ..)| key != "k6").collect();
        check(&mut rig, &rest, "with a bad sector");
    }
}

/// What could not be read was taken for what had never been written: a device whose path was gone for some seconds while it was opened
/// came up empty, or without its last batches, and was written over.
#[test]
fn a_device_that_answers_nothing_while_it_is_opened_is_not_taken_for_an_empty_one() {
    for index_lost in [false, true] {
        let mut refused = 0;
        for begins in (3..40).step_by(4) {
            let mut rig = Rig::new(12, 6);
            let (told, _) = history(&mut rig);
            rig.sim = None;
            if index_lost {
                rig.lose_index();
            } else {
                rig.index.crash();
            }
            let from = rig.image.counters().reads + begins;
            rig.image.edit_faults(|faults| faults.fail_reads.extend(from..from + 100_000));
            refused += u64::from(rig.try_open().is_err());
            rig.sim = None;
            rig.image.edit_faults(|faults| faults.fail_reads.clear());
            let report = rig.open();
            assert!(report.lost.is_empty() && report.damaged == 0, "{begins}: {report:?}");
            check(&mut rig, &told, &format!("silent from read {begins} on"));
        }
        assert!(refused > 3, "only {refused} of ten openings met it");
    }
}

/// Nothing behind it could say that it had been promised, so that its loss went unsaid.
#[test]
fn a_last_batch_that_cannot_be_read_is_reported_lost() {
    let mut rig = Rig::new(12, 6);
    let (told, _) = history(&mut rig);
    let (_, place) = rig.place("k8");
    let batch = place / BLOCK as u64 * BLOCK as u64;
    rig.image.edit_faults(|faults| faults.unreadable.push(batch..batch + BLOCK as u64));
    rig.sim = None;
    rig.index.crash();
    let report = rig.open();
    assert!(report.lost.len() == 1 && report.nameless, "{report:?}");
    let rest: Vec<_> = told.into_iter().filter(|(key, ..)| key != "k8").collect();
    check(&mut rig, &rest, "without the last batch");
    rig.image.edit_faults(|faults| faults.unreadable.clear());
    let report = rig.open();
    assert!(report.lost.is_empty() && !report.nameless, "it is told once: {report:?}");
    check(&mut rig, &rest, "without the last batch, opened again");
}

/// A sector that nothing was ever written to has lost nothing.
#[test]
fn a_closed_log_has_lost_nothing_where_its_next_batch_would_be() {
    let mut rig = Rig::new(12, 6);
    let (told, _) = history(&mut rig);
    let (at, place) = rig.place("k8");
    let next = (place + u64::from(at.len)).next_multiple_of(BLOCK as u64);
    let handle = rig.handle();
    rig.sim().run(handle.close()).unwrap();
    rig.sim = None;
    rig.image.edit_faults(|faults| faults.unreadable.push(next..next + BLOCK as u64));
    let report = rig.open();
    assert!(report.lost.is_empty() && !report.nameless && report.rebuilt.is_none(), "{report:?}");
    check(&mut rig, &told, "with a bad sector behind it");
}

/// An index was taken for one that is ahead of the log, and destroyed: what it made anew from the log lacked what could not be read.
#[test]
fn an_index_that_has_the_last_batch_stands_though_the_medium_cannot_read_it() {
    let mut rig = Rig::new(12, 6);
    let (told, _) = history(&mut rig);
    let (_, place) = rig.place("k8");
    let (handle, batch) = (rig.handle(), place / BLOCK as u64 * BLOCK as u64);
    let durable = handle.durable();
    rig.sim().run(handle.close()).unwrap();
    rig.sim = None;
    rig.image.edit_faults(|faults| faults.unreadable.push(batch..batch + BLOCK as u64));
    let report = rig.open();
    assert!(report.rebuilt.is_none() && !report.nameless, "{report:?}");
    assert_eq!(rig.handle().durable(), durable);
    assert!(matches!(rig.get("k8"), Err(DiskError::Io { .. })), "it is missed, and not forgotten");
    let rest: Vec<_> = told.into_iter().filter(|(key, ..)| key != "k8").collect();
    check(&mut rig, &rest, "with an unreadable last batch");
}

/// Who noted how far a log was durable finds out that a device is an older copy of itself, whatever becomes of its index.
#[test]
fn how_far_a_log_is_durable_never_falls_and_an_older_copy_is_behind() {
    let all = usize::try_from(13 * SEGMENT).unwrap();
    for index_lost in [false, true] {
        let mut rig = Rig::new(12, 6);
        rig.put("a", 1, b"one").unwrap();
        let (mut noted, older) = (rig.handle().durable(), rig.image.peek(0, all));
        for seed in 0..4 {
            rig.put(&format!("b{seed}"), seed + 2, b"more").unwrap();
            assert!(rig.handle().durable() > noted);
            noted = rig.handle().durable();
            rig.crash(CrashPlan::LOSE_ALL, &mut SplitMix64::new(seed));
            if index_lost {
                rig.lose_index();
            }
            rig.open();
            assert!(rig.handle().durable() >= noted, "{seed}, {index_lost}");
        }
        rig.sim = None;
        rig.image.poke(0, &older);
        rig.open();
        assert!(rig.handle().durable() < noted);
        assert!(rig.get("a").unwrap().is_some() && rig.get("b0").unwrap().is_none());
    }
}

/// One of the two copies of the superblock that could not be read kept the disk from opening, as no copy that was only damaged did.
#[test]
fn a_copy_of_the_superblock_that_cannot_be_read_is_made_good_by_the_other() {
    use crate::disk::OpenError;
    use crate::disk::format::superblock::COPIES;
    for copy in COPIES {
        let mut rig = Rig::new(12, 8);
        rig.put("a", 1, b"one").unwrap();
        rig.sim = None;
        rig.image.edit_faults(|faults| faults.unreadable.push(copy..copy + BLOCK as u64));
        rig.open();
        assert_eq!(rig.get("a").unwrap(), Some((1, b"one".as_slice().into())));
        rig.sim = None;
        rig.image.edit_faults(|faults| {
            faults.unreadable = COPIES.map(|copy| copy..copy + BLOCK as u64).to_vec();
        });
        let refused = rig.try_open();
        assert!(matches!(refused, Err(OpenError::Damaged(_))), "{:?}", refused.err());
    }
}

/// The footer of a segment that was open at a start left out what lay beside a damaged record, and a rebuild believes footers.
#[test]
fn what_lies_beside_a_damaged_record_is_found_by_a_rebuild_also_after_a_restart_and_more_writes() {
    let mut rig = Rig::new(12, 9);
    let handle = rig.handle();
    let both = vec![put_record(&handle, "a", 1, b"lost"), put_record(&handle, "b", 2, b"kept")];
    rig.sim().run(handle.append(both, Durability::Durable, Class::Client)).unwrap();
    rig.sim().run(handle.close()).unwrap();
    let (_, place) = rig.place("a");
    rig.image.flip(place + 40, 1);
    rig.sim = None;
    rig.open();
    for n in 3..=40 {
        rig.put(&format!("k{n}"), n, &vec![1; 1 << 20]).unwrap();
    }
    rig.lose_index();
    let report = rig.open();
    assert_eq!(report.damaged, 1, "{report:?}");
    assert_eq!(rig.get("a").unwrap(), None);
    assert_eq!(rig.get("b").unwrap(), Some((2, b"kept".as_slice().into())));
    assert!(rig.get("k3").unwrap().is_some() && rig.get("k40").unwrap().is_some());
}

/// What an index row says is not believed blindly.
#[test]
fn impossible_places_in_the_index_are_errors_not_panics() {
    use crate::disk::Location;
    use crate::index::{Index, Table, WriteSet};
    let mut rig = Rig::new(12, 7);
    let (handle, max) = (rig.handle(), u32::MAX);
    for (segment, offset, len) in
        [(12, 4096, 64), (max, 0, 64), (0, max, 64), (0, 4096, 0), (0, 4096, max), (0, (16 << 20) - 8, 64)]
    {
        let at = Location { segment, offset, len };
        assert!(matches!(rig.sim().run(handle.read(at)), Err(DiskError::Corrupt { .. })), "{at:?}");
        assert_eq!(rig.sim().run(handle.salvage_head(at)), None);
        let found = handle.lookup(|_| Ok(Some(((), vec![at])))).unwrap();
        assert!(found.is_some());
    }
    // A position that names a segment the device has not: the index is stale.
    for at in [12u32, u32::MAX] {
        rig.put("k", 1, b"v").unwrap();
        let row = rig.index.get(Table::System, b"p").unwrap().unwrap();
        let mut bad = row.clone();
        bad[45..49].copy_from_slice(&at.to_le_bytes());
        rig.sim = None;
        rig.index.apply(WriteSet { changes: vec![(Table::System, b"p".to_vec(), Some(bad))] }).unwrap();
        let report = rig.open();
        assert!(report.rebuilt.is_some());
        assert_eq!(rig.get("k").unwrap(), Some((1, b"v".as_slice().into())));
    }
}

/// Submits so many puts of 4 KiB.
fn submit(rig: &mut Rig, keys: std::ops::Range<u64>) -> Vec<crate::disk::Submitted> {
    let handle = rig.handle();
    let one = |n: u64| {
        let record = put_record(&handle, &format!("k{n}"), n + 1, &[7; 4096]);
        let group = handle.submit(vec![record], Durability::Durable, Class::Client);
        rig.sim().run(group).unwrap()
    };
    keys.map(one).collect()
}

/// What is behind goes to the device with nobody looking: it must not be written, flushed or told behind what failed.
#[test]
fn what_stands_behind_a_commit_that_fails_fails_with_it_and_is_not_written() {
    let mut seen = [0, 0];
    for seed in 0..60u64 {
        let flush = seed % 2 == 1;
        let mut rig = Rig::new(12, seed);
        let handle = rig.handle();
        let counters = rig.image.counters();
        rig.image.edit_faults(|faults| {
            if flush {
                faults.fail_flushes.insert(counters.flushes + 1);
            } else {
                faults.fail_writes.insert(counters.writes + 1);
            }
        });
        let mut groups = submit(&mut rig, 0..4);
        rig.sim().turn();
        groups.extend(submit(&mut rig, 4..8));
        let behind = || handle.counters().behind.load(std::sync::atomic::Ordering::Relaxed) > 0;
        for _ in 0..4 {
            rig.sim().turn();
        }
        let two = behind() && handle.failure().is_some();
        for group in groups {
            let durable = group.durability();
            assert!(rig.sim().run(group.done()).is_err(), "seed {seed}");
            assert!(!rig.sim().run(durable.wait()), "seed {seed}");
        }
        rig.crash(CrashPlan::KEEP_ALL, &mut SplitMix64::new(seed));
        rig.image.edit_faults(|faults| *faults = SimFaults::default());
        let report = rig.open();
        assert!(report.lost.is_empty(), "{seed}: {report:?}");
        for n in 4..8 {
            assert!(!two || rig.get(&format!("k{n}")).unwrap().is_none(), "seed {seed}: k{n} was written");
        }
        seen[usize::from(flush)] += u32::from(two);
    }
    assert!(seen.iter().all(|seen| *seen > 5), "{seen:?}");
}
