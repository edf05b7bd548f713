//! Objects in fragments: what is lost and what is not, replacing, removing, posting, mending.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use quarry_ring::PathHash;

use super::cluster::{Cluster, Shape, put, read};
use super::rig::{START, all, bytes, path};
use super::shelf::Shelf;
use crate::catalog::{self, ObjectMeta};
use crate::clock::Clock;
use crate::index::Table;
use crate::object::limits::{GIVE_UP, STALL};
use crate::object::names::Names;
use crate::object::remake::{Remade, Wanted, remake};
use crate::object::{Condition, Deleted, Entry, Error, ObjectEdit, Result};

const MIB: usize = 1 << 20;

impl Cluster {
    pub(super) fn key(&mut self, node: usize, name: &str) -> Option<PathHash> {
        let store = self.store(node);
        self.run(async move { store.inner.key_now(&path(name)).await }).unwrap()
    }

    pub(super) fn try_open(&mut self, node: usize, name: &str) -> Result<Option<Bytes>> {
        let (store, name) = (self.store(node), name.to_owned());
        self.run(async move {
            match store.open(&path(&name)).await? {
                Some(reader) => read(reader).await.map(Some),
                None => Ok(None),
            }
        })
    }

    fn range(&mut self, node: usize, name: &str, range: std::ops::Range<u64>) -> Result<Bytes> {
        let (store, name) = (self.store(node), name.to_owned());
        self.run(async move {
            let reader = store.open(&path(&name)).await?.unwrap();
            let mut range = reader.range(range);
            let mut out = Vec::new();
            while let Some(piece) = range.next().await {
                out.extend_from_slice(&piece?);
            }
            Ok(out.into())
        })
    }

    /// Which fragment of a body each living node has.
    pub(super) fn fragments(&mut self, key: PathHash) -> Vec<Option<u8>> {
        let mut out = Vec::new();
        for node in 0..self.len() {
            let mut found = None;
            for disk in self.handles(node) {
                if let Some(at) = catalog::find_object(disk.index(), &key).unwrap() {
                    let record = self.run(async move { disk.read(at.record).await }).unwrap();
                    let view = record.view();
                    let meta = ObjectMeta::decode(view.meta, view.sequence).unwrap();
                    assert!(meta.chunked.is_none_or(|chunked| chunked.count as usize == at.chunks.len()));
                    found = meta.fragment.map(|fragment| fragment.index);
                }
            }
            out.push(found);
        }
        out
    }

    fn remake_at(&mut self, node: usize, key: PathHash, anew: bool) -> Remade {
        let store = self.store(node);
        let places = store.inner.copies.candidates_to_read(&key).primaries().to_vec();
        let sources: Vec<_> =
            store.inner.copies.candidates_to_read(&key).map(|member| member.replica.clone()).collect();
        let target = store.replicas()[0].clone();
        self.run(async move {
            let wanted = Wanted { hash: key, places: &places, anew };
            remake(&sources, target.as_ref(), wanted).await.unwrap()
        })
    }
}

#[test]
fn any_m_devices_may_be_lost_and_one_more_is_said() {
    for (data, parity) in [(3, 2), (4, 2)] {
        let nodes = data + parity;
        let mut cluster = Cluster::new(Shape::coded(nodes, data, parity), 1);
        let bodies: Vec<Bytes> =
            [0, 1, 5000, MIB, MIB + 1, 3 * MIB + 77].into_iter().map(|len| bytes(len as u64, len)).collect();
        for (n, body) in bodies.iter().enumerate() {
            cluster.put(0, &format!("o{n}"), body);
        }
        cluster.settle();
        for n in 0..bodies.len() {
            let key = cluster.key(0, &format!("o{n}")).unwrap();
            let (places, have) = (cluster.places(&key), cluster.fragments(key));
            for (index, node) in places.iter().enumerate() {
                assert_eq!(have[*node].map(usize::from), Some(index), "each has the fragment of its place");
            }
        }
        let mut cut = Vec::new();
        for node in 1..nodes {
            for (n, body) in bodies.iter().enumerate() {
                let found = cluster.try_open(0, &format!("o{n}"));
                if cut.len() <= usize::from(parity) {
                    assert!(found.unwrap().unwrap() == *body, "{n} without {cut:?}");
                } else if body.len() > MIB {
                    assert!(matches!(found, Err(Error::Unavailable { .. })), "{n} without {cut:?}");
                }
            }
            cluster.cut(usize::from(node));
            cut.push(node);
        }
        cluster.net.heal();
        cluster.pass(Duration::from_secs(9));
        let whole = &bodies[5];
        for (from, to) in [(0, 1), (MIB - 1, MIB + 1), (2 * MIB + 5, 3 * MIB + 77), (3 * MIB, 3 * MIB)] {
            let part = cluster.range(0, "o5", from as u64..to as u64).unwrap();
            assert!(part == whole.slice(from..to), "{from}..{to}");
        }
    }
}

#[test]
fn bytes_are_stored_as_often_as_the_code_says_and_small_bodies_on_m_and_one() {
    let mut cluster = Cluster::new(Shape::coded(6, 4, 2), 2);
    let used = |cluster: &Cluster| -> u64 {
        (0..6).flat_map(|node| cluster.handles(node)).map(|disk| disk.usage().live).sum()
    };
    let before = used(&cluster);
    cluster.put(0, "large", &bytes(1, 8 * MIB));
    cluster.settle();
    let large = used(&cluster) - before;
    assert!((12 * MIB as u64..13 * MIB as u64).contains(&large), "{large}");
    cluster.put(0, "small", &bytes(2, MIB));
    cluster.settle();
    let small = used(&cluster) - before - large;
    assert!((3 * MIB as u64..3 * MIB as u64 + 60_000).contains(&small), "{small}");
}

#[test]
fn what_is_replaced_and_removed_leaves_nothing() {
    let mut cluster = Cluster::new(Shape::coded(5, 3, 2), 3);
    let mut keys = Vec::new();
    for (n, len) in [2 * MIB, 100, 3 * MIB, MIB + 1].into_iter().enumerate() {
        let body = bytes(n as u64, len);
        cluster.put(0, "o", &body);
        assert!(cluster.try_open(0, "o").unwrap().unwrap() == body);
        cluster.settle();
        keys.push(cluster.key(0, "o").unwrap());
    }
    keys.dedup();
    assert_eq!(keys.len(), 4, "each body has a key of its own");
    assert_eq!(cluster.fragments(keys[3]).into_iter().flatten().count(), 5);
    assert!(keys[..3].iter().all(|key| cluster.fragments(*key).into_iter().flatten().count() == 0));
    assert_eq!(cluster.try_delete(0, "o").unwrap(), Deleted::Gone);
    assert_eq!(cluster.try_open(0, "o").unwrap(), None);
    assert_eq!(cluster.try_delete(0, "o").unwrap(), Deleted::Absent);
    cluster.settle();
    assert!((0..5).all(|node| cluster.count(node, Table::Chunks) == 0));
    let store = cluster.store(0);
    let container = cluster.run(store.container("AUTH_a", "c")).unwrap().unwrap();
    assert_eq!((container.objects, container.bytes), (0, 0));
    assert!(cluster.run(store.list_objects("AUTH_a", "c", &all())).unwrap().is_empty());
}

#[test]
fn a_post_changes_what_is_told_and_keeps_the_fragments() {
    let mut cluster = Cluster::new(Shape::coded(5, 3, 2), 4);
    for (name, len) in [("small", 3000), ("large", 2 * MIB + 9)] {
        let body = bytes(7, len);
        cluster.put(0, name, &body);
        cluster.settle();
        let key = cluster.key(0, name).unwrap();
        let before = cluster.fragments(key);
        let away = cluster.places(&key).into_iter().find(|node| *node != 0).unwrap();
        cluster.cut(away);
        let (store, name_of) = (cluster.store(0), name.to_owned());
        cluster
            .run(async move {
                let edit = |_: &_| Ok(ObjectEdit { content_type: "x/y".to_owned(), ..ObjectEdit::default() });
                store.post_object(&path(&name_of), edit).await
            })
            .unwrap();
        cluster.net.heal();
        cluster.pass(Duration::from_secs(9));
        assert_eq!((cluster.key(0, name), cluster.fragments(key)), (Some(key), before));
        // The one that was away has the older record, and is passed over.
        for _ in 0..6 {
            let store = cluster.store(0);
            let info = cluster.run(store.object(&path(name))).unwrap().unwrap();
            assert_eq!(info.content_type, "x/y");
        }
        assert!(cluster.try_open(0, name).unwrap().unwrap() == body);
        assert!(matches!(cluster.remake_at(away, key, false), Remade::Bytes(_) | Remade::Had));
        assert_eq!(cluster.remake_at(away, key, false), Remade::Had);
    }
}

#[test]
fn devices_that_are_down_are_replaced_by_handoffs_with_their_fragments() {
    let mut cluster = Cluster::new(Shape::coded(8, 3, 2), 5);
    for round in 0..6 {
        let (a, b) = (1 + round % 7, 1 + (round + 3) % 7);
        cluster.cut(a);
        cluster.cut(b);
        for (n, len) in [(0, 2 * MIB + 3), (1, 4000), (2, 2 * MIB)] {
            let (name, body) = (format!("{round}-{n}"), bytes(n, len));
            cluster.put(0, &name, &body);
            // The first handoff that is asked may be the other one that is down.
            cluster.pass(2 * STALL + Duration::from_millis(500));
            let key = cluster.key(0, &name).unwrap();
            let mut have: Vec<u8> = cluster.fragments(key).into_iter().flatten().collect();
            have.sort_unstable();
            have.dedup();
            // The first body may find out that they are down.
            assert!(have.len() >= if n == 0 { 4 } else { 5 }, "round {round}, {n}: {have:?}");
            assert!(cluster.try_open(0, &name).unwrap().unwrap() == body);
        }
        cluster.net.heal();
        cluster.pass(Duration::from_secs(30));
    }
}

#[test]
fn without_k_and_one_devices_a_put_fails_and_what_stood_stays() {
    for len in [5000, 3 * MIB] {
        let mut cluster = Cluster::new(Shape::coded(5, 3, 2), 6);
        let old = bytes(1, 2 * MIB);
        cluster.put(0, "o", &old);
        cluster.settle();
        cluster.cut(3);
        cluster.cut(4);
        for _ in 0..2 {
            let store = cluster.store(0);
            let (result, took) = cluster.timed(put(store, "o".to_owned(), bytes(2, len)));
            let Err(Error::Unavailable { reason }) = result else { panic!("{result:?}") };
            assert!(reason.contains("4 devices are needed, 3 answered well"), "{reason}");
            assert!(took < GIVE_UP + Duration::from_secs(1), "{took:?}");
            assert!(cluster.try_open(0, "o").unwrap().unwrap() == old);
        }
        cluster.net.heal();
        cluster.pass(Duration::from_secs(30));
        assert!(cluster.try_open(0, "o").unwrap().unwrap() == old);
        let key = cluster.key(0, "o").unwrap();
        assert_eq!(cluster.fragments(key).into_iter().flatten().count(), 5);
        for node in 0..5 {
            assert!(cluster.count(node, Table::Chunks) <= 2, "node {node}: what failed was given up");
        }
    }
}

#[test]
fn a_lost_fragment_is_made_anew_and_is_the_same() {
    let mut cluster = Cluster::new(Shape::coded(6, 4, 2), 7);
    for (name, len) in [("large", 3 * MIB + 1), ("small", 70_000)] {
        let body = bytes(3, len);
        cluster.put(0, name, &body);
        cluster.settle();
        let key = cluster.key(0, name).unwrap();
        let before = cluster.fragments(key);
        for node in 1..6 {
            cluster.forget(node, key);
            assert_eq!(cluster.fragments(key)[node], None);
            assert!(matches!(cluster.remake_at(node, key, false), Remade::Bytes(_)));
            assert_eq!(cluster.remake_at(node, key, false), Remade::Had);
        }
        assert_eq!(cluster.fragments(key), before);
        // Read with those alone that were made.
        cluster.forget(0, key);
        assert!(cluster.try_open(0, name).unwrap().unwrap() == body);
        // Fewer than k are left: nothing is made, and nothing wrong.
        for node in 1..4 {
            cluster.forget(node, key);
        }
        let made = cluster.remake_at(1, key, false);
        let fewer = if len > MIB { Remade::Cannot } else { made };
        assert_eq!(made, fewer);
        assert!(len < MIB || cluster.try_open(0, name).is_err());
    }
}

#[test]
fn damage_is_read_around_and_mended() {
    let mut cluster = Cluster::new(Shape::coded(5, 3, 2), 8);
    let body = bytes(9, 2 * MIB);
    cluster.put(0, "o", &body);
    cluster.settle();
    let key = cluster.key(0, "o").unwrap();
    let first = cluster.places(&key)[0];
    // The first fragment of the first stripe is the beginning of the body.
    cluster.flip(first, &body[1000..1032]);
    assert!(cluster.try_open(0, "o").unwrap().unwrap() == body);
    cluster.pass(Duration::from_secs(2));
    let others: Vec<usize> = cluster.places(&key).into_iter().skip(1).filter(|node| *node != 0).collect();
    for node in others.into_iter().take(2) {
        cluster.forget(node, key);
    }
    assert!(cluster.try_open(0, "o").unwrap().unwrap() == body, "the damaged one was mended");
}

#[test]
fn killed_in_the_middle_of_an_upload_the_old_body_stays_and_the_new_one_is_whole_or_not_there() {
    for seed in 0..12 {
        let mut cluster = Cluster::new(Shape::coded(5, 3, 2), 100 + seed);
        let (old, new) = (bytes(1, 2 * MIB + 1), bytes(2, 3 * MIB));
        cluster.put(0, "o", &old);
        let store = cluster.store(0);
        let polls = 20 + u32::try_from(seed).unwrap() * 37;
        cluster.abandon(polls, put(store, "o".to_owned(), new.clone()));
        // All at once, and what was not flushed is lost by luck.
        (0..5).for_each(|node| cluster.kill(node));
        (0..5).for_each(|node| cluster.start(node));
        cluster.pass(Duration::from_secs(1));
        let found = cluster.try_open(0, "o").unwrap().unwrap();
        assert!(found == old || found == new, "seed {seed}");
        cluster.put(0, "o", &old);
        assert!(cluster.try_open(0, "o").unwrap().unwrap() == old);
    }
}

#[test]
fn conditions_are_judged_by_the_line() {
    let mut cluster = Cluster::new(Shape::coded(5, 3, 2), 9);
    cluster.put(0, "o", &bytes(1, 10));
    let store = cluster.store(0);
    let none = Condition { if_none_match: super::rig::any(), ..Condition::default() };
    let refused = cluster.run(async move {
        let mut writer = store.writer(&path("o"), None).await?;
        writer.write(bytes(2, 2 * MIB)).await?;
        let spec = crate::object::PutSpec { condition: none, ..Default::default() };
        writer.commit(spec).await
    });
    assert!(matches!(refused, Err(Error::ConditionFailed)), "{refused:?}");
    cluster.pass(Duration::from_secs(1));
    assert!((0..5).all(|node| cluster.count(node, Table::Chunks) == 0));
    assert!(cluster.try_open(0, "o").unwrap().unwrap() == bytes(1, 10));
}

#[test]
fn a_device_that_hangs_in_mid_stream_is_waited_for_once() {
    let mut cluster = Cluster::new(Shape::coded(5, 3, 2), 10);
    let body = bytes(4, 12 * MIB);
    cluster.put(0, "o", &body);
    cluster.settle();
    let key = cluster.key(0, "o").unwrap();
    let hung = cluster.places(&key).into_iter().take(3).find(|node| *node != 0).unwrap();
    let store = cluster.store(0);
    let reader = cluster.run(async move { store.open(&path("o")).await }).unwrap().unwrap();
    cluster.cut(hung);
    let (found, took) = cluster.timed(read(reader));
    assert!(found.unwrap() == body);
    assert!(took < 2 * STALL, "{took:?}");
}

/// The claim of a PUT goes with the leader that gave it, once the body is on its devices: its version gets another time, and the body
/// that it replaces goes then.
#[test]
fn a_version_whose_grant_is_lost_is_committed_again() {
    let shelf = Shelf::new(Clock::new(Box::new(|| START * 1_000_000)));
    let names = Arc::clone(&shelf) as Arc<dyn Names>;
    let mut cluster = Cluster::with_names(Shape::coded(5, 2, 1), 21, Some(names));
    assert!(shelf.timer.set(cluster.time().timer).is_ok());
    cluster.try_put(0, "o", &bytes(1, 10)).unwrap();
    let mut stood = (cluster.key(1, "o").unwrap(), bytes(1, 10));
    for (seed, len) in (2..).zip([10, 3 * MIB + 5, 0, 5 * MIB]) {
        let body = bytes(seed, len);
        shelf.loses.store(9, Ordering::SeqCst);
        let refused = cluster.try_put(0, "o", &body);
        assert!(matches!(refused, Err(Error::GrantLost { unused: true })), "{refused:?}");
        shelf.loses.store(0, Ordering::SeqCst);
        assert_eq!(cluster.try_open(1, "o").unwrap(), Some(stood.1));
        shelf.loses.store(2, Ordering::SeqCst);
        let put = cluster.try_put(0, "o", &body).unwrap();
        assert_eq!(shelf.loses.load(Ordering::SeqCst), 0);
        assert_eq!(cluster.try_open(1, "o").unwrap(), Some(body.clone()));
        let store = cluster.store(2);
        let rows = cluster.run(async move { store.list_objects("AUTH_a", "c", &all()).await }).unwrap();
        assert!(
            matches!(&rows[..], [Entry::Row(row)] if row.size == len as u64 && row.timestamp == put.timestamp),
            "{rows:?}"
        );
        let key = cluster.key(1, "o").unwrap();
        assert_eq!(cluster.fragments(stood.0), [None; 5], "what was replaced is buried");
        assert!(cluster.fragments(key).iter().flatten().count() >= 3);
        stood = (key, body);
    }
}
