//! What is remembered of spans is what the index says, also while that is being changed.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::super::tests::{VOLUME, extent};
use super::super::{ChunkId, SliceId};
use super::*;
use crate::catalog::ObjectCatalog;
use crate::disk::Location;
use crate::disk::catalog::{Catalog, Tx};
use crate::disk::memo::Told;
use crate::index::{IndexStats, MemoryIndex, Pair, Range, WriteSet};

const RUN: Run = Run { slice: SliceId(0), chunk: ChunkId(0), first: 3, blocks: 1 };

fn told(index: Arc<dyn Index>) -> Told {
    Told { index, memo: Arc::new(Memo::new(Arc::new(ObjectCatalog))) }
}

/// Writes a block.
fn put(index: &dyn Index, sequence: u64) {
    let at = Location { segment: 1, offset: 8 * u32::try_from(sequence).unwrap(), len: 4400 };
    let mut tx = Tx::new(index);
    ObjectCatalog.apply(&mut tx, &extent(RUN, sequence, 0, false).view(), at).unwrap();
    index.apply(tx.finish().set).unwrap();
}

/// The write that a reader sees; 0: none.
fn seen(index: &dyn Index, memo: &Memo) -> u64 {
    let found = first_era_known(index, memo, &RUN, VOLUME).unwrap();
    found.first().map_or(0, |block| block.row.position.sequence)
}

fn known(memo: &Memo) -> bool {
    let key = block_key(VOLUME, RUN.slice, RUN.chunk, RUN.first, 0);
    matches!(memo.recall::<SpanRows>(Table::Blocks, &key), Recalled::Known(_))
}

#[test]
fn a_span_is_known_when_it_was_asked_for_twice_and_until_it_changes() {
    let told = told(Arc::new(MemoryIndex::new()));
    put(&told, 1);
    assert_eq!(seen(&told, &told.memo), 1);
    assert!(!known(&told.memo));
    assert_eq!(seen(&told, &told.memo), 1);
    assert!(known(&told.memo));
    assert_eq!(seen(&told, &told.memo), 1);
    put(&told, 2);
    assert!(!known(&told.memo));
    assert_eq!(seen(&told, &told.memo), 2);
}

#[test]
fn rows_that_were_read_before_a_change_are_not_kept() {
    let told = told(Arc::new(MemoryIndex::new()));
    put(&told, 1);
    seen(&told, &told.memo);
    let key = block_key(VOLUME, RUN.slice, RUN.chunk, RUN.first, 0);
    let Recalled::Unknown(blank) = told.memo.recall::<SpanRows>(Table::Blocks, &key) else { panic!("known") };
    assert!(blank.again);
    let rows = SpanRows::read(&told, &RUN, VOLUME).unwrap();
    put(&told, 2);
    told.memo.learn(&blank, Arc::new(rows), 100);
    assert_eq!(seen(&told, &told.memo), 2);
}

/// While it is changed, readers come who still see what was.
#[derive(Default)]
struct Asked {
    memory: MemoryIndex,
    memo: OnceLock<Arc<Memo>>,
}

impl Index for Asked {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        self.memory.get(table, key)
    }

    fn get_several(&self, table: Table, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, IndexError> {
        self.memory.get_several(table, keys)
    }

    fn scan<'a>(
        &'a self,
        table: Table,
        range: Range,
    ) -> Box<dyn Iterator<Item = Result<Pair, IndexError>> + Send + 'a> {
        self.memory.scan(table, range)
    }

    fn apply(&self, set: WriteSet) -> Result<(), IndexError> {
        for _ in 0..3 {
            seen(&self.memory, self.memo.get().unwrap());
        }
        self.memory.apply(set)
    }

    fn checkpoint(&self) -> Result<(), IndexError> {
        self.memory.checkpoint()
    }

    fn stats(&self) -> IndexStats {
        self.memory.stats()
    }
}

#[test]
fn rows_that_were_read_while_a_change_was_made_are_not_kept() {
    let asked = Arc::new(Asked::default());
    let told = told(asked.clone());
    assert!(asked.memo.set(told.memo.clone()).is_ok());
    for sequence in 1..20 {
        put(&told, sequence);
        for _ in 0..3 {
            assert_eq!(seen(&told, &told.memo), sequence);
        }
    }
}

/// Behind a change that failed nobody can tell what the index has.
#[test]
fn behind_a_change_that_failed_nothing_is_learned() {
    let memory = Arc::new(MemoryIndex::new());
    let told = told(memory.clone());
    put(&told, 1);
    memory.fail_after(0);
    assert!(told.apply(WriteSet::default()).is_err());
    for _ in 0..3 {
        seen(&told, &told.memo);
        assert!(!known(&told.memo));
    }
}

#[test]
fn readers_beside_a_writer_see_no_write_undone() {
    let told = told(Arc::new(MemoryIndex::new()));
    let (applied, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let read = || {
        let mut reads = 0;
        while !over.load(Ordering::SeqCst) {
            let before = applied.load(Ordering::SeqCst);
            let found = seen(&told, &told.memo);
            assert!(found >= before, "{found} after {before} was applied");
            reads += 1;
        }
        reads
    };
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3).map(|_| scope.spawn(read)).collect();
        for sequence in 1..20_000 {
            put(&told, sequence);
            applied.store(sequence, Ordering::SeqCst);
            if sequence % 64 == 0 {
                std::thread::yield_now();
            }
        }
        over.store(true, Ordering::SeqCst);
        let reads: u64 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
        assert!(reads > 0);
    });
}
