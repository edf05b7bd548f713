//! Deletes that come late, twice, or from whoever led before: what was made anew meanwhile is left alone.

use std::task::{Context, Waker};
use std::time::Duration;

use super::service::{AskedFor, NamesRequest};
use super::tests::{GROUP, NODES, World, absent, new_line};
use super::{Answer, Ask, GRANT_TIME, NamesAnswer};
use crate::clock::Timestamp;
use crate::disk::Class;
use crate::net::SimFaults;
use crate::object::objects::unlisted;
use crate::object::tests::rig::{START, all, any, path};
use crate::object::{Condition, Deleted, Error, ObjectPath, PutSpec, Result, hash_of};
use crate::work::{Expirer, Outcome, Reaper, Worker};

impl World {
    fn make(&mut self, container: &str) -> Timestamp {
        let store = self.nodes[2].store.clone();
        let made = self.run(store.put_container("AUTH_a", container, 0, |_| Ok(Default::default())));
        made.unwrap();
        self.run(store.container("AUTH_a", container)).unwrap().unwrap().created
    }

    fn deleted(&mut self, ask: &Ask) -> Deleted {
        let names = self.nodes[2].names.clone();
        match self.run(names.ask(ask.clone())).unwrap() {
            Answer::Deleted(deleted) => deleted,
            other => panic!("{other:?}"),
        }
    }

    fn finish(&mut self, worker: &mut dyn Worker) {
        while let Outcome::Did(_) = self.run(worker.step(10)) {}
    }

    /// Polls so often, and lets time go on; whether it came to its end.
    fn begin(&mut self, future: &mut (impl Future<Output = Outcome> + Unpin), polls: usize) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..polls {
            if std::pin::Pin::new(&mut *future).poll(&mut context).is_ready() {
                return true;
            }
            self.turn();
        }
        false
    }
}

/// Who deletes asks again when it hears nothing, and messages come twice: the first had its effect, and somebody made the name anew.
#[test]
fn a_delete_that_comes_twice_leaves_alone_what_was_made_anew() {
    let mut world = World::new(21, SimFaults::NONE);
    let (account, container) = ("AUTH_a".to_owned(), "c".to_owned());
    let store = world.nodes[2].store.clone();
    let created = world.run(store.container("AUTH_a", "c")).unwrap().unwrap().created;
    let delete = Ask::DeleteContainer { account: account.clone(), container, created };
    assert_eq!(world.deleted(&delete), Deleted::Gone);
    let anew = world.make("c");
    assert_eq!(world.deleted(&delete), Deleted::Absent);
    assert_eq!(world.run(store.container("AUTH_a", "c")).unwrap().unwrap().created, anew);

    let created = world.run(store.account("AUTH_a")).unwrap().unwrap().created;
    assert_eq!(world.run(store.delete_container("AUTH_a", "c")).unwrap(), Deleted::Gone);
    let mark = Ask::MarkAccount { account: account.clone(), created };
    assert_eq!(world.deleted(&mark), Deleted::Gone);
    assert_eq!(world.deleted(&Ask::RemoveMarked { account }), Deleted::Gone);
    world.make("c");
    assert_eq!(world.deleted(&mark), Deleted::Absent);
    assert!(!world.run(store.account("AUTH_a")).unwrap().unwrap().deleted);
}

/// Another node leads, reaps the account to its end, and clients make it anew, while the reaper of the node that led is anywhere in
/// its work.
#[test]
fn a_reaper_that_comes_late_leaves_alone_what_was_made_anew() {
    let mut came = 0;
    for polls in (1..).step_by(3) {
        let mut world = World::new(22, SimFaults::NONE);
        world.make("d");
        let names = ["o0", "o1", "o2"];
        for name in names {
            world.put(2, name, b"old", Condition::default()).unwrap();
        }
        let store = world.nodes[2].store.clone();
        assert_eq!(world.run(store.delete_account("AUTH_a")).unwrap(), Deleted::Gone);
        let mut late = Reaper::new(world.nodes[0].store.clone());
        let mut step = late.step(10);
        if world.begin(&mut step, polls) {
            break;
        }
        came += 1;
        world.lead(Some(1));
        let mut reaper = Reaper::new(world.nodes[1].store.clone());
        world.finish(&mut reaper);
        assert!(world.run(store.account("AUTH_a")).unwrap().is_none(), "after {polls} polls");
        world.make("c");
        world.make("d");
        for name in names {
            world.put(2, name, b"new", Condition::default()).unwrap();
        }
        let _either = world.run(step);
        assert_eq!(world.listing(2, all()), names, "after {polls} polls");
        for name in names {
            assert_eq!(world.get(2, name).unwrap(), "new", "after {polls} polls");
        }
        assert!(world.run(store.container("AUTH_a", "d")).unwrap().is_some(), "after {polls} polls");
    }
    assert!(came > 10, "{came}");
}

/// Its claim runs out while it is stopped anywhere in its work, and a client writes the object anew.
#[test]
fn an_expirer_that_comes_late_leaves_alone_what_was_written_anew() {
    let mut came = 0;
    for polls in 1.. {
        let mut world = World::new(23, SimFaults::NONE);
        world.lead(Some(1));
        put_expiring(&mut world, "o", b"old", START + 100).unwrap();
        world.rig.advance(1000);
        let mut late = Expirer::new(world.nodes[0].store.clone(), 0);
        let mut step = late.step(10);
        if world.begin(&mut step, polls) {
            break;
        }
        came += 1;
        world.pass(GRANT_TIME + Duration::from_secs(1));
        world.put(2, "o", b"new", Condition::default()).unwrap();
        let _either = world.run(step);
        assert_eq!(world.get(2, "o").unwrap(), "new", "after {polls} polls");
        assert_eq!(world.listing(2, all()), ["o"], "after {polls} polls");
    }
    assert!(came > 10, "{came}");
}

/// A version with a time that nobody acknowledged stays in its disk's queue: as many as are looked at in one step were all that ever was.
#[test]
fn what_stays_in_an_expirer_s_queue_keeps_nobody_behind_it() {
    let mut world = World::new(25, SimFaults::NONE);
    for n in 0..12 {
        put_expiring(&mut world, &format!("o{n:02}"), b"old", START + 100 + n).unwrap();
    }
    let names = world.nodes[2].names.clone();
    let id = world.make("c").0;
    for n in 0..9 {
        // As if its writer had been lost before it made the line.
        let grant = world.run(names.begin(path(&format!("o{n:02}")), None)).unwrap();
        let line = unlisted(id, grant.at, false);
        world.run(names.settle(grant, line, Class::Delete)).unwrap();
    }
    world.rig.advance(1000);
    let mut expirer = Expirer::new(world.nodes[0].store.clone(), 0);
    for _ in 0..4 {
        assert!(matches!(world.run(expirer.step(3)), Outcome::Did(3)));
    }
    assert!(world.listing(2, all()).is_empty());
    assert_eq!(expirer.progress().done, 3);
    assert!(matches!(world.run(expirer.step(3)), Outcome::Idle));
}

/// A group without a leader is waited for once in a pass, not once for each of its accounts.
#[test]
fn an_expirer_waits_once_for_a_group_that_is_away() {
    let mut world = World::new(26, SimFaults::NONE);
    for n in 0..10 {
        let path = ObjectPath { account: format!("AUTH_{n}").into(), ..path("o") };
        let store = world.nodes[2].store.clone();
        world.run(store.put_container(&path.account, "c", 0, |_| Ok(Default::default()))).unwrap();
        put_expiring_at(&mut world, &path, b"old", START + 100 + n).unwrap();
    }
    world.rig.advance(1000);
    let mut expirer = Expirer::new(world.nodes[0].store.clone(), 0);
    world.lead(None);
    let began = world.sim.net.now();
    assert!(matches!(world.run(expirer.step(1)), Outcome::Did(1)));
    let first = world.sim.net.now() - began;
    assert!(first > Duration::from_secs(1), "it did not wait: {first:?}");
    assert!(matches!(world.run(expirer.step(20)), Outcome::Did(9)));
    let all = world.sim.net.now() - began;
    assert!(all < first * 2, "{all:?} for ten accounts, {first:?} for one");
    assert!(matches!(world.run(expirer.step(20)), Outcome::Failed(_)));
    world.lead(Some(1));
    assert!(matches!(world.run(expirer.step(20)), Outcome::Did(10)));
    assert_eq!(expirer.progress().done, 10);
}

/// An object whose devices are away is tried in each pass before the others of its account, which it kept from being removed.
#[test]
fn an_object_whose_devices_are_away_keeps_no_other_of_its_account() {
    let mut world = World::new(27, SimFaults::NONE);
    world.make("d");
    put_expiring(&mut world, "o", b"old", START + 100).unwrap();
    let other = ObjectPath { container: "d".into(), ..path("o") };
    put_expiring_at(&mut world, &other, b"old", START + 200).unwrap();
    let (store, names, id) = (world.nodes[2].store.clone(), world.nodes[2].names.clone(), world.make("c").0);
    let grant = world.run(names.begin(path("o"), None)).unwrap();
    let line = unlisted(id, grant.at, false);
    world.run(names.settle(grant, line, Class::Delete)).unwrap();
    assert_eq!(world.run(store.delete_container("AUTH_a", "c")).unwrap(), Deleted::Gone);
    world.run(store.put_container("AUTH_a", "c", 5, |_| Ok(Default::default()))).unwrap();
    let grant = world.run(names.begin(path("o"), None)).unwrap();
    let line = new_line(grant.line.container.unwrap().id, grant.at, false);
    world.run(names.settle(grant, line, Class::Client)).unwrap();
    world.rig.advance(1000);
    let mut expirer = Expirer::new(world.nodes[0].store.clone(), 0);
    assert!(matches!(world.run(expirer.step(10)), Outcome::Did(2)));
    assert_eq!(expirer.progress().done, 1);
    assert!(matches!(world.run(expirer.step(10)), Outcome::Failed(_)));
    assert!(world.run(store.list_objects("AUTH_a", "d", &all())).unwrap().is_empty());
}

fn put_expiring(world: &mut World, name: &str, body: &'static [u8], delete_at: u64) -> Result<()> {
    put_expiring_at(world, &path(name), body, delete_at)
}

fn put_expiring_at(world: &mut World, path: &ObjectPath, body: &'static [u8], delete_at: u64) -> Result<()> {
    let (store, path) = (world.nodes[2].store.clone(), path.clone());
    world.run(async move {
        let mut writer = store.writer(&path, Some(body.len() as u64)).await?;
        writer.write(bytes::Bytes::from_static(body)).await?;
        writer.commit(PutSpec { delete_at: Some(delete_at), ..PutSpec::default() }).await.map(drop)
    })
}

/// A device hears of a tombstone before the version that it buries, of each twice, and of the version again when the tombstone has gone.
#[test]
fn a_version_that_arrives_behind_its_tombstone_is_not_there() {
    let mut world = World::new(24, SimFaults::NONE);
    let store = world.nodes[2].store.clone();
    let now = world.put(2, "other", b"other", Condition::default()).unwrap().timestamp.0;
    let (written, deleted) = (Timestamp(now + 1), Timestamp(now + 2));
    for round in 0..2 {
        world.delete_unlisted("o", deleted);
        world.write_unlisted("o", b"late", written);
        let version = world.device.version(hash_of(&path("o")));
        let version = world.run(version).unwrap().unwrap();
        assert_eq!((version.sequence, version.deleted), (deleted.0, true), "round {round}");
    }
    // Where nothing is known of its tombstone any more.
    world.write_unlisted("reclaimed", b"late", written);
    for name in ["o", "reclaimed"] {
        assert_eq!(world.get(2, name), None, "{name}");
        let gone = world.run(store.delete_object(&path(name), &Condition::default())).unwrap();
        assert_eq!(gone, Deleted::Absent, "{name}");
        assert_eq!(world.listing(2, all()), ["other"]);
    }
    for name in ["o", "reclaimed"] {
        world.put(2, name, b"anew", absent()).unwrap();
        world.write_unlisted(name, b"late", written);
        world.delete_unlisted(name, deleted);
        assert_eq!(world.get(2, name).unwrap(), "anew", "{name}");
    }
    assert_eq!(world.listing(2, all()), ["o", "other", "reclaimed"]);
}

/// A PUT made its line, and the answer was lost; the object was deleted, and then the container. Asked again, it was told that there
/// is no container, as if it had done nothing (seed 43 of `quarry-fuzz cluster`).
#[test]
fn a_put_whose_line_went_with_its_container_is_not_told_that_there_was_none() {
    for (follower, anew) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut world = World::new(26, SimFaults::NONE);
        let names = world.nodes[2].names.clone();
        let grant = world.run(names.begin(path("o"), None)).unwrap();
        let (id, at) = (grant.line.container.unwrap().id, grant.at);
        world.write_unlisted("o", b"body", at);
        world.sim.net.cut(NODES[0], NODES[2]);
        let mut settle = names.settle(grant, new_line(id, at, false), Class::Client);
        let inner = world.nodes[0].store.inner.clone();
        let mut context = Context::from_waker(Waker::noop());
        while world.run(inner.line(&path("o"))).unwrap().at.is_none() {
            assert!(settle.as_mut().poll(&mut context).is_pending());
            world.turn();
        }
        if follower {
            world.lead(Some(1));
        }
        let store = world.nodes[usize::from(follower)].store.clone();
        let deleted = world.run(store.delete_object(&path("o"), &Condition::default()));
        assert_eq!(deleted.unwrap(), Deleted::Gone);
        assert_eq!(world.run(store.delete_container("AUTH_a", "c")).unwrap(), Deleted::Gone);
        world.sim.net.heal();
        if anew {
            world.make("c");
        }
        let settled = world.run(settle);
        assert!(matches!(settled, Err(Error::GrantLost { unused: false })), "{settled:?}");
    }
}

/// The same where the leader itself knows that it has settled the grant.
#[test]
fn a_grant_that_was_settled_before_its_container_went_is_not_said_to_have_none() {
    let mut world = World::new(27, SimFaults::NONE);
    let service = world.nodes[0].service.clone().unwrap();
    let ask = |what| service.answer(NODES[2], NamesRequest { group: GROUP, follows: None, what });
    let (lease, path) = (1, path("o"));
    let begun = world.run(ask(AskedFor::Begin { lease, path: path.clone(), given: None })).unwrap();
    let NamesAnswer::Begun { line, at } = begun else { panic!("{begun:?}") };
    let new = new_line(line.container.unwrap().id, at, false);
    let settle =
        AskedFor::Settle { lease, path: path.clone(), before: None, line: new, class: Class::Client };
    world.write_unlisted("o", b"body", at);
    assert_eq!(world.run(ask(settle.clone())).unwrap(), NamesAnswer::Done);
    let store = world.nodes[0].store.clone();
    world.run(store.delete_object(&path, &Condition::default())).unwrap();
    assert_eq!(world.run(store.delete_container("AUTH_a", "c")).unwrap(), Deleted::Gone);
    let again = world.run(ask(settle));
    assert!(matches!(again, Err(Error::GrantLost { unused: false })), "{again:?}");
}

/// Whoever led was lost between a DELETE's tombstones and its line; the next leader let a POST keep the body, of a device that had not
/// heard of the tombstone, or a PUT stand on the version. The DELETE was told that it is gone (seed 1738 of `quarry-fuzz cluster`).
#[test]
fn a_delete_that_comes_late_is_not_told_that_what_stands_is_gone() {
    for node in [2, 0] {
        for (name, first) in [("posted", true), ("put", true), ("new", false)] {
            let mut world = World::new(28, SimFaults::NONE);
            if first {
                world.put(1, name, b"first", Condition::default()).unwrap();
            }
            let names = world.nodes[node].names.clone();
            let grant = world.run(names.begin(path(name), None)).unwrap();
            let line = unlisted(grant.line.container.unwrap().id, grant.at, false);
            world.lead(Some(1));
            if name == "posted" {
                let store = world.nodes[1].store.clone();
                world.run(store.post_object(&path(name), |_| Ok(Default::default()))).unwrap();
            } else {
                let if_match = if first { any() } else { None };
                world.put(1, name, b"then", Condition { if_match, ..Condition::default() }).unwrap();
            }
            let settled = world.run(names.settle(grant, line, Class::Delete));
            if first {
                let said = matches!(settled, Err(Error::GrantLost { unused: false }));
                assert!(said, "{name} at {node}: {settled:?}");
            } else {
                settled.unwrap_or_else(|error| panic!("{name} at {node}: {error:?}"));
            }
            assert_eq!(world.listing(1, all()), [name]);
            assert!(world.get(2, name).is_some(), "{name} at {node}");
        }
    }
}

/// A POST was granted by the next leader on what stood before a PUT, came to a device, and was lost before its line. The PUT, whose grant
/// the first leader gave, made its line and was acknowledged; then a reader made the POST's, with the body from before.
#[test]
fn a_put_that_comes_late_is_not_acknowledged_where_a_lost_post_took_its_place() {
    for (node, conditional, changes) in
        [(2, false, true), (0, false, true), (2, true, true), (2, false, false), (2, true, false)]
    {
        let mut world = World::new(29, SimFaults::NONE);
        world.put(1, "o", b"first", Condition::default()).unwrap();
        let names = world.nodes[node].names.clone();
        let grant = world.run(names.begin(path("o"), None)).unwrap();
        let (id, at) = (grant.line.container.unwrap().id, grant.at);
        if changes {
            world.lead(Some(1));
        } else {
            world.pass(GRANT_TIME + Duration::from_secs(1));
        }
        let names_of_poster = world.nodes[1].names.clone();
        let post = world.run(names_of_poster.begin(path("o"), None)).unwrap();
        assert!(post.at > at);
        world.write_unlisted("o", b"first", post.at);
        drop(post);
        let settled = world.run(names.settle(grant, new_line(id, at, conditional), Class::Client));
        let case = format!("{node} {conditional} {changes}: {settled:?}");
        assert!(matches!(settled, Err(Error::GrantLost { unused: false })), "{case}");
        assert_eq!(world.get(2, "o").unwrap(), "first", "{case}");
        world.put(2, "o", b"third", Condition::default()).unwrap();
        assert_eq!(world.get(2, "o").unwrap(), "third", "{case}");
    }
}

/// The same where a reader that did not find the POST's version has made the PUT's line already.
#[test]
fn a_put_whose_line_a_reader_made_is_not_acknowledged_where_a_lost_post_took_its_place() {
    let mut world = World::new(30, SimFaults::NONE);
    world.put(1, "o", b"first", Condition::default()).unwrap();
    let names = world.nodes[2].names.clone();
    let grant = world.run(names.begin(path("o"), None)).unwrap();
    let (id, at) = (grant.line.container.unwrap().id, grant.at);
    world.write_unlisted("o", b"second", at);
    world.lead(Some(1));
    let next = world.nodes[1].names.clone();
    let post = world.run(next.begin(path("o"), None)).unwrap();
    drop(post);
    assert_eq!(world.get(1, "o").unwrap(), "second");
    let settled = world.run(names.settle(grant, new_line(id, at, false), Class::Client));
    assert!(matches!(settled, Err(Error::GrantLost { unused: false })), "{settled:?}");
}

/// What was granted before a PUT, or for another name, and what was granted to a reader who made the PUT's own line, is in nobody's way.
#[test]
fn a_put_that_comes_late_is_acknowledged_where_nothing_took_its_place() {
    for (name, relisted) in [("o", false), ("p", false), ("q", true)] {
        let mut world = World::new(31, SimFaults::NONE);
        world.put(1, name, b"first", Condition::default()).unwrap();
        let names = world.nodes[2].names.clone();
        drop(world.run(names.begin(path(name), None)).unwrap());
        let grant = world.run(names.begin(path(name), None)).unwrap();
        let (id, at) = (grant.line.container.unwrap().id, grant.at);
        world.write_unlisted(name, b"second", at);
        world.lead(Some(1));
        drop(world.run(names.begin(path("another"), None)).unwrap());
        if relisted {
            assert_eq!(world.get(2, name).unwrap(), "second");
        }
        world.run(names.settle(grant, new_line(id, at, false), Class::Client)).unwrap();
        assert_eq!(world.get(2, name).unwrap(), "second");
    }
}
