//! A lane beside its device's own ring, over a real file.

use std::time::Duration;

use super::super::uring::UringDisk;
use super::super::{Disk, Geometry, Op, Wait};
use super::*;

const CAPACITY: u64 = 4 << 20;

fn disk() -> Option<UringDisk> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(CAPACITY).unwrap();
    let disk = UringDisk::new(Arc::new(file.into()), Geometry { capacity: CAPACITY, write_through: false });
    disk.map_err(|error| println!("skipped: io_uring: {error}")).ok()
}

fn write(disk: &mut UringDisk, offset: u64, byte: u8, len: usize) {
    let mut buf = disk.buffer(len);
    buf.fill(byte);
    disk.submit(Op::Write { token: 1, offset, data: buf.into() });
    let mut out = Vec::new();
    while out.is_empty() {
        disk.reap(Wait::AtMost(Duration::from_secs(1)), &mut out);
    }
    out.pop().unwrap().result.unwrap();
}

/// Sleeps on the descriptor, as a caller does.
fn all(lane: &mut ReadRing) -> Vec<Completion> {
    let mut out = Vec::new();
    lane.begin(&mut out);
    while !lane.is_idle() {
        let mut polled = [rustix::event::PollFd::new(&lane.event, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut polled, Some(&limit)).unwrap(), 1, "nobody is woken");
        lane.collect(&mut out);
    }
    out
}

#[test]
fn a_lane_reads_what_its_device_wrote() {
    let Some(mut disk) = disk() else { return };
    let mut lane = ReadRing::open(disk.lanes().unwrap()).unwrap();
    for byte in 0..200_u8 {
        write(&mut disk, u64::from(byte) * 8192, byte, 4096);
    }
    // More than the kernel is given at once.
    for byte in 0..200_u8 {
        lane.submit(byte.into(), u64::from(byte) * 8192, 4096).unwrap().unwrap();
    }
    let mut done = all(&mut lane);
    done.sort_by_key(|completion| completion.token);
    assert_eq!(done.len(), 200);
    for (byte, completion) in (0..).zip(done) {
        completion.result.unwrap();
        assert_eq!(completion.token, u64::from(byte));
        assert!(completion.buf.unwrap().iter().all(|found| *found == byte), "read {byte}");
    }
    write(&mut disk, 0, 7, 1 << 20);
    lane.submit(5, 0, 1 << 20).unwrap().unwrap();
    assert!(all(&mut lane).pop().unwrap().buf.unwrap().iter().all(|found| *found == 7));
}

#[test]
fn a_lane_reads_nothing_beyond_its_device_nor_after_that_is_closed() {
    let Some(mut disk) = disk() else { return };
    let mut lane = ReadRing::open(disk.lanes().unwrap()).unwrap();
    write(&mut disk, 0, 1, 4096);
    for (offset, len) in [(CAPACITY, 4096), (CAPACITY - 4096, 8192), (u64::MAX - 4095, 4096)] {
        let refused = lane.submit(1, offset, len).unwrap().unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::UnexpectedEof);
    }
    for token in 0..100 {
        lane.submit(token, 0, 4096).unwrap().unwrap();
    }
    let mut none = Vec::new();
    lane.begin(&mut none);
    assert!(none.is_empty());
    drop(disk);
    assert!(lane.submit(1, 0, 4096).is_none());
    // What was out ends one way or the other.
    let done = all(&mut lane);
    assert_eq!(done.len(), 100);
    assert!(done.iter().filter(|completion| completion.result.is_ok()).count() >= DEPTH as usize);
}

#[test]
fn a_lane_that_is_dropped_waits_for_what_it_reads() {
    let Some(disk) = disk() else { return };
    let mut lane = ReadRing::open(disk.lanes().unwrap()).unwrap();
    for token in 0..100 {
        lane.submit(token, 0, 64 << 10).unwrap().unwrap();
    }
    lane.begin(&mut Vec::new());
    drop(lane);
}

#[test]
fn what_was_not_begun_when_its_device_is_closed_ends() {
    let Some(disk) = disk() else { return };
    let mut lane = ReadRing::open(disk.lanes().unwrap()).unwrap();
    lane.submit(1, 0, 4096).unwrap().unwrap();
    drop(disk);
    let mut done = Vec::new();
    lane.begin(&mut done);
    let errors: Vec<_> = done.iter().map(|one| one.result.as_ref().unwrap_err().kind()).collect();
    assert_eq!(errors, [io::ErrorKind::NotConnected]);
    assert!(lane.is_idle());
}
