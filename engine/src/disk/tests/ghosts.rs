//! Dead records that are still in the log keep the tombstones that keep them dead, whatever the cleaner could do.

use std::sync::Arc;

use bytes::Bytes;

use crate::catalog::{self, ObjectCatalog, group_prefix};
use crate::disk::format::record::{DeviceId, Kind, NewRecord, Parts};
use crate::disk::format::superblock::ClusterId;
use crate::disk::{Class, Cleaned, DiskHandle, Durability, Format, Location, SimulatedDisk, format};
use crate::index::{MemoryIndex, Table};
use crate::io::SimImage;

const SEGMENT: u64 = 16 << 20;

/// A disk with rows.
struct Rig {
    image: SimImage,
    index: Arc<MemoryIndex>,
    sim: Option<SimulatedDisk>,
    sequence: u64,
}

fn key(name: &str) -> Vec<u8> {
    [&group_prefix(0)[..], b"k", name.as_bytes()].concat()
}

fn open(image: &SimImage, index: &Arc<MemoryIndex>) -> SimulatedDisk {
    SimulatedDisk::open(Box::new(image.open()), index.clone(), Arc::new(ObjectCatalog)).unwrap().0
}

impl Rig {
    fn new(seed: u64) -> Self {
        let image = SimImage::new(13 * SEGMENT, seed);
        let request = Format {
            cluster: ClusterId([7; 16]),
            device: DeviceId([9; 16]),
            segment_size: Some(SEGMENT),
            overwrite: false,
        };
        format(&mut image.open(), &request).unwrap();
        let index = Arc::new(MemoryIndex::new());
        let sim = Some(open(&image, &index));
        Self { image, index, sim, sequence: 0 }
    }

    fn handle(&self) -> DiskHandle {
        self.sim.as_ref().unwrap().handle()
    }

    fn run<T>(&mut self, work: impl Future<Output = T>) -> T {
        self.sim.as_mut().unwrap().run(work)
    }

    fn record(&mut self, name: &str, value: Option<&[u8]>) -> NewRecord {
        self.sequence += 1;
        let (deleted, sequence, meta) = (value.is_none(), self.sequence, value.unwrap_or_default());
        let (kind, key, data) = (Kind::Row, &key(name)[..], Bytes::new());
        self.handle().record(Parts { kind, deleted, sequence, number: 0, key, meta, data })
    }

    fn write(&mut self, name: &str, value: Option<&[u8]>) {
        let (record, handle) = (self.record(name, value), self.handle());
        let class = if value.is_some() { Class::Client } else { Class::Delete };
        self.run(handle.append(vec![record], Durability::Durable, class)).unwrap();
    }

    /// Garbage for more than a segment.
    fn fill(&mut self) {
        for n in 0..300 {
            self.write("filler", Some(&vec![u8::try_from(n % 251).unwrap(); 60_000]));
        }
    }

    fn at(&self, name: &str) -> Location {
        catalog::walk_one(self.index.as_ref(), Table::Rows, &key(name)).unwrap().unwrap().at
    }

    fn clean(&mut self, segment: u32) -> Cleaned {
        let handle = self.handle();
        self.run(handle.clean(segment)).unwrap().unwrap()
    }

    /// As the pruner does; how many tombstones are left.
    fn prune(&mut self) -> usize {
        let handle = self.handle();
        for grave in catalog::graves(self.index.as_ref(), &[], 100).unwrap() {
            let change = Box::new(move |tx: &mut crate::disk::catalog::Tx<'_>| {
                catalog::prune(tx, &grave.key, u64::MAX)
            });
            self.run(handle.submit_prune(change)).unwrap();
        }
        catalog::graves(self.index.as_ref(), &[], 100).unwrap().len()
    }

    /// Cleans all that can be, and lets it be freed.
    fn clean_all(&mut self) {
        let handle = self.handle();
        while let Some(segment) = handle.victim(&[]) {
            self.clean(segment);
        }
        self.run(handle.checkpoint()).unwrap();
        (0..20).for_each(|_| self.sim.as_mut().unwrap().turn());
    }

    fn rebuild(&mut self) {
        self.sim = None;
        self.index = Arc::new(MemoryIndex::new());
        self.sim = Some(open(&self.image, &self.index));
    }

    fn has(&self, name: &str) -> bool {
        catalog::row(self.index.as_ref(), &key(name)).unwrap().is_some()
    }

    /// A segment with a row that was deleted since, and one that is needed.
    fn deleted(seed: u64) -> (Self, u32) {
        let mut rig = Self::new(seed);
        rig.write("gone", Some(b"old"));
        rig.write("needed", Some(&[7; 3000]));
        let segment = rig.at("needed").segment;
        rig.fill();
        rig.write("gone", None);
        rig.fill();
        assert_ne!(rig.at("filler").segment, segment);
        (rig, segment)
    }
}

/// A needed record could not be read, so its segment stayed; but what was dead in it was forgotten. Nothing kept the tombstone of a
/// deleted row then: it was pruned, its own segment was cleaned, and a rebuild of the index brought the row back.
#[test]
fn a_deleted_row_in_a_segment_that_stays_does_not_come_back() {
    let (mut rig, segment) = Rig::deleted(1);
    let at = rig.at("needed");
    let place = rig.handle().shared.layout.segment_start(segment) + u64::from(at.offset);
    rig.image.flip(place + u64::from(at.len) / 2, 1);
    assert!(!rig.clean(segment).retired);
    assert_eq!(rig.handle().victims(&[]).iter().find(|victim| **victim == segment), None);
    assert_eq!(rig.prune(), 1, "the put is in the log still");
    rig.clean_all();
    rig.rebuild();
    assert!(!rig.has("gone"));
    // Repaired, as a replica would: now the segment can go, and the tombstone with it.
    rig.write("needed", Some(b"again"));
    assert!(rig.clean(segment).retired);
    rig.clean_all();
    assert_eq!(rig.prune(), 0);
    rig.clean_all();
    rig.rebuild();
    assert!(!rig.has("gone") && rig.has("needed"));
}

/// The same without a rebuild between: what was stuck is cleaned from its beginning once nothing in it is needed.
#[test]
fn what_was_stuck_is_forgotten_when_it_goes() {
    let (mut rig, segment) = Rig::deleted(2);
    let at = rig.at("needed");
    let place = rig.handle().shared.layout.segment_start(segment) + u64::from(at.offset);
    rig.image.flip(place + u64::from(at.len) / 2, 1);
    assert!(!rig.clean(segment).retired);
    rig.write("needed", Some(b"again"));
    assert_eq!(rig.prune(), 1);
    assert!(rig.clean(segment).retired);
    assert_eq!(rig.prune(), 0);
}

/// Heads that there is no memory for are read again, and forgotten all the same, once.
#[test]
fn heads_that_are_too_many_are_read_again() {
    for memory in [1, 5_000, 200_000, 1 << 30] {
        let (mut rig, segment) = Rig::deleted(3);
        let handle = rig.handle();
        let cleaned = rig.run(handle.clean_within(&[segment], memory)).unwrap();
        assert!(cleaned.len() == 1 && cleaned[0].retired, "{memory}");
        assert_eq!(rig.prune(), 0, "{memory}");
        assert!(rig.has("needed") && !rig.has("gone"));
        let head =
            |rig: &Rig| catalog::walk_one(rig.index.as_ref(), Table::Rows, &key("filler")).unwrap().unwrap();
        rig.clean_all();
        let counted = head(&rig).ghosts;
        rig.rebuild();
        assert_eq!(head(&rig).ghosts, counted, "{memory}: what is in the log, and no more");
    }
}
