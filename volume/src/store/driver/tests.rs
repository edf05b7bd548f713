//! Heads over members on three disks, whose nodes go away and come back.
#![expect(clippy::disallowed_methods, reason = "time goes on beside disks that have threads of their own")]

mod few;
mod trips;

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use quarry_engine::block::{Fence, VolumeId};
use quarry_engine::catalog::ObjectCatalog;
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::disk::format::superblock::ClusterId;
use quarry_engine::disk::{CacheBytes, DiskHandle, Format, Open, format, start_on};
use quarry_engine::index::MemoryIndex;
use quarry_engine::io::SimImage;
use quarry_engine::net::{NetError, NodeId, Request, Response, Timer, Transport, VolumeAnswer, VolumeCall};
use quarry_engine::object::BoxFuture;

use super::{Condition, Seen, Views};
use crate::geometry::{Geometry, SLICE_BYTES};
use crate::head::{Configuration, Failure, Standing, Until};
use crate::store::{Attachment, Members, Reach, Replicated, Stretch, VolumeError};

const VOLUME: VolumeId = VolumeId([3; 16]);
const BYTES: u64 = 64 << 20;
const SEGMENT: u64 = 16 << 20;
/// How much faster time goes here.
const FASTER: u32 = 4;
/// As long as a condition may take to come.
const PATIENCE: Duration = Duration::from_secs(60);

thread_local! {
    /// Those of this test: a simulated disk that nobody closes keeps a processor busy.
    static DISKS: RefCell<Vec<DiskHandle>> = const { RefCell::new(Vec::new()) };
}

fn device(n: u8) -> DeviceId {
    DeviceId([n; 16])
}

fn members_of(n: u8) -> Arc<Members> {
    let image = SimImage::new(24 * SEGMENT, n.into());
    let request = Format {
        cluster: ClusterId([7; 16]),
        device: device(n),
        segment_size: Some(SEGMENT),
        overwrite: false,
    };
    format(&mut image.open(), &request).unwrap();
    let options = Open {
        cluster: None,
        cache_bytes: CacheBytes { small: 1 << 20, large: 1 << 20 },
        progress: &mut |_, _| {},
    };
    let (disk, _) =
        start_on(Box::new(image.open()), Arc::new(MemoryIndex::new()), Arc::new(ObjectCatalog), options)
            .unwrap();
    DISKS.with_borrow_mut(|disks| disks.push(disk.clone()));
    Arc::new(Members::open(vec![disk]).unwrap())
}

/// Three nodes with a disk each; heads are at the first.
struct World {
    sites: Vec<Arc<Members>>,
    /// Nodes that cannot be reached.
    away: Mutex<HashSet<u8>>,
    /// Nodes that give no rows.
    damaged: Mutex<HashSet<u8>>,
    /// A node whose disk is nearly full.
    tight: Mutex<Option<u8>>,
    /// Times that one was asked for rows.
    asked_for_rows: AtomicUsize,
    /// How long it takes the third to promise, and to begin.
    slow: Mutex<Duration>,
    slow_to_begin: Mutex<Duration>,
    /// Nobody gives rows: whoever asks waits.
    stuck: AtomicBool,
    /// A node whose disk has no room for one that is filled.
    full: Mutex<Option<u8>>,
    /// One whose disk has no room for what it is filled with.
    filled_up: Mutex<Option<u8>>,
    /// Times that one was sent rows.
    rows_sent: AtomicUsize,
    /// Times that the third was asked for its promise.
    promises: AtomicUsize,
    /// How often the third does not hear whether it is there.
    deaf: AtomicUsize,
    /// Heads are at a node that has no disk.
    far: AtomicBool,
    /// Writes that other nodes were asked for with their flush.
    flushed_writes: AtomicUsize,
    committed: Mutex<Configuration>,
    views: Mutex<Views>,
}

impl World {
    fn new() -> Arc<Self> {
        let committed = Configuration::new((1..=3).map(device).collect());
        Arc::new(Self {
            sites: (1..=3).map(members_of).collect(),
            away: Mutex::default(),
            damaged: Mutex::default(),
            tight: Mutex::default(),
            asked_for_rows: AtomicUsize::new(0),
            slow: Mutex::default(),
            slow_to_begin: Mutex::default(),
            stuck: AtomicBool::new(false),
            full: Mutex::default(),
            filled_up: Mutex::default(),
            rows_sent: AtomicUsize::new(0),
            promises: AtomicUsize::new(0),
            deaf: AtomicUsize::new(0),
            far: AtomicBool::new(false),
            flushed_writes: AtomicUsize::new(0),
            committed: Mutex::new(committed),
            views: Mutex::default(),
        })
    }

    fn attach(self: &Arc<Self>, epoch: u64, near: u8) -> Replicated {
        self.attach_as(VOLUME, epoch, near)
    }

    fn attach_as(self: &Arc<Self>, volume: VolumeId, epoch: u64, near: u8) -> Replicated {
        let timer: Timer = Arc::new(|time| Box::pin(tokio::time::sleep(time / FASTER)));
        let nobody = || Arc::new(Members::open(Vec::new()).unwrap());
        let far = self.far.load(Ordering::Relaxed);
        let reach = Reach {
            members: if far { nobody() } else { Arc::clone(&self.sites[0]) },
            net: Some(Arc::new(Net(Arc::clone(self)))),
            node_of: Arc::new(|device: DeviceId| Some(NodeId(device.0))),
            timer,
            kept: Arc::default(),
        };
        let configuration = self.committed.lock().unwrap().clone();
        let world = Arc::clone(self);
        let commit = move |wanted: Configuration| -> BoxFuture<'static, Result<(), Fence>> {
            *world.committed.lock().unwrap() = wanted;
            Box::pin(std::future::ready(Ok(())))
        };
        let geometry = Geometry::new(BYTES, SLICE_BYTES).unwrap();
        let near = Some(device(near));
        let (cipher, views) = (None, self.views.lock().unwrap().clone());
        let wanted = configuration.all().count();
        let what = Attachment { volume, geometry, epoch, configuration, wanted, near, cipher, views };
        Replicated::attach(&what, &reach, Arc::new(commit))
    }

    fn set_away(&self, n: u8, away: bool) {
        let mut all = self.away.lock().unwrap();
        if away {
            all.insert(n)
        } else {
            all.remove(&n)
        };
    }
}

struct Net(Arc<World>);

impl Transport for Net {
    fn local(&self) -> NodeId {
        NodeId([1; 16])
    }

    fn call(
        &self,
        to: NodeId,
        request: Request,
        _within: Duration,
    ) -> BoxFuture<'static, Result<Response, NetError>> {
        let (world, n) = (Arc::clone(&self.0), to.0[0]);
        Box::pin(async move {
            let lost = || Err(NetError::Lost { to, reason: "away".to_owned() });
            let Request::Volume { device, volume, fence, session, call } = request else { return lost() };
            if matches!(call, VolumeCall::Promise) && n == 3 {
                world.promises.fetch_add(1, Ordering::Relaxed);
            }
            if world.away.lock().unwrap().contains(&n) {
                return lost();
            }
            if matches!(call, VolumeCall::Promise) && n == 3 {
                let slow = *world.slow.lock().unwrap();
                tokio::time::sleep(slow).await;
            }
            if matches!(call, VolumeCall::Confirm) && n == 3 {
                let one_less = |left: usize| left.checked_sub(1);
                if world.deaf.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
                    return lost();
                }
            }
            if matches!(call, VolumeCall::Begin { .. }) && n == 3 {
                let slow = *world.slow_to_begin.lock().unwrap();
                tokio::time::sleep(slow).await;
            }
            while matches!(call, VolumeCall::Rows { .. }) && world.stuck.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            if matches!(call, VolumeCall::Fill { .. }) && *world.full.lock().unwrap() == Some(n) {
                return Ok(Response::Volume(VolumeAnswer::Tight));
            }
            if matches!(call, VolumeCall::Put { .. }) {
                world.rows_sent.fetch_add(1, Ordering::Relaxed);
            }
            if matches!(call, VolumeCall::Put { .. }) && *world.filled_up.lock().unwrap() == Some(n) {
                return Ok(Response::Volume(VolumeAnswer::Tight));
            }
            if matches!(call, VolumeCall::Rows { .. }) && world.damaged.lock().unwrap().contains(&n) {
                world.asked_for_rows.fetch_add(1, Ordering::Relaxed);
                return Ok(Response::Volume(VolumeAnswer::Unreadable));
            }
            if matches!(call, VolumeCall::Write { flush: true, .. }) {
                world.flushed_writes.fetch_add(1, Ordering::Relaxed);
            }
            let begins = matches!(call, VolumeCall::Begin { .. } | VolumeCall::Join { .. });
            let tells = begins || matches!(call, VolumeCall::Confirm | VolumeCall::Write { .. });
            let tight = tells && *world.tight.lock().unwrap() == Some(n);
            let members = &world.sites[usize::from(n) - 1];
            let mut answer = members.answer(device, volume, fence, session, call).await;
            if tight && answer == VolumeAnswer::Done {
                answer = VolumeAnswer::Tight;
            }
            if world.away.lock().unwrap().contains(&n) { lost() } else { Ok(Response::Volume(answer)) }
        })
    }

    fn cast(&self, _to: NodeId, _request: Request) {}

    fn name(&self) -> &'static str {
        "test"
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
        let done = future.await;
        for disk in DISKS.take() {
            disk.close().await.unwrap();
        }
        done
    })
}

async fn until_seen(head: &Replicated, what: &str, good: impl Fn(&[Seen]) -> bool) {
    let began = std::time::Instant::now();
    loop {
        let seen = head.members().await;
        if good(&seen) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{what}: {seen:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// On a machine with other work a member is silent for a moment at any time, as time goes faster here: it is asked again, as an operator
/// does who is told that members are too few.
async fn until_taken_over(head: &Replicated) {
    let began = std::time::Instant::now();
    while let Err(error) = head.take_over(&[device(1), device(2), device(3)], None).await {
        assert!(matches!(error, VolumeError::Head(Failure::TooFew)), "{error}");
        assert!(began.elapsed() < PATIENCE, "too few members for ever");
        until_seen(head, "all count again", all_count).await;
    }
}

fn all_count(seen: &[Seen]) -> bool {
    seen.len() == 3 && seen.iter().all(|one| one.counts && one.standing == Standing::Active)
}

fn standing_of(seen: &[Seen], n: u8) -> Option<Standing> {
    seen.iter().find(|one| one.device == device(n)).map(|one| one.standing)
}

async fn write(head: &Replicated, block: u64, value: u8) {
    head.write(block * 4096, Bytes::from(vec![value; 4096]), Until::Written).await.unwrap();
}

async fn value(head: &Replicated, block: u64) -> u8 {
    head.read_whole(block * 4096, 4096).await.unwrap()[0]
}

#[test]
fn a_member_that_died_is_filled_and_counts_again() {
    run(async {
        let world = World::new();
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        until_seen(&head, "all begin", all_count).await;
        write(&head, 7, 1).await;
        world.set_away(3, true);
        let gone = |seen: &[Seen]| seen.iter().any(|one| one.device == device(3) && !one.counts);
        // More than the bytes that are kept for one who was away for a moment.
        for block in 0..400 {
            write(&head, block, u8::try_from(block % 250).unwrap() + 1).await;
        }
        head.flush().await.unwrap();
        until_seen(&head, "it is no member", gone).await;
        assert_eq!(world.committed.lock().unwrap().members.len(), 2, "that is committed");
        world.set_away(3, false);
        until_seen(&head, "it counts again", all_count).await;
        write(&head, 500, 99).await;
        head.flush().await.unwrap();
        // Another head, that reads there.
        let next = world.attach(2, 3);
        next.served().await.unwrap();
        until_seen(&next, "all begin", all_count).await;
        assert_eq!([value(&next, 7).await, value(&next, 399).await], [8, 150]);
        assert_eq!(value(&next, 500).await, 99);
    });
}

/// With each head fewer members were enough: two of three that lived through a restart of the third, and then one alone, whose disk held the
/// only copy of what it said was flushed.
#[test]
fn no_head_is_content_with_fewer_members_than_the_one_before() {
    run(async {
        let world = World::new();
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        until_seen(&head, "all begin", all_count).await;
        let counting = |n: usize| move |seen: &[Seen]| seen.iter().filter(|one| one.counts).count() == n;
        world.set_away(3, true);
        until_seen(&head, "it is no member", counting(2)).await;
        let next = world.attach(2, 1);
        next.served().await.unwrap();
        world.set_away(2, true);
        let written = next.write(4096, Bytes::from(vec![1; 4096]), Until::Durable);
        let alone = tokio::time::timeout(Duration::from_secs(3), written).await;
        assert!(!matches!(alone, Ok(Ok(()))), "one of three alone: {alone:?}");
        world.set_away(2, false);
        next.write(0, Bytes::from(vec![1; 4096]), Until::Durable).await.unwrap();
    });
}

/// The first two of three that answered were the volume: a live one that answered later, and had one write more, was emptied for it.
#[test]
fn a_member_that_has_more_and_promises_a_little_later_is_not_emptied() {
    run(async {
        let world = World::new();
        world.far.store(true, Ordering::Relaxed);
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        until_seen(&head, "all begin", all_count).await;
        write(&head, 1, 1).await;
        head.flush().await.unwrap();
        world.set_away(1, true);
        world.set_away(2, true);
        let _late = tokio::time::timeout(Duration::from_millis(100), write(&head, 2, 2)).await;
        drop(head);
        world.set_away(1, false);
        world.set_away(2, false);
        *world.slow.lock().unwrap() = Duration::from_millis(60);
        let next = world.attach(2, 1);
        next.served().await.unwrap();
        assert_eq!(value(&next, 2).await, 2, "it is what the longest has");
    });
}

#[test]
fn a_member_that_was_away_for_a_moment_is_sent_what_it_missed() {
    run(async {
        let world = World::new();
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        until_seen(&head, "all begin", all_count).await;
        world.damaged.lock().unwrap().insert(2);
        world.set_away(3, true);
        for block in 0..50 {
            write(&head, block, 5).await;
        }
        world.set_away(3, false);
        until_seen(&head, "it follows again", all_count).await;
        assert_eq!(world.committed.lock().unwrap().version, 1, "it was a member all the time");
        assert_eq!(world.asked_for_rows.load(Ordering::Relaxed), 0, "and was not filled");
    });
}

#[test]
fn a_head_that_nobody_asks_sees_that_a_member_died_and_that_it_was_fenced() {
    run(async {
        let world = World::new();
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        until_seen(&head, "all begin", all_count).await;
        write(&head, 1, 4).await;
        world.set_away(2, true);
        until_seen(&head, "it is missed", |seen| standing_of(seen, 2) == Some(Standing::Silent)).await;
        let next = world.attach(5, 1);
        next.served().await.unwrap();
        let began = std::time::Instant::now();
        while !matches!(head.condition(), Condition::Stopped(Failure::Fenced(_))) {
            assert!(began.elapsed() < PATIENCE, "it stops: {:?}", head.condition());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // `quarry volume list` hung at a node whose head had been fenced.
        assert_eq!(head.members().await, []);
        let late = head.read_whole(4096, 4096).await;
        assert!(matches!(late, Err(VolumeError::Head(Failure::Fenced(_)))), "{late:?}");
        let late = head.write(0, Bytes::from(vec![1; 4096]), Until::Written).await;
        assert!(matches!(late, Err(VolumeError::Head(Failure::Fenced(_)))), "{late:?}");
        assert_eq!(value(&next, 1).await, 4);
    });
}

/// A member whose rows fail their checks was asked for them again and again: the failure was said to be that of the one to be filled.
#[test]
fn a_source_that_gives_no_rows_is_left_for_another() {
    run(async {
        let world = World::new();
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        until_seen(&head, "all begin", all_count).await;
        world.set_away(3, true);
        for block in 0..400 {
            write(&head, block, 6).await;
        }
        world.damaged.lock().unwrap().insert(2);
        world.set_away(3, false);
        until_seen(&head, "it is filled from the other", all_count).await;
        assert!(world.asked_for_rows.load(Ordering::Relaxed) > 0, "the damaged one was asked");
        let next = world.attach(2, 3);
        next.served().await.unwrap();
        until_seen(&next, "all begin", all_count).await;
        assert_eq!(value(&next, 399).await, 6);
    });
}

/// A block that a member could not read cost the volume that member, as often as it came to be copied.
#[test]
fn a_source_that_cannot_read_a_block_stays_a_member() {
    run(async {
        let world = World::new();
        world.far.store(true, Ordering::Relaxed);
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        until_seen(&head, "all begin", all_count).await;
        world.set_away(3, true);
        for block in 0..400 {
            write(&head, block, 6).await;
        }
        let gone = |seen: &[Seen]| seen.iter().any(|one| one.device == device(3) && !one.counts);
        until_seen(&head, "it is no member", gone).await;
        let began = std::time::Instant::now();
        world.damaged.lock().unwrap().extend([1, 2]);
        world.set_away(3, false);
        let tried = || world.asked_for_rows.load(Ordering::Relaxed);
        while tried() < 2 {
            assert!(began.elapsed() < PATIENCE, "each is asked for its rows");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        for block in 0..200 {
            write(&head, block, 7).await;
            let seen = head.members().await;
            assert_eq!([1, 2].map(|n| standing_of(&seen, n)), [Some(Standing::Active); 2]);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(tried(), 2, "and not again and again");
    });
}

#[test]
fn less_than_a_quorum_answers_nothing_and_goes_on_when_one_is_back() {
    run(async {
        let world = World::new();
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        until_seen(&head, "all begin", all_count).await;
        write(&head, 1, 1).await;
        world.set_away(2, true);
        world.set_away(3, true);
        let write_alone = head.write(4096, Bytes::from(vec![2; 4096]), Until::Durable);
        let alone = tokio::time::timeout(Duration::from_millis(600), write_alone).await;
        assert!(alone.is_err(), "one of three acknowledges nothing: {alone:?}");
        world.set_away(2, false);
        head.write(2 * 4096, Bytes::from(vec![3; 4096]), Until::Durable).await.unwrap();
        assert_eq!(value(&head, 1).await, 2, "it kept its place in the order");
    });
}

impl World {
    async fn snapshot(&self, head: &Replicated) -> u32 {
        let era = self.views.lock().unwrap().era;
        head.freeze(async {
            let mut views = self.views.lock().unwrap();
            views.snapshots.push(era);
            views.era += 1;
            Ok(views.clone())
        })
        .await
        .unwrap();
        era
    }
}

fn as_of(head: &Replicated, era: u32) -> Replicated {
    head.as_of(era, Geometry::new(BYTES, SLICE_BYTES).unwrap())
}

#[test]
fn snapshots_are_frozen_on_every_member_also_on_one_that_was_filled() {
    run(async {
        let world = World::new();
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        until_seen(&head, "all begin", all_count).await;
        for block in 0..20 {
            write(&head, block, 1).await;
        }
        let first = world.snapshot(&head).await;
        world.set_away(3, true);
        for block in 0..10 {
            write(&head, block, 2).await;
        }
        head.discard(19 * 4096, 4096, Until::Written).await.unwrap();
        let second = world.snapshot(&head).await;
        for block in 0..400 {
            write(&head, block % 5, 3).await;
        }
        world.set_away(3, false);
        until_seen(&head, "it is filled", all_count).await;
        // One more while nobody is away, and then what each member has, also of what it was sent as rows.
        let third = world.snapshot(&head).await;
        write(&head, 0, 4).await;
        head.flush().await.unwrap();
        for near in 1..=3 {
            let next = world.attach(10 + u64::from(near), near);
            next.served().await.unwrap();
            until_seen(&next, "all begin", all_count).await;
            for (era, expected) in [
                (first, [1, 1, 1, 1]),
                (second, [2, 2, 1, 0]),
                (third, [3, 2, 1, 0]),
                (u32::MAX, [4, 2, 1, 0]),
            ] {
                let view = as_of(&next, era);
                let mut seen = Vec::new();
                for block in [0, 7, 15, 19] {
                    seen.push(value(&view, block).await);
                }
                assert_eq!(seen, expected, "at {near} as of {era}");
            }
            let refused = as_of(&next, first).write(0, Bytes::from(vec![9; 4096]), Until::Written).await;
            assert!(matches!(refused, Err(VolumeError::Refused(_))), "{refused:?}");
        }
    });
}

/// Nobody knows whether it was committed: had the head gone on, the snapshot would have changed.
#[test]
fn a_snapshot_that_nobody_waits_for_ends_the_head() {
    run(async {
        let world = World::new();
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        write(&head, 1, 1).await;
        let (asked, mut was_asked) = tokio::sync::oneshot::channel();
        let commit = async {
            asked.send(()).unwrap();
            std::future::pending().await
        };
        tokio::select! {
            done = head.freeze(commit) => panic!("{done:?}"),
            asked = &mut was_asked => asked.unwrap(),
        }
        let late = head.write(4096, Bytes::from(vec![2; 4096]), Until::Written).await;
        assert!(matches!(late, Err(VolumeError::Head(Failure::HandedOver))), "{late:?}");
    });
}

/// A page of the map that ended with a slice was taken for its last: what lies behind was told to be a hole, and was not given up.
#[test]
fn what_is_there_goes_on_in_the_next_slice() {
    const MIB: u64 = 1 << 20;
    run(async {
        let world = World::new();
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        // As many blocks in a slice as in a page.
        let head = head.resized(Geometry::new(BYTES, 4 * MIB).unwrap());
        for offset in 0..10 {
            let data = Bytes::from(vec![1; 1 << 20]);
            head.write(offset * MIB, data, Until::Written).await.unwrap();
        }
        let told = |bytes, hole| Stretch { bytes, hole };
        assert_eq!(
            head.stretches(0, 16 * MIB, 9).await.unwrap(),
            [told(10 * MIB, false), told(6 * MIB, true)]
        );
        head.zero(MIB, 8 * MIB, Until::Written).await.unwrap();
        let left = [told(MIB, false), told(8 * MIB, true), told(MIB, false), told(MIB, true)];
        assert_eq!(head.stretches(0, 11 * MIB, 9).await.unwrap(), left);
        assert_eq!((value(&head, 6 * 256).await, value(&head, 9 * 256).await), (0, 1));
    });
}

/// A member whose disk was full, and that had gone, had every write refused until another head came.
#[test]
fn who_is_no_member_any_more_keeps_nobody_from_writing() {
    run(async {
        let world = World::new();
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        until_seen(&head, "all begin", all_count).await;
        *world.tight.lock().unwrap() = Some(3);
        let began = std::time::Instant::now();
        loop {
            match head.write(0, Bytes::from(vec![1; 4096]), Until::Written).await {
                Err(VolumeError::Head(Failure::NoSpace)) => break,
                other => other.unwrap(),
            }
            assert!(began.elapsed() < PATIENCE, "no write is refused");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        head.remove_member(device(3)).unwrap();
        let left = |seen: &[Seen]| seen.len() == 2 && seen.iter().all(|one| one.standing == Standing::Active);
        until_seen(&head, "it is no member", left).await;
        write(&head, 0, 2).await;
    });
}

/// A member on a disk that was nearly full had every write of the volume refused while it was filled, though the others had room.
#[test]
fn who_does_not_count_and_has_no_room_keeps_nobody_from_writing() {
    run(async {
        let world = World::new();
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        until_seen(&head, "all begin", all_count).await;
        world.set_away(3, true);
        let gone = |seen: &[Seen]| seen.iter().any(|one| one.device == device(3) && !one.counts);
        until_seen(&head, "it is no member", gone).await;
        *world.tight.lock().unwrap() = Some(3);
        world.set_away(3, false);
        for block in 0..300 {
            write(&head, block, 1).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

/// Members keep what a deleted snapshot saw until they are told; one that was away is told when it is there again.
#[test]
fn a_member_that_was_away_gives_back_what_a_deleted_snapshot_saw() {
    run(async {
        let world = World::new();
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        until_seen(&head, "all begin", all_count).await;
        write(&head, 0, 1).await;
        let era = world.snapshot(&head).await;
        write(&head, 0, 2).await;
        head.flush().await.unwrap();
        world.set_away(3, true);
        world.views.lock().unwrap().snapshots.clear();
        let views = world.views.lock().unwrap().clone();
        head.see(views).await.unwrap();
        world.set_away(3, false);
        until_seen(&head, "all are there", all_count).await;
        for near in 1..=3 {
            let began = std::time::Instant::now();
            let next = world.attach(10 + u64::from(near), near);
            next.served().await.unwrap();
            until_seen(&next, "all begin", all_count).await;
            let gone = as_of(&next, era);
            assert!(matches!(gone.read_whole(0, 4096).await, Err(VolumeError::SnapshotGone)));
            let gone = gone.believing(era);
            while value(&gone, 0).await != 0 {
                assert!(began.elapsed() < PATIENCE, "{near} keeps it");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            assert_eq!(value(&next, 0).await, 2);
        }
    });
}

#[test]
fn a_snapshot_whose_commit_is_not_known_ends_the_head() {
    run(async {
        let world = World::new();
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        write(&head, 1, 1).await;
        let unknown = async { Err(VolumeError::Register("the group is away".to_owned())) };
        assert!(head.freeze(unknown).await.is_err());
        let late = head.write(4096, Bytes::from(vec![2; 4096]), Until::Written).await;
        assert!(matches!(late, Err(VolumeError::Head(Failure::HandedOver))), "{late:?}");
        let next = world.attach(2, 1);
        next.served().await.unwrap();
        assert_eq!(value(&next, 1).await, 1);
    });
}

/// Each member of the clone is made beside the parent's; one that was away is filled with what it never had. And back again.
#[test]
fn a_clone_has_what_its_snapshot_has_also_on_a_member_that_was_away() {
    run(async {
        let clone = VolumeId([4; 16]);
        let world = World::new();
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        until_seen(&head, "all begin", all_count).await;
        for block in 0..20 {
            write(&head, block, 1).await;
        }
        let era = world.snapshot(&head).await;
        write(&head, 3, 2).await;
        head.discard(4 * 4096, 4096, Until::Written).await.unwrap();
        world.set_away(3, true);
        let missed = |seen: &[Seen]| {
            [1, 2, 3].map(|n| standing_of(seen, n))
                == [Some(Standing::Active), Some(Standing::Active), Some(Standing::Silent)]
        };
        until_seen(&head, "it is missed", missed).await;
        assert_eq!(head.fork(clone, era).await.unwrap(), [device(1), device(2)]);
        assert!(matches!(head.take_over(&[device(3)], None).await, Err(VolumeError::Head(Failure::TooFew))));
        // What changed since the snapshot, and going back to it.
        let known = head.clone().knowing([("then".to_owned(), era)]);
        let changed = known.changes("then", 0, 20 * 4096, 9).await.unwrap();
        let stretches: Vec<_> = changed.iter().map(|one| (one.bytes / 4096, one.hole)).collect();
        assert_eq!(stretches, [(3, true), (2, false), (15, true)]);
        head.go_back_to(era).await.unwrap();
        assert_eq!([value(&head, 3).await, value(&head, 4).await, value(&head, 19).await], [1, 1, 1]);
        drop((head, known));
        // The clone.
        let (members, joining) = (vec![device(1), device(2)], vec![device(3)]);
        *world.committed.lock().unwrap() = Configuration { version: 1, members, joining };
        *world.views.lock().unwrap() = Views::default();
        let head = world.attach_as(clone, 2, 1);
        head.served().await.unwrap();
        write(&head, 5, 9).await;
        world.set_away(3, false);
        until_seen(&head, "it is filled", all_count).await;
        head.discard(6 * 4096, 4096, Until::Durable).await.unwrap();
        for near in 1..=3 {
            let next = world.attach_as(clone, 10 + u64::from(near), near);
            next.served().await.unwrap();
            until_seen(&next, "all begin", all_count).await;
            let mut seen = Vec::new();
            for block in [0, 3, 5, 6, 19, 20] {
                seen.push(value(&next, block).await);
            }
            assert_eq!(seen, [1, 1, 9, 0, 1, 0], "at {near}");
            if near == 3 {
                until_taken_over(&next).await;
                assert_eq!([value(&next, 3).await, value(&next, 6).await], [1, 0]);
            }
        }
    });
}
