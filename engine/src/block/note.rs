//! Notes about volumes: what they are called, what was promised, their snapshots. The disk knows keys, not what they say.
//!
//! ```text
//! key of a record   volume 16 B | tag u8 | number u64 BE
//! index             Blocks, "n" | key of the record -> u8 version | u8 gone | sequence u64 | segment, offset, len u32 | meta
//! ```
//!
//! Invariant: the newest note of a key counts, by (sequence, place); one that ends its volume counts whatever else there is.

use super::place::VolumeId;
use super::row::BlockPlace;
use crate::catalog::{BadValue, Source, damaged};
use crate::disk::Location;
use crate::disk::catalog::Tx;
use crate::disk::format::bytes::{Put, Reader};
use crate::disk::format::record::RecordView;
use crate::index::{Index, IndexError, Range, Table};

const VERSION: u8 = 1;

/// What a note is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum NoteTag {
    /// What the volume is; when it is gone, the volume is.
    Volume = b'v',
    /// The highest fence that was promised.
    Promise = b'p',
    /// A snapshot; its number is its era.
    Snapshot = b's',
    /// What the volume is a clone of; when it is gone, the volume needs nobody.
    Parent = b'c',
    /// Of a member of a volume that has several: whose it is, and its history.
    Member = b'm',
}

/// A note's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NoteKey {
    /// Whose.
    pub volume: VolumeId,
    /// About what.
    pub tag: NoteTag,
    /// Which of them.
    pub number: u64,
}

impl NoteKey {
    /// Its bytes.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        [&self.volume.0[..], &[self.tag as u8], &self.number.to_be_bytes()].concat()
    }

    fn parse(key: &[u8]) -> Result<Self, BadValue> {
        let mut r = Reader::new(key);
        let volume = VolumeId(r.array()?);
        let tag = match r.u8()? {
            b'v' => NoteTag::Volume,
            b'p' => NoteTag::Promise,
            b's' => NoteTag::Snapshot,
            b'c' => NoteTag::Parent,
            b'm' => NoteTag::Member,
            _ => return Err(BadValue::Field("tag of a note")),
        };
        let number = u64::from_be_bytes(r.array()?);
        if r.rest().is_empty() { Ok(Self { volume, tag, number }) } else { Err(BadValue::Field("note key")) }
    }

    fn stored(self) -> Vec<u8> {
        [&b"n"[..], &self.encode()].concat()
    }
}

/// A note as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Its place.
    pub key: NoteKey,
    /// It says that there is nothing any more.
    pub gone: bool,
    /// Which of its versions.
    pub sequence: u64,
    /// What it says.
    pub meta: Vec<u8>,
    at: Location,
}

impl Note {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, u8::from(self.gone)];
        out.put_u64(self.sequence);
        for field in [self.at.segment, self.at.offset, self.at.len] {
            out.put_u32(field);
        }
        out.extend_from_slice(&self.meta);
        out
    }

    fn decode(key: NoteKey, bytes: &[u8]) -> Result<Self, BadValue> {
        let mut r = Reader::new(bytes);
        let [version, gone] = r.array()?;
        if version != VERSION || gone > 1 {
            return Err(BadValue::Field("note"));
        }
        let sequence = r.u64()?;
        let at = Location { segment: r.u32()?, offset: r.u32()?, len: r.u32()? };
        Ok(Self { key, gone: gone == 1, sequence, meta: r.rest().to_vec(), at })
    }

    /// What decides which of two notes of a key counts.
    fn rank(&self) -> (bool, u64, Location) {
        let ends = self.gone && self.key.tag == NoteTag::Volume;
        (ends, self.sequence, self.at)
    }
}

fn load(from: &impl Source, key: NoteKey) -> Result<Option<Note>, IndexError> {
    let bytes = from.value(Table::Blocks, &key.stored())?;
    bytes.map(|bytes| Note::decode(key, &bytes)).transpose().map_err(damaged)
}

/// Whether the volume was deleted.
pub(super) fn is_gone(from: &impl Source, volume: VolumeId) -> Result<bool, IndexError> {
    let key = NoteKey { volume, tag: NoteTag::Volume, number: 0 };
    Ok(load(from, key)?.is_some_and(|note| note.gone))
}

/// As [`is_gone`], for each record of a batch.
pub(super) fn was_deleted(tx: &mut Tx<'_>, volume: VolumeId) -> Result<bool, IndexError> {
    let key = NoteKey { volume, tag: NoteTag::Volume, number: 0 };
    let bytes = tx.get_often(Table::Blocks, key.stored())?;
    let note = bytes.map(|bytes| Note::decode(key, &bytes)).transpose().map_err(damaged)?;
    Ok(note.is_some_and(|note| note.gone))
}

pub(crate) fn apply(tx: &mut Tx<'_>, record: &RecordView<'_>, at: Location) -> Result<(), super::map::BadOr> {
    let key = NoteKey::parse(record.key)?;
    let new = Note { key, gone: record.deleted, sequence: record.sequence, meta: record.meta.to_vec(), at };
    if let Some(old) = load(tx, key)? {
        if old.rank() >= new.rank() {
            return Ok(());
        }
        tx.died(old.at);
    }
    tx.put(Table::Blocks, key.stored(), new.encode());
    tx.born(at);
    Ok(())
}

pub(crate) fn relocate(
    tx: &mut Tx<'_>,
    record: &RecordView<'_>,
    from: Location,
    to: Location,
) -> Result<bool, IndexError> {
    let Ok(key) = NoteKey::parse(record.key) else { return Ok(false) };
    let Some(note) = load(tx, key)?.filter(|note| note.at == from) else { return Ok(false) };
    tx.put(Table::Blocks, key.stored(), Note { at: to, ..note }.encode());
    tx.died(from);
    tx.born(to);
    Ok(true)
}

pub(crate) fn is_live(index: &dyn Index, record: &RecordView<'_>, at: Location) -> Result<bool, IndexError> {
    let Ok(key) = NoteKey::parse(record.key) else { return Ok(false) };
    Ok(load(&index, key)?.is_some_and(|note| note.at == at))
}

/// The notes of a volume, or of all, gone ones too.
pub(super) fn notes(index: &dyn Index, volume: Option<VolumeId>) -> Result<Vec<Note>, IndexError> {
    let mut prefix = b"n".to_vec();
    prefix.extend(volume.iter().flat_map(|volume| volume.0));
    let mut notes = Vec::new();
    for pair in index.scan(Table::Blocks, Range::prefix(&prefix)) {
        let (key, value) = pair?;
        let key = NoteKey::parse(key.get(1..).unwrap_or_default()).map_err(damaged)?;
        notes.push(Note::decode(key, &value).map_err(damaged)?);
    }
    Ok(notes)
}

/// The first place of a volume.
pub const FIRST_PLACE: BlockPlace =
    BlockPlace { slice: super::place::SliceId(0), chunk: super::place::ChunkId(0), block: 0 };
