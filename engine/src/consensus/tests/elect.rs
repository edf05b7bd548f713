//! How long a group is without a leader, and what makes it change leaders.

use std::time::Duration;

use super::rig::{Cluster, node, put, rows};
use crate::consensus::{Group, GroupError, Outcome, Settings};

const GROUP: u32 = 4;

fn cluster(seed: u64, of: u8) -> Cluster {
    let mut cluster = Cluster::new(seed, of);
    cluster.settings = Settings { snapshot_every: 50, keep: 20, ..Settings::default() };
    cluster.found(GROUP, of);
    cluster
}

/// Passes time until somebody but `former` leads in a term above `term`; how long that took.
fn vacancy(cluster: &mut Cluster, former: u8, term: u64) -> Duration {
    let began = cluster.runtime.now();
    cluster.until("another leader", |cluster| {
        let others = cluster.numbers().into_iter().filter(|n| *n != former);
        let mut groups = others.filter_map(|n| cluster.group(n, GROUP));
        groups.any(|group| group.status().leads && group.status().term > term)
    });
    cluster.runtime.now() - began
}

#[test]
fn a_leader_that_is_killed_is_missed_for_less_than_two_seconds() {
    for (seed, of) in [(1, 3), (2, 3), (3, 5), (4, 5), (5, 3)] {
        let mut cluster = cluster(seed, of);
        assert_eq!(cluster.propose(GROUP, &rows(vec![put(1, 1, "x")])), Outcome::Applied);
        let (leader, group) = cluster.leader(GROUP);
        let term = group.status().term;
        cluster.pass(Duration::from_millis(70 * seed));
        cluster.crash(leader);
        let took = vacancy(&mut cluster, leader, term);
        assert!(took < Duration::from_millis(1800), "seed {seed}: {took:?}");
        assert!(took > Duration::from_millis(900), "seed {seed}: {took:?}, which is nervous");
        assert_eq!(cluster.propose(GROUP, &rows(vec![put(2, 2, "y")])), Outcome::Applied);
    }
}

/// A voter that heard nothing for a while called elections, of which each took the leader's place away.
#[test]
fn a_voter_that_heard_of_nobody_disturbs_nobody() {
    let mut cluster = cluster(6, 3);
    let (leader, group) = cluster.leader(GROUP);
    let term = group.status().term;
    let deaf = (1..=3).find(|n| *n != leader).unwrap();
    for n in (1..=3).filter(|n| *n != deaf) {
        cluster.net.cut(node(n), node(deaf));
    }
    cluster.pass(Duration::from_secs(10));
    assert_eq!(cluster.propose(GROUP, &rows(vec![put(1, 1, "x")])), Outcome::Applied);
    cluster.net.heal();
    cluster.pass(Duration::from_secs(5));
    let status = group.status();
    assert!(status.leads && status.term == term, "{status:?}");
    cluster.settle(GROUP, &[1, 2, 3]);
}

fn stepped_down(cluster: &mut Cluster, group: &Group) -> Duration {
    let began = cluster.runtime.now();
    let gone = group.clone();
    cluster.run(async move { gone.step_down().await });
    cluster.runtime.now() - began
}

#[test]
fn a_leader_gives_its_place_away_at_once_and_takes_nothing_more() {
    for (seed, of) in [(7, 3), (8, 5)] {
        let mut cluster = cluster(seed, of);
        for n in 1..=20 {
            assert_eq!(cluster.propose(GROUP, &rows(vec![put(n, n, "x")])), Outcome::Applied);
        }
        let (leader, group) = cluster.leader(GROUP);
        let term = group.status().term;
        let took = stepped_down(&mut cluster, &group);
        assert!(took < Duration::from_millis(400), "seed {seed}: {took:?}");
        let status = group.status();
        assert!(!status.leads && status.term > term, "{status:?}");
        assert!(status.leader.is_some_and(|next| next != node(leader)), "{status:?}");
        let refused = cluster.run(group.propose(rows(vec![put(99, 99, "x")])));
        assert!(matches!(refused, Err(GroupError::NotLeader(_))), "{refused:?}");
        cluster.crash(leader);
        for n in 21..=30 {
            assert_eq!(cluster.propose(GROUP, &rows(vec![put(n, n, "x")])), Outcome::Applied);
        }
        cluster.start(leader);
        cluster.settle(GROUP, &(1..=of).collect::<Vec<_>>());
        assert_eq!(cluster.dump(leader, GROUP).len(), 30);
    }
}

#[test]
fn who_does_not_lead_or_is_alone_has_nothing_to_give_away() {
    let mut cluster = cluster(9, 1);
    let (_, group) = cluster.leader(GROUP);
    stepped_down(&mut cluster, &group);
    assert!(group.status().leads);
    let mut cluster = self::cluster(10, 3);
    let (leader, group) = cluster.leader(GROUP);
    let other = cluster.group((1..=3).find(|n| *n != leader).unwrap(), GROUP).unwrap();
    stepped_down(&mut cluster, &other);
    assert!(group.status().leads);
}

/// Voters keep a lease for a leader that they have just heard of, and one that was just elected keeps its own.
#[test]
fn a_place_is_handed_over_at_once_by_a_leader_of_a_moment_and_among_five() {
    for (seed, of) in [(20, 3), (21, 5), (22, 5), (23, 3)] {
        let mut cluster = cluster(seed, of);
        let (leader, group) = cluster.leader(GROUP);
        let to = (1..=of).find(|n| *n != leader).unwrap();
        let began = cluster.runtime.now();
        assert!(cluster.run(group.hand_over(node(to))).unwrap(), "seed {seed}");
        assert_eq!(group.leader(), Some(node(to)), "seed {seed}");
        let took = cluster.runtime.now() - began;
        assert!(took < Duration::from_millis(200), "seed {seed}: {took:?}");
        assert_eq!(cluster.propose(GROUP, &rows(vec![put(1, 1, "x")])), Outcome::Applied);
        assert_eq!(cluster.leader(GROUP).0, to, "seed {seed}");
    }
}

#[test]
fn a_place_is_handed_over_at_once_where_a_third_does_not_answer() {
    for seed in 30..34 {
        let mut cluster = cluster(seed, 3);
        let (leader, group) = cluster.leader(GROUP);
        let others: Vec<u8> = (1..=3).filter(|n| *n != leader).collect();
        let (to, third) = (others[0], others[1]);
        cluster.net.cut(node(leader), node(third));
        cluster.net.cut(node(to), node(third));
        let began = cluster.runtime.now();
        assert!(cluster.run(group.hand_over(node(to))).unwrap(), "seed {seed}");
        let took = cluster.runtime.now() - began;
        assert!(took < Duration::from_millis(200), "seed {seed}: {took:?}");
        assert_eq!(cluster.leader(GROUP).0, to, "seed {seed}");
    }
}

/// A node that stops serves for a while, and follows; as a leader it would decide nothing.
#[test]
fn a_place_that_a_voter_refuses_that_stops_stays_where_it_was() {
    for (seed, of) in [(35, 3), (36, 5)] {
        let mut cluster = cluster(seed, of);
        assert_eq!(cluster.propose(GROUP, &rows(vec![put(1, 1, "x")])), Outcome::Applied);
        let (leader, group) = cluster.leader(GROUP);
        cluster.settle(GROUP, &(1..=of).collect::<Vec<_>>());
        let to = (1..=of).find(|n| *n != leader).unwrap();
        let stops = cluster.group(to, GROUP).unwrap();
        stepped_down(&mut cluster, &stops);
        let began = cluster.runtime.now();
        assert_eq!(cluster.run(group.hand_over(node(to))), Ok(false), "seed {seed}");
        let took = cluster.runtime.now() - began;
        assert!(took < Duration::from_millis(200), "seed {seed}: {took:?}");
        assert!(cluster.run(group.barrier()).is_ok(), "seed {seed}");
        assert_eq!(cluster.propose(GROUP, &rows(vec![put(2, 2, "y")])), Outcome::Applied);
    }
}

#[test]
fn nothing_is_handed_over_to_a_voter_that_does_not_answer() {
    let mut cluster = cluster(24, 5);
    assert_eq!(cluster.propose(GROUP, &rows(vec![put(1, 1, "x")])), Outcome::Applied);
    let (leader, group) = cluster.leader(GROUP);
    cluster.settle(GROUP, &[1, 2, 3, 4, 5]);
    let term = group.status().term;
    let to = (1..=5).find(|n| *n != leader).unwrap();
    cluster.net.cut(node(leader), node(to));
    let began = cluster.runtime.now();
    let runtime = cluster.runtime.clone();
    let written = async {
        assert_eq!(group.propose(rows(vec![put(3, 3, "x")])).await, Ok(Outcome::Applied));
        runtime.now()
    };
    let read = async {
        assert!(group.barrier().await.is_ok());
        runtime.now()
    };
    let handed = group.hand_over(node(to));
    let (handed, wrote, read) = cluster.run(futures_util::future::join3(handed, written, read));
    assert_eq!(handed, Ok(false));
    for what in [wrote, read] {
        assert!(what - began < Duration::from_millis(50), "others wait: {:?}", what - began);
    }
    assert!(group.status().leads && group.status().term == term);
    assert_eq!(cluster.propose(GROUP, &rows(vec![put(4, 4, "x")])), Outcome::Applied);
}

/// A successor that dies while it is given the place is no worse than a leader that dies.
#[test]
fn a_place_that_nobody_takes_is_filled_by_an_election() {
    let mut cluster = cluster(11, 5);
    let (leader, group) = cluster.leader(GROUP);
    let term = group.status().term;
    for n in (1..=5).filter(|n| *n != leader) {
        // Nobody hears that it shall lead.
        cluster.net.cut(node(leader), node(n));
    }
    stepped_down(&mut cluster, &group);
    let took = vacancy(&mut cluster, leader, term);
    assert!(took < Duration::from_secs(2), "{took:?}");
    cluster.net.heal();
    assert_eq!(cluster.propose(GROUP, &rows(vec![put(1, 1, "x")])), Outcome::Applied);
}
