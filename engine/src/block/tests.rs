//! Random histories of volumes: the index after the log's order, after any order, with copies and moves.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::catalog::ObjectCatalog;
use crate::disk::catalog::{Catalog, Finished};
use crate::disk::format::record::{DeviceId, NewRecord, Parts};
use crate::disk::memo::{Memo, Told};
use crate::index::{Index, IndexError, IndexStats, MemoryIndex, Pair, Range, Table, WriteSet};
use crate::io::SplitMix64;

pub(super) const DEVICE: DeviceId = DeviceId([1; 16]);
pub(super) const VOLUME: VolumeId = VolumeId([2; 16]);

pub(super) type Dump = BTreeMap<Vec<u8>, Vec<u8>>;
pub(super) type Log = Vec<(NewRecord, Location)>;

/// An index, and the live bytes that its transactions told.
pub(super) struct Bench {
    pub(super) index: Told,
    live: BTreeMap<u32, i64>,
}

impl Default for Bench {
    fn default() -> Self {
        let memo = Arc::new(Memo::new(Arc::new(ObjectCatalog)));
        Self { index: Told { index: Arc::new(MemoryIndex::new()), memo }, live: BTreeMap::new() }
    }
}

impl Bench {
    pub(super) fn run<T>(&mut self, f: impl FnOnce(&mut Tx<'_>) -> Result<T, IndexError>) -> T {
        let mut tx = Tx::new(&self.index);
        let result = f(&mut tx).unwrap();
        let Finished { set, live, .. } = tx.finish();
        self.index.apply(set).unwrap();
        for (segment, delta) in live {
            *self.live.entry(segment).or_default() += delta;
        }
        result
    }

    pub(super) fn apply(&mut self, log: &Log) -> &mut Self {
        for (record, at) in log {
            self.run(|tx| ObjectCatalog.apply(tx, &record.view(), *at));
        }
        self
    }

    /// All but the marks, which depend on the order, and are only looked at here: each row of an era above 0 lies in one.
    pub(super) fn dump(&self) -> Dump {
        let rows = self.index.scan(Table::Blocks, Range::default());
        let mut rows: Dump =
            rows.map(|pair| pair.map(|(key, value)| (key.into_vec(), value.into_vec())).unwrap()).collect();
        let marks: Vec<Vec<u8>> = rows.keys().filter(|key| key[0] == b'm').cloned().collect();
        rows.retain(|key, _| key[0] != b'm');
        for (key, value) in rows.iter().filter(|(key, _)| key[0] == b'b') {
            let (at, era) = row::parse_block_key(key).unwrap();
            for (place, _) in row::Row::decode(key, value).unwrap().blocks(at) {
                let lies_in = |mark: &Vec<u8>| {
                    mark[17..21] == era.to_be_bytes()
                        && mark[21..27] == key[17..23]
                        && (mark[27]..=mark[28]).contains(&place.block)
                };
                assert!(era == 0 || marks.iter().any(lies_in), "block {place:?} of era {era} has no mark");
            }
        }
        rows
    }

    /// Live bytes as told, which must be those of the records that say that they are live.
    pub(super) fn live(&self, log: &Log) -> i64 {
        assert!(self.live.values().all(|bytes| *bytes >= 0));
        let told: i64 = self.live.values().sum();
        let mut tx = Tx::new(&self.index);
        for (record, at) in log {
            if !ObjectCatalog.is_live(&self.index, &record.view(), *at).unwrap() {
                continue;
            }
            match map::live_bytes(&self.index, &record.view(), *at) {
                Some(bytes) => tx.weigh(at.segment, bytes),
                None => tx.born(*at),
            }
        }
        assert_eq!(told, tx.finish().live.values().sum::<i64>());
        told
    }
}

fn shuffle<T>(rng: &mut SplitMix64, items: &mut [T]) {
    rng.shuffle(items);
}

pub(super) fn extent(run: Run, sequence: u64, era: u32, zeroes: bool) -> NewRecord {
    let content = if zeroes { Content::Zeroes } else { Content::Data(vec![7; run.blocks.into()]) };
    let fence = Fence { epoch: 1 + sequence / 20, configuration: 1 };
    let data = Bytes::from(vec![0; if zeroes { 0 } else { usize::from(run.blocks) * 4096 }]);
    let extent = Extent { volume: VOLUME, run, fence, sequence, content };
    NewRecord::new(
        DEVICE,
        Parts {
            kind: Kind::VolumeExtent,
            deleted: zeroes,
            sequence,
            number: era,
            key: &row::block_key(VOLUME, run.slice, run.chunk, run.first, era),
            meta: &extent.encode(),
            data,
        },
    )
}

fn note(tag: NoteTag, number: u64, sequence: u64, meta: Option<&[u8]>) -> NewRecord {
    let key = NoteKey { volume: VOLUME, tag, number }.encode();
    let (deleted, meta) = (meta.is_none(), meta.unwrap_or_default());
    let parts =
        Parts { kind: Kind::VolumeMap, deleted, sequence, number: 0, key: &key, meta, data: Bytes::new() };
    NewRecord::new(DEVICE, parts)
}

/// A history in the log's order: writes and zeroes over few blocks, several eras, notes that change.
pub(super) fn history(rng: &mut SplitMix64) -> Log {
    let (mut log, mut era) = (Log::new(), 0);
    for sequence in 1..80_u64 {
        // Short ones, and such as cover spans whole.
        let first = [0, 1, 9, 15, 16, 17][rng.index(6)] + u8::try_from(rng.below(3)).unwrap();
        let blocks = [1, 1, 2, 7, 16, 17, 33][rng.index(7)];
        let chunk = ChunkId(u16::try_from(rng.below(2)).unwrap());
        let run = Run { slice: SliceId(3), chunk, first, blocks };
        let mut records = vec![extent(run, sequence, era, rng.chance(200))];
        if rng.chance(80) {
            records.push(note(NoteTag::Snapshot, era.into(), sequence, Some(b"snapshot")));
            era += 1;
        }
        if rng.chance(100) {
            let meta = (!rng.chance(300)).then_some(&b"promise"[..]);
            records.push(note(NoteTag::Promise, 0, sequence, meta));
        }
        for record in records {
            let place = u32::try_from(log.len()).unwrap();
            let len = u32::try_from(record.stored_len()).unwrap();
            log.push((record, Location { segment: place / 10, offset: 4096 + place % 10 * 65_536, len }));
        }
    }
    log
}

#[test]
fn a_batch_that_is_looked_up_at_once_ends_as_its_records_do_one_by_one() {
    for seed in 0..60 {
        let mut rng = SplitMix64::new(seed);
        let log = history(&mut rng);
        let (mut alone, mut together) = (Bench::default(), Bench::default());
        alone.apply(&log);
        let mut rest = log.as_slice();
        while !rest.is_empty() {
            let (batch, behind) = rest.split_at(1 + rng.index(rest.len()));
            let views: Vec<_> = batch.iter().map(|(record, _)| record.view()).collect();
            together.run(|tx| {
                tx.foresee(&ObjectCatalog, &views)?;
                batch.iter().zip(&views).try_for_each(|((_, at), view)| ObjectCatalog.apply(tx, view, *at))
            });
            rest = behind;
        }
        assert_eq!(together.dump(), alone.dump(), "seed {seed}");
        assert_eq!(together.live(&log), alone.live(&log), "seed {seed}");
    }
}

/// Counts what is asked for one by one.
struct Counting(MemoryIndex, std::sync::atomic::AtomicUsize);

impl Index for Counting {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        let of_block = key.first() == Some(&b'b');
        self.1.fetch_add(of_block.into(), std::sync::atomic::Ordering::Relaxed);
        self.0.get(table, key)
    }

    fn get_several(&self, table: Table, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, IndexError> {
        self.0.get_several(table, keys)
    }

    fn scan<'a>(
        &'a self,
        table: Table,
        range: Range,
    ) -> Box<dyn Iterator<Item = Result<Pair, IndexError>> + Send + 'a> {
        self.0.scan(table, range)
    }

    fn apply(&self, set: WriteSet) -> Result<(), IndexError> {
        self.0.apply(set)
    }

    fn checkpoint(&self) -> Result<(), IndexError> {
        self.0.checkpoint()
    }

    fn stats(&self) -> IndexStats {
        self.0.stats()
    }
}

#[test]
fn rows_of_blocks_that_are_overwritten_are_asked_for_together() {
    let index = Counting(MemoryIndex::new(), std::sync::atomic::AtomicUsize::new(0));
    let asked = || index.1.load(std::sync::atomic::Ordering::Relaxed);
    for sequence in [1, 2] {
        let before = asked();
        let records: Vec<_> = (0..20)
            .map(|block| Run { slice: SliceId(3), chunk: ChunkId(0), first: block, blocks: 1 })
            .map(|run| extent(run, sequence, 0, false))
            .collect();
        let views: Vec<_> = records.iter().map(NewRecord::view).collect();
        let mut tx = Tx::new(&index);
        tx.foresee(&ObjectCatalog, &views).unwrap();
        for (nth, view) in (0..).zip(&views) {
            let at = Location { segment: 1, offset: nth * 8192, len: 4400 };
            ObjectCatalog.apply(&mut tx, view, at).unwrap();
        }
        index.apply(tx.finish().set).unwrap();
        // The first time there is none, so that the rows of spans are looked at.
        assert_eq!(asked() - before, if sequence == 1 { 20 } else { 0 });
    }
}

#[test]
fn any_order_ends_in_the_same_rows() {
    for seed in 0..60 {
        let mut rng = SplitMix64::new(seed);
        let log = history(&mut rng);
        let mut ordered = Bench::default();
        let (dump, live) = (ordered.apply(&log).dump(), ordered.live(&log));
        ordered.apply(&log);
        assert_eq!((ordered.dump(), ordered.live(&log)), (dump.clone(), live), "seed {seed}, twice");
        for _ in 0..4 {
            let mut shuffled = log.clone();
            shuffle(&mut rng, &mut shuffled);
            let mut bench = Bench::default();
            assert_eq!(bench.apply(&shuffled).dump(), dump, "seed {seed}");
            assert_eq!(bench.live(&log), live, "seed {seed}");
        }
        // Only what is live has to be there.
        let needed: Log = log
            .iter()
            .filter(|(record, at)| ObjectCatalog.is_live(&ordered.index, &record.view(), *at).unwrap())
            .cloned()
            .collect();
        let mut bench = Bench::default();
        let kept = bench.apply(&needed).dump();
        let blocks = |dump: &Dump| dump.iter().filter(|(key, _)| key[0] != b'l').count();
        assert_eq!(blocks(&kept), blocks(&dump), "seed {seed}: {} of {}", needed.len(), log.len());
    }
}

#[test]
fn moved_records_are_live_where_they_went() {
    for seed in 0..40 {
        let mut rng = SplitMix64::new(seed);
        let log = history(&mut rng);
        let mut bench = Bench::default();
        bench.apply(&log);
        let live = bench.live(&log);
        let mut moved = Log::new();
        for (record, from) in &log {
            let to = Location { segment: from.segment + 1000, ..*from };
            let was = ObjectCatalog.is_live(&bench.index, &record.view(), *from).unwrap();
            let did = bench.run(|tx| ObjectCatalog.relocate(tx, &record.view(), *from, to));
            assert_eq!(was, did, "seed {seed}");
            if did {
                assert!(!ObjectCatalog.is_live(&bench.index, &record.view(), *from).unwrap());
                moved.push((record.clone(), to));
            }
        }
        assert_eq!(bench.live(&moved), live, "seed {seed}");
        // A rebuild that finds both copies ends in the same live bytes.
        let mut both = [log, moved].concat();
        shuffle(&mut rng, &mut both);
        let mut rebuilt = Bench::default();
        rebuilt.apply(&both);
        assert_eq!(rebuilt.live(&both), live, "seed {seed}");
        assert_eq!(rebuilt.dump(), bench.dump(), "seed {seed}");
    }
}

#[test]
fn nothing_of_a_volume_that_is_gone_stays_once_it_is_reaped() {
    for seed in 0..40 {
        let mut rng = SplitMix64::new(seed);
        let mut log = history(&mut rng);
        let label = note(NoteTag::Volume, 0, 1, Some(b"label"));
        let gone = note(NoteTag::Volume, 0, 2, None);
        let at = |n: u32, record: &NewRecord| Location {
            segment: 500,
            offset: n * 4096,
            len: u32::try_from(record.stored_len()).unwrap(),
        };
        let (label_at, gone_at) = (at(1, &label), at(2, &gone));
        log.push((label, label_at));
        log.push((gone, gone_at));
        shuffle(&mut rng, &mut log);
        let mut bench = Bench::default();
        bench.apply(&log);
        loop {
            let keys = map::some_keys(&bench.index, VOLUME, 5).unwrap();
            if keys.is_empty() {
                break;
            }
            bench.run(|tx| map::drop_rows(tx, &keys));
            // A crash may lose what was done, and then it is done again.
            bench.run(|tx| map::drop_rows(tx, &keys));
        }
        bench.live(&log);
        assert!(bench.dump().keys().all(|key| key[0] == b'n' || key[0] == b'l'), "seed {seed}");
        assert!(ObjectCatalog.is_live(&bench.index, &log_of(&log, gone_at).view(), gone_at).unwrap());
    }
}

fn log_of(log: &Log, at: Location) -> &NewRecord {
    &log.iter().find(|(_, known)| *known == at).unwrap().0
}
