//! A large container whose upper half of lines becomes a group of its own, while clients write and read.
//!
//! Three voters in this process, each with a disk file and an index of its own; calls between them are handed over in memory. Lines
//! are laid out before the groups are founded; a client then gets a grant for a name and makes its line, as a PUT does without its
//! body.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quarry_engine::catalog::{
    AccountValue, ContainerValue, ListedEtag, ListingValue, ObjectCatalog, account_key, container_key,
    listing_key,
};
use quarry_engine::clock::Clock;
use quarry_engine::consensus::{Group, GroupOptions, Groups, Runtime, Settings, Sleep};
use quarry_engine::disk::format::record::{DeviceId, Kind, NewRecord, Parts};
use quarry_engine::disk::format::superblock::ClusterId;
use quarry_engine::disk::{CacheBytes, Class, DiskConfig, DiskHandle, Durability, Format, format, start};
use quarry_engine::index::RocksOptions;
use quarry_engine::io::{OpenOptions, SplitMix64, open_device, preallocate};
use quarry_engine::net::{
    NetError, NodeId, NodeService, ReplicaService, Request, Response, Service, Timer, Transport,
};
use quarry_engine::object::names::{Answer, Ask, Divided, Names, NamesService, NewLine, Seats};
use quarry_engine::object::{self, BoxFuture, ObjectPath, Voter};
use serde_json::json;

use crate::args::Options;
use crate::failure::Failure;
use crate::load::{Pass, as_f64, now};
use crate::report::{Report, Scenario, details, round, say};

const NODES: u8 = 3;
const PARENT: u32 = 1;
const CHILD: u32 = 2;
/// The container's number.
const ID: u64 = 7;
const ACCOUNT: &str = "AUTH_bench";
const CONTAINER: &str = "large";
/// Clients that write, and those that read.
const WRITERS: usize = 8;
const READERS: usize = 2;
/// How long clients run before and after.
const AROUND: Duration = Duration::from_secs(4);
/// No operation shall take longer while lines move.
const WANTED_MS: f64 = 100.0;
/// Pause between two flushes of the disk itself.
const FLUSH_EVERY: Duration = Duration::from_millis(5);
/// Groups of records under way while lines are laid out.
const UNDER_WAY: usize = 256;

fn other(e: impl std::fmt::Display) -> Failure {
    Failure::Other(e.to_string())
}

fn node(n: u8) -> NodeId {
    NodeId([n; 16])
}

fn name(n: u64) -> String {
    format!("objects/{n:012}")
}

fn path(name: &str) -> ObjectPath {
    ObjectPath { account: ACCOUNT.into(), container: CONTAINER.into(), object: name.into() }
}

fn value() -> Vec<u8> {
    let (etag, content_type) = (ListedEtag::Md5([9; 16]), "application/octet-stream".to_owned());
    ListingValue { size: 1000, etag, content_type, version: None, key: None, shown: None }.encode()
}

/// Tasks and time of tokio.
struct Tokio {
    handle: tokio::runtime::Handle,
    begun: Instant,
    random: Mutex<SplitMix64>,
}

impl Runtime for Tokio {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        drop(self.handle.spawn(task));
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn sleep(&self, time: Duration) -> Sleep {
        let _entered = self.handle.enter();
        Box::pin(tokio::time::sleep(time))
    }

    fn random(&self) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).next_u64()
    }
}

type Nodes = Arc<Mutex<BTreeMap<NodeId, Arc<dyn Service>>>>;

/// Hands calls over.
struct Handed {
    local: NodeId,
    nodes: Nodes,
    handle: tokio::runtime::Handle,
}

impl Handed {
    fn service(&self, to: NodeId) -> Option<Arc<dyn Service>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).get(&to).cloned()
    }
}

impl Transport for Handed {
    fn local(&self) -> NodeId {
        self.local
    }

    fn call(
        &self,
        to: NodeId,
        request: Request,
        within: Duration,
    ) -> BoxFuture<'static, Result<Response, NetError>> {
        let (from, service) = (self.local, self.service(to));
        Box::pin(async move {
            let Some(service) = service else { return Err(NetError::Unknown(to)) };
            let answer = tokio::time::timeout(within, service.handle(from, request)).await;
            answer.map_err(|_| NetError::Deadline(to))
        })
    }

    fn cast(&self, to: NodeId, request: Request) {
        if let Some(service) = self.service(to) {
            drop(self.handle.spawn(service.handle(self.local, request)));
        }
    }

    fn name(&self) -> &'static str {
        "memory"
    }
}

/// A node: its groups, and its way to names.
#[derive(Clone)]
struct Node {
    with: GroupOptions,
    groups: Groups,
    seats: Seats,
    names: Divided,
    clock: Arc<Clock>,
    begun: Instant,
    voters: Arc<Mutex<BTreeMap<u32, Voter>>>,
}

impl Node {
    async fn open(&self, number: u32) -> Result<Group, Failure> {
        let group = self.groups.open(number, self.with.clone()).await.map_err(other)?;
        let voter = Voter::new(group.clone(), self.clock.clone());
        self.voters.lock().unwrap_or_else(PoisonError::into_inner).insert(number, voter.clone());
        let begun = self.begun;
        let (since, options) = (Arc::new(move || begun.elapsed()), object::Options::default());
        self.seats.take(NamesService::new(number, Arc::new(voter), self.clock.clone(), &options, since));
        Ok(group)
    }

    fn voter(&self, number: u32) -> Option<Voter> {
        self.voters.lock().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    /// Opens the child where it was made, and calls its election where its parent is led.
    async fn keep(self) {
        loop {
            let leads = self.groups.get(PARENT).is_some_and(|group| group.status().leads);
            for given in self.groups.all().iter().flat_map(Group::given) {
                if self.groups.get(given.group).is_some() {
                    continue;
                }
                match self.open(given.group).await {
                    Ok(child) if leads => drop(tokio::spawn(async move { child.elect_first().await })),
                    Ok(_) => {}
                    Err(error) => say(&format!("open group {}: {error}", given.group)),
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Lays the lines out on a disk.
async fn fill(disk: &DiskHandle, lines: u64) -> Result<(), Failure> {
    let row = |key: Vec<u8>, sequence, value: Vec<u8>| -> NewRecord {
        let (kind, data) = (Kind::Row, Bytes::new());
        disk.record(Parts { kind, deleted: false, sequence, number: 0, key: &key, meta: &value, data })
    };
    let account = AccountValue { created: 1, marked: false, headers: Default::default() };
    let container =
        ContainerValue { id: ID, put: ID, policy: 0, index: Default::default(), headers: Default::default() };
    let first = vec![
        row(account_key(ACCOUNT), 1, account.encode()),
        row(container_key(ACCOUNT, CONTAINER), ID, container.encode()),
    ];
    disk.append(first, Durability::Durable, Class::Client).await?;
    let (mut under_way, value) = (std::collections::VecDeque::new(), value());
    for from in (0..lines).step_by(8) {
        let some = from..lines.min(from + 8);
        let records = some.map(|n| row(listing_key(ID, &name(n)), 10 + n, value.clone())).collect();
        under_way.push_back(disk.submit(records, Durability::Appended, Class::Client).await?);
        if under_way.len() > UNDER_WAY
            && let Some(oldest) = under_way.pop_front()
        {
            oldest.done().await?;
        }
    }
    for submitted in under_way {
        submitted.done().await?;
    }
    Ok(())
}

/// What clients were told, and when.
#[derive(Default)]
struct Told {
    /// Begin and microseconds of each operation.
    writes: Mutex<Vec<(Instant, u32)>>,
    reads: Mutex<Vec<(Instant, u32)>>,
    /// And of each flush of a file beside.
    flushes: Mutex<Vec<(Instant, u32)>>,
    made: AtomicU64,
    over: AtomicBool,
}

fn note(list: &Mutex<Vec<(Instant, u32)>>, began: Instant) {
    list.lock().unwrap_or_else(PoisonError::into_inner).push((began, crate::load::micros(began)));
}

/// How long the disk itself takes for a write of 4 KiB that is flushed, meanwhile: a client's write takes no less.
fn flush(file: &std::fs::File, told: &Told) -> std::io::Result<()> {
    while !told.over.load(Ordering::Relaxed) {
        let began = now();
        file.write_all_at(&[0xbe; 4096], 0)?;
        file.sync_data()?;
        note(&told.flushes, began);
        std::thread::sleep(FLUSH_EVERY);
    }
    Ok(())
}

async fn writer(names: Divided, told: Arc<Told>, number: u64, lines: u64) -> Result<(), Failure> {
    let mut random = SplitMix64::new(number);
    while !told.over.load(Ordering::Relaxed) {
        let n = random.below(lines);
        // Half of them are new names, everywhere among the others.
        let fresh = random.chance(500);
        let name = if fresh { format!("{}x{:016x}", name(n), random.next_u64()) } else { name(n) };
        let began = now();
        let grant = names.begin(path(&name), None).await?;
        let Some(standing) = grant.line.container else { return Err(other("the container is gone")) };
        let at = grant.at;
        let line = NewLine { container: standing.id, at, value: Some(value()), conditional: false };
        names.settle(grant, line, Class::Client).await?;
        note(&told.writes, began);
        told.made.fetch_add(u64::from(fresh), Ordering::Relaxed);
    }
    Ok(())
}

async fn reader(names: Divided, told: Arc<Told>, number: u64, lines: u64) -> Result<(), Failure> {
    let mut random = SplitMix64::new(1000 + number);
    while !told.over.load(Ordering::Relaxed) {
        let began = now();
        let Answer::Line(line) = names.ask(Ask::Line { path: path(&name(random.below(lines))) }).await?
        else {
            return Err(other("an odd answer"));
        };
        if line.at.is_none() {
            return Err(other("a line is not found"));
        }
        note(&told.reads, began);
    }
    Ok(())
}

async fn count(names: &Divided) -> Result<u64, Failure> {
    let ask = Ask::Container { account: ACCOUNT.to_owned(), container: CONTAINER.to_owned() };
    match names.ask(ask).await? {
        Answer::Container(Some(container)) => Ok(container.objects),
        _ => Err(other("no container")),
    }
}

async fn make(scratch: &Path, lines: u64) -> Result<Vec<Node>, Failure> {
    let (nodes, begun, handle) = (Nodes::default(), now(), tokio::runtime::Handle::current());
    let everybody: BTreeSet<NodeId> = (1..=NODES).map(node).collect();
    let mut made = Vec::new();
    for n in 1..=NODES {
        let file = scratch.join(format!("split-{n}"));
        preallocate(&file, (lines * 280 + (512 << 20)).next_multiple_of(1 << 20), &mut |_| {})?;
        let request = Format {
            cluster: ClusterId([0xbe; 16]),
            device: DeviceId([n; 16]),
            segment_size: None,
            overwrite: true,
        };
        format(open_device(&file, OpenOptions::default())?.as_mut(), &request)?;
        let config = DiskConfig {
            device: file,
            io: OpenOptions::default(),
            index: RocksOptions::default(),
            index_path: scratch.join(format!("split-index-{n}")),
            cache_bytes: CacheBytes::default(),
            cluster: None,
        };
        let (disk, _) = start(&config, Arc::new(ObjectCatalog), &mut |_, _| {})?;
        fill(&disk, lines).await?;
        Group::found(&disk, PARENT, everybody.clone(), lines + 100).await.map_err(other)?;
        let random = Mutex::new(SplitMix64::new(u64::from(n)));
        let runtime = Arc::new(Tokio { handle: handle.clone(), begun, random });
        let net = Arc::new(Handed { local: node(n), nodes: nodes.clone(), handle: handle.clone() });
        let (groups, seats) = (Groups::new(), Seats::default());
        let timer: Timer = Arc::new(|time| Box::pin(tokio::time::sleep(time)));
        let names = Divided::new(net.clone(), timer, seats.clone(), u64::from(n) << 32);
        names.divide(1);
        names.voters(PARENT, everybody.iter().copied().collect());
        let replicas = ReplicaService::new(
            Vec::new(),
            Arc::new(move || begun.elapsed()),
            Box::new(wall_clock),
            n.into(),
        );
        let service = groups.service(Arc::new(NodeService::new(replicas, seats.clone())));
        nodes.lock().unwrap_or_else(PoisonError::into_inner).insert(node(n), service);
        let with = GroupOptions { disk, net, settings: Settings::default(), runtime };
        let clock = Arc::new(Clock::new(Box::new(wall_clock)));
        made.push(Node { with, groups, seats, names, clock, begun, voters: Arc::default() });
    }
    for node in &made {
        node.open(PARENT).await?;
        drop(tokio::spawn(node.clone().keep()));
    }
    Ok(made)
}

/// Microseconds since the Unix epoch.
fn wall_clock() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Operations that began in a span, and the longest time without an end of any.
fn pass(list: &Mutex<Vec<(Instant, u32)>>, from: Instant, to: Instant) -> (Pass, f64) {
    let guard = list.lock().unwrap_or_else(PoisonError::into_inner);
    let within = guard.iter().filter(|(began, took)| {
        let ended = *began + Duration::from_micros(u64::from(*took));
        *began < to && ended >= from
    });
    let all: Vec<_> = within.copied().collect();
    let mut ends: Vec<Instant> =
        all.iter().map(|(began, took)| *began + Duration::from_micros(u64::from(*took))).collect();
    ends.sort_unstable();
    let gaps = ends.windows(2).map(|pair| pair[1].saturating_duration_since(pair[0]));
    let gap = gaps.max().unwrap_or_default().as_secs_f64() * 1e3;
    (Pass::since(from, all.iter().map(|(_, took)| *took).collect()), gap)
}

async fn measure(scratch: &Path, lines: u64) -> Result<Scenario, Failure> {
    let began = now();
    let nodes = make(scratch, lines).await?;
    say(&format!("{lines} lines lie on three disks after {:.0} s", began.elapsed().as_secs_f64()));
    let leads = |n: &&Node| n.groups.get(PARENT).is_some_and(|group| group.status().leads);
    let leader = loop {
        match nodes.iter().find(leads) {
            Some(leader) => break leader.clone(),
            None => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let told = Arc::new(Told::default());
    let mut clients = Vec::new();
    for (number, node) in (0u64..).zip(nodes.iter().cycle().take(WRITERS)) {
        clients.push(tokio::spawn(writer(node.names.clone(), told.clone(), number, lines)));
    }
    for (number, node) in (0u64..).zip(nodes.iter().cycle().take(READERS)) {
        clients.push(tokio::spawn(reader(node.names.clone(), told.clone(), number, lines)));
    }
    let beside =
        std::fs::File::create(scratch.join("split-raw")).map_err(Failure::io("create a file beside"))?;
    let tells = told.clone();
    clients.push(tokio::task::spawn_blocking(move || flush(&beside, &tells).map_err(Failure::io("flush"))));
    let first = now();
    tokio::time::sleep(AROUND).await;
    let Some(voter) = leader.voter(PARENT) else { return Err(other("no voter")) };
    let groups = leader.groups.clone();
    let ready = || groups.get(CHILD).is_some_and(|group| group.status().leads);
    let split = now();
    let mut tries = 1;
    while let Err(error) = voter.split(ACCOUNT, CONTAINER, CHILD, ready).await {
        say(&format!("try {tries}: {error}"));
        tries += 1;
        if tries > 20 {
            return Err(error.into());
        }
    }
    let done = now();
    tokio::time::sleep(AROUND).await;
    told.over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.map_err(other)??;
    }
    let last = now();
    let total = count(&leader.names).await?;
    let wanted = lines + told.made.load(Ordering::Relaxed);
    if total != wanted {
        return Err(Failure::Other(format!("{total} lines are counted, {wanted} were made")));
    }
    let of = |list| [pass(list, first, split), pass(list, split, done), pass(list, done, last)];
    let [before, during, after] = of(&told.writes);
    let [_, reading, reads_after] = of(&told.reads);
    let [flushed_before, flushed, flushed_after] = of(&told.flushes);
    let most = |pass: &Pass| pass.percentile(100) / 1e3;
    let longest = most(&during.0).max(most(&after.0)).max(most(&reading.0)).max(most(&reads_after.0));
    Ok(Scenario {
        name: format!("split/{lines}"),
        unit: "ms",
        figures: vec![longest],
        raw: None,
        wanted: Some((format!("no pause over {WANTED_MS} ms"), longest <= WANTED_MS)),
        details: details([
            ("tries", json!(tries)),
            ("seconds", json!(round((done - split).as_secs_f64()))),
            ("longest_write_before_ms", json!(round(most(&before.0)))),
            ("longest_write_during_ms", json!(round(most(&during.0)))),
            ("longest_write_after_ms", json!(round(most(&after.0)))),
            ("longest_read_during_ms", json!(round(most(&reading.0)))),
            ("longest_read_after_ms", json!(round(most(&reads_after.0)))),
            ("longest_flush_before_ms", json!(round(most(&flushed_before.0)))),
            ("longest_flush_during_ms", json!(round(most(&flushed.0)))),
            ("longest_flush_after_ms", json!(round(most(&flushed_after.0)))),
            ("no_write_ended_for_ms", json!(round(during.1.max(after.1)))),
            ("writes_a_second_before", json!(round(as_f64(before.0.ops) / (split - first).as_secs_f64()))),
            ("writes_a_second_during", json!(round(as_f64(during.0.ops) / (done - split).as_secs_f64()))),
            ("writes_a_second_after", json!(round(as_f64(after.0.ops) / (last - done).as_secs_f64()))),
        ]),
    })
}

/// Lays lines out, gives half of them away, and says how long anybody waited.
pub(crate) fn run(options: &Options, scratch: &Path, report: &mut Report) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(Failure::io("start runtime"))?;
    let measured = runtime.block_on(measure(scratch, options.lines));
    // Where it failed, clients are still at it.
    runtime.shutdown_timeout(Duration::from_secs(2));
    report.add(measured?)?;
    Ok(())
}
