//! The simulated disk keeps the contract, and its faults do what they say.

use super::super::AlignedBuf;
use super::super::conformance::{self, CAPACITY, expect, run, write};
use super::*;

const B: u64 = BLOCK as u64;

fn put(disk: &mut SimDisk, offset: u64, len: usize, salt: u64) -> io::Result<()> {
    let op = write(disk, 1, offset, len, salt);
    finish(disk, op)
}

fn flush(disk: &mut SimDisk) -> io::Result<()> {
    finish(disk, Op::Flush { token: 2 })
}

fn get(disk: &mut SimDisk, offset: u64) -> io::Result<()> {
    finish(disk, Op::Read { token: 3, offset, buf: AlignedBuf::zeroed(BLOCK) })
}

fn finish(disk: &mut SimDisk, op: Op) -> io::Result<()> {
    let mut done = run(disk, vec![op]);
    done.pop_first().unwrap().1.result
}

fn errno(result: io::Result<()>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

#[test]
fn the_simulated_disk_keeps_the_contract_for_many_seeds() {
    for seed in 0..20 {
        conformance::check_disk(&mut SimDisk::new(CAPACITY, seed), false);
    }
}

#[test]
fn a_tebibyte_costs_what_is_written() {
    let mut disk = SimDisk::new(1 << 40, 1);
    put(&mut disk, (1 << 40) - B, BLOCK, 1).unwrap();
    expect(&mut disk, (1 << 40) - B, BLOCK, 1);
    assert_eq!(disk.image().resident_bytes(), BLOCK);
}

#[test]
fn a_crash_keeps_what_was_flushed_and_may_lose_the_rest() {
    let mut disk = SimDisk::new(CAPACITY, 1);
    let image = disk.image();
    put(&mut disk, 0, BLOCK, 1).unwrap();
    flush(&mut disk).unwrap();
    put(&mut disk, 0, BLOCK, 2).unwrap();
    put(&mut disk, B, BLOCK, 2).unwrap();
    assert_eq!(image.unflushed(), 2);
    let outcome = image.crash(CrashPlan::LOSE_ALL, &mut SplitMix64::new(1));
    assert_eq!(outcome, CrashOutcome { kept: 0, torn: 0, lost: 2 });
    assert_eq!(errno(get(&mut disk, 0)), Some(libc::ENODEV));
    let mut disk = image.open();
    expect(&mut disk, 0, BLOCK, 1);
    assert_eq!(image.peek(B, BLOCK), [0; BLOCK]);
}

#[test]
fn crashes_reach_every_subset_and_tear_between_sectors() {
    let mut disk = SimDisk::new(CAPACITY, 1);
    let image = disk.image();
    for block in 0..2 {
        put(&mut disk, block * B, BLOCK, 1).unwrap();
    }
    let before = image.snapshot();
    let mut subsets = BTreeSet::new();
    let mut torn = 0;
    let mut wanted = vec![0; BLOCK];
    for seed in 0..400 {
        image.restore(&before);
        torn += image.crash(CrashPlan::MIXED, &mut SplitMix64::new(seed)).torn;
        for block in 0..2 {
            conformance::pattern(&mut wanted, block * B, 1);
            let found = image.peek(block * B, BLOCK);
            let sectors = found.chunks(SECTOR).zip(wanted.chunks(SECTOR));
            assert!(sectors.clone().all(|(have, want)| have == want || have == [0; SECTOR]));
            let survived = sectors.filter(|(have, want)| have == want).count();
            subsets.insert((block, survived));
        }
    }
    assert!(torn > 50);
    assert!((0..2).all(|block| (0..=8).all(|survived| subsets.contains(&(block, survived)))), "{subsets:?}");
}

#[test]
fn a_flush_does_not_cover_a_write_that_completes_after_its_submission() {
    // Whatever order the seed gives: a write beside a flush may be lost.
    for seed in 0..50 {
        let mut disk = SimDisk::new(CAPACITY, seed);
        let image = disk.image();
        let op = write(&mut disk, 1, 0, BLOCK, 1);
        run(&mut disk, vec![op, Op::Flush { token: 2 }]);
        assert_eq!(image.unflushed(), 1);
    }
}

#[test]
fn requests_complete_out_of_order_and_the_same_way_for_the_same_seed() {
    let order = |seed| {
        let mut disk = SimDisk::new(CAPACITY, seed);
        for token in 0..50 {
            let op = write(&mut disk, token, token * B, BLOCK, 1);
            disk.submit(op);
        }
        let mut out = Vec::new();
        while out.len() < 50 {
            disk.reap(Wait::AtMost(std::time::Duration::ZERO), &mut out);
        }
        out.iter().map(|completion| completion.token).collect::<Vec<_>>()
    };
    assert_eq!(order(7), order(7));
    assert_ne!(order(7), order(8));
    assert!(!order(7).is_sorted());
}

#[test]
fn planted_errors_hit_the_request_they_name() {
    let mut disk = SimDisk::new(CAPACITY, 1);
    let image = disk.image();
    image.edit_faults(|faults| {
        faults.fail_reads.insert(2);
        faults.fail_writes.insert(2);
        faults.fail_flushes.insert(2);
        faults.unreadable.push(9 * B + 5..9 * B + 6);
    });
    put(&mut disk, 0, BLOCK, 1).unwrap();
    flush(&mut disk).unwrap();
    get(&mut disk, 0).unwrap();
    assert_eq!(errno(put(&mut disk, B, BLOCK, 1)), Some(libc::EIO));
    assert_eq!(errno(flush(&mut disk)), Some(libc::EIO));
    assert_eq!(errno(get(&mut disk, 0)), Some(libc::EIO));
    get(&mut disk, 8 * B).unwrap();
    assert_eq!(errno(get(&mut disk, 9 * B)), Some(libc::ENODATA));
    get(&mut disk, 10 * B).unwrap();
    let wanted = SimCounters { reads: 5, writes: 2, flushes: 2, bytes_read: 5 * B, bytes_written: 2 * B };
    assert_eq!(image.counters(), wanted);
}

#[test]
fn a_flush_after_a_failed_one_succeeds_and_lies_as_fsync_does() {
    let mut disk = SimDisk::new(CAPACITY, 1);
    let image = disk.image();
    image.edit_faults(|faults| _ = faults.fail_flushes.insert(1));
    put(&mut disk, 0, BLOCK, 1).unwrap();
    flush(&mut disk).unwrap_err();
    put(&mut disk, B, BLOCK, 1).unwrap();
    flush(&mut disk).unwrap();
    assert_eq!(image.unflushed(), 1);
    image.crash(CrashPlan::LOSE_ALL, &mut SplitMix64::new(1));
    assert_eq!(image.peek(0, BLOCK), [0; BLOCK]);
    expect(&mut image.open(), B, BLOCK, 1);
}

#[test]
fn a_stuck_write_never_covers_a_later_durable_one() {
    let mut disk = SimDisk::new(CAPACITY, 1);
    let image = disk.image();
    image.edit_faults(|faults| _ = faults.fail_flushes.insert(1));
    put(&mut disk, 0, 2 * BLOCK, 1).unwrap();
    flush(&mut disk).unwrap_err();
    put(&mut disk, B, BLOCK, 2).unwrap();
    flush(&mut disk).unwrap();
    image.crash(CrashPlan::KEEP_ALL, &mut SplitMix64::new(1));
    expect(&mut image.open(), B, BLOCK, 2);
}

#[test]
fn a_lying_flush_makes_nothing_durable() {
    let mut disk = SimDisk::new(CAPACITY, 1);
    let image = disk.image();
    image.edit_faults(|faults| faults.lying_flush = true);
    put(&mut disk, 0, BLOCK, 1).unwrap();
    flush(&mut disk).unwrap();
    assert_eq!(image.unflushed(), 1);
}

#[test]
fn lost_misdirected_and_rotten_writes_are_acknowledged() {
    let mut disk = SimDisk::new(CAPACITY, 1);
    let image = disk.image();
    image.edit_faults(|faults| {
        faults.lost_writes.insert(1);
        faults.misdirected_writes.insert(2, 5 * B);
        faults.rotten_writes.insert(3, (BLOCK + 3, 0x40));
    });
    put(&mut disk, 0, BLOCK, 1).unwrap();
    put(&mut disk, B, BLOCK, 1).unwrap();
    put(&mut disk, 2 * B, 2 * BLOCK, 1).unwrap();
    assert_eq!(image.peek(0, 2 * BLOCK), [0; 2 * BLOCK]);
    let mut wanted = vec![0; BLOCK];
    conformance::pattern(&mut wanted, B, 1);
    assert_eq!(image.peek(5 * B, BLOCK), wanted);
    image.flip(3 * B + 3, 0x40);
    expect(&mut disk, 2 * B, 2 * BLOCK, 1);
}

#[test]
fn the_power_fails_at_the_request_that_is_named() {
    for at_flush in [false, true] {
        let mut disk = SimDisk::new(CAPACITY, 1);
        let image = disk.image();
        image.edit_faults(|faults| match at_flush {
            true => faults.power_off_at_flush = Some(1),
            false => faults.power_off_at_write = Some(2),
        });
        put(&mut disk, 0, BLOCK, 1).unwrap();
        let cut = if at_flush { flush(&mut disk) } else { put(&mut disk, B, BLOCK, 1) };
        assert_eq!(errno(cut), Some(libc::ENODEV));
        assert!(!image.is_powered());
        assert_eq!(errno(put(&mut disk, 2 * B, BLOCK, 1)), Some(libc::ENODEV));
        let outcome = image.crash(CrashPlan::KEEP_ALL, &mut SplitMix64::new(1));
        assert_eq!(outcome.kept, if at_flush { 1 } else { 2 });
        drop(disk);
        let mut disk = image.open();
        expect(&mut disk, 0, BLOCK, 1);
        put(&mut disk, 2 * B, BLOCK, 1).unwrap();
    }
}

#[test]
fn what_is_in_flight_at_a_crash_fails_once_and_may_have_happened() {
    let mut disk = SimDisk::new(CAPACITY, 1);
    let image = disk.image();
    let op = write(&mut disk, 9, 0, BLOCK, 1);
    disk.submit(op);
    image.crash(CrashPlan::KEEP_ALL, &mut SplitMix64::new(1));
    let mut next = image.open();
    expect(&mut next, 0, BLOCK, 1);
    let mut out = Vec::new();
    disk.reap(Wait::Never, &mut out);
    disk.reap(Wait::Never, &mut out);
    assert_eq!(out.len(), 1);
    assert!(out[0].result.is_err() && out[0].buf.is_none());
}

#[test]
fn a_write_through_drive_needs_no_flush() {
    let image = SimImage::new(CAPACITY, 1);
    image.set_write_through(true);
    let mut disk = image.open();
    assert!(disk.geometry().write_through);
    put(&mut disk, 0, BLOCK, 1).unwrap();
    image.crash(CrashPlan::LOSE_ALL, &mut SplitMix64::new(1));
    expect(&mut image.open(), 0, BLOCK, 1);
}

#[test]
fn an_image_goes_back_to_a_snapshot_and_takes_planted_bytes() {
    let mut disk = SimDisk::new(CAPACITY, 1);
    let image = disk.image();
    put(&mut disk, 0, BLOCK, 1).unwrap();
    let before = image.snapshot();
    put(&mut disk, 0, BLOCK, 2).unwrap();
    image.poke(B - 2, &[1, 2, 3, 4]);
    assert_eq!(image.peek(B - 2, 4), [1, 2, 3, 4]);
    image.restore(&before);
    assert_eq!(image.unflushed(), 1);
    expect(&mut image.open(), 0, BLOCK, 1);
}

#[test]
#[should_panic(expected = "writes in flight overlap")]
fn overlapping_writes_in_flight_are_our_bug() {
    let mut disk = SimDisk::new(CAPACITY, 1);
    for token in 0..2 {
        let op = write(&mut disk, token, token * B, 2 * BLOCK, 1);
        disk.submit(op);
    }
}

#[test]
#[should_panic(expected = "opened twice")]
fn an_image_opens_once_at_a_time() {
    let disk = SimDisk::new(CAPACITY, 1);
    let _ = disk.image().open();
}
