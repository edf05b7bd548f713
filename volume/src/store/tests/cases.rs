//! The loss cases that one member can meet, on its disk. The member's own decisions: member_tests.rs.

use bytes::Bytes;
use quarry_engine::block::{VolumeId, last_position};

use super::rig::{Rig, VOLUME};
use crate::geometry::{Geometry, SLICE_BYTES};
use crate::member::Refusal;
use crate::store::{Device, Seat, VolumeError};

fn block(byte: u8) -> Bytes {
    Bytes::from(vec![byte; 4096])
}

/// A seat of its own and a device of a new head on it, as another process would have them.
fn head(rig: &mut Rig, seat: &std::sync::Arc<Seat>) -> Device {
    let fence = rig.run(seat.attach()).unwrap();
    Device::attached(seat.clone(), Geometry::new(VOLUME, SLICE_BYTES).unwrap(), fence, Vec::new())
}

fn seat(rig: &Rig) -> std::sync::Arc<Seat> {
    std::sync::Arc::new(Seat::open(rig.handle(), VolumeId([1; 16])).unwrap())
}

fn fenced(result: &Result<impl std::fmt::Debug, VolumeError>) -> bool {
    matches!(result, Err(VolumeError::Refused(Refusal::Fenced(_))))
}

/// Case 3: a member answers before its promise is durable, restarts, and accepts the old head again.
#[test]
fn case_3_a_restarted_member_keeps_its_promise() {
    let mut rig = Rig::new(1);
    rig.create("vol", 1);
    for _ in 0..3 {
        let first = {
            let seat = seat(&rig);
            rig.run(seat.attach()).unwrap()
        };
        let second = {
            let seat = seat(&rig);
            rig.run(seat.attach()).unwrap()
        };
        assert!(second.epoch > first.epoch);
        rig.crash(true);
        let seat = seat(&rig);
        assert!(fenced(&seat.admit(first)), "the promise outlived the crash");
        let third = rig.run(seat.attach()).unwrap();
        assert!(third.epoch > second.epoch);
    }
}

/// Case 4: a flush is acknowledged although the flush failed. The write before it had been answered.
#[test]
fn case_4_a_failed_flush_answers_nobody() {
    let mut rig = Rig::new(2);
    rig.create("vol", 1);
    let device = rig.attach("vol");
    rig.run(device.write_through(0, block(1))).unwrap();
    let next = rig.image.counters().flushes;
    rig.image.edit_faults(|faults| faults.fail_flushes.extend(next..next + 100));
    rig.run(device.write(0, block(2))).unwrap();
    assert!(rig.run(device.flush()).is_err());
    assert!(rig.run(device.flush()).is_err(), "and never succeeds later");
    assert!(rig.run(device.write(4096, block(2))).is_err(), "a flush is never tried again");
    assert!(rig.run(device.read(0, 4096)).is_err(), "a member that is out serves nothing");
}

/// Case 4, for who reads instead of flushing: what is not durable, and never will be, is given to nobody.
#[test]
fn case_4_a_write_whose_flush_failed_is_not_read() {
    let mut rig = Rig::new(2);
    rig.create("vol", 1);
    let device = rig.attach("vol");
    let next = rig.image.counters().flushes;
    rig.image.edit_faults(|faults| faults.fail_flushes.extend(next..next + 100));
    rig.run(device.write(0, block(2))).unwrap();
    assert!(rig.run(device.read(0, 4096)).is_err());
    assert!(rig.run(device.write_through(4096, block(2))).is_err());
}

/// Case 7: a trim overtakes a write to the same blocks.
#[test]
fn case_7_a_trim_stands_where_it_was_sent() {
    let mut rig = Rig::new(3);
    rig.create("vol", 1);
    let device = rig.attach("vol");
    for round in 1..20 {
        rig.run(device.write(0, block(round))).unwrap();
        rig.run(device.discard(0, 4096)).unwrap();
        rig.run(device.write(4096, block(round))).unwrap();
        rig.run(device.discard(4096, 4096)).unwrap();
        rig.run(device.write(4096, block(round))).unwrap();
    }
    rig.run(device.flush()).unwrap();
    drop(device);
    for keep_index in [true, false] {
        rig.crash(keep_index);
        let device = rig.attach("vol");
        assert_eq!(rig.read(&device, 0, 8192), [vec![0; 4096], vec![19; 4096]].concat());
    }
}

/// Case 9: a fenced head goes on serving reads.
#[test]
fn case_9_a_fenced_head_reads_and_writes_nothing() {
    let mut rig = Rig::new(4);
    rig.create("vol", 1);
    let seat = seat(&rig);
    let old = head(&mut rig, &seat);
    rig.run(old.write(0, block(1))).unwrap();
    let new = head(&mut rig, &seat);
    assert!(fenced(&rig.run(old.read(0, 4096))));
    assert!(fenced(&rig.run(old.write(0, block(9)))));
    assert!(fenced(&rig.run(old.flush())));
    assert!(fenced(&rig.run(old.stretches(0, 4096, 1))));
    assert_eq!(rig.read(&new, 0, 4096), vec![1; 4096]);
    rig.run(new.write(0, block(2))).unwrap();
    assert_eq!(rig.read(&new, 0, 4096), vec![2; 4096]);
}

/// A new head begins where the old one's durable history ends, also over a crash with writes under way; one whose client gave
/// up waiting is there whole or not at all, and takes nobody out.
#[test]
fn positions_only_grow_over_crashes() {
    let mut rig = Rig::new(5);
    rig.create("vol", 1);
    let mut before = last_position(&rig.handle(), VolumeId([1; 16])).unwrap();
    for round in 1..8 {
        let device = rig.attach("vol");
        rig.run(device.write_through(0, block(round))).unwrap();
        let mut cut = Box::pin(device.write_through(4096, block(round)));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(cut.as_mut().poll(&mut context).is_pending());
        drop(cut);
        assert_eq!(rig.read(&device, 4096, 4096), vec![round; 4096]);
        rig.run(device.write(8192, block(round))).unwrap();
        drop(device);
        rig.crash(round % 2 == 0);
        let after = last_position(&rig.handle(), VolumeId([1; 16])).unwrap();
        assert!(after > before && after.epoch >= before.epoch, "{before:?}, then {after:?}");
        before = after;
        let device = rig.attach("vol");
        assert_eq!(rig.read(&device, 0, 8192), vec![round; 8192]);
    }
}

/// A snapshot and its volume part where the snapshot was asked for, whoever waits for its answer.
#[test]
fn a_snapshot_that_nobody_waits_for_is_whole() {
    let mut rig = Rig::new(6);
    rig.create("vol", 1);
    let device = rig.attach("vol");
    let volumes = rig.volumes();
    for polls in 0..6_u8 {
        rig.run(device.write(0, block(polls + 1))).unwrap();
        let name = format!("s{polls}");
        let mut cut = Box::pin(volumes.snapshot("vol", &name, 1));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        for _ in 0..polls {
            if cut.as_mut().poll(&mut context).is_ready() {
                break;
            }
            rig.sim.as_mut().unwrap().turn();
        }
        drop(cut);
        rig.run(device.write(0, block(100 + polls))).unwrap();
        rig.run(device.flush()).unwrap();
        if let Ok(frozen) = volumes.view("vol", &name) {
            assert_eq!(rig.read(&frozen, 0, 4096), vec![polls + 1; 4096], "after {polls} polls");
        }
    }
    assert!(volumes.view("vol", "s5").is_ok(), "some were made");
    drop((device, volumes));
    rig.crash(true);
    let volumes = rig.volumes();
    for polls in 0..6_u8 {
        if let Ok(frozen) = volumes.view("vol", &format!("s{polls}")) {
            assert_eq!(rig.read(&frozen, 0, 4096), vec![polls + 1; 4096], "after {polls} polls and a crash");
        }
    }
}
