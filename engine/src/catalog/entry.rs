//! Index entries: where the newest record of a key lies, and what must be known without reading it.
//!
//! ```text
//! head     varint sequence | varint segment | varint offset / 8 | varint len / 8 | varint ghosts
//! object   head | u8 flags (1 chunked, 2 expires, 4 again, 8 intent) | data id 16 B, varint chunks (1) |
//!          varint delete_at (2) | varint turn (4)
//! row      head | the row's value (rows.rs)
//! grave    head | nothing for a tombstone of turn 0 without intent, else: u8 flags (1 evicted, 2 what was evicted was a put,
//!          4 intent) | varint turn
//! chunk    head (ghosts 0) | varint turn if not 0
//! ```
//!
//! Ghosts are the put-records of the key that are dead and still lie in the log. A tombstone outlives them: an index
//! rebuilt from the log without it would bring the newest ghost back.
//!
//! Invariant: an entry decodes to what was encoded, or to [`BadValue`]; never a panic.

use super::value::BadValue;
use crate::disk::Location;
use crate::disk::format::bytes::{Put, Reader};
use crate::disk::format::record::RecordView;

/// What every entry begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Version time of the newest record.
    pub sequence: u64,
    /// Where it lies.
    pub at: Location,
    /// Dead put-records of the key that are still in the log.
    pub ghosts: u64,
}

impl Head {
    pub(crate) fn of(record: &RecordView<'_>, at: Location) -> Self {
        Self { sequence: record.sequence, at, ghosts: 0 }
    }

    /// The entry's bytes, `payload` after the head.
    #[must_use]
    pub fn encode(&self, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(24 + payload.len());
        out.put_varint(self.sequence);
        out.put_varint(u64::from(self.at.segment));
        out.put_varint(u64::from(self.at.offset / 8));
        out.put_varint(u64::from(self.at.len / 8));
        out.put_varint(self.ghosts);
        out.extend_from_slice(payload);
        out
    }

    /// The head and the payload after it.
    pub fn decode(bytes: &[u8]) -> Result<(Self, &[u8]), BadValue> {
        let mut r = Reader::new(bytes);
        let sequence = r.varint()?;
        let mut field = |scale: u64| {
            let value = r.varint()?.checked_mul(scale).ok_or(BadValue::Field("location"))?;
            u32::try_from(value).map_err(|_| BadValue::Field("location"))
        };
        let at = Location { segment: field(1)?, offset: field(8)?, len: field(8)? };
        let ghosts = r.varint()?;
        Ok((Self { sequence, at, ghosts }, r.rest()))
    }
}

/// Name of one body that is stored in chunks; never given twice.
pub type DataId = [u8; 16];

/// A body stored in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunked {
    /// Key of its chunks.
    pub data_id: DataId,
    /// How many there are.
    pub count: u32,
}

/// What an object's entry says beyond its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ObjectState {
    /// Its chunks, unless the body is in the record.
    pub chunked: Option<Chunked>,
    /// Unix seconds at which it expires.
    pub delete_at: Option<u64>,
    /// How often this version came back to the device after it was evicted.
    pub turn: u32,
    /// Its record has an intent: it was written before its line was sure.
    pub intent: bool,
}

const INTENT: u8 = 8;
const AGAIN: u8 = 4;
const CHUNKED: u8 = 1;
const EXPIRES: u8 = 2;

impl ObjectState {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let mut out = Vec::with_capacity(1);
        out.push(
            flag(self.chunked.is_some(), CHUNKED)
                | flag(self.delete_at.is_some(), EXPIRES)
                | flag(self.turn > 0, AGAIN)
                | flag(self.intent, INTENT),
        );
        if let Some(chunked) = self.chunked {
            out.extend_from_slice(&chunked.data_id);
            out.put_varint(u64::from(chunked.count));
        }
        if let Some(at) = self.delete_at {
            out.put_varint(at);
        }
        if self.turn > 0 {
            out.put_varint(u64::from(self.turn));
        }
        out
    }

    /// What the bytes say.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadValue> {
        let mut r = Reader::new(bytes);
        let flags = r.u8()?;
        if flags & !(CHUNKED | EXPIRES | AGAIN | INTENT) != 0 {
            return Err(BadValue::Field("object flags"));
        }
        let mut state = Self { intent: flags & INTENT != 0, ..Self::default() };
        if flags & CHUNKED != 0 {
            let data_id = r.array()?;
            let count = u32::try_from(r.varint()?).map_err(|_| BadValue::Field("chunk count"))?;
            state.chunked = Some(Chunked { data_id, count });
        }
        if flags & EXPIRES != 0 {
            state.delete_at = Some(r.varint()?);
        }
        if flags & AGAIN != 0 {
            state.turn = turn(&mut r)?;
        }
        Ok(state)
    }
}

fn turn(r: &mut Reader<'_>) -> Result<u32, BadValue> {
    u32::try_from(r.varint()?).map_err(|_| BadValue::Field("turn"))
}

/// A turn, where most are 0: nothing then.
pub(crate) fn encode_turn(turn: u32) -> Vec<u8> {
    let mut out = Vec::new();
    if turn > 0 {
        out.put_varint(u64::from(turn));
    }
    out
}

pub(crate) fn decode_turn(bytes: &[u8]) -> Result<u32, BadValue> {
    if bytes.is_empty() { Ok(0) } else { turn(&mut Reader::new(bytes)) }
}

/// What a grave says beyond its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GraveState {
    /// The device keeps this version no longer; else: a tombstone.
    pub evicted: bool,
    /// What was evicted was a put.
    pub put: bool,
    /// How often the version came back to the device after it was evicted.
    pub turn: u32,
    /// The tombstone has an intent.
    pub intent: bool,
}

const EVICTED: u8 = 1;
const PUT: u8 = 2;
const GRAVE_INTENT: u8 = 4;

impl GraveState {
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut out = Vec::new();
        if self != Self::default() {
            let flag = |set, bit| u8::from(set) * bit;
            out.push(flag(self.evicted, EVICTED) | flag(self.put, PUT) | flag(self.intent, GRAVE_INTENT));
            out.put_varint(u64::from(self.turn));
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, BadValue> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let mut r = Reader::new(bytes);
        let flags = r.u8()?;
        if flags & !(EVICTED | PUT | GRAVE_INTENT) != 0 {
            return Err(BadValue::Field("grave flags"));
        }
        let (turn, intent) = (turn(&mut r)?, flags & GRAVE_INTENT != 0);
        Ok(Self { evicted: flags & EVICTED != 0, put: flags & PUT != 0, turn, intent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_round_trip_and_a_small_object_costs_little() {
        let at = Location { segment: 65_535, offset: (1 << 30) - 8, len: 4_400 };
        let head = Head { sequence: 1_795_000_000_000_000, at, ghosts: 3 };
        let bytes = head.encode(&ObjectState::default().encode());
        assert!(bytes.len() <= 20, "{} bytes", bytes.len());
        let (decoded, payload) = Head::decode(&bytes).unwrap();
        assert_eq!(decoded, head);
        assert_eq!(ObjectState::decode(payload), Ok(ObjectState::default()));
        let full = ObjectState {
            chunked: Some(Chunked { data_id: [7; 16], count: 5_120 }),
            delete_at: Some(u64::MAX),
            turn: 300,
            intent: true,
        };
        assert_eq!(ObjectState::decode(&full.encode()), Ok(full));
        for (evicted, put, intent) in [(false, false, true), (true, true, false), (true, false, true)] {
            let grave = GraveState { evicted, put, turn: 3, intent };
            assert_eq!(GraveState::decode(&grave.encode()), Ok(grave));
        }
    }

    #[test]
    fn cut_entries_are_errors() {
        let head =
            Head { sequence: 300, at: Location { segment: 300, offset: 4096, len: 4096 }, ghosts: 300 };
        let bytes = head.encode(&[]);
        for len in 0..bytes.len() {
            assert!(Head::decode(&bytes[..len]).is_err(), "{len}");
        }
    }
}
