//! Random histories against ordered maps: what the index says after the log's order, any order, copies and moves.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::*;
use crate::clock::Timestamp;
use crate::disk::catalog::Finished;
use crate::disk::format::record::{DeviceId, NewRecord, Parts};
use crate::index::{MemoryIndex, Range};
use crate::object::{ListedAs, ObjectInfo, ObjectPath};

const DEVICE: DeviceId = DeviceId([1; 16]);

/// xorshift64*: a history is its seed.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, usize::try_from(self.below(i as u64 + 1)).unwrap());
        }
    }
}

type Dump = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

/// An index, and the live bytes that its transactions told.
#[derive(Default)]
struct Bench {
    index: MemoryIndex,
    live: BTreeMap<u32, i64>,
    sums: BTreeMap<u32, u128>,
}

impl Bench {
    fn run<T>(&mut self, f: impl FnOnce(&mut Tx<'_>) -> Result<T, IndexError>) -> T {
        let mut tx = Tx::new(&self.index);
        let result = f(&mut tx).unwrap();
        let Finished { set, live, shifts } = tx.finish();
        self.index.apply(set).unwrap();
        for (tally, by) in shifts {
            let sum = self.sums.entry(tally).or_default();
            *sum = sum.wrapping_add(by);
        }
        for (segment, delta) in live {
            *self.live.entry(segment).or_default() += delta;
        }
        result
    }

    fn apply(&mut self, record: &NewRecord, at: Location) {
        self.run(|tx| ObjectCatalog.apply(tx, &record.view(), at));
    }

    fn dump(&self) -> Dump {
        let mut dump = Dump::new();
        for table in Table::ALL {
            for pair in self.index.scan(table, Range::default()) {
                let (key, value) = pair.unwrap();
                dump.insert((table, key.into_vec()), value.into_vec());
            }
        }
        dump
    }

    /// The sums that transactions told are those of what the index has.
    fn check_sums(&self, seed: u64) {
        let mut counted: BTreeMap<u32, u128> = BTreeMap::new();
        ObjectCatalog
            .count(&self.index, &mut |(tally, by)| {
                let sum = counted.entry(tally).or_default();
                *sum = sum.wrapping_add(by);
            })
            .unwrap();
        let told: BTreeMap<u32, u128> =
            self.sums.iter().map(|(tally, sum)| (*tally, *sum)).filter(|(_, sum)| *sum != 0).collect();
        assert_eq!(told, counted, "seed {seed}");
    }

    fn live_sum(&self) -> i64 {
        assert!(self.live.values().all(|bytes| *bytes >= 0));
        self.live.values().sum()
    }

    fn live_records(&self, log: &[(NewRecord, Location)]) -> i64 {
        let live = |(record, at): &&(NewRecord, Location)| {
            ObjectCatalog.is_live(&self.index, &record.view(), *at).unwrap()
        };
        let mut tx = Tx::new(&self.index);
        log.iter().filter(live).for_each(|(_, at)| tx.born(*at));
        tx.finish().live.values().sum()
    }
}

fn record(kind: Kind, deleted: bool, sequence: u64, number: u32, key: &[u8], meta: &[u8]) -> NewRecord {
    NewRecord::new(DEVICE, Parts { kind, deleted, sequence, number, key, meta, data: Bytes::new() })
}

fn path(object: &str) -> ObjectPath {
    ObjectPath { account: "a".into(), container: "c".into(), object: object.into() }
}

fn hash(object: u64) -> PathHash {
    [u8::try_from(object).unwrap(); 16]
}

/// Some objects are in an eventual container.
fn intent(n: u64) -> Option<u64> {
    (n >= 4).then_some(300)
}

fn object(n: u64, sequence: u64, chunked: Option<Chunked>, delete_at: Option<u64>) -> NewRecord {
    let info = ObjectInfo {
        timestamp: Timestamp(sequence),
        data_timestamp: Timestamp(sequence),
        size: 0,
        md5: [0; 16],
        blake3: [0; 32],
        content_type: "text/plain".to_owned(),
        delete_at,
        listed: ListedAs::default(),
        headers: Headers::default(),
    };
    let meta = ObjectMeta {
        path: path(&n.to_string()),
        info,
        chunked,
        chunk_size: 1 << 20,
        fragment: None,
        intent: intent(n),
    };
    record(Kind::Object, false, sequence, 0, &hash(n), &meta.encode())
}

use crate::object::Headers;

fn line(id: u64, n: u64, sequence: u64, size: Option<u64>) -> NewRecord {
    let key = listing_key(id, &n.to_string());
    let Some(size) = size else { return record(Kind::Row, true, sequence, 0, &key, &[]) };
    let etag = ListedEtag::Md5([0; 16]);
    let value = ListingValue {
        size,
        etag,
        content_type: "text/plain".to_owned(),
        version: None,
        key: None,
        shown: None,
    };
    record(Kind::Row, false, sequence, 0, &key, &value.encode())
}

fn container(account: &str, name: &str, id: u64, sequence: u64) -> NewRecord {
    let value = ContainerValue {
        id,
        put: sequence,
        policy: 0,
        index: Default::default(),
        headers: Headers::default(),
    };
    record(Kind::Row, false, sequence, 0, &container_key(account, name), &value.encode())
}

/// A log as clients would have made it, and what they must see.
#[derive(Default)]
struct History {
    log: Vec<(NewRecord, Location)>,
    sequence: u64,
    next: u64,
    objects: BTreeMap<u64, (Option<Chunked>, Option<u64>)>,
    lines: BTreeMap<(u64, u64), u64>,
    containers: BTreeMap<u64, u64>,
    /// The newest record of each object, its chunks if it has any, and whether it was evicted.
    newest: BTreeMap<u64, (NewRecord, Option<Chunked>, bool)>,
}

impl History {
    fn push(&mut self, record: NewRecord) {
        let len = u32::try_from(record.stored_len()).unwrap();
        let offset = u32::try_from(self.next % (1 << 12)).unwrap() * 8192;
        let at = Location { segment: u32::try_from(self.next >> 12).unwrap(), offset, len };
        self.next += 1;
        self.log.push((record, at));
    }

    fn step(&mut self, rng: &mut Rng) {
        self.sequence += 1 + rng.below(3);
        let (sequence, n, c) = (self.sequence, rng.below(6), rng.below(3));
        match rng.below(14) {
            0..=2 => {
                let delete_at = (rng.below(3) == 0).then(|| rng.below(100));
                self.push_object(n, object(n, sequence, None, delete_at), None);
                self.objects.insert(n, (None, delete_at));
            }
            3 => self.upload(rng, n, sequence),
            4 => {
                let tombstone = encode_grave(&path(&n.to_string()), intent(n));
                let tombstone = record(Kind::Object, true, sequence, 0, &hash(n), &tombstone);
                self.push_object(n, tombstone, None);
                self.objects.remove(&n);
            }
            5 => {
                // POST keeps the data.
                if let Some((chunked, _)) = self.objects.get(&n).copied() {
                    self.push_object(n, object(n, sequence, chunked, None), chunked);
                    self.objects.insert(n, (chunked, None));
                }
            }
            6..=8 => {
                let size = rng.below(1000);
                self.push(line(c, n, sequence, Some(size)));
                self.lines.insert((c, n), size);
            }
            9 => {
                self.push(line(c, n, sequence, None));
                self.lines.remove(&(c, n));
            }
            10 => {
                // The name stays, the id changes when it is made anew.
                let id = rng.below(3);
                self.push(container("a", &c.to_string(), id * 3 + c, sequence));
                self.containers.insert(c, id * 3 + c);
            }
            11 | 12 => self.evict_or_return(n),
            _ => {
                let key = container_key("a", &c.to_string());
                self.push(record(Kind::Row, true, sequence, 0, &key, &[]));
                self.containers.remove(&c);
            }
        }
    }

    fn push_object(&mut self, n: u64, record: NewRecord, chunked: Option<Chunked>) {
        self.push(record.clone());
        self.newest.insert(n, (record, chunked, false));
    }

    /// What the device holds of an object goes, or comes back in its next turn.
    fn evict_or_return(&mut self, n: u64) {
        let Some((newest, chunked, evicted)) = self.newest.remove(&n) else { return };
        let view = newest.view();
        let (deleted, sequence, turn) = (view.deleted, view.sequence, view.number);
        if !evicted {
            self.push(record(Kind::Evict, deleted, sequence, turn, &hash(n), &[]));
            self.objects.remove(&n);
            self.newest.insert(n, (newest, chunked, true));
            return;
        }
        for number in 0..chunked.map_or(0, |chunked| chunked.count) {
            let meta = encode_chunk_meta(&hash(n), turn + 1);
            self.push(record(Kind::Chunk, false, sequence, number, &chunked.unwrap().data_id, &meta));
        }
        let again = record(Kind::Object, deleted, sequence, turn + 1, &hash(n), view.meta);
        if !deleted {
            let meta = ObjectMeta::decode(view.meta, sequence).unwrap();
            self.objects.insert(n, (chunked, meta.info.delete_at));
        }
        self.push_object(n, again, chunked);
    }

    fn upload(&mut self, rng: &mut Rng, n: u64, sequence: u64) {
        let mut data_id = [0; 16];
        data_id[..8].copy_from_slice(&rng.next().to_le_bytes());
        let count = 1 + u32::try_from(rng.below(4)).unwrap();
        for number in 0..count {
            self.push(record(Kind::Chunk, false, sequence, number, &data_id, &hash(n)));
        }
        match rng.below(4) {
            0 => {}
            1 => self.push(record(Kind::Abort, false, sequence, 0, &data_id, &[])),
            _ => {
                let chunked = Some(Chunked { data_id, count });
                self.push_object(n, object(n, sequence, chunked, None), chunked);
                self.objects.insert(n, (chunked, None));
            }
        }
    }

    fn random(seed: u64) -> Self {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut history = Self::default();
        for _ in 0..120 {
            history.step(&mut rng);
        }
        history
    }

    fn check(&self, bench: &Bench, seed: u64) {
        let index: &dyn Index = &bench.index;
        for n in 0..6 {
            let found = find_object(index, &hash(n)).unwrap();
            let chunks = found.map(|found| found.chunks.len());
            let wanted = self.objects.get(&n).map(|(c, _)| c.map_or(0, |c| c.count as usize));
            assert_eq!(chunks, wanted, "seed {seed}, object {n}");
        }
        let queue: Vec<u64> =
            due(index, None, u64::MAX, 1000).unwrap().iter().map(|due| due.delete_at).collect();
        let mut wanted: Vec<u64> = self.objects.values().filter_map(|(_, at)| *at).collect();
        wanted.sort_unstable();
        assert_eq!(queue, wanted, "seed {seed}");
        self.check_totals(index, seed);
        let stands = |(n, (_, _, evicted)): &(&u64, &(_, _, bool))| intent(**n).is_some() && !evicted;
        let wanted: Vec<PathHash> = self.newest.iter().filter(stands).map(|(n, _)| hash(*n)).collect();
        let found: Vec<PathHash> =
            intents(index, None, 100).unwrap().into_iter().map(|intent| intent.hash).collect();
        assert_eq!(found, wanted, "seed {seed}: an intent is where its version is");
        let all = index.scan(Table::Chunks, Range::default()).count();
        let wanted: usize = self.objects.values().filter_map(|(c, _)| c.map(|c| c.count as usize)).sum();
        assert_eq!(all, wanted, "seed {seed}");
        bench.check_sums(seed);
    }

    fn check_totals(&self, index: &dyn Index, seed: u64) {
        let sum = |id: u64| {
            let lines = self.lines.iter().filter(|((c, _), _)| *c == id);
            lines.fold((0, 0), |(n, bytes), (_, size)| (n + 1, bytes + size))
        };
        let mut account = Totals::default();
        for id in self.containers.values() {
            let (objects, bytes) = sum(*id);
            account.containers += 1;
            account.objects += objects;
            account.bytes += bytes;
        }
        assert_eq!(account_totals(index, "a").unwrap(), account, "seed {seed}");
        for id in 0..9 {
            let (objects, bytes) = sum(id);
            let totals = container_totals(index, id).unwrap();
            assert_eq!(totals, Totals { objects, bytes, ..Totals::default() }, "seed {seed}, container {id}");
        }
    }

    fn replay(&self) -> Bench {
        let mut bench = Bench::default();
        for (record, at) in &self.log {
            bench.apply(record, *at);
        }
        bench
    }
}

fn rebuild(log: &[(NewRecord, Location)]) -> Bench {
    let mut bench = Bench::default();
    for (record, at) in log {
        bench.apply(record, *at);
    }
    bench.run(|tx| ObjectCatalog.rebuilt(tx));
    bench
}

#[test]
fn the_logs_order_ends_in_what_clients_were_told() {
    for seed in 0..200 {
        let history = History::random(seed);
        let mut bench = history.replay();
        for id in open_uploads(&bench.index, 1000).unwrap() {
            let abort = record(Kind::Abort, false, 0, 0, &id, &[]);
            bench.apply(&abort, Location { segment: 0, offset: 0, len: 64 });
        }
        history.check(&bench, seed);
        assert_eq!(bench.live_sum(), bench.live_records(&history.log), "seed {seed}");
        let before = bench.dump();
        bench.run(|tx| ObjectCatalog.rebuilt(tx));
        assert_eq!(bench.dump(), before, "seed {seed}: nothing is left to drop");
    }
}

#[test]
fn any_order_ends_in_the_same_index() {
    for seed in 0..200 {
        let history = History::random(seed);
        let ordered = rebuild(&history.log);
        history.check(&ordered, seed);
        let mut rng = Rng(seed + 1);
        for _ in 0..4 {
            let mut log = history.log.clone();
            rng.shuffle(&mut log);
            let shuffled = rebuild(&log);
            assert_eq!(shuffled.dump(), ordered.dump(), "seed {seed}");
            assert_eq!(shuffled.live_sum(), ordered.live_sum(), "seed {seed}");
            shuffled.check_sums(seed);
        }
    }
}

fn without_ghosts(dump: Dump) -> Dump {
    let strip = |((table, key), value): ((Table, Vec<u8>), Vec<u8>)| {
        let value = match table {
            Table::System | Table::Blocks => value,
            _ => {
                let (head, payload) = Head::decode(&value).unwrap();
                Head { ghosts: 0, ..head }.encode(payload)
            }
        };
        ((table, key), value)
    };
    dump.into_iter().map(strip).collect()
}

fn ghosts(dump: &Dump) -> BTreeMap<(Table, Vec<u8>), u64> {
    let of_key = dump.iter().filter(|((table, _), _)| *table != Table::System);
    of_key.map(|(key, value)| (key.clone(), Head::decode(value).unwrap().0.ghosts)).collect()
}

#[test]
fn records_that_come_twice_change_nothing_but_may_leave_ghosts_uncounted_for() {
    for seed in 0..100 {
        let history = History::random(seed);
        let ordered = rebuild(&history.log);
        let mut log = history.log.clone();
        let mut rng = Rng(seed + 1);
        for _ in 0..40 {
            let n = usize::try_from(rng.below(history.log.len() as u64)).unwrap();
            log.push(history.log[n].clone());
        }
        rng.shuffle(&mut log);
        let doubled = rebuild(&log);
        assert_eq!(without_ghosts(doubled.dump()), without_ghosts(ordered.dump()), "seed {seed}");
        assert_eq!(doubled.live_sum(), ordered.live_sum(), "seed {seed}");
        doubled.check_sums(seed);
        let counted = ghosts(&doubled.dump());
        assert!(ghosts(&ordered.dump()).iter().all(|(key, n)| counted[key] >= *n), "seed {seed}");
    }
}

/// The cleaner at work between the steps: it copies records, live or just overtaken, and forgets dead ones.
/// A copy that was made to mend a damaged record lay below it on the disk, and the index kept to the damaged one.
#[test]
fn a_copy_counts_from_when_it_is_applied_wherever_it_lies() {
    let mut bench = Bench::default();
    let chunked = Some(Chunked { data_id: [3; 16], count: 1 });
    let version = [record(Kind::Chunk, false, 5, 0, &[3; 16], &hash(1)), object(1, 6, chunked, Some(9))];
    let mut log = Vec::new();
    for segment in [7, 2, 5] {
        for (n, record) in version.iter().enumerate() {
            let len = u32::try_from(record.stored_len()).unwrap();
            let at = Location { segment, offset: 8192 * u32::try_from(n + 1).unwrap(), len };
            bench.apply(record, at);
            log.push((record.clone(), at));
        }
        let found = find_object(&bench.index, &hash(1)).unwrap().unwrap();
        assert_eq!((found.record.segment, found.chunks[0].segment), (segment, segment));
        assert_eq!(bench.live_sum(), bench.live_records(&log));
    }
    let entry = bench.index.get(Table::Objects, &hash(1)).unwrap().unwrap();
    assert_eq!(Head::decode(&entry).unwrap().0.ghosts, 2);
}

#[test]
fn cleaning_keeps_the_index_and_counts_ghosts_exactly() {
    for seed in 0..200 {
        let source = History::random(seed);
        let mut history = History { next: 1 << 20, ..History::default() };
        let mut bench = Bench::default();
        let mut rng = Rng(seed + 7);
        for (record, at) in source.log.clone() {
            bench.apply(&record, at);
            history.log.push((record, at));
            let n = usize::try_from(rng.below(history.log.len() as u64)).unwrap();
            let (copy, from) = history.log[n].clone();
            if rng.below(2) == 0 && copy.view().kind != Kind::Abort {
                history.push(copy.clone());
                let to = history.log.last().unwrap().1;
                let live = ObjectCatalog.is_live(&bench.index, &copy.view(), from).unwrap();
                let moved = bench.run(|tx| ObjectCatalog.relocate(tx, &copy.view(), from, to));
                assert_eq!(moved, live, "seed {seed}");
            }
            let n = usize::try_from(rng.below(history.log.len() as u64)).unwrap();
            let (record, at) = history.log[n].clone();
            if !ObjectCatalog.is_live(&bench.index, &record.view(), at).unwrap() {
                bench.run(|tx| ObjectCatalog.forget(tx, &record.view()));
                history.log.remove(n);
            }
        }
        bench.run(|tx| ObjectCatalog.rebuilt(tx));
        source.check(&bench, seed);
        assert_eq!(bench.live_sum(), bench.live_records(&history.log), "seed {seed}");
        rng.shuffle(&mut history.log);
        let rebuilt = rebuild(&history.log);
        let counted = ghosts(&bench.dump());
        // A tombstone that was overtaken may be forgotten before the ghosts of its key; live keys and counts agree.
        assert_eq!(ghosts(&rebuilt.dump()), counted, "seed {seed}");
        source.check(&rebuilt, seed);
    }
}

#[test]
fn a_tombstone_stays_until_its_ghosts_are_gone() {
    let mut history = History::default();
    history.push(object(1, 10, None, None));
    history.push(record(Kind::Object, true, 20, 0, &hash(1), &encode_tombstone(&path("1"))));
    let mut bench = history.replay();
    let grave = |bench: &Bench| graves(&bench.index, &[], 10).unwrap().pop();
    let key = grave(&bench).unwrap().key;
    bench.run(|tx| prune(tx, &key, u64::MAX));
    assert!(grave(&bench).is_some(), "the put is still in the log");
    let (put, _) = history.log[0].clone();
    bench.run(|tx| ObjectCatalog.forget(tx, &put.view()));
    bench.run(|tx| prune(tx, &key, 20));
    assert!(grave(&bench).is_some(), "younger than the reclaim age");
    bench.run(|tx| prune(tx, &key, 21));
    assert!(grave(&bench).is_none());
    assert_eq!(bench.live_sum(), 0);
    bench.check_sums(0);
}

/// A ring takes a partition away from a device and gives it back: the version that went must be able to stand again, whatever
/// order a rebuild finds the records in, and go again.
#[test]
fn an_evicted_version_is_absent_comes_back_and_goes_again() {
    let mut history = History::default();
    history.push_object(1, object(1, 10, None, Some(7)), None);
    let bench = history.replay();
    assert!(bench.sums.values().any(|sum| *sum != 0));
    for present in [false, true, false, true] {
        history.evict_or_return(1);
        let mut log = history.log.clone();
        let mut rng = Rng(9);
        for _ in 0..8 {
            rng.shuffle(&mut log);
            let bench = rebuild(&log);
            history.check(&bench, 0);
            let version = version(&bench.index, &hash(1)).unwrap().map(|version| version.sequence);
            assert_eq!(version, present.then_some(10));
            assert_eq!(bench.live_sum(), bench.live_records(&log));
        }
        let bench = rebuild(&log);
        let next = next_turn(&bench.index, &hash(1), 10, false).unwrap();
        let turn = history.newest[&1].0.view().number;
        assert_eq!(next, if present { turn } else { turn + 1 });
        assert_eq!(
            next_turn(&bench.index, &hash(1), 11, false).unwrap(),
            0,
            "another version has its first turn"
        );
    }
}

#[test]
fn an_eviction_leaves_newer_versions_alone() {
    let mut history = History::default();
    history.push_object(1, object(1, 10, None, None), None);
    history.push(record(Kind::Evict, false, 10, 0, &hash(1), &[]));
    history.push(object(1, 11, None, None));
    history.objects.insert(1, (None, None));
    let mut rng = Rng(3);
    for _ in 0..8 {
        let mut log = history.log.clone();
        rng.shuffle(&mut log);
        history.check(&rebuild(&log), 0);
    }
    // Of a tombstone as well, and the tombstone of the same time is newer than the put.
    history.push(record(Kind::Evict, true, 11, 0, &hash(1), &[]));
    history.objects.clear();
    history.check(&rebuild(&history.log), 0);
}

#[test]
fn the_mark_of_an_eviction_goes_with_the_last_ghost() {
    let mut history = History::default();
    history.push_object(1, object(1, u64::MAX / 4, None, None), None);
    history.evict_or_return(1);
    let mut bench = history.replay();
    let grave = |bench: &Bench| graves(&bench.index, &[], 10).unwrap().pop();
    let key = grave(&bench).unwrap().key;
    bench.run(|tx| prune(tx, &key, 0));
    assert!(grave(&bench).is_some(), "the put is still in the log");
    let (put, _) = history.log[0].clone();
    bench.run(|tx| ObjectCatalog.forget(tx, &put.view()));
    bench.run(|tx| prune(tx, &key, 0));
    assert!(bench.dump().is_empty() && bench.live_sum() == 0);
    bench.check_sums(0);
}

#[test]
fn pages_of_stamps_are_cut_where_both_tables_were_read() {
    for seed in 0..50 {
        let bench = History::random(seed).replay();
        let all = stamps(&bench.index, None, [0; 16]..=[0xff; 16], None, 100).unwrap();
        assert!(!all.more);
        for limit in 1..4 {
            let (mut paged, mut after, mut more) = (Vec::new(), None, true);
            while more {
                let page = stamps(&bench.index, None, [0; 16]..=[0xff; 16], after, limit).unwrap();
                more = page.more;
                after = page.upto.or(after);
                paged.extend(page.stamps);
            }
            assert_eq!(paged, all.stamps, "seed {seed}");
        }
    }
}

#[test]
fn the_index_of_a_small_object_costs_at_most_100_bytes() {
    let mut bench = Bench::default();
    let mut log = History { next: 70_000, ..History::default() };
    log.push(object(1, 1_795_000_000_000_000, None, None));
    log.push(line(1_795_000_000_000_000, 123_456_789, 1_795_000_000_000_000, Some(4096)));
    for (record, at) in &log.log {
        bench.apply(record, *at);
    }
    let per_object = |((table, key), value): (&(Table, Vec<u8>), &Vec<u8>)| {
        if *table == Table::System { 0 } else { key.len() + value.len() }
    };
    let bytes: usize = bench.dump().iter().map(per_object).sum();
    assert!(bytes <= 100, "{bytes} bytes before compression");
}

#[test]
fn unreadable_records_are_skipped_and_never_live() {
    let mut bench = Bench::default();
    let at = Location { segment: 0, offset: 0, len: 64 };
    for bad in [
        record(Kind::Object, false, 1, 0, &hash(1), b"\xff"),
        record(Kind::Object, false, 1, 0, b"short", b""),
        record(Kind::Row, false, 1, 0, b"zzz", b""),
        record(Kind::Row, false, 1, 0, &listing_key(1, "x"), b""),
        record(Kind::Chunk, false, 1, 0, b"short", b""),
        record(Kind::Abort, false, 1, 0, b"short", b""),
        record(Kind::Evict, false, 1, 0, b"short", b""),
        record(Kind::VolumeMap, false, 1, 0, b"v", b""),
    ] {
        bench.apply(&bad, at);
        assert!(!ObjectCatalog.is_live(&bench.index, &bad.view(), at).unwrap());
        bench.run(|tx| ObjectCatalog.forget(tx, &bad.view()));
    }
    assert!(bench.dump().is_empty());
}

/// Several evictions and POSTs of one chunked version: found by a history in which an older version that names the same chunks
/// was applied behind the mark, and took the chunks of the version that was to come back.
#[test]
fn chunks_of_a_version_that_comes_back_survive_any_order() {
    let mut history = History::default();
    let chunked = Some(Chunked { data_id: [7; 16], count: 2 });
    for number in 0..2 {
        history.push(record(Kind::Chunk, false, 10, number, &[7; 16], &hash(1)));
    }
    history.push_object(1, object(1, 10, chunked, None), chunked);
    history.push_object(1, object(1, 11, chunked, None), chunked);
    history.objects.insert(1, (chunked, None));
    for _ in 0..3 {
        history.evict_or_return(1);
        history.evict_or_return(1);
    }
    let mut rng = Rng(5);
    for _ in 0..200 {
        let mut log = history.log.clone();
        rng.shuffle(&mut log);
        history.check(&rebuild(&log), 0);
    }
}

#[path = "group_tests.rs"]
mod group;

#[test]
fn an_intent_stays_until_it_is_settled_and_keeps_its_tombstone() {
    let mut bench = Bench::default();
    let at = |n: u32| Location { segment: 0, offset: n * 8192, len: 4096 };
    let left = |bench: &Bench| {
        let found = intents(&bench.index, None, 10).unwrap();
        found.into_iter().map(|intent| (intent.hash, intent.sequence, intent.container)).collect::<Vec<_>>()
    };
    let settled = |sequence| record(Kind::Settled, false, sequence, 0, &hash(5), &[]);
    bench.apply(&object(5, 20, None, None), at(0));
    bench.apply(&object(4, 20, None, None), at(1));
    bench.apply(&object(1, 20, None, None), at(2));
    assert_eq!(left(&bench), [(hash(4), 20, 300), (hash(5), 20, 300)]);
    assert_eq!(intents(&bench.index, Some(&hash(4)), 10).unwrap().len(), 1, "behind a key");
    // Of an older version: it says nothing of this one.
    bench.apply(&settled(19), at(3));
    assert_eq!(count_intents(&bench.index, 10).unwrap(), 2);
    bench.apply(&settled(20), at(4));
    assert_eq!(left(&bench), [(hash(4), 20, 300)]);
    let grave = encode_grave(&path("5"), Some(300));
    bench.apply(&record(Kind::Object, true, 30, 0, &hash(5), &grave), at(5));
    assert_eq!(left(&bench), [(hash(4), 20, 300), (hash(5), 30, 300)]);
    // Its put has left the log, and it is old enough: but the listing was not told.
    bench.run(|tx| ObjectCatalog.forget(tx, &object(5, 20, None, None).view()));
    let found = graves(&bench.index, &[], 10).unwrap();
    assert!(found.len() == 1 && may_prune(&found[0], u64::MAX));
    let prune_it = |bench: &mut Bench| {
        bench.run(|tx| prune(tx, &found[0].key, u64::MAX));
        graves(&bench.index, &[], 10).unwrap().len()
    };
    assert_eq!(prune_it(&mut bench), 1);
    bench.apply(&settled(31), at(6));
    assert_eq!(prune_it(&mut bench), 0);
    // A newer version without an intent: its writer made the line, or the container is another.
    let mut plain = ObjectMeta::decode(object(4, 40, None, None).view().meta, 40).unwrap();
    plain.intent = None;
    bench.apply(&record(Kind::Object, false, 40, 0, &hash(4), &plain.encode()), at(7));
    assert_eq!(left(&bench), []);
}
