//! One machine of the cluster: its drives and clock, which outlive it, and the node that runs on them, which does not.
//!
//! Invariant: what a node knows when it starts is what its drives say; nothing else is carried from life to life.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quarry_engine::consensus::{Groups, SimRuntime};
use quarry_engine::disk::catalog::Catalog;
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::disk::format::superblock::ClusterId;
use quarry_engine::disk::{DiskHandle, Format, OpenError, Report, SimulatedDisk, format};
use quarry_engine::index::{Index, MemoryIndex};
use quarry_engine::io::{CrashPlan, SimImage, SplitMix64};
use quarry_engine::net::NodeId;
use quarry_engine::object::Store;
use quarry_engine::object::names::Divided;
use quarry_engine::work::Reports;

use super::keeper::Voters;
use super::plant::Plant;
use crate::blocks::part::Part;
use crate::store::oracle::Violation;
use crate::store::world::{IndexFate, SEGMENT, START};

const CLUSTER: ClusterId = ClusterId([7; 16]);

/// A wall clock: virtual time, and how far this machine is off.
#[derive(Debug, Clone)]
pub(crate) struct Wall {
    runtime: SimRuntime,
    /// Microseconds that passed for all machines while nothing happened.
    slept: Arc<AtomicI64>,
    skew: Arc<AtomicI64>,
}

impl Wall {
    pub(crate) fn new(runtime: SimRuntime, slept: Arc<AtomicI64>) -> Self {
        Self { runtime, slept, skew: Arc::default() }
    }

    /// Microseconds since the Unix epoch.
    pub(crate) fn now(&self) -> u64 {
        let since = u64::try_from(self.runtime.now().as_micros()).unwrap_or(0);
        let off = self.skew.load(Ordering::Relaxed) + self.slept.load(Ordering::Relaxed);
        (START * 1_000_000 + since).saturating_add_signed(off)
    }

    pub(crate) fn set_skew(&self, off: i64) {
        self.skew.store(off, Ordering::Relaxed);
    }
}

/// A drive, its index, and the engine over them while the machine is up.
pub(crate) struct Drive {
    pub(crate) device: DeviceId,
    pub(crate) image: SimImage,
    pub(crate) index: Arc<MemoryIndex>,
    sim: Option<SimulatedDisk>,
    /// It turns once in so many turns of the world.
    pub(crate) pace: u64,
}

impl Drive {
    pub(crate) fn new(device: DeviceId, segments: u64, seed: u64) -> Result<Self, Violation> {
        let image = SimImage::new(segments * SEGMENT + (4 << 20), seed);
        let request = Format { cluster: CLUSTER, device, segment_size: Some(SEGMENT), overwrite: false };
        format(&mut image.open(), &request).map_err(|e| Violation(format!("format: {e}")))?;
        Ok(Self { device, image, index: Arc::new(MemoryIndex::new()), sim: None, pace: 1 })
    }

    pub(crate) fn open(&mut self, catalog: &Arc<dyn Catalog>) -> Result<Report, OpenError> {
        let opened = match self.try_open(catalog) {
            // As an operator would.
            // None is ever restored here.
            Err(OpenError::StaleIndex(why)) if !why.starts_with("it is older") => {
                self.index = Arc::new(MemoryIndex::new());
                self.try_open(catalog)
            }
            other => other,
        };
        let (sim, report) = opened?;
        self.sim = Some(sim);
        Ok(report)
    }

    fn try_open(&self, catalog: &Arc<dyn Catalog>) -> Result<(SimulatedDisk, Report), OpenError> {
        let index = self.index.clone() as Arc<dyn Index>;
        SimulatedDisk::open(Box::new(self.image.open()), index, catalog.clone())
    }

    pub(crate) fn handle(&self) -> Option<DiskHandle> {
        self.sim.as_ref().map(SimulatedDisk::handle)
    }

    /// What was in memory is gone; with `plan` the power failed as well.
    pub(crate) fn down(&mut self, plan: Option<CrashPlan>, fate: IndexFate, rng: &mut SplitMix64) {
        self.sim = None;
        if let Some(plan) = plan {
            self.image.crash(plan, rng);
        }
        match fate {
            IndexFate::Prefix(seed) => self.index.crash_by(seed),
            IndexFate::Lost => self.index = Arc::new(MemoryIndex::new()),
        }
    }

    /// One turn, if it is its turn.
    pub(crate) fn turn(&mut self, turns: u64) {
        if let Some(sim) = self.sim.as_mut().filter(|_| turns.is_multiple_of(self.pace)) {
            sim.turn();
        }
    }
}

/// What runs of a node once it has opened its groups.
#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) store: Store,
    /// Of its workers.
    pub(crate) reports: Vec<Reports>,
    /// Of its groups.
    pub(crate) voters: Voters,
    /// Its way to names.
    pub(crate) divided: Divided,
    /// Its part of the volume, if there is one.
    pub(crate) part: Option<Part>,
}

/// A node in one of its lives.
#[derive(Clone)]
pub(crate) struct Life {
    pub(crate) groups: Groups,
    /// Absent until it has opened its groups.
    pub(crate) running: Arc<Mutex<Option<Running>>>,
    /// Why it could not start, if so.
    pub(crate) failed: Arc<Mutex<Option<String>>>,
}

/// A machine.
pub(crate) struct Machine {
    pub(crate) node: NodeId,
    pub(crate) drives: Vec<Drive>,
    pub(crate) wall: Wall,
    pub(crate) life: Option<Life>,
}

pub(crate) fn node_id(machine: usize) -> NodeId {
    NodeId([u8::try_from(machine + 1).unwrap_or(0); 16])
}

pub(crate) fn device_id(machine: usize, drive: usize) -> DeviceId {
    let (machine, drive) = (u8::try_from(machine + 1).unwrap_or(0), u8::try_from(drive).unwrap_or(0));
    let mut id = [machine; 16];
    id[15] = drive;
    DeviceId(id)
}

impl Machine {
    /// With formatted drives, down.
    pub(crate) fn new(
        number: usize,
        drives: usize,
        segments: u64,
        wall: Wall,
        rng: &mut SplitMix64,
    ) -> Result<Self, Violation> {
        let drive = |n| Drive::new(device_id(number, n), segments, rng.next_u64());
        let drives = (0..drives).map(drive).collect::<Result<_, _>>()?;
        Ok(Self { node: node_id(number), drives, wall, life: None })
    }

    /// Opens all drives: recovery runs here.
    pub(crate) fn open(&mut self, plant: Plant) -> Result<Vec<Report>, OpenError> {
        let catalog = plant.catalog();
        self.drives.iter_mut().map(|drive| drive.open(&catalog)).collect()
    }

    pub(crate) fn is_up(&self) -> bool {
        self.life.is_some()
    }

    pub(crate) fn has_power(&self) -> bool {
        self.drives.iter().all(|drive| drive.image.is_powered())
    }

    pub(crate) fn running(&self) -> Option<Running> {
        let running = &self.life.as_ref()?.running;
        running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn why_failed(&self) -> Option<String> {
        let failed = &self.life.as_ref()?.failed;
        failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why one of its drives is out of service.
    pub(crate) fn drive_failure(&self) -> Option<Arc<str>> {
        self.drives.iter().filter_map(Drive::handle).find_map(|disk| disk.failure())
    }

    pub(crate) fn handles(&self) -> Vec<DiskHandle> {
        self.drives.iter().filter_map(Drive::handle).collect()
    }

    /// Takes all away that was in memory; with `plan` the power fails as well. What ran of it is dropped by the caller before.
    pub(crate) fn down(&mut self, plan: Option<CrashPlan>, fate: IndexFate, rng: &mut SplitMix64) {
        self.life = None;
        self.drives.iter_mut().for_each(|drive| drive.down(plan, fate, rng));
    }

    /// No drive writes what it has in memory any more.
    pub(crate) fn cut_power(&self) {
        self.drives.iter().for_each(|drive| drive.image.power_off());
    }

    /// One turn of the drives whose turn it is.
    pub(crate) fn turn(&mut self, turns: u64) {
        self.drives.iter_mut().for_each(|drive| drive.turn(turns));
    }

    /// Lets time pass for the drives.
    pub(crate) fn pass(&mut self, by: Duration) {
        self.drives.iter_mut().filter_map(|drive| drive.sim.as_mut()).for_each(|sim| sim.pass(by));
    }

    /// Every version and tombstone that each of its devices holds.
    pub(crate) fn indexes(&self) -> BTreeMap<DeviceId, Arc<MemoryIndex>> {
        self.drives.iter().map(|drive| (drive.device, drive.index.clone())).collect()
    }
}
