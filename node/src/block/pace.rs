//! Requests of clients at the rates that their volume has.
//!
//! All connections of a volume, and of its snapshots, take from the same buckets (`quarry_volume::pace`). Of each connection one read and one
//! write at a time wait for their turn, so that a client with many requests gets no more of the rate than one with few.
//!
//! Invariant: where nothing is limited a request waits for nothing and takes no lock.
//! Invariant: new limits are good for requests that wait already.
//! Invariant: a node that stops lets all begin: what was begun is carried out, and the node does not wait for a rate.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quarry_volume::nbd::Command;
use quarry_volume::pace::{Buckets, Kind, Limits, RATES, Rate};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use super::listener::told;

/// A day: a rate of one byte a second is meant to be none.
const LONGEST: Duration = Duration::from_secs(86_400);

/// The names of limits, as QoS specs of the volume API have them; with `_max` behind: what may come at once.
const NAMES: [&str; RATES] = [
    "total_iops_sec",
    "read_iops_sec",
    "write_iops_sec",
    "total_bytes_sec",
    "read_bytes_sec",
    "write_bytes_sec",
];
/// Of a second's worth, what may come at once where nothing is said.
const BURST: u64 = 10;

/// Limits by the names of specs. Others are none of ours, and what is no number limits nothing.
pub(crate) fn limits_of(said: impl Fn(&str) -> Option<u64>) -> Limits {
    Limits(NAMES.map(|name| match said(name) {
        Some(per_second) if per_second > 0 => {
            let burst = said(&format!("{name}_max")).unwrap_or(per_second / BURST);
            Rate { per_second, burst }
        }
        _ => Rate::default(),
    }))
}

/// Limits as operators write them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, u64>", into = "BTreeMap<String, u64>")]
pub(crate) struct Said(pub(crate) Limits);

impl TryFrom<BTreeMap<String, u64>> for Said {
    type Error = String;

    fn try_from(said: BTreeMap<String, u64>) -> Result<Self, String> {
        let known = |name: &String| NAMES.contains(&name.strip_suffix("_max").unwrap_or(name));
        match said.keys().find(|name| !known(name)) {
            Some(name) => Err(format!("`{name}` is no limit")),
            None => Ok(Self(limits_of(|name| said.get(name).copied()))),
        }
    }
}

impl From<Said> for BTreeMap<String, u64> {
    fn from(said: Said) -> Self {
        let limited = NAMES.into_iter().zip(said.0.0).filter(|(_, rate)| rate.per_second > 0);
        limited
            .flat_map(|(name, rate)| {
                [(name.to_owned(), rate.per_second), (format!("{name}_max"), rate.burst)]
            })
            .collect()
    }
}

/// The pace of a volume.
#[derive(Debug)]
pub(crate) struct Pacer {
    limited: AtomicBool,
    buckets: Mutex<(Limits, Buckets)>,
    changes: watch::Sender<()>,
    began: Instant,
}

impl Pacer {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limited: AtomicBool::new(!limits.is_free()),
            buckets: Mutex::new((limits, Buckets::new(limits))),
            changes: watch::Sender::new(()),
            began: Instant::now(),
        }
    }

    /// From now on these are its limits. If they were already, what was taken stays taken.
    pub(super) fn set(&self, limits: Limits) {
        {
            let mut held = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
            if held.0 == limits {
                return;
            }
            *held = (limits, Buckets::new(limits));
        }
        self.limited.store(!limits.is_free(), Ordering::Release);
        self.changes.send_replace(());
    }

    /// When a request may begin.
    fn ask(&self, kind: Kind, bytes: u64) -> Instant {
        let now = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let begins = self.buckets.lock().unwrap_or_else(PoisonError::into_inner).1.ask(now, kind, bytes);
        // Nobody waits longer than that without another look.
        Instant::now() + Duration::from_nanos(begins.saturating_sub(now)).min(LONGEST)
    }
}

/// A connection's place among those of its volume.
#[derive(Debug)]
pub(super) struct Turn {
    pacer: Arc<Pacer>,
    /// Of reads, and of writes: neither waits for the other's rate.
    lines: [tokio::sync::Mutex<()>; 2],
    stopped: watch::Receiver<bool>,
}

/// What a command takes.
fn cost(command: &Command) -> Option<(Kind, u64)> {
    match command {
        Command::Read { length, .. } => Some((Kind::Read, (*length).into())),
        Command::Write { data, .. } => Some((Kind::Write, data.len() as u64)),
        Command::Trim { .. } => Some((Kind::Write, 0)),
        Command::WriteZeroes { length, allocate, .. } => {
            Some((Kind::Write, if *allocate { *length } else { 0 }))
        }
        Command::Flush | Command::Cache { .. } | Command::BlockStatus { .. } => None,
    }
}

impl Turn {
    pub(super) fn new(pacer: Arc<Pacer>, stopped: watch::Receiver<bool>) -> Self {
        Self { pacer, lines: <[tokio::sync::Mutex<()>; 2]>::default(), stopped }
    }

    /// Waits until a command may begin.
    pub(super) async fn admit(&self, command: &Command) {
        if !self.pacer.limited.load(Ordering::Acquire) {
            return;
        }
        let Some((kind, bytes)) = cost(command) else { return };
        let [reads, writes] = &self.lines;
        let line = if kind == Kind::Read { reads } else { writes };
        let _turn = line.lock().await;
        let (mut changed, mut stopped) = (self.pacer.changes.subscribe(), self.stopped.clone());
        loop {
            changed.mark_unchanged();
            let begins = self.pacer.ask(kind, bytes);
            if begins <= Instant::now() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(begins) => return,
                () = told(&mut stopped) => return,
                // What was taken, was taken from buckets that are gone.
                Ok(()) = changed.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn limits(said: &[(&str, u64)]) -> Limits {
        limits_of(|name| said.iter().find(|(known, _)| *known == name).map(|(_, number)| *number))
    }

    #[test]
    fn limits_are_written_by_the_names_of_specs() {
        let text =
            r#"{"read_bytes_sec":5,"read_bytes_sec_max":7,"total_iops_sec":100,"total_iops_sec_max":10}"#;
        let said: Said = serde_json::from_str(text).unwrap();
        assert_eq!(
            said.0,
            limits(&[("total_iops_sec", 100), ("read_bytes_sec", 5), ("read_bytes_sec_max", 7)])
        );
        assert_eq!(serde_json::to_string(&said).unwrap(), text);
        assert!(serde_json::from_str::<Said>(r#"{"total_iops":1}"#).is_err());
        assert!(serde_json::from_str::<Said>("{}").unwrap().0.is_free());
    }

    fn turn(pacer: &Arc<Pacer>, stopped: &watch::Sender<bool>) -> Arc<Turn> {
        Arc::new(Turn::new(Arc::clone(pacer), stopped.subscribe()))
    }

    fn read() -> Command {
        Command::Read { offset: 0, length: 4096 }
    }

    #[tokio::test]
    async fn a_client_with_many_requests_gets_no_more_than_one_with_few() {
        let pacer = Arc::new(Pacer::new(limits(&[("total_iops_sec", 200), ("total_iops_sec_max", 0)])));
        let stop = watch::Sender::new(false);
        let (many, few) = (turn(&pacer, &stop), turn(&pacer, &stop));
        let begun = Arc::new(AtomicUsize::new(0));
        for _ in 0..500 {
            let (many, begun) = (Arc::clone(&many), Arc::clone(&begun));
            tokio::spawn(async move {
                many.admit(&read()).await;
                begun.fetch_add(1, Ordering::Relaxed);
            });
        }
        let began = Instant::now();
        for _ in 0..20 {
            few.admit(&read()).await;
        }
        let others = begun.load(Ordering::Relaxed);
        assert!(others <= 60, "{others} of the other's began before 20 of this one's");
        let most = began.elapsed().as_millis() * 200 / 1000 + 2;
        assert!(u128::try_from(others + 20).unwrap() <= most, "{others} and 20 began, at most {most} may");
    }

    /// Reads stood in one line with the writes of their connection: behind a few hundred slow ones they took half a minute.
    #[tokio::test]
    async fn reads_do_not_wait_behind_slow_writes() {
        let pacer = Arc::new(Pacer::new(limits(&[("write_iops_sec", 1), ("write_iops_sec_max", 0)])));
        let stop = watch::Sender::new(false);
        let client = turn(&pacer, &stop);
        for _ in 0..100 {
            let client = Arc::clone(&client);
            tokio::spawn(async move {
                client.admit(&Command::Trim { offset: 0, length: 4096, durable: false }).await;
            });
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        tokio::time::timeout(Duration::from_secs(5), client.admit(&read())).await.unwrap();
        stop.send_replace(true);
    }

    #[tokio::test]
    async fn new_limits_are_good_for_what_waits_and_a_node_that_stops_waits_for_none() {
        let slow = limits(&[("total_iops_sec", 1), ("total_iops_sec_max", 0)]);
        let stop = watch::Sender::new(false);
        // A thousand requests, which would take a quarter of an hour.
        let begin = |pacer: &Arc<Pacer>| {
            let client = turn(pacer, &stop);
            tokio::spawn(async move {
                for _ in 0..1000 {
                    client.admit(&read()).await;
                }
            })
        };
        let pacer = Arc::new(Pacer::new(slow));
        let waiting = begin(&pacer);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished());
        pacer.set(Limits::default());
        tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap().unwrap();
        pacer.set(slow);
        let waiting = begin(&pacer);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished());
        stop.send_replace(true);
        tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap().unwrap();
    }
}
