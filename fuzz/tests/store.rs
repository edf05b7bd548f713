//! Histories of whole stores: the real engine keeps its promises, and an engine with a planted bug is caught.

use quarry_fuzz::store::{Plant, history};

/// `cargo test` runs these; `quarry-fuzz store` runs as many as there is time for.
const SEEDS: std::ops::Range<u64> = 0..24;

fn run(seeds: impl Iterator<Item = u64>) {
    for seed in seeds {
        if let Err(failure) = history(seed, Plant::Nothing) {
            panic!("{failure}");
        }
    }
}

#[test]
fn promises_are_kept_over_even_seeds() {
    run(SEEDS.step_by(2));
}

#[test]
fn promises_are_kept_over_odd_seeds() {
    run(SEEDS.skip(1).step_by(2));
}

#[test]
fn equal_seeds_give_equal_histories() {
    // One with crashes and cleaning.
    let [first, second] = [1, 1].map(|seed| history(seed, Plant::Nothing).expect("holds"));
    assert_eq!(first, second);
    assert!(first.crashes > 0 && first.cleaned > 0, "{first:?}");
    let other = history(2, Plant::Nothing).expect("holds");
    assert_ne!(first.hash, other.hash);
}

/// The first of `seeds` that catches the bug.
fn caught(plant: Plant, seeds: &[u64]) {
    let found = seeds.iter().any(|seed| history(*seed, plant).is_err());
    assert!(found, "{plant:?} is not found by seeds {seeds:?}");
}

#[test]
fn a_lost_row_is_caught() {
    caught(Plant::LostRow, &[0]);
}

#[test]
fn a_flush_that_is_acknowledged_and_not_done_is_caught() {
    caught(Plant::LyingFlush, &[1, 2, 8]);
}

#[test]
fn a_tombstone_that_goes_before_what_it_deleted_is_caught() {
    caught(Plant::EarlyReclaim, &[27, 44, 50, 54]);
}

#[test]
fn a_move_that_does_not_look_at_what_stands_is_caught() {
    caught(Plant::BlindMove, &[10, 11, 19, 21]);
}
