//! Ranges that are taken back: at once, by voters that lag, by snapshots, with crashes at any moment, and given away again.

use super::rig::{Cluster, node, rows};
use super::split::{CHILD, ID, Lines, PARENT, check, filled, line, name, open_held, split, still, wanted};
use crate::catalog::{GroupId, going_key, going_value};
use crate::consensus::{GroupError, Outcome, RowChange, Split, TakeBack, held, sweep};

/// Above all that the child's lines had.
const FLOOR: u64 = 10_000;

/// A child whose lines are gone; the voters `up` have heard of it, and the others did not.
fn emptied(seed: u64, parent: GroupId, down: Option<u8>) -> (Cluster, Lines) {
    let (mut cluster, mut lines) = filled(seed, parent);
    split(&mut cluster, parent, "n050", CHILD);
    cluster.settle(CHILD, &[1, 2, 3]);
    if let Some(n) = down {
        cluster.crash(n);
    }
    for n in (50..100).step_by(5) {
        let some = (n..n + 5).map(|n| line(&name(n), 9000 + n, None)).collect();
        assert_eq!(cluster.propose(CHILD, &rows(some)), Outcome::Applied);
    }
    lines.split_off("n050");
    (cluster, lines)
}

fn back(group: GroupId, from: &str, floor: u64) -> TakeBack {
    let sequence = FLOOR + u64::from(group);
    TakeBack { id: ID, from: from.to_owned(), group, floor, attempt: None, sequence }
}

fn take_back(cluster: &mut Cluster, parent: GroupId, back: TakeBack) -> Result<Outcome, GroupError> {
    let (_, leader) = cluster.leader(parent);
    cluster.run(async move { leader.take_back(back).await })
}

fn put(
    cluster: &mut Cluster,
    lines: &mut Lines,
    group: GroupId,
    name: &str,
    sequence: u64,
    size: Option<u64>,
) {
    assert_eq!(cluster.propose(group, &rows(vec![line(name, sequence, size)])), Outcome::Applied);
    match size {
        Some(size) => lines.insert(name.to_owned(), size),
        None => lines.remove(name),
    };
}

/// Nothing is left of the child on these nodes, and its number serves no more.
fn check_over(cluster: &mut Cluster, numbers: &[u8], child: GroupId) {
    for n in numbers {
        let disk = cluster.disk(*n);
        assert!(!cluster.run(held(&disk)).unwrap().contains(&child), "node {n}");
        assert!(cluster.group(*n, child).is_none());
        let (groups, options) = (cluster.nodes[&node(*n)].groups.clone(), cluster.options(*n));
        assert!(groups.over().contains(&child));
        assert!(cluster.run(async move { groups.open(child, options).await }).is_err());
    }
}

fn rebuild(cluster: &mut Cluster, parent: GroupId) {
    for n in 1..=3 {
        cluster.crash_without_index(n);
        cluster.start(n);
    }
    cluster.settle(parent, &[1, 2, 3]);
    for n in 1..=3 {
        let disk = cluster.disk(n);
        cluster.run(async move { sweep(&disk).await }).unwrap();
    }
}

#[test]
fn lines_that_come_back_are_the_parents_from_one_entry_on() {
    for parent in [1, PARENT] {
        let (mut cluster, mut lines) = emptied(800, parent, None);
        assert!(take_back(&mut cluster, parent, back(10, "n050", FLOOR)).is_err(), "that one never had it");
        let early = TakeBack { sequence: 5, ..back(CHILD, "n050", FLOOR) };
        assert!(take_back(&mut cluster, parent, early).is_err(), "its time is not above the floor");
        assert_eq!(take_back(&mut cluster, parent, back(CHILD, "n050", FLOOR)), Ok(Outcome::Applied));
        assert!(take_back(&mut cluster, parent, back(CHILD, "n050", FLOOR)).is_err(), "once");
        cluster.settle(parent, &[1, 2, 3]);
        check(&cluster, &[1, 2, 3], &[parent], &lines, "taken back");
        check_over(&mut cluster, &[1, 2, 3], CHILD);
        for (n, name) in ["n060", "n049x", "z"].into_iter().enumerate() {
            put(&mut cluster, &mut lines, parent, name, 20_000 + n as u64, Some(7));
        }
        put(&mut cluster, &mut lines, parent, "z", 20_010, None);
        for what in ["after", "rebuilt"] {
            cluster.settle(parent, &[1, 2, 3]);
            check(&cluster, &[1, 2, 3], &[parent], &lines, what);
            rebuild(&mut cluster, parent);
        }
        check_over(&mut cluster, &[1, 2, 3], CHILD);
        // It is given away once more, from a name that its row does not stand in the way of.
        let (_, leader) = cluster.leader(parent);
        let again = Split { sequence: 30_000, ..wanted("n040", 11) };
        let outcome = cluster.run(async move { leader.split(again, still()).await }).unwrap().0;
        assert_eq!(outcome, Outcome::Applied);
        cluster.settle(parent, &[1, 2, 3]);
        open_held(&mut cluster, 11);
        put(&mut cluster, &mut lines, 11, "n070", 40_000, Some(9));
        cluster.settle(11, &[1, 2, 3]);
        check(&cluster, &[1, 2, 3], &[parent, 11], &lines, "given again");
        rebuild(&mut cluster, parent);
        cluster.settle(11, &[1, 2, 3]);
        check(&cluster, &[1, 2, 3], &[parent, 11], &lines, "given again and rebuilt");
    }
}

/// A voter slept while the child's lines were deleted and its range was taken back. Where it wakes, nobody is left who could tell its
/// child of the deletes.
fn asleep(seed: u64, floor: u64, more: u64) -> (Cluster, Lines, u8) {
    let lags = 1 + u8::try_from(seed % 3).unwrap();
    let (mut cluster, mut lines) = emptied(seed, PARENT, Some(lags));
    assert_eq!(take_back(&mut cluster, PARENT, back(CHILD, "n050", floor)), Ok(Outcome::Applied));
    for n in 0..more {
        put(&mut cluster, &mut lines, PARENT, &format!("n06{}x{n}", n % 10), 20_000 + n, Some(n));
    }
    put(&mut cluster, &mut lines, PARENT, "n061", 30_000, Some(77));
    put(&mut cluster, &mut lines, PARENT, "n062", 30_001, Some(78));
    put(&mut cluster, &mut lines, PARENT, "n062", 30_002, None);
    cluster.start(lags);
    (cluster, lines, lags)
}

#[test]
fn a_voter_that_slept_has_none_of_the_childs_lines_by_the_log_or_by_a_snapshot() {
    for (seed, more) in [(810, 3), (811, 3), (812, 3), (813, 200), (814, 200), (815, 200)] {
        let (mut cluster, lines, lags) = asleep(seed, FLOOR, more);
        for what in ["woken", "rebuilt"] {
            cluster.settle(PARENT, &[1, 2, 3]);
            check(&cluster, &[1, 2, 3], &[PARENT], &lines, &format!("seed {seed}: {what}"));
            check_over(&mut cluster, &[lags], CHILD);
            rebuild(&mut cluster, PARENT);
        }
    }
}

#[test]
fn without_the_floor_lines_come_back_whose_deletes_one_voter_did_not_hear_of() {
    let (mut cluster, lines, lags) = asleep(810, 1, 3);
    cluster.pass(std::time::Duration::from_secs(5));
    let awake = lags % 3 + 1;
    let (late, right) = (cluster.dump(lags, PARENT), cluster.dump(awake, PARENT));
    assert!(late.len() > right.len(), "{} lines are right", lines.len());
}

#[test]
fn a_crash_at_any_moment_leaves_the_range_with_one_of_them() {
    let mut halves = [0, 0];
    for seed in 0..48 {
        let turns = [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48][usize::try_from(seed % 12).unwrap()];
        let (mut cluster, mut lines) = emptied(830 + seed, PARENT, None);
        let (leader, voter) = cluster.leader(PARENT);
        cluster.runtime.clone().spawn(
            node(leader),
            Box::pin(async move {
                let _either = voter.take_back(back(CHILD, "n050", FLOOR)).await;
            }),
        );
        (0..turns).for_each(|_| cluster.turn());
        let all = [leader, leader % 3 + 1, (leader + 1) % 3 + 1];
        for n in all.into_iter().take(1 + usize::try_from(seed / 12 % 3).unwrap()) {
            cluster.crash(n);
            cluster.start(n);
        }
        cluster.settle(PARENT, &[1, 2, 3]);
        let done = cluster.leader(PARENT).1.given().is_empty();
        halves[usize::from(done)] += 1;
        if done {
            put(&mut cluster, &mut lines, PARENT, "n070", 20_000, Some(5));
            cluster.settle(PARENT, &[1, 2, 3]);
            check(&cluster, &[1, 2, 3], &[PARENT], &lines, &format!("seed {seed}, {turns} turns"));
            check_over(&mut cluster, &[1, 2, 3], CHILD);
        } else {
            cluster.settle(CHILD, &[1, 2, 3]);
            check(&cluster, &[1, 2, 3], &[PARENT, CHILD], &lines, &format!("seed {seed}, {turns} turns"));
        }
    }
    assert!(halves[0] > 3 && halves[1] > 3, "{halves:?}");
}

#[test]
fn what_a_child_gave_away_and_took_back_comes_back_with_it() {
    let (mut cluster, mut lines) = filled(900, PARENT);
    split(&mut cluster, PARENT, "n050", CHILD);
    cluster.settle(CHILD, &[1, 2, 3]);
    split(&mut cluster, CHILD, "n080", 11);
    cluster.settle(11, &[1, 2, 3]);
    let (_, leader) = cluster.leader(PARENT);
    let lags = (1..=3).find(|n| *n != leader.node().0[0]).unwrap();
    cluster.crash(lags);
    for n in 80..100 {
        put(&mut cluster, &mut lines, 11, &name(n), 9000 + n, None);
    }
    assert_eq!(take_back(&mut cluster, CHILD, back(11, "n080", FLOOR)), Ok(Outcome::Applied));
    for n in 50..80 {
        put(&mut cluster, &mut lines, CHILD, &name(n), 11_000 + n, None);
    }
    let whole = TakeBack { sequence: 13_001, ..back(CHILD, "n050", 13_000) };
    assert_eq!(take_back(&mut cluster, PARENT, whole), Ok(Outcome::Applied));
    put(&mut cluster, &mut lines, PARENT, "n085", 20_000, Some(5));
    cluster.start(lags);
    for what in ["woken", "rebuilt"] {
        cluster.settle(PARENT, &[1, 2, 3]);
        check(&cluster, &[1, 2, 3], &[PARENT], &lines, what);
        rebuild(&mut cluster, PARENT);
    }
}

#[test]
fn an_attempt_that_was_ended_takes_nothing_back_and_one_that_stands_is_ended_by_it() {
    let (mut cluster, lines) = emptied(910, PARENT, None);
    let attempt = RowChange { key: going_key(ID), sequence: 9_500, value: Some(going_value()) };
    assert_eq!(cluster.propose(PARENT, &rows(vec![attempt.clone()])), Outcome::Applied);
    let other = TakeBack { attempt: Some(9_499), ..back(CHILD, "n050", FLOOR) };
    assert!(matches!(take_back(&mut cluster, PARENT, other), Ok(Outcome::Refused(_))));
    let right = TakeBack { attempt: Some(9_500), ..back(CHILD, "n050", FLOOR) };
    assert_eq!(take_back(&mut cluster, PARENT, right), Ok(Outcome::Applied));
    assert_eq!(cluster.leader(PARENT).1.row(&attempt.key), Ok(None));
    cluster.settle(PARENT, &[1, 2, 3]);
    check(&cluster, &[1, 2, 3], &[PARENT], &lines, "by an attempt");
}
