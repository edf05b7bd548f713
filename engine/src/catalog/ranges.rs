//! Ranges of a container's names that a group of their own has taken over (engine/FORMAT-groups.md).
//!
//! ```text
//! row "r"  u8 version 1 | u8 flags (1 end) | name behind the range, if flag 1 | varint group | varint objects | varint bytes
//!          | varint policy | account | container; version 2: and varint floor: it was taken back
//! row "p"  u8 version 1 | u8 flags (1 end) | first name | name behind the range, if flag 1 | varint policy | account | container
//!          | varint time at which it was shut, 0 if it is open
//! row "q"  u8 version 1: the container is about to go; its version time names the attempt
//! record   u8 version 1 | varint space | varint container | first name | varint objects | varint bytes
//!          version 2: and u8 flags (1 end) | name behind the range, if flag 1 | varint floor: it is over
//! ```
//!
//! The record is this disk's own: from it on, lines of the range are counted apart; from a later one on, that it is over, they are
//! not any more. Rows "r" and "p" are the groups'.
//!
//! Invariant: a range reaches to the next one of its container, or to the end of it: what a group gives away is what lies last.

use super::keys::{GroupId, listing_key, listing_prefix};
use super::value::{BadValue, put_text, text, version};
use crate::disk::format::bytes::{Put, Reader};
use crate::index::{Range, after_prefix};

const VERSION: u8 = 1;
/// Of a range that was taken back, and of a bound that is over.
const OVER: u8 = 2;
const END: u8 = 1;

/// A parent's row: which group has taken a range over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenValue {
    /// The name behind the range; `None`: it reaches to the end of the container.
    pub to: Option<String>,
    /// Who has it.
    pub group: GroupId,
    /// Lines that were in it.
    pub objects: u64,
    /// Their listed sizes.
    pub bytes: u64,
    /// What the child must know of the container.
    pub of: Belongs,
    /// The parent has taken it back: no line that the child made is above this version time, and none of them is left.
    pub back: Option<u64>,
}

/// A child's row: whose names it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartValue {
    /// The first name of the range.
    pub from: String,
    /// The name behind it.
    pub to: Option<String>,
    /// The container.
    pub of: Belongs,
    /// A delete of the container, by its version time, has shut it: nothing comes in before it is opened.
    pub shut: Option<u64>,
}

/// The value of the row that says that a container is about to go.
#[must_use]
pub fn going_value() -> Vec<u8> {
    vec![VERSION]
}

/// Whether bytes are that value.
pub(crate) fn check_going(bytes: &[u8]) -> Result<(), BadValue> {
    if bytes == [VERSION] { Ok(()) } else { Err(BadValue::Field("row of a container that goes")) }
}

/// A container, as its children know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Belongs {
    /// Its account.
    pub account: String,
    /// Its name.
    pub container: String,
    /// Its storage policy.
    pub policy: u16,
}

impl Belongs {
    fn put(&self, out: &mut Vec<u8>) {
        out.put_varint(u64::from(self.policy));
        put_text(out, &self.account);
        put_text(out, &self.container);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, BadValue> {
        let policy = u16::try_from(r.varint()?).map_err(|_| BadValue::Field("policy"))?;
        Ok(Self { policy, account: text(r)?.to_owned(), container: text(r)?.to_owned() })
    }
}

/// Whether the version says that it is over.
fn is_over(r: &mut Reader<'_>) -> Result<bool, BadValue> {
    match r.u8()? {
        VERSION => Ok(false),
        OVER => Ok(true),
        other => Err(BadValue::Version(other)),
    }
}

fn version_of(over: bool) -> u8 {
    if over { OVER } else { VERSION }
}

fn flags(r: &mut Reader<'_>) -> Result<bool, BadValue> {
    match r.u8()? {
        0 => Ok(false),
        END => Ok(true),
        _ => Err(BadValue::Field("flags of a range")),
    }
}

fn group(r: &mut Reader<'_>) -> Result<GroupId, BadValue> {
    GroupId::try_from(r.varint()?).map_err(|_| BadValue::Field("group"))
}

fn whole<T>(r: &Reader<'_>, value: T) -> Result<T, BadValue> {
    if r.rest().is_empty() { Ok(value) } else { Err(BadValue::Field("end of a range")) }
}

impl GivenValue {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![version_of(self.back.is_some()), u8::from(self.to.is_some())];
        if let Some(to) = &self.to {
            put_text(&mut out, to);
        }
        out.put_varint(u64::from(self.group));
        out.put_varint(self.objects);
        out.put_varint(self.bytes);
        self.of.put(&mut out);
        if let Some(floor) = self.back {
            out.put_varint(floor);
        }
        out
    }

    /// What the bytes say.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadValue> {
        let mut r = Reader::new(bytes);
        let over = is_over(&mut r)?;
        let to = if flags(&mut r)? { Some(text(&mut r)?.to_owned()) } else { None };
        let (group, objects, bytes) = (group(&mut r)?, r.varint()?, r.varint()?);
        let of = Belongs::read(&mut r)?;
        let back = if over { Some(r.varint()?) } else { None };
        whole(&r, Self { to, group, objects, bytes, of, back })
    }
}

impl PartValue {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, u8::from(self.to.is_some())];
        put_text(&mut out, &self.from);
        if let Some(to) = &self.to {
            put_text(&mut out, to);
        }
        self.of.put(&mut out);
        out.put_varint(self.shut.unwrap_or(0));
        out
    }

    /// What the bytes say.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadValue> {
        let mut r = Reader::new(bytes);
        version(&mut r, VERSION)?;
        let ends = flags(&mut r)?;
        let from = text(&mut r)?.to_owned();
        let to = if ends { Some(text(&mut r)?.to_owned()) } else { None };
        let of = Belongs::read(&mut r)?;
        let shut = Some(r.varint()?).filter(|at| *at != 0);
        whole(&r, Self { from, to, of, shut })
    }
}

/// From where on lines of a container are counted apart on a disk, and how many of them there were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// The space of the lines' keys.
    pub space: GroupId,
    /// The container.
    pub id: u64,
    /// The first name.
    pub from: String,
    /// Lines that were counted with those before, and are not any more.
    pub objects: u64,
    /// Their listed sizes.
    pub bytes: u64,
    /// They are counted with the others again.
    pub over: Option<Over>,
}

/// What is known of a range that was taken back, where its lines lay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Over {
    /// The name behind it; `None`: it reached to the end of the container.
    pub to: Option<String>,
    /// Lines of it that are not above this version time are dead, whatever records a rebuild finds.
    pub floor: u64,
}

impl Bound {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![version_of(self.over.is_some())];
        out.put_varint(u64::from(self.space));
        out.put_varint(self.id);
        put_text(&mut out, &self.from);
        out.put_varint(self.objects);
        out.put_varint(self.bytes);
        if let Some(Over { to, floor }) = &self.over {
            out.push(u8::from(to.is_some()));
            if let Some(to) = to {
                put_text(&mut out, to);
            }
            out.put_varint(*floor);
        }
        out
    }

    /// What the bytes say.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadValue> {
        let mut r = Reader::new(bytes);
        let over = is_over(&mut r)?;
        let (space, id) = (group(&mut r)?, r.varint()?);
        let from = text(&mut r)?.to_owned();
        let (objects, bytes) = (r.varint()?, r.varint()?);
        let over = if over {
            let to = if flags(&mut r)? { Some(text(&mut r)?.to_owned()) } else { None };
            Some(Over { to, floor: r.varint()? })
        } else {
            None
        };
        whole(&r, Self { space, id, from, objects, bytes, over })
    }
}

/// Keys of the lines of a range, within their group.
pub(crate) fn lines(id: u64, from: &str, to: Option<&str>) -> Range {
    let to = to.map_or_else(|| after_prefix(&listing_prefix(id)), |to| Some(listing_key(id, to)));
    Range { from: Some(listing_key(id, from)), to, reverse: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of() -> Belongs {
        Belongs { account: "a\0".to_owned(), container: "é".to_owned(), policy: 300 }
    }

    #[test]
    fn ranges_round_trip_and_what_is_cut_is_an_error() {
        for to in [None, Some("z".to_owned())] {
            for back in [None, Some(1 << 50)] {
                let (to, of) = (to.clone(), of());
                let given = GivenValue { to, group: 9, objects: 1 << 40, bytes: 7, of, back };
                let bytes = given.encode();
                assert_eq!(GivenValue::decode(&bytes), Ok(given));
                for len in 0..bytes.len() {
                    assert!(GivenValue::decode(&bytes[..len]).is_err());
                }
            }
            let part = PartValue { from: "m".to_owned(), to, of: of(), shut: Some(300) };
            let bytes = part.encode();
            assert_eq!(PartValue::decode(&bytes), Ok(part));
            for len in 0..bytes.len() {
                assert!(PartValue::decode(&bytes[..len]).is_err());
            }
        }
        let over = |to: Option<&str>| Some(Over { to: to.map(str::to_owned), floor: 300 });
        for over in [None, over(None), over(Some("z"))] {
            let (space, from) = (1 << 16 | 3, "m/é".to_owned());
            let bound = Bound { space, id: u64::MAX, from, objects: 5, bytes: 0, over };
            let bytes = bound.encode();
            assert_eq!(Bound::decode(&bytes), Ok(bound));
            for len in 0..bytes.len() {
                assert!(Bound::decode(&bytes[..len]).is_err());
            }
        }
    }
}
