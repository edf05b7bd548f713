//! The disk of an image in qcow2, written while the image comes (`qcow2::Stream`).
//!
//! What may be wanted later is kept: a little of it in memory, more in a volume of its own, which no client finds.
//!
//! Invariant: what is kept in memory has at most [`IN_MEMORY`] bytes and [`MOST_PARTS`] parts.
//! Invariant: the volume of what is kept is encrypted where the new one is, and goes with the try; what a crash leaves of it the next
//! try deletes, or the sweep of volumes on their way (`migrate`).

use std::collections::BTreeMap;
use std::pin::pin;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, StreamExt};
use quarry_engine::object::BoxFuture;
use quarry_volume::VolumeId;
use quarry_volume::store::{Attached, Label, VolumeError};

use super::download::{Hash, Job, write};
use super::service::Download;
use super::while_wanted;
use crate::block::moving::End;
use crate::cinder::copy::CopyError;
use crate::cinder::fields::text;
use crate::cinder::volume_view::is_encrypted;
use crate::qcow2::{Act, Piece, Reader, Span, Step, Stream};
use crate::storage::{random_bytes, wall_clock};

/// Pieces that are written at once.
const AT_ONCE: usize = 4;
/// Bytes that are kept in memory before a volume is made for them.
const IN_MEMORY: u64 = 8 << 20;
/// Parts of an image that are kept: they have as many gaps between them.
const MOST_PARTS: usize = 1 << 18;

/// Writes what an image in qcow2 is of.
pub(super) async fn unpack(job: &Job<'_>, from: Download, target: &Attached) -> Result<(), CopyError> {
    let mut kept =
        Kept { job, parts: BTreeMap::new(), memory: Some(BTreeMap::new()), bytes: 0, volume: None };
    kept.let_go().await?;
    let done = Box::pin(unfold(job, from, target, &mut kept));
    let done = while_wanted(job.office, job.volume, done).await;
    kept.let_go().await?;
    done
}

async fn unfold(
    job: &Job<'_>,
    mut from: Download,
    target: &Attached,
    kept: &mut Kept<'_>,
) -> Result<(), CopyError> {
    let (mut hash, mut stream, mut came) = (Hash::of(job.image), Stream::new(job.size), 0);
    let mut writes = Writes { target, open: FuturesUnordered::new() };
    while let Some(bytes) = writes.meanwhile(from.next()).await?? {
        hash.add(&bytes);
        came += bytes.len() as u64;
        stream.feed(&bytes)?;
        if stream.bytes().is_some_and(|disk| disk > target.bytes()) {
            return Err(CopyError::Image("it is larger than the volume"));
        }
        while let Some(act) = stream.act()? {
            match act {
                Act::Write(piece, bytes) => writes.begin(piece, bytes).await?,
                Act::Keep(at, bytes) => writes.meanwhile(kept.keep(at, bytes)).await??,
            }
        }
    }
    job.judge(came, hash)?;
    take_rest(stream.end()?, kept, &mut writes).await?;
    writes.end().await
}

/// Writes what was kept, and is of the disk.
async fn take_rest(mut reader: Reader, kept: &Kept<'_>, writes: &mut Writes<'_>) -> Result<(), CopyError> {
    while let Some(step) = reader.step()? {
        match step {
            Step::Want(span) => reader.told(kept.take(span).await?),
            Step::Write(piece) => {
                let bytes = writes.meanwhile(kept.take(piece.from)).await??;
                writes.begin(piece, bytes).await?;
            }
        }
    }
    Ok(())
}

/// Pieces that are being written.
struct Writes<'a> {
    target: &'a Attached,
    open: FuturesUnordered<BoxFuture<'a, Result<(), CopyError>>>,
}

impl<'a> Writes<'a> {
    /// Begins to write a piece, when few enough are open.
    async fn begin(&mut self, piece: Piece, bytes: Bytes) -> Result<(), CopyError> {
        while self.open.len() >= AT_ONCE {
            self.open.next().await.unwrap_or(Ok(()))?;
        }
        let target: &'a Attached = self.target;
        self.open.push(Box::pin(async move { Ok(write(target, piece.at, piece.made_of(bytes)?).await?) }));
        Ok(())
    }

    /// Waits for something, and has pieces written meanwhile.
    async fn meanwhile<T>(&mut self, wanted: impl Future<Output = T>) -> Result<T, CopyError> {
        let mut wanted = pin!(wanted);
        loop {
            tokio::select! {
                got = &mut wanted => return Ok(got),
                Some(written) = self.open.next() => written?,
            }
        }
    }

    async fn end(mut self) -> Result<(), CopyError> {
        while let Some(written) = self.open.next().await {
            written?;
        }
        Ok(())
    }
}

/// Parts of an image that may be wanted later.
struct Kept<'a> {
    job: &'a Job<'a>,
    /// Where they end, by where they begin; none touches another one.
    parts: BTreeMap<u64, u64>,
    /// `None`: they are in the volume.
    memory: Option<BTreeMap<u64, Bytes>>,
    bytes: u64,
    volume: Option<Attached>,
}

impl Kept<'_> {
    fn name(&self) -> String {
        End::Arriving.name_of(text(self.job.volume, "id"))
    }

    /// Deletes its volume, also that of a try before this one.
    async fn let_go(&mut self) -> Result<(), VolumeError> {
        let (exports, name) = (&self.job.office.blocks.exports, self.name());
        self.volume = None;
        if exports.volumes().has(&name) { exports.let_go(&name).await } else { Ok(()) }
    }

    async fn keep(&mut self, at: u64, bytes: Bytes) -> Result<(), CopyError> {
        self.mark(at, at + bytes.len() as u64)?;
        self.bytes += bytes.len() as u64;
        if let Some(memory) = self.memory.as_mut().filter(|_| self.bytes <= IN_MEMORY) {
            let there = memory.entry(at).or_default();
            if there.len() < bytes.len() {
                *there = bytes;
            }
            return Ok(());
        }
        if self.volume.is_none() {
            self.volume = Some(self.make().await?);
        }
        let Some(volume) = &self.volume else { return Ok(()) };
        for (at, bytes) in self.memory.take().unwrap_or_default().into_iter().chain([(at, bytes)]) {
            write(volume, at, bytes).await?;
        }
        Ok(())
    }

    async fn make(&self) -> Result<Attached, CopyError> {
        let exports = &self.job.office.blocks.exports;
        let key =
            is_encrypted(self.job.volume).then(|| exports.volumes().wrap(&random_bytes())).transpose()?;
        let bytes = self.job.size.max(1).next_multiple_of(4096);
        let label = Label { name: self.name(), bytes, made: wall_clock() / 1000, key, ..Label::default() };
        exports.create(VolumeId(random_bytes()), label, 1).await?;
        Ok(exports.attach(&self.name()).await?)
    }

    /// Notes that there is a part.
    fn mark(&mut self, begins: u64, ends: u64) -> Result<(), CopyError> {
        join(&mut self.parts, begins, ends);
        let few = self.parts.len() <= MOST_PARTS;
        if few { Ok(()) } else { Err(CopyError::Image("its parts are scattered too much")) }
    }

    fn has(&self, Span { at, bytes }: Span) -> bool {
        let part = self.parts.range(..=at).next_back();
        bytes == 0 || part.is_some_and(|(_, ends)| *ends >= at + bytes)
    }

    async fn take(&self, span: Span) -> Result<Bytes, CopyError> {
        if !self.has(span) {
            return Err(CopyError::Image("its parts lie over one another"));
        }
        match (&self.memory, &self.volume) {
            (Some(memory), _) => Ok(gathered(memory, span)),
            (None, Some(volume)) => Ok(volume.read_whole(span.at, span.bytes).await?.freeze()),
            (None, None) => Err(CopyError::Image("what was kept of it is gone")),
        }
    }
}

/// Adds a part to others; none touches another one, before and after.
fn join(parts: &mut BTreeMap<u64, u64>, mut begins: u64, mut ends: u64) {
    while let Some((from, to)) = parts.range(..=ends).next_back().filter(|(_, to)| **to >= begins) {
        (begins, ends) = (begins.min(*from), ends.max(*to));
        let from = *from;
        parts.remove(&from);
    }
    parts.insert(begins, ends);
}

/// Bytes of parts that touch, or lie over one another.
fn gathered(parts: &BTreeMap<u64, Bytes>, Span { at, bytes }: Span) -> Bytes {
    let length = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let mut whole = BytesMut::zeroed(length(bytes));
    for (begins, part) in parts.range(..at + bytes) {
        let (from, to) = (at.max(*begins), (at + bytes).min(begins + part.len() as u64));
        if from < to {
            whole[length(from - at)..length(to - at)]
                .copy_from_slice(&part[length(from - begins)..length(to - begins)]);
        }
    }
    whole.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_touch_are_one() {
        let mut parts = BTreeMap::new();
        for (begins, ends) in [(10, 20), (40, 50), (30, 35), (20, 25), (60, 70), (33, 41), (0, 1), (12, 13)] {
            join(&mut parts, begins, ends);
        }
        assert_eq!(parts, BTreeMap::from([(0, 1), (10, 25), (30, 50), (60, 70)]));
        join(&mut parts, 1, 100);
        assert_eq!(parts, BTreeMap::from([(0, 100)]));
    }

    #[test]
    fn what_is_kept_in_parts_is_taken_as_a_whole() {
        let part = |byte: u8, bytes: usize| Bytes::from(vec![byte; bytes]);
        let parts = BTreeMap::from([(10, part(1, 5)), (15, part(2, 5)), (18, part(2, 10))]);
        assert_eq!(gathered(&parts, Span { at: 12, bytes: 8 }), [1, 1, 1, 2, 2, 2, 2, 2][..]);
        assert_eq!(gathered(&parts, Span { at: 14, bytes: 14 }), [&[1][..], &[2; 13]].concat());
        assert_eq!(gathered(&parts, Span { at: 16, bytes: 0 }), Bytes::new());
    }
}
