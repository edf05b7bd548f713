//! The cleaner against writers, and space that is short.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Waker};

use super::kv::{Rig, delete_record, put_record};
use crate::disk::{Class, Cleaned, DiskError, Durability, Location, Lsn};
use crate::io::SplitMix64;

type Boxed<T> = Pin<Box<dyn Future<Output = T>>>;
type Clean = Boxed<Result<Option<Cleaned>, DiskError>>;
type Put = Boxed<Result<Lsn, DiskError>>;

fn bytes(n: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    SplitMix64::new(n).fill(&mut out);
    out
}

fn poll<T>(future: &mut Boxed<T>) -> Option<T> {
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}

/// A small record in a segment that is then filled up and sealed, most of it garbage.
fn sealed_with_one_small(seed: u64) -> (Rig, Location) {
    let mut rig = Rig::new(12, seed);
    rig.put("k", 1, b"old").unwrap();
    for n in 2..=17 {
        rig.put("filler", n, &bytes(n, 1 << 20)).unwrap();
    }
    let (at, _) = rig.place("k");
    assert_eq!(rig.handle().victim(&[]), Some(at.segment));
    (rig, at)
}

#[test]
fn a_move_never_wins_against_an_overwrite_or_a_delete_at_any_step_of_it() {
    for delete in [false, true] {
        let mut inside = 0;
        for step in 0..24 {
            let (mut rig, at) = sealed_with_one_small(step);
            let handle = rig.handle();
            let cleaner = handle.clone();
            let mut clean: Clean = Box::pin(async move { cleaner.clean(at.segment).await });
            let mut cleaned = None;
            for _ in 0..step {
                cleaned = cleaned.or_else(|| poll(&mut clean));
                rig.sim().turn();
            }
            inside += u32::from(cleaned.is_none());
            let record =
                if delete { delete_record(&handle, "k", 100) } else { put_record(&handle, "k", 100, b"new") };
            let writer = handle.clone();
            let class = if delete { Class::Delete } else { Class::Client };
            let mut write: Put =
                Box::pin(async move { writer.append(vec![record], Durability::Durable, class).await });
            let mut written = None;
            while cleaned.is_none() || written.is_none() {
                written = written.or_else(|| poll(&mut write));
                cleaned = cleaned.or_else(|| poll(&mut clean));
                rig.sim().turn();
            }
            written.unwrap().unwrap();
            assert!(cleaned.unwrap().unwrap().unwrap().retired, "step {step}");
            let wanted = (!delete).then(|| (100, b"new".as_slice().into()));
            assert_eq!(rig.get("k").unwrap(), wanted, "step {step}");
            let live = rig.handle().usage().live;
            rig.lose_index();
            rig.open();
            assert_eq!(rig.get("k").unwrap(), wanted, "step {step}, rebuilt");
            assert_eq!(rig.handle().usage().live, live, "step {step}");
        }
        assert!(inside > 3, "some writes came while the cleaner was at it: {inside}");
    }
}

/// A large upload is written without flushes: whole segments fill up before any of their records is applied. They look
/// dead until then. The cleaner took one, and the applier found its segment retired.
#[test]
fn a_sealed_segment_with_unapplied_records_is_no_victim() {
    let mut rig = Rig::new(20, 40);
    let handle = rig.handle();
    let mut puts: Vec<Put> = (1..=30u64)
        .map(|n| {
            let record = put_record(&handle, &format!("k{n}"), n, &bytes(n, 1 << 20));
            let handle = handle.clone();
            Box::pin(async move { handle.append(vec![record], Durability::Appended, Class::Client).await })
                as Put
        })
        .collect();
    let mut answered = 0;
    let (mut clean, mut sealed_unapplied): (Option<Clean>, bool) = (None, false);
    for _ in 0..300 {
        puts.retain_mut(|put| {
            let answer = poll(put);
            answered += usize::from(answer.is_some());
            answer.is_none_or(|answer| answer.is_err())
        });
        if clean.is_none()
            && let Some(victim) = handle.victim(&[])
        {
            let handle = handle.clone();
            clean = Some(Box::pin(async move { handle.clean(victim).await }));
        }
        if let Some(running) = &mut clean
            && poll(running).is_some()
        {
            clean = None;
        }
        sealed_unapplied |= answered > 16 && super::kv::entry(rig.index.as_ref(), b"k1").is_none();
        rig.sim().turn();
    }
    assert!(puts.is_empty() && sealed_unapplied, "the case was met: {answered} answered");
    rig.put("last", 99, b"").unwrap();
    rig.sim().run(handle.checkpoint()).unwrap();
    for n in 1..=30 {
        assert_eq!(rig.get(&format!("k{n}")).unwrap(), Some((n, bytes(n, 1 << 20).into())), "k{n}");
    }
}

/// Puts while a cleaner works as the worker does: only when it is wanted. Fails when nothing moves any more.
fn put_with_cleaner(rig: &mut Rig, key: &str, sequence: u64, value: &[u8]) -> Result<u64, DiskError> {
    let handle = rig.handle();
    let record = put_record(&handle, key, sequence, value);
    let writer = handle.clone();
    let mut put: Put =
        Box::pin(async move { writer.append(vec![record], Durability::Durable, Class::Client).await });
    let mut clean: Option<Clean> = None;
    for _ in 0..200_000 {
        if let Some(answer) = poll(&mut put) {
            if let Some(clean) = clean {
                rig.sim().run(clean).unwrap();
            }
            return answer;
        }
        if clean.is_none()
            && handle.wants_cleaning()
            && let Some(victim) = handle.victim(&[])
        {
            let handle = handle.clone();
            clean = Some(Box::pin(async move { handle.clean(victim).await }));
        }
        if let Some(running) = &mut clean
            && let Some(done) = poll(running)
        {
            done.unwrap();
            clean = None;
        }
        rig.sim().turn();
    }
    panic!("a client waits for space, and nobody makes any: {:?}", handle.usage());
}

/// On a small disk clients began to wait at four free segments and the cleaner to work at one: both waited for ever.
#[test]
fn clients_that_wait_for_space_are_served_or_refused() {
    for (garbage_every, seed) in [(2, 50), (3, 51), (5, 52), (8, 53)] {
        let mut rig = Rig::new(12, seed);
        let mut refused = 0;
        for n in 1..400u64 {
            let key = if n % garbage_every == 0 { "same".to_owned() } else { format!("k{n}") };
            match put_with_cleaner(&mut rig, &key, n, &bytes(n, 1 << 20)) {
                Ok(_) => {}
                Err(DiskError::NoSpace) => refused += 1,
                Err(e) => panic!("{e}"),
            }
            if refused > 3 {
                break;
            }
        }
        assert!(refused > 3, "it filled up");
        let usage = rig.handle().usage();
        assert!(usage.live * 100 / usage.capacity >= 30, "{usage:?}");
    }
}

/// A hundred bytes in a batch of their own take a block. The cleaner moved them eight at a time, a block for each eight;
/// it has to win more than it spends, on a disk that is full of them.
#[test]
fn tiny_records_are_packed_together_by_cleaning() {
    let mut rig = Rig::new(12, 60);
    let total = 45_000u64;
    for n in 1..=total {
        put_with_cleaner(&mut rig, &format!("k{n}"), n, &n.to_le_bytes()).unwrap();
    }
    let handle = rig.handle();
    let usage = handle.usage();
    assert!(usage.live < 16 << 20, "{usage:?}");
    for n in (1..=total).step_by(997) {
        assert_eq!(rig.get(&format!("k{n}")).unwrap(), Some((n, n.to_le_bytes().to_vec().into())));
    }
    // Packed as dense as they are counted: cleaning a packed segment gains nothing, so none is offered for ever.
    for round in 0.. {
        assert!(round < 30, "cleaning never ends: {:?}", handle.usage());
        let Some(victim) = handle.victim(&[]) else { break };
        rig.sim().run(handle.clean(victim)).unwrap();
        rig.sim().run(handle.checkpoint()).unwrap();
        for _ in 0..10 {
            rig.sim().turn();
        }
    }
}

/// The cleaner is stopped before the disk is closed. A client that still waited for space kept the disk from closing.
#[test]
fn a_full_disk_closes_while_clients_wait_for_space() {
    let mut rig = Rig::new(12, 70);
    let handle = rig.handle();
    let mut put: Option<Put> = None;
    for n in 1..300u64 {
        let record = put_record(&handle, "same", n, &bytes(n, 1 << 20));
        let writer = handle.clone();
        let mut next: Put =
            Box::pin(async move { writer.append(vec![record], Durability::Durable, Class::Client).await });
        let mut done = false;
        for _ in 0..500 {
            done = done || poll(&mut next).is_some();
            if done {
                break;
            }
            rig.sim().turn();
        }
        if !done {
            put = Some(next);
            break;
        }
    }
    let mut put = put.expect("without a cleaner a client waits");
    rig.sim().run(handle.close()).unwrap();
    assert!(matches!(poll(&mut put), Some(Err(DiskError::Closed))));
    rig.open();
    assert!(rig.get("same").unwrap().is_some());
}

#[test]
fn a_segment_with_an_unreadable_needed_record_is_kept_and_not_cleaned_for_ever() {
    let (mut rig, at) = sealed_with_one_small(80);
    let (_, place) = rig.place("k");
    rig.image.flip(place + 40, 1);
    let handle = rig.handle();
    let cleaned = rig.sim().run(handle.clean(at.segment)).unwrap().unwrap();
    assert!(!cleaned.retired);
    assert_eq!(handle.victim(&[]), None);
    assert!(matches!(rig.get("k"), Err(DiskError::Corrupt { .. })));
    // Repaired by a newer version, as a replica would: now it can go.
    rig.put("k", 50, b"repaired").unwrap();
    assert_eq!(handle.victim(&[]), Some(at.segment));
    assert!(rig.sim().run(handle.clean(at.segment)).unwrap().unwrap().retired);
    assert_eq!(rig.get("k").unwrap(), Some((50, b"repaired".as_slice().into())));
}

/// One sector that could not be read ended each cleaning, of its segment and of those that were cleaned with it: in the end clients waited
/// for ever, as all that could have been cleaned counted as room to come.
#[test]
fn a_sector_that_cannot_be_read_keeps_nothing_from_being_cleaned_but_what_lies_there() {
    for needed in [true, false] {
        let (mut rig, at) = sealed_with_one_small(81);
        let (_, place) = rig.place("k");
        // Of the small record, or of one that is dead.
        let dead = rig.handle().shared.layout.segment_start(at.segment) + (5 << 20);
        let sector = if needed { place / 4096 * 4096 } else { dead };
        rig.image.edit_faults(|faults| faults.unreadable.push(sector..sector + 4096));
        let handle = rig.handle();
        let cleaned = rig.sim().run(handle.clean(at.segment)).unwrap().unwrap();
        assert_eq!(cleaned.retired, !needed);
        assert_eq!(handle.victim(&[]), None);
        if needed {
            assert!(matches!(rig.get("k"), Err(DiskError::Io { .. })));
        } else {
            assert_eq!(rig.get("k").unwrap(), Some((1, b"old".as_slice().into())));
        }
        assert!(rig.get("filler").unwrap().is_some());
    }
}

/// A device that answers nothing for a while: what was not read must not be remembered as unreadable.
#[test]
fn a_segment_of_which_nothing_can_be_read_now_is_cleaned_when_it_can() {
    let (mut rig, at) = sealed_with_one_small(82);
    let start = rig.handle().shared.layout.segment_start(at.segment);
    rig.image.edit_faults(|faults| faults.unreadable.push(0..start + (16 << 20)));
    let handle = rig.handle();
    assert!(matches!(rig.sim().run(handle.clean(at.segment)), Err(DiskError::Io { .. })));
    rig.image.edit_faults(|faults| faults.unreadable.clear());
    assert_eq!(handle.victim(&[]), Some(at.segment));
    assert!(rig.sim().run(handle.clean(at.segment)).unwrap().unwrap().retired);
    assert_eq!(rig.get("k").unwrap(), Some((1, b"old".as_slice().into())));
}

/// A copy that the cleaner made and that rots is no better than what it was made of, which is there until the copy is in a checkpoint.
#[test]
fn a_damaged_copy_takes_the_place_of_no_whole_record() {
    let (mut rig, at) = sealed_with_one_small(84);
    let handle = rig.handle();
    rig.sim().run(handle.checkpoint()).unwrap();
    rig.sim().run(handle.clean(at.segment)).unwrap();
    let (to, place) = rig.place("k");
    assert_ne!(to.segment, at.segment, "it was moved");
    rig.put("after", 9, b"vouches").unwrap();
    // In its data, the last eight bytes.
    rig.image.flip(place + u64::from(to.len) - 8, 1);
    rig.sim = None;
    rig.index.crash();
    let report = rig.open();
    assert!(report.batches > 0 && report.lost.len() == 1, "{report:?}");
    assert_eq!(rig.get("k").unwrap(), Some((1, b"old".as_slice().into())));
}

/// A segment that was bad as a whole, on a device that reads all else, ended all cleaning with an error, for ever.
#[test]
fn a_segment_of_which_nothing_can_be_read_is_left_and_ends_no_cleaning() {
    let (mut rig, at) = sealed_with_one_small(83);
    let start = rig.handle().shared.layout.segment_start(at.segment);
    rig.image.edit_faults(|faults| faults.unreadable.push(start..start + (16 << 20)));
    let handle = rig.handle();
    let cleaned = rig.sim().run(handle.clean(at.segment)).unwrap().unwrap();
    assert!(!cleaned.retired, "what is needed of it is not given up");
    assert_eq!(handle.victim(&[]), None, "it is not tried for ever");
}

/// A stretch that cannot be read is no dead device: where nothing of what was read at once could be read, all cleaning ended with an error.
/// And it cost 65 failed reads for each block of it.
#[test]
fn a_long_bad_stretch_is_passed_over_and_tried_little() {
    let (mut rig, at) = sealed_with_one_small(83);
    let (_, place) = rig.place("k");
    // From the small record on, over the headers of the next batch; each dead record is a mebibyte.
    let sector = place / 4096 * 4096;
    const BAD: u64 = 600 << 10;
    rig.image.edit_faults(|faults| faults.unreadable.push(sector..sector + BAD));
    let handle = rig.handle();
    let before = handle.counters().reads.load(std::sync::atomic::Ordering::Relaxed);
    let cleaned = rig.sim().run(handle.clean(at.segment)).unwrap().unwrap();
    assert!(!cleaned.retired, "the small record is there");
    let reads = handle.counters().reads.load(std::sync::atomic::Ordering::Relaxed) - before;
    // A read for each window, and one for each batch that is larger; beside it a tenth of the bad blocks and some more.
    assert!(reads < 64 + 2 * 16 + 150 / 4 + 40, "{reads} reads");
    rig.image.edit_faults(|faults| faults.unreadable.clear());
    assert_eq!(rig.get("k").unwrap(), Some((1, b"old".as_slice().into())));
}
