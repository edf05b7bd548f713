//! A store over simulated disks, polled by hand.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::catalog::ObjectCatalog;
use crate::clock::Clock;
use crate::disk::format::record::DeviceId;
use crate::disk::{DiskHandle, Format, SimulatedDisk, format};
use crate::index::{Index, MemoryIndex};
use crate::io::{CrashPlan, SimImage, SplitMix64};
use crate::object::{Committed, Condition, EtagMatch, Listing, ObjectPath, Options, PutSpec, Spread, Store};

pub(crate) const DISK: u64 = 16 * (16 << 20);
pub(crate) const START: u64 = 1_795_000_000;

struct Disk {
    image: SimImage,
    index: Arc<MemoryIndex>,
    sim: Option<SimulatedDisk>,
}

pub(crate) struct Rig {
    disks: Vec<Disk>,
    pub(crate) wall: Arc<AtomicU64>,
    store: Option<Store>,
    pub(crate) rng: SplitMix64,
}

pub(crate) fn path(object: &str) -> ObjectPath {
    ObjectPath { account: "AUTH_a".into(), container: "c".into(), object: object.into() }
}

pub(crate) fn bytes(seed: u64, len: usize) -> Bytes {
    let mut out = vec![0; len];
    SplitMix64::new(seed).fill(&mut out);
    out.into()
}

pub(crate) fn any() -> Option<EtagMatch> {
    Some(EtagMatch::Any)
}

pub(crate) fn all() -> Listing {
    Listing { limit: 10_000, ..Listing::default() }
}

impl Rig {
    /// With the container `AUTH_a/c`.
    pub(crate) fn new(disks: u8, seed: u64) -> Self {
        let disk = |n: u8| {
            let image = SimImage::new(DISK, seed + u64::from(n));
            let request = Format {
                cluster: crate::disk::format::superblock::ClusterId([7; 16]),
                device: DeviceId([n + 1; 16]),
                segment_size: Some(16 << 20),
                overwrite: false,
            };
            format(&mut image.open(), &request).unwrap();
            Disk { image, index: Arc::new(MemoryIndex::new()), sim: None }
        };
        let disks = (0..disks).map(disk).collect();
        let wall = Arc::new(AtomicU64::new(START * 1_000_000));
        let mut rig = Self { disks, wall, store: None, rng: SplitMix64::new(seed) };
        rig.open();
        let store = rig.store();
        rig.run(store.put_container("AUTH_a", "c", 0, |_| Ok(Default::default()))).unwrap();
        rig
    }

    pub(crate) fn open(&mut self) {
        for disk in &mut self.disks {
            disk.sim = None;
            let index = disk.index.clone() as Arc<dyn Index>;
            let device = Box::new(disk.image.open());
            disk.sim = Some(SimulatedDisk::open(device, index, Arc::new(ObjectCatalog)).unwrap().0);
        }
        let handles: Vec<DiskHandle> = self.disks.iter().map(|d| d.sim.as_ref().unwrap().handle()).collect();
        let placement = Spread::over(handles.iter().map(DiskHandle::device).collect());
        let wall = self.wall.clone();
        // Each reading is a little later than the last.
        let clock = Clock::new(Box::new(move || wall.fetch_add(1, Ordering::SeqCst)));
        self.store = Some(Store::start(handles, Box::new(placement), clock, Options::default()).unwrap());
    }

    /// Loses what was not flushed and what was not checkpointed; `keep_index`: else the index is lost whole.
    pub(crate) fn crash(&mut self, keep_index: bool) {
        self.store = None;
        for disk in &mut self.disks {
            disk.sim = None;
            disk.image.crash(CrashPlan::MIXED, &mut self.rng);
            if keep_index {
                disk.index.crash_by(self.rng.next_u64());
            } else {
                disk.index = Arc::new(MemoryIndex::new());
            }
        }
        self.open();
    }

    pub(crate) fn store(&self) -> Store {
        self.store.clone().unwrap()
    }

    pub(crate) fn handle(&self, disk: usize) -> DiskHandle {
        self.disks[disk].sim.as_ref().unwrap().handle()
    }

    pub(crate) fn turn(&mut self) {
        for disk in &mut self.disks {
            disk.sim.as_mut().unwrap().turn();
        }
    }

    pub(crate) fn run<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..100_000 {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return output;
            }
            self.turn();
        }
        panic!("stuck");
    }

    /// Polls a future a few times and drops it.
    pub(crate) fn abandon<F: Future>(&mut self, polls: u32, future: F) {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..polls {
            if future.as_mut().poll(&mut context).is_ready() {
                return;
            }
            self.turn();
        }
    }

    pub(crate) fn advance(&self, seconds: u64) {
        self.wall.fetch_add(seconds * 1_000_000, Ordering::SeqCst);
    }

    pub(crate) fn try_put(
        &mut self,
        path: &ObjectPath,
        body: &Bytes,
        spec: PutSpec,
    ) -> crate::object::Result<Committed> {
        let store = self.store();
        self.run(async move {
            let mut writer = store.writer(path, Some(body.len() as u64)).await?;
            for piece in body.chunks(300_000) {
                writer.write(Bytes::copy_from_slice(piece)).await?;
            }
            writer.commit(spec).await
        })
    }

    pub(crate) fn put(&mut self, name: &str, body: &Bytes) -> Committed {
        let spec = PutSpec { content_type: "text/plain".to_owned(), ..PutSpec::default() };
        self.try_put(&path(name), body, spec).unwrap()
    }

    pub(crate) fn get(&mut self, name: &str) -> Option<Bytes> {
        self.try_get(name).unwrap()
    }

    pub(crate) fn try_get(&mut self, name: &str) -> crate::object::Result<Option<Bytes>> {
        let store = self.store();
        self.run(async move {
            let Some(reader) = store.open(&path(name)).await? else { return Ok(None) };
            let mut range = reader.range(0..reader.info.size);
            let mut out = Vec::new();
            while let Some(piece) = range.next().await {
                out.extend_from_slice(&piece?);
            }
            Ok(Some(out.into()))
        })
    }

    /// Flips a bit in the only place of the device that holds these bytes.
    pub(crate) fn flip(&mut self, disk: usize, needle: &[u8]) {
        let image = &self.disks[disk].image;
        let step = 1 << 20;
        let found = (0..DISK / step).find_map(|n| {
            let len = usize::try_from((DISK - n * step).min(step + 4096)).unwrap();
            let bytes = image.peek(n * step, len);
            let at = bytes.windows(needle.len()).position(|window| window == needle)?;
            Some(n * step + at as u64)
        });
        image.flip(found.unwrap(), 0x10);
    }

    pub(crate) fn delete(&mut self, name: &str) -> crate::object::Deleted {
        let store = self.store();
        self.run(store.delete_object(&path(name), &Condition::default())).unwrap()
    }

    pub(crate) fn names(&mut self) -> Vec<String> {
        let store = self.store();
        let entries = self.run(store.list_objects("AUTH_a", "c", &all())).unwrap();
        let name = |entry| match entry {
            crate::object::Entry::Row(row) => {
                let row: crate::object::ObjectRow = row;
                row.name
            }
            crate::object::Entry::Subdir(name) => name,
        };
        entries.into_iter().map(name).collect()
    }

    /// Objects and bytes of the container and of the account.
    pub(crate) fn totals(&mut self) -> [u64; 4] {
        let store = self.store();
        let container = self.run(store.container("AUTH_a", "c")).unwrap().unwrap();
        let account = self.run(store.account("AUTH_a")).unwrap().unwrap();
        [container.objects, container.bytes, account.objects, account.bytes]
    }

    /// Rows in a table of a disk.
    pub(crate) fn count(&self, disk: usize, table: crate::index::Table) -> usize {
        self.disks[disk].index.scan(table, crate::index::Range::default()).count()
    }
}
