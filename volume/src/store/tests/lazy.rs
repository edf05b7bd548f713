//! When the disk is asked for what clients have written.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Waker};

use bytes::Bytes;

use super::rig::Rig;
use crate::store::Device;

/// Writes blocks with a millisecond after each; batches that the disk has written meanwhile.
fn batches(rig: &mut Rig, device: &Device, writes: u64, flush_each: bool) -> u64 {
    let handle = rig.handle();
    let count = || handle.counters().batches.load(Ordering::Relaxed);
    let before = count();
    for block in 0..writes {
        rig.run(device.write(block * 4096, Bytes::from(vec![7; 4096]))).unwrap();
        if flush_each {
            rig.run(device.flush()).unwrap();
        }
        rig.sim.as_mut().unwrap().turn();
    }
    count() - before
}

/// Milliseconds until a future is ready.
fn took<T>(rig: &mut Rig, future: impl Future<Output = T>) -> u32 {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    let mut turns = 0;
    while future.as_mut().poll(&mut context).is_pending() {
        rig.sim.as_mut().unwrap().turn();
        turns += 1;
        assert!(turns < 1000, "it waits for something that never comes");
    }
    turns
}

#[test]
fn writes_that_nobody_asks_for_share_batches() {
    let mut rig = Rig::new(1);
    rig.create("vol", 1);
    let device = rig.attach("vol");
    assert!(
        batches(&mut rig, &device, 60, true) >= 60,
        "a client that flushes each has each written at once"
    );
    let shared = batches(&mut rig, &device, 60, false);
    assert!((8..30).contains(&shared), "{shared} batches");
}

#[test]
fn whoever_waits_for_one_has_not_to_wait_for_its_company() {
    const ROUNDS: u32 = 40;
    let mut rig = Rig::new(2);
    rig.create("vol", 1);
    let device = rig.attach("vol");
    let written = || Bytes::from(vec![8; 4096]);
    let (mut eager, mut read, mut through, mut flush) = (0, 0, 0, 0);
    for _ in 0..ROUNDS {
        // Nothing is lazy behind a flush, and nothing else is under way.
        rig.run(device.flush()).unwrap();
        eager += took(&mut rig, device.write_through(0, written()));
        batches(&mut rig, &device, 30, false);
        read += took(&mut rig, device.read(29 * 4096, 4096));
        batches(&mut rig, &device, 30, false);
        through += took(&mut rig, device.write_through(0, written()));
        batches(&mut rig, &device, 30, false);
        flush += took(&mut rig, device.flush());
    }
    assert!(eager >= 2 * ROUNDS, "the simulated disk takes its time: {eager}");
    // At most what is under way, and then its own; company is waited for in milliseconds twice, written and flushed.
    for (what, sum) in [("read", read), ("written through", through), ("flush", flush)] {
        assert!(sum <= 2 * eager, "{what}: {sum} ms, {eager} where nothing is lazy");
    }
}
