//! Changes of members that are cut off, and such as cannot be committed.

use std::collections::BTreeSet;
use std::time::Duration;

use super::rig::{Cluster, node, put, rows, voters, within};
use crate::consensus::{Group, GroupError, Outcome};
use crate::net::{ConsensusAnswer, ConsensusCall, NodeId, Response};

const GROUP: u32 = 5;

/// Steps, at whoever leads, until the members are these.
fn bring(cluster: &mut Cluster, all: &BTreeSet<NodeId>, voters: &BTreeSet<NodeId>) {
    for _ in 0..100 {
        let (_, leader) = cluster.leader(GROUP);
        // What fails is tried again.
        if cluster.run(leader.bring_members(all, voters)) == Ok(true) {
            return;
        }
        cluster.pass(Duration::from_millis(50));
    }
    panic!("seed {}: the members do not become what they shall be", cluster.seed);
}

/// A group of three with a row, and members that shall vote; its leader.
fn grown(seed: u64, joins: std::ops::RangeInclusive<u8>) -> (Cluster, u8, Group) {
    let mut cluster = Cluster::new(seed, *joins.end());
    cluster.found(GROUP, 3);
    assert_eq!(cluster.propose(GROUP, &rows(vec![put(1, 1, "x")])), Outcome::Applied);
    for n in joins {
        cluster.open(n, GROUP);
        let (_, leader) = cluster.leader(GROUP);
        cluster.run(leader.add_learner(node(n))).unwrap();
    }
    let (leader, group) = cluster.leader(GROUP);
    (cluster, leader, group)
}

/// A leader that changes voters 1, 2 and 3 to others dies on its way; how many of its successors found the change begun.
#[test]
fn a_change_of_voters_whose_leader_died_is_ended_by_the_next_one() {
    let mut found = 0;
    for seed in 0..40 {
        let (mut cluster, leader, group) = grown(1000 + seed, 4..=5);
        let stays = (1..=3).find(|n| *n != leader).unwrap();
        let runtime = cluster.runtime.clone();
        let begun = group.clone();
        runtime.spawn(
            node(leader),
            Box::pin(async move { drop(begun.change_voters(voters([stays, 4, 5])).await) }),
        );
        cluster.until("the change is begun", |_| group.status().changing.is_some());
        cluster.pass(Duration::from_millis(seed / 4));
        cluster.crash(leader);
        let (_, next) = cluster.leader(GROUP);
        found += usize::from(next.status().changing.is_some());
        // The change that was begun, or the voters of before: whatever is wanted by then.
        let rest: BTreeSet<NodeId> = (1..=5).filter(|n| *n != leader).map(node).collect();
        let wanted = rest.iter().copied().take(3).collect();
        bring(&mut cluster, &rest, &wanted);
        assert_eq!(cluster.propose(GROUP, &rows(vec![put(2, 2, "x")])), Outcome::Applied);
        let status = cluster.leader(GROUP).1.status();
        assert_eq!((status.voters, status.changing), (wanted, None), "seed {seed}");
    }
    assert!(found > 5, "{found} of 40");
}

/// While voters are changed four of them are known, and two may be a majority of both sets.
#[test]
fn who_is_a_majority_of_both_sets_elects_a_leader() {
    let mut found = 0;
    for seed in 0..20 {
        let (mut cluster, leader, group) = grown(1300 + seed, 4..=4);
        cluster.settle(GROUP, &[1, 2, 3, 4]);
        let stay: Vec<u8> = (1..=3).filter(|n| *n != leader).collect();
        let wanted = stay.iter().copied().chain([4]).map(node).collect();
        let runtime = cluster.runtime.clone();
        runtime.spawn(node(leader), Box::pin(async move { drop(group.change_voters(wanted).await) }));
        let known = |cluster: &Cluster| {
            let changing = |n: &u8| cluster.group(*n, GROUP).unwrap().status().changing.is_some();
            stay.iter().all(changing)
        };
        cluster.until("others know of it", known);
        cluster.crash(leader);
        cluster.crash(4);
        found += usize::from(known(&cluster));
        assert!(stay.contains(&cluster.leader(GROUP).0), "seed {seed}");
    }
    assert!(found > 5, "{found} of 20");
}

#[test]
fn voters_are_not_changed_to_such_as_do_not_answer() {
    let mut cluster = Cluster::new(1100, 3);
    cluster.found(GROUP, 3);
    assert_eq!(cluster.propose(GROUP, &rows(vec![put(1, 1, "x")])), Outcome::Applied);
    let (leader, group) = cluster.leader(GROUP);
    cluster.settle(GROUP, &[1, 2, 3]);
    let away = (1..=3).find(|n| *n != leader).unwrap();
    cluster.crash(away);
    let (all, wanted) = (voters(1..=3), voters([away]));
    let runtime = cluster.runtime.node(node(200));
    let asked = group.clone();
    let begun = cluster.run(async move { within(&*runtime, asked.bring_members(&all, &wanted)).await });
    assert!(matches!(begun, Some(Err(GroupError::Unavailable(_)))), "{begun:?}");
    assert_eq!(group.status().changing, None);
    assert_eq!(cluster.propose(GROUP, &rows(vec![put(2, 2, "x")])), Outcome::Applied);
    // It is back: now they are.
    cluster.start(away);
    bring(&mut cluster, &voters([away]), &voters([away]));
    assert_eq!(cluster.propose(GROUP, &rows(vec![put(3, 3, "x")])), Outcome::Applied);
}

#[test]
fn a_leader_that_shall_vote_no_more_hands_over_first() {
    for seed in 1200..1206 {
        let (mut cluster, leader, group) = grown(seed, 4..=4);
        cluster.settle(GROUP, &[1, 2, 3, 4]);
        cluster.until("the leader knows", |_| group.status().has_caught_up(&node(4)));
        let rest: BTreeSet<NodeId> = (1..=4).filter(|n| *n != leader).map(node).collect();
        let before = cluster.runtime.now();
        assert_eq!(cluster.run(group.bring_members(&rest, &rest)), Ok(false));
        let successor = group.leader().filter(|next| rest.contains(next));
        assert!(successor.is_some(), "seed {seed}: {:?}", group.status());
        assert!(cluster.runtime.now() - before < Duration::from_millis(200));
        bring(&mut cluster, &rest, &rest);
        assert_eq!(Some(node(cluster.leader(GROUP).0)), successor, "seed {seed}");
    }
}

/// In a group that is idle, one that is away has all that the others have.
#[test]
fn a_leader_that_shall_vote_no_more_hands_over_to_one_that_answers() {
    let mut tried = 0;
    for seed in 1400..1412 {
        let (mut cluster, leader, group) = grown(seed, 4..=4);
        if leader == 3 {
            continue;
        }
        tried += 1;
        cluster.settle(GROUP, &[1, 2, 3, 4]);
        cluster.until("the leader knows", |_| {
            let status = group.status();
            (2..=4).all(|n| status.has_caught_up(&node(n)) && status.matched.contains_key(&node(3)))
        });
        cluster.pass(Duration::from_secs(1));
        cluster.crash(3);
        let rest: BTreeSet<NodeId> = (1..=4).filter(|n| *n != leader).map(node).collect();
        assert_eq!(cluster.run(group.bring_members(&rest, &rest)), Ok(false), "seed {seed}");
        let successor = (1..=2).find(|n| *n != leader).map(node);
        assert_eq!(group.leader(), successor, "seed {seed}: {:?}", group.status());
    }
    assert!(tried > 3, "{tried} of 12");
}

/// A leader that had appended new voters, and whose log nobody else had yet, said who was none any more. That one gave up what it had,
/// and when the leader died the voters of before stood, of which there was no majority left.
#[test]
fn members_are_told_only_when_a_majority_has_them() {
    let mut refused = 0;
    for seed in 0..10 {
        let (mut cluster, leader, group) = grown(1500 + seed, 4..=4);
        cluster.settle(GROUP, &[1, 2, 3, 4]);
        let stays = (1..=3).find(|n| *n != leader).unwrap();
        let leaves = (1..=3).find(|n| ![leader, stays].contains(n)).unwrap();
        let (runtime, changed, wanted) = (cluster.runtime.clone(), group.clone(), voters([leader, stays, 4]));
        let change = wanted.clone();
        runtime.spawn(node(leader), Box::pin(async move { drop(changed.change_voters(change).await) }));
        cluster.until("the change is begun", |_| group.status().changing.is_some());
        cluster.until("its end is appended", |_| group.status().voters == wanted);
        if group.status().applied == group.status().last {
            continue;
        }
        cluster.hung.extend([node(stays), node(4)]);
        refused += 1;
        cluster.pass(Duration::from_millis(20));
        let ask = |group: Group| async move {
            match group.answer(node(leaves), ConsensusCall::Members).await {
                Response::Consensus(ConsensusAnswer::Members { voters, learners }) => Ok((voters, learners)),
                other => Err(other),
            }
        };
        let answer = cluster.run(ask(group.clone()));
        assert!(matches!(answer, Err(Response::Failed(_))), "seed {seed}: {answer:?}");
        cluster.hung.clear();
        cluster.until("a majority has it", |_| group.status().members_stand);
        let told: BTreeSet<NodeId> = cluster.run(ask(group.clone())).unwrap().0.into_iter().collect();
        assert_eq!(told, wanted, "seed {seed}");
    }
    assert!(refused > 5, "{refused} of 10");
}
