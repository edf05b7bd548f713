//! Our own bugs: a disk whose thread panics is out, and does not pass for one that was closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::kv::{Kv, SEGMENT, put_record};
use crate::disk::catalog::{Catalog, Tx};
use crate::disk::format::record::{DeviceId, RecordView};
use crate::disk::format::superblock::ClusterId;
use crate::disk::{
    CacheBytes, Class, DiskError, DiskHandle, Durability, Format, Location, Open, format, start_on,
};
use crate::index::{Index, IndexError, IndexStats, MemoryIndex, Pair, Range, Table, WriteSet};
use crate::io::SimImage;

/// Cannot bear one key.
struct Brittle;

impl Catalog for Brittle {
    fn apply(&self, tx: &mut Tx<'_>, record: &RecordView<'_>, at: Location) -> Result<(), IndexError> {
        assert_ne!(record.key, b"boom", "planted");
        Kv.apply(tx, record, at)
    }

    fn relocate(
        &self,
        tx: &mut Tx<'_>,
        record: &RecordView<'_>,
        from: Location,
        to: Location,
    ) -> Result<bool, IndexError> {
        Kv.relocate(tx, record, from, to)
    }

    fn is_live(&self, index: &dyn Index, record: &RecordView<'_>, at: Location) -> Result<bool, IndexError> {
        Kv.is_live(index, record, at)
    }

    fn forget(&self, tx: &mut Tx<'_>, record: &RecordView<'_>) -> Result<(), IndexError> {
        Kv.forget(tx, record)
    }
}

/// Cannot bear a checkpoint, once it is open.
#[derive(Default)]
struct NoCheckpoint(MemoryIndex, AtomicBool);

impl Index for NoCheckpoint {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
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
        assert!(!self.1.load(Ordering::SeqCst), "planted");
        self.0.checkpoint()
    }

    fn stats(&self) -> IndexStats {
        self.0.stats()
    }
}

fn started(index: Arc<dyn Index>) -> DiskHandle {
    let image = SimImage::new(13 * SEGMENT, 1);
    let (cluster, device) = (ClusterId([7; 16]), DeviceId([9; 16]));
    let request = Format { cluster, device, segment_size: Some(SEGMENT), overwrite: false };
    format(&mut image.open(), &request).unwrap();
    let options = Open { cluster: None, cache_bytes: CacheBytes::small(1 << 20), progress: &mut |_, _| {} };
    start_on(Box::new(image.open()), index, Arc::new(Brittle), options).unwrap().0
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

/// The words with which a disk is out; those that wait are told while its thread still unwinds.
#[expect(clippy::disallowed_methods, reason = "the thread of a disk is a real one")]
fn failure(handle: &DiskHandle) -> String {
    let began = Instant::now();
    loop {
        if let Some(why) = handle.failure() {
            return why.to_string();
        }
        assert!(began.elapsed() < Duration::from_secs(30), "it looks well");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// `/status` said `ok`, volumes were placed there, and whoever asked it for something heard that it was closed.
#[test]
fn a_disk_whose_thread_panicked_is_out() {
    let handle = started(Arc::new(MemoryIndex::new()));
    let put = |key: &str| {
        let record = put_record(&handle, key, 1, b"value");
        run(handle.append(vec![record], Durability::Durable, Class::Client))
    };
    put("fine").unwrap();
    assert!(put("boom").is_err());
    assert!(failure(&handle).contains("its thread panicked"));
    assert!(matches!(put("fine"), Err(DiskError::Failed(_))));
    assert!(matches!(run(handle.close()), Err(DiskError::Failed(_))));
}

/// Nobody heard of the checkpoint again, and the disk filled with what is freed after one.
#[test]
fn a_checkpoint_that_panicked_has_failed() {
    let index = Arc::new(NoCheckpoint::default());
    let handle = started(Arc::<NoCheckpoint>::clone(&index));
    index.1.store(true, Ordering::SeqCst);
    assert!(run(handle.checkpoint()).is_err());
    assert!(failure(&handle).contains("its thread panicked"));
}
