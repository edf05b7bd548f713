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

/// A POST held the segments of a large object while its append waited for space that only they could give: on a nearly full
/// disk it waited for ever, and everybody behind it.
#[test]
fn a_post_does_not_hold_the_space_that_it_waits_for() {
    run(std::iter::once(2_992_795_700_193));
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

/// Most histories that may pass before a planted bug shows.
const PATIENCE: u64 = 60;

/// Some history catches the bug; which one does changes with every change of the engine.
fn caught(plant: Plant) {
    let found = (0..PATIENCE).any(|seed| history(seed, plant).is_err());
    assert!(found, "{plant:?} is not found by {PATIENCE} seeds");
}

#[test]
fn a_lost_row_is_caught() {
    caught(Plant::LostRow);
}

#[test]
fn a_flush_that_is_acknowledged_and_not_done_is_caught() {
    caught(Plant::LyingFlush);
}

#[test]
fn a_tombstone_that_goes_before_what_it_deleted_is_caught() {
    caught(Plant::EarlyReclaim);
}

#[test]
fn a_sum_that_is_not_subtracted_is_caught() {
    caught(Plant::SumNotSubtracted);
}

#[test]
fn a_move_that_does_not_look_at_what_stands_is_caught() {
    caught(Plant::BlindMove);
}
