//! Ranges of lines that become groups of their own: with writes going on, with crashes at any moment, with voters that lag, leave and
//! come back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::rig::{Cluster, node, rows, voters, within};
use crate::catalog::{
    self, Belongs, ContainerValue, GroupId, ListedEtag, ListingValue, Totals, account_key, container_key,
    listing_key, listing_prefix,
};
use crate::consensus::{Entry, Expected, GroupError, Guard, Outcome, RowChange, Split, held, sweep};
use crate::index::Range;
use crate::object::TotalsOf;

pub(super) const PARENT: GroupId = 5;
pub(super) const CHILD: GroupId = 9;
pub(super) const ID: u64 = 7;

/// What was acknowledged: names and sizes.
pub(super) type Lines = BTreeMap<String, u64>;

fn of() -> Belongs {
    Belongs { account: "a".to_owned(), container: "c".to_owned(), policy: 2 }
}

pub(super) fn line(name: &str, sequence: u64, size: Option<u64>) -> RowChange {
    let value = |size| ListingValue {
        size,
        etag: ListedEtag::Md5([3; 16]),
        content_type: "text/plain".to_owned(),
        version: None,
        key: None,
        shown: None,
    };
    RowChange { key: listing_key(ID, name), sequence, value: size.map(|size| value(size).encode()) }
}

pub(super) fn name(n: u64) -> String {
    format!("n{n:03}")
}

/// Three voters, an account, a container and a hundred lines.
pub(super) fn filled(seed: u64, parent: GroupId) -> (Cluster, Lines) {
    let mut cluster = Cluster::new(seed, 3);
    cluster.found(parent, 3);
    let account = catalog::AccountValue { created: 1, marked: false, headers: Default::default() };
    let container =
        ContainerValue { id: ID, put: ID, policy: 2, index: Default::default(), headers: Default::default() };
    let all = vec![
        RowChange { key: account_key("a"), sequence: 1, value: Some(account.encode()) },
        RowChange { key: container_key("a", "c"), sequence: 7, value: Some(container.encode()) },
    ];
    assert_eq!(cluster.propose(parent, &rows(all)), Outcome::Applied);
    let mut lines = Lines::new();
    for n in (0..100).step_by(4) {
        let some = (n..n + 4).map(|n| line(&name(n), 10 + n, Some(n))).collect();
        assert_eq!(cluster.propose(parent, &rows(some)), Outcome::Applied);
        lines.extend((n..n + 4).map(|n| (name(n), n)));
    }
    cluster.settle(parent, &[1, 2, 3]);
    (cluster, lines)
}

pub(super) fn wanted(from: &str, group: GroupId) -> Split {
    Split { id: ID, from: from.to_owned(), group, of: of(), sequence: 5000 + u64::from(group) }
}

pub(super) async fn still() -> Result<(), GroupError> {
    Ok(())
}

/// Opens a group where it is on the disk and not open.
pub(super) fn open_held(cluster: &mut Cluster, group: GroupId) {
    for n in cluster.numbers().into_iter().filter(|n| cluster.is_up(*n)).collect::<Vec<_>>() {
        let disk = cluster.disk(n);
        if cluster.run(held(&disk)).unwrap().contains(&group) && cluster.group(n, group).is_none() {
            cluster.open(n, group);
        }
    }
}

pub(super) fn split(cluster: &mut Cluster, parent: GroupId, from: &str, child: GroupId) {
    let (_, leader) = cluster.leader(parent);
    let split = wanted(from, child);
    assert_eq!(cluster.run(async move { leader.split(split, still()).await }).unwrap().0, Outcome::Applied);
    cluster.settle(parent, &[1, 2, 3]);
    open_held(cluster, child);
}

pub(super) fn lines_of(cluster: &Cluster, n: u8, group: GroupId) -> Lines {
    let prefix = listing_prefix(ID);
    let lines = cluster.dump(n, group).into_iter().filter(|(key, ..)| key.starts_with(&prefix));
    let line = |(key, _, value): (Vec<u8>, u64, Vec<u8>)| {
        let name = String::from_utf8(key[prefix.len()..].to_vec()).unwrap();
        (name, ListingValue::decode(&value).unwrap().size)
    };
    lines.map(line).collect()
}

fn sum(lines: &Lines) -> Totals {
    Totals { objects: lines.len() as u64, bytes: lines.values().sum(), ..Totals::default() }
}

/// These groups have these lines among them, on each of these voters, each its own, and count them exactly.
pub(super) fn check(cluster: &Cluster, numbers: &[u8], groups: &[GroupId], lines: &Lines, what: &str) {
    for n in numbers {
        let mut all = Lines::new();
        for group in groups {
            let own = lines_of(cluster, *n, *group);
            let voter = cluster.group(*n, *group).unwrap();
            let totals = voter.totals(TotalsOf::Container(ID)).unwrap();
            assert_eq!(totals, sum(&own), "{what}: group {group} at node {n}");
            if *group == groups[0] {
                let account = voter.totals(TotalsOf::Account("a")).unwrap();
                let account = Totals { policies: Default::default(), ..account };
                assert_eq!(account, Totals { containers: 1, ..totals }, "{what}: account at node {n}");
            }
            let before = all.len();
            all.extend(own.clone());
            assert_eq!(all.len(), before + own.len(), "{what}: no line is in two groups");
            for name in own.keys() {
                assert!(voter.row(&listing_key(ID, name)).unwrap().is_some());
            }
        }
        assert_eq!(&all, lines, "{what}: lines at node {n}");
    }
}

#[test]
fn a_range_is_another_groups_from_one_entry_on() {
    for parent in [1, PARENT] {
        let (mut cluster, mut lines) = filled(100, parent);
        let (_, leader) = cluster.leader(parent);
        let from = cluster.run(leader.middle(ID, u64::MAX)).unwrap().unwrap();
        assert_eq!(from, name(50));
        split(&mut cluster, parent, &from, CHILD);
        for n in 1..=3 {
            assert_eq!(*cluster.group(n, parent).unwrap().made().borrow(), [CHILD]);
        }
        cluster.settle(CHILD, &[1, 2, 3]);
        check(&cluster, &[1, 2, 3], &[parent, CHILD], &lines, "split");
        let part = cluster.leader(CHILD).1.part().unwrap().value;
        assert_eq!((part.from, part.to, part.of), (name(50), None, of()));
        // The parent does nothing with lines of the range, and decides nothing by them.
        let moved = Outcome::Moved(CHILD);
        assert_eq!(cluster.propose(parent, &rows(vec![line("n060", 9000, None)])), moved);
        let guards = vec![Guard { key: listing_key(ID, "n060"), expected: Expected::Absent }];
        let guarded = Entry { guards, ..rows(vec![line("a", 9000, Some(1))]) };
        assert_eq!(cluster.propose(parent, &guarded), moved);
        let leader = cluster.leader(parent).1;
        assert_eq!(leader.row(&listing_key(ID, "n060")).unwrap_err(), GroupError::Moved(CHILD));
        // The child refuses times that the parent may have given out, and takes later ones.
        let late = Outcome::Stale { row: 0, above: 5000 + u64::from(CHILD) };
        assert_eq!(cluster.propose(CHILD, &rows(vec![line("n060", 200, Some(1))])), late);
        for (group, name, size) in [
            (CHILD, "n060", Some(1)),
            (CHILD, "n061", None),
            (CHILD, "z", Some(4)),
            (parent, "b", Some(2)),
            (parent, "n001", None),
        ] {
            let change = rows(vec![line(name, 9000, size)]);
            assert_eq!(cluster.propose(group, &change), Outcome::Applied);
            match size {
                Some(size) => lines.insert(name.to_owned(), size),
                None => lines.remove(name),
            };
        }
        cluster.settle(parent, &[1, 2, 3]);
        cluster.settle(CHILD, &[1, 2, 3]);
        check(&cluster, &[1, 2, 3], &[parent, CHILD], &lines, "after");
        // What is scanned is the group's own, in either direction.
        let leader = cluster.leader(parent).1;
        let range = Range { from: Some(listing_key(ID, "n040")), to: None, reverse: true };
        let first = leader.scan(&Range { reverse: true, ..range }).unwrap().map(|row| row.unwrap().0);
        assert!(first.into_iter().all(|key| !key.starts_with(&listing_key(ID, "n06"))));
        for n in 1..=3 {
            cluster.crash_without_index(n);
            cluster.start(n);
        }
        cluster.settle(parent, &[1, 2, 3]);
        cluster.settle(CHILD, &[1, 2, 3]);
        check(&cluster, &[1, 2, 3], &[parent, CHILD], &lines, "rebuilt");
    }
}

/// Clients at the leader of the parent while it splits, and later at that of the child.
fn load(cluster: &mut Cluster, leader: u8, told: &Arc<Mutex<Vec<(String, u64)>>>) {
    for n in 0..120u64 {
        let voter = cluster.group(leader, PARENT).unwrap();
        let (sleeper, told) = (cluster.runtime.node(node(leader)), Arc::clone(told));
        let name = format!("n{:03}x{n}", (n * 37) % 100);
        cluster.runtime.spawn(
            node(leader),
            Box::pin(async move {
                sleeper.sleep(Duration::from_micros(n * 300)).await;
                let entry = rows(vec![line(&name, 1000 + n, Some(n))]);
                if let Ok(Outcome::Applied) = voter.propose(entry).await {
                    told.lock().unwrap().push((name, n));
                }
            }),
        );
    }
}

#[test]
fn writes_that_go_on_are_in_the_parent_or_refused_and_counts_are_exact() {
    for seed in 0..6 {
        let (mut cluster, mut lines) = filled(200 + seed, PARENT);
        let told = Arc::default();
        let (leader, voter) = cluster.leader(PARENT);
        load(&mut cluster, leader, &told);
        let sleeper = cluster.runtime.node(node(leader));
        let split = async move {
            sleeper.sleep(Duration::from_millis(seed * 5)).await;
            voter.split(wanted("n030", CHILD), still()).await
        };
        assert_eq!(cluster.run(split).unwrap().0, Outcome::Applied);
        cluster.pass(Duration::from_secs(1));
        open_held(&mut cluster, CHILD);
        cluster.settle(PARENT, &[1, 2, 3]);
        cluster.settle(CHILD, &[1, 2, 3]);
        let told = told.lock().unwrap().clone();
        assert!(told.len() > 20, "{}", told.len());
        lines.extend(told);
        check(&cluster, &[1, 2, 3], &[PARENT, CHILD], &lines, "under load");
    }
}

#[test]
fn a_crash_at_any_moment_leaves_one_group_or_two_whole_ones() {
    let mut halves = [0, 0];
    let moments = (0..36).map(|n| (n, n % 4)).chain((36..60).map(|n| (n, n - 32)));
    for (seed, turns) in moments {
        let (mut cluster, lines) = filled(300 + seed, PARENT);
        let (leader, voter) = cluster.leader(PARENT);
        let runtime = cluster.runtime.clone();
        runtime.spawn(
            node(leader),
            Box::pin(async move {
                let _either = voter.split(wanted("n030", CHILD), still()).await;
            }),
        );
        (0..turns).for_each(|_| cluster.turn());
        // One, two or all of them.
        for n in [leader, leader % 3 + 1, (leader + 1) % 3 + 1]
            .into_iter()
            .take(1 + usize::try_from(seed % 3).unwrap())
        {
            cluster.crash(n);
            cluster.start(n);
        }
        cluster.settle(PARENT, &[1, 2, 3]);
        open_held(&mut cluster, CHILD);
        let done = !cluster.leader(PARENT).1.given().is_empty();
        halves[usize::from(done)] += 1;
        let groups: &[GroupId] = if done { &[PARENT, CHILD] } else { &[PARENT] };
        if done {
            cluster.settle(CHILD, &[1, 2, 3]);
        } else {
            for n in 1..=3 {
                let disk = cluster.disk(n);
                assert_eq!(cluster.run(held(&disk)).unwrap(), [PARENT], "no child without its parent's row");
            }
        }
        check(&cluster, &[1, 2, 3], groups, &lines, &format!("seed {seed}, {turns} turns"));
    }
    assert!(halves[0] > 3 && halves[1] > 3, "{halves:?}");
}

/// A voter that was away while a range was given away gets both groups by snapshots: the parent's without the range, the child's
/// into a space of its own.
#[test]
fn a_voter_that_missed_it_gets_both_groups() {
    for seed in [400, 401] {
        let (mut cluster, mut lines) = filled(seed, PARENT);
        let (leader, _) = cluster.leader(PARENT);
        let lags = leader % 3 + 1;
        let others: Vec<u8> = (1..=3).filter(|n| *n != lags).collect();
        cluster.crash(lags);
        let (_, voter) = cluster.leader(PARENT);
        assert_eq!(
            cluster.run(async move { voter.split(wanted("n050", CHILD), still()).await }).unwrap().0,
            Outcome::Applied
        );
        cluster.settle(PARENT, &others);
        open_held(&mut cluster, CHILD);
        for n in 0..150 {
            for (group, name) in [(PARENT, format!("a{n}")), (CHILD, format!("z{n}"))] {
                assert_eq!(
                    cluster.propose(group, &rows(vec![line(&name, 9000 + n, Some(n))])),
                    Outcome::Applied
                );
                lines.insert(name, n);
            }
        }
        cluster.start(lags);
        cluster.settle(PARENT, &[1, 2, 3]);
        cluster.open(lags, CHILD);
        cluster.settle(CHILD, &[1, 2, 3]);
        check(&cluster, &[1, 2, 3], &[PARENT, CHILD], &lines, "lagged");
        cluster.crash_without_index(lags);
        cluster.start(lags);
        cluster.settle(PARENT, &[1, 2, 3]);
        cluster.settle(CHILD, &[1, 2, 3]);
        check(&cluster, &[1, 2, 3], &[PARENT, CHILD], &lines, "lagged and rebuilt");
    }
}

fn give_up(cluster: &mut Cluster, n: u8, group: GroupId) -> u64 {
    let (leader, voter) = cluster.leader(group);
    if leader == n {
        let to = n % 3 + 1;
        assert!(cluster.run(voter.hand_over(node(to))).unwrap());
    }
    let (_, voter) = cluster.leader(group);
    cluster.run(voter.change_voters((1..=3).filter(|other| *other != n).map(node).collect())).unwrap();
    let (groups, disk) = (cluster.nodes[&node(n)].groups.clone(), cluster.disk(n));
    cluster.run(async move {
        groups.give_up(group, &disk).await.unwrap();
        sweep(&disk).await.unwrap()
    })
}

fn join(cluster: &mut Cluster, n: u8, group: GroupId) {
    cluster.open(n, group);
    let (_, leader) = cluster.leader(group);
    cluster.run(leader.add_learner(node(n))).unwrap();
    cluster.run(leader.change_voters(voters(1..=3))).unwrap();
    cluster.settle(group, &[1, 2, 3]);
}

#[test]
fn lines_stay_when_the_group_leaves_in_whose_space_they_lie_and_go_with_their_own() {
    for parent in [1, PARENT] {
        let (mut cluster, lines) = filled(500, parent);
        split(&mut cluster, parent, "n050", CHILD);
        cluster.settle(CHILD, &[1, 2, 3]);
        assert_eq!(
            give_up(&mut cluster, 2, parent),
            54,
            "fifty lines, container, account and its totals, range"
        );
        let rebuilt = |cluster: &mut Cluster| {
            cluster.crash_without_index(2);
            cluster.start(2);
            let disk = cluster.disk(2);
            cluster.run(async move { sweep(&disk).await }).unwrap()
        };
        let above = lines.clone().split_off("n050");
        for _ in 0..2 {
            cluster.settle(CHILD, &[1, 2, 3]);
            assert_eq!(lines_of(&cluster, 2, CHILD), above);
            let voter = cluster.group(2, CHILD).unwrap();
            assert_eq!(voter.totals(TotalsOf::Container(ID)).unwrap(), sum(&above));
            rebuilt(&mut cluster);
        }
        join(&mut cluster, 2, parent);
        check(&cluster, &[1, 2, 3], &[parent, CHILD], &lines, "the parent came back");
        assert_eq!(give_up(&mut cluster, 2, CHILD), 51, "fifty lines, what the child knew of the container");
        for _ in 0..2 {
            cluster.settle(parent, &[1, 2, 3]);
            check(
                &cluster,
                &[2],
                &[parent],
                &lines.clone().into_iter().filter(|(name, _)| name.as_str() < "n050").collect(),
                "the child left",
            );
            rebuilt(&mut cluster);
        }
        join(&mut cluster, 2, CHILD);
        for _ in 0..2 {
            cluster.settle(parent, &[1, 2, 3]);
            cluster.settle(CHILD, &[1, 2, 3]);
            check(&cluster, &[1, 2, 3], &[parent, CHILD], &lines, "both came back");
            rebuilt(&mut cluster);
        }
    }
}

#[test]
fn ranges_are_split_again_by_parents_and_by_children() {
    let (mut cluster, mut lines) = filled(600, PARENT);
    split(&mut cluster, PARENT, "n060", CHILD);
    split(&mut cluster, PARENT, "n030", 10);
    cluster.settle(CHILD, &[1, 2, 3]);
    split(&mut cluster, CHILD, "n080", 11);
    let groups = [PARENT, CHILD, 10, 11];
    for group in groups {
        cluster.settle(group, &[1, 2, 3]);
    }
    check(&cluster, &[1, 2, 3], &groups, &lines, "four groups");
    let part = |cluster: &mut Cluster, group| {
        let part = cluster.leader(group).1.part().unwrap().value;
        (part.from, part.to)
    };
    assert_eq!(part(&mut cluster, 10), ("n030".to_owned(), Some("n060".to_owned())));
    assert_eq!(part(&mut cluster, 11), ("n080".to_owned(), None));
    // A middle one leaves: what others have above and below it stays.
    assert_eq!(give_up(&mut cluster, 2, CHILD), 20 + 2);
    join(&mut cluster, 2, CHILD);
    for (group, name) in [(PARENT, "n010"), (10, "n040"), (CHILD, "n070"), (11, "n090")] {
        assert_eq!(cluster.propose(group, &rows(vec![line(name, 9000, Some(1000))])), Outcome::Applied);
        lines.insert(name.to_owned(), 1000);
        cluster.settle(group, &[1, 2, 3]);
    }
    check(&cluster, &[1, 2, 3], &groups, &lines, "the middle one came back");
    for n in 1..=3 {
        cluster.crash_without_index(n);
        cluster.start(n);
    }
    groups.iter().for_each(|group| cluster.settle(*group, &[1, 2, 3]));
    check(&cluster, &[1, 2, 3], &groups, &lines, "rebuilt");
    // A child that has its lines in its own space gives away from there.
    let (_, leader) = cluster.leader(CHILD);
    cluster.run(leader.change_voters(voters([2]))).unwrap();
    cluster.pass(Duration::from_secs(2));
    let (leader, voter) = cluster.leader(CHILD);
    assert_eq!(leader, 2);
    assert_eq!(
        cluster
            .run(async move { voter.split(Split { sequence: 60_000, ..wanted("n070", 12) }, still()).await })
            .unwrap()
            .0,
        Outcome::Applied
    );
    open_held(&mut cluster, 12);
    cluster.leader(12);
    assert_eq!(part(&mut cluster, 12), ("n070".to_owned(), Some("n080".to_owned())));
    check(&cluster, &[2], &[PARENT, CHILD, 10, 11, 12], &lines, "from its own space");
}

#[test]
fn a_leader_that_is_deposed_while_it_counts_gives_nothing_away() {
    let (mut cluster, lines) = filled(700, PARENT);
    let (leader, voter) = cluster.leader(PARENT);
    for n in (1..=3).filter(|n| *n != leader) {
        cluster.net.cut(node(leader), node(n));
        cluster.net.cut(node(n), node(leader));
    }
    let runtime = cluster.runtime.node(node(200));
    let refused =
        cluster.run(async move { within(&*runtime, voter.split(wanted("n030", CHILD), still())).await });
    cluster.net.heal();
    assert!(!matches!(refused, Some(Ok((Outcome::Applied, ())))), "{refused:?}");
    cluster.settle(PARENT, &[1, 2, 3]);
    assert!(cluster.leader(PARENT).1.given().is_empty());
    check(&cluster, &[1, 2, 3], &[PARENT], &lines, "deposed");
}
