//! Histories of whole clusters: real nodes keep their promises, and nodes with a planted bug are caught.

use quarry_fuzz::cluster::{Plant, history};

/// `cargo test` runs these; `quarry-fuzz cluster` runs as many as there is time for.
const SEEDS: std::ops::Range<u64> = 0..24;

/// What happened in the histories of these seeds: groups made of others, gone again, containers deleted, changes in eventual
/// containers without a group, and in one that comes and goes.
fn run(seeds: impl Iterator<Item = u64>) -> [u64; 5] {
    let mut all = [0; 5];
    for seed in seeds {
        let it = history(seed, Plant::Nothing).unwrap_or_else(|failure| panic!("{failure}"));
        for (sum, more) in all.iter_mut().zip([it.splits, it.returned, it.gone, it.alone, it.strays]) {
            *sum += more;
        }
    }
    all
}

#[test]
fn promises_are_kept() {
    let halves = std::thread::scope(|scope| {
        let threads = [0, 1].map(|first| scope.spawn(move || run(SEEDS.skip(first).step_by(2))));
        threads.map(|half| half.join().expect("promises are kept"))
    });
    let [splits, returned, gone, alone, strays] = std::array::from_fn(|n| halves[0][n] + halves[1][n]);
    assert!(splits > 0, "no group took lines over");
    assert!(returned > 0, "no group gave its lines back");
    assert!(gone > 0, "no container was deleted");
    assert!(alone > 0, "no group was away while an eventual container was written");
    assert!(strays > 0, "nor while one was that comes and goes");
}

#[test]
fn equal_seeds_give_equal_histories() {
    let mut crashes = 0;
    for seed in 100..106 {
        let [first, second] = [seed, seed].map(|seed| history(seed, Plant::Nothing).expect("holds"));
        assert_eq!(first, second, "seed {seed}");
        crashes += first.crashes;
    }
    assert!(crashes > 0);
}

/// Most histories that may pass before a planted bug shows.
const PATIENCE: u64 = 40;
/// The same of those that few histories catch: it takes two writers of a name at the same moment, or a DELETE that is late or goes to
/// several groups.
const RARE: u64 = 150;

/// Some history catches the bug; which one does changes with every change of the engine.
fn caught(plant: Plant) {
    caught_by(plant, PATIENCE);
}

fn caught_by(plant: Plant, seeds: u64) {
    let found = (0..seeds).any(|seed| history(seed, plant).is_err());
    assert!(found, "{plant:?} is not found by {seeds} seeds");
}

#[test]
fn a_write_that_is_acknowledged_before_it_is_flushed_is_caught() {
    caught(Plant::AckBeforeFlush);
}

#[test]
fn a_tombstone_that_goes_too_early_is_caught() {
    caught(Plant::EarlyReclaim);
}

#[test]
fn a_stale_replica_that_wins_is_caught() {
    caught(Plant::StaleReplicaWins);
}

#[test]
fn a_vote_that_is_not_kept_is_caught() {
    caught(Plant::VoteNotPersisted);
}

#[test]
fn a_row_that_is_acknowledged_without_its_object_is_caught() {
    caught(Plant::RowWithoutObject);
}

#[test]
fn an_intent_that_is_forgotten_is_caught() {
    caught(Plant::IntentForgotten);
}

#[test]
fn a_floor_that_is_left_out_when_lines_are_taken_back_is_caught() {
    caught(Plant::FloorLeftOut);
}

#[test]
fn a_line_that_a_delete_left_is_caught() {
    caught(Plant::LineKept);
}

#[test]
fn a_claim_that_is_not_kept_is_caught() {
    caught_by(Plant::ClaimDropped, RARE);
}

#[test]
fn a_delete_that_removes_what_was_made_anew_is_caught() {
    caught_by(Plant::DeleteUnnamed, RARE);
}

#[test]
fn a_container_that_is_deleted_although_another_group_has_lines_of_it_is_caught() {
    caught_by(Plant::LinesUncounted, RARE);
}
