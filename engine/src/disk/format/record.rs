//! A record: the unit of the log. One head, then its data.
//!
//! ```text
//! offset  size  field
//!      0     4  head_crc   CRC-32 of head[4..head_len], seeded with the device
//!      4     1  kind       see Kind
//!      5     1  flags      bit 0: deleted (a row's or object's tombstone)
//!      6     2  key_len
//!      8     4  meta_len
//!     12     4  data_len
//!     16     8  sequence   version time of what it belongs to; never changes when the record moves
//!     24     4  number     chunk number; 0 elsewhere
//!     28     4  head_len   multiple of 8
//!     32     …  key | meta | CRC-32 of each 64 KiB of data | zeros to head_len
//! head_len   …  data | zeros to a multiple of 8
//! ```
//!
//! Invariant: each data CRC is seeded with (device, kind, key, sequence, number, block), so bytes that belong to
//! another device, another name, an older version or another place in the object fail.
//! Invariant: a record's bytes do not depend on where it lies: the cleaner moves them verbatim.

use bytes::Bytes;

use super::bytes::{Put, Reader, Truncated};
use super::sums::Sums;
use crate::disk::limits::{CRC_SPAN, MAX_DATA, MAX_KEY, MAX_META};
use crate::io::BLOCK;

/// Bytes before the key.
pub const FIXED_HEAD: usize = 32;
const FLAG_DELETED: u8 = 1;

/// Identity of a device: random at format, in every structure on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(pub [u8; 16]);

impl std::fmt::Display for DeviceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// What a record is. Numbers are for ever; a gap is room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// An object version: key = path hash; data = the body when small.
    Object = 1,
    /// A piece of a large object: key = data id; number = position.
    Chunk = 2,
    /// An index-group row: key = row key; meta = the whole row.
    Row = 3,
    /// Marks an upload as given up: key = data id.
    Abort = 4,
    /// Marks a version as no longer kept on this device: key = path hash; deleted = of the tombstone.
    Evict = 5,
    /// Says that the listing has the version of this time or a newer one: key = path hash (engine/FORMAT-objects.md, intents).
    Settled = 6,
    /// A write to one chunk of a volume (engine/FORMAT-blocks.md).
    VolumeExtent = 16,
    /// A note about a volume: its label, a promise, a snapshot.
    VolumeMap = 17,
    /// Reserved for consensus entries of index groups.
    GroupEntry = 32,
}

impl Kind {
    /// The kind of a number on disk.
    #[must_use]
    pub fn from_u8(n: u8) -> Option<Self> {
        [
            Self::Object,
            Self::Chunk,
            Self::Row,
            Self::Abort,
            Self::Evict,
            Self::Settled,
            Self::VolumeExtent,
            Self::VolumeMap,
            Self::GroupEntry,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == n)
    }
}

/// Why bytes are not the record they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    /// Shorter than its own fields say.
    #[error("record is cut short")]
    Truncated,
    /// A field has a value that no writer produces.
    #[error("record field {0} is invalid")]
    Field(&'static str),
    /// Head checksum.
    #[error("record head fails its checksum")]
    HeadCrc,
    /// Data checksum of one span.
    #[error("record data fails its checksum at byte {at}")]
    DataCrc {
        /// Offset of the span in the data.
        at: usize,
    },
}

impl From<Truncated> for BadRecord {
    fn from(_: Truncated) -> Self {
        Self::Truncated
    }
}

/// A record on its way to the log, checksums computed.
#[derive(Debug, Clone)]
pub struct NewRecord {
    head: Vec<u8>,
    data: Bytes,
}

/// What a record is made from.
#[derive(Debug, Clone)]
pub struct Parts<'a> {
    /// Its kind.
    pub kind: Kind,
    /// Tombstone of its key.
    pub deleted: bool,
    /// Version time.
    pub sequence: u64,
    /// Chunk number.
    pub number: u32,
    /// At most [`MAX_KEY`] bytes.
    pub key: &'a [u8],
    /// At most [`MAX_META`] bytes.
    pub meta: &'a [u8],
    /// At most [`MAX_DATA`] bytes.
    pub data: Bytes,
}

fn head_len(key: usize, meta: usize, data: usize) -> usize {
    (FIXED_HEAD + key + meta + data.div_ceil(CRC_SPAN) * 4).next_multiple_of(8)
}

fn data_seed(device: DeviceId, kind: u8, key: &[u8], sequence: u64, number: u32) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&device.0);
    crc.update(&[kind]);
    crc.update(key);
    crc.update(&sequence.to_le_bytes());
    crc.update(&number.to_le_bytes());
    crc.finalize()
}

/// What a span's CRC covers before its bytes.
fn before_span(seed: u32, index: usize) -> crc32fast::Hasher {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&seed.to_le_bytes());
    crc.update(&(index as u64).to_le_bytes());
    crc
}

fn span_crc(seed: u32, index: usize, span: &[u8]) -> u32 {
    let mut crc = before_span(seed, index);
    crc.update(span);
    crc.finalize()
}

fn head_crc(device: DeviceId, head_after_crc: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&device.0);
    crc.update(head_after_crc);
    crc.finalize()
}

impl NewRecord {
    /// Builds a record for `device`. Panics when a part is over its limit: limits are checked where input enters.
    #[must_use]
    pub fn new(device: DeviceId, parts: Parts<'_>) -> Self {
        let data = parts.data.clone();
        let spans = data.chunks(CRC_SPAN).enumerate();
        Self::with_crcs(device, parts, |seed, head| {
            spans.for_each(|(i, span)| head.put_u32(span_crc(seed, i, span)));
        })
    }

    /// As [`NewRecord::new`], of data whose blocks were summed already: nobody goes through it a second time.
    #[must_use]
    pub fn summed(device: DeviceId, parts: Parts<'_>, sums: &Sums) -> Self {
        const SPAN: usize = CRC_SPAN / BLOCK;
        let blocks = sums.blocks();
        assert_eq!(blocks * BLOCK, parts.data.len(), "the sums of other data");
        Self::with_crcs(device, parts, |seed, head| {
            for (i, from) in (0..blocks).step_by(SPAN).enumerate() {
                head.put_u32(sums.behind(before_span(seed, i).finalize(), from..blocks.min(from + SPAN)));
            }
        })
    }

    fn with_crcs(device: DeviceId, parts: Parts<'_>, put_crcs: impl FnOnce(u32, &mut Vec<u8>)) -> Self {
        let Parts { kind, deleted, sequence, number, key, meta, data } = parts;
        assert!(key.len() <= MAX_KEY && meta.len() <= MAX_META && data.len() <= MAX_DATA);
        let len = head_len(key.len(), meta.len(), data.len());
        let mut head = Vec::with_capacity(len);
        head.put_u32(0);
        head.push(kind as u8);
        head.push(if deleted { FLAG_DELETED } else { 0 });
        head.put_u16(u16::try_from(key.len()).unwrap_or(u16::MAX));
        head.put_u32(u32::try_from(meta.len()).unwrap_or(u32::MAX));
        head.put_u32(u32::try_from(data.len()).unwrap_or(u32::MAX));
        head.put_u64(sequence);
        head.put_u32(number);
        head.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
        head.extend_from_slice(key);
        head.extend_from_slice(meta);
        put_crcs(data_seed(device, kind as u8, key, sequence, number), &mut head);
        head.resize(len, 0);
        let crc = head_crc(device, &head[4..]);
        head[..4].copy_from_slice(&crc.to_le_bytes());
        Self { head, data }
    }

    /// A record that was read, verified and is to be written again elsewhere, byte for byte.
    #[must_use]
    pub fn verbatim(stored: &StoredRecord) -> Self {
        let head_len = stored.head_len;
        Self {
            head: stored.bytes[..head_len].to_vec(),
            data: stored.bytes.slice(head_len..head_len + stored.data_len),
        }
    }

    /// Bytes it takes in the log, padding to 8 included.
    #[must_use]
    pub fn stored_len(&self) -> usize {
        self.head.len() + self.data.len().next_multiple_of(8)
    }

    /// The head's bytes.
    #[must_use]
    pub fn head_bytes(&self) -> &[u8] {
        &self.head
    }

    /// The data's bytes.
    #[must_use]
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The head, parsed.
    #[must_use]
    pub fn view(&self) -> RecordView<'_> {
        match RecordView::parse(&self.head) {
            Ok(view) => view,
            Err(bad) => unreachable!("a record built here parses: {bad}"),
        }
    }

    /// Gives up the data and keeps the head, for the applier.
    pub(crate) fn into_head(self) -> Vec<u8> {
        self.head
    }
}

/// The head of a record, parsed and in range, checksum **not** checked unless [`RecordView::check_head`] was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordView<'a> {
    /// Its kind.
    pub kind: Kind,
    /// Tombstone of its key.
    pub deleted: bool,
    /// Version time.
    pub sequence: u64,
    /// Chunk number.
    pub number: u32,
    /// Key.
    pub key: &'a [u8],
    /// Meta.
    pub meta: &'a [u8],
    /// Bytes of data.
    pub data_len: usize,
    /// Bytes of the head.
    pub head_len: usize,
    crcs: &'a [u8],
    head: &'a [u8],
}

impl<'a> RecordView<'a> {
    /// Parses a head at the start of `bytes` (data may follow or not).
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BadRecord> {
        let mut r = Reader::new(bytes);
        r.u32()?;
        let kind = Kind::from_u8(r.u8()?).ok_or(BadRecord::Field("kind"))?;
        let flags = r.u8()?;
        if flags & !FLAG_DELETED != 0 {
            return Err(BadRecord::Field("flags"));
        }
        let key_len = usize::from(r.u16()?);
        let meta_len = r.u32()? as usize;
        let data_len = r.u32()? as usize;
        let sequence = r.u64()?;
        let number = r.u32()?;
        let stated = r.u32()? as usize;
        if key_len > MAX_KEY || meta_len > MAX_META || data_len > MAX_DATA {
            return Err(BadRecord::Field("length"));
        }
        if stated != head_len(key_len, meta_len, data_len) {
            return Err(BadRecord::Field("head_len"));
        }
        let key = r.take(key_len)?;
        let meta = r.take(meta_len)?;
        let crcs = r.take(data_len.div_ceil(CRC_SPAN) * 4)?;
        let head = bytes.get(..stated).ok_or(BadRecord::Truncated)?;
        let deleted = flags & FLAG_DELETED != 0;
        Ok(Self { kind, deleted, sequence, number, key, meta, data_len, head_len: stated, crcs, head })
    }

    /// Checks the head's checksum.
    pub fn check_head(&self, device: DeviceId) -> Result<(), BadRecord> {
        let (stated, rest) = self.head.split_first_chunk::<4>().ok_or(BadRecord::Truncated)?;
        if head_crc(device, rest) == u32::from_le_bytes(*stated) { Ok(()) } else { Err(BadRecord::HeadCrc) }
    }

    /// The stated checksum of the head.
    #[must_use]
    pub fn stated_head_crc(&self) -> u32 {
        self.head.first_chunk::<4>().map_or(0, |crc| u32::from_le_bytes(*crc))
    }

    /// Checks `data` span by span.
    pub fn check_data(&self, device: DeviceId, data: &[u8]) -> Result<(), BadRecord> {
        if data.len() != self.data_len {
            return Err(BadRecord::Truncated);
        }
        let seed = data_seed(device, self.kind as u8, self.key, self.sequence, self.number);
        let mut stated = Reader::new(self.crcs);
        for (i, span) in data.chunks(CRC_SPAN).enumerate() {
            if stated.u32()? != span_crc(seed, i, span) {
                return Err(BadRecord::DataCrc { at: i * CRC_SPAN });
            }
        }
        Ok(())
    }

    /// Bytes the record takes in the log.
    #[must_use]
    pub fn stored_len(&self) -> usize {
        self.head_len + self.data_len.next_multiple_of(8)
    }
}

/// A record read from disk with every checksum verified: the trusted type.
#[derive(Debug, Clone)]
pub struct StoredRecord {
    bytes: Bytes,
    head_len: usize,
    data_len: usize,
}

impl StoredRecord {
    /// Verifies `bytes` (exactly one record) and takes them.
    pub fn verify(device: DeviceId, bytes: Bytes) -> Result<Self, BadRecord> {
        let view = RecordView::parse(&bytes)?;
        view.check_head(device)?;
        let (head_len, data_len) = (view.head_len, view.data_len);
        let data = bytes.get(head_len..head_len + data_len).ok_or(BadRecord::Truncated)?;
        view.check_data(device, data)?;
        Ok(Self { bytes, head_len, data_len })
    }

    /// Its head.
    #[must_use]
    pub fn view(&self) -> RecordView<'_> {
        match RecordView::parse(&self.bytes) {
            Ok(view) => view,
            Err(bad) => unreachable!("a verified record parses: {bad}"),
        }
    }

    /// Its data, shared.
    #[must_use]
    pub fn data(&self) -> Bytes {
        self.bytes.slice(self.head_len..self.head_len + self.data_len)
    }

    /// The whole record as it lies in the log, shared: what [`StoredRecord::verify`] takes elsewhere.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        self.bytes.clone()
    }

    /// The same in memory of its own, just as long as it is.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self { bytes: Bytes::copy_from_slice(&self.bytes), ..*self }
    }

    /// Bytes of memory it holds.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
