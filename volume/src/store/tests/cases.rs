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
    Device::attached(seat.clone(), Geometry::new(VOLUME, SLICE_BYTES).unwrap(), fence)
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

/// Case 4: a flush is acknowledged although the flush failed.
#[test]
fn case_4_a_failed_flush_answers_nobody() {
    let mut rig = Rig::new(2);
    rig.create("vol", 1);
    let device = rig.attach("vol");
    rig.run(device.write(0, block(1))).unwrap();
    let next = rig.image.counters().flushes;
    rig.image.edit_faults(|faults| faults.fail_flushes.extend(next..next + 100));
    assert!(rig.run(device.write(0, block(2))).is_err());
    assert!(rig.run(device.flush()).is_err());
    assert!(rig.run(device.write(4096, block(2))).is_err(), "a flush is never tried again");
    assert!(rig.run(device.read(0, 4096)).is_err(), "a member that is out serves nothing");
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
    assert!(fenced(&old.stretches(0, 4096, 1)));
    assert_eq!(rig.read(&new, 0, 4096), vec![1; 4096]);
    rig.run(new.write(0, block(2))).unwrap();
    assert_eq!(rig.read(&new, 0, 4096), vec![2; 4096]);
}

/// A new head begins where the old one's durable history ends, also over a crash with writes under way.
#[test]
fn positions_only_grow_over_crashes() {
    let mut rig = Rig::new(5);
    rig.create("vol", 1);
    let mut before = last_position(&rig.handle(), VolumeId([1; 16])).unwrap();
    for round in 1..8 {
        let device = rig.attach("vol");
        rig.run(device.write(0, block(round))).unwrap();
        let mut cut = Box::pin(device.write(4096, block(round)));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let _pending = cut.as_mut().poll(&mut context);
        rig.sim.as_mut().unwrap().turn();
        drop(cut);
        assert!(
            matches!(rig.run(device.read(0, 4096)), Err(VolumeError::Refused(Refusal::Out))),
            "a write that was dropped takes the seat out"
        );
        drop(device);
        rig.crash(round % 2 == 0);
        let after = last_position(&rig.handle(), VolumeId([1; 16])).unwrap();
        assert!(after > before && after.epoch >= before.epoch, "{before:?}, then {after:?}");
        before = after;
    }
}
