//! Leaving a group and coming back to it, handing over, and voters that have nothing.

use std::time::Duration;

use super::rig::{Cluster, node, put, rows, voters};
use crate::catalog;
use crate::consensus::{Outcome, held, sweep};

const GROUP: u32 = 5;

/// Three voters with rows, of which one has left; the leader and who left.
fn left(seed: u64, group: u32) -> (Cluster, u8) {
    let mut cluster = Cluster::new(seed, 3);
    cluster.found(group, 3);
    for n in 0..60 {
        assert_eq!(cluster.propose(group, &rows(vec![put(n, n + 1, "first")])), Outcome::Applied);
    }
    cluster.settle(group, &[1, 2, 3]);
    let (leader, voter) = cluster.leader(group);
    let gone = (1..=3).find(|n| *n != leader).unwrap();
    let rest = (1..=3).filter(|n| *n != gone).map(node).collect();
    cluster.run(voter.change_voters(rest)).unwrap();
    (cluster, gone)
}

fn write(cluster: &mut Cluster, group: u32) {
    for n in 0..80 {
        let mut change = put(n, 1000 + n, "second");
        if n < 20 {
            change.value = None;
        }
        assert_eq!(cluster.propose(group, &rows(vec![change])), Outcome::Applied);
    }
}

fn give_up(cluster: &mut Cluster, n: u8, group: u32) {
    let (groups, disk) = (cluster.nodes[&node(n)].groups.clone(), cluster.disk(n));
    cluster.run(async move { groups.give_up(group, &disk).await }).unwrap();
}

fn spaces(cluster: &Cluster, n: u8) -> Vec<u32> {
    catalog::spaces(cluster.disk(n).index()).unwrap()
}

fn swept(cluster: &mut Cluster, n: u8) -> u64 {
    let disk = cluster.disk(n);
    cluster.run(async move { sweep(&disk).await }).unwrap()
}

fn join(cluster: &mut Cluster, n: u8, group: u32) {
    cluster.open(n, group);
    let (_, leader) = cluster.leader(group);
    cluster.run(leader.add_learner(node(n))).unwrap();
    cluster.run(leader.change_voters(voters(1..=3))).unwrap();
}

#[test]
fn what_left_comes_back_with_what_stands_and_a_rebuild_brings_nothing_older() {
    for group in [1, GROUP] {
        let (mut cluster, gone) = left(20, group);
        give_up(&mut cluster, gone, group);
        let disk = cluster.disk(gone);
        assert_eq!(cluster.run(held(&disk)).unwrap(), Vec::<u32>::new());
        assert_eq!(spaces(&cluster, gone), [group], "rows are there until they are swept");
        write(&mut cluster, group);
        join(&mut cluster, gone, group);
        cluster.settle(group, &[1, 2, 3]);
        assert_eq!(cluster.dump(gone, group).len(), 60);
        assert_eq!(swept(&mut cluster, gone), 60);
        let lives = |cluster: &Cluster| spaces(cluster, gone);
        assert_eq!(lives(&cluster), [1 << 16 | group]);
        for _ in 0..2 {
            cluster.crash_without_index(gone);
            cluster.start(gone);
            cluster.settle(group, &[1, 2, 3]);
            assert_eq!(cluster.dump(gone, group).len(), 60);
            swept(&mut cluster, gone);
            assert_eq!(lives(&cluster), [1 << 16 | group]);
        }
        let disk = cluster.disk(gone);
        assert_eq!(cluster.run(held(&disk)).unwrap(), [group]);
    }
}

#[test]
fn crashes_while_a_group_is_given_up_and_swept_leave_nothing_behind() {
    let mut whole = 0;
    for turns in [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15] {
        let (mut cluster, gone) = left(30 + turns, GROUP);
        let (groups, disk) = (cluster.nodes[&node(gone)].groups.clone(), cluster.disk(gone));
        let runtime = cluster.runtime.clone();
        runtime.spawn(
            node(gone),
            Box::pin(async move {
                groups.give_up(GROUP, &disk).await.unwrap();
                sweep(&disk).await.unwrap();
            }),
        );
        (0..turns).for_each(|_| cluster.turn());
        cluster.crash(gone);
        cluster.start(gone);
        cluster.pass(Duration::from_millis(50));
        let disk = cluster.disk(gone);
        // Before the state was durable the group is as it was, and is given up again.
        match cluster.run(held(&disk)).unwrap()[..] {
            [] => whole += 1,
            [GROUP] => {
                assert_eq!(cluster.dump(gone, GROUP).len(), 60, "{turns}");
                give_up(&mut cluster, gone, GROUP);
            }
            ref other => panic!("{other:?}"),
        }
        swept(&mut cluster, gone);
        assert_eq!(spaces(&cluster, gone), Vec::<u32>::new(), "{turns}");
        write(&mut cluster, GROUP);
        join(&mut cluster, gone, GROUP);
        cluster.settle(GROUP, &[1, 2, 3]);
        assert_eq!(cluster.dump(gone, GROUP).len(), 60);
    }
    assert!((1..12).contains(&whole), "{whole}");
}

/// Who was told that it leads would ask itself again.
#[test]
fn a_leader_that_votes_no_more_names_itself_no_leader() {
    let mut cluster = Cluster::new(55, 3);
    cluster.found(GROUP, 3);
    assert_eq!(cluster.propose(GROUP, &rows(vec![put(1, 1, "x")])), Outcome::Applied);
    cluster.settle(GROUP, &[1, 2, 3]);
    let (leader, voter) = cluster.leader(GROUP);
    let watched = voter.watch();
    cluster.run(voter.change_voters((1..=3).filter(|n| *n != leader).map(node).collect())).unwrap();
    let mut deposed = false;
    for _ in 0..400 {
        cluster.pass(Duration::from_millis(5));
        let (office, status, seen) = (voter.office(), voter.status(), watched.now());
        for (leads, named) in
            [(office.leads, office.leader), (status.leads, status.leader), (seen.leads, seen.leader)]
        {
            assert!(leads || named != Some(node(leader)), "it does not lead, and names itself");
        }
        deposed |= !office.leads;
    }
    assert!(deposed, "it still leads");
}

#[test]
fn a_group_may_be_given_up_many_times() {
    let (mut cluster, gone) = left(50, GROUP);
    for _ in 0..4 {
        give_up(&mut cluster, gone, GROUP);
        give_up(&mut cluster, gone, GROUP);
        join(&mut cluster, gone, GROUP);
        cluster.settle(GROUP, &[1, 2, 3]);
        let (leader, voter) = cluster.leader(GROUP);
        if leader == gone {
            let to = (1..=3).find(|n| *n != gone).unwrap();
            assert!(cluster.run(voter.hand_over(node(to))).unwrap());
        }
        let (_, voter) = cluster.leader(GROUP);
        cluster.run(voter.change_voters((1..=3).filter(|n| *n != gone).map(node).collect())).unwrap();
    }
}

/// A voter whose disk was lost knows neither what it had nor whom it voted for: with its vote, a node that lacks what
/// was acknowledged could lead.
#[test]
fn a_voter_with_an_empty_disk_gives_nobody_its_vote() {
    let mut cluster = Cluster::new(60, 3);
    cluster.found(GROUP, 3);
    assert_eq!(cluster.propose(GROUP, &rows(vec![put(1, 1, "x")])), Outcome::Applied);
    cluster.settle(GROUP, &[1, 2, 3]);
    let (leader, _) = cluster.leader(GROUP);
    let [lags, loses] = [1, 2, 3].into_iter().filter(|n| *n != leader).collect::<Vec<_>>()[..] else {
        panic!()
    };
    cluster.crash(lags);
    assert_eq!(cluster.propose(GROUP, &rows(vec![put(2, 2, "acknowledged")])), Outcome::Applied);
    cluster.crash(leader);
    cluster.crash(loses);
    cluster.add(loses);
    cluster.open(loses, GROUP);
    cluster.start(lags);
    cluster.pass(Duration::from_secs(10));
    for n in [lags, loses] {
        assert!(
            !cluster.group(n, GROUP).unwrap().status().leads,
            "node {n} leads without what was acknowledged"
        );
    }
    cluster.start(leader);
    cluster.settle(GROUP, &[lags, leader]);
    assert_eq!(cluster.dump(lags, GROUP).len(), 2);
}

#[test]
fn a_leader_hands_over_under_load_within_moments() {
    for seed in 70..76 {
        let mut cluster = Cluster::new(seed, 3);
        cluster.found(GROUP, 3);
        let (leader, voter) = cluster.leader(GROUP);
        cluster.pass(Duration::from_secs(2));
        let to = (1..=3).find(|n| *n != leader).unwrap();
        let runtime = cluster.runtime.clone();
        for n in 0..200 {
            let (voter, sleeper) = (voter.clone(), cluster.runtime.node(node(leader)));
            runtime.spawn(
                node(leader),
                Box::pin(async move {
                    sleeper.sleep(Duration::from_millis(n)).await;
                    let _either = voter.propose(rows(vec![put(n, n + 1, "x")])).await;
                }),
            );
        }
        cluster.pass(Duration::from_millis(50));
        let begun = cluster.runtime.now();
        assert!(cluster.run(voter.hand_over(node(to))).unwrap(), "{seed}");
        cluster.until("the other one leads", |cluster| cluster.group(to, GROUP).unwrap().status().leads);
        let took = cluster.runtime.now() - begun;
        assert!(took < Duration::from_millis(200), "{seed}: {took:?}");
        cluster.settle(GROUP, &[1, 2, 3]);
        assert!(cluster.dump(to, GROUP).len() >= 30);
    }
}
