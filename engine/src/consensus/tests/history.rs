//! Histories by seed: proposals under loss, duplication, cuts and crashes; then all heals, and everything acknowledged is there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::rig::{Cluster, node, within};
use crate::consensus::{Entry, Outcome, RowChange};
use crate::net::SimFaults;

const GROUP: u32 = 3;
const KEYS: u64 = 80;

/// What a key may hold: sequence and value.
type Held = Option<(u64, Vec<u8>)>;

/// What clients were told of each key; more than one possibility where they were told nothing.
#[derive(Default)]
struct Truth {
    may: BTreeMap<u64, Vec<Held>>,
    busy: BTreeSet<u64>,
    applied: u64,
}

fn key(n: u64) -> Vec<u8> {
    format!("k{n:04}").into_bytes()
}

/// Starts a proposal at a node, whoever it is; what it is told goes into the truth.
fn propose(cluster: &mut Cluster, truth: &Arc<Mutex<Truth>>, at: u8, sequence: u64) {
    let n = cluster.rng.below(KEYS);
    if !truth.lock().unwrap().busy.insert(n) {
        return;
    }
    let value = (!cluster.rng.chance(200)).then(|| {
        let len = if cluster.rng.chance(50) { 30_000 } else { 50 };
        sequence.to_be_bytes().repeat(len / 8)
    });
    let change = RowChange { key: key(n), sequence, value: value.clone() };
    let entry = Entry { term: None, guards: Vec::new(), rows: vec![change] };
    let voter = cluster.group(at, GROUP);
    let (truth, runtime) = (Arc::clone(truth), cluster.runtime.node(node(200)));
    cluster.runtime.spawn(
        node(200),
        Box::pin(async move {
            let told = match voter {
                Some(voter) => within(&*runtime, voter.propose(entry)).await,
                None => Some(Err(crate::consensus::GroupError::NotLeader(None))),
            };
            let mut truth = truth.lock().unwrap();
            truth.busy.remove(&n);
            let new = value.map(|value| (sequence, value));
            let may = truth.may.entry(n).or_insert_with(|| vec![None]);
            match told {
                Some(Ok(Outcome::Applied)) => {
                    *may = vec![new];
                    truth.applied += 1;
                }
                Some(Ok(Outcome::Stale { .. } | Outcome::Refused(_) | Outcome::Fenced { .. })) => {}
                Some(Ok(Outcome::Repeated | Outcome::Moved(_))) => panic!("nobody is told this"),
                // It was or will be applied, or never.
                Some(Err(_)) | None => may.push(new),
            }
        }),
    );
}

fn disturb(cluster: &mut Cluster, of: u8) {
    let n = 1 + u8::try_from(cluster.rng.below(u64::from(of))).unwrap();
    match cluster.rng.below(12) {
        // The power fails everywhere, and one machine does not come back for now.
        10 | 11 => {
            let up: Vec<u8> = (1..=of).filter(|m| cluster.is_up(*m)).collect();
            up.into_iter().for_each(|m| cluster.crash(m));
            (1..=of).filter(|m| *m != n).for_each(|m| cluster.start(m));
        }
        0..=2 if cluster.is_up(n) => cluster.crash(n),
        3 => {
            let leads = |m: &u8| cluster.group(*m, GROUP).is_some_and(|g| g.status().leads);
            if let Some(leader) = (1..=of).find(leads) {
                cluster.crash(leader);
            }
        }
        4 | 5 => {
            let other = 1 + u8::try_from(cluster.rng.below(u64::from(of))).unwrap();
            cluster.net.cut(node(n), node(other));
            if cluster.rng.chance(500) {
                cluster.net.cut(node(other), node(n));
            }
        }
        6 => cluster.net.heal(),
        _ => {
            let down: Vec<u8> = (1..=of).filter(|m| !cluster.is_up(*m)).collect();
            down.into_iter().for_each(|m| cluster.start(m));
        }
    }
}

/// Asks a leader that a majority confirms, if there is one now.
fn verify(cluster: &mut Cluster, truth: &Arc<Mutex<Truth>>, of: u8) {
    let voters: Vec<_> = (1..=of).filter_map(|n| cluster.group(n, GROUP)).collect();
    let Some(leader) = voters.into_iter().find(|voter| voter.status().leads) else { return };
    let (asked, runtime) = (leader.clone(), cluster.runtime.node(node(200)));
    let asker = 1 + u8::try_from(cluster.rng.below(u64::from(of))).unwrap();
    let follows = cluster.group(asker, GROUP).and_then(|voter| voter.follows(leader.node()));
    let told = follows.and_then(|term| leader.confirmed_by(node(asker), term));
    if told.is_none() {
        let confirmed = cluster.run(async move { within(&*runtime, asked.barrier()).await });
        let Some(Ok(_)) = confirmed else { return };
    }
    let truth = truth.lock().unwrap();
    for (n, may) in truth.may.iter().filter(|(n, _)| !truth.busy.contains(n)) {
        let Ok(row) = leader.row(&key(*n)) else { return };
        let held = row.map(|row| (row.sequence, row.value));
        assert!(may.contains(&held), "seed {}: key {n}", cluster.seed);
    }
}

/// Says how to repeat a history that failed.
struct Reproduce(u64);

impl Drop for Reproduce {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let test = "cargo test --release -p quarry-engine --lib consensus::tests::history";
            eprintln!("reproduce: QUARRY_SEED={} {test}", self.0);
        }
    }
}

/// One history; how many proposals were applied in it.
pub(super) fn history(seed: u64, of: u8, rounds: u64) -> u64 {
    let _reproduce = Reproduce(seed);
    let mut cluster = Cluster::new(seed, of);
    cluster.found(GROUP, of);
    let truth = Arc::new(Mutex::new(Truth::default()));
    let mut sequence = 0;
    let delay = (Duration::from_micros(100), Duration::from_millis(20));
    cluster.net.set_faults(SimFaults { delay, loss: 30, duplication: 30 });
    for _ in 0..rounds {
        for _ in 0..cluster.rng.below(6) {
            sequence += 1;
            let leads = |n: &u8| cluster.group(*n, GROUP).is_some_and(|g| g.status().leads);
            let at = (1..=of).find(leads).unwrap_or(1);
            propose(&mut cluster, &truth, at, sequence);
        }
        if cluster.rng.chance(60) {
            disturb(&mut cluster, of);
        }
        let time = Duration::from_millis(cluster.rng.below(60));
        cluster.pass(time);
        if cluster.rng.chance(30) {
            verify(&mut cluster, &truth, of);
        }
    }
    cluster.net.heal();
    cluster.net.set_faults(SimFaults::NONE);
    for n in 1..=of {
        if !cluster.is_up(n) {
            cluster.start(n);
        }
    }
    cluster.pass(Duration::from_secs(6));
    cluster.settle(GROUP, &(1..=of).collect::<Vec<_>>());
    let truth = truth.lock().unwrap();
    assert!(truth.busy.is_empty(), "seed {seed}: a proposal never ended");
    let rows: BTreeMap<Vec<u8>, (u64, Vec<u8>)> =
        cluster.dump(1, GROUP).into_iter().map(|(key, sequence, value)| (key, (sequence, value))).collect();
    for (n, may) in &truth.may {
        let held = rows.get(&key(*n)).cloned();
        assert!(may.contains(&held), "seed {seed}: key {n} holds {:?}", held.map(|(sequence, _)| sequence));
    }
    truth.applied
}

/// The usual seeds, or the one in `QUARRY_SEED`.
fn seeds(usual: std::ops::Range<u64>) -> std::ops::Range<u64> {
    match std::env::var("QUARRY_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => usual,
    }
}

#[test]
fn nothing_acknowledged_is_lost_by_three_voters() {
    let (all, mut applied) = (seeds(0..12), 0);
    let alone = all.end - all.start == 1;
    for seed in all {
        applied += history(seed, 3, 250);
    }
    assert!(alone || applied > 100, "{applied}");
}

#[test]
fn nothing_acknowledged_is_lost_by_five_voters() {
    for seed in seeds(100..103) {
        history(seed, 5, 250);
    }
}
