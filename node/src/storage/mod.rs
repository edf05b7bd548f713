//! The engine under the APIs: opened, watched and closed in this one place.
//!
//! Invariant: no API is served before every disk is open, or known to be missing, and no disk is closed while a request runs.
//! Invariant: a disk that was there before is never made anew.
//! Invariant: a node on its own has the disks that it began with.

mod kept;
mod known;
mod memory;
mod missing;
mod provision;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quarry_engine::catalog::ObjectCatalog;
use quarry_engine::clock::Clock;
use quarry_engine::disk::catalog::Catalog;
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::disk::format::superblock::ClusterId;
use quarry_engine::disk::{
    self, CacheBytes, Counters, DiskConfig, DiskHandle, Report, StartError, start, start_in_place_of,
};
use quarry_engine::index::RocksOptions;
use quarry_engine::io::OpenOptions;
use quarry_engine::object::{Options, Spread, Store, Time};
use quarry_engine::sync::Cluster;
use tokio::runtime::Handle;

use crate::config::{self, Config, MIN_DISK};
use crate::status::{DiskStatus, StatusSource};
use crate::workers::{self, Workers};

pub(crate) use known::Known;
pub(crate) use missing::{Absent, Missing};
pub(crate) use provision::{
    check_first_start, cluster_text, format_disk, known_cluster, make_disk_file, parse_cluster, random_bytes,
    random_cluster, remember_cluster,
};

/// How long a start waits for its disks: a killed node's locks go a moment after it.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// The part of the memory that caches pieces of large bodies, where the configuration says nothing.
const BODY_CACHE_SHARE: u64 = 4;

/// Told what is being done, and how much of how much is done; called from the thread that opens.
pub(crate) type Progress = Box<dyn FnMut(&str, u64, u64) + Send>;

/// The open disks and the object layer over them.
#[derive(Debug)]
pub(crate) struct Storage {
    store: Store,
    disks: Disks,
    workers: Workers,
    status: StatusSource,
}

/// One open disk.
#[derive(Debug, Clone)]
struct OpenDisk {
    path: PathBuf,
    handle: DiskHandle,
}

/// Why the disks could not be opened.
#[derive(Debug, Clone, thiserror::Error)]
#[error("open disk {}: {reason}", disk.display())]
pub struct OpenError {
    /// As configured.
    pub disk: PathBuf,
    /// Why, and what to do.
    pub reason: String,
}

impl OpenError {
    fn new(disk: &Path, reason: impl std::fmt::Display) -> Self {
        let reason = reason.to_string();
        let prefix = format!("{}: ", disk.display());
        let reason = reason.strip_prefix(&prefix).map_or(reason.clone(), str::to_owned);
        Self { disk: disk.to_owned(), reason }
    }
}

/// A disk that the node has, or should have.
#[derive(Debug, Clone)]
enum Slot {
    Open(OpenDisk),
    Missing(Missing),
}

impl Slot {
    fn device(&self) -> DeviceId {
        match self {
            Self::Open(open) => open.handle.device(),
            Self::Missing(missing) => missing.device,
        }
    }
}

/// The disks of a node in the configuration's order, then those that it had and that are not listed; and nothing over them yet.
#[derive(Debug)]
pub(crate) struct Disks {
    slots: Vec<Slot>,
    known: Arc<Known>,
}

impl Disks {
    /// Opens every disk of the configuration that can be had; the first start makes the disk files. A node of a cluster does without one that
    /// it had and that does not open. Blocks: a log may have to be replayed.
    pub(crate) fn open(config: &Config, progress: &mut Progress) -> Result<Self, OpenError> {
        kept::expect(config)?;
        let known = Arc::new(Known::of(config)?);
        let cluster = provision::prepare(config, &known, progress)?;
        let mut disks = Self { slots: Vec::with_capacity(config.disks.len()), known };
        let opened = disks.open_each(config, cluster, progress);
        if let Err(error) = opened.and_then(|()| disks.suffice()) {
            now(disks.close());
            return Err(error);
        }
        for missing in disks.missing() {
            missing::say(&missing, cluster, &disks.known.forgetting(missing.device));
        }
        Ok(disks)
    }

    fn open_each(
        &mut self,
        config: &Config,
        cluster: ClusterId,
        progress: &mut Progress,
    ) -> Result<(), OpenError> {
        let mut failed = Vec::new();
        for (at, disk) in config.disks.iter().enumerate() {
            match open_disk(config, disk, cluster, None, progress) {
                Ok(opened) => self.take(opened)?,
                Err(error) => failed.push((at, error)),
            }
        }
        // Nothing is done about the others where a slip keeps the node from starting. Two with others' indexes are one.
        let others = failed.iter().filter(|(_, error)| missing::has_others_index(error)).count();
        let is_slip = |error| missing::is_slip(error) || (others > 1 && missing::has_others_index(error));
        if let Some(slip) = failed.iter().position(|(_, error)| is_slip(error)) {
            let (at, error) = failed.swap_remove(slip);
            return Err(not_ours(config.disks[at].path.get_ref(), cluster, error));
        }
        for (at, error) in failed {
            let instead = self.instead(&config.disks[at], error, config, cluster, progress)?;
            self.slots.insert(at, instead);
        }
        self.miss_unlisted(config);
        self.missing().iter().try_for_each(|missing| self.twin(&missing.path, missing.device, &missing.why))
    }

    /// What is done where a disk did not open, once it is known which others are here.
    fn instead(
        &self,
        disk: &config::Disk,
        mut error: StartError,
        config: &Config,
        cluster: ClusterId,
        progress: &mut Progress,
    ) -> Result<Slot, OpenError> {
        let path = disk.path.get_ref();
        if let StartError::Open(disk::OpenError::OtherIndex(gone)) = error
            && self.lacks(gone, path, config)
        {
            match open_disk(config, disk, cluster, Some(gone), progress) {
                Ok((new, _)) => return Ok(Slot::Open(new)),
                Err(again) => error = again,
            }
        }
        let Some(device) = self.known.at(path).filter(|_| missing::is_dead(&error)) else {
            return Err(not_ours(path, cluster, error));
        };
        Ok(Slot::Missing(Missing { path: path.clone(), device, why: missing::why(path, &error) }))
    }

    /// Whether a disk is one that the node had, and is none of those that are listed besides this path.
    fn lacks(&self, device: DeviceId, path: &Path, config: &Config) -> bool {
        let Some(was) = self.known.place_of(device) else { return false };
        let others = config.disks.iter().map(|disk| disk.path.get_ref()).filter(|other| *other != path);
        let listed = others.map(|other| provision::absolute(other)).any(|other| other == was);
        !listed && self.slots.iter().all(|slot| slot.device() != device)
    }

    /// A disk that has opened, unless it is an older copy of itself.
    fn take(&mut self, (disk, report): (OpenDisk, Report)) -> Result<(), OpenError> {
        let device = disk.handle.device();
        let judged = self.known.doubt(&disk.handle, &report);
        let twin = self.twin(&disk.path, device, "");
        // From here on it is closed with the others.
        let path = disk.path.clone();
        self.slots.push(Slot::Open(disk.clone()));
        twin?;
        if let Some(why) = judged? {
            self.slots.pop();
            now(disk.handle.close());
            self.slots.push(Slot::Missing(Missing { path, device, why }));
        }
        Ok(())
    }

    /// Disks that the node had and that are listed no more are missing as well: nobody has said that they are lost.
    fn miss_unlisted(&mut self, config: &Config) {
        let here: Vec<DeviceId> = self.slots.iter().map(Slot::device).collect();
        let listed: Vec<PathBuf> =
            config.disks.iter().map(|disk| provision::absolute(disk.path.get_ref())).collect();
        for (device, path) in self.known.awaited() {
            if here.contains(&device) {
                continue;
            }
            let why = if listed.contains(&path) {
                "another disk is in its place"
            } else {
                "the configuration lists it no more"
            };
            self.slots.push(Slot::Missing(Missing { path, device, why: why.to_owned() }));
        }
    }

    /// Refuses a disk where another one has its identity: what is written to one of them the other does not have.
    fn twin(&self, path: &Path, device: DeviceId, why: &str) -> Result<(), OpenError> {
        let Some(other) = self.open_disks().find(|other| other.handle.device() == device) else {
            return Ok(());
        };
        let other = other.path.display();
        let reason = if why.is_empty() {
            format!("is device {device}, as {other} is: one is a copy of the other; list only the one to use")
        } else {
            format!("{why}. Device {device}, which it is or was, is {other}: list only that one")
        };
        Err(OpenError::new(path, reason))
    }

    /// Whether a node can start with those that are open: the first is among them.
    fn suffice(&self) -> Result<(), OpenError> {
        let Some(Slot::Missing(Missing { path, why, .. })) = self.slots.first() else { return Ok(()) };
        Err(missing::has_votes(path, why))
    }

    fn open_disks(&self) -> impl Iterator<Item = &OpenDisk> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Open(open) => Some(open),
            Slot::Missing(_) => None,
        })
    }

    /// Those that the node does without.
    pub(crate) fn missing(&self) -> Vec<Missing> {
        let missing = |slot: &Slot| match slot {
            Slot::Open(_) => None,
            Slot::Missing(missing) => Some(missing.clone()),
        };
        self.slots.iter().filter_map(missing).collect()
    }

    /// Notes that the node has started with these disks: one of them may be missing from now on.
    pub(crate) fn remember(&self) -> Result<(), OpenError> {
        let place = |slot: &'_ Slot| match slot {
            Slot::Open(open) => (open.handle.device(), open.path.clone(), Some(open.handle.clone())),
            Slot::Missing(missing) => (missing.device, missing.path.clone(), None),
        };
        self.known.remember(&self.slots.iter().map(place).collect::<Vec<_>>())
    }

    /// What the next start is to know of them.
    pub(crate) fn known(&self) -> Arc<Known> {
        Arc::clone(&self.known)
    }

    /// Closes them again where the node is on its own and began with others.
    pub(crate) async fn kept(self, config: &Config) -> Result<Self, OpenError> {
        let devices: Vec<_> = self.handles().iter().map(DiskHandle::device).collect();
        match kept::check(config, &devices) {
            Ok(()) => Ok(self),
            Err(error) => {
                self.close().await;
                Err(error)
            }
        }
    }

    /// The handles of those that are open, in the configuration's order.
    pub(crate) fn handles(&self) -> Vec<DiskHandle> {
        self.open_disks().map(|disk| disk.handle.clone()).collect()
    }

    /// The object layer over them, when this node knows no other: each object on one of them, which is waited for.
    pub(crate) fn alone(&self) -> Result<Store, OpenError> {
        let options = Options { spawn: Some(crate::cluster::spawn()), time: None };
        let handles = self.handles();
        let placement = Spread::over(handles.iter().map(DiskHandle::device).collect());
        let clock = Clock::new(Box::new(wall_clock));
        let path = self.open_disks().next().map_or_else(PathBuf::new, |disk| disk.path.clone());
        Store::start(handles, Box::new(placement), clock, options).map_err(|e| OpenError::new(&path, e))
    }

    /// Makes everything durable and closes them.
    pub(crate) async fn close(&self) {
        for disk in self.open_disks() {
            if let Err(error) = disk.handle.close().await {
                tracing::error!(disk = %disk.path.display(), %error, "close disk");
            }
        }
        let (known, handles) = (self.known(), self.handles());
        let noted = tokio::task::spawn_blocking(move || known.note(&handles, None)).await;
        if let Ok(Err(error)) = noted {
            tracing::warn!(%error, "note how far the logs of the disks are durable");
        }
    }
}

impl Storage {
    /// Starts background work over a store of these disks, on `runtime`; `cluster` is the one that they are in, if any.
    pub(crate) fn start(
        disks: Disks,
        store: Store,
        cluster: Option<&Arc<dyn Cluster>>,
        config: &Config,
        runtime: &Handle,
    ) -> Self {
        let workers = Workers::start(&store, cluster, &config.work, runtime);
        let (watched, reports) = (disks.slots.clone(), workers.reports());
        let status = StatusSource::new(move || {
            let disks = watched.iter().map(status_of).collect();
            (disks, reports.iter().map(workers::status_of).collect())
        });
        Self { store, disks, workers, status }
    }

    /// The object layer.
    pub(crate) fn store(&self) -> Store {
        self.store.clone()
    }

    /// Reads the disks' and workers' state.
    pub(crate) fn status(&self) -> StatusSource {
        self.status.clone()
    }

    /// Stops the workers; the disks are still open.
    pub(crate) async fn stop(self) -> Disks {
        self.workers.stop().await;
        self.disks
    }
}

/// How a store of a cluster runs on the runtime that this is called in.
pub(crate) fn options() -> Options {
    let since = crate::cluster::monotonic();
    Options {
        spawn: Some(crate::cluster::spawn()),
        time: Some(Time { now: since, timer: crate::cluster::timer() }),
    }
}

/// Microseconds since the Unix epoch.
pub(crate) fn wall_clock() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Waits for a step of closing disks where there is a runtime: they would close themselves, perhaps while the process ends.
fn now<T>(closing: impl Future<Output = T>) {
    if let Ok(runtime) = Handle::try_current() {
        runtime.block_on(closing);
    }
}

/// Opens a disk; `in_place_of`: the one whose index is there.
fn open_disk(
    config: &Config,
    disk: &config::Disk,
    cluster: ClusterId,
    in_place_of: Option<DeviceId>,
    progress: &mut Progress,
) -> Result<(OpenDisk, Report), StartError> {
    let path = disk.path.get_ref();
    let disks = config.disks.len() as u64;
    let large = config.limits.body_cache.map_or_else(|| memory::total() / BODY_CACHE_SHARE, |size| size.0);
    let cache = CacheBytes { small: config.limits.read_cache.0 / disks, large: large / disks };
    let disk_config = disk_config(path, disk.index.get_ref(), cache, Some(cluster));
    let what = format!("rebuild index of {}", path.display());
    let mut report_progress = |done, total| progress(&what, done, total);
    let (handle, report) = match in_place_of {
        None => start(&disk_config, catalog(), &mut report_progress)?,
        Some(gone) => start_in_place_of(gone, &disk_config, catalog(), &mut report_progress)?,
    };
    tracing::info!(
        disk = %path.display(),
        replayed = report.records,
        torn_tail = report.torn_tail,
        lost = report.lost.len(),
        "disk is open"
    );
    Ok((OpenDisk { path: path.clone(), handle }, report))
}

/// Why a disk was not opened by a node of `cluster`, and what to do.
fn not_ours(path: &Path, cluster: ClusterId, error: StartError) -> OpenError {
    match error {
        StartError::Open(disk::OpenError::Unformatted) => provision::unformatted(path, Some(cluster)),
        StartError::Open(disk::OpenError::OtherCluster { found, expected }) => {
            provision::of_another_cluster(path, found, expected)
        }
        error => OpenError::new(path, error),
    }
}

/// What records mean on the disks.
pub(crate) fn catalog() -> Arc<dyn Catalog> {
    Arc::new(ObjectCatalog)
}

/// How a disk is opened, by a node and by the disk commands.
pub(crate) fn disk_config(
    path: &Path,
    index: &Path,
    cache_bytes: CacheBytes,
    cluster: Option<ClusterId>,
) -> DiskConfig {
    DiskConfig {
        device: path.to_owned(),
        io: OpenOptions { minimum: MIN_DISK, lock_wait: LOCK_WAIT, ..OpenOptions::default() },
        index: RocksOptions::default(),
        index_path: index.to_owned(),
        cache_bytes,
        cluster,
    }
}

fn status_of(slot: &Slot) -> DiskStatus {
    let disk = match slot {
        Slot::Open(disk) => disk,
        // As one that failed since.
        Slot::Missing(Missing { path, why, .. }) => {
            let (path, state) = (path.display().to_string(), format!("out: {why}"));
            return DiskStatus { path, state, ..DiskStatus::default() };
        }
    };
    let usage = disk.handle.usage();
    DiskStatus {
        path: disk.path.display().to_string(),
        state: disk.handle.failure().map_or_else(|| "ok".to_owned(), |why| format!("out: {why}")),
        capacity: usage.capacity,
        used: usage.capacity - usage.free,
        live: usage.live,
        refuses: disk.handle.above_high_water(),
        index_free: disk.handle.index_free(),
        counters: counters(disk.handle.counters()),
    }
}

fn counters(counters: &Counters) -> BTreeMap<String, u64> {
    [
        ("batches", &counters.batches),
        ("batches_behind", &counters.behind),
        ("flushes", &counters.flushes),
        ("records", &counters.records),
        ("written_bytes", &counters.written_bytes),
        ("client_bytes", &counters.client_bytes),
        ("moved_bytes", &counters.moved_bytes),
        ("cut_records", &counters.cut_records),
        ("ordered_bytes", &counters.ordered_bytes),
        ("reads", &counters.reads),
        ("block_calls", &counters.block_calls),
        ("cache_hits", &counters.cache_hits),
        ("corrupt_records", &counters.corrupt),
        ("checkpoints", &counters.checkpoints),
        ("segments_freed", &counters.freed),
    ]
    .into_iter()
    .map(|(name, counter)| (name.to_owned(), counter.load(Ordering::Relaxed)))
    .collect()
}
