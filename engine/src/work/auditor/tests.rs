//! The auditor over a simulated store whose names can be away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::clock::Timestamp;
use crate::disk::Class;
use crate::object::names::{Answer, Ask, Grant, Names, NewLine};
use crate::object::tests::rig::{Rig, bytes, path};
use crate::object::{Error, ObjectPath, Options, Parts, Result, Spread};

/// Names that nobody decides about for a while.
struct Away {
    names: Arc<dyn Names>,
    away: AtomicBool,
    asked: AtomicU64,
}

impl Away {
    fn judge(&self) -> Option<Error> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let away = self.away.load(Ordering::SeqCst);
        away.then(|| Error::Unavailable { reason: "nobody leads".to_owned() })
    }
}

impl Names for Away {
    fn ask(&self, ask: Ask) -> BoxFuture<'static, Result<Answer>> {
        match self.judge() {
            Some(error) => Box::pin(std::future::ready(Err(error))),
            None => self.names.ask(ask),
        }
    }

    fn begin(&self, path: ObjectPath, given: Option<Timestamp>) -> BoxFuture<'static, Result<Grant>> {
        match self.judge() {
            Some(error) => Box::pin(std::future::ready(Err(error))),
            None => self.names.begin(path, given),
        }
    }

    fn settle(&self, grant: Grant, line: NewLine, class: Class) -> BoxFuture<'static, Result<()>> {
        self.names.settle(grant, line, class)
    }

    fn lines_count(&self) -> bool {
        self.names.lines_count()
    }

    fn here(&self) -> bool {
        self.names.here()
    }
}

fn away(rig: &Rig) -> (Arc<Away>, Auditor) {
    let inner = rig.store().inner;
    let (away, asked) = (AtomicBool::new(true), AtomicU64::new(0));
    let names = Arc::new(Away { names: Arc::clone(&inner.names), away, asked });
    let disk = rig.handle(0);
    let parts = Parts {
        disks: vec![disk.clone()],
        others: Vec::new(),
        placement: Box::new(Spread::over(vec![disk.device()])),
        names: Arc::clone(&names) as Arc<dyn Names>,
        clock: Arc::clone(&inner.clock),
        options: Options::default(),
    };
    (names, Auditor::new(disk, Store::shared(parts).unwrap()))
}

/// Steps until it idles; how often it failed on the way.
fn run(rig: &mut Rig, auditor: &mut Auditor, budget: u32) -> u32 {
    let mut failed = 0;
    for _ in 0..100_000 {
        match rig.run(auditor.step(budget)) {
            Outcome::Did(_) => {}
            Outcome::Idle => return failed,
            Outcome::Failed(why) if why.contains("nobody leads") => failed += 1,
            other => panic!("{other:?}"),
        }
    }
    panic!("never idle")
}

fn unlist(rig: &mut Rig, name: &str) {
    let store = rig.store();
    let container = rig.run(store.container("AUTH_a", "c")).unwrap().unwrap();
    let key = crate::catalog::listing_key(container.created.0, name);
    let handle = rig.handle(0);
    rig.run(handle.submit_prune(Box::new(move |tx| {
        tx.delete(Table::Rows, key);
        Ok(())
    })))
    .unwrap();
}

/// A node whose peers were starting had no lines to compare: its auditor rested for up to a minute after each object, and passed each of
/// those objects over, unread.
#[test]
fn a_disk_is_read_whole_while_nobody_says_what_is_listed() {
    let mut rig = Rig::new(1, 51);
    for n in 0..150 {
        rig.put(&format!("o{n}"), &bytes(n, 3000));
    }
    let body = bytes(777, 50_000);
    rig.put("rotten", &body);
    rig.flip(0, &body[40_000..40_032]);
    unlist(&mut rig, "o77");
    let (names, mut auditor) = away(&rig);
    while auditor.progress().passes == 0 {
        if let Outcome::Failed(why) = rig.run(auditor.step(7)) {
            // The end: all is read, and its lines are waited for.
            assert!(why.contains("nobody leads"), "{why}");
            assert_eq!(auditor.progress().findings, 1, "{:?}", auditor.progress());
            assert!(auditor.progress().done >= 151);
            names.away.store(false, Ordering::SeqCst);
        }
    }
    assert_eq!(auditor.progress().findings, 2, "{:?}", auditor.progress());
    assert!(rig.names().contains(&"o77".to_owned()));
}

#[test]
fn a_pass_ends_without_lines_when_nobody_answers_for_long() {
    let mut rig = Rig::new(1, 52);
    for n in 0..150 {
        rig.put(&format!("o{n}"), &bytes(n, 3000));
    }
    unlist(&mut rig, "o77");
    let (names, mut auditor) = away(&rig);
    assert_eq!(run(&mut rig, &mut auditor, 8), 5);
    assert_eq!((auditor.progress().passes, auditor.progress().findings), (1, 0));
    // As many as go together at first, and for each look at the end.
    assert!(names.asked.load(Ordering::SeqCst) <= 64 * 7);
    names.away.store(false, Ordering::SeqCst);
    assert_eq!(run(&mut rig, &mut auditor, 8), 0);
    assert_eq!((auditor.progress().passes, auditor.progress().findings), (2, 1));
}

#[test]
fn what_changes_under_an_audit_is_no_finding() {
    for budget in [1, 16, 500] {
        let mut rig = Rig::new(1, 53);
        for n in 0..60 {
            rig.put(&format!("o{n}"), &bytes(n, 3000));
        }
        rig.put("large", &bytes(1, 5 << 20));
        let mut auditor = Auditor::new(rig.handle(0), rig.store());
        for n in 0..60 {
            assert!(matches!(rig.run(auditor.step(budget)), Outcome::Did(_) | Outcome::Idle));
            match n % 3 {
                0 => drop(rig.delete(&format!("o{n}"))),
                1 => drop(rig.put(&format!("o{n}"), &bytes(n + 1000, 4000))),
                _ => {}
            }
        }
        rig.put("large", &bytes(2, 3 << 20));
        run(&mut rig, &mut auditor, budget);
        assert_eq!(auditor.progress().findings, 0, "{:?}", auditor.progress());
    }
}

/// Of a page that was begun and not ended, all is read again after a restart.
#[test]
fn an_audit_goes_on_where_it_was_and_leaves_nothing_out() {
    let mut rig = Rig::new(1, 54);
    let names = |n: u64| format!("o{n}");
    for n in 0..300 {
        rig.put(&names(n), &bytes(n, 300));
    }
    for n in 0..10 {
        let body = bytes(777 + n, 50_000);
        rig.put(&format!("rotten{n}"), &body);
        rig.flip(0, &body[40_000..40_032]);
    }
    for stop in [1, 7, 9, 10, 18, 25] {
        let mut first = Auditor::new(rig.handle(0), rig.store());
        first.place = Place::start();
        let mut did = 0;
        while did < stop {
            let Outcome::Did(units) = rig.run(first.step((stop - did).min(64))) else {
                panic!("ended at {did}")
            };
            did += units;
        }
        rig.run(first.note()).unwrap();
        let mut second = Auditor::new(rig.handle(0), rig.store());
        run(&mut rig, &mut second, 64);
        let found = first.progress().findings + second.progress().findings;
        assert!(found >= 10, "stopped after {stop}: {found}");
    }
}

/// Some segments of objects, and little in the last one.
fn filled(seed: u64) -> Rig {
    let mut rig = Rig::new(1, seed);
    let mut settled = 0;
    for n in 0.. {
        rig.put(&format!("o{n}"), &bytes(n, 300_000));
        let before = std::mem::replace(&mut settled, rig.handle(0).settled());
        if n >= 200 && settled > before {
            break;
        }
    }
    rig
}

/// A page of the index, up to 65,536 objects, was read again from its beginning after each restart.
#[test]
fn an_audit_that_is_cut_short_again_and_again_reads_little_twice() {
    let mut rig = filled(56);
    let mut whole = Auditor::offline(rig.handle(0));
    run(&mut rig, &mut whole, 64);
    let all = whole.progress().bytes;
    let (mut read, mut lives) = (0, 0);
    loop {
        let mut auditor = Auditor::new(rig.handle(0), rig.store());
        let ended = (0..6).any(|_| matches!(rig.run(auditor.step(16)), Outcome::Idle));
        read += auditor.progress().bytes;
        lives += 1;
        if ended {
            break;
        }
        assert!(lives < 100, "{read} bytes of {all} are read, and it is not over");
        let disk = rig.handle(0);
        rig.run(disk.checkpoint()).unwrap();
        rig.crash(true);
    }
    assert!(lives > 5 && read >= all, "{lives} lives read {read} bytes of {all}");
    assert!(read < all + lives * (1 << 20), "{lives} lives read {read} bytes of {all}");
}

#[test]
fn what_was_written_since_a_page_was_looked_at_is_looked_at() {
    let mut rig = filled(57);
    let mut first = Auditor::new(rig.handle(0), rig.store());
    while first.page.last.is_none() || !first.page.ahead.is_empty() {
        assert!(matches!(rig.run(first.step(1)), Outcome::Did(_)));
    }
    rig.run(first.note()).unwrap();
    let reached = first.place.reached.clone().unwrap();
    assert_eq!(reached.before, (u32::MAX, u32::MAX), "all of the first page");
    let disk = rig.handle(0);
    let page = catalog::walk(disk.index(), Table::Objects, &[], PAGE).unwrap();
    let covered = page.iter().filter(|grip| reached.covers(&disk, grip)).count();
    assert!(covered > 60, "{covered} lie in segments that were full");
    for n in 0..200 {
        let body = bytes(1000 + n, 300_000);
        rig.put(&format!("o{n}"), &body);
        if n % 20 == 0 {
            rig.flip(0, &body[40_000..40_032]);
        }
    }
    let mut second = Auditor::new(rig.handle(0), rig.store());
    assert_eq!(second.place, first.place);
    run(&mut rig, &mut second, 64);
    assert_eq!(second.progress().findings, 10);
}

/// A page is read in the order of the disk, and several records at a time.
#[test]
fn large_objects_are_read_chunk_after_chunk_and_whole() {
    let mut rig = Rig::new(1, 55);
    for n in 0..3 {
        rig.put(&format!("l{n}"), &bytes(n, (3 << 20) + 5));
    }
    let body = bytes(78, 4 << 20);
    rig.put("rotten", &body);
    rig.flip(0, &body[(3 << 20) + 5..(3 << 20) + 37]);
    for budget in [1, 20, 10_000] {
        let mut auditor = Auditor::offline(rig.handle(0));
        run(&mut rig, &mut auditor, budget);
        let Progress { findings, last_finding, bytes, .. } = auditor.progress();
        let what = last_finding.unwrap();
        assert!(
            findings == 1 && what.contains("chunk 3 of") && what.contains("rotten"),
            "{findings}: {what}"
        );
        assert!(bytes > 3 * (3 << 20), "{bytes}");
    }
    assert!(rig.run(rig.store().object(&path("l0"))).unwrap().is_some());
}
