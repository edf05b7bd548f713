//! Volumes of a disk that is away: what the roll says of them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use quarry_engine::block::VolumeId;
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::VolumeCall;
use quarry_engine::object::BoxFuture;

use super::replicas::At;
use super::rig::{Rig, keys, label, locked};
use crate::KeyName;
use crate::member::Refusal;
use crate::store::{Members, Noted, Roll, VolumeError, Volumes};

/// What was written last; `None`: nothing can be written.
#[derive(Debug)]
struct Kept(Mutex<Option<Vec<Noted>>>, AtomicUsize);

impl Kept {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(Vec::new())), AtomicUsize::new(0)))
    }

    fn all(&self) -> Vec<Noted> {
        self.0.lock().unwrap().clone().unwrap()
    }

    fn names(&self) -> Vec<(u8, Option<String>)> {
        self.all().into_iter().map(|noted| (noted.id.0[0], noted.name)).collect()
    }
}

impl Roll for Kept {
    fn write(&self, all: Vec<Noted>) -> BoxFuture<'static, std::io::Result<()>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        let mut kept = self.0.lock().unwrap();
        let written = kept.as_mut().map(|kept| *kept = all);
        Box::pin(std::future::ready(written.ok_or_else(|| std::io::Error::other("full"))))
    }
}

fn named(id: u8, name: &str) -> (u8, Option<String>) {
    (id, Some(name.to_owned()))
}

#[test]
fn the_roll_has_every_volume_before_it_is_made() {
    let mut rig = Rig::new(1);
    let kept = Kept::new();
    let volumes =
        Volumes::open(vec![rig.handle()]).unwrap().with_keys(keys()).with_roll(kept.clone(), vec![]);
    rig.run(volumes.note()).unwrap();
    rig.run(volumes.note()).unwrap();
    assert_eq!(kept.1.load(Ordering::Relaxed), 1, "that there is none is written too, and once");
    rig.run(volumes.create(VolumeId([1; 16]), locked("one"))).unwrap();
    rig.run(volumes.create(VolumeId([2; 16]), label("two"))).unwrap();
    assert_eq!(kept.names(), [named(1, "one"), named(2, "two")]);
    rig.run(volumes.rename("two", "deux")).unwrap();
    assert_eq!(kept.names(), [named(1, "one"), named(2, "deux")]);
    let was = kept.0.lock().unwrap().take();
    let refused = rig.run(volumes.create(VolumeId([3; 16]), label("three")));
    assert!(matches!(refused, Err(VolumeError::Register(_))), "what is not noted is not made");
    assert!(volumes.find("three").is_err());
    *kept.0.lock().unwrap() = was;
    // What stays for its clones needs its key, and has no name.
    rig.run(volumes.snapshot("one", "s", 1)).unwrap();
    rig.run(volumes.clone_snapshot(VolumeId([4; 16]), label("clone"), "one", "s")).unwrap();
    rig.run(volumes.let_go("one")).unwrap();
    rig.run(volumes.note()).unwrap();
    assert_eq!(kept.names(), [(1, None), named(2, "deux"), named(4, "clone")]);
    assert_eq!(kept.all()[0].key, Some(KeyName::of(&[5; 32])));
    rig.run(volumes.delete("deux")).unwrap();
    assert_eq!(kept.names(), [(1, None), named(4, "clone")]);
}

/// A volume of a disk that was missing at the start was none: its name went to another one, and `delete` said that it was gone.
#[test]
fn a_volume_of_a_disk_that_is_away_is_refused_and_not_made_anew() {
    let mut rig = Rig::new(2);
    let (device, key) = (DeviceId([8; 16]), Some(KeyName::of(&[5; 32])));
    let away = Noted { device, id: VolumeId([1; 16]), key, name: Some("vol".to_owned()) };
    let kept = Kept::new();
    let volumes = Volumes::open(vec![rig.handle()]).unwrap().with_keys(keys());
    let volumes = volumes.with_roll(kept.clone(), vec![away.clone()]);
    rig.run(volumes.note()).unwrap();
    assert_eq!(kept.all(), std::slice::from_ref(&away), "it stays in the roll");
    let is_away =
        |error: VolumeError| matches!(error, VolumeError::Away(name, on) if name == "vol" && on == device);
    assert!(volumes.has("vol") && is_away(volumes.find("vol").unwrap_err()) && volumes.list().is_empty());
    assert!(is_away(rig.run(volumes.attach("vol")).unwrap_err()));
    assert!(is_away(rig.run(volumes.delete("vol")).unwrap_err()));
    assert!(is_away(rig.run(volumes.let_go("vol")).unwrap_err()));
    assert!(is_away(rig.run(volumes.create(VolumeId([2; 16]), label("vol"))).unwrap_err()), "its name");
    assert!(is_away(rig.run(volumes.create(VolumeId([1; 16]), label("new"))).unwrap_err()), "its identity");
    rig.run(volumes.create(VolumeId([3; 16]), label("new"))).unwrap();
    assert!(matches!(rig.run(volumes.rename("new", "vol")), Err(VolumeError::Taken(_))));
    let never = || -> Result<(), VolumeError> { unreachable!("it is needed") };
    assert!(!rig.run(volumes.unless_wrapped(KeyName::of(&[5; 32]), never)).unwrap());
    assert_eq!(kept.names(), [named(1, "vol"), named(3, "new")]);
}

/// A disk came back that had been given up, and its volumes' names were others' by then: a client got whichever the map gave first.
#[test]
fn of_two_volumes_of_one_name_the_one_that_was_there_keeps_it() {
    let mut rig = Rig::new(3);
    let open = |rig: &Rig| Volumes::open(vec![rig.handle()]).unwrap().with_keys(keys());
    // Neither knows what the other makes, as if each were on a disk of its own.
    let (one, other) = (open(&rig), open(&rig));
    for name in ["vol", "on-its-way"] {
        let (low, high) = if name == "vol" { (1, 2) } else { (3, 4) };
        rig.run(other.create(VolumeId([low; 16]), label(name))).unwrap();
        rig.run(one.create(VolumeId([high; 16]), label(name))).unwrap();
    }
    let noted = Noted {
        device: rig.handle().device(),
        id: VolumeId([2; 16]),
        key: None,
        name: Some("vol".to_owned()),
    };
    let both = open(&rig);
    assert_eq!(rig.run(both.part_namesakes(&[noted], |name| name == "vol")), 1);
    let found = |volumes: &Volumes| {
        let all = volumes.list().into_iter().map(|volume| (volume.id.0[0], volume.label.name));
        let mut all: Vec<_> = all.collect();
        all.sort_unstable();
        all
    };
    let expected = [(1, "vol-01010101"), (2, "vol"), (3, "on-its-way"), (4, "on-its-way")];
    assert!(found(&both).iter().map(|(id, name)| (*id, name.as_str())).eq(expected), "{:?}", found(&both));
    assert_eq!(both.find("vol").unwrap().id, VolumeId([2; 16]));
    // Nothing is left to be parted; a name of a disk that is away is nobody else's.
    let again = open(&rig);
    assert_eq!(rig.run(again.part_namesakes(&[], |name| name == "vol")), 0);
    assert_eq!(found(&again), found(&both));
    let away =
        Noted { device: DeviceId([8; 16]), id: VolumeId([9; 16]), key: None, name: Some("vol".to_owned()) };
    let again = open(&rig).with_roll(Kept::new(), vec![away]);
    assert_eq!(rig.run(again.part_namesakes(&[], |name| name == "vol")), 1);
    assert_eq!(again.with_id(VolumeId([2; 16])).unwrap().label.name, "vol-02020202");
}

/// Whoever asks a member whose disk is away hears that it is out: not that nothing was promised, as of one that is to promise anew.
#[test]
fn a_member_whose_disk_is_away_is_out() {
    let mut at = At::new(3);
    at.promise(1);
    at.members = Arc::new(Members::open(Vec::new()).unwrap());
    for call in [VolumeCall::Confirm, VolumeCall::Promise, VolumeCall::Delete] {
        assert_eq!(at.refused(call), Refusal::Out);
    }
}
