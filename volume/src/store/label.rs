//! What notes about volumes say: labels, promises, snapshots.
//!
//! ```text
//! label     u8 version | u64 bytes | u64 slice bytes | u64 made, ms since 1970 | u16 length, name | u16 length, description
//!           version 2: behind it fields in the order of their tags, each: u8 tag | u16 length | value
//!           1: its wrapped key (`cipher.rs`): the volume is encrypted
//!           2: its limits (`pace.rs`), each: u8 which | u64 a second | u64 burst, ascending
//!           3, empty: it was deleted, and stays for its clones
//! promise   u8 version | u64 epoch | u32 configuration
//! parent    u8 version | volume id, 16 B | u32 era: of the snapshot that it is a clone of
//! member    u8 version | volume id, 16 B | u32 generation | u8 whole | u8 count, each u64 epoch, u64 base
//!           version 2, of one that is not whole: behind it u64, where it ended when it was whole last; so are its turns
//!           version 3, of one that began anew and is not whole yet: behind that u32, the generation that is the member until it is
//!           version 4: as 2, of one that has kept what it had. One of version 2 has if its generation is the first
//! snapshot  u8 version | u64 made, ms since 1970 | u64 bytes of the volume then | u16 length, name
//!           version 2: the same, of one that was deleted and stays for its clones
//! ```
//!
//! Invariant: bytes decode to what was encoded, or to [`BadLabel`]; never a panic.

use quarry_engine::block::{Fence, VolumeId};

use crate::cipher::WrappedKey;
use crate::head::{MAX_TURNS, Turn};
use crate::pace::{Limits, Rate};

const VERSION: u8 = 1;
/// Of a label with fields.
const FIELDS: u8 = 2;
const KEY_FIELD: u8 = 1;
const LIMITS_FIELD: u8 = 2;
const GOING_FIELD: u8 = 3;
/// Of a member that was emptied and is not whole. Before there was version 4 also of one that has kept what it had.
const EMPTIED: u8 = 2;
/// Of one that began anew beside what it was.
const BESIDE: u8 = 3;
/// Of a member that is not whole, and has kept what it had.
const KEPT: u8 = 4;
/// Of a snapshot that stays for its clones.
const GOING: u8 = 2;
/// Longest name of a volume or snapshot.
pub const MAX_NAME: usize = 255;
/// Longest description.
pub const MAX_DESCRIPTION: usize = 1024;

/// What a volume is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Label {
    /// Its name, one on a node.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
    /// Its size.
    pub bytes: u64,
    /// How it is cut.
    pub slice_bytes: u64,
    /// When it was made, in milliseconds since 1970.
    pub made: u64,
    /// Its blocks are encrypted with this.
    pub key: Option<WrappedKey>,
    /// How fast it may be used.
    pub limits: Limits,
    /// It was deleted, and stays for its clones.
    pub going: bool,
}

/// A frozen state of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotLabel {
    /// Its name, one in its volume.
    pub name: String,
    /// The volume's size then.
    pub bytes: u64,
    /// When it was made, in milliseconds since 1970.
    pub made: u64,
    /// It was deleted, and stays for its clones.
    pub going: bool,
}

/// What a volume is a clone of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    /// The volume.
    pub volume: VolumeId,
    /// Its snapshot.
    pub era: u32,
}

/// A member of a volume that has several, on one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MemberLabel {
    /// Whose member it is.
    pub(super) volume: VolumeId,
    /// Rises when a member begins anew, under another id.
    pub(super) generation: u32,
    /// It has the beginning of its history, and nothing else.
    pub(super) whole: bool,
    /// Who wrote it; of one that is not whole: what it had when it was.
    pub(super) turns: Vec<Turn>,
    /// Of one that is not whole: where it ended when it was.
    pub(super) end: u64,
    /// It has all up to there. Otherwise it was emptied to be filled, and has nothing of it.
    pub(super) kept: bool,
    /// Of one that began anew and is not whole yet: the generation that is the member until it is.
    pub(super) former: Option<u32>,
}

impl MemberLabel {
    pub(super) fn encode(&self) -> Vec<u8> {
        let version = match (self.whole, self.kept, self.former) {
            (true, ..) => VERSION,
            (false, _, Some(_)) => BESIDE,
            (false, true, None) => KEPT,
            (false, false, None) => EMPTIED,
        };
        let mut out = [&[version][..], &self.volume.0, &self.generation.to_le_bytes()].concat();
        out.extend([u8::from(self.whole), u8::try_from(self.turns.len()).expect("turns have a limit")]);
        for turn in &self.turns {
            out.extend(turn.epoch.to_le_bytes());
            out.extend(turn.base.to_le_bytes());
        }
        if !self.whole {
            out.extend(self.end.to_le_bytes());
            out.extend(self.former.into_iter().flat_map(u32::to_le_bytes));
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, BadLabel> {
        let mut r = Reader(bytes);
        let [version] = r.array()?;
        let volume = VolumeId(r.array()?);
        let generation = u32::from_le_bytes(r.array()?);
        let [whole, count] = r.array()?;
        if whole > 1 || usize::from(count) > MAX_TURNS {
            return Err(BadLabel);
        }
        let turn = |r: &mut Reader<'_>| Ok(Turn { epoch: r.u64()?, base: r.u64()? });
        let turns: Vec<Turn> = (0..count).map(|_| turn(&mut r)).collect::<Result<_, BadLabel>>()?;
        let end = match (version, whole) {
            (VERSION, 1) => 0,
            (EMPTIED | BESIDE | KEPT, 0) => r.u64()?,
            // Of before there was version 2.
            (VERSION, _) => turns.last().map_or(0, |last| last.base),
            _ => return Err(BadLabel),
        };
        let former = if version == BESIDE { Some(u32::from_le_bytes(r.array()?)) } else { None };
        if former.is_some_and(|former| former >= generation) {
            return Err(BadLabel);
        }
        // The first generation was empty from the beginning, or has kept what it had.
        let kept = whole == 1 || version == KEPT || version != BESIDE && generation == 1;
        r.end(Self { volume, generation, whole: whole == 1, turns, end, kept, former })
    }

    /// Under which its blocks lie: an id of its own for each generation. The volume's own id is the mark that it was deleted.
    pub(super) fn id(&self) -> VolumeId {
        let VolumeId([rest @ .., a, b, c, d]) = self.volume;
        let last = u32::from_le_bytes([a, b, c, d]) ^ self.generation;
        let mut id = [0; 16];
        let (head, tail) = id.split_at_mut(rest.len());
        head.copy_from_slice(&rest);
        tail.copy_from_slice(&last.to_le_bytes());
        VolumeId(id)
    }
}

/// Bytes that are no label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a note about a volume is unreadable")]
pub struct BadLabel;

/// Is this a name? No `@` and no `/`: they separate.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let good = |c: char| !c.is_control() && !c.is_whitespace() && !"@/:?#".contains(c);
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(good)
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u16::try_from(bytes.len()).expect("texts have limits").to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadLabel> {
        let (field, rest) = self.0.split_first_chunk().ok_or(BadLabel)?;
        self.0 = rest;
        Ok(*field)
    }

    fn u64(&mut self) -> Result<u64, BadLabel> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes(&mut self) -> Result<&[u8], BadLabel> {
        let length = u16::from_le_bytes(self.array()?);
        let (bytes, rest) = self.0.split_at_checked(length.into()).ok_or(BadLabel)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<String, BadLabel> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| BadLabel)
    }

    fn begin(bytes: &[u8]) -> Result<Reader<'_>, BadLabel> {
        let mut reader = Reader(bytes);
        if reader.array()? == [VERSION] { Ok(reader) } else { Err(BadLabel) }
    }

    fn end<T>(self, value: T) -> Result<T, BadLabel> {
        if self.0.is_empty() { Ok(value) } else { Err(BadLabel) }
    }
}

impl Label {
    pub(super) fn encode(&self) -> Vec<u8> {
        let fields = self.fields();
        let mut out = vec![if fields.is_empty() { VERSION } else { FIELDS }];
        for number in [self.bytes, self.slice_bytes, self.made] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        put_text(&mut out, &self.name);
        put_text(&mut out, &self.description);
        for (tag, value) in fields {
            out.push(tag);
            put_bytes(&mut out, &value);
        }
        out
    }

    /// What only some volumes have.
    fn fields(&self) -> Vec<(u8, Vec<u8>)> {
        let key = self.key.map(|WrappedKey(key)| (KEY_FIELD, key.to_vec()));
        let limits = (!self.limits.is_free()).then(|| (LIMITS_FIELD, encode_limits(&self.limits)));
        let going = self.going.then(|| (GOING_FIELD, Vec::new()));
        key.into_iter().chain(limits).chain(going).collect()
    }

    fn take(&mut self, tag: u8, value: &[u8]) -> Result<(), BadLabel> {
        match tag {
            KEY_FIELD => self.key = Some(WrappedKey(value.try_into().map_err(|_| BadLabel)?)),
            LIMITS_FIELD => self.limits = decode_limits(value)?,
            GOING_FIELD if value.is_empty() => self.going = true,
            _ => return Err(BadLabel),
        }
        Ok(())
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, BadLabel> {
        let mut r = Reader(bytes);
        let [version] = r.array()?;
        let (bytes, slice_bytes, made) = (r.u64()?, r.u64()?, r.u64()?);
        let (name, description) = (r.text()?, r.text()?);
        let mut label = Self { name, description, bytes, slice_bytes, made, ..Self::default() };
        match version {
            VERSION => return r.end(label),
            FIELDS => {}
            _ => return Err(BadLabel),
        }
        let mut last = 0;
        while !r.0.is_empty() {
            let [tag] = r.array()?;
            // One way to write a label, so that equal ones have equal bytes.
            if tag <= last {
                return Err(BadLabel);
            }
            last = tag;
            label.take(tag, r.bytes()?)?;
        }
        if last == 0 { Err(BadLabel) } else { Ok(label) }
    }
}

impl SnapshotLabel {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![if self.going { GOING } else { VERSION }];
        out.extend_from_slice(&self.made.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        put_text(&mut out, &self.name);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, BadLabel> {
        let mut r = Reader(bytes);
        let going = match r.array()? {
            [VERSION] => false,
            [GOING] => true,
            _ => return Err(BadLabel),
        };
        let (made, bytes, name) = (r.u64()?, r.u64()?, r.text()?);
        r.end(Self { name, bytes, made, going })
    }
}

impl Parent {
    pub(super) fn encode(self) -> Vec<u8> {
        [&[VERSION][..], &self.volume.0, &self.era.to_le_bytes()].concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, BadLabel> {
        let mut r = Reader::begin(bytes)?;
        let volume = VolumeId(r.array()?);
        let era = u32::from_le_bytes(r.array()?);
        r.end(Self { volume, era })
    }
}

fn encode_limits(limits: &Limits) -> Vec<u8> {
    let mut out = Vec::new();
    for (which, rate) in (0_u8..).zip(limits.0).filter(|(_, rate)| rate.per_second > 0) {
        out.push(which);
        out.extend_from_slice(&rate.per_second.to_le_bytes());
        out.extend_from_slice(&rate.burst.to_le_bytes());
    }
    out
}

fn decode_limits(bytes: &[u8]) -> Result<Limits, BadLabel> {
    let (mut r, mut limits, mut next) = (Reader(bytes), Limits::default(), 0);
    while !r.0.is_empty() {
        let [which] = r.array()?;
        let rate = Rate { per_second: r.u64()?, burst: r.u64()? };
        let place = limits.0.get_mut(usize::from(which)).ok_or(BadLabel)?;
        if which < next || rate.per_second == 0 {
            return Err(BadLabel);
        }
        (*place, next) = (rate, which + 1);
    }
    if next == 0 { Err(BadLabel) } else { Ok(limits) }
}

pub(super) fn encode_promise(fence: Fence) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.extend_from_slice(&fence.epoch.to_le_bytes());
    out.extend_from_slice(&fence.configuration.to_le_bytes());
    out
}

pub(super) fn decode_promise(bytes: &[u8]) -> Result<Fence, BadLabel> {
    let mut r = Reader::begin(bytes)?;
    let epoch = r.u64()?;
    let configuration = u32::from_le_bytes(r.array()?);
    r.end(Fence { epoch, configuration })
}

#[cfg(test)]
#[path = "tests/label_tests.rs"]
mod tests;
