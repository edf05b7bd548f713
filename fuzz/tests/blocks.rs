//! Histories of volumes on nodes: the real driver and member service keep their promises, and planted bugs are caught.

use quarry_fuzz::blocks::{Plant, Summary, history};

/// `cargo test` runs these; `quarry-fuzz blocks` runs as many as there is time for.
const SEEDS: std::ops::Range<u64> = 0..24;

#[test]
fn promises_are_kept() {
    let mut sum = Summary::default();
    for seed in SEEDS {
        match history(seed, Plant::Nothing) {
            Ok(summary) => sum.add(&summary),
            Err(failure) => panic!("{failure}"),
        }
    }
    let seen = [sum.answers, sum.failed, sum.heads, sum.crashes, sum.changes];
    let seen = seen.into_iter().chain(sum.frozen).chain(sum.clones);
    assert!(seen.into_iter().all(|count| count > 0), "something never happened: {sum:?}");
}

#[test]
fn equal_seeds_give_equal_histories() {
    for seed in 100..106 {
        let [first, second] = [seed, seed].map(|seed| history(seed, Plant::Nothing).expect("holds"));
        assert_eq!(first, second, "seed {seed}");
    }
}

/// Most histories that may pass before a planted bug shows.
const PATIENCE: u64 = 200;

/// Some history catches the bug; which one does changes with every change of the protocol.
fn caught(plant: Plant) {
    let found = (0..PATIENCE).any(|seed| history(seed, plant).is_err());
    assert!(found, "{plant:?} is not found by {PATIENCE} seeds");
}

#[test]
fn a_flush_that_is_answered_and_not_made_is_caught() {
    caught(Plant::FlushForgotten);
}

#[test]
fn a_promise_that_is_not_kept_is_caught() {
    // It takes a member that is started anew between two heads: few histories have that.
    caught(Plant::PromiseForgotten);
}

#[test]
fn a_row_that_was_not_entered_is_caught() {
    caught(Plant::RowForgotten);
}

#[test]
fn a_member_that_keeps_what_went_another_way_is_caught() {
    caught(Plant::VoidKept);
}

#[test]
fn members_that_confirm_a_fenced_head_are_caught() {
    // It takes two heads, one of which hears of nothing, and a reader who asks just that one: few histories have them.
    caught(Plant::FencedReads);
}

#[test]
fn a_snapshot_that_changes_is_caught() {
    caught(Plant::SnapshotWritten);
}

#[test]
fn a_member_that_was_filled_without_its_snapshots_is_caught() {
    caught(Plant::ErasMixed);
}

#[test]
fn a_clone_that_was_filled_without_what_it_has_of_its_parent_is_caught() {
    caught(Plant::ParentForgotten);
}

#[test]
fn a_clone_that_begins_as_its_parent_is_now_is_caught() {
    caught(Plant::CloneOfNow);
}

#[test]
fn a_volume_that_does_not_come_back_to_its_snapshot_is_caught() {
    caught(Plant::ChangeForgotten);
}

#[test]
fn a_read_of_what_is_not_durable_is_caught() {
    caught(Plant::ReadTooEarly);
}
