//! Version times when the wall clock misbehaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::kv::Rig;
use crate::clock::{Clock, Timestamp};

fn clock(wall: &Arc<AtomicU64>) -> Clock {
    let wall = wall.clone();
    Clock::new(Box::new(move || wall.load(Ordering::SeqCst)))
}

#[test]
fn ticks_rise_while_the_wall_clock_goes_backwards() {
    let wall = Arc::new(AtomicU64::new(1_000_000));
    let clock = clock(&wall);
    let mut last = Timestamp(0);
    for jump in [0, 10, 500, 499, 3, 0, 1_000_000, 999_999, 1] {
        wall.store(jump, Ordering::SeqCst);
        for _ in 0..3 {
            let tick = clock.tick();
            assert!(tick > last, "{tick:?} after {last:?}");
            last = tick;
        }
    }
}

#[test]
fn what_the_disk_has_seen_wins_over_a_clock_that_was_set_back() {
    let mut rig = Rig::new(12, 31);
    rig.put("k", 5_000_000, b"before").unwrap();
    // Twice: over the replay, and over the position of the index.
    for _ in 0..2 {
        rig.open();
        assert_eq!(rig.handle().max_sequence(), 5_000_000);
    }
    rig.lose_index();
    rig.open();
    assert_eq!(rig.handle().max_sequence(), 5_000_000, "a rebuild finds it as well");
    let wall = Arc::new(AtomicU64::new(1000));
    let clock = clock(&wall);
    clock.observe(Timestamp(rig.handle().max_sequence()));
    let next = clock.tick();
    assert!(next > Timestamp(5_000_000));
    rig.put("k", next.0, b"after").unwrap();
    assert_eq!(rig.get("k").unwrap(), Some((next.0, b"after".as_slice().into())));
}
