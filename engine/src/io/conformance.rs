//! The contract of [`Disk`], run over every body.
//!
//! Invariant: needs a device of at least [`CAPACITY`] bytes, of which it overwrites all.

#![expect(clippy::disallowed_methods, reason = "the contract has time in it: how long a reap sleeps")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{AlignedBuf, BLOCK, Completion, Disk, Gather, IN_PLACE_FROM, Op, Token, Wait, aligned_bytes};

/// What the suite needs of a device.
pub(crate) const CAPACITY: u64 = 64 << 20;

const LONG: Duration = Duration::from_secs(30);

/// Run everything. `sleeps` is false for a body that never blocks, so that there is nothing to wake.
pub(crate) fn check_disk(disk: &mut dyn Disk, sleeps: bool) {
    assert!(disk.geometry().capacity >= CAPACITY);
    assert!(disk.geometry().capacity.is_multiple_of(BLOCK as u64));
    reads_what_it_wrote(disk);
    flush_follows_writes(disk);
    writes_durably(disk);
    durable_writes_end_in_their_order_where_they_are_pipelined(disk);
    carries_many_requests_at_once(disk);
    carries_large_requests(disk);
    hands_the_same_buffers_back_from_reads(disk);
    gathers_pieces(disk);
    refuses_what_lies_beyond_the_end(disk);
    idle_reaps_return(disk);
    if sleeps {
        wake_interrupts_a_long_sleep(disk);
        wake_before_the_sleep_is_kept(disk);
        no_wake_up_is_lost_in_a_race(disk);
    }
}

/// Bytes that tell where they belong.
pub(crate) fn pattern(buf: &mut [u8], offset: u64, salt: u64) {
    for (index, word) in buf.chunks_exact_mut(8).enumerate() {
        let value = offset.wrapping_add(index as u64 * 8).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt;
        word.copy_from_slice(&value.to_le_bytes());
    }
}

pub(crate) fn write(disk: &mut dyn Disk, token: Token, offset: u64, len: usize, salt: u64) -> Op {
    let mut buf = disk.buffer(len);
    pattern(&mut buf, offset, salt);
    Op::Write { token, offset, data: buf.into() }
}

fn read(disk: &mut dyn Disk, token: Token, offset: u64, len: usize) -> Op {
    let mut buf = disk.buffer(len);
    buf.fill(0xee);
    Op::Read { token, offset, buf }
}

/// Submit all, then reap until each has come back exactly once.
pub(crate) fn run(disk: &mut dyn Disk, ops: Vec<Op>) -> BTreeMap<Token, Completion> {
    let expected = ops.len();
    for op in ops {
        disk.submit(op);
    }
    let mut done = BTreeMap::new();
    let deadline = Instant::now() + LONG;
    while done.len() < expected {
        assert!(Instant::now() < deadline, "only {} of {expected} completed", done.len());
        let mut out = Vec::new();
        disk.reap(Wait::AtMost(Duration::from_secs(1)), &mut out);
        for completion in out {
            let token = completion.token;
            assert!(done.insert(token, completion).is_none(), "request {token} completed twice");
        }
    }
    let mut more = Vec::new();
    disk.reap(Wait::Never, &mut more);
    assert!(more.is_empty(), "completions nobody asked for");
    done
}

fn run_ok(disk: &mut dyn Disk, ops: Vec<Op>) -> BTreeMap<Token, Completion> {
    let done = run(disk, ops);
    for completion in done.values() {
        completion.result.as_ref().unwrap();
    }
    done
}

pub(crate) fn expect(disk: &mut dyn Disk, offset: u64, len: usize, salt: u64) {
    let op = read(disk, 0, offset, len);
    let done = run_ok(disk, vec![op]);
    let mut wanted = vec![0; len];
    pattern(&mut wanted, offset, salt);
    assert!(done[&0].buf.as_deref() == Some(&wanted[..]), "wrong bytes at {offset}+{len}");
}

fn reads_what_it_wrote(disk: &mut dyn Disk) {
    let last = CAPACITY - BLOCK as u64;
    let places = [(0, BLOCK), (BLOCK as u64, 3 * BLOCK), (1 << 20, 1 << 20), (last, BLOCK)];
    for salt in [1, 2] {
        let ops = (0..).zip(places).map(|(token, (at, len))| write(disk, token, at, len, salt)).collect();
        run_ok(disk, ops);
        for (at, len) in places {
            expect(disk, at, len, salt);
        }
    }
}

fn flush_follows_writes(disk: &mut dyn Disk) {
    let op = write(disk, 1, 0, BLOCK, 3);
    run_ok(disk, vec![op]);
    let done = run_ok(disk, vec![Op::Flush { token: 77 }]);
    assert!(done[&77].buf.is_none());
    // A flush beside writes that it need not cover completes as well.
    let op = write(disk, 2, BLOCK as u64, BLOCK, 3);
    run_ok(disk, vec![op, Op::Flush { token: 3 }, Op::Flush { token: 4 }]);
    expect(disk, 0, 2 * BLOCK, 3);
}

fn writes_durably(disk: &mut dyn Disk) {
    let durably = |op| match op {
        Op::Write { token, offset, data } => Op::WriteDurably { token, offset, data },
        other => other,
    };
    let mut ops: Vec<Op> =
        (0..20).map(|token| durably(write(disk, token, token << 20, 3 * BLOCK, 9))).collect();
    ops.extend([write(disk, 20, 20 << 20, BLOCK, 9), Op::Flush { token: 21 }]);
    run_ok(disk, ops);
    for token in 0..20 {
        expect(disk, token << 20, 3 * BLOCK, 9);
    }
}

fn durable_writes_end_in_their_order_where_they_are_pipelined(disk: &mut dyn Disk) {
    for round in 0..10 {
        if !disk.pipelines() {
            continue;
        }
        for token in 0..8 {
            let Op::Write { token, offset, data } = write(disk, token, token << 20, BLOCK, round) else {
                unreachable!("that is what it makes")
            };
            disk.submit(Op::WriteDurably { token, offset, data });
        }
        let mut done = Vec::new();
        while done.len() < 8 {
            disk.reap(Wait::AtMost(LONG), &mut done);
        }
        let order: Vec<Token> = done.iter().map(|one| one.token).collect();
        assert_eq!(order, Vec::from_iter(0..8));
    }
}

fn carries_many_requests_at_once(disk: &mut dyn Disk) {
    const COUNT: u64 = 2000;
    let ops = (0..COUNT).map(|token| write(disk, token, token * BLOCK as u64, BLOCK, 4)).collect();
    run_ok(disk, ops);
    let ops = (0..COUNT).map(|token| read(disk, token, token * BLOCK as u64, BLOCK)).collect();
    for (token, completion) in run_ok(disk, ops) {
        let mut wanted = vec![0; BLOCK];
        pattern(&mut wanted, token * BLOCK as u64, 4);
        assert!(completion.buf.as_deref() == Some(&wanted[..]), "wrong bytes for request {token}");
    }
}

fn carries_large_requests(disk: &mut dyn Disk) {
    for len in [8 << 20, (12 << 20) + BLOCK] {
        let op = write(disk, 5, 4 << 20, len, len as u64);
        run_ok(disk, vec![op]);
        expect(disk, 4 << 20, len, len as u64);
    }
}

fn hands_the_same_buffers_back_from_reads(disk: &mut dyn Disk) {
    let mut shrunk = disk.buffer(1 << 20);
    shrunk.truncate(2 * BLOCK);
    for mut buf in [disk.buffer(BLOCK), AlignedBuf::zeroed(BLOCK), shrunk] {
        let op = write(disk, 8, 0, buf.len(), 6);
        run_ok(disk, vec![op]);
        buf.fill(0xee);
        let (start, len) = (buf.as_ptr(), buf.len());
        let done = run_ok(disk, vec![Op::Read { token: 9, offset: 0, buf }]);
        let back = done.into_values().next().and_then(|completion| completion.buf).unwrap();
        assert_eq!((back.as_ptr(), back.len()), (start, len));
        let done = run_ok(disk, vec![Op::Write { token: 9, offset: 0, data: back.into() }]);
        assert!(done[&9].buf.is_none());
        expect(disk, 0, len, 6);
    }
}

fn gathers_pieces(disk: &mut dyn Disk) {
    let piece = |len: usize, at: usize| {
        let mut bytes = aligned_bytes(len.max(IN_PLACE_FROM));
        bytes.resize(len, 0);
        pattern(&mut bytes, at as u64, 10);
        bytes.freeze()
    };
    for durably in [false, true] {
        // Many, of all sizes; buffers of the disk's and memory of others.
        let (mut data, mut len) = (Gather::default(), 0);
        for nth in 0..120 {
            let size = BLOCK << (nth % 6);
            if nth % 2 == 0 {
                data.share(piece(size, len));
            } else {
                let mut buf = disk.buffer(size);
                pattern(&mut buf, len as u64, 10);
                data.push(buf);
            }
            len += size;
        }
        assert_eq!(data.len(), len);
        let (token, offset) = (1, 0);
        let op = if durably {
            Op::WriteDurably { token, offset, data }
        } else {
            Op::Write { token, offset, data }
        };
        let behind = write(disk, 2, len as u64, BLOCK, 11);
        run_ok(disk, vec![behind, op]);
        expect(disk, 0, len, 10);
        expect(disk, len as u64, BLOCK, 11);
        let op = write(disk, 0, 0, len, 0);
        run_ok(disk, vec![op]);
    }
}

fn refuses_what_lies_beyond_the_end(disk: &mut dyn Disk) {
    let end = disk.geometry().capacity;
    let last = end - BLOCK as u64;
    let op = write(disk, 0, last, BLOCK, 7);
    run_ok(disk, vec![op]);
    let far = u64::MAX - u64::MAX % BLOCK as u64;
    for offset in [last, end, far] {
        let durable = Op::WriteDurably { token: 3, offset, data: disk.buffer(2 * BLOCK).into() };
        let ops = vec![write(disk, 1, offset, 2 * BLOCK, 8), read(disk, 2, offset, 2 * BLOCK), durable];
        let done = run(disk, ops);
        let kind = |token| done[&token].result.as_ref().unwrap_err().kind();
        assert_eq!(kind(1), std::io::ErrorKind::WriteZero);
        assert_eq!(kind(2), std::io::ErrorKind::UnexpectedEof);
        assert_eq!(kind(3), std::io::ErrorKind::WriteZero);
        assert!(done[&2].buf.is_some());
    }
    expect(disk, last, BLOCK, 7);
}

fn idle_reaps_return(disk: &mut dyn Disk) {
    let mut out = Vec::new();
    let start = Instant::now();
    disk.reap(Wait::Never, &mut out);
    disk.reap(Wait::AtMost(Duration::ZERO), &mut out);
    disk.reap(Wait::AtMost(Duration::from_millis(20)), &mut out);
    assert!(out.is_empty() && start.elapsed() < LONG / 2);
}

fn wake_interrupts_a_long_sleep(disk: &mut dyn Disk) {
    let waker = disk.waker();
    let woken_at = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let said = Arc::clone(&woken_at);
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        said.store(1, Ordering::Release);
        waker.wake();
    });
    let mut out = Vec::new();
    while woken_at.load(Ordering::Acquire) == 0 {
        disk.reap(Wait::AtMost(LONG), &mut out);
    }
    thread.join().unwrap();
    assert!(out.is_empty() && start.elapsed() < LONG / 2, "slept through a wake-up");
}

fn wake_before_the_sleep_is_kept(disk: &mut dyn Disk) {
    let mut out = Vec::new();
    // Use up what the check before has left.
    disk.reap(Wait::AtMost(Duration::from_millis(1)), &mut out);
    let start = Instant::now();
    disk.waker().wake();
    disk.reap(Wait::Never, &mut out);
    disk.reap(Wait::AtMost(LONG), &mut out);
    assert!(out.is_empty() && start.elapsed() < LONG / 2, "a wake-up before the sleep was lost");
}

/// Ping-pong: each round needs its own wake-up, sent while the owner is falling asleep.
fn no_wake_up_is_lost_in_a_race(disk: &mut dyn Disk) {
    const ROUNDS: u64 = 3000;
    let waker = disk.waker();
    let (ping, pong) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (send, seen) = (Arc::clone(&ping), Arc::clone(&pong));
    let thread = std::thread::spawn(move || {
        for round in 1..=ROUNDS {
            send.store(round, Ordering::Release);
            waker.wake();
            while seen.load(Ordering::Acquire) < round {
                std::thread::yield_now();
            }
        }
    });
    let start = Instant::now();
    let mut out = Vec::new();
    for round in 1..=ROUNDS {
        while ping.load(Ordering::Acquire) < round {
            disk.reap(Wait::AtMost(LONG), &mut out);
        }
        pong.store(round, Ordering::Release);
    }
    thread.join().unwrap();
    assert!(out.is_empty() && start.elapsed() < LONG, "a wake-up was lost");
}
