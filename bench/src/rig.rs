//! A freshly formatted disk with its index, and the two operations that are measured, on either of two layers.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use quarry_engine::catalog::ObjectCatalog;
use quarry_engine::clock::Clock;
use quarry_engine::disk::catalog::Catalog;
use quarry_engine::disk::format::record::{DeviceId, Kind, Parts};
use quarry_engine::disk::format::superblock::ClusterId;
use quarry_engine::disk::{
    CacheBytes, Class, DiskHandle, Durability, Format, Open, Report, format, start_on,
};
use quarry_engine::index::{RocksIndex, RocksOptions};
use quarry_engine::io::{
    AlignedBuf, Completion, Disk, Geometry, Lanes, Op, OpenOptions, SplitMix64, Told, Wait, Waker,
    aligned_bytes, open_device,
};

use quarry_engine::object::{ObjectPath, Options, PutSpec, Spread, Store};

use crate::failure::Failure;
use crate::kv::{Kv, find};

/// Headers that come with a small object.
const META: &[u8] = &[b'm'; 64];

/// Bytes that values are cut from: more than the largest, so that neighbours differ.
const SOURCE: usize = (1 << 20) + 512 * SHIFT;
/// How far apart: they begin where callers' bodies do, at a block.
const SHIFT: usize = 4096;

/// What an operation goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    /// The disk engine alone, with the smallest catalog there is: one record a put.
    Engine,
    /// The object layer: an object and its listing row, MD5 and BLAKE3 of the body.
    Object,
}

impl Layer {
    /// As scenarios are named.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Object => "object",
        }
    }
}

/// Where the engine works.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// File or raw device.
    pub(crate) disk: PathBuf,
    /// Bytes of it that the engine gets; the rest is for the raw loop. Zero: all.
    pub(crate) bytes: u64,
    pub(crate) index: PathBuf,
}

/// The first bytes of a device, as a device.
struct Part {
    inner: Box<dyn Disk>,
    capacity: u64,
}

impl Disk for Part {
    fn geometry(&self) -> Geometry {
        Geometry { capacity: self.capacity, ..self.inner.geometry() }
    }

    fn submit(&mut self, op: Op) {
        self.inner.submit(op);
    }

    fn announce(&mut self, told: Told) {
        self.inner.announce(told);
    }

    fn pipelines(&self) -> bool {
        self.inner.pipelines()
    }

    fn reap(&mut self, wait: Wait, out: &mut Vec<Completion>) {
        self.inner.reap(wait, out);
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }

    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn buffer(&mut self, len: usize) -> AlignedBuf {
        self.inner.buffer(len)
    }

    fn lanes(&self) -> Option<Lanes> {
        self.inner.lanes()
    }
}

/// An open disk under measure.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) handle: DiskHandle,
    /// Alive as long as the engine's threads hold the disk.
    held: Weak<RocksIndex>,
    /// On [`Layer::Object`].
    store: Option<Store>,
    source: Bytes,
    next: AtomicU64,
}

/// The counters that scenarios look at.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) batches: u64,
    pub(crate) behind: u64,
    pub(crate) flushes: u64,
    pub(crate) records: u64,
    pub(crate) written: u64,
}

impl Counts {
    pub(crate) fn minus(self, before: Self) -> Self {
        Self {
            batches: self.batches - before.batches,
            behind: self.behind - before.behind,
            flushes: self.flushes - before.flushes,
            records: self.records - before.records,
            written: self.written - before.written,
        }
    }

    pub(crate) fn plus(self, more: Self) -> Self {
        Self {
            batches: self.batches + more.batches,
            behind: self.behind + more.behind,
            flushes: self.flushes + more.flushes,
            records: self.records + more.records,
            written: self.written + more.written,
        }
    }
}

impl Rig {
    /// Formats the place anew and opens it with an empty index.
    pub(crate) fn fresh(place: &Place, layer: Layer) -> Result<Self, Failure> {
        let mut disk = open_part(place)?;
        let request = Format {
            cluster: ClusterId([0xbe; 16]),
            device: new_device(),
            segment_size: None,
            overwrite: true,
        };
        format(disk.as_mut(), &request)?;
        if place.index.exists() {
            std::fs::remove_dir_all(&place.index).map_err(Failure::io("remove old index"))?;
        }
        let (rig, _) = Self::on(disk, &place.index, layer)?;
        if let Some(store) = &rig.store {
            let path = object_path(0);
            let made =
                store.put_container(&path.account, &path.container, 0, |_| Ok(PutSpec::default().headers));
            runtime()?.block_on(made)?;
        }
        Ok(rig)
    }

    /// Opens what is there.
    pub(crate) fn open(place: &Place, layer: Layer) -> Result<(Self, Report), Failure> {
        Self::on(open_part(place)?, &place.index, layer)
    }

    fn on(disk: Box<dyn Disk>, index: &Path, layer: Layer) -> Result<(Self, Report), Failure> {
        let index = Arc::new(RocksIndex::open(index, &RocksOptions::default())?);
        let held = Arc::downgrade(&index);
        // No cache: a get is a read of the device.
        let options = Open { cluster: None, cache_bytes: CacheBytes::default(), progress: &mut |_, _| {} };
        let catalog: Arc<dyn Catalog> = match layer {
            Layer::Engine => Arc::new(Kv),
            Layer::Object => Arc::new(ObjectCatalog),
        };
        let (handle, report) = start_on(disk, index, catalog, options)?;
        let store = match layer {
            Layer::Engine => None,
            Layer::Object => Some(store_over(&handle)?),
        };
        let mut source = aligned_bytes(SOURCE);
        source.resize(SOURCE, 0);
        SplitMix64::new(3).fill(&mut source);
        Ok((Self { handle, held, store, source: source.freeze(), next: AtomicU64::new(0) }, report))
    }

    /// Closes the disk and waits until its threads have let go of device and index.
    pub(crate) fn close(self) -> Result<(), Failure> {
        runtime()?.block_on(self.handle.close())?;
        drop((self.handle, self.store));
        if self.held.strong_count() == 0 {
            return Ok(());
        }
        Err(Failure::Other("the engine did not let go of its disk".to_owned()))
    }

    /// Puts one new value of `size` bytes, durably.
    pub(crate) async fn put(&self, size: usize) -> Result<(), Failure> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let shift = usize::try_from(number % 512).unwrap_or(0) * SHIFT;
        let data = self.source.slice(shift..shift + size);
        if let Some(store) = &self.store {
            let mut writer = store.writer(&object_path(number), Some(size as u64)).await?;
            writer.write(data).await?;
            let content_type = "application/octet-stream".to_owned();
            writer.commit(PutSpec { content_type, ..PutSpec::default() }).await?;
            return Ok(());
        }
        let record = self.handle.record(Parts {
            kind: Kind::Object,
            deleted: false,
            sequence: number + 1,
            number: 0,
            key: &key(number),
            meta: META,
            data,
        });
        self.handle.append(vec![record], Durability::Durable, Class::Client).await?;
        Ok(())
    }

    /// Reads a random one of the values that were put, from the device.
    pub(crate) async fn get(&self, size: usize, random: &mut SplitMix64) -> Result<(), Failure> {
        let number = random.below(self.next.load(Ordering::Relaxed));
        if let Some(store) = &self.store {
            return read_object(store, &object_path(number), size as u64).await;
        }
        let key = key(number);
        let found = self.handle.lookup(|index| Ok(find(index, &key)?.map(|at| (at, vec![at]))))?;
        let Some((at, _pins)) = found else {
            return Err(Failure::Other("a record that was put is not in the index".to_owned()));
        };
        let record = self.handle.read_uncached(at).await?;
        if record.view().key != key || record.data().len() != size {
            return Err(Failure::Other("the engine returned another record".to_owned()));
        }
        Ok(())
    }

    /// The counters now.
    pub(crate) fn counts(&self) -> Counts {
        let counters = self.handle.counters();
        let [batches, behind, flushes, records, written] = [
            &counters.batches,
            &counters.behind,
            &counters.flushes,
            &counters.records,
            &counters.written_bytes,
        ]
        .map(|counter| counter.load(Ordering::Relaxed));
        Counts { batches, behind, flushes, records, written }
    }

    /// The store, on [`Layer::Object`].
    pub(crate) fn store(&self) -> Option<&Store> {
        self.store.as_ref()
    }

    /// Records put so far.
    pub(crate) fn records(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }
}

/// A store as the node's, on one disk. Callers here wait for every change, so none needs finishing in their place.
fn store_over(handle: &DiskHandle) -> Result<Store, Failure> {
    let placement = Box::new(Spread::over(vec![handle.device()]));
    Ok(Store::start(vec![handle.clone()], placement, Clock::new(Box::new(wall_clock)), Options::default())?)
}

async fn read_object(store: &Store, path: &ObjectPath, size: u64) -> Result<(), Failure> {
    let Some(object) = store.open(path).await? else {
        return Err(Failure::Other("an object that was put is not there".to_owned()));
    };
    let mut pieces = object.range(0..object.info.size);
    let mut read = 0;
    while let Some(piece) = pieces.next().await {
        read += piece?.len() as u64;
    }
    if read == size { Ok(()) } else { Err(Failure::Other("an object has another length".to_owned())) }
}

fn object_path(number: u64) -> ObjectPath {
    let object = format!("objects/{number:012}").into();
    ObjectPath { account: "AUTH_bench".into(), container: "bench".into(), object }
}

/// A runtime of one thread: the cheapest client there is.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Failure::io("start runtime"))
}

fn open_part(place: &Place) -> Result<Box<dyn Disk>, Failure> {
    let inner = open_device(&place.disk, OpenOptions { minimum: place.bytes, ..OpenOptions::default() })?;
    let capacity = if place.bytes == 0 { inner.geometry().capacity } else { place.bytes };
    Ok(Box::new(Part { inner, capacity }))
}

/// A path hash as the object layer's: 16 bytes without order.
fn key(number: u64) -> [u8; 16] {
    let mut random = SplitMix64::new(number);
    let mut key = [0; 16];
    random.fill(&mut key);
    key
}

/// Another identity at each format: what an earlier one left must not look like ours.
fn new_device() -> DeviceId {
    let mut random = SplitMix64::new(wall_clock());
    let mut id = [0; 16];
    random.fill(&mut id);
    DeviceId(id)
}

/// Microseconds since the Unix epoch.
fn wall_clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
