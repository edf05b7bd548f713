use std::sync::Arc;

use quarry_engine::block::VolumeId;
use quarry_engine::catalog::ObjectCatalog;
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::disk::format::superblock::ClusterId;
use quarry_engine::disk::{DiskHandle, Format, OpenError, Report, SimulatedDisk, format};
use quarry_engine::index::MemoryIndex;
use quarry_engine::io::{CrashPlan, SimImage, SplitMix64};

use crate::KeyRing;
use crate::store::{Device, Label, Volumes};

pub(super) const SEGMENT: u64 = 16 << 20;
/// Enough that writes are answered early while the disk is not half full.
pub(super) const SEGMENTS: u64 = 24;
pub(super) const VOLUME: u64 = 64 << 20;

/// One simulated disk and its volumes.
pub(super) struct Rig {
    pub(super) image: SimImage,
    pub(super) index: Arc<MemoryIndex>,
    pub(super) sim: Option<SimulatedDisk>,
    pub(super) volumes: Option<Arc<Volumes>>,
    pub(super) rng: SplitMix64,
}

impl Rig {
    pub(super) fn new(seed: u64) -> Self {
        let image = SimImage::new(SEGMENTS * SEGMENT, seed);
        let request = Format {
            cluster: ClusterId([7; 16]),
            device: DeviceId([9; 16]),
            segment_size: Some(SEGMENT),
            overwrite: false,
        };
        format(&mut image.open(), &request).unwrap();
        let mut rig = Self {
            image,
            index: Arc::new(MemoryIndex::new()),
            sim: None,
            volumes: None,
            rng: SplitMix64::new(seed),
        };
        rig.open();
        rig
    }

    pub(super) fn open(&mut self) -> Report {
        self.volumes = None;
        self.sim = None;
        let open = |rig: &Self| {
            SimulatedDisk::open(Box::new(rig.image.open()), rig.index.clone(), Arc::new(ObjectCatalog))
        };
        let opened = match open(self) {
            Err(OpenError::StaleIndex(_)) => {
                self.index = Arc::new(MemoryIndex::new());
                open(self)
            }
            other => other,
        };
        let (sim, report) = opened.unwrap();
        self.volumes = Some(Arc::new(Volumes::open(vec![sim.handle()]).unwrap().with_keys(keys())));
        self.sim = Some(sim);
        report
    }

    /// Power cut; `keep_index`: else the index is made anew from the log.
    pub(super) fn crash(&mut self, keep_index: bool) -> Report {
        self.volumes = None;
        self.sim = None;
        self.image.crash(CrashPlan::MIXED, &mut self.rng);
        if keep_index {
            self.index.crash_by(self.rng.next_u64());
        } else {
            self.index = Arc::new(MemoryIndex::new());
        }
        self.open()
    }

    pub(super) fn handle(&self) -> DiskHandle {
        self.sim.as_ref().unwrap().handle()
    }

    pub(super) fn volumes(&self) -> Arc<Volumes> {
        self.volumes.clone().unwrap()
    }

    pub(super) fn run<F: Future>(&mut self, future: F) -> F::Output {
        self.sim.as_mut().unwrap().run(future)
    }

    pub(super) fn create(&mut self, name: &str, id: u8) {
        self.create_as(label(name), id);
    }

    pub(super) fn create_as(&mut self, label: Label, id: u8) {
        let volumes = self.volumes();
        self.run(volumes.create(VolumeId([id; 16]), label)).unwrap();
    }

    pub(super) fn attach(&mut self, name: &str) -> Device {
        let volumes = self.volumes();
        self.run(volumes.attach(name)).unwrap()
    }

    pub(super) fn read(&mut self, device: &Device, offset: u64, length: u64) -> Vec<u8> {
        self.run(device.read_whole(offset, length)).unwrap().to_vec()
    }
}

pub(super) fn keys() -> KeyRing {
    KeyRing::new(vec![[5; 32]])
}

/// Of an encrypted volume.
pub(super) fn locked(name: &str) -> Label {
    Label { key: Some(keys().wrap(&[4; 64]).unwrap()), ..label(name) }
}

pub(super) fn label(name: &str) -> Label {
    Label {
        name: name.into(),
        description: "for a test".into(),
        bytes: VOLUME,
        slice_bytes: 0,
        made: 5,
        ..Label::default()
    }
}
