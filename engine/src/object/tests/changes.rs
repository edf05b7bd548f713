//! Changes that meet: readers and overwrites, writers given up, many clients at once, full disks.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::rig::{Rig, bytes, path};
use crate::catalog::{self, Chunked, ObjectMeta};
use crate::clock::Timestamp;
use crate::disk::format::record::Kind;
use crate::disk::{Class, Durability};
use crate::index::Table;
use crate::object::objects::object_draft;
use crate::object::{
    BoxFuture, Committed, Condition, Deleted, Draft, Error, Headers, ListedAs, ObjectInfo, PutSpec, Replica,
    hash_of,
};

/// The futures side by side, disks turning in between.
fn together<T>(rig: &mut Rig, mut futures: Vec<Pin<Box<dyn Future<Output = T> + '_>>>) -> Vec<T> {
    let mut results: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..100_000 {
        for (future, result) in futures.iter_mut().zip(&mut results) {
            if result.is_none()
                && let Poll::Ready(output) = future.as_mut().poll(&mut context)
            {
                *result = Some(output);
            }
        }
        if results.iter().all(Option::is_some) {
            return results.into_iter().flatten().collect();
        }
        rig.turn();
    }
    panic!("stuck");
}

#[test]
fn a_reader_keeps_its_version_while_it_is_overwritten_deleted_and_cleaned_away() {
    let mut rig = Rig::new(1, 21);
    let (large, small) = (bytes(1, (9 << 20) + 7), bytes(2, 4096));
    rig.put("large", &large);
    rig.put("small", &small);
    let store = rig.store();
    let readers = [("large", &large), ("small", &small)]
        .map(|(name, body)| (rig.run(store.open(&path(name))).unwrap().unwrap(), body));
    rig.put("large", &bytes(3, 10));
    rig.delete("small");
    for n in 0..60 {
        rig.put(&format!("fill{}", n % 5), &bytes(n, 2 << 20));
        let handle = rig.handle(0);
        while handle.usage().free < handle.usage().capacity / 2 {
            let Some(victim) = handle.victim(&[]) else { break };
            rig.run(handle.clean(victim)).unwrap();
            rig.run(handle.checkpoint()).unwrap();
            for _ in 0..5 {
                rig.turn();
            }
        }
    }
    assert!(rig.handle(0).counters().freed.load(std::sync::atomic::Ordering::Relaxed) > 0);
    for (reader, body) in readers {
        let mut range = reader.range(0..reader.info.size);
        let mut out = Vec::new();
        while let Some(piece) = rig.run(range.next()) {
            out.extend_from_slice(&piece.unwrap());
        }
        assert!(out == *body);
    }
}

#[test]
fn writers_given_up_leave_nothing() {
    let mut rig = Rig::new(1, 22);
    for polls in 0..40 {
        let store = rig.store();
        rig.abandon(polls, async move {
            let mut writer = store.writer(&path("o"), None).await.unwrap();
            for n in 0..6 {
                writer.write(bytes(n, 1 << 20)).await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        for _ in 0..30 {
            rig.turn();
        }
    }
    assert_eq!(rig.count(0, Table::Chunks), 0);
    assert_eq!(rig.get("o"), None);
    assert_eq!(rig.totals(), [0; 4]);
}

#[test]
fn commits_given_up_happen_whole_or_not_at_all() {
    let mut rig = Rig::new(1, 23);
    for polls in 0..60_u64 {
        let store = rig.store();
        let body = bytes(polls, (2 << 20) + 5);
        let sent = body.clone();
        rig.abandon(u32::try_from(polls).unwrap(), async move {
            let mut writer = store.writer(&path("o"), None).await.unwrap();
            writer.write(sent).await.unwrap();
            writer.commit(PutSpec::default()).await.unwrap();
        });
        for _ in 0..30 {
            rig.turn();
        }
        let stored = rig.get("o");
        let chunks = rig.count(0, Table::Chunks);
        assert_eq!(chunks, if stored.is_some() { 3 } else { 0 }, "after {polls} polls");
        assert!(stored.is_none_or(|stored| stored == body));
        rig.delete("o");
    }
}

#[test]
fn of_many_clients_exactly_one_creates() {
    let mut rig = Rig::new(1, 24);
    let store = rig.store();
    let create = |n: u64| {
        let store = store.clone();
        Box::pin(async move {
            let mut writer = store.writer(&path("o"), None).await.unwrap();
            writer.write(bytes(n, 100)).await.unwrap();
            let condition = Condition { if_match: None, if_none_match: super::rig::any() };
            writer.commit(PutSpec { condition, ..PutSpec::default() }).await
        }) as Pin<Box<dyn Future<Output = Result<Committed, Error>>>>
    };
    let results = together(&mut rig, (0..32).map(create).collect());
    let winners: Vec<usize> = (0..32).filter(|n| results[*n].is_ok()).collect();
    assert_eq!(winners.len(), 1);
    assert!(results.iter().all(|r| matches!(r, Ok(_) | Err(Error::ConditionFailed))));
    assert_eq!(rig.get("o"), Some(bytes(winners[0] as u64, 100)));
}

/// Puts race with the removal of their container: either the container stays, or no line is left behind.
#[test]
fn a_container_never_goes_under_an_object() {
    for seed in 0..40 {
        let mut rig = Rig::new(1, 100 + seed);
        let store = rig.store();
        let put = |n: u64| {
            let store = store.clone();
            Box::pin(async move {
                let mut writer = store.writer(&path(&format!("o{n}")), None).await?;
                writer.write(bytes(n, 100)).await?;
                writer.commit(PutSpec::default()).await.map(|_| true)
            }) as Pin<Box<dyn Future<Output = Result<bool, Error>>>>
        };
        let remove = || {
            let store = store.clone();
            Box::pin(async move { Ok(store.delete_container("AUTH_a", "c").await? == Deleted::Gone) })
                as Pin<Box<dyn Future<Output = Result<bool, Error>>>>
        };
        let mut calls = Vec::new();
        for n in 0..6 {
            calls.push(if n == seed % 6 { remove() } else { put(n) });
        }
        let results = together(&mut rig, calls);
        let removed = matches!(results[usize::try_from(seed % 6).unwrap()], Ok(true));
        let stands = rig.run(store.container("AUTH_a", "c")).unwrap().is_some();
        assert_eq!(stands, !removed, "seed {seed}");
        let lines = rig.count(0, Table::Rows) - if stands { 2 } else { 1 };
        assert!(!removed || lines == 0, "seed {seed}: {lines} lines without a container");
        assert_eq!(rig.count(0, Table::Objects), lines, "seed {seed}");
    }
}

#[test]
fn a_full_disk_refuses_puts_takes_deletes_and_serves_again() {
    let mut rig = Rig::new(1, 25);
    let mut stored = Vec::new();
    let refused = (0..300).find(|n| {
        let name = format!("o{n}");
        match rig.try_put(&path(&name), &bytes(*n, 2 << 20), PutSpec::default()) {
            Ok(_) => {
                stored.push(*n);
                false
            }
            Err(Error::NoSpace) => true,
            Err(e) => panic!("{e}"),
        }
    });
    assert!(refused.is_some() && stored.len() > 20, "{}", stored.len());
    assert_eq!(rig.get("o0"), Some(bytes(0, 2 << 20)));
    for n in &stored {
        assert_eq!(rig.delete(&format!("o{n}")), Deleted::Gone);
    }
    assert_eq!(rig.totals(), [0; 4]);
    for _ in 0..40 {
        let handle = rig.handle(0);
        let Some(victim) = handle.victim(&[]) else { break };
        rig.run(handle.clean(victim)).unwrap();
        rig.run(handle.checkpoint()).unwrap();
        for _ in 0..5 {
            rig.turn();
        }
    }
    rig.put("again", &bytes(1, 2 << 20));
}

/// Two chunks of an upload; its commit.
fn upload(rig: &mut Rig, replica: &Arc<dyn Replica>, id: [u8; 16]) -> Draft {
    let hash = hash_of(&path("o"));
    for number in 0..2 {
        let (key, meta, data) = (id.to_vec(), hash.to_vec(), bytes(1, 1 << 20));
        let chunk = Draft { kind: Kind::Chunk, deleted: false, sequence: 1, number, key, meta, data };
        rig.run(replica.append(vec![chunk], Durability::Appended, Class::Client)).unwrap();
    }
    let info = ObjectInfo {
        timestamp: Timestamp(2),
        data_timestamp: Timestamp(2),
        size: 2 << 20,
        md5: [0; 16],
        blake3: [0; 32],
        content_type: String::new(),
        delete_at: None,
        listed: ListedAs::default(),
        headers: Headers::default(),
    };
    let chunked = Some(Chunked { data_id: id, count: 2 });
    let (fragment, intent) = (None, None);
    let meta = ObjectMeta { path: path("o"), info, chunked, chunk_size: 1 << 20, fragment, intent };
    object_draft(hash, &meta, bytes::Bytes::new())
}

/// Nobody waits for a commit any more, and its upload is to be given up.
fn leave<F>(replica: &Arc<dyn Replica>, id: [u8; 16], commit: F, first_told: bool) {
    if first_told {
        replica.abandon(id, 3);
        drop(commit);
    } else {
        drop(commit);
        replica.abandon(id, 3);
    }
}

/// A large PUT waited for the disk's queue with its commit when its client went. The body was then never given up: it stayed until the next
/// start, in an overload one after the other.
#[test]
fn a_commit_that_nobody_waits_for_any_more_leaves_nothing_of_its_body() {
    for first_told in [true, false] {
        let mut rig = Rig::new(1, 29);
        let (replica, handle, id) = (rig.store().replicas()[0].clone(), rig.handle(0), [3; 16]);
        let commit = upload(&mut rig, &replica, id);
        let mut context = Context::from_waker(Waker::noop());
        let mut rooms = Vec::new();
        loop {
            let mut room = Box::pin(handle.room(1 << 20, Class::Client));
            match room.as_mut().poll(&mut context) {
                Poll::Ready(room) => rooms.push(room),
                Poll::Pending => break,
            }
        }
        let mut commit = replica.append(vec![commit], Durability::Durable, Class::Client);
        assert!(commit.as_mut().poll(&mut context).is_pending());
        leave(&replica, id, commit, first_told);
        drop(rooms);
        for _ in 0..30 {
            rig.turn();
        }
        assert_eq!(rig.count(0, Table::Chunks), 0, "told first: {first_told}");
    }
}

/// The same of one that was in the queue already, where the disk was full when its turn came: nobody was there to end it.
#[test]
fn a_commit_that_fails_in_the_queue_when_nobody_waits_for_it_leaves_nothing_of_its_body() {
    let mut rig = Rig::new(1, 30);
    let (replica, handle) = (rig.store().replicas()[0].clone(), rig.handle(0));
    let uploads = [([3; 16], true), ([4; 16], false)];
    let commits = uploads.map(|(id, _)| upload(&mut rig, &replica, id));
    let (data, mut number) = (bytes(1, 1 << 20), 0);
    let mut fill = || {
        number += 1;
        let (key, meta, data) = (vec![5; 16], hash_of(&path("p")).to_vec(), data.clone());
        let chunk = Draft { kind: Kind::Chunk, deleted: false, sequence: 1, number, key, meta, data };
        replica.append(vec![chunk], Durability::Appended, Class::Client)
    };
    while handle.has_slack() {
        rig.run(fill()).unwrap();
    }
    // Five segments are left to clients, and the one that is open: room for some of what is queued then.
    for _ in 0..80 {
        rig.run(fill()).unwrap();
    }
    let mut context = Context::from_waker(Waker::noop());
    let mut queued = |mut append: BoxFuture<'static, Result<(), Error>>| {
        assert!(append.as_mut().poll(&mut context).is_pending());
        append
    };
    let others: Vec<_> = (0..30).map(|_| queued(fill())).collect();
    for ((id, first_told), commit) in uploads.into_iter().zip(commits) {
        let commit = queued(replica.append(vec![commit], Durability::Durable, Class::Client));
        leave(&replica, id, commit, first_told);
    }
    let ends: Vec<_> = others.into_iter().map(|other| rig.run(other)).collect();
    assert!(matches!(ends.last(), Some(Err(Error::NoSpace))), "{ends:?}");
    for _ in 0..30 {
        rig.turn();
    }
    assert!(catalog::version(handle.index(), &hash_of(&path("o"))).unwrap().is_none());
    for (id, first_told) in uploads {
        assert!(!catalog::has_chunks(handle.index(), &id, 2).unwrap(), "told first: {first_told}");
    }
}
