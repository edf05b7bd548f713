//! Names of a container whose lines are in several groups: as if they were in one. One node has all groups, on one disk.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::{Answer, Ask, Divided, Grant, Line, Names, NamesService, NewLine, Seats};
use crate::catalog::{Belongs, ListedEtag, ListingValue, ObjectCatalog};
use crate::clock::{Clock, Timestamp};
use crate::consensus::{Group, GroupOptions, Groups, Settings, SimRuntime, Split};
use crate::disk::format::record::DeviceId;
use crate::disk::format::superblock::ClusterId;
use crate::disk::{Class, Format, SimulatedDisk, format};
use crate::index::{MemoryIndex, Range};
use crate::io::{SimImage, SplitMix64};
use crate::net::{Code, Failure, NodeId, Request, Response, Service, SimFaults, SimNet};
use crate::object::listing::{Sorted, page};
use crate::object::replica::BoxFuture;
use crate::object::{
    Deleted, Entry, Error, IndexPolicy, Listing, ObjectPath, ObjectRow, Options, Result, Voter,
};

const NODE: NodeId = NodeId([1; 16]);

struct Nothing;

impl Service for Nothing {
    fn handle(&self, _: NodeId, _: Request) -> BoxFuture<'static, Response> {
        Box::pin(std::future::ready(Response::Failed(Failure::new(Code::NotServed, "nothing"))))
    }
}

pub(super) type Voters = Arc<Mutex<BTreeMap<u32, Voter>>>;

#[derive(Clone)]
pub(super) struct Keeper {
    pub(super) groups: Groups,
    options: GroupOptions,
    clock: Arc<Clock>,
    seats: Seats,
    pub(super) voters: Voters,
}

impl Keeper {
    async fn open(&self, number: u32) {
        let group = self.groups.open(number, self.options.clone()).await.unwrap();
        let voter = Voter::new(group, self.clock.clone());
        self.voters.lock().unwrap().insert(number, voter.clone());
        let since = Arc::new(|| Duration::ZERO);
        let options = Options::default();
        self.seats.take(NamesService::new(number, Arc::new(voter), self.clock.clone(), &options, since));
    }

    async fn run(self) {
        loop {
            for over in self.groups.over() {
                self.seats.end(over);
                self.voters.lock().unwrap().remove(&over);
            }
            for given in self.groups.all().iter().flat_map(Group::given) {
                match self.groups.get(given.group) {
                    None => self.open(given.group).await,
                    Some(child) if child.status().term == 0 => child.elect_first().await.unwrap(),
                    Some(_) => {}
                }
            }
            self.options.runtime.sleep(Duration::from_millis(2)).await;
        }
    }
}

pub(super) struct World {
    pub(super) runtime: SimRuntime,
    net: SimNet,
    disk: SimulatedDisk,
    pub(super) keeper: Keeper,
    pub(super) names: Divided,
    /// What was acknowledged of container `c`: names and sizes.
    pub(super) lines: BTreeMap<String, u64>,
}

fn path(name: &str) -> ObjectPath {
    ObjectPath { account: "a".into(), container: "c".into(), object: name.into() }
}

fn value(size: u64) -> Vec<u8> {
    let (etag, content_type) = (ListedEtag::Md5([0; 16]), String::new());
    ListingValue { size, etag, content_type, version: None, key: None, shown: None }.encode()
}

impl World {
    fn new(seed: u64) -> Self {
        let image = SimImage::new(16 * (16 << 20), seed);
        let (cluster, device) = (ClusterId([7; 16]), DeviceId([1; 16]));
        let request = Format { cluster, device, segment_size: Some(16 << 20), overwrite: false };
        format(&mut image.open(), &request).unwrap();
        let index = Arc::new(MemoryIndex::new());
        let mut disk = SimulatedDisk::open(Box::new(image.open()), index, Arc::new(ObjectCatalog)).unwrap().0;
        let (runtime, net) = (SimRuntime::new(seed), SimNet::new(seed, SimFaults::NONE));
        let end = Arc::new(net.start(NODE, Arc::new(Nothing)));
        let handle = disk.handle();
        assert!(disk.run(async move { Group::found(&handle, 1, [NODE].into(), 0).await }).unwrap());
        let wall = AtomicU64::new(1_700_000_000_000_000);
        let clock = Arc::new(Clock::new(Box::new(move || wall.fetch_add(1, Ordering::SeqCst))));
        let (handle, settings) = (disk.handle(), Settings::default());
        let options = GroupOptions { disk: handle, net: end.clone(), settings, runtime: runtime.node(NODE) };
        let (groups, seats, voters) = (Groups::new(), Seats::default(), Voters::default());
        let keeper = Keeper { groups, options, clock, seats: seats.clone(), voters };
        let sleeper = runtime.node(NODE);
        let names = Divided::new(end, Arc::new(move |time| sleeper.sleep(time)), seats, 7);
        names.divide(1);
        let mut world = Self { runtime, net, disk, keeper: keeper.clone(), names, lines: BTreeMap::new() };
        let first = keeper.clone();
        world.run(async move { first.open(1).await });
        world.runtime.spawn(NODE, Box::pin(keeper.run()));
        world.make_container();
        world
    }

    pub(super) fn run<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..400_000 {
            if let Poll::Ready(done) = future.as_mut().poll(&mut context) {
                return done;
            }
            let disk = &mut self.disk;
            self.runtime.turn(&self.net, &mut || disk.turn());
        }
        panic!("stuck at {:?}", self.runtime.now());
    }

    pub(super) fn ask(&mut self, ask: Ask) -> Result<Answer> {
        let asked = self.names.ask(ask);
        self.run(asked)
    }

    pub(super) fn make_container(&mut self) {
        self.put_container(false, None);
    }

    fn put_container(&mut self, post: bool, index: Option<IndexPolicy>) {
        let (account, container, headers) = ("a".to_owned(), "c".to_owned(), Default::default());
        let found = self.ask(Ask::Container { account: account.clone(), container: container.clone() });
        let expect = match found {
            Ok(Answer::Container(Some(found))) => Some(found.changed),
            _ => None,
        };
        let ask = Ask::PutContainer { account, container, policy: 3, headers, expect, post, index };
        assert!(matches!(self.ask(ask), Ok(Answer::Put(super::Put::Done(_)))));
    }

    fn begin(&mut self, name: &str) -> Result<Grant> {
        let begun = self.names.begin(path(name), None);
        self.run(begun)
    }

    fn settle(&mut self, grant: Grant, size: Option<u64>, conditional: bool) -> Result<()> {
        let Some(standing) = grant.line.container else { return Err(Error::NoContainer) };
        let line = NewLine { container: standing.id, at: grant.at, value: size.map(value), conditional };
        let name = grant.path.object.to_string();
        let settled = self.names.settle(grant, line, Class::Client);
        self.run(settled)?;
        match size {
            Some(size) => self.lines.insert(name, size),
            None => self.lines.remove(&name),
        };
        Ok(())
    }

    pub(super) fn put(&mut self, name: &str, size: Option<u64>) {
        let grant = self.begin(name).unwrap();
        self.settle(grant, size, false).unwrap();
    }

    pub(super) fn line(&mut self, name: &str) -> Line {
        match self.ask(Ask::Line { path: path(name) }) {
            Ok(Answer::Line(line)) => line,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn try_split(&mut self, group: u32, child: u32) -> Result<bool> {
        let voter = self.keeper.voters.lock().unwrap()[&group].clone();
        let groups = self.keeper.groups.clone();
        let led = move || groups.get(child).is_some_and(|group| group.status().leads);
        self.run(async move { voter.split("a", "c", child, led).await })
    }

    pub(super) fn delete_container(&mut self) -> Result<Deleted> {
        let (account, container) = ("a".to_owned(), "c".to_owned());
        let ask = Ask::Container { account: account.clone(), container: container.clone() };
        let Answer::Container(found) = self.ask(ask)? else { panic!("no answer") };
        let Some(found) = found else { return Ok(Deleted::Absent) };
        match self.ask(Ask::DeleteContainer { account, container, created: found.created })? {
            Answer::Deleted(deleted) => Ok(deleted),
            other => panic!("{other:?}"),
        }
    }

    /// Counts are those of the lines.
    pub(super) fn check_counts(&mut self) {
        let (objects, bytes) = (self.lines.len() as u64, self.lines.values().sum::<u64>());
        let (account, container) = ("a".to_owned(), "c".to_owned());
        let Ok(Answer::Container(Some(found))) =
            self.ask(Ask::Container { account: account.clone(), container })
        else {
            panic!("no container")
        };
        assert_eq!((found.objects, found.bytes), (objects, bytes));
        let Ok(Answer::Account(Some(found))) = self.ask(Ask::Account { account: account.clone() }) else {
            panic!("no account")
        };
        assert_eq!((found.containers, found.objects, found.bytes), (1, objects, bytes));
        let shares: Vec<_> = found.policies.iter().map(|(policy, s)| (*policy, s.objects, s.bytes)).collect();
        assert_eq!(shares, [(3, objects, bytes)]);
        let listing = Listing { limit: 10, ..Listing::default() };
        let Ok(Answer::Containers(page)) = self.ask(Ask::Containers { account, listing, marked: false })
        else {
            panic!("no containers")
        };
        let [Entry::Row(row)] = &page.entries[..] else { panic!("{page:?}") };
        assert_eq!((row.objects, row.bytes), (objects, bytes));
    }

    pub(super) fn list(&mut self, listing: &Listing) -> Vec<String> {
        let (account, container) = ("a".to_owned(), "c".to_owned());
        let listing = listing.clone();
        match self.ask(Ask::Objects { account, container, listing }) {
            Ok(Answer::Objects(page)) => {
                assert!(!page.cut);
                page.entries.into_iter().map(|entry| said(entry, |row: ObjectRow| row.name)).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    /// Listings of every kind are those of one sorted list.
    pub(super) fn check_listings(&mut self, rng: &mut SplitMix64) {
        let names: Vec<String> = self.lines.keys().cloned().collect();
        for _ in 0..60 {
            let any = |rng: &mut SplitMix64| match rng.below(3) {
                0 => names[rng.index(names.len())].clone(),
                1 => format!("d{}/", rng.below(8)),
                _ => String::new(),
            };
            let listing = Listing {
                prefix: if rng.chance(300) { format!("d{}", rng.below(8)) } else { String::new() },
                delimiter: if rng.chance(500) { "/".to_owned() } else { String::new() },
                marker: any(rng),
                end_marker: any(rng),
                limit: [0, 1, 3, 10, 1000][rng.index(5)],
                reverse: rng.chance(500),
                path: rng.chance(150).then(|| ["", "d3", "d5/"][rng.index(3)].to_owned()),
            };
            let wanted = page(&Reference(&names), &listing).unwrap();
            let wanted: Vec<String> = wanted.into_iter().map(|entry| said(entry, |name| name)).collect();
            assert_eq!(self.list(&listing), wanted, "{listing:?}");
        }
    }
}

fn said<R>(entry: Entry<R>, name: impl Fn(R) -> String) -> String {
    match entry {
        Entry::Row(row) => name(row),
        Entry::Subdir(subdir) => format!("{subdir} rolled up"),
    }
}

struct Reference<'a>(&'a [String]);

impl Sorted for Reference<'_> {
    type Row = String;

    fn scan(&self, range: Range) -> Box<dyn Iterator<Item = Result<(String, String)>> + '_> {
        let within = move |name: &&String| {
            range.from.as_ref().is_none_or(|from| name.as_bytes() >= from.as_slice())
                && range.to.as_ref().is_none_or(|to| name.as_bytes() < to.as_slice())
        };
        let mut names: Vec<String> = self.0.iter().filter(within).cloned().collect();
        if range.reverse {
            names.reverse();
        }
        Box::new(names.into_iter().map(|name| Ok((name.clone(), name))))
    }
}

pub(super) fn filled(seed: u64) -> World {
    let mut world = World::new(seed);
    for n in 0..64u64 {
        // Directories lie over the bounds; some have an object of their own name.
        let name = match n % 8 {
            0 => format!("d{}", n / 8),
            1 => format!("d{}/", n / 8),
            _ => format!("d{}/{}", n / 8, n % 8),
        };
        world.put(&name, Some(n));
    }
    world
}

#[test]
fn names_in_several_groups_are_as_in_one() {
    let mut rng = SplitMix64::new(5);
    let mut world = filled(1);
    for (group, child) in [(1, 20), (1, 21), (20, 22), (21, 23), (22, 24)] {
        assert!(world.try_split(group, child).unwrap(), "{group}");
        world.check_listings(&mut rng);
        world.check_counts();
        for _ in 0..20 {
            let name = format!("d{}/{}", rng.below(8), rng.below(12));
            let size = rng.chance(700).then(|| rng.below(100));
            world.put(&name, size);
            let at = world.line(&name).at;
            assert_eq!(at.is_some(), size.is_some());
        }
        world.check_counts();
    }
    world.check_listings(&mut rng);
    // Who knows nothing finds everything, and each group has its share.
    let sleeper = world.runtime.node(NODE);
    let end = Arc::new(world.net.end_of(NODE));
    world.names = Divided::new(end, Arc::new(move |time| sleeper.sleep(time)), world.keeper.seats.clone(), 8);
    world.names.divide(1);
    world.check_listings(&mut rng);
    world.check_counts();
    let lines: Vec<String> = world.lines.keys().cloned().collect();
    for name in lines {
        assert!(world.line(&name).at.is_some(), "{name}");
    }
    let given: Vec<usize> = world.keeper.groups.all().iter().map(|group| group.given().len()).collect();
    assert_eq!(given, [2, 1, 1, 1, 0, 0]);
}

#[test]
fn a_container_in_several_groups_goes_when_nothing_is_left_in_any() {
    let mut world = filled(2);
    assert!(world.try_split(1, 20).unwrap());
    assert!(world.try_split(20, 21).unwrap());
    assert_eq!(world.delete_container().unwrap(), Deleted::NotEmpty);
    // What was shut for it is open again.
    world.put("d7/x", Some(1));
    let names: Vec<String> = world.lines.keys().cloned().collect();
    for name in &names[..names.len() - 1] {
        world.put(name, None);
    }
    assert_eq!(world.delete_container().unwrap(), Deleted::NotEmpty, "the last one is in the last group");
    world.put(&names[names.len() - 1], None);
    assert_eq!(world.delete_container().unwrap(), Deleted::Gone);
    for name in ["a", "d7/x"] {
        assert_eq!(world.line(name), Line::default());
        assert_eq!(world.begin(name).unwrap().line, Line::default());
    }
    assert_eq!(world.delete_container().unwrap(), Deleted::Absent);
    // Made anew it has nothing to do with those groups.
    world.make_container();
    world.put("d7/x", Some(7));
    world.put("a", Some(8));
    world.check_counts();
    assert_eq!(world.list(&Listing { limit: 10, ..Listing::default() }), ["a", "d7/x"]);
    assert!(world.try_split(1, 22).unwrap());
    world.check_counts();
    assert_eq!(world.delete_container().unwrap(), Deleted::NotEmpty);
}

#[test]
fn a_delete_whose_node_was_lost_is_ended_by_the_next_writer_and_counts_no_more() {
    let mut world = filled(3);
    assert!(world.try_split(1, 20).unwrap());
    let names: Vec<String> = world.lines.keys().cloned().collect();
    names.iter().for_each(|name| world.put(name, None));
    let (account, container) = ("a".to_owned(), "c".to_owned());
    let shut = Ask::Shut { account: account.clone(), container: container.clone(), at: None };
    let Ok(Answer::Holding(holding)) = world.ask(shut) else { panic!() };
    let at = holding.at;
    let child = world.names.child("a", 20).unwrap();
    let shut = child.ask(Ask::Shut { account: account.clone(), container: container.clone(), at });
    let Ok(Answer::Holding(holding)) = world.run(shut) else { panic!() };
    assert_eq!((holding.objects, holding.at), (0, at));
    // The node that was deleting is gone; a writer waits a while, and then goes on.
    let begun = world.runtime.now();
    world.put("d7/x", Some(1));
    assert!(world.runtime.now() - begun >= Duration::from_secs(1));
    // It was only slow: what it says now is too late.
    let base = world.names.of("a").unwrap();
    let late = base.ask(Ask::DeleteShut { account, container, at: at.unwrap() });
    assert!(matches!(world.run(late), Err(Error::Unavailable { .. })));
    world.check_counts();
    assert_eq!(world.delete_container().unwrap(), Deleted::NotEmpty);
    world.put("d7/x", None);
    assert_eq!(world.delete_container().unwrap(), Deleted::Gone);
}

#[test]
fn nobody_holds_a_grant_while_lines_move_and_one_that_is_held_all_the_same_is_judged_where_they_went() {
    let mut world = filled(4);
    let held = world.begin("d7/3").unwrap();
    assert!(matches!(world.try_split(1, 20), Err(Error::Unavailable { .. })));
    world.settle(held, Some(5), true).unwrap();
    let changes = world.begin("d7/3").unwrap();
    let makes = world.begin("d7/new").unwrap();
    let removes = world.begin("d7/4").unwrap();
    let group = world.keeper.groups.get(1).unwrap();
    let id = changes.line.container.unwrap().id;
    let of = Belongs { account: "a".to_owned(), container: "c".to_owned(), policy: 3 };
    let sequence = world.keeper.clock.tick().0;
    let split = Split { id, from: "d4".to_owned(), group: 21, of, sequence };
    world.run(async move { group.split(split, std::future::ready(Ok(()))).await }).unwrap();
    world.settle(changes, Some(6), true).unwrap();
    world.settle(removes, None, false).unwrap();
    // It was never there: whoever made it takes another grant, and no client hears of it.
    assert!(matches!(world.settle(makes, Some(1), false), Err(Error::GrantLost { unused: true })));
    world.put("d7/new", Some(1));
    world.check_counts();
    assert!(world.line("d7/3").at > Some(Timestamp(0)));
}

#[test]
fn a_container_that_grew_is_found_without_a_walk_and_gives_no_more_away_than_is_wanted() {
    let mut world = filled(5);
    let seats = world.keeper.seats.clone();
    let grown = |lines| seats.grown(1, lines).unwrap().map(|grown| (grown.container, grown.objects));
    assert_eq!(grown(65), None);
    world.put("d0/1", Some(1));
    assert_eq!(grown(63), Some(("c".to_owned(), 65)));
    assert_eq!(grown(63), None, "nothing was made since");
    world.put("d0/1", None);
    assert_eq!(grown(10), None, "it did not grow");
    let mut other = filled(6);
    let seats_of_other = other.keeper.seats.clone();
    other.put_container(true, Some(IndexPolicy::Eventual));
    other.put("d0/1", Some(1));
    assert_eq!(seats_of_other.grown(1, 10).unwrap(), None, "what is eventual is never divided");
    let names: Vec<String> = world.lines.keys().cloned().collect();
    let voter = world.keeper.voters.lock().unwrap()[&1].clone();
    let groups = world.keeper.groups.clone();
    let led = move || groups.get(20).is_some_and(|group| group.status().leads);
    assert!(world.run(async move { voter.split_last("a", "c", 20, 5, led).await }).unwrap());
    let given = world.keeper.groups.get(1).unwrap().given();
    assert_eq!(given[0].from, names[names.len() - 5]);
    world.check_counts();
    // A number serves once.
    assert!(world.try_split(1, 20).is_err());
    world.put("d7/7", Some(3));
    assert_eq!(seats.grown(20, 4).unwrap().unwrap().objects, 5, "children grow, too");
    world.check_counts();
}
