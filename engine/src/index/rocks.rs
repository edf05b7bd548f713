//! [`Index`] over RocksDB: one column family per table, no write-ahead log.
//!
//! The segment log is RocksDB's log. What RocksDB holds in memory at a crash is lost, and replayed from there.
//!
//! Invariant: every write goes without WAL, and every flush is atomic over all tables (`atomic_flush`), so what
//! is on disk is always the state after some prefix of the batches.
//! Invariant: after the first failed apply or checkpoint all later ones fail with the same reason; a failed
//! flush is never retried.
//! Invariant: the directory is its owner's alone: RocksDB makes its files readable by everybody, and they hold names, headers and secrets.
//! Invariant: filters and block indexes live in the one bounded block cache; memtables are bounded by
//! `write_buffer_bytes` times about 2.5 (one generation filling, two waiting for the disk).

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::{Mutex, Once, OnceLock, PoisonError};

use rocksdb::properties;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB,
    DBCompressionType, DBRawIterator, Env, ErrorKind, FlushOptions, LogLevel, Options, ReadOptions,
    WriteBatch, WriteOptions,
};

use super::{Index, IndexError, IndexStats, Pair, Range, Room, Table, WriteSet};

/// Data blocks: large enough to compress well, small enough for one random read.
const BLOCK_BYTES: usize = 16 * 1024;
/// Filter bits for each key: about 1 % false positives.
const FILTER_BITS: f64 = 10.0;
/// Size at which table files are cut.
const FILE_BYTES: u64 = 64 << 20;
/// Table files that may be open at once for one index.
const OPEN_FILES: i32 = 256;
/// One flush and one compaction of an index at a time.
const BACKGROUND_JOBS: i32 = 2;
/// Least memory that makes sense; smaller wishes are raised to it.
const LEAST_CACHE_BYTES: usize = 256 * 1024;
/// RocksDB accepts no smaller memtable.
const LEAST_WRITE_BUFFER_BYTES: usize = 64 * 1024;

/// Mode of an index's directory, and what of a mode is for others.
const PRIVATE: u32 = 0o700;
const OTHERS: u32 = 0o077;

/// Indexes open in this process. RocksDB's thread pools belong to the process: they must have a thread for
/// the flush and one for the compaction of every index, or one hung disk would hold up the others.
static OPEN_INDEXES: Mutex<i32> = Mutex::new(0);

/// How much memory an index may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RocksOptions {
    /// Block cache, with filters and block indexes.
    pub cache_bytes: usize,
    /// Memtables of all tables together, at which a flush begins.
    pub write_buffer_bytes: usize,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self { cache_bytes: 128 << 20, write_buffer_bytes: 64 << 20 }
    }
}

/// The index on a file system.
pub struct RocksIndex {
    db: DB,
    cache: Cache,
    without_log: WriteOptions,
    poison: OnceLock<String>,
    /// Done when damage was found for the first time.
    marked: Once,
    _threads: BackgroundThreads,
}

impl std::fmt::Debug for RocksIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksIndex").field("path", &self.db.path()).finish_non_exhaustive()
    }
}

impl RocksIndex {
    /// Open the index in directory `path`; an absent one is made, empty.
    pub fn open(path: &Path, options: &RocksOptions) -> Result<Self, IndexError> {
        let failed = |error| failure("open", error);
        if let Some(reason) = mark::read(path) {
            return Err(IndexError::Damaged { verb: "open", reason });
        }
        make_private(path).map_err(|e| IndexError::Store {
            verb: "open",
            reason: format!("make directory {}: {e}", path.display()),
        })?;
        let threads = BackgroundThreads::start().map_err(failed)?;
        let cache = Cache::new_lru_cache(options.cache_bytes.max(LEAST_CACHE_BYTES));
        let write_buffer = options.write_buffer_bytes.max(LEAST_WRITE_BUFFER_BYTES);
        let tables = Table::ALL.map(|table| {
            ColumnFamilyDescriptor::new(name(table), table_options(table, write_buffer, &cache))
        });
        let db = DB::open_cf_descriptors(&database_options(write_buffer), path, tables).map_err(failed)?;
        let mut without_log = WriteOptions::default();
        without_log.disable_wal(true);
        let (poison, marked) = (OnceLock::new(), Once::new());
        Ok(Self { db, cache, without_log, poison, marked, _threads: threads })
    }

    /// Remove the index in directory `path`, damaged or not. It must not be open; absent is done.
    pub fn destroy(path: &Path) -> Result<(), IndexError> {
        if !path.exists() {
            return Ok(());
        }
        // One that is half destroyed is not opened.
        if let Err(error) = mark::write(path, "it was to be destroyed") {
            // No room, perhaps: to destroy it makes some.
            tracing::warn!(index = %path.display(), %error, "an index is destroyed without a mark");
        }
        DB::destroy(&Options::default(), path).map_err(|error| failure("destroy", error))?;
        mark::remove(path)
    }

    /// Of a failure of the store. Damage is remembered where the index lies, for whoever opens it next.
    fn failed(&self, verb: &'static str) -> impl Fn(rocksdb::Error) -> IndexError {
        move |error| {
            let error = failure(verb, error);
            if let IndexError::Damaged { reason, .. } = &error {
                self.marked.call_once(|| {
                    tracing::error!(index = %self.db.path().display(), reason, "the index is damaged; start the node anew, which makes it anew from the segments");
                    if let Err(unmarked) = mark::write(self.db.path(), reason) {
                        tracing::error!(%unmarked, "use `quarry disk rebuild-index` before the node is started again");
                    }
                });
            }
            error
        }
    }

    fn family(&self, table: Table) -> &ColumnFamily {
        self.db.cf_handle(name(table)).expect("open() opens every table")
    }

    /// Do what changes the store, unless that has failed before.
    fn guarded(
        &self,
        verb: &'static str,
        act: impl FnOnce() -> Result<(), rocksdb::Error>,
    ) -> Result<(), IndexError> {
        if let Some(reason) = self.poison.get() {
            return Err(IndexError::Store { verb, reason: reason.clone() });
        }
        act().map_err(|error| {
            let error = self.failed(verb)(error);
            let (IndexError::Store { reason, .. } | IndexError::Damaged { reason, .. }) = &error;
            // Another thread's failure may have come first: either reason will do.
            let _ = self.poison.set(reason.clone());
            error
        })
    }

    fn sum(&self, property: &properties::PropName) -> u64 {
        let of = |table| self.db.property_int_value_cf(self.family(table), property).ok().flatten();
        Table::ALL.into_iter().filter_map(of).fold(0, u64::saturating_add)
    }
}

impl Index for RocksIndex {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        self.db.get_cf(self.family(table), key).map_err(self.failed("read"))
    }

    fn get_several(&self, table: Table, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, IndexError> {
        // Of one column family all are read at one sequence number.
        let found = self.db.batched_multi_get_cf(self.family(table), keys, true);
        let values = found.into_iter().map(|value| value.map(|value| value.map(|value| value.to_vec())));
        values.collect::<Result<_, _>>().map_err(self.failed("read"))
    }

    fn scan<'a>(
        &'a self,
        table: Table,
        range: Range,
    ) -> Box<dyn Iterator<Item = Result<Pair, IndexError>> + Send + 'a> {
        if let (Some(from), Some(to)) = (&range.from, &range.to)
            && from >= to
        {
            return Box::new(std::iter::empty());
        }
        let mut reading = ReadOptions::default();
        if let Some(from) = range.from {
            reading.set_iterate_lower_bound(from);
        }
        if let Some(to) = range.to {
            reading.set_iterate_upper_bound(to);
        }
        reading.set_background_purge_on_iterator_cleanup(true);
        // A raw iterator reads at the sequence number of its creation: that is the snapshot.
        let raw = self.db.raw_iterator_cf_opt(self.family(table), reading);
        Box::new(Scan { index: self, raw, at: At::Start, reverse: range.reverse })
    }

    fn apply(&self, set: WriteSet) -> Result<(), IndexError> {
        let mut batch = WriteBatch::default();
        for (table, key, value) in &set.changes {
            match value {
                Some(value) => batch.put_cf(self.family(*table), key, value),
                None => batch.delete_cf(self.family(*table), key),
            }
        }
        self.guarded("apply", || self.db.write_opt(batch, &self.without_log))
    }

    fn checkpoint(&self) -> Result<(), IndexError> {
        let families = Table::ALL.map(|table| self.family(table));
        let mut flush = FlushOptions::default();
        flush.set_wait(true);
        self.guarded("checkpoint", || self.db.flush_cfs_opt(&families, &flush))
    }

    fn stats(&self) -> IndexStats {
        let cached = u64::try_from(self.cache.get_usage()).unwrap_or(u64::MAX);
        let memtables = self.sum(properties::SIZE_ALL_MEM_TABLES);
        let readers = self.sum(properties::ESTIMATE_TABLE_READERS_MEM);
        IndexStats {
            disk_bytes: self.sum(properties::TOTAL_SST_FILES_SIZE),
            memory_bytes: cached.saturating_add(memtables).saturating_add(readers),
            keys: self.sum(properties::ESTIMATE_NUM_KEYS),
        }
    }

    fn room(&self) -> Option<Room> {
        let found = rustix::fs::statvfs(self.db.path()).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Some(Room { free: bytes(found.f_bavail), total: bytes(found.f_blocks) })
    }
}

/// Where a scan stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Start,
    Inside,
    End,
}

struct Scan<'a> {
    index: &'a RocksIndex,
    raw: DBRawIterator<'a>,
    at: At,
    reverse: bool,
}

impl Iterator for Scan<'_> {
    type Item = Result<Pair, IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        match (self.at, self.reverse) {
            (At::End, _) => return None,
            (At::Start, false) => self.raw.seek_to_first(),
            (At::Start, true) => self.raw.seek_to_last(),
            (At::Inside, false) => self.raw.next(),
            (At::Inside, true) => self.raw.prev(),
        }
        if let Some((key, value)) = self.raw.item() {
            self.at = At::Inside;
            return Some(Ok((key.into(), value.into())));
        }
        self.at = At::End;
        // Not valid means the end or a failure; only the status tells which.
        self.raw.status().err().map(|error| Err(self.index.failed("read")(error)))
    }
}

/// One flush and one compaction thread in the process's pools for as long as it lives.
struct BackgroundThreads;

impl BackgroundThreads {
    fn start() -> Result<Self, rocksdb::Error> {
        let mut pools = Env::new()?;
        // Held while the pools are set, so that of two opening at once neither sets the smaller number last.
        let mut indexes = OPEN_INDEXES.lock().unwrap_or_else(PoisonError::into_inner);
        *indexes += 1;
        pools.set_high_priority_background_threads(*indexes);
        pools.set_background_threads(*indexes);
        Ok(Self)
    }
}

impl Drop for BackgroundThreads {
    fn drop(&mut self) {
        // The pools keep their threads: shrinking them could stop one that serves another index.
        *OPEN_INDEXES.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
    }
}

fn failure(verb: &'static str, error: rocksdb::Error) -> IndexError {
    let damaged = error.kind() == ErrorKind::Corruption;
    let reason = error.into_string();
    if damaged { IndexError::Damaged { verb, reason } } else { IndexError::Store { verb, reason } }
}

/// The mark in an index's directory that it is damaged, or half destroyed: a file of which RocksDB knows nothing.
mod mark {
    use std::fs::{self, File};
    use std::io::{self, Write};
    use std::path::Path;

    use super::IndexError;

    const NAME: &str = "DAMAGED";

    fn failed(error: &io::Error) -> IndexError {
        IndexError::Store { verb: "mark", reason: error.to_string() }
    }

    /// Why an index is marked, if it is.
    pub(super) fn read(index: &Path) -> Option<String> {
        fs::read_to_string(index.join(NAME)).ok()
    }

    pub(super) fn write(index: &Path, reason: &str) -> Result<(), IndexError> {
        let written = || {
            let mut file = File::create(index.join(NAME))?;
            file.write_all(reason.as_bytes())?;
            file.sync_all()?;
            File::open(index)?.sync_all()
        };
        written().map_err(|error| failed(&error))
    }

    pub(super) fn remove(index: &Path) -> Result<(), IndexError> {
        match fs::remove_file(index.join(NAME)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&error)),
            _ => Ok(()),
        }
    }
}

/// Makes the directory for its owner alone, and takes what others may do from one that is there.
fn make_private(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(PRIVATE).create(path)?;
    let mode = std::fs::metadata(path)?.permissions().mode();
    if mode & OTHERS == 0 {
        return Ok(());
    }
    match std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode & !OTHERS)) {
        Ok(()) => {
            tracing::warn!(index = %path.display(), "others could read the index; now it is its owner's alone");
        }
        // A file system without modes, or a directory of somebody else's: the disk is no worse for it.
        Err(error) => tracing::error!(
            index = %path.display(), %error,
            "others can read the index, and secrets are in it; make its directory the node's own, with mode 700"
        ),
    }
    Ok(())
}

/// On-disk names: never change one.
fn name(table: Table) -> &'static str {
    match table {
        Table::Objects => "objects",
        Table::Chunks => "chunks",
        Table::Rows => "rows",
        Table::Graves => "graves",
        Table::System => "system",
        Table::Blocks => "blocks",
    }
}

fn database_options(write_buffer: usize) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_atomic_flush(true);
    // One applier: no concurrency to buy with weaker snapshots.
    options.set_unordered_write(false);
    options.set_enable_pipelined_write(false);
    options.set_allow_concurrent_memtable_write(false);
    options.set_db_write_buffer_size(write_buffer);
    options.set_max_background_jobs(BACKGROUND_JOBS);
    options.set_max_open_files(OPEN_FILES);
    options.set_bytes_per_sync(1 << 20);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_log_level(LogLevel::Warn);
    options.set_max_log_file_size(1 << 20);
    options.set_keep_log_file_num(2);
    options
}

fn table_options(table: Table, write_buffer: usize, cache: &Cache) -> Options {
    let mut options = Options::default();
    options.set_block_based_table_factory(&block_options(cache));
    // Flushes are begun by the budget of all tables together (`db_write_buffer_size`), never by one table's.
    options.set_write_buffer_size(write_buffer);
    options.set_max_write_buffer_number(3);
    options.set_target_file_size_base(FILE_BYTES);
    options.set_max_bytes_for_level_base(FILE_BYTES * 4);
    options.set_level_compaction_dynamic_level_bytes(true);
    // On every level: its slower form makes the last one 4 % smaller, for a sixteenth of the processor time of random block writes.
    options.set_compression_type(DBCompressionType::Lz4);
    match table {
        // Asked for what is not there: at every PUT of a new object, row or grave.
        Table::Objects | Table::Rows | Table::Graves | Table::Blocks => {
            options.set_memtable_whole_key_filtering(true);
            options.set_memtable_prefix_bloom_ratio(0.02);
        }
        // Asked only for what is there: the last level, nine tenths of the keys, needs no filter.
        Table::Chunks | Table::System => options.set_optimize_filters_for_hits(true),
    }
    options
}

fn block_options(cache: &Cache) -> BlockBasedOptions {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_size(BLOCK_BYTES);
    blocks.set_block_cache(cache);
    blocks.set_bloom_filter(FILTER_BITS, false);
    blocks.set_whole_key_filtering(true);
    blocks.set_optimize_filters_for_memory(true);
    // In partitions, so that an index larger than its cache pages filters in by 4 KiB and not by files.
    blocks.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    blocks.set_partition_filters(true);
    blocks.set_metadata_block_size(4096);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_cache_index_and_filter_blocks_with_high_priority(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    blocks.set_pin_top_level_index_and_filter(true);
    blocks
}

#[cfg(test)]
#[path = "rocks_tests.rs"]
mod tests;
