//! Eventual containers: changes while the group is away, and what becomes of their intents.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

use super::cluster::{Cluster, Shape, read};
use super::rig::{all, any, bytes, path};
use super::shelf::Shelf;
use crate::catalog::{self, Intent, count_intents};
use crate::clock::{Clock, Timestamp};
use crate::object::limits::AWAY;
use crate::object::names::Names;
use crate::object::{
    Committed, Condition, Deleted, Delivered, Entry, Error, IndexPolicy, ObjectEdit, ObjectPath, ObjectRow,
    PutSpec, Result, hash_of,
};
use crate::work::{Outcome, Updater, Worker};

/// Nodes of a cluster whose container `AUTH_a/c` is eventual.
struct Rig {
    cluster: Cluster,
    shelf: Arc<Shelf>,
}

impl Rig {
    fn new(shape: Shape, seed: u64) -> Self {
        // The group's clock is its own: an hour behind the nodes'.
        let shelf = Shelf::new(Clock::new(Box::new(|| (super::rig::START - 3600) * 1_000_000)));
        let names = Arc::clone(&shelf) as Arc<dyn Names>;
        let mut cluster = Cluster::with_names(shape, seed, Some(names));
        assert!(shelf.timer.set(cluster.time().timer).is_ok());
        let store = cluster.store(0);
        cluster
            .run(store.post_container_with("AUTH_a", "c", Some(IndexPolicy::Eventual), |found| {
                Ok(found.headers.clone())
            }))
            .unwrap();
        let mut rig = Self { cluster, shelf };
        rig.meet();
        rig
    }

    /// Every node hears of the container from its group.
    fn meet(&mut self) {
        for node in 0..self.cluster.len() {
            let store = self.cluster.store(node);
            let found =
                self.cluster.run(async move { store.container("AUTH_a", "c").await }).unwrap().unwrap();
            assert_eq!(found.index, IndexPolicy::Eventual);
        }
    }

    fn leave(&self, away: bool) {
        self.shelf.leave(away);
    }

    /// The group is there again, and nobody thinks that it is away.
    fn come_back(&mut self) {
        self.leave(false);
        self.cluster.pass(AWAY);
    }

    fn put(&mut self, node: usize, name: &str, body: &Bytes) -> Result<Committed> {
        self.cluster.try_put(node, name, body)
    }

    fn put_if(&mut self, node: usize, name: &str, condition: Condition) -> Result<Committed> {
        let store = self.cluster.store(node);
        let spec = PutSpec { condition, ..PutSpec::default() };
        self.cluster.run(async move { store.writer(&path(name), None).await?.commit(spec).await })
    }

    fn get(&mut self, node: usize, name: &str) -> Result<Option<Bytes>> {
        let store = self.cluster.store(node);
        self.cluster.run(async move {
            match store.open(&path(name)).await? {
                Some(reader) => read(reader).await.map(Some),
                None => Ok(None),
            }
        })
    }

    fn names(&mut self, node: usize) -> Vec<String> {
        let store = self.cluster.store(node);
        let entries =
            self.cluster.run(async move { store.list_objects("AUTH_a", "c", &all()).await }).unwrap();
        let name = |entry| match entry {
            Entry::Row(row) => {
                let row: ObjectRow = row;
                row.name
            }
            Entry::Subdir(name) => name,
        };
        entries.into_iter().map(name).collect()
    }

    /// Intents on each node that lives.
    fn intents(&self) -> Vec<usize> {
        let of = |node| {
            let disks = self.cluster.handles(node);
            disks.iter().map(|disk| count_intents(disk.index(), 1000).unwrap()).sum()
        };
        (0..self.cluster.len()).map(of).collect()
    }

    /// The first intent of a node.
    fn intent(&self, node: usize) -> Intent {
        let disks = self.cluster.handles(node);
        disks.iter().find_map(|disk| catalog::intents(disk.index(), None, 1).unwrap().pop()).unwrap()
    }

    fn deliver(&mut self, node: usize, intent: &Intent) -> Result<Delivered> {
        let (inner, intent) = (self.cluster.store(node).inner, intent.clone());
        self.cluster.run(async move { inner.deliver(&intent, Duration::from_secs(4)).await })
    }

    /// The updaters of these nodes do what there is to do; what failed.
    fn update(&mut self, nodes: impl Iterator<Item = usize>) -> Vec<String> {
        // Nobody's write is young any more.
        self.cluster.wall.fetch_add(10_000_000, Ordering::SeqCst);
        let mut failed = Vec::new();
        for node in nodes {
            let store = self.cluster.store(node);
            for disk in self.cluster.handles(node) {
                let wall = self.cluster.wall.clone();
                let mut updater =
                    Updater::new(disk, store.clone(), Arc::new(move || wall.load(Ordering::SeqCst)));
                loop {
                    match self.cluster.run(updater.step(10)) {
                        Outcome::Did(_) => {}
                        Outcome::Idle => break,
                        Outcome::Waits(why) | Outcome::Failed(why) => {
                            failed.push(why);
                            break;
                        }
                    }
                }
            }
        }
        self.cluster.settle();
        failed
    }

    fn update_all(&mut self) {
        // Twice: a delivery may have brought a version, and its intent, to a node that had its turn.
        for _ in 0..2 {
            let nodes = 0..self.cluster.len();
            assert_eq!(self.update(nodes), Vec::<String>::new());
        }
        assert_eq!(self.intents().iter().sum::<usize>(), 0);
    }
}

#[test]
fn changes_go_on_without_a_group_are_seen_at_once_and_listed_later() {
    let mut rig = Rig::new(Shape::new(5, 3), 1);
    let (old, new, large) = (bytes(1, 900), bytes(2, 500), bytes(3, 2_500_000));
    for name in ["a", "b", "c"] {
        rig.put(0, name, &old).unwrap();
    }
    rig.cluster.settle();
    assert_eq!(rig.intents().iter().sum::<usize>(), 0, "what was listed at once is settled at once");
    rig.leave(true);
    let store = rig.cluster.store(1);
    let (put, took) = rig.cluster.timed(super::cluster::put(store, "a".to_owned(), new.clone()));
    put.unwrap();
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(rig.cluster.try_delete(2, "b").unwrap(), Deleted::Gone);
    assert_eq!(rig.cluster.try_delete(2, "none").unwrap(), Deleted::Absent);
    rig.put(3, "new", &large).unwrap();
    for node in 0..5 {
        assert_eq!(rig.get(node, "a").unwrap(), Some(new.clone()));
        assert_eq!(rig.get(node, "b").unwrap(), None);
        assert_eq!(rig.get(node, "c").unwrap(), Some(old.clone()));
        assert!(rig.get(node, "new").unwrap() == Some(large.clone()));
    }
    assert_eq!(rig.cluster.try_delete(4, "b").unwrap(), Deleted::Absent);
    assert!((0..5).map(|node| rig.cluster.store(node).changes_alone()).sum::<u64>() > 0);
    // Facts of the container are what they were.
    let store = rig.cluster.store(4);
    let found = rig.cluster.run(async move { store.container("AUTH_a", "c").await }).unwrap().unwrap();
    assert_eq!(found.objects, 0, "as it was when this node last heard of it");
    rig.come_back();
    assert_eq!(rig.names(0), ["a", "b", "c"]);
    assert_eq!(rig.get(0, "a").unwrap(), Some(new), "the group is there, its line is old");
    assert_eq!(rig.get(0, "b").unwrap(), None);
    rig.update_all();
    assert_eq!(rig.names(4), ["a", "c", "new"]);
    let store = rig.cluster.store(4);
    let found = rig.cluster.run(async move { store.container("AUTH_a", "c").await }).unwrap().unwrap();
    assert_eq!((found.objects, found.bytes), (3, 500 + 900 + 2_500_000));
}

#[test]
fn a_post_keeps_the_body_and_its_headers_are_listed_later() {
    let mut rig = Rig::new(Shape::new(3, 3), 2);
    let body = bytes(1, 1_500_000);
    rig.put(0, "a", &body).unwrap();
    rig.leave(true);
    let store = rig.cluster.store(1);
    let edit = |_: &_| Ok(ObjectEdit { content_type: "x/y".to_owned(), ..ObjectEdit::default() });
    rig.cluster.run(async move { store.post_object(&path("a"), edit).await }).unwrap();
    let store = rig.cluster.store(1);
    let posted =
        rig.cluster.run(async move { store.post_object(&path("none"), |_| Ok(ObjectEdit::default())).await });
    assert!(matches!(posted, Err(Error::NoObject)));
    rig.come_back();
    rig.update_all();
    assert!(rig.get(2, "a").unwrap() == Some(body));
    let store = rig.cluster.store(2);
    let entries = rig.cluster.run(async move { store.list_objects("AUTH_a", "c", &all()).await }).unwrap();
    let Some(Entry::Row(row)) = entries.first() else { panic!("{entries:?}") };
    assert_eq!(row.content_type, "x/y");
}

#[test]
fn a_strict_container_and_one_that_is_not_known_wait_for_their_group() {
    let mut rig = Rig::new(Shape::new(3, 3), 3);
    rig.put(0, "a", &bytes(1, 10)).unwrap();
    let store = rig.cluster.store(0);
    rig.cluster.run(store.put_container("AUTH_a", "strict", 0, |_| Ok(Default::default()))).unwrap();
    rig.leave(true);
    // A node that was just started knows no container, and has no rows of its own here.
    rig.cluster.kill(1);
    rig.cluster.start(1);
    let store = rig.cluster.store(1);
    let seen = rig.cluster.run(async move { store.object(&path("a")).await });
    assert!(matches!(seen, Err(Error::Unavailable { .. })), "{seen:?}");
    let store = rig.cluster.store(0);
    let strict = crate::object::ObjectPath { container: "strict".into(), ..path("a") };
    let seen = rig.cluster.run(async move { store.object(&strict).await });
    assert!(matches!(seen, Err(Error::Unavailable { .. })), "{seen:?}");
    assert_eq!(rig.get(0, "a").unwrap(), Some(bytes(1, 10)));
}

#[test]
fn an_eventual_container_stays_so_and_fragments_are_strict() {
    let mut rig = Rig::new(Shape::new(3, 3), 4);
    let store = rig.cluster.store(0);
    let strict = Some(IndexPolicy::Strict);
    let posted =
        rig.cluster.run(store.post_container_with("AUTH_a", "c", strict, |found| Ok(found.headers.clone())));
    assert!(matches!(posted, Err(Error::Refused(_))), "{posted:?}");
    let mut cluster = Cluster::new(Shape::coded(4, 2, 1), 4);
    let (store, eventual) = (cluster.store(0), Some(IndexPolicy::Eventual));
    let put = cluster.run(store.put_container_with("AUTH_a", "d", 1, eventual, |_| Ok(Default::default())));
    assert!(matches!(put, Err(Error::Refused(_))), "{put:?}");
    let posted =
        cluster.run(store.post_container_with("AUTH_a", "c", eventual, |found| Ok(found.headers.clone())));
    assert!(matches!(posted, Err(Error::Refused(_))), "{posted:?}");
}

#[test]
fn a_condition_waits_for_the_group_and_is_judged_by_what_the_devices_have() {
    let mut rig = Rig::new(Shape::new(3, 3), 5);
    rig.leave(true);
    rig.put(0, "a", &bytes(1, 10)).unwrap();
    let absent = Condition { if_none_match: any(), ..Condition::default() };
    assert!(matches!(rig.put_if(1, "b", absent.clone()), Err(Error::Unavailable { .. })));
    rig.come_back();
    // The line of "a" is not made yet.
    assert!(matches!(rig.put_if(2, "a", absent.clone()), Err(Error::ConditionFailed)));
    rig.put_if(2, "b", absent.clone()).unwrap();
    assert!(matches!(rig.put_if(1, "b", absent), Err(Error::ConditionFailed)));
    rig.update_all();
    assert_eq!(rig.names(0), ["a", "b"]);
}

/// The claim of a PUT that wants a new name was lost on the way, with the leader that gave it; then another one, too, found nothing
/// there. Both were told that they had made the object.
#[test]
fn of_two_who_make_an_object_anew_one_is_told_so_also_where_a_claim_is_lost() {
    let absent = || Condition { if_none_match: any(), ..Condition::default() };
    let mut context = Context::from_waker(Waker::noop());
    let mut second_made = 0;
    for polls in 0..60 {
        let mut rig = Rig::new(Shape::new(3, 3), 70 + polls);
        let store = rig.cluster.store(0);
        let mut first = Box::pin(async move {
            let spec = PutSpec { condition: absent(), ..PutSpec::default() };
            store.writer(&path("a"), None).await?.commit(spec).await
        });
        rig.shelf.loses.store(usize::MAX, Ordering::SeqCst);
        let mut ended = None;
        for _ in 0..polls {
            if ended.is_none() {
                match first.as_mut().poll(&mut context) {
                    Poll::Ready(result) => ended = Some(result),
                    Poll::Pending => rig.cluster.turn(),
                }
            }
        }
        rig.shelf.loses.store(0, Ordering::SeqCst);
        let second = rig.put_if(1, "a", absent());
        let first = ended.unwrap_or_else(|| rig.cluster.run(first));
        assert!(first.is_err() || second.is_err(), "{polls}: {first:?} {second:?}");
        assert!(!matches!(first, Err(Error::GrantLost { unused: true })), "it stands: {first:?}");
        second_made += u32::from(polls > 0 && second.is_ok());
        rig.update_all();
        assert_eq!(rig.names(2), ["a"]);
    }
    assert!(second_made > 0, "the first one always came before the second had looked");
}

/// What has no condition is done all the same: it is on its devices.
#[test]
fn a_change_without_a_condition_whose_claim_is_lost_is_done_and_listed_later() {
    let mut rig = Rig::new(Shape::new(3, 3), 6);
    rig.put(0, "b", &bytes(1, 10)).unwrap();
    rig.shelf.loses.store(usize::MAX, Ordering::SeqCst);
    rig.put(0, "a", &bytes(1, 10)).unwrap();
    assert_eq!(rig.cluster.try_delete(1, "b").unwrap(), Deleted::Gone);
    rig.shelf.loses.store(0, Ordering::SeqCst);
    assert_eq!((rig.names(2), rig.get(2, "a").unwrap()), (vec!["b".to_owned()], Some(bytes(1, 10))));
    assert_eq!(rig.get(2, "b").unwrap(), None);
    rig.update_all();
    assert_eq!(rig.names(2), ["a"]);
}

/// The group's clock is an hour behind: without a look at the devices its next grant would be older than what was acknowledged.
#[test]
fn what_a_group_grants_is_later_than_what_was_written_without_it() {
    let mut rig = Rig::new(Shape::new(5, 3), 6);
    for delivered in [false, true] {
        rig.leave(true);
        let alone = rig.put(0, "a", &bytes(1, 10)).unwrap().timestamp;
        rig.cluster.try_delete(1, "b").unwrap();
        rig.come_back();
        if delivered {
            rig.update_all();
        }
        let granted = rig.put(2, "a", &bytes(2, 20)).unwrap().timestamp;
        assert!(granted > alone);
        assert_eq!(rig.get(3, "a").unwrap(), Some(bytes(2, 20)));
        rig.leave(true);
        let alone = rig.put(4, "a", &bytes(3, 30)).unwrap().timestamp;
        assert!(alone > granted);
        assert_eq!(rig.cluster.try_delete(0, "a").unwrap(), Deleted::Gone);
        rig.come_back();
        if delivered {
            rig.update_all();
            assert_eq!(rig.names(0), Vec::<String>::new());
        }
        let again = rig.put(1, "a", &bytes(4, 40)).unwrap().timestamp;
        assert!(again > alone, "no line is left, and the time is remembered");
        rig.update_all();
        assert_eq!((rig.get(2, "a").unwrap(), rig.names(3)), (Some(bytes(4, 40)), vec!["a".to_owned()]));
    }
}

#[test]
fn an_intent_that_comes_twice_or_late_changes_nothing() {
    let mut rig = Rig::new(Shape::new(3, 3), 7);
    rig.leave(true);
    rig.put(0, "a", &bytes(1, 10)).unwrap();
    rig.cluster.settle();
    let first = rig.intent(2);
    rig.put(1, "a", &bytes(2, 20)).unwrap();
    rig.cluster.settle();
    let second = rig.intent(2);
    assert!(second.sequence > first.sequence);
    rig.come_back();
    // The older one comes first and finds the newer version.
    assert_eq!(rig.deliver(0, &first).unwrap(), Delivered::Made);
    let store = rig.cluster.store(0);
    let bytes_of = move |rig: &mut Rig| {
        let store = store.clone();
        rig.cluster.run(async move { store.container("AUTH_a", "c").await }).unwrap().unwrap().bytes
    };
    assert_eq!(bytes_of(&mut rig), 20);
    assert_eq!(rig.deliver(1, &second).unwrap(), Delivered::Known);
    assert_eq!(rig.deliver(1, &first).unwrap(), Delivered::Known);
    assert_eq!(rig.cluster.try_delete(0, "a").unwrap(), Deleted::Gone);
    rig.cluster.settle();
    for intent in [&first, &second] {
        assert_eq!(rig.deliver(2, intent).unwrap(), Delivered::Known, "deleted since");
    }
    assert_eq!((rig.names(1), rig.get(1, "a").unwrap()), (Vec::new(), None));
    rig.update_all();
}

#[test]
fn an_intent_whose_container_is_gone_or_made_anew_takes_its_version_along() {
    for anew in [false, true] {
        let mut rig = Rig::new(Shape::new(3, 3), 8);
        rig.leave(true);
        rig.put(0, "a", &bytes(1, 10)).unwrap();
        rig.come_back();
        // Its listing is empty: nobody can know better.
        let store = rig.cluster.store(1);
        let deleted = rig.cluster.run(async move { store.delete_container("AUTH_a", "c").await }).unwrap();
        assert_eq!(deleted, Deleted::Gone);
        // Long enough for the group's clock, which is behind.
        let sequence = rig.intent(0).sequence;
        drop(rig.cluster.run(rig.shelf.begin(path("pass"), Some(Timestamp(sequence)))).unwrap());
        if anew {
            let (store, eventual) = (rig.cluster.store(1), Some(IndexPolicy::Eventual));
            let made = store.put_container_with("AUTH_a", "c", 0, eventual, |_| Ok(Default::default()));
            rig.cluster.run(made).unwrap();
            rig.meet();
            assert_eq!(rig.get(2, "a").unwrap(), None, "it was written before this container was made");
        }
        rig.update_all();
        if anew {
            assert_eq!((rig.get(2, "a").unwrap(), rig.names(2)), (None, Vec::new()));
            rig.put(1, "a", &bytes(2, 20)).unwrap();
            assert_eq!(rig.get(0, "a").unwrap(), Some(bytes(2, 20)));
        }
        let held = rig.cluster.versions("a");
        assert!(anew || held.iter().flatten().all(|version| version.deleted), "{held:?}");
    }
}

#[test]
fn a_writer_that_dies_between_the_devices_and_the_line_leaves_an_intent() {
    for polls in 1..60 {
        let mut rig = Rig::new(Shape::new(3, 3), polls);
        let store = rig.cluster.store(0);
        let body = bytes(1, 10);
        rig.cluster.abandon(u32::try_from(polls).unwrap(), super::cluster::put(store, "a".to_owned(), body));
        rig.cluster.kill(0);
        rig.cluster.pass(Duration::from_secs(3));
        let there = rig.get(1, "a").unwrap().is_some();
        rig.cluster.start(0);
        rig.cluster.pass(Duration::from_secs(12));
        rig.meet();
        let now = rig.get(1, "a").unwrap().is_some();
        assert!(now || !there, "what was seen stays");
        rig.update_all();
        assert_eq!(rig.names(2).len(), usize::from(now), "{polls}");
    }
}

#[test]
fn intents_come_with_copies_and_go_when_their_version_is_given_up() {
    let mut rig = Rig::new(Shape::new(5, 3), 9);
    let name = rig.cluster.name_on(&[0, 1, 2]);
    let hash = hash_of(&path(&name));
    rig.leave(true);
    rig.cluster.kill(0);
    rig.put(1, &name, &bytes(1, 10)).unwrap();
    rig.cluster.settle();
    rig.cluster.start(0);
    rig.cluster.pass(Duration::from_secs(10));
    assert_eq!(rig.intents().iter().sum::<usize>(), 3, "one of a handoff");
    let holder = rig.cluster.store(1).replicas()[0].clone();
    let stamp =
        |version: catalog::Version| catalog::Stamp { hash, sequence: version.sequence, deleted: false };
    let stamp = stamp(rig.cluster.versions(&name)[1].unwrap());
    let to = rig.cluster.store(0).replicas()[0].clone();
    let memory = tokio::sync::Semaphore::new(1 << 24);
    let copied = async move { crate::sync::copy(holder.as_ref(), to.as_ref(), stamp, &memory).await };
    rig.cluster.run(copied).unwrap();
    assert_eq!(rig.intents()[..3], [1, 1, 1]);
    let handoff = (3..5).find(|node| rig.intents()[*node] == 1).unwrap();
    rig.cluster.forget(handoff, hash);
    assert_eq!(rig.intents().iter().sum::<usize>(), 3);
    // A device that lost its index finds its intents in its log.
    rig.cluster.kill(1);
    rig.cluster.start(1);
    assert_eq!(rig.intents()[1], 1);
    rig.come_back();
    rig.meet();
    rig.update_all();
    assert_eq!(rig.names(0), [name]);
}

#[test]
fn a_device_that_is_not_believed_is_not_heard_and_delivers_nothing() {
    let mut rig = Rig::new(Shape::new(3, 3), 10);
    rig.leave(true);
    rig.put(0, "a", &bytes(1, 10)).unwrap();
    rig.cluster.settle();
    // Two devices forget all: as if it had been deleted, and reclaimed, while the third was away.
    for node in [0, 1] {
        rig.cluster.forget(node, hash_of(&path("a")));
    }
    rig.cluster.handles(2).iter().for_each(|disk| disk.believe(false));
    rig.come_back();
    assert_eq!(rig.get(0, "a").unwrap(), None);
    rig.update(0..3);
    assert_eq!((rig.names(1), rig.intents()), (Vec::new(), vec![0, 0, 1]));
    assert!(rig.cluster.versions("a")[..2].iter().all(Option::is_none), "nothing came back");
}

/// Found by a simulated cluster: a node that was cut off for a while said "not there" of what the listing had.
#[test]
fn what_a_line_says_is_found_where_all_devices_that_have_it_are_taken_to_be_down() {
    let mut rig = Rig::new(Shape::new(5, 3), 12);
    let body = bytes(1, 900);
    rig.put(0, "a", &body).unwrap();
    rig.cluster.settle();
    let (hash, time) = (hash_of(&path("a")), rig.cluster.time());
    for node in 0..rig.cluster.len() {
        let copies = Arc::clone(&rig.cluster.store(node).inner.copies);
        let candidates = copies.candidates_to_write(&hash);
        let wanted = candidates.wanted();
        candidates.take(wanted).for_each(|member| member.failed(Some(&time)));
        assert_eq!(rig.get(node, "a").unwrap(), Some(body.clone()), "{node}");
    }
}

/// What clients were told, by name.
type Ledger = BTreeMap<String, Option<u64>>;

/// A node is killed and started again, or the group comes or goes.
fn trouble(rig: &mut Rig, dead: &mut Option<usize>) {
    match rig.cluster.rng.below(6) {
        0 if dead.is_none() => {
            let node = rig.cluster.rng.index(rig.cluster.len());
            rig.cluster.kill(node);
            *dead = Some(node);
        }
        1 => {
            if let Some(node) = dead.take() {
                rig.cluster.start(node);
                rig.cluster.pass(Duration::from_secs(10));
            }
        }
        2 => rig.come_back(),
        3 => rig.leave(true),
        4 => {
            let alive = (0..rig.cluster.len()).filter(|node| Some(*node) != *dead).collect::<Vec<_>>();
            rig.update(alive.into_iter());
        }
        _ => rig.cluster.settle(),
    }
}

/// Three nodes hold all, so quorums meet: what was acknowledged is what is read, also while the group is away.
#[test]
fn histories_by_seed_end_with_the_listing_that_the_ledger_says() {
    let mut alone = 0;
    for seed in 0..25 {
        let mut rig = Rig::new(Shape::new(3, 3), seed);
        rig.shelf.recalls.store(true, Ordering::SeqCst);
        let (mut ledger, mut dead) = (Ledger::new(), None);
        for step in 0..60_u64 {
            let live: Vec<usize> = (0..3).filter(|node| Some(*node) != dead).collect();
            let node = live[rig.cluster.rng.index(live.len())];
            let name = ["a", "b", "c", "d"][rig.cluster.rng.index(4)].to_owned();
            let known = ledger.get(&name).copied().flatten();
            match rig.cluster.rng.below(10) {
                0..3 => {
                    rig.put(node, &name, &bytes(step, 100 + usize::try_from(step).unwrap())).unwrap();
                    ledger.insert(name, Some(step));
                }
                3..5 => {
                    let gone = rig.cluster.try_delete(node, &name).unwrap();
                    assert_eq!(gone == Deleted::Gone, known.is_some(), "seed {seed} step {step}");
                    ledger.insert(name, None);
                }
                5..8 => {
                    let wanted = known.map(|step| bytes(step, 100 + usize::try_from(step).unwrap()));
                    assert!(rig.get(node, &name).unwrap() == wanted, "seed {seed} step {step}");
                }
                _ => trouble(&mut rig, &mut dead),
            }
        }
        if let Some(node) = dead {
            rig.cluster.start(node);
            rig.cluster.pass(Duration::from_secs(10));
        }
        alone += (0..3).map(|node| rig.cluster.store(node).changes_alone()).sum::<u64>();
        rig.come_back();
        rig.meet();
        rig.update_all();
        let wanted: Vec<String> =
            ledger.iter().filter(|(_, at)| at.is_some()).map(|(n, _)| n.clone()).collect();
        assert_eq!(rig.names(0), wanted, "seed {seed}");
    }
    assert!(alone > 100, "{alone} changes without a group");
}

/// One object was damaged on the only device that had it. Its intent could not be delivered, and those behind it of the same account were
/// left alone in each pass, though their group answered: what had been written was never listed.
#[test]
fn an_intent_that_cannot_be_delivered_keeps_no_other_of_its_account() {
    let mut rig = Rig::new(Shape::new(3, 1), 71);
    let mut names: Vec<String> = (0..200).map(|n| format!("o{n}")).collect();
    names.retain(|name| rig.cluster.primaries(name) == [0]);
    names.truncate(4);
    names.sort_by_key(|name| hash_of(&path(name)));
    rig.leave(true);
    for (n, name) in (0..).zip(&names) {
        rig.put(0, name, &bytes(n, 5000)).unwrap();
    }
    assert_eq!(rig.intents()[0], 4);
    rig.cluster.flip(0, &bytes(0, 5000)[100..200]);
    // The cache would hide it.
    rig.cluster.kill(0);
    rig.cluster.start(0);
    rig.come_back();
    let failed = rig.update(0..1);
    assert!(failed.iter().any(|why| why.contains(&names[0])), "{failed:?}");
    let mut wanted = names.split_off(1);
    wanted.sort();
    assert_eq!((rig.names(1), rig.intents()[0]), (wanted, 1));
}

/// An account after the other was waited for, although one group has them all: twelve of them held up all others' intents for more than a
/// minute in each pass.
#[test]
fn an_updater_waits_once_for_a_group_that_is_away() {
    let mut rig = Rig::new(Shape::new(3, 3), 72);
    let accounts: Vec<String> = (0..12).map(|n| format!("AUTH_{n}")).collect();
    let eventual = Some(IndexPolicy::Eventual);
    for account in &accounts {
        let store = rig.cluster.store(0);
        let made = store.put_container_with(account, "c", 0, eventual, |_| Ok(Default::default()));
        rig.cluster.run(made).unwrap();
        let found = rig.cluster.run(store.container(account, "c")).unwrap().unwrap();
        assert_eq!(found.index, IndexPolicy::Eventual);
    }
    rig.leave(true);
    for account in &accounts {
        let (store, account) = (rig.cluster.store(0), account.as_str().into());
        let path = ObjectPath { account, ..path("o") };
        let put = async move { store.writer(&path, None).await?.commit(PutSpec::default()).await };
        rig.cluster.run(put).unwrap();
    }
    rig.cluster.wall.fetch_add(10_000_000, Ordering::SeqCst);
    let (disk, wall) = (rig.cluster.handles(0).remove(0), rig.cluster.wall.clone());
    let wall = Arc::new(move || wall.load(Ordering::SeqCst));
    let mut updater = Updater::new(disk, rig.cluster.store(0), wall);
    let (did, took) = rig.cluster.timed(updater.step(1));
    assert!(matches!(did, Outcome::Did(12)), "{did:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(matches!(rig.cluster.run(updater.step(1)), Outcome::Waits(_)));
    rig.leave(false);
    let did = rig.cluster.run(updater.step(1));
    assert!(matches!(did, Outcome::Did(12)), "{did:?}");
    rig.cluster.settle();
    assert_eq!(rig.intents()[0], 0, "as soon as it is there");
}

/// Objects that were damaged on the only device that had them: each one was waited for by itself, and all others of the disk for all of
/// these, in each pass.
#[test]
fn intents_that_cannot_be_delivered_are_not_waited_for_one_by_one() {
    const LOST: usize = 40;
    let mut rig = Rig::new(Shape::new(3, 1), 73);
    let mut names: Vec<String> = (0..600).map(|n| format!("o{n}")).collect();
    names.retain(|name| rig.cluster.primaries(name) == [0]);
    names.truncate(LOST + 8);
    names.sort_by_key(|name| hash_of(&path(name)));
    rig.leave(true);
    for (n, name) in (0..).zip(&names) {
        rig.put(0, name, &bytes(n, 5000)).unwrap();
    }
    assert_eq!(rig.intents()[0], names.len());
    for n in 0..LOST {
        rig.cluster.flip(0, &bytes(n as u64, 5000)[100..200]);
    }
    // The cache would hide it.
    rig.cluster.kill(0);
    rig.cluster.start(0);
    rig.come_back();
    // Whoever may have another copy is waited for.
    rig.cluster.cut(1);
    rig.cluster.wall.fetch_add(10_000_000, Ordering::SeqCst);
    let (disk, wall) = (rig.cluster.handles(0).remove(0), rig.cluster.wall.clone());
    let wall = Arc::new(move || wall.load(Ordering::SeqCst));
    let mut updater = Updater::new(disk, rig.cluster.store(0), wall);
    let mut pass = |rig: &mut Rig| {
        let mut all = Duration::ZERO;
        loop {
            // As the runner asks once a step has taken long.
            let (outcome, took) = rig.cluster.timed(updater.step(1));
            all += took;
            if !matches!(outcome, Outcome::Did(_)) {
                return (outcome, all);
            }
        }
    };
    // In the first pass a device that does not answer is waited for by some that can be delivered without it.
    for _ in 0..2 {
        let (outcome, took) = pass(&mut rig);
        assert!(matches!(outcome, Outcome::Waits(_)), "{outcome:?}");
        assert!(took < Duration::from_secs(8), "{took:?}");
        rig.cluster.wall.fetch_add(6_000_000, Ordering::SeqCst);
    }
    rig.cluster.settle();
    let mut wanted = names.split_off(LOST);
    wanted.sort();
    assert_eq!((rig.names(0), rig.intents()[0]), (wanted, LOST));
    // They are left alone for a while, and tried again.
    let (outcome, took) = pass(&mut rig);
    assert!(matches!(outcome, Outcome::Waits(_)), "{outcome:?}");
    assert!(took < Duration::from_millis(100), "{took:?}");
    rig.cluster.wall.fetch_add(700_000_000, Ordering::SeqCst);
    let (_, took) = pass(&mut rig);
    assert!(took > Duration::from_millis(500) && took < Duration::from_secs(12), "{took:?}");
}
