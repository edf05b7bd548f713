//! Workers over a simulated store.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::*;
use crate::catalog::{ListedEtag, ListingValue};
use crate::disk::Class;
use crate::index::Table;
use crate::object::names::NewLine;
use crate::object::tests::rig::{DISK, Rig, START, bytes, path};
use crate::object::{Deleted, Error, ObjectPath, PutSpec};

fn alone(rig: &Rig) -> Arc<Synced> {
    Arc::new(Synced::alone(rig.handle(0).device()))
}

/// Steps until the worker is idle, twice: the second time it has nothing to do at all.
fn run(rig: &mut Rig, worker: &mut dyn Worker) -> u32 {
    let mut did = 0;
    for _ in 0..10_000 {
        match rig.run(worker.step(10)) {
            Outcome::Did(units) => did += units,
            Outcome::Idle => return did,
            Outcome::Waits(why) | Outcome::Failed(why) => panic!("{why}"),
        }
    }
    panic!("never idle");
}

#[test]
fn expired_objects_go_and_those_given_more_time_stay() {
    let mut rig = Rig::new(2, 41);
    for n in 0..20 {
        let spec = PutSpec { delete_at: Some(START + 100 + n), ..PutSpec::default() };
        rig.try_put(&path(&format!("o{n:02}")), &bytes(n, 100), spec).unwrap();
    }
    let spec = PutSpec { delete_at: Some(START + 10_000), ..PutSpec::default() };
    rig.try_put(&path("o03"), &bytes(3, 100), spec).unwrap();
    let mut expirer = Expirer::new(rig.store(), 0);
    assert_eq!(run(&mut rig, &mut expirer), 0);
    rig.advance(105);
    assert_eq!(run(&mut rig, &mut expirer), 5);
    assert!(rig.names().contains(&"o03".to_owned()));
    rig.advance(1000);
    run(&mut rig, &mut expirer);
    assert_eq!(rig.names(), ["o03"]);
    assert_eq!(rig.totals(), [1, 100, 1, 100]);
}

/// Parts of an SLO expire with its manifest. Swift's functional tests read both with `X-Open-Expired` a moment later; parts that were
/// removed in the seconds between were a race that they lost under load.
#[test]
fn an_object_that_expired_is_kept_for_a_while() {
    let mut rig = Rig::new(2, 44);
    for n in 0..5 {
        let spec = PutSpec { delete_at: Some(START + 100 + n), ..PutSpec::default() };
        rig.try_put(&path(&format!("o{n}")), &bytes(n, 100), spec).unwrap();
    }
    let mut expirer = Expirer::new(rig.store(), 60);
    rig.advance(159);
    assert_eq!(run(&mut rig, &mut expirer), 0);
    rig.advance(3);
    assert_eq!(run(&mut rig, &mut expirer), 3);
    assert_eq!(rig.names(), ["o3", "o4"]);
    let spec = PutSpec { delete_at: Some(START + 500), ..PutSpec::default() };
    rig.try_put(&path("o3"), &bytes(3, 100), spec).unwrap();
    rig.advance(60);
    assert_eq!(run(&mut rig, &mut expirer), 1);
    assert_eq!(rig.names(), ["o3"]);
}

#[test]
fn a_deleted_account_is_reaped_whole_and_can_be_made_anew() {
    let mut rig = Rig::new(2, 42);
    let store = rig.store();
    rig.run(store.put_container("AUTH_b", "keep", 0, |_| Ok(Default::default()))).unwrap();
    rig.run(store.put_container("AUTH_a", "d", 0, |_| Ok(Default::default()))).unwrap();
    for n in 0..25 {
        rig.put(&format!("o{n}"), &bytes(n, 100));
    }
    rig.put("large", &bytes(1, 3 << 20));
    assert_eq!(rig.run(store.delete_account("AUTH_a")).unwrap(), Deleted::Gone);
    assert_eq!(rig.run(store.delete_account("AUTH_a")).unwrap(), Deleted::Absent);
    let refused = rig.run(store.put_container("AUTH_a", "e", 0, |_| Ok(Default::default())));
    assert!(matches!(refused, Err(Error::NoAccount)));
    assert!(rig.run(store.account("AUTH_a")).unwrap().unwrap().deleted);
    let mut reaper = Reaper::new(store.clone());
    assert_eq!(run(&mut rig, &mut reaper), 26 + 2 + 1);
    assert!(rig.run(store.account("AUTH_a")).unwrap().is_none());
    assert!(rig.run(store.account("AUTH_b")).unwrap().is_some());
    for disk in 0..2 {
        assert_eq!(rig.count(disk, Table::Objects) + rig.count(disk, Table::Chunks), 0);
    }
    rig.run(store.put_container("AUTH_a", "c", 0, |_| Ok(Default::default()))).unwrap();
    assert_eq!(rig.totals(), [0; 4]);
}

/// The devices of many accounts' policy are away, more than are looked at in one step: the reaper tried the first of them, and never
/// came to one that is behind them.
#[test]
fn accounts_that_cannot_be_reaped_keep_no_other() {
    let mut rig = Rig::new(2, 48);
    let store = rig.store();
    let lost: Vec<String> = (0..130).map(|n| format!("AUTH_a{n:03}")).collect();
    for account in &lost {
        rig.run(store.put_container(account, "lost", 5, |_| Ok(Default::default()))).unwrap();
        let account = account.as_str().into();
        put_unremovable(&mut rig, ObjectPath { account, container: "lost".into(), ..path("o") });
    }
    rig.run(store.put_container("AUTH_b", "c", 0, |_| Ok(Default::default()))).unwrap();
    for account in lost.iter().map(String::as_str).chain(["AUTH_b"]) {
        assert_eq!(rig.run(store.delete_account(account)).unwrap(), Deleted::Gone);
    }
    let mut reaper = Reaper::new(store.clone());
    let last = (0..10).map(|_| rig.run(reaper.step(10))).last();
    assert!(matches!(last, Some(Outcome::Failed(_))), "{last:?}");
    assert!(rig.run(store.account(&lost[0])).unwrap().unwrap().deleted);
    assert!(rig.run(store.account("AUTH_b")).unwrap().is_none());
}

/// A line of an object whose devices are not known: nobody can remove it.
fn put_unremovable(rig: &mut Rig, path: ObjectPath) {
    let names = rig.store().inner.names.clone();
    let grant = rig.run(names.begin(path, None)).unwrap();
    let value = ListingValue {
        size: 1,
        etag: ListedEtag::Md5([0; 16]),
        content_type: String::new(),
        version: None,
        key: None,
        shown: None,
    };
    let (container, at) = (grant.line.container.unwrap().id, grant.at);
    let line = NewLine { container, at, value: Some(value.encode()), conditional: false };
    rig.run(names.settle(grant, line, Class::Client)).unwrap();
}

/// One object that could not be removed, the first of its account, and nothing behind it was ever freed.
#[test]
fn objects_that_cannot_be_removed_keep_no_other_of_their_account() {
    let mut rig = Rig::new(2, 49);
    let store = rig.store();
    rig.run(store.put_container("AUTH_a", "b", 5, |_| Ok(Default::default()))).unwrap();
    rig.run(store.put_container("AUTH_b", "c", 0, |_| Ok(Default::default()))).unwrap();
    for n in 0..130 {
        let container = "b".into();
        put_unremovable(&mut rig, ObjectPath { container, ..path(&format!("o{n:03}")) });
    }
    for n in 0..30 {
        rig.put(&format!("o{n}"), &bytes(n, 100));
    }
    for account in ["AUTH_a", "AUTH_b"] {
        assert_eq!(rig.run(store.delete_account(account)).unwrap(), Deleted::Gone);
    }
    let mut reaper = Reaper::new(store.clone());
    for _ in 0..40 {
        let outcome = rig.run(reaper.step(10));
        assert!(!matches!(outcome, Outcome::Waits(_)), "{outcome:?}");
    }
    assert_eq!(rig.count(0, Table::Objects) + rig.count(1, Table::Objects), 0);
    assert!(rig.run(store.account("AUTH_b")).unwrap().is_none(), "others are reaped meanwhile");
    let account = rig.run(store.account("AUTH_a")).unwrap().unwrap();
    assert_eq!((account.deleted, account.containers, account.objects), (true, 1, 130));
}

#[test]
fn tombstones_go_when_cleaning_has_taken_what_they_hide() {
    let mut rig = Rig::new(1, 43);
    for n in 0..60 {
        let name = format!("o{n}");
        rig.put(&name, &bytes(n, 500_000));
        rig.delete(&name);
    }
    let mut pruner = Pruner::new(rig.handle(0), wall_of(&rig.store()), 100, alone(&rig));
    run(&mut rig, &mut pruner);
    assert_eq!(rig.count(0, Table::Graves), 120, "what they hide is still in the log");
    rig.advance(1000);
    // The open segment is never cleaned: what it holds stays hidden.
    for _ in 0..10 {
        let handle = rig.handle(0);
        let Some(victim) = handle.victim(&[]) else { break };
        rig.run(handle.clean(victim)).unwrap();
        rig.run(handle.checkpoint()).unwrap();
    }
    run(&mut rig, &mut pruner);
    let left = rig.count(0, Table::Graves);
    assert!((1..80).contains(&left), "{left} tombstones are left");
    rig.crash(false);
    assert!(rig.names().is_empty(), "a rebuild brings nothing back");
    assert_eq!(rig.totals(), [0; 4]);
}

#[test]
fn the_cleaner_keeps_a_store_going_that_is_written_many_times_over() {
    let mut rig = Rig::new(1, 44);
    let mut cleaner = Cleaner::new(rig.handle(0));
    let rounds = 3 * DISK / (2 << 20);
    for n in 0..rounds {
        rig.put(&format!("o{}", n % 10), &bytes(n, 2 << 20));
        run(&mut rig, &mut cleaner);
        if n % 16 == 0 {
            let handle = rig.handle(0);
            rig.run(handle.checkpoint()).unwrap();
        }
    }
    for n in rounds - 10..rounds {
        assert_eq!(rig.get(&format!("o{}", n % 10)), Some(bytes(n, 2 << 20)));
    }
    assert!(cleaner.progress().passes > 0 && cleaner.progress().findings == 0);
}

/// What it moves at leisure, clients come first; when they would soon wait for it, it comes first.
#[test]
fn the_cleaner_is_in_a_hurry_while_space_is_short() {
    let mut rig = Rig::new(1, 46);
    let cleaner = Cleaner::new(rig.handle(0));
    assert!(!cleaner.is_urgent());
    let mut n = 0;
    while !cleaner.is_urgent() {
        rig.put(&format!("o{}", n % 10), &bytes(n, 1 << 20));
        n += 1;
        assert!(n < DISK >> 20, "the disk is full by now");
    }
}

#[test]
fn an_audit_of_sound_disks_finds_nothing_and_reads_everything() {
    let mut rig = Rig::new(2, 45);
    for n in 0..70 {
        rig.put(&format!("o{n}"), &bytes(n, 3000));
    }
    rig.put("large", &bytes(1, (5 << 20) + 1));
    for disk in 0..2 {
        let mut auditor = Auditor::new(rig.handle(disk), rig.store());
        let did = run(&mut rig, &mut auditor);
        let progress = auditor.progress();
        assert_eq!((progress.passes, progress.findings), (1, 0), "{progress:?}");
        // Sixteen small items are a unit.
        let items = rig.count(disk, Table::Objects) + rig.count(disk, Table::Rows);
        assert!(did as usize * 16 >= items);
        let bytes = 3000 * (rig.count(disk, Table::Objects) as u64 - 1);
        assert!(progress.bytes >= bytes, "{progress:?}");
    }
}

#[test]
fn an_audit_finds_a_flipped_byte_and_a_get_never_shows_it() {
    let mut rig = Rig::new(1, 46);
    rig.put("sound", &bytes(1, 3000));
    for (name, size, needle_at) in [("small", 50_000, 40_000), ("large", 3 << 20, (2 << 20) + 5)] {
        let body = bytes(77 + size as u64, size);
        rig.put(name, &body);
        rig.flip(0, &body[needle_at..needle_at + 32]);
    }
    let mut auditor = Auditor::new(rig.handle(0), rig.store());
    run(&mut rig, &mut auditor);
    assert_eq!(auditor.progress().findings, 2, "{:?}", auditor.progress());
    assert!(rig.try_get("sound").is_ok());
    for name in ["small", "large"] {
        assert!(matches!(rig.try_get(name), Err(Error::Corrupt { .. })), "{name}");
    }
}

#[test]
fn an_audit_lists_again_what_a_crash_between_two_disks_left_unlisted() {
    let mut rig = Rig::new(2, 47);
    for n in 0..10 {
        rig.put(&format!("o{n}"), &bytes(n, 100));
    }
    let store = rig.store();
    let container = rig.run(store.container("AUTH_a", "c")).unwrap().unwrap();
    // As if the row had never been written.
    let key = crate::catalog::listing_key(container.created.0, "o4");
    let handle = rig.handle(0);
    rig.run(handle.submit_prune(Box::new(move |tx| {
        tx.delete(Table::Rows, key);
        Ok(())
    })))
    .unwrap();
    assert_eq!(rig.names().len(), 9);
    for disk in 0..2 {
        let mut auditor = Auditor::new(rig.handle(disk), rig.store());
        run(&mut rig, &mut auditor);
    }
    assert_eq!(rig.names().len(), 10);
}

struct Scripted {
    steps: Vec<Outcome>,
    done: u64,
    urgent: Arc<AtomicBool>,
}

impl Worker for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    fn step(&mut self, _budget: u32) -> BoxFuture<'_, Outcome> {
        self.done += 100;
        Box::pin(std::future::ready(self.steps.remove(0)))
    }

    fn progress(&self) -> Progress {
        Progress { done: self.done, total: 1000, bytes: self.done << 20, ..Progress::default() }
    }

    fn is_urgent(&self) -> bool {
        self.urgent.load(Ordering::SeqCst)
    }
}

fn turn_of(runner: &mut Runner) -> Pause {
    let mut turn = std::pin::pin!(runner.turn());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match turn.as_mut().poll(&mut context) {
        std::task::Poll::Ready(pause) => pause,
        std::task::Poll::Pending => panic!("a scripted step is ready at once"),
    }
}

#[test]
fn clients_come_before_all_that_is_not_urgent() {
    let rig = Rig::new(1, 47);
    let (store, disk) = (rig.store(), rig.handle(0));
    let now = AtomicU64::new(0);
    let calls = move || {
        // A client of a volume reads a block between any two looks.
        disk.count_call();
        store.client_calls()
    };
    let elapsed = Box::new(move || Duration::from_secs(now.fetch_add(1, Ordering::SeqCst)));
    let pace = Pace { units_per_second: 1000, idle_seconds: 9 };
    let urgent = Arc::<AtomicBool>::default();
    let worker = Scripted { steps: vec![Outcome::Did(1); 3], done: 0, urgent: Arc::clone(&urgent) };
    let runner = Runner::new(Box::new(worker), pace, elapsed, Box::new(calls));
    // Each step takes a second, which three are owed for. It becomes urgent in the second nap, and ends in the fifth.
    let naps = Arc::<Mutex<Vec<Duration>>>::default();
    let slept = Arc::clone(&naps);
    let sleep = move |time: Duration| -> BoxFuture<'static, ()> {
        let mut naps = naps.lock().unwrap();
        naps.push(time);
        urgent.store(naps.len() >= 3, Ordering::SeqCst);
        if naps.len() < 5 { Box::pin(std::future::ready(())) } else { Box::pin(std::future::pending()) }
    };
    let mut run = std::pin::pin!(runner.run(Box::new(sleep)));
    assert!(run.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_pending());
    assert_eq!(*slept.lock().unwrap(), [0, 50, 50, 0, 0].map(Duration::from_millis));
}

#[test]
fn a_runner_reports_state_rate_and_errors() {
    let steps = vec![
        Outcome::Did(1),
        Outcome::Did(1),
        Outcome::Failed("no".to_owned()),
        Outcome::Waits("a leader".to_owned()),
        Outcome::Idle,
    ];
    let now = AtomicU64::new(0);
    let elapsed = Box::new(move || Duration::from_secs(now.fetch_add(5, Ordering::SeqCst)));
    let pace = Pace { units_per_second: 1000, idle_seconds: 9 };
    let mut runner = Runner::new(
        Box::new(Scripted { steps, done: 0, urgent: Arc::default() }),
        pace,
        elapsed,
        Box::new(|| 0),
    );
    let reports = runner.reports();
    assert_eq!(reports.read().name, "scripted");
    let mut turn = || (turn_of(&mut runner), reports.read());
    turn();
    let (_, report) = turn();
    assert_eq!((report.state, report.rate, report.eta_seconds), (State::Working, 13, Some(61)));
    assert_eq!(report.bytes_rate, (200 << 20) / 15);
    let (pause, report) = turn();
    assert_eq!((pause.least.as_secs(), report.state, report.errors), (1, State::Failing, 1));
    let (pause, report) = turn();
    assert_eq!((pause.least.as_secs(), report.state, report.errors), (9, State::Waiting, 1));
    assert_eq!(report.waits_for.as_deref(), Some("a leader"));
    let (pause, report) = turn();
    assert_eq!((pause.least.as_secs(), report.state, report.waits_for), (9, State::Idle, None));
    assert_eq!(report.last_error.as_deref(), Some("no"));
}
