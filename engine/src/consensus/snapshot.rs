//! Snapshots: the rows of a group as of one moment, in chunks that are made when they are wanted.
//!
//! Invariant: no more than two chunks of a snapshot are in memory, however many rows there are.
//! Invariant: the rows are those of one moment: no entry is applied between the marker and the beginning of the scans.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::codec::{ChunkWriter, Marker};
use super::limits::CHUNK_BYTES;
use super::territory::Territory;
use crate::catalog;
use crate::disk::DiskHandle;
use crate::index::{Index, IndexError, Range, Table};
use crate::object::BoxFuture;

/// What openraft carries around as a snapshot.
pub(crate) enum SnapshotData {
    /// To be filled.
    Nothing,
    /// Of this machine, to be sent.
    Rows { marker: Marker, rows: RowStream },
    /// Of another machine, staged here whole: that many chunks.
    Staged { marker: Marker, chunks: u64 },
}

impl std::fmt::Debug for SnapshotData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nothing => "Nothing",
            Self::Rows { .. } => "Rows",
            Self::Staged { .. } => "Staged",
        })
    }
}

/// The rows of a group as of one moment.
pub(crate) struct RowStream {
    producer: Option<BoxFuture<'static, Result<(), IndexError>>>,
    slot: Slot,
}

/// A chunk that is ready. Whoever takes it polls the producer, so nobody needs to be woken.
type Slot = Arc<Mutex<Option<Vec<u8>>>>;

fn lock(slot: &Slot) -> MutexGuard<'_, Option<Vec<u8>>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RowStream {
    /// The rows as they stand now.
    pub(crate) fn begin(disk: &DiskHandle, territory: &Arc<Territory>) -> Self {
        let slot = Slot::default();
        let producer: BoxFuture<'static, _> =
            Box::pin(produce(disk.clone(), Arc::clone(territory), Arc::clone(&slot)));
        let mut stream = Self { producer: Some(producer), slot };
        // The scans begin at the first poll, that is now.
        if let Err(e) = stream.advance(&mut Context::from_waker(Waker::noop())) {
            stream.producer = Some(Box::pin(std::future::ready(Err(e))));
        }
        stream
    }

    /// Lets the producer go on until there is a chunk or it has ended.
    fn advance(&mut self, context: &mut Context<'_>) -> Result<(), IndexError> {
        let Some(producer) = &mut self.producer else { return Ok(()) };
        match producer.as_mut().poll(context) {
            Poll::Pending => Ok(()),
            Poll::Ready(ended) => {
                self.producer = None;
                ended
            }
        }
    }

    /// The next chunk; `None` behind the last.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<u8>>, IndexError> {
        if lock(&self.slot).is_none() {
            poll_fn(|context| Poll::Ready(self.advance(context))).await?;
        }
        Ok(lock(&self.slot).take())
    }
}

/// Puts a chunk into the slot when it is empty.
async fn put(slot: &Slot, chunk: Vec<u8>) {
    poll_fn(|_| if lock(slot).is_none() { Poll::Ready(()) } else { Poll::Pending }).await;
    *lock(slot) = Some(chunk);
}

async fn produce(disk: DiskHandle, territory: Arc<Territory>, slot: Slot) -> Result<(), IndexError> {
    let index: &dyn Index = disk.index();
    let scans: Vec<_> = territory
        .scans(&Range::default())
        .into_iter()
        .map(|(prefix, range)| index.scan(Table::Rows, range).map(move |pair| (prefix, pair)))
        .collect();
    let mut chunk = ChunkWriter::default();
    for (prefix, pair) in scans.into_iter().flatten() {
        let (key, value) = pair?;
        let row = catalog::decode_row(&value)?;
        let key = key.get(prefix..).unwrap_or_default();
        if chunk.len() + key.len() + row.value.len() > CHUNK_BYTES
            && let Some(full) = chunk.take()
        {
            put(&slot, full).await;
        }
        chunk.push(key, row.sequence, &row.value);
    }
    if let Some(last) = chunk.take() {
        put(&slot, last).await;
    }
    Ok(())
}
