//! The smallest catalog there is: a row per key, last writer wins, tombstones kept.

use std::sync::Arc;

use bytes::Bytes;

use crate::disk::catalog::{Catalog, Tx};
use crate::disk::format::bytes::{Put, Reader};
use crate::disk::format::record::{DeviceId, Kind, NewRecord, Parts, RecordView};
use crate::disk::format::superblock::ClusterId;
use crate::disk::{
    Class, DiskError, DiskHandle, Durability, Format, Location, Lsn, OpenError, Report, SimulatedDisk,
};
use crate::index::{Index, IndexError, MemoryIndex, Table};
use crate::io::{CrashPlan, SimImage, SplitMix64};

#[derive(Debug)]
pub(super) struct Kv;

/// An entry: sequence, deleted, place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) sequence: u64,
    pub(super) deleted: bool,
    pub(super) at: Location,
}

impl Entry {
    fn encode(self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u64(self.sequence);
        out.push(u8::from(self.deleted));
        out.put_u32(self.at.segment);
        out.put_u32(self.at.offset);
        out.put_u32(self.at.len);
        out
    }

    fn decode(bytes: &[u8]) -> Self {
        let mut r = Reader::new(bytes);
        let sequence = r.u64().unwrap();
        let deleted = r.u8().unwrap() == 1;
        let at = Location { segment: r.u32().unwrap(), offset: r.u32().unwrap(), len: r.u32().unwrap() };
        Self { sequence, deleted, at }
    }
}

pub(super) fn entry(index: &dyn Index, key: &[u8]) -> Option<Entry> {
    index.get(Table::Rows, key).unwrap().map(|value| Entry::decode(&value))
}

impl Catalog for Kv {
    fn apply(&self, tx: &mut Tx<'_>, record: &RecordView<'_>, at: Location) -> Result<(), IndexError> {
        let old = tx.get(Table::Rows, record.key)?.map(|value| Entry::decode(&value));
        let place = |e: &Entry| (e.sequence, e.at);
        if old.as_ref().is_some_and(|old| place(old) >= (record.sequence, at)) {
            return Ok(());
        }
        if let Some(old) = old {
            tx.died(old.at);
        }
        tx.born(at);
        let new = Entry { sequence: record.sequence, deleted: record.deleted, at };
        tx.put(Table::Rows, record.key, new.encode());
        Ok(())
    }

    fn relocate(
        &self,
        tx: &mut Tx<'_>,
        record: &RecordView<'_>,
        from: Location,
        to: Location,
    ) -> Result<bool, IndexError> {
        let old = tx.get(Table::Rows, record.key)?.map(|value| Entry::decode(&value));
        let Some(old) = old.filter(|old| old.at == from) else { return Ok(false) };
        tx.died(from);
        tx.born(to);
        tx.put(Table::Rows, record.key, Entry { at: to, ..old }.encode());
        Ok(true)
    }

    fn is_live(&self, index: &dyn Index, record: &RecordView<'_>, at: Location) -> Result<bool, IndexError> {
        Ok(entry(index, record.key).is_some_and(|entry| entry.at == at))
    }

    fn forget(&self, _: &mut Tx<'_>, _: &RecordView<'_>) -> Result<(), IndexError> {
        Ok(())
    }

    fn home(&self, _: &RecordView<'_>) -> Option<Table> {
        Some(Table::Rows)
    }
}

/// A simulated disk, its index and what lives on them across crashes.
pub(super) struct Rig {
    pub(super) image: SimImage,
    pub(super) index: Arc<MemoryIndex>,
    pub(super) sim: Option<SimulatedDisk>,
}

pub(super) const SEGMENT: u64 = 16 << 20;

impl Rig {
    /// A formatted device of `segments` segments of the smallest size.
    pub(super) fn new(segments: u64, seed: u64) -> Self {
        let image = SimImage::new((segments + 1) * SEGMENT, seed);
        let request = Format {
            cluster: ClusterId([7; 16]),
            device: DeviceId([9; 16]),
            segment_size: Some(SEGMENT),
            overwrite: false,
        };
        crate::disk::format(&mut image.open(), &request).unwrap();
        let mut rig = Self { image, index: Arc::new(MemoryIndex::new()), sim: None };
        rig.open();
        rig
    }

    pub(super) fn open(&mut self) -> Report {
        self.try_open().unwrap()
    }

    /// As the real start does: an index that is stale is dropped and made anew.
    pub(super) fn try_open(&mut self) -> Result<Report, OpenError> {
        self.sim = None;
        let disk = Box::new(self.image.open());
        let opened = match SimulatedDisk::open(disk, self.index.clone(), Arc::new(Kv)) {
            Err(OpenError::StaleIndex(_)) => {
                self.index = Arc::new(MemoryIndex::new());
                SimulatedDisk::open(Box::new(self.image.open()), self.index.clone(), Arc::new(Kv))
            }
            other => other,
        };
        let (sim, report) = opened?;
        self.sim = Some(sim);
        Ok(report)
    }

    /// Power cut and restart of the drive: the engine that was open is gone, unflushed writes are subject to `plan`.
    pub(super) fn crash(&mut self, plan: CrashPlan, rng: &mut SplitMix64) {
        self.image.crash(plan, rng);
        self.sim = None;
    }

    /// The index is lost as a whole.
    pub(super) fn lose_index(&mut self) {
        self.sim = None;
        self.index = Arc::new(MemoryIndex::new());
    }

    /// A put of its own batch that is only written.
    pub(super) fn put_appended(&mut self, key: &str, sequence: u64, value: &[u8]) -> Result<Lsn, DiskError> {
        let handle = self.handle();
        let record = put_record(&handle, key, sequence, value);
        self.sim().run(handle.append(vec![record], Durability::Appended, Class::Client))
    }

    /// Where the newest record of a key lies, on the device.
    pub(super) fn place(&self, key: &str) -> (Location, u64) {
        let handle = self.handle();
        let at = entry(self.index.as_ref(), key.as_bytes()).unwrap().at;
        (at, handle.shared.layout.segment_start(at.segment) + u64::from(at.offset))
    }

    pub(super) fn sim(&mut self) -> &mut SimulatedDisk {
        self.sim.as_mut().unwrap()
    }

    pub(super) fn handle(&self) -> DiskHandle {
        self.sim.as_ref().unwrap().handle()
    }

    pub(super) fn put(&mut self, key: &str, sequence: u64, value: &[u8]) -> Result<Lsn, DiskError> {
        let record = put_record(&self.handle(), key, sequence, value);
        let handle = self.handle();
        self.sim().run(handle.append(vec![record], Durability::Durable, Class::Client))
    }

    pub(super) fn delete(&mut self, key: &str, sequence: u64) -> Result<Lsn, DiskError> {
        let handle = self.handle();
        let record = delete_record(&handle, key, sequence);
        self.sim().run(handle.append(vec![record], Durability::Durable, Class::Delete))
    }

    pub(super) fn get(&mut self, key: &str) -> Result<Option<(u64, Bytes)>, DiskError> {
        let handle = self.handle();
        let found = handle.lookup(|index| {
            let entry = entry(index, key.as_bytes()).filter(|entry| !entry.deleted);
            Ok(entry.map(|entry| (entry, vec![entry.at])))
        })?;
        let Some((entry, _pins)) = found else { return Ok(None) };
        let record = self.sim().run(handle.read_uncached(entry.at))?;
        assert_eq!(record.view().key, key.as_bytes());
        Ok(Some((entry.sequence, record.data())))
    }
}

pub(super) fn put_record(handle: &DiskHandle, key: &str, sequence: u64, value: &[u8]) -> NewRecord {
    let data = Bytes::copy_from_slice(value);
    let (key, meta) = (key.as_bytes(), &b"meta"[..]);
    handle.record(Parts { kind: Kind::Row, deleted: false, sequence, number: 0, key, meta, data })
}

pub(super) fn delete_record(handle: &DiskHandle, key: &str, sequence: u64) -> NewRecord {
    let key = key.as_bytes();
    handle.record(Parts {
        kind: Kind::Row,
        deleted: true,
        sequence,
        number: 0,
        key,
        meta: b"",
        data: Bytes::new(),
    })
}
