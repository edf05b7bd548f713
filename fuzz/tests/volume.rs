//! Histories of volumes with several members: heads and members keep their promises, and planted bugs are caught.

use quarry_fuzz::volume::{Plant, Summary, history};

/// `cargo test` runs these; `quarry-fuzz volume` runs as many as there is time for.
const SEEDS: std::ops::Range<u64> = 0..60;

#[test]
fn promises_are_kept() {
    let mut sum = Summary::default();
    for seed in SEEDS {
        match history(seed, Plant::Nothing) {
            Ok(summary) => sum.add(&summary),
            Err(failure) => panic!("{failure}"),
        }
    }
    let seen = [sum.answers, sum.heads, sum.crashes, sum.fills, sum.changes, sum.lost];
    assert!(seen.iter().all(|count| *count > 0), "something never happened: {sum:?}");
}

#[test]
fn equal_seeds_give_equal_histories() {
    for seed in 100..106 {
        let [first, second] = [seed, seed].map(|seed| history(seed, Plant::Nothing).expect("holds"));
        assert_eq!(first, second, "seed {seed}");
    }
}

/// Most histories that may pass before a planted bug shows.
const PATIENCE: u64 = 300;

/// Some history catches the bug; which one does changes with every change of the protocol.
fn caught(plant: Plant) {
    let found = (0..PATIENCE).any(|seed| history(seed, plant).is_err());
    assert!(found, "{plant:?} is not found by {PATIENCE} seeds");
}

#[test]
fn a_promise_that_is_answered_before_it_is_durable_is_caught() {
    caught(Plant::EarlyPromise);
}

#[test]
fn a_flush_that_failed_and_is_called_good_is_caught() {
    caught(Plant::FailedFlush);
}

#[test]
fn a_fenced_head_that_reads_is_caught() {
    caught(Plant::FencedReads);
}

#[test]
fn a_member_that_keeps_what_went_another_way_is_caught() {
    caught(Plant::VoidKept);
}

#[test]
fn a_row_that_was_not_sent_is_caught() {
    caught(Plant::RowForgotten);
}

#[test]
fn a_read_of_what_is_not_durable_is_caught() {
    caught(Plant::ReadTooEarly);
}
