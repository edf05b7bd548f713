//! Groups of several nodes: what they agree on, who joins, who is lost.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::rig::{Cluster, node, put, rows, voters};
use crate::catalog::{AccountValue, account_key};
use crate::clock::{Clock, Timestamp};
use crate::consensus::{Entry, Expected, Failed, GroupError, Guard, Outcome, RowChange};
use crate::disk::Class;
use crate::net::SimFaults;
use crate::object::{Claim, Error, IndexGroup, Leader, Voter, row_draft};

const GROUP: u32 = 5;

#[test]
fn one_voter_leads_itself_and_keeps_what_it_took() {
    let mut cluster = Cluster::new(1, 1);
    cluster.found(GROUP, 1);
    for n in 0..20 {
        assert_eq!(cluster.propose(GROUP, &rows(vec![put(n, 100 + n, "v")])), Outcome::Applied);
        assert!(cluster.group(1, GROUP).unwrap().row(format!("k{n:06}").as_bytes()).unwrap().is_some());
    }
    cluster.crash(1);
    cluster.start(1);
    let (_, leader) = cluster.leader(GROUP);
    assert_eq!(leader.status().term, 2, "a leader that was started anew leads in a term of its own");
    assert_eq!(cluster.dump(1, GROUP).len(), 20);
    assert_eq!(leader.max_sequence(), 119);
}

#[test]
fn three_voters_hold_the_same_rows() {
    let mut cluster = Cluster::new(2, 3);
    cluster.found(GROUP, 3);
    for n in 0..120 {
        let entry = rows((0..7).map(|i| put(n * 7 + i, 1000 + n, "value")).collect());
        assert_eq!(cluster.propose(GROUP, &entry), Outcome::Applied);
    }
    cluster.settle(GROUP, &[1, 2, 3]);
    assert_eq!(cluster.dump(2, GROUP).len(), 840);
    let (_, leader) = cluster.leader(GROUP);
    assert!(leader.status().purged.is_some_and(|index| index > 20), "{:?}", leader.status());
}

#[test]
fn what_is_committed_is_said_with_entries_that_follow_and_otherwise_soon() {
    let mut cluster = Cluster::new(40, 3);
    cluster.found(GROUP, 3);
    cluster.propose(GROUP, &rows(vec![put(0, 1, "v")]));
    cluster.settle(GROUP, &[1, 2, 3]);
    let (_, leader) = cluster.leader(GROUP);
    let before = cluster.empty.load(Ordering::Relaxed);
    for n in 1..=40 {
        let proposed = leader.propose(rows(vec![put(n, n + 1, "v")]));
        assert_eq!(cluster.run(proposed).unwrap(), Outcome::Applied);
    }
    let empty = cluster.empty.load(Ordering::Relaxed) - before;
    assert!(empty < 20, "{empty} messages to two voters beside those with 40 entries");
    // Sooner than the next sign of life.
    cluster.pass(Duration::from_millis(40));
    assert!((1..=3).all(|n| cluster.dump(n, GROUP).len() == 41));
}

#[test]
fn of_two_proposals_with_the_same_guard_one_wins() {
    let mut cluster = Cluster::new(3, 3);
    cluster.found(GROUP, 3);
    let (_, leader) = cluster.leader(GROUP);
    let key = b"k000001".to_vec();
    let guarded = |sequence, expected, value: &str| Entry {
        term: None,
        guards: vec![Guard { key: key.clone(), expected }],
        rows: vec![put(1, sequence, value)],
    };
    let two = [guarded(10, Expected::Absent, "a"), guarded(11, Expected::Absent, "b")];
    let [one, other] = two.map(|entry| leader.propose(entry));
    let outcomes = cluster.run(async { (one.await, other.await) });
    // Both were queued before either was applied, or one after the other: the first wins.
    assert_eq!(outcomes.0, Ok(Outcome::Applied));
    assert_eq!(outcomes.1, Ok(Outcome::Refused(vec![Failed { guard: 0, stands: Some(10) }])));
    let again = cluster.propose(GROUP, &guarded(12, Expected::Sequence(10), "c"));
    assert_eq!(again, Outcome::Applied);
    let late = cluster.propose(GROUP, &guarded(13, Expected::Sequence(10), "d"));
    assert_eq!(late, Outcome::Refused(vec![Failed { guard: 0, stands: Some(12) }]));
    cluster.settle(GROUP, &[1, 2, 3]);
    assert_eq!(cluster.dump(3, GROUP), vec![(key.clone(), 12, b"c".to_vec())]);
}

#[test]
fn what_was_decided_in_another_term_or_is_not_newer_is_not_applied() {
    let mut cluster = Cluster::new(4, 3);
    cluster.found(GROUP, 3);
    let (leader, voter) = cluster.leader(GROUP);
    let term = voter.status().term;
    let fenced = |term, sequence| Entry { term: Some(term), ..rows(vec![put(1, sequence, "x")]) };
    assert_eq!(cluster.propose(GROUP, &fenced(term, 50)), Outcome::Applied);
    let stale = cluster.propose(GROUP, &rows(vec![put(1, 50, "y")]));
    assert_eq!(stale, Outcome::Stale { row: 0, above: 50 });
    cluster.crash(leader);
    let (_, voter) = cluster.leader(GROUP);
    let now = voter.status().term;
    assert!(now > term);
    assert_eq!(cluster.propose(GROUP, &fenced(term, 60)), Outcome::Fenced { term: now });
    // In a new term nothing may be as old as anything before it, whatever its key.
    let stale = cluster.propose(GROUP, &rows(vec![put(2, 50, "y")]));
    assert_eq!(stale, Outcome::Stale { row: 0, above: 50 });
    assert_eq!(cluster.propose(GROUP, &rows(vec![put(2, 51, "y")])), Outcome::Applied);
}

#[test]
fn a_follower_says_who_leads() {
    let mut cluster = Cluster::new(5, 3);
    cluster.found(GROUP, 3);
    let (leader, _) = cluster.leader(GROUP);
    cluster.pass(Duration::from_secs(1));
    let follower = (1..=3).find(|n| *n != leader).unwrap();
    let voter = cluster.group(follower, GROUP).unwrap();
    assert_eq!(voter.leader(), Some(node(leader)));
    let refused = GroupError::NotLeader(Some(node(leader)));
    assert_eq!(cluster.run(voter.propose(rows(vec![put(1, 9, "x")]))), Err(refused.clone()));
    assert_eq!(cluster.run(voter.barrier()), Err(refused));
}

#[test]
fn a_group_grows_from_one_voter_to_five_while_it_is_written_to() {
    let mut cluster = Cluster::new(6, 5);
    cluster.found(GROUP, 1);
    let mut sequence = 0;
    let mut write = |cluster: &mut Cluster, count: u64| {
        for _ in 0..count {
            sequence += 1;
            let entry = rows(vec![put(sequence, sequence, "value")]);
            assert_eq!(cluster.propose(GROUP, &entry), Outcome::Applied);
        }
    };
    write(&mut cluster, 100);
    for grown in [vec![2, 3], vec![4, 5]] {
        for n in &grown {
            cluster.open(*n, GROUP);
            let (_, leader) = cluster.leader(GROUP);
            cluster.run(leader.add_learner(node(*n))).unwrap();
            write(&mut cluster, 10);
        }
        let (_, leader) = cluster.leader(GROUP);
        let top = *grown.last().unwrap();
        cluster.run(leader.change_voters(voters(1..=top))).unwrap();
        write(&mut cluster, 20);
        cluster.settle(GROUP, &(1..=top).collect::<Vec<_>>());
        let (_, leader) = cluster.leader(GROUP);
        assert_eq!(leader.status().voters, voters(1..=top));
    }
    assert_eq!(cluster.dump(5, GROUP).len(), 180);
    // Two of five may be lost.
    let (leader, _) = cluster.leader(GROUP);
    cluster.crash(leader);
    cluster.crash(if leader == 1 { 2 } else { 1 });
    write(&mut cluster, 10);
}

#[test]
fn without_a_majority_nothing_is_acknowledged() {
    let mut cluster = Cluster::new(7, 3);
    cluster.found(GROUP, 3);
    assert_eq!(cluster.propose(GROUP, &rows(vec![put(1, 1, "x")])), Outcome::Applied);
    let (leader, voter) = cluster.leader(GROUP);
    for n in (1..=3).filter(|n| *n != leader) {
        cluster.crash(n);
    }
    let runtime = cluster.runtime.node(node(200));
    let asked = voter.clone();
    let result = cluster
        .run(async move { super::rig::within(&*runtime, asked.propose(rows(vec![put(2, 2, "y")]))).await });
    assert!(!matches!(result, Some(Ok(_))), "{result:?}");
    assert!(cluster.run(voter.barrier()).is_err());
    for n in (1..=3).filter(|n| *n != leader) {
        cluster.start(n);
    }
    cluster.settle(GROUP, &[1, 2, 3]);
}

#[test]
fn a_voter_that_lost_its_disk_comes_back_as_a_new_member_by_snapshot() {
    let mut cluster = Cluster::new(8, 3);
    cluster.found(GROUP, 3);
    for n in 0..100 {
        assert_eq!(cluster.propose(GROUP, &rows(vec![put(n, n + 1, "x")])), Outcome::Applied);
    }
    let (leader, _) = cluster.leader(GROUP);
    let lost = (1..=3).find(|n| *n != leader).unwrap();
    cluster.crash(lost);
    let (_, voter) = cluster.leader(GROUP);
    cluster.run(voter.change_voters((1..=3).filter(|n| *n != lost).map(node).collect())).unwrap();
    cluster.add(lost);
    cluster.open(lost, GROUP);
    let (_, voter) = cluster.leader(GROUP);
    cluster.run(voter.add_learner(node(lost))).unwrap();
    cluster.run(voter.change_voters(voters(1..=3))).unwrap();
    assert_eq!(cluster.propose(GROUP, &rows(vec![put(500, 500, "x")])), Outcome::Applied);
    cluster.settle(GROUP, &[1, 2, 3]);
    assert_eq!(cluster.dump(lost, GROUP).len(), 101);
}

#[test]
fn rows_of_before_the_group_reach_new_members_and_groups_do_not_mix() {
    let mut cluster = Cluster::new(9, 3);
    let disk = cluster.disk(1);
    // A machine on its own: rows without a prefix, logged by its single voter.
    let key = crate::catalog::account_key("AUTH_a");
    let value =
        crate::catalog::AccountValue { created: 7, marked: true, headers: Default::default() }.encode();
    let record = crate::disk::format::record::Parts {
        kind: crate::disk::format::record::Kind::Row,
        deleted: false,
        sequence: 7,
        number: 0,
        key: &key,
        meta: &value,
        data: bytes::Bytes::new(),
    };
    let record = disk.record(record);
    cluster
        .run(disk.append(vec![record], crate::disk::Durability::Durable, crate::disk::Class::Client))
        .unwrap();
    assert!(cluster.run(crate::consensus::Group::found(&disk, 1, voters([1]), 7)).unwrap());
    assert!(!cluster.run(crate::consensus::Group::found(&disk, 1, voters([1]), 7)).unwrap(), "once");
    (1..=3).for_each(|n| drop(cluster.open(n, 1)));
    let (_, leader) = cluster.leader(1);
    for n in [2, 3] {
        cluster.run(leader.add_learner(node(n))).unwrap();
    }
    cluster.run(leader.change_voters(voters(1..=3))).unwrap();
    cluster.found(0, 3);
    assert_eq!(cluster.propose(0, &rows(vec![put(1, 1, "control")])), Outcome::Applied);
    cluster.settle(1, &[1, 2, 3]);
    cluster.settle(0, &[1, 2, 3]);
    assert_eq!(cluster.dump(3, 1), vec![(key, 7, value)]);
    assert_eq!(cluster.dump(3, 0).len(), 1);
    let voter = cluster.group(3, 1).unwrap();
    assert_eq!(voter.marked_accounts("", 10).unwrap(), vec!["AUTH_a".to_owned()]);
    assert!(cluster.group(3, 0).unwrap().marked_accounts("", 10).unwrap().is_empty());
}

#[test]
fn a_large_snapshot_arrives_under_loss_and_duplication() {
    let mut cluster = Cluster::new(10, 3);
    cluster.found(GROUP, 1);
    let value = "v".repeat(20_000);
    for n in 0..60 {
        assert_eq!(cluster.propose(GROUP, &rows(vec![put(n, n + 1, &value)])), Outcome::Applied);
    }
    let delay = (Duration::from_millis(1), Duration::from_millis(5));
    cluster.net.set_faults(SimFaults { delay, loss: 50, duplication: 200 });
    for n in [2, 3] {
        cluster.open(n, GROUP);
        let (_, leader) = cluster.leader(GROUP);
        cluster.run(leader.add_learner(node(n))).unwrap();
    }
    let (_, leader) = cluster.leader(GROUP);
    cluster.run(leader.change_voters(voters(1..=3))).unwrap();
    cluster.net.set_faults(SimFaults::NONE);
    cluster.settle(GROUP, &[1, 2, 3]);
    assert_eq!(cluster.dump(3, GROUP).len(), 60);
}

#[test]
fn the_object_layer_decides_at_the_leader_and_in_one_term() {
    let mut cluster = Cluster::new(11, 3);
    cluster.found(GROUP, 3);
    let (leader, group) = cluster.leader(GROUP);
    cluster.pass(Duration::from_secs(1));
    let follower = (1..=3).find(|n| *n != leader).unwrap();
    let clock = |at: u64| Arc::new(Clock::new(Box::new(move || at)));
    let behind = clock(100);
    let here = Voter::new(group, behind.clone());
    let there = Voter::new(cluster.group(follower, GROUP).unwrap(), clock(100));
    assert_eq!((here.leader(), there.leader()), (Leader::Own, Leader::Other(node(leader))));
    let value = AccountValue { created: 7, marked: false, headers: Default::default() }.encode();
    let row = |sequence| row_draft(account_key("AUTH_a"), Some(value.clone()), Timestamp(sequence));
    let permit = cluster.run(here.claim(Claim::Account("AUTH_a")));
    assert!(here.ceiling() < Timestamp(500));
    cluster.run(here.barrier().unwrap()).unwrap();
    cluster.run(here.raise(Timestamp(500))).unwrap();
    assert!(here.ceiling() >= Timestamp(500));
    cluster.run(here.barrier().unwrap()).unwrap();
    assert!(cluster.run(there.barrier().unwrap()).is_err());
    cluster.run(here.append(vec![row(501)], Class::Client, permit.term)).unwrap();
    assert_eq!(here.row(&account_key("AUTH_a")).unwrap().map(|row| row.sequence), Some(501));
    let late = cluster.run(here.append(vec![row(400)], Class::Client, permit.term));
    assert!(matches!(late, Err(Error::Unavailable { .. })), "{late:?}");
    let elsewhere = cluster.run(here.append(vec![row(600)], Class::Client, permit.term + 1));
    assert!(matches!(elsewhere, Err(Error::GrantLost { unused: true })), "{elsewhere:?}");
    let elsewhere = cluster.run(there.append(vec![row(600)], Class::Client, permit.term));
    assert!(matches!(elsewhere, Err(Error::GrantLost { unused: true })), "{elsewhere:?}");
    cluster.settle(GROUP, &[1, 2, 3]);
    // The next leader gives no time that this one may have given, although its clock is far behind.
    let reserved = here.ceiling();
    let next = cluster.group(follower, GROUP).unwrap();
    // The first is refused while the leader's lease lasts, and makes it step down.
    for _ in 0..10 {
        if there.leader() != Leader::Own {
            cluster.run(next.campaign()).unwrap();
            cluster.pass(Duration::from_millis(300));
        }
    }
    cluster.until("the follower leads", |_| there.leader() == Leader::Own);
    assert_eq!(there.ceiling(), Timestamp(0), "nothing is reserved in a new term");
    cluster.run(there.barrier().unwrap()).unwrap();
    assert!(there.shared_clock().tick() > reserved);
    assert!(behind.tick() < reserved, "a leader's clock does not follow its own reservations");
}

/// A DELETE needs a version time, and those are reserved by a row: where the leader's disk was nearly full, that row was refused, and nothing
/// could be deleted any more once those were used up that had been reserved before.
#[test]
fn where_the_leader_has_no_room_rows_go_and_version_times_are_reserved() {
    let mut cluster = Cluster::new(43, 1);
    cluster.found(GROUP, 1);
    assert_eq!(cluster.propose(GROUP, &rows(vec![put(1, 100, "v")])), Outcome::Applied);
    // Above all that is reserved.
    let grows = rows(vec![put(2, 9_000_000, "v")]);
    for takes_always in [false, true] {
        cluster.crash(1);
        cluster.fill_index(1);
        cluster.settings.takes_always = takes_always;
        cluster.start(1);
        let (_, group) = cluster.leader(GROUP);
        let done = cluster.run(group.propose(grows.clone()));
        if takes_always {
            assert_eq!(done.unwrap(), Outcome::Applied);
            return;
        }
        assert!(matches!(done, Err(GroupError::NoSpace)), "{done:?}");
        let voter = Voter::new(group, Arc::new(Clock::new(Box::new(|| 100))));
        cluster.run(voter.barrier().unwrap()).unwrap();
        let at = voter.shared_clock().tick();
        cluster.run(voter.raise(at)).unwrap();
        assert!(voter.ceiling() >= at);
        let gone = RowChange { key: b"k000001".to_vec(), sequence: 150, value: None };
        assert_eq!(cluster.propose(GROUP, &rows(vec![gone])), Outcome::Applied);
        let group = cluster.group(1, GROUP).unwrap();
        assert!(group.row(b"k000001").unwrap().is_none());
        // An account, or a container with children, is marked before it goes.
        let mark = rows(vec![put(3, 8_999_999, "goes")]);
        assert_eq!(cluster.run(group.propose_as(mark, Class::Delete)).unwrap(), Outcome::Applied);
    }
}

/// Has a voter lead.
fn lead(cluster: &mut Cluster, n: u8, voter: &Voter) {
    // The first elections are refused while the leader's lease lasts, and make it step down.
    for _ in 0..10 {
        if voter.leader() != Leader::Own {
            let group = cluster.group(n, GROUP).unwrap();
            cluster.run(group.campaign()).unwrap();
            cluster.pass(Duration::from_millis(300));
        }
    }
    cluster.until("it leads", |_| voter.leader() == Leader::Own);
    cluster.run(voter.barrier().unwrap()).unwrap();
}

/// A leader knows what it has granted since its term began, and nothing of what others have: a line that comes late to it may be one that
/// another leader, unknowing, has granted over.
#[test]
fn a_leader_knows_whether_another_may_have_granted_later_times() {
    let mut cluster = Cluster::new(12, 3);
    cluster.found(GROUP, 3);
    cluster.pass(Duration::from_secs(1));
    let voter = |cluster: &Cluster, n: u8| {
        Voter::new(cluster.group(n, GROUP).unwrap(), Arc::new(Clock::new(Box::new(|| 100))))
    };
    let voters: Vec<Voter> = (1..=3).map(|n| voter(&cluster, n)).collect();
    let [one, two, three] = [0, 1, 2].map(|n: usize| voters[n].clone());
    let grant = |cluster: &mut Cluster, voter: &Voter| {
        let at = voter.shared_clock().tick();
        if at > voter.ceiling() {
            cluster.run(voter.raise(at)).unwrap();
        }
        at
    };
    lead(&mut cluster, 1, &one);
    let first = grant(&mut cluster, &one);
    let _later = grant(&mut cluster, &one);
    assert!(!one.overtaken(first), "it knows of all that it has granted");
    lead(&mut cluster, 2, &two);
    // Later grants of the first waited for this one, or its line was made.
    assert!(!two.overtaken(first));
    let second = grant(&mut cluster, &two);
    lead(&mut cluster, 3, &three);
    assert!(three.overtaken(first), "the second may have granted its name without knowing of it");
    assert!(!three.overtaken(second));
    // It ran out: whoever came then did not wait for it.
    let third = grant(&mut cluster, &three);
    three.abandon(third);
    let fourth = grant(&mut cluster, &three);
    lead(&mut cluster, 1, &one);
    assert!(one.overtaken(third) && !one.overtaken(fourth));
}
