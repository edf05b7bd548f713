use std::process::Command;

use super::*;
use crate::index::conformance::{self, Model, Random, Subject, change, contents};

/// Small enough that memtables fill and flush by themselves within a test.
const SMALL: RocksOptions = RocksOptions { cache_bytes: 1 << 20, write_buffer_bytes: 256 << 10 };
/// Directory of the index that a child process is to crash on.
const CRASH_DIRECTORY: &str = "QUARRY_TEST_INDEX_CRASH_DIRECTORY";
/// Seed of that child.
const CRASH_SEED: &str = "QUARRY_TEST_INDEX_CRASH_SEED";
/// Holds the number of batches applied, as `applied_lsn` does in the engine.
const APPLIED: &[u8] = b"\xfeapplied";

struct OnDisk {
    directory: tempfile::TempDir,
    index: Option<RocksIndex>,
}

impl OnDisk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let index = Some(RocksIndex::open(directory.path(), &SMALL).unwrap());
        Self { directory, index }
    }
}

impl Subject for OnDisk {
    fn index(&self) -> &dyn Index {
        self.index.as_ref().unwrap()
    }

    fn reopen(&mut self) {
        drop(self.index.take());
        self.index = Some(RocksIndex::open(self.directory.path(), &SMALL).unwrap());
    }
}

#[test]
fn conforms() {
    conformance::run(2, OnDisk::new);
}

/// Any user of the machine could read the index, and in it tokens' keys and users' verifiers: RocksDB makes its directory 0755 and its files 0644.
#[test]
fn an_index_is_its_owners_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("above").join("index");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    drop(RocksIndex::open(&path, &SMALL).unwrap());
    assert_eq!(mode(&path), 0o700);
    // One of an earlier time, made by RocksDB itself.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    drop(RocksIndex::open(&path, &SMALL).unwrap());
    assert_eq!(mode(&path), 0o700, "one that was there is made so");
    RocksIndex::destroy(&path).unwrap();
    drop(RocksIndex::open(&path, &SMALL).unwrap());
    assert_eq!(mode(&path), 0o700);
}

/// Batch `number` of a seeded history; large enough that a few hundred overflow the memtables of [`SMALL`].
fn numbered_batch(random: &mut Random, number: u64) -> WriteSet {
    let mut set = random.write_set();
    let key = random.next().to_le_bytes().to_vec();
    set.changes.push((random.table(), key, Some(vec![0xaa; random.pick(4000)])));
    set.changes.push((Table::System, APPLIED.to_vec(), Some(number.to_le_bytes().to_vec())));
    set
}

fn crash_plan(seed: u64) -> (u64, u64) {
    let mut random = Random(seed ^ 0xc4a5);
    (random.below(100), random.below(1200))
}

/// Not a test by itself: the child process of the next one, which dies with its memtables full.
#[test]
fn crash_child() {
    let (Ok(directory), Ok(seed)) = (std::env::var(CRASH_DIRECTORY), std::env::var(CRASH_SEED)) else {
        return;
    };
    let seed = seed.parse().unwrap();
    let (saved, unsaved) = crash_plan(seed);
    let index = RocksIndex::open(Path::new(&directory), &SMALL).unwrap();
    let mut random = Random(seed);
    for number in 1..=saved + unsaved {
        index.apply(numbered_batch(&mut random, number)).unwrap();
        if number == saved {
            index.checkpoint().unwrap();
        }
    }
    std::process::abort();
}

/// The promise that recovery stands on: whatever tables the lost memory belonged to, what is left is the state
/// after exactly so many batches as the index says were applied, and no fewer than were checkpointed.
#[test]
fn a_killed_process_leaves_an_exact_prefix() {
    let mut between = 0;
    for seed in 0..8 {
        let directory = tempfile::tempdir().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "index::rocks::tests::crash_child"])
            .env(CRASH_DIRECTORY, directory.path())
            .env(CRASH_SEED, seed.to_string())
            .output()
            .unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.status), Some(libc::SIGABRT));

        let (saved, unsaved) = crash_plan(seed);
        let index = RocksIndex::open(directory.path(), &SMALL).unwrap();
        let applied = index.get(Table::System, APPLIED).unwrap();
        let applied = applied.map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()));
        assert!((saved..=saved + unsaved).contains(&applied), "seed {seed}: {saved} <= {applied}");
        let mut random = Random(seed);
        let mut model = Model::new();
        for number in 1..=applied {
            change(&mut model, &numbered_batch(&mut random, number));
        }
        assert!(contents(&index) == model, "seed {seed}: not the state after batch {applied}");
        between += u32::from(applied > saved && applied < saved + unsaved);
    }
    assert!(
        between > 0,
        "no crash fell between a flush of RocksDB's own and the next one: the test is too weak"
    );
}

#[test]
fn a_destroyed_index_opens_empty() {
    let mut subject = OnDisk::new();
    let set = WriteSet { changes: vec![(Table::Rows, vec![1], Some(vec![2]))] };
    subject.index().apply(set).unwrap();
    let open_twice = RocksIndex::open(subject.directory.path(), &SMALL);
    assert!(matches!(open_twice, Err(IndexError::Store { verb: "open", .. })), "two owners of one index");
    assert!(RocksIndex::destroy(subject.directory.path()).is_err(), "destroyed under its owner");
    subject.index = None;
    RocksIndex::destroy(subject.directory.path()).unwrap();
    RocksIndex::destroy(subject.directory.path()).unwrap();
    subject.reopen();
    assert_eq!(contents(subject.index()), Model::new());
}

#[test]
fn damage_is_an_error_and_can_be_destroyed() {
    let mut subject = OnDisk::new();
    let mut random = Random(2);
    for key in 0..2000_u32 {
        let value = random.next().to_le_bytes().to_vec();
        let change = (Table::Objects, key.to_be_bytes().to_vec(), Some(value));
        subject.index().apply(WriteSet { changes: vec![change] }).unwrap();
    }
    subject.index().checkpoint().unwrap();
    subject.index = None;
    let files = || std::fs::read_dir(subject.directory.path()).unwrap().map(|entry| entry.unwrap().path());
    for table_file in files().filter(|path| path.extension().is_some_and(|extension| extension == "sst")) {
        let mut bytes = std::fs::read(&table_file).unwrap();
        for byte in bytes.iter_mut().take(200) {
            *byte ^= 0x5a;
        }
        std::fs::write(&table_file, bytes).unwrap();
    }
    let index = RocksIndex::open(subject.directory.path(), &SMALL).unwrap();
    let read = index.get(Table::Objects, &0_u32.to_be_bytes());
    assert!(matches!(read, Err(IndexError::Damaged { verb: "read", .. })), "{read:?}");
    let mut scan = index.scan(Table::Objects, Range::default());
    assert!(matches!(scan.next(), Some(Err(IndexError::Damaged { verb: "read", .. }))));
    assert!(scan.next().is_none(), "a failed scan ends");
    drop(scan);
    drop(index);
    // What was found is remembered: whoever opens it next need not meet the same place.
    let opened = RocksIndex::open(subject.directory.path(), &SMALL);
    assert!(matches!(opened, Err(IndexError::Damaged { verb: "open", .. })));
    RocksIndex::destroy(subject.directory.path()).unwrap();
    subject.reopen();
    subject.index = None;

    let current = subject.directory.path().join("CURRENT");
    std::fs::write(current, "nonsense").unwrap();
    let opened = RocksIndex::open(subject.directory.path(), &SMALL);
    assert!(matches!(opened, Err(IndexError::Damaged { verb: "open", .. })));
    RocksIndex::destroy(subject.directory.path()).unwrap();
    subject.reopen();
    assert_eq!(contents(subject.index()), Model::new());
}

/// After a failed flush nothing may be called durable again, whatever RocksDB's own resuming does.
#[test]
fn a_failed_checkpoint_poisons() {
    let subject = OnDisk::new();
    let index = subject.index.as_ref().unwrap();
    index
        .guarded("checkpoint", || {
            Err(index.db.get_cf(index.family(Table::Rows), b"").err().unwrap_or_else(refusal))
        })
        .unwrap_err();
    let set = || WriteSet { changes: vec![(Table::Rows, vec![1], Some(vec![2]))] };
    assert!(matches!(index.apply(set()), Err(IndexError::Store { verb: "apply", .. })));
    assert!(matches!(index.checkpoint(), Err(IndexError::Store { verb: "checkpoint", .. })));
    assert_eq!(index.get(Table::Rows, &[1]).unwrap(), None);
}

/// Some error of RocksDB's; its type has no public constructor.
fn refusal() -> rocksdb::Error {
    DB::open_for_read_only(&Options::default(), "/nonexistent", false).unwrap_err()
}

/// The target of the index: 100 bytes on disk for a small object, its entry and its listing row together.
#[test]
fn a_small_object_costs_at_most_a_hundred_bytes() {
    const OBJECTS: u64 = 200_000;
    let directory = tempfile::tempdir().unwrap();
    let index = RocksIndex::open(directory.path(), &RocksOptions::default()).unwrap();
    let mut random = Random(1);
    for first in (0..OBJECTS).step_by(100) {
        let mut set = WriteSet::default();
        for number in first..first + 100 {
            let wide =
                |random: &mut Random| [random.next().to_le_bytes(), random.next().to_le_bytes()].concat();
            // Where it lies (device, segment, offset, length) and its version: little of it repeats.
            let mut entry = random.next().to_le_bytes().to_vec();
            entry.extend_from_slice(&[0; 14]);
            entry.extend_from_slice(&(number * 4096).to_le_bytes());
            let mut row = wide(&mut random);
            row.extend_from_slice(&(1_790_000_000_000_000_000 + number * 104_729).to_le_bytes());
            row.extend_from_slice(&4096_u64.to_le_bytes());
            row.extend_from_slice(&[1; 18]);
            let name =
                [&7_u64.to_be_bytes()[..], format!("photos/2026/08/{number:08}.jpg").as_bytes()].concat();
            set.changes.push((Table::Objects, wide(&mut random), Some(entry)));
            set.changes.push((Table::Rows, name, Some(row)));
        }
        index.apply(set).unwrap();
    }
    index.checkpoint().unwrap();
    let stats = index.stats();
    let each = stats.disk_bytes / OBJECTS;
    println!("{each} bytes of index for each object; {stats:?}");
    assert!((40..=100).contains(&each), "{each} bytes");
    assert!(stats.keys > OBJECTS * 19 / 10);
}
