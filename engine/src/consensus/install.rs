//! Makes a group's rows those of a snapshot that is staged on the same disk.
//!
//! Both are walked in key order, and only differences are written. It may be begun again at any time: what is staged stays until
//! the record that ends the installation, and that one names the marker as well.
//!
//! Invariant: a crash in the middle leaves a group that is being installed, never one whose rows are believed.

use std::collections::VecDeque;

use super::back;
use super::codec::{self, Staged};
use super::limits::{INSTALL_UNDER_WAY, MAX_ENTRY_ROWS};
use super::machine::row_record;
use super::registry::Family;
use super::snapshot::RowStream;
use super::store::Store;
use super::territory::Territory;
use super::types::RowChange;
use crate::catalog::{BadValue, GroupTag};
use crate::disk::format::record::NewRecord;
use crate::disk::{DiskError, Durability, Submitted};
use crate::index::IndexError;

fn broken(reason: &dyn std::fmt::Display) -> DiskError {
    DiskError::from(IndexError::Store { verb: "install", reason: reason.to_string() })
}

/// Rows that come in chunks, one by one.
struct Cursor<S> {
    source: S,
    rows: VecDeque<RowChange>,
}

/// Where chunks come from.
trait Chunks {
    async fn next(&mut self) -> Result<Option<Vec<u8>>, DiskError>;
}

/// Chunks that are staged.
struct StagedChunks<'a> {
    store: &'a Store,
    next: u64,
    end: u64,
}

impl Chunks for StagedChunks<'_> {
    async fn next(&mut self) -> Result<Option<Vec<u8>>, DiskError> {
        if self.next == self.end {
            return Ok(None);
        }
        let chunk = self.store.fetch(GroupTag::Chunk, self.next).await?;
        self.next += 1;
        chunk.map(|(_, bytes)| Some(bytes.to_vec())).ok_or_else(|| broken(&"a staged chunk is missing"))
    }
}

impl Chunks for RowStream {
    async fn next(&mut self) -> Result<Option<Vec<u8>>, DiskError> {
        Ok(Self::next(self).await?)
    }
}

impl<S: Chunks> Cursor<S> {
    fn new(source: S) -> Self {
        Self { source, rows: VecDeque::new() }
    }

    async fn peek(&mut self) -> Result<Option<&RowChange>, DiskError> {
        while self.rows.is_empty() {
            let Some(chunk) = self.source.next().await? else { return Ok(None) };
            self.rows = codec::decode_chunk(&chunk).map_err(|e: BadValue| broken(&e))?.into();
        }
        Ok(self.rows.front())
    }

    fn take(&mut self) -> Option<RowChange> {
        self.rows.pop_front()
    }
}

/// Writes rows in groups, not too many at a time.
struct Writer<'a> {
    store: &'a Store,
    territory: &'a Territory,
    records: Vec<NewRecord>,
    under_way: VecDeque<Submitted>,
}

impl Writer<'_> {
    async fn push(&mut self, key: &[u8], sequence: u64, value: Option<&[u8]>) -> Result<(), DiskError> {
        self.records.push(row_record(&self.store.disk, &self.territory.place(key), sequence, value));
        if self.records.len() >= MAX_ENTRY_ROWS { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), DiskError> {
        if self.records.is_empty() {
            return Ok(());
        }
        let records = std::mem::take(&mut self.records);
        self.under_way.push_back(self.store.submit(records, Durability::Appended).await?);
        if self.under_way.len() > INSTALL_UNDER_WAY
            && let Some(oldest) = self.under_way.pop_front()
        {
            oldest.done().await?;
        }
        Ok(())
    }

    async fn end(mut self) -> Result<(), DiskError> {
        self.flush().await?;
        for submitted in self.under_way {
            submitted.done().await?;
        }
        Ok(())
    }
}

/// Installs what is staged. `opening`: the group is being opened.
pub(crate) async fn install(
    store: &Store,
    family: &Family,
    opening: bool,
    staged: &Staged,
) -> Result<(), DiskError> {
    let mut wanted = Cursor::new(StagedChunks { store, next: 0, end: staged.chunks });
    let territory = store.territory();
    let mut here = Cursor::new(RowStream::begin(&store.disk, &territory));
    let (records, under_way) = (Vec::new(), VecDeque::new());
    let mut writer = Writer { store, territory: &territory, records, under_way };
    loop {
        let next = wanted.peek().await?.map(|row| row.key.clone());
        while let Some(row) = here.peek().await?
            && next.as_ref().is_none_or(|next| row.key < *next)
        {
            writer.push(&row.key, row.sequence, None).await?;
            here.take();
        }
        let Some(row) = wanted.take() else { break };
        let stands = here.peek().await?.filter(|here| here.key == row.key).map(|here| here.sequence);
        if stands.is_some_and(|stands| stands > row.sequence) {
            return Err(broken(
                &"this disk has rows that are newer than the group's: they are of another group",
            ));
        }
        if stands != Some(row.sequence) {
            writer.push(&row.key, row.sequence, row.value.as_deref()).await?;
        }
        if stands.is_some() {
            here.take();
        }
    }
    writer.end().await?;
    // Of lines that were taken back meanwhile, others' may still be here.
    store.sync().await?;
    store.survey()?;
    back::settle(store, family, opening).await.map_err(|e| broken(&e))?;
    store.installed(&staged.marker).await
}
