//! Crashes at bad moments, cleaned logs, and the proof that histories can fail.

use std::time::Duration;

use super::history::history;
use super::rig::{Cluster, node, put, rows};
use crate::consensus::Outcome;
use crate::consensus::store::Store;
use crate::consensus::store::plant::{Bug, with};

const GROUP: u32 = 5;

/// A voter that lags so far that it gets a snapshot, which takes many rows away and brings many.
fn lagging(seed: u64) -> (Cluster, u8) {
    let mut cluster = Cluster::new(seed, 3);
    cluster.found(GROUP, 3);
    let value = "v".repeat(3_000);
    for n in 0..40 {
        assert_eq!(cluster.propose(GROUP, &rows(vec![put(n, n + 1, &value)])), Outcome::Applied);
    }
    cluster.settle(GROUP, &[1, 2, 3]);
    let (leader, _) = cluster.leader(GROUP);
    let lags = (1..=3).find(|n| *n != leader).unwrap();
    cluster.crash(lags);
    for n in 0..200 {
        let mut change = put(n, 1000 + n, &value);
        if n < 20 {
            change.value = None;
        }
        assert_eq!(cluster.propose(GROUP, &rows(vec![change])), Outcome::Applied);
    }
    cluster.start(lags);
    (cluster, lags)
}

fn installs(cluster: &Cluster, n: u8) -> bool {
    cluster.group(n, GROUP).is_some_and(|voter| voter.row(b"k").is_err())
}

#[test]
fn an_installation_that_a_crash_interrupts_is_ended_and_never_believed_before() {
    let mut interrupted = 0;
    for turns in [0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30] {
        let (mut cluster, lags) = lagging(50 + turns);
        cluster.until("a snapshot", |cluster| installs(cluster, lags));
        (0..turns).for_each(|_| cluster.turn());
        interrupted += u32::from(installs(&cluster, lags));
        cluster.crash(lags);
        // Whoever sent the snapshot is gone as well: it is here already.
        let (leader, _) = cluster.leader(GROUP);
        cluster.crash(leader);
        cluster.start(lags);
        cluster.settle(GROUP, &(1..=3).filter(|n| *n != leader).collect::<Vec<_>>());
        assert_eq!(cluster.dump(lags, GROUP).len(), 180, "{turns}");
    }
    assert!(interrupted > 3, "{interrupted} crashes came in the middle");
}

#[test]
fn a_transfer_that_a_crash_interrupts_begins_anew() {
    for turns in [1, 3, 5, 8, 12, 16, 20, 30, 40] {
        let (mut cluster, lags) = lagging(80 + turns);
        cluster.until("the group", |cluster| cluster.group(lags, GROUP).is_some());
        (0..turns).for_each(|_| cluster.turn());
        cluster.crash(lags);
        cluster.start(lags);
        cluster.settle(GROUP, &[1, 2, 3]);
    }
}

/// openraft purges what a snapshot covers while the snapshot is still on its way into the state: a crash between left a voter that
/// said to have the log up to there, and had neither the entries nor their rows.
#[test]
fn no_entry_is_purged_before_its_rows_are_here() {
    let mut cluster = Cluster::new(70, 1);
    cluster.found(GROUP, 1);
    for n in 0..5 {
        assert_eq!(cluster.propose(GROUP, &rows(vec![put(n, n + 1, "v")])), Outcome::Applied);
    }
    let rows_before = cluster.dump(1, GROUP);
    let store = cluster.group(1, GROUP).unwrap().store();
    let (purged, last) = store.ends();
    let mut ahead = last.unwrap();
    ahead.index += 100;
    cluster.run(store.purge(ahead)).unwrap();
    assert_eq!(store.ends(), (purged, last));
    drop(store);
    cluster.crash(1);
    cluster.start(1);
    assert_eq!(cluster.propose(GROUP, &rows(vec![put(9, 1000, "v")])), Outcome::Applied);
    assert_eq!(cluster.dump(1, GROUP)[..5], rows_before);
    let store = cluster.group(1, GROUP).unwrap().store();
    assert!(store.ends().1.is_some_and(|last| last.index < ahead.index));
}

/// The record that ends an installation says where the log begins.
#[test]
fn an_installation_ends_with_the_log_behind_the_snapshot() {
    let (mut cluster, lags) = lagging(71);
    cluster.settle(GROUP, &[1, 2, 3]);
    let installed = cluster.group(lags, GROUP).unwrap().store();
    let disk = cluster.disk(lags);
    let facts = cluster.run(Store::facts(GROUP, &disk)).unwrap().unwrap();
    assert!(facts.purged.is_some_and(|purged| purged.index > 100), "{:?}", facts.purged);
    assert!(facts.purged <= installed.progress().applied && facts.staged.is_none());
    let (purged, entries) = (facts.purged.unwrap().index, cluster.run(installed.read(0, u64::MAX)).unwrap());
    assert!(entries.iter().all(|entry| entry.log_id.index > purged));
}

#[test]
fn the_cleaner_moves_log_and_state_and_a_rebuild_finds_them() {
    let mut cluster = Cluster::new(90, 1);
    cluster.settings.snapshot_every = 1_000_000;
    cluster.crash(1);
    cluster.start(1);
    cluster.found(GROUP, 1);
    let value = "v".repeat(60_000);
    let mut sequence = 0;
    let mut write = |cluster: &mut Cluster, count: u64| {
        for _ in 0..count {
            sequence += 1;
            let entry = rows((0..7).map(|key| put(key, sequence, &value)).collect());
            assert_eq!(cluster.propose(GROUP, &entry), Outcome::Applied);
        }
    };
    // Half of what is written is dead rows; the log entries beside them are needed.
    write(&mut cluster, 90);
    let disk = cluster.disk(1);
    let mut cleaned = 0;
    while let Some(segment) = disk.victim(&[]) {
        let before = cluster.run(disk.clean(segment)).unwrap().unwrap();
        cleaned += u32::from(before.retired && before.moved > 0);
        if cleaned == 3 {
            break;
        }
    }
    assert!(cleaned > 0, "needed records were moved");
    write(&mut cluster, 3);
    let rows = cluster.dump(1, GROUP);
    let status = cluster.group(1, GROUP).unwrap().status();
    cluster.crash_without_index(1);
    cluster.start(1);
    cluster.leader(GROUP);
    assert_eq!(cluster.dump(1, GROUP), rows);
    let after = cluster.group(1, GROUP).unwrap().status();
    assert!(after.last > status.last, "{status:?} {after:?}");
    // The whole log is there: a new member can be fed from it.
    let store = cluster.group(1, GROUP).unwrap().store();
    let entries = cluster.run(store.read(1, u64::MAX)).unwrap();
    assert_eq!(entries.first().unwrap().log_id.index, 1);
    assert!(entries.windows(2).all(|pair| pair[1].log_id.index == pair[0].log_id.index + 1));
    assert!(entries.len() > 90);
}

/// Whether histories fail, and say one of these.
fn finds(bug: Bug, says: &[&str]) -> bool {
    (0..60).any(|seed| {
        let run = std::panic::AssertUnwindSafe(|| with(bug, || history(seed, 3, 300)));
        let Err(panic) = std::panic::catch_unwind(run) else { return false };
        let said = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = said.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        assert!(says.iter().any(|says| text.contains(says)), "{text}");
        true
    })
}

#[test]
fn histories_find_a_voter_that_answers_before_its_vote_is_on_disk() {
    // Or a voter that voted twice in a term, and knows of its second vote alone, follows the term's leader never.
    assert!(finds(Bug::VoteNotWritten, &["two leaders in term", "agreement does not come"]));
}

#[test]
fn histories_find_a_voter_that_counts_entries_that_are_not_on_disk() {
    // An acknowledged key is gone, voters go apart, or openraft itself computes with a voter whose log is shorter than it said.
    let says = ["key", "rows of node", "matching_next <= end", "subtract with overflow"];
    assert!(finds(Bug::EntriesOneBehind, &says));
}

#[test]
fn a_group_on_a_disk_that_lost_its_state_is_not_opened() {
    let mut cluster = Cluster::new(95, 1);
    cluster.found(GROUP, 1);
    cluster.propose(GROUP, &rows(vec![put(1, 1, "x")]));
    cluster.pass(Duration::from_secs(1));
    let group = cluster.group(1, GROUP).unwrap();
    cluster.run(group.close()).unwrap();
    let disk = cluster.disk(1);
    let key = crate::catalog::GroupKey { group: GROUP, tag: crate::catalog::GroupTag::State, number: 0 };
    let stored = [&[1, b'g'][..], &key.encode()].concat();
    let lose = Box::new(move |tx: &mut crate::disk::catalog::Tx<'_>| {
        tx.delete(crate::index::Table::System, stored);
        Ok(())
    });
    cluster.run(disk.submit_prune(lose)).unwrap();
    let options = cluster.options(1);
    let opened = cluster.run(crate::consensus::Group::open(GROUP, options));
    assert!(matches!(opened, Err(crate::consensus::GroupError::Damaged { group: GROUP, .. })), "{opened:?}");
    let _ = node(1);
}
