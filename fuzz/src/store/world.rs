//! One simulated machine: a disk image, an index, a clock, and the real engine over them.
//!
//! Invariant: everything that decides what happens comes from the seed; the engine reads no clock of its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Context;
use std::time::Duration;

use quarry_engine::clock::Clock;
use quarry_engine::disk::catalog::Catalog;
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::disk::format::superblock::ClusterId;
use quarry_engine::disk::{DiskHandle, Format, OpenError, Report, SimulatedDisk, format};
use quarry_engine::index::{Index, MemoryIndex};
use quarry_engine::io::{CrashPlan, SimImage, SplitMix64};
use quarry_engine::object::{BoxFuture, Options, Spread, Store};

use super::oracle::Violation;

/// Bytes of a segment: the smallest.
pub const SEGMENT: u64 = 16 << 20;
/// Where the wall clock begins, in Unix seconds.
pub const START: u64 = 1_795_000_000;
const CLUSTER: ClusterId = ClusterId([7; 16]);
const DEVICE: DeviceId = DeviceId([9; 16]);

/// How a machine goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Down {
    /// `kill -9`: the drive keeps what it was given.
    Kill,
    /// The power fails.
    Power(CrashPlan),
}

/// What becomes of the index when the machine goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexFate {
    /// It keeps its checkpoint and some of what came after.
    Prefix(u64),
    /// It is lost and must be rebuilt.
    Lost,
}

/// A machine; up between [`World::up`] and [`World::down`].
pub struct World {
    /// The drive.
    pub image: SimImage,
    /// The index.
    pub index: Arc<MemoryIndex>,
    sim: Option<SimulatedDisk>,
    store: Option<Store>,
    wall: Arc<AtomicU64>,
    spawned: Arc<Mutex<Vec<BoxFuture<'static, ()>>>>,
    catalog: Arc<dyn Catalog>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("image", &self.image).finish_non_exhaustive()
    }
}

impl World {
    /// A machine with a formatted drive of that many segments; down.
    pub fn new(segments: u64, seed: u64, catalog: Arc<dyn Catalog>) -> Result<Self, Violation> {
        let image = SimImage::new(segments * SEGMENT + (4 << 20), seed);
        let request =
            Format { cluster: CLUSTER, device: DEVICE, segment_size: Some(SEGMENT), overwrite: false };
        format(&mut image.open(), &request).map_err(|e| Violation(format!("format: {e}")))?;
        Ok(Self {
            image,
            index: Arc::new(MemoryIndex::new()),
            sim: None,
            store: None,
            wall: Arc::new(AtomicU64::new(START * 1_000_000)),
            spawned: Arc::default(),
            catalog,
        })
    }

    /// Starts the engine: recovery runs here. An index that the engine calls stale is destroyed, as an operator would.
    pub fn up(&mut self) -> Result<Report, OpenError> {
        let opened = match self.open() {
            // None is ever restored here.
            Err(OpenError::StaleIndex(why)) if !why.starts_with("it is older") => {
                self.index = Arc::new(MemoryIndex::new());
                self.open()
            }
            other => other,
        };
        let (sim, report) = opened?;
        let handle = sim.handle();
        self.sim = Some(sim);
        let placement = Box::new(Spread::over(vec![handle.device()]));
        let wall = self.wall.clone();
        // Each reading is a microsecond later than the last.
        let clock = Clock::new(Box::new(move || wall.fetch_add(1, Ordering::Relaxed)));
        let spawned = self.spawned.clone();
        let spawn = Arc::new(move |work| {
            spawned.lock().unwrap_or_else(PoisonError::into_inner).push(work);
        });
        let options = Options { spawn: Some(spawn), ..Options::default() };
        let store = Store::start(vec![handle], placement, clock, options);
        self.store = Some(store.map_err(|e| OpenError::Io {
            verb: "start store",
            source: std::io::Error::other(e.to_string()),
        })?);
        Ok(report)
    }

    fn open(&self) -> Result<(SimulatedDisk, Report), OpenError> {
        let index = self.index.clone() as Arc<dyn Index>;
        SimulatedDisk::open(Box::new(self.image.open()), index, self.catalog.clone())
    }

    /// Takes the machine down, from whatever it is doing.
    pub fn down(&mut self, how: Down, index: IndexFate, rng: &mut SplitMix64) {
        if let Down::Power(_) = how {
            // Nothing that is dropped below may reach the drive.
            self.image.power_off();
        }
        self.store = None;
        self.take_spawned().clear();
        self.sim = None;
        if let Down::Power(plan) = how {
            self.image.crash(plan, rng);
        }
        match index {
            IndexFate::Prefix(seed) => self.index.crash_by(seed),
            IndexFate::Lost => self.index = Arc::new(MemoryIndex::new()),
        }
    }

    /// Whether the engine runs.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.store.is_some()
    }

    /// The object layer.
    #[must_use]
    pub fn store(&self) -> Option<Store> {
        self.store.clone()
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self) -> Option<DiskHandle> {
        self.sim.as_ref().map(SimulatedDisk::handle)
    }

    /// The disk's core moves on by one turn.
    pub fn turn(&mut self) {
        if let Some(sim) = &mut self.sim {
            sim.turn();
        }
    }

    /// Lets time pass for the disk, so that what is due by time comes due.
    pub fn pass(&mut self, by: Duration) {
        if let Some(sim) = &mut self.sim {
            sim.pass(by);
        }
    }

    /// Polls what runs by itself; true when nothing is left of it.
    pub fn poll_spawned(&mut self) -> bool {
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut left: Vec<_> = std::mem::take(&mut *self.take_spawned());
        left.retain_mut(|work| work.as_mut().poll(&mut context).is_pending());
        let mut all = self.take_spawned();
        left.append(&mut all);
        *all = left;
        all.is_empty()
    }

    fn take_spawned(&self) -> std::sync::MutexGuard<'_, Vec<BoxFuture<'static, ()>>> {
        self.spawned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The wall clock, in Unix seconds.
    #[must_use]
    pub fn seconds(&self) -> u64 {
        self.wall.load(Ordering::Relaxed) / 1_000_000
    }

    /// The wall clock jumps.
    pub fn jump(&self, seconds: i64) {
        let now = self.wall.load(Ordering::Relaxed);
        self.wall.store(now.saturating_add_signed(seconds * 1_000_000), Ordering::Relaxed);
    }
}
