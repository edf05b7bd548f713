//! A volume with several members as a block device: what a client asks, asked of its head.
//!
//! Invariant: a write that covers a block in part is carried out while no other write to the volume is under way.
//! Invariant: a write is answered when a quorum of members has it, a flush when a quorum is durable past it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use quarry_engine::block::{BLOCK_BYTES, BlockPlace, Fence, Run, VolumeId};
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::{BlockWrite, VolumeAnswer, VolumeCall};
use tokio::sync::{RwLock, mpsc, oneshot, watch};

use super::device::{Piece, Stretch, aligned, around, joined, length_of, trim};
use super::driver::{Active, Ask, Commit, Condition, Got, Parts, Seen, Views, What, drive};
use super::error::VolumeError;
use super::link::{Body, Peer, Reach, Unanswered};
use super::sealed::{opened, sealed};
use super::waterline::Waterline;
use crate::cipher::Cipher;
use crate::geometry::{CHUNK_BYTES, Geometry};
use crate::head::{Configuration, Failure, Head, Session, Settings, Until};
use crate::member::Refusal;

/// Runs of one request that are under way together.
const TOGETHER: usize = 32;
/// Acknowledged writes whose bytes are kept.
const KEEP: u64 = 256;
/// How long the members may take to promise.
const ATTACH: Duration = Duration::from_secs(20);

/// What a head is made of.
#[derive(Clone)]
pub struct Attachment {
    /// Which volume.
    pub volume: VolumeId,
    /// Its size, and how it is cut.
    pub geometry: Geometry,
    /// The epoch that was granted.
    pub epoch: u64,
    /// Its members, as committed when it was.
    pub configuration: Configuration,
    /// How many it shall have. Those that count at present may be fewer: some are away, and are filled when they are back.
    pub wanted: usize,
    /// The member on this node, if there is one.
    pub near: Option<DeviceId>,
    /// Of an encrypted volume: members have ciphertext alone.
    pub cipher: Option<Cipher>,
    /// Its snapshots.
    pub views: Views,
}

/// An attached volume with several members; clones share everything.
#[derive(Debug, Clone)]
pub struct Replicated {
    inner: Arc<Inner>,
    geometry: Geometry,
    /// The last era that is seen; of a snapshot its own, and then nothing is written.
    era: u32,
    /// Snapshots by their names, with their eras: to them differences are asked for.
    names: Arc<[(String, u32)]>,
}

#[derive(Debug)]
struct Inner {
    asks: mpsc::UnboundedSender<Ask>,
    volume: VolumeId,
    fence: Fence,
    cipher: Option<Cipher>,
    condition: watch::Receiver<Condition>,
    waterline: Arc<Waterline>,
    reach: Reach,
    /// Writes of whole blocks share it; one that covers a block in part has it alone.
    edges: RwLock<()>,
    /// Eras of the snapshots that there are, as far as was told.
    snapshots: Mutex<Vec<u32>>,
}

/// A snapshot of which nobody knows yet whether it is one. Dropped like that, it ends the head.
struct Stopping<'a>(Option<&'a Inner>);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        if let Some(inner) = self.0 {
            // Who no longer listens does nothing more.
            let _gone = inner.asks.send(Ask::Stop);
        }
    }
}

impl Replicated {
    /// Begins to be the head of a volume.
    #[must_use]
    pub fn attach(what: &Attachment, reach: &Reach, commit: Commit) -> Self {
        let Attachment { volume, geometry, epoch, configuration, wanted, near, cipher, views } = what.clone();
        let fence = Fence { epoch, configuration: configuration.version };
        // Not of those that count now: with each new head fewer would be enough.
        let least = wanted.div_ceil(2).max(1);
        let (head, begun) = Head::attach(fence, configuration, Settings { least, keep: KEEP, near });
        let (tell, condition) = watch::channel(Condition::Attaching);
        let (asks, asked) = mpsc::unbounded_channel();
        let waterline = Arc::new(Waterline::default());
        let (shown, reaching) = (Arc::clone(&waterline), reach.clone());
        let parts =
            Parts { head, begun, volume, views, reach: reaching, commit, condition: tell, waterline: shown };
        reach.beside(drive(parts, asked));
        let (edges, reach) = (RwLock::new(()), reach.clone());
        let snapshots = Mutex::new(what.views.snapshots.clone());
        let inner = Inner { asks, volume, fence, cipher, condition, waterline, reach, edges, snapshots };
        let inner = Arc::new(inner);
        Self { inner, geometry, era: u32::MAX, names: Arc::default() }
    }

    /// The same volume, which has another size now.
    #[must_use]
    pub fn resized(&self, geometry: Geometry) -> Self {
        Self { geometry, ..self.clone() }
    }

    /// What a snapshot of an era sees.
    #[must_use]
    pub fn as_of(&self, era: u32, geometry: Geometry) -> Self {
        Self { geometry, era, ..self.clone() }
    }

    /// The same, for who looks at what a snapshot saw that is none any more.
    #[cfg(test)]
    pub(super) fn believing(self, era: u32) -> Self {
        self.inner.snapshots.lock().unwrap().push(era);
        self
    }

    /// The same, which knows snapshots by these names.
    #[must_use]
    pub fn knowing(self, names: impl IntoIterator<Item = (String, u32)>) -> Self {
        Self { names: names.into_iter().collect(), ..self }
    }

    /// Freezes the volume as it is: no write has a place while `commit` makes it known that writes belong to another era from here on. If
    /// what came of that is not known, nothing is written any more, by this head.
    pub async fn freeze(
        &self,
        commit: impl Future<Output = Result<Views, VolumeError>>,
    ) -> Result<(), VolumeError> {
        let _alone = self.inner.edges.write().await;
        let (done, settled) = oneshot::channel();
        self.inner.asks.send(Ask::Settle { done }).map_err(|_| self.gone())?;
        settled.await.map_err(|_| self.gone())??;
        let mut stopping = Stopping(Some(&self.inner));
        let views = commit.await?;
        stopping.0 = None;
        self.see(views).await
    }

    /// Tells the head which snapshots there are.
    pub async fn see(&self, views: Views) -> Result<(), VolumeError> {
        let (done, seen) = oneshot::channel();
        // First: who reads what a snapshot saw that is none any more hears of it before anything is given back.
        self.inner.snapshots.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&views.snapshots);
        self.inner.asks.send(Ask::Views { views, done }).map_err(|_| self.gone())?;
        seen.await.map_err(|_| self.gone())
    }

    /// Nobody else has it.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        Arc::strong_count(&self.inner) == 1
    }

    /// How its head is.
    #[must_use]
    pub fn condition(&self) -> Condition {
        self.inner.condition.borrow().clone()
    }

    /// Of its head.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.inner.fence.epoch
    }

    /// Its head is none any more.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.inner.asks.is_closed() || matches!(*self.inner.condition.borrow(), Condition::Stopped(_))
    }

    /// Waits until the head serves, for a while: it goes on when nobody waits any more, and may be waited for again.
    pub async fn served(&self) -> Result<(), VolumeError> {
        let mut condition = self.inner.condition.clone();
        let settled = condition.wait_for(|now| !matches!(now, Condition::Attaching));
        let over = (self.inner.reach.timer)(ATTACH);
        let now = tokio::select! {
            biased;
            now = settled => now.map(|now| now.clone()).map_err(|_| Failure::TooFew)?,
            () = over => return Err(Failure::TooFew.into()),
        };
        match now {
            Condition::Serving => Ok(()),
            Condition::Stopped(why) => Err(why.into()),
            Condition::Attaching | Condition::Undecided(_) => Err(VolumeError::Undecided),
        }
    }

    /// Another member is to be brought up to date, and to count then; the head has it committed when it can.
    pub fn add_member(&self, device: DeviceId) -> Result<(), VolumeError> {
        self.inner.asks.send(Ask::Add(device)).map_err(|_| self.gone())
    }

    /// A member is to go: when as many have all that was promised to clients as must without it.
    pub fn remove_member(&self, device: DeviceId) -> Result<(), VolumeError> {
        self.inner.asks.send(Ask::Remove(device)).map_err(|_| self.gone())
    }

    /// An operator has decided that what one member has is the volume, whatever was acknowledged beside it. True: that is being committed.
    /// False: the volume is not undecided, another decision is being committed, or this member does not answer or has nothing.
    pub async fn decide(&self, device: DeviceId) -> Result<bool, VolumeError> {
        let (done, proposed) = oneshot::channel();
        self.inner.asks.send(Ask::Decide { device, done }).map_err(|_| self.gone())?;
        proposed.await.map_err(|_| self.gone())
    }

    /// Whether too few members follow the order for anything to be acknowledged, and none of the others is on the way: what is left of it can
    /// be the volume by an operator's decision, under another head.
    pub async fn lacks_members(&self) -> Result<bool, VolumeError> {
        let (done, lacks) = oneshot::channel();
        self.inner.asks.send(Ask::Lacks { done }).map_err(|_| self.gone())?;
        lacks.await.map_err(|_| self.gone())
    }

    /// Its members as the head sees them.
    pub async fn members(&self) -> Vec<Seen> {
        let (done, seen) = oneshot::channel();
        // A head that has stopped sees nobody. What could not be sent is dropped at once: with it lives who would be waited for.
        drop(self.inner.asks.send(Ask::Show { done }));
        seen.await.unwrap_or_default()
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.geometry.volume_bytes()
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Who follows the order, and its end.
    pub(super) async fn active(&self) -> Result<Active, VolumeError> {
        let (done, active) = oneshot::channel();
        self.inner.asks.send(Ask::Active { done }).map_err(|_| self.gone())?;
        active.await.map_err(|_| self.gone())
    }

    /// Asks a member something of its own, beside the order.
    pub(super) async fn ask_one(
        &self,
        (device, session): (DeviceId, Session),
        call: VolumeCall,
    ) -> Result<VolumeAnswer, Unanswered> {
        let Inner { volume, fence, reach, .. } = &*self.inner;
        reach.ask(Peer { device, volume: *volume }, *fence, session, call).await
    }

    /// Why nothing comes from a head any more.
    fn gone(&self) -> VolumeError {
        match self.condition() {
            Condition::Stopped(why) => why.into(),
            _ => Failure::TooFew.into(),
        }
    }

    async fn ask_read(&self, what: What) -> Result<Got, VolumeError> {
        let (done, read) = oneshot::channel();
        self.inner.asks.send(Ask::Read { what, done }).map_err(|_| self.gone())?;
        let got = read.await.map_err(|_| self.gone())??;
        // Asked for afterwards: what was given back before the answer is not in it.
        let known =
            || self.inner.snapshots.lock().unwrap_or_else(PoisonError::into_inner).contains(&self.era);
        if self.era == u32::MAX || known() { Ok(got) } else { Err(VolumeError::SnapshotGone) }
    }

    pub(super) fn offset_of(&self, run: &Run) -> Option<u64> {
        self.geometry.offset_of(run.slice, run.chunk, run.first)
    }

    async fn read_run(&self, run: Run) -> Result<Vec<Piece>, VolumeError> {
        let Got::Pieces(pieces) = self.ask_read(What::Run(run, self.era)).await? else {
            return Err(Failure::Unreadable.into());
        };
        Ok(opened(self.inner.cipher.as_ref(), self.offset_of(&run).unwrap_or(0), pieces))
    }

    /// Rows from an offset on, of eras from `since` on, and the offset behind them; `None`: there are no others.
    pub(super) async fn map(
        &self,
        offset: u64,
        since: u32,
    ) -> Result<(Vec<BlockWrite>, Option<u64>), VolumeError> {
        let Some(first) = self.geometry.split(offset, BLOCK_BYTES)?.next() else {
            return Ok((Vec::new(), None));
        };
        let place = BlockPlace { slice: first.slice, chunk: first.chunk, block: first.first };
        match self.ask_read(What::Map(place, self.era, since)).await? {
            Got::Map(rows, next) => {
                let place = |next: BlockPlace| self.geometry.offset_from(next.slice, next.chunk, next.block);
                // Each page takes it further.
                Ok((rows, next.and_then(place).filter(|next| *next > offset)))
            }
            Got::Pieces(_) => Err(Failure::Unreadable.into()),
        }
    }

    /// What takes space in a range of whole blocks, from its beginning on: at most so many stretches, which need not reach its end.
    pub async fn stretches(
        &self,
        offset: u64,
        length: u64,
        most: usize,
    ) -> Result<Vec<Stretch>, VolumeError> {
        self.survey(offset, length, most, 0, |row| !row.zeroes).await
    }

    /// As [`Replicated::stretches`], of what was written since a snapshot: a hole was not.
    pub async fn changes(
        &self,
        snapshot: &str,
        offset: u64,
        length: u64,
        most: usize,
    ) -> Result<Vec<Stretch>, VolumeError> {
        let Some((_, era)) = self.names.iter().find(|(name, _)| name == snapshot) else {
            // More than what changed is never wrong.
            return Ok(vec![Stretch { bytes: length, hole: false }]);
        };
        self.survey(offset, length, most, era.saturating_add(1), |_| true).await
    }

    async fn survey(
        &self,
        offset: u64,
        length: u64,
        most: usize,
        since: u32,
        counts: impl Fn(&BlockWrite) -> bool,
    ) -> Result<Vec<Stretch>, VolumeError> {
        let end = offset + length;
        let mut found = Stretches { at: offset, end, all: Vec::new() };
        let mut next = Some(offset / BLOCK_BYTES * BLOCK_BYTES);
        while let Some(from) = next.filter(|from| *from < end && found.all.len() < most) {
            let (rows, behind) = self.map(from, since).await?;
            for row in rows {
                let Some(place) = self.offset_of(&row.run) else { break };
                found.add(place, true);
                found.add(place + row.run.bytes(), !counts(&row));
            }
            next = behind;
            found.add(next.unwrap_or(end), true);
        }
        found.all.truncate(most.max(1));
        Ok(found.all)
    }

    pub(super) async fn write_run(
        &self,
        run: Run,
        data: Option<Bytes>,
        until: Until,
    ) -> Result<(), VolumeError> {
        let (done, written) = oneshot::channel();
        if self.era != u32::MAX {
            return Err(Refusal::NotPromised.into());
        }
        let body = Body { run, data, era: 0 };
        self.inner.asks.send(Ask::Write { body, until, done }).map_err(|_| self.gone())?;
        Ok(written.await.map_err(|_| self.gone())??)
    }

    /// The bytes of a range, in pieces that cover it in order.
    pub async fn read(&self, offset: u64, length: u64) -> Result<Vec<Piece>, VolumeError> {
        let whole = around(offset, length);
        let runs = self.geometry.split(whole.offset, whole.length)?;
        let reads: Vec<_> = runs.map(|run| self.read_run(run)).collect();
        let read: Vec<Vec<Piece>> = stream::iter(reads).buffered(TOGETHER).try_collect().await?;
        let mut pieces = read.into_iter().flatten().collect();
        trim(&mut pieces, offset - whole.offset, length);
        Ok(pieces)
    }

    /// The bytes of a range in one buffer.
    pub async fn read_whole(&self, offset: u64, length: u64) -> Result<BytesMut, VolumeError> {
        Ok(joined(self.read(offset, length).await?))
    }

    /// Writes bytes.
    pub async fn write(&self, offset: u64, data: Bytes, until: Until) -> Result<(), VolumeError> {
        if aligned(offset, data.len() as u64) {
            let _shared = self.inner.edges.read().await;
            return self.write_blocks(offset, data, until).await;
        }
        let _alone = self.inner.edges.write().await;
        let whole = around(offset, data.len() as u64);
        let mut blocks = self.read_whole(whole.offset, whole.length).await?;
        let from = length_of(offset - whole.offset);
        if let Some(place) = blocks.get_mut(from..from + data.len()) {
            place.copy_from_slice(&data);
        }
        self.write_blocks(whole.offset, blocks.freeze(), until).await
    }

    async fn write_blocks(&self, offset: u64, data: Bytes, until: Until) -> Result<(), VolumeError> {
        let mut rest = sealed(self.inner.cipher.as_ref(), offset, data);
        let runs = self.geometry.split(offset, rest.len() as u64)?;
        let writes: Vec<_> = runs
            .map(|run| {
                let data = rest.split_to(length_of(run.bytes()));
                self.write_run(run, Some(data), until)
            })
            .collect();
        stream::iter(writes).buffered(TOGETHER).try_collect::<Vec<()>>().await.map(drop)
    }

    /// Zeroes a range; whole blocks of it take no space.
    pub async fn zero(&self, offset: u64, length: u64, until: Until) -> Result<(), VolumeError> {
        let from = offset.next_multiple_of(BLOCK_BYTES);
        let to = (offset + length) / BLOCK_BYTES * BLOCK_BYTES;
        if from >= to {
            return self.write_zeroes(offset, length, until).await;
        }
        self.write_zeroes(offset, from - offset, until).await?;
        self.write_zeroes(to, offset + length - to, until).await?;
        self.discard(from, to - from, until).await
    }

    /// Writes zeroes as if they were data.
    pub(super) async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        until: Until,
    ) -> Result<(), VolumeError> {
        let mut at = offset;
        while at < offset + length {
            let step = ((at / CHUNK_BYTES + 1) * CHUNK_BYTES).min(offset + length) - at;
            self.write(at, Bytes::from(vec![0; length_of(step)]), until).await?;
            at += step;
        }
        Ok(())
    }

    /// Gives up the whole blocks of a range. What has nothing there is not written about.
    pub async fn discard(&self, offset: u64, length: u64, until: Until) -> Result<(), VolumeError> {
        let to = (offset + length) / BLOCK_BYTES * BLOCK_BYTES;
        let mut next = Some(offset.next_multiple_of(BLOCK_BYTES));
        let _shared = self.inner.edges.read().await;
        while let Some(from) = next.filter(|from| *from < to) {
            let (rows, behind) = self.map(from, 0).await?;
            let data = rows.iter().filter(|row| !row.zeroes);
            let writes: Vec<_> = data
                .filter_map(|row| self.within(&row.run, to))
                .map(|run| self.write_run(run, None, until))
                .collect();
            stream::iter(writes).buffered(TOGETHER).try_collect::<Vec<()>>().await?;
            next = behind;
        }
        Ok(())
    }

    /// The part of a run before an offset.
    fn within(&self, run: &Run, to: u64) -> Option<Run> {
        let left = to.checked_sub(self.offset_of(run)?)? / BLOCK_BYTES;
        let blocks = run.blocks.min(u16::try_from(left).unwrap_or(u16::MAX));
        (blocks > 0).then_some(Run { blocks, ..*run })
    }

    /// All writes that were answered are durable when this returns.
    pub async fn flush(&self) -> Result<(), VolumeError> {
        let serves = matches!(*self.inner.condition.borrow(), Condition::Serving);
        if serves && self.inner.waterline.is_all_durable() {
            return Ok(());
        }
        let (done, flushed) = oneshot::channel();
        self.inner.asks.send(Ask::Flush { done }).map_err(|_| self.gone())?;
        Ok(flushed.await.map_err(|_| self.gone())??)
    }
}

/// Stretches that follow each other.
struct Stretches {
    at: u64,
    end: u64,
    all: Vec<Stretch>,
}

impl Stretches {
    fn add(&mut self, upto: u64, hole: bool) {
        let bytes = upto.min(self.end).saturating_sub(self.at);
        if bytes == 0 {
            return;
        }
        self.at += bytes;
        match self.all.last_mut() {
            Some(last) if last.hole == hole => last.bytes += bytes,
            _ => self.all.push(Stretch { bytes, hole }),
        }
    }
}
