//! The log without crashes: order, group commit, cleaning, space, rebuild.

use std::future::Future;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::kv::{Rig, put_record};
use crate::disk::{Class, DiskError, Durability, SimulatedDisk, State};
use crate::index::{Index, MemoryIndex, Range, Room, Table, WriteSet};
use crate::io::{CrashPlan, SplitMix64};

fn value(n: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0u8; len];
    crate::io::SplitMix64::new(n).fill(&mut out);
    out
}

#[test]
fn what_was_put_is_read_back_after_a_reopening() {
    let mut rig = Rig::new(12, 1);
    for (n, len) in [(1, 0), (2, 1), (3, 4096), (4, 70_000), (5, 1 << 20)] {
        rig.put(&format!("k{n}"), n, &value(n, len)).unwrap();
    }
    rig.delete("k2", 9).unwrap();
    let handle = rig.handle();
    rig.sim().run(handle.close()).unwrap();
    let report = rig.open();
    assert_eq!((report.batches, report.torn_tail, report.lost.len()), (0, false, 0));
    for (n, len) in [(1, 0), (3, 4096), (4, 70_000), (5, 1 << 20)] {
        assert_eq!(rig.get(&format!("k{n}")).unwrap(), Some((n, value(n, len).into())));
    }
    assert_eq!(rig.get("k2").unwrap(), None);
}

#[test]
fn thirty_two_puts_at_once_take_few_batches_and_one_flush_each() {
    let mut rig = Rig::new(12, 2);
    let handle = rig.handle();
    let before = handle.counters().batches.load(Ordering::Relaxed);
    let flushes = handle.counters().flushes.load(Ordering::Relaxed);
    type Put<'a> = Pin<Box<dyn Future<Output = Result<crate::disk::Lsn, DiskError>> + 'a>>;
    let puts: Vec<Put<'_>> = (0..32u64)
        .map(|n| {
            let handle = handle.clone();
            let record = put_record(&handle, &format!("k{n}"), n + 1, &value(n, 4096));
            Box::pin(async move { handle.append(vec![record], Durability::Durable, Class::Client).await })
                as Pin<Box<dyn Future<Output = _>>>
        })
        .collect();
    for result in rig.sim().run_all(puts) {
        result.unwrap();
    }
    let batches = handle.counters().batches.load(Ordering::Relaxed) - before;
    let flushes = handle.counters().flushes.load(Ordering::Relaxed) - flushes;
    assert!(batches <= 2, "{batches} batches");
    assert_eq!(batches, flushes);
}

/// A flush was waited for before the next batch was written, however long the queue: the device idled.
#[test]
fn a_long_queue_is_written_beside_a_flush() {
    let mut rig = Rig::new(12, 2);
    let handle = rig.handle();
    let mut submitted = Vec::new();
    for n in 0..20u64 {
        let record = put_record(&handle, &format!("k{n}"), n + 1, &value(n, 1 << 20));
        let group = handle.submit(vec![record], Durability::Durable, Class::Client);
        submitted.push(rig.sim().run(group).unwrap());
    }
    let mut beside = 0;
    while handle.counters().written_bytes.load(Ordering::Relaxed) < 20 << 20 {
        rig.sim().turn();
        beside += u32::from(rig.sim().writes_beside_a_flush());
    }
    assert!(beside > 0);
    for group in submitted {
        rig.sim().run(group.done()).unwrap();
    }
    for n in 0..20u64 {
        assert_eq!(rig.get(&format!("k{n}")).unwrap(), Some((n + 1, value(n, 1 << 20).into())));
    }
}

type Puts<'a> = Vec<Pin<Box<dyn Future<Output = ()> + 'a>>>;

/// The next batch was formed when the one before was durable and applied: a quick device idled for half of the time.
#[test]
fn what_comes_while_a_quick_device_commits_is_the_batch_behind() {
    const CALLERS: u64 = 24;
    const EACH: u64 = 20;
    let mut rig = Rig::new(12, 3);
    let handle = rig.handle();
    let caller = |caller: u64| {
        let handle = handle.clone();
        async move {
            for n in 0..EACH {
                let record = put_record(&handle, &format!("k{caller}"), n + 1, &value(caller + n, 4096));
                handle.append(vec![record], Durability::Durable, Class::Client).await.unwrap();
            }
        }
    };
    let callers: Puts<'_> =
        (0..CALLERS).map(|n| Box::pin(caller(n)) as Pin<Box<dyn Future<Output = ()>>>).collect();
    rig.sim().run_all(callers);
    let [batches, behind, flushes] = {
        let counters = handle.counters();
        [&counters.batches, &counters.behind, &counters.flushes]
            .map(|counter| counter.load(Ordering::Relaxed))
    };
    assert!(behind > 10, "{behind} of {batches}");
    assert!(flushes <= batches, "one flush for each, or for more: {flushes} for {batches}");
    assert!(batches <= CALLERS * EACH / 3, "{batches} batches of few");
    for n in 0..CALLERS {
        let wanted = Some((EACH, value(n + EACH - 1, 4096).into()));
        assert_eq!(rig.get(&format!("k{n}")).unwrap(), wanted);
    }
}

#[test]
fn a_little_does_not_stand_behind_much() {
    let mut rig = Rig::new(12, 4);
    let handle = rig.handle();
    for round in 0..50u64 {
        let mut groups = Vec::new();
        for n in 0..9u64 {
            let record = put_record(&handle, &format!("k{n}"), round + 1, &value(n, 4096));
            let group = handle.submit(vec![record], Durability::Durable, Class::Client);
            groups.push(rig.sim().run(group).unwrap());
            if n == 7 {
                rig.sim().turn();
            }
        }
        for group in groups {
            rig.sim().run(group.done()).unwrap();
        }
    }
    assert_eq!(handle.counters().behind.load(Ordering::Relaxed), 0);
}

/// A batch behind each commit leaves no moment in which nothing is written: the cleaner must not wait for one.
#[test]
fn who_cleans_has_a_turn_beside_callers_who_never_rest() {
    let mut rig = Rig::new(12, 5);
    for n in 0..40 {
        rig.put(&format!("old{}", n % 20), n + 1, &value(n, 1 << 20)).unwrap();
    }
    let handle = rig.handle();
    let victim = handle.victim(&[]).expect("a segment with dead records");
    let (puts, cleaned_at) = (std::cell::Cell::new(0), std::cell::Cell::new(None));
    let caller = |caller: u64| {
        let (handle, puts) = (handle.clone(), &puts);
        async move {
            for n in 0..60 {
                let record = put_record(&handle, &format!("k{caller}"), n + 1, &value(n, 4096));
                handle.append(vec![record], Durability::Durable, Class::Client).await.unwrap();
                puts.set(puts.get() + 1);
            }
        }
    };
    let clean = async {
        handle.clean(victim).await.unwrap();
        cleaned_at.set(Some(puts.get()));
    };
    let mut all: Puts<'_> = vec![Box::pin(clean)];
    all.extend((0..24).map(|n| Box::pin(caller(n)) as Pin<Box<dyn Future<Output = ()>>>));
    rig.sim().run_all(all);
    assert!(handle.counters().behind.load(Ordering::Relaxed) > 20);
    assert!(cleaned_at.get().is_some_and(|at| at < 700), "cleaned after {cleaned_at:?} of 1440 puts");
}

#[test]
fn what_nobody_waits_for_shares_the_next_batch_and_its_flush_or_goes_soon() {
    let mut rig = Rig::new(12, 7);
    let handle = rig.handle();
    let counted = |handle: &crate::disk::DiskHandle| {
        let counters = handle.counters();
        (counters.batches.load(Ordering::Relaxed), counters.flushes.load(Ordering::Relaxed))
    };
    let before = counted(&handle);
    let submit = |rig: &mut Rig, key: &str, sequence| {
        let handle = rig.handle();
        let record = put_record(&handle, key, sequence, b"lazy");
        rig.sim().run(handle.submit(vec![record], Durability::Lazy, Class::Client)).unwrap()
    };
    let mut lazy = submit(&mut rig, "a", 1);
    rig.sim().turn();
    rig.sim().turn();
    assert_eq!(counted(&handle), before, "it waits for company");
    rig.put("b", 2, b"durable").unwrap();
    assert!(lazy.look().unwrap().is_ok());
    assert_eq!(counted(&handle), (before.0 + 1, before.1 + 1));
    let mut alone = submit(&mut rig, "c", 3);
    for _ in 0..20 {
        rig.sim().turn();
    }
    assert!(alone.look().unwrap().is_ok());
    assert_eq!(rig.get("c").unwrap(), Some((3, b"lazy".as_slice().into())), "applied when it is answered");
}

#[test]
fn what_was_lazy_is_durable_at_once_when_somebody_asks() {
    const ROUNDS: u64 = 40;
    let mut rig = Rig::new(12, 7);
    let handle = rig.handle();
    let turns = |rig: &mut Rig, sequence: u64, durability: Durability, written: bool, hasten: bool| {
        let handle = rig.handle();
        let record = put_record(&handle, "k", sequence, b"lazy");
        let mut group = rig.sim().run(handle.submit(vec![record], durability, Class::Client)).unwrap();
        if written {
            // Its flush waits for company as well.
            rig.sim().pass(Duration::from_millis(6));
            for _ in 0..2 {
                rig.sim().turn();
            }
        }
        if hasten {
            handle.hasten();
        }
        let mut turns = 0_u64;
        while group.look().is_none() {
            rig.sim().turn();
            turns += 1;
        }
        turns
    };
    // A millisecond passes with each turn.
    let (mut durable, mut queued, mut written, mut left) = (0, 0, 0, 0);
    for round in 0..ROUNDS {
        durable += turns(&mut rig, 4 * round + 1, Durability::Durable, false, false);
        queued += turns(&mut rig, 4 * round + 2, Durability::Lazy, false, true);
        written += turns(&mut rig, 4 * round + 3, Durability::Lazy, true, true);
        left += turns(&mut rig, 4 * round + 4, Durability::Lazy, false, false);
    }
    assert_eq!(handle.failure(), None);
    let slack = durable / 4 + ROUNDS;
    assert!(queued <= durable + slack, "{queued} turns, {durable} of what was never lazy");
    assert!(written <= durable + slack, "{written} turns, {durable} of what was never lazy");
    assert!(left >= durable + 5 * ROUNDS, "{left} turns of what nobody asked for, {durable}");
}

#[test]
fn an_older_record_that_comes_late_does_not_win() {
    let mut rig = Rig::new(12, 3);
    rig.put("k", 10, b"new").unwrap();
    rig.put("k", 5, b"old").unwrap();
    assert_eq!(rig.get("k").unwrap(), Some((10, b"new".as_slice().into())));
}

/// Overwrites a few keys until segments roll over several times; cleans when it pays.
fn churn(rig: &mut Rig, rounds: RangeInclusive<u64>, len: usize, keys: u64) {
    for n in rounds {
        let key = format!("k{}", n % keys);
        rig.put(&key, n, &value(n, len)).unwrap();
        let handle = rig.handle();
        while handle.usage().free < handle.usage().capacity / 2 {
            let Some(victim) = handle.victim(&[]) else { break };
            let cleaned = rig.sim().run(handle.clean(victim)).unwrap().unwrap();
            assert!(cleaned.retired, "{cleaned:?}");
            rig.sim().run(handle.checkpoint()).unwrap();
            for _ in 0..10 {
                rig.sim().turn();
            }
        }
    }
}

#[test]
fn cleaning_gives_space_back_and_loses_nothing() {
    let mut rig = Rig::new(12, 4);
    let (rounds, keys) = (900, 40);
    churn(&mut rig, 1..=rounds, 1 << 20, keys);
    assert!(rig.handle().counters().freed.load(Ordering::Relaxed) > 20, "segments went round");
    for n in rounds - keys + 1..=rounds {
        let key = format!("k{}", n % keys);
        assert_eq!(rig.get(&key).unwrap(), Some((n, value(n, 1 << 20).into())), "{key}");
    }
    let usage = rig.handle().usage();
    assert!(usage.live < (keys + 2) * ((1 << 20) + 4096), "{usage:?}");
}

fn copy_of(index: &MemoryIndex) -> Arc<MemoryIndex> {
    let rows = |table| index.scan(table, Range::default()).map(move |pair| (table, pair.unwrap()));
    let changes = Table::ALL.into_iter().flat_map(rows);
    let changes =
        changes.map(|(table, (key, value))| (table, key.into_vec(), Some(value.into_vec()))).collect();
    let copy = MemoryIndex::new();
    copy.apply(WriteSet { changes }).unwrap();
    copy.checkpoint().unwrap();
    Arc::new(copy)
}

/// It came from a backup of the machine's root disk. Segments that were freed and opened again since were unknown to it: the log seemed to end
/// where it stood then, and what came later was written over.
#[test]
fn an_index_from_before_its_last_checkpoint_is_made_anew() {
    let (mut rig, keys) = (Rig::new(12, 7), 30);
    churn(&mut rig, 1..=200, 1 << 20, keys);
    let handle = rig.handle();
    rig.sim().run(handle.checkpoint()).unwrap();
    let old = copy_of(&rig.index);
    churn(&mut rig, 201..=700, 1 << 20, keys);
    rig.sim().run(handle.checkpoint()).unwrap();
    for _ in 0..10 {
        rig.sim().turn();
    }
    drop(handle);
    rig.crash(CrashPlan::KEEP_ALL, &mut SplitMix64::new(1));
    rig.index = old;
    assert!(rig.open().rebuilt.is_some());
    for n in 701 - keys..=700 {
        let key = format!("k{}", n % keys);
        assert_eq!(rig.get(&key).unwrap(), Some((n, value(n, 1 << 20).into())), "{key}");
    }
    // That of now is no older than the tables.
    rig.crash(CrashPlan::KEEP_ALL, &mut SplitMix64::new(2));
    assert!(rig.open().rebuilt.is_none());
}

/// The disk went out when RocksDB had no room for a flush, and stayed out: at the next start it had none to be opened.
#[test]
fn where_the_index_has_no_room_clients_are_refused_and_deletes_are_taken() {
    let mut rig = Rig::new(12, 6);
    let (few, enough) = (Room { free: 1 << 20, total: 64 << 30 }, Room { free: 2 << 30, total: 64 << 30 });
    let (index, handle) = (rig.index.clone(), rig.handle());
    rig.put("before", 1, b"value").unwrap();
    index.set_room(few);
    rig.sim().run(handle.checkpoint()).unwrap();
    assert!(matches!(rig.put("after", 2, b"value"), Err(DiskError::NoSpace)));
    rig.delete("before", 3).unwrap();
    drop(handle);
    rig.sim = None;
    rig.open();
    assert!(matches!(rig.put("after", 4, b"value"), Err(DiskError::NoSpace)), "known from the start");
    index.set_room(enough);
    let handle = rig.handle();
    rig.sim().run(handle.checkpoint()).unwrap();
    rig.put("after", 5, b"value").unwrap();
}

#[test]
fn a_full_disk_refuses_clients_takes_deletes_and_recovers_after_them() {
    let mut rig = Rig::new(12, 5);
    let mut stored = Vec::new();
    let refused = (1..2000u64).find(|n| match rig.put(&format!("k{n}"), *n, &value(*n, 1 << 20)) {
        Ok(_) => {
            stored.push(*n);
            false
        }
        Err(DiskError::NoSpace) => true,
        Err(e) => panic!("{e}"),
    });
    assert!(refused.is_some() && stored.len() > 60, "{}", stored.len());
    for n in &stored {
        assert!(rig.get(&format!("k{n}")).unwrap().is_some());
    }
    for n in &stored {
        rig.delete(&format!("k{n}"), 10_000 + n).unwrap();
    }
    let handle = rig.handle();
    while let Some(victim) = handle.victim(&[]) {
        rig.sim().run(handle.clean(victim)).unwrap();
    }
    rig.sim().run(handle.checkpoint()).unwrap();
    for _ in 0..10 {
        rig.sim().turn();
    }
    for n in 5000..5000 + stored.len() as u64 / 2 {
        rig.put(&format!("k{n}"), 20_000 + n, &value(n, 1 << 20)).unwrap();
    }
}

#[test]
fn a_pinned_segment_is_not_recycled() {
    let mut rig = Rig::new(12, 6);
    rig.put("k", 1, &value(1, 500_000)).unwrap();
    let handle = rig.handle();
    let found = handle.lookup(|index| Ok(super::kv::entry(index, b"k").map(|e| (e.at, vec![e.at]))));
    let (at, pins) = found.unwrap().unwrap();
    churn(&mut rig, 1..=400, 1 << 20, 5);
    assert!(handle.counters().freed.load(Ordering::Relaxed) > 5);
    let record = rig.sim().run(handle.read_uncached(at)).unwrap();
    assert_eq!(record.data(), value(1, 500_000));
    drop(pins);
}

#[test]
fn a_rebuilt_index_equals_the_lost_one() {
    let mut rig = Rig::new(14, 7);
    churn(&mut rig, 1..=300, 300_000, 60);
    for n in 0..10 {
        rig.delete(&format!("k{n}"), 10_000 + n).unwrap();
    }
    let all = |index: &MemoryIndex| -> Vec<_> {
        index.scan(Table::Rows, Range::default()).map(Result::unwrap).collect()
    };
    let before = all(&rig.index);
    let live = rig.handle().usage().live;
    // Not closed: the open segments have no footer.
    rig.sim = None;
    rig.index = Arc::new(MemoryIndex::new());
    let report = rig.open();
    assert!(report.rebuilt.is_some());
    assert_eq!(all(&rig.index), before);
    assert_eq!(rig.handle().usage().live, live);
    rig.put("after", 99_999, b"goes on").unwrap();
    assert!(rig.handle().usage().segments[0] > 0);
    let states = rig.handle().usage().segments;
    assert_eq!(states.iter().sum::<usize>(), 14, "{states:?} {:?}", State::Free);
}

/// The simulation found it: a slow drive still had a segment table in flight when the second checkpoint after it
/// wrote the same copy again, and two writes to one place were in flight at once.
#[test]
fn checkpoints_in_quick_succession_do_not_write_one_table_twice_at_once() {
    let mut rig = Rig::new(12, 40);
    for n in 1..300 {
        rig.put("k", n, b"v").unwrap();
        let handle = rig.handle();
        // The simulated drive asserts that writes in flight never overlap.
        rig.sim().run(handle.checkpoint()).unwrap();
    }
}

/// What a batch changes is found out while the device has it.
#[test]
fn what_a_batch_changes_is_found_out_again_where_the_index_has_changed_meanwhile() {
    let keys: Vec<String> = (0..10).map(|n| format!("k{n:02}")).collect();
    let (mut early, mut anew) = (0, 0);
    for seed in 0..40 {
        let mut rig = Rig::new(12, seed);
        for key in &keys {
            rig.put(key, 1, b"value").unwrap();
        }
        let (handle, live) = (rig.handle(), rig.handle().usage().live);
        let submit = |keys: &[String]| {
            let records = keys.iter().map(|key| put_record(&handle, key, 2, b"other")).collect();
            handle.submit(records, Durability::Durable, Class::Client)
        };
        let [first, mut group] = [&keys[..5], &keys[5..]].map(|keys| rig.sim().run(submit(keys)).unwrap());
        let mut over = false;
        while !rig.sim().knows_what_comes_next() && !over {
            rig.sim().turn();
            over = group.look().is_some();
        }
        early += u64::from(rig.sim().knows_what_comes_next());
        if over {
            continue;
        }
        if seed % 2 == 0 {
            let old = rig.place(&keys[3]).0;
            let change = handle.submit_prune(Box::new(move |tx| {
                tx.delete(Table::Rows, b"k03".to_vec());
                tx.died(old);
                Ok(())
            }));
            rig.sim().run(change).unwrap();
            anew += 1;
        }
        for group in [first, group] {
            rig.sim().run(group.done()).unwrap();
        }
        for key in &keys {
            let found = rig.get(key).unwrap().map(|(sequence, _)| sequence);
            assert_eq!(found, Some(2), "{key}");
        }
        assert_eq!(handle.usage().live, live, "seed {seed}");
    }
    assert!(early > 5 && anew > 2, "{early} {anew}");
}

/// The disk's thread shared the channel's sender with its callers, so the channel never closed: a node that gave a disk up without closing
/// it (another of its disks could not be opened) kept thread, device and index until the process ended.
#[test]
#[expect(clippy::disallowed_methods, reason = "its thread is a real one, and tells nobody that it ends")]
fn a_disk_that_nobody_has_any_more_is_closed() {
    let Rig { image, index, sim } = Rig::new(12, 60);
    drop(sim);
    let options = crate::disk::Open {
        cluster: None,
        cache_bytes: crate::disk::CacheBytes::small(1 << 20),
        progress: &mut |_, _| {},
    };
    let disk = Box::new(image.open());
    let (handle, _) = crate::disk::start_on(disk, index.clone(), Arc::new(super::kv::Kv), options).unwrap();
    let pins = handle.pin(vec![0]);
    let record = super::kv::put_record(&handle, "k", 1, b"value");
    let mut asked = Box::pin({
        let handle = handle.clone();
        async move { handle.submit(vec![record], Durability::Lazy, Class::Client).await }
    });
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let submitted = loop {
        if let std::task::Poll::Ready(submitted) = asked.as_mut().poll(&mut context) {
            break submitted.unwrap();
        }
    };
    drop((asked, submitted, handle));
    let held = |index: &Arc<crate::index::MemoryIndex>| Arc::strong_count(index) > 1;
    assert!(held(&index), "who has pins reads still");
    drop(pins);
    let pause = std::time::Duration::from_millis(10);
    let ended = (0..6000).any(|_| {
        std::thread::sleep(pause);
        !held(&index)
    });
    assert!(ended, "its thread goes on");
    // What was asked for before was done.
    let sim = SimulatedDisk::open(Box::new(image.open()), index, Arc::new(super::kv::Kv)).unwrap();
    assert!(sim.1.records == 0, "it was closed cleanly: {:?}", sim.1);
    assert!(super::kv::entry(sim.0.handle().index(), b"k").is_some());
}
