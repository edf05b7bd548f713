//! The meta of an object's record: everything about a version but its bytes.
//!
//! ```text
//! u8 version 1 | u8 flags | account | container | object          (each varint length | UTF-8)
//! varint container id in a tombstone (128), and nothing more, else
//! varint data timestamp | varint size | md5 16 B | blake3 32 B | content type
//! varint delete_at (flag 1) | varint listed size (2) | listed etag (4) | listed content type (8) | headers
//! data id 16 B | varint chunks | varint bytes of a chunk (16)
//! k u8 | m u8 | index u8 | body 16 B (64) | varint container id (128)
//! ```
//!
//! The time of the newest change is the record's sequence. All chunks but the last have the chunk's bytes. Flag 128 is the intent:
//! the listing of that container is yet to be told of this version, as far as the record knows. All flags have a meaning.

use super::entry::{Chunked, ObjectState};
use super::value::{BadValue, headers, put_headers, put_text, text, version};
use crate::clock::Timestamp;
use crate::disk::format::bytes::{Put, Reader};
use crate::object::{Code, Fragment, ListedAs, ObjectInfo, ObjectPath};

const VERSION: u8 = 1;
const DELETE_AT: u8 = 1;
const LISTED_SIZE: u8 = 2;
const LISTED_ETAG: u8 = 4;
const LISTED_TYPE: u8 = 8;
const CHUNKED: u8 = 16;
const TOMBSTONE: u8 = 32;
const FRAGMENT: u8 = 64;
const INTENT: u8 = 128;

/// An object's record without its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Whose version it is.
    pub path: ObjectPath,
    /// Its facts; the timestamp is the record's sequence.
    pub info: ObjectInfo,
    /// Where its bytes are, unless in the record.
    pub chunked: Option<Chunked>,
    /// Bytes of each chunk but the last; where fragments are kept, those of the body that each chunk is a fragment of.
    pub chunk_size: u32,
    /// Where the policy keeps fragments: which is here.
    pub fragment: Option<Fragment>,
    /// The id of the container whose listing is to be told, where a record is written before its line is sure.
    pub intent: Option<u64>,
}

fn put_path(out: &mut Vec<u8>, flags: u8, path: &ObjectPath) {
    out.push(VERSION);
    out.push(flags);
    for part in [&path.account, &path.container, &path.object] {
        put_text(out, part);
    }
}

/// The meta of a tombstone.
#[must_use]
pub fn encode_tombstone(path: &ObjectPath) -> Vec<u8> {
    encode_grave(path, None)
}

/// The meta of a tombstone that a container's listing is to be told of.
#[must_use]
pub fn encode_grave(path: &ObjectPath, intent: Option<u64>) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    put_path(&mut out, TOMBSTONE | if intent.is_some() { INTENT } else { 0 }, path);
    if let Some(container) = intent {
        out.put_varint(container);
    }
    out
}

/// Of which version which container's listing is to be told, by the meta of a tombstone: `None` of none.
pub(crate) fn intent_of_grave(bytes: &[u8]) -> Result<Option<(ObjectPath, u64)>, BadValue> {
    // A look at one byte: most have none.
    if bytes.get(1).is_none_or(|flags| flags & INTENT == 0) {
        return Ok(None);
    }
    let mut r = Reader::new(bytes);
    let (_, parts) = start(&mut r)?;
    Ok(Some((path_of(parts), r.varint()?)))
}

fn flags_of(meta: &ObjectMeta) -> u8 {
    let listed = &meta.info.listed;
    [
        (meta.info.delete_at.is_some(), DELETE_AT),
        (listed.size.is_some(), LISTED_SIZE),
        (listed.etag.is_some(), LISTED_ETAG),
        (listed.content_type.is_some(), LISTED_TYPE),
        (meta.chunked.is_some(), CHUNKED),
        (meta.fragment.is_some(), FRAGMENT),
        (meta.intent.is_some(), INTENT),
    ]
    .into_iter()
    .filter(|(set, _)| *set)
    .fold(0, |flags, (_, bit)| flags | bit)
}

fn start<'a>(r: &mut Reader<'a>) -> Result<(u8, [&'a str; 3]), BadValue> {
    version(r, VERSION)?;
    let flags = r.u8()?;
    Ok((flags, [text(r)?, text(r)?, text(r)?]))
}

fn path_of([account, container, object]: [&str; 3]) -> ObjectPath {
    ObjectPath { account: account.into(), container: container.into(), object: object.into() }
}

/// Whether the meta of a version names chunks; a look at one byte.
pub(crate) fn is_chunked(meta: &[u8]) -> bool {
    meta.get(1).is_some_and(|flags| flags & CHUNKED != 0)
}

/// Whether a version is kept in fragments; a look at one byte.
pub(crate) fn has_fragment(meta: &[u8]) -> bool {
    meta.get(1).is_some_and(|flags| flags & FRAGMENT != 0)
}

/// The path in the meta of a version or a tombstone.
pub fn decode_path(bytes: &[u8]) -> Result<ObjectPath, BadValue> {
    start(&mut Reader::new(bytes)).map(|(_, parts)| path_of(parts))
}

fn fragment(r: &mut Reader<'_>, chunked: Option<Chunked>) -> Result<Fragment, BadValue> {
    let bad = || BadValue::Field("fragment");
    let [data, parity, index] = r.array()?;
    let code = Code::new(data, parity).filter(|code| usize::from(index) < code.n()).ok_or_else(bad)?;
    let fragment = Fragment { code, index, body: r.array()? };
    let fits = fragment.body.last() == Some(&0)
        && chunked.is_none_or(|chunked| chunked.data_id == fragment.data_id());
    if fits { Ok(fragment) } else { Err(bad()) }
}

impl ObjectMeta {
    /// The meta's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let info = &self.info;
        let mut out = Vec::with_capacity(192);
        put_path(&mut out, flags_of(self), &self.path);
        out.put_varint(info.data_timestamp.0);
        out.put_varint(info.size);
        out.extend_from_slice(&info.md5);
        out.extend_from_slice(&info.blake3);
        put_text(&mut out, &info.content_type);
        for number in [info.delete_at, info.listed.size].into_iter().flatten() {
            out.put_varint(number);
        }
        for words in [&info.listed.etag, &info.listed.content_type].into_iter().flatten() {
            put_text(&mut out, words);
        }
        put_headers(&mut out, &info.headers);
        if let Some(chunked) = self.chunked {
            out.extend_from_slice(&chunked.data_id);
            out.put_varint(u64::from(chunked.count));
            out.put_varint(u64::from(self.chunk_size));
        }
        if let Some(Fragment { code, index, body }) = self.fragment {
            out.extend_from_slice(&[code.data, code.parity, index]);
            out.extend_from_slice(&body);
        }
        if let Some(container) = self.intent {
            out.put_varint(container);
        }
        out
    }

    /// Decodes the meta of a version that is no tombstone.
    pub fn decode(bytes: &[u8], sequence: u64) -> Result<Self, BadValue> {
        let mut r = Reader::new(bytes);
        let (flags, parts) = start(&mut r)?;
        if flags & TOMBSTONE != 0 {
            return Err(BadValue::Field("tombstone"));
        }
        let has = |bit: u8| flags & bit != 0;
        let data_timestamp = Timestamp(r.varint()?);
        let size = r.varint()?;
        let (md5, blake3) = (r.array()?, r.array()?);
        let content_type = text(&mut r)?.to_owned();
        let delete_at = has(DELETE_AT).then(|| r.varint()).transpose()?;
        let listed_size = has(LISTED_SIZE).then(|| r.varint()).transpose()?;
        let etag = has(LISTED_ETAG).then(|| text(&mut r).map(str::to_owned)).transpose()?;
        let listed_type = has(LISTED_TYPE).then(|| text(&mut r).map(str::to_owned)).transpose()?;
        let headers = headers(&mut r)?;
        let narrow = |n: u64| u32::try_from(n).map_err(|_| BadValue::Field("chunks"));
        let mut chunk_size = 0;
        let mut chunked = None;
        if has(CHUNKED) {
            chunked = Some(Chunked { data_id: r.array()?, count: narrow(r.varint()?)? });
            chunk_size = narrow(r.varint()?)?;
            if chunk_size == 0 {
                return Err(BadValue::Field("chunks"));
            }
        }
        let fragment = if has(FRAGMENT) { Some(fragment(&mut r, chunked)?) } else { None };
        let intent = has(INTENT).then(|| r.varint()).transpose()?;
        let listed = ListedAs { size: listed_size, etag, content_type: listed_type };
        let timestamp = Timestamp(sequence);
        let info = ObjectInfo {
            timestamp,
            data_timestamp,
            size,
            md5,
            blake3,
            content_type,
            delete_at,
            listed,
            headers,
        };
        Ok(Self { path: path_of(parts), info, chunked, chunk_size, fragment, intent })
    }

    /// What the index keeps.
    #[must_use]
    pub fn state(&self) -> ObjectState {
        let intent = self.intent.is_some();
        ObjectState { chunked: self.chunked, delete_at: self.info.delete_at, turn: 0, intent }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> ObjectMeta {
        ObjectMeta {
            path: path_of(["AUTH_a", "c", "o/é"]),
            info: ObjectInfo {
                timestamp: Timestamp(77),
                data_timestamp: Timestamp(5),
                size: 5 << 30,
                md5: [1; 16],
                blake3: [2; 32],
                content_type: "a/b".to_owned(),
                delete_at: Some(12),
                listed: ListedAs {
                    size: Some(9),
                    etag: Some("e".to_owned()),
                    content_type: Some("t".to_owned()),
                },
                headers: [("x".to_owned(), "y".to_owned())].into(),
            },
            chunked: Some(Chunked { data_id: [9; 16], count: 5120 }),
            chunk_size: 1 << 20,
            fragment: None,
            intent: Some(300),
        }
    }

    fn coded() -> ObjectMeta {
        let code = Code { data: 4, parity: 2 };
        let fragment =
            Fragment { code, index: 5, body: [[9; 15].as_slice(), &[0]].concat().try_into().unwrap() };
        let chunked = Some(Chunked { data_id: fragment.data_id(), count: 5120 });
        ObjectMeta { fragment: Some(fragment), chunked, intent: None, ..full() }
    }

    #[test]
    fn fragments_round_trip_and_their_chunks_must_be_theirs() {
        let meta = coded();
        assert_eq!(ObjectMeta::decode(&meta.encode(), 77), Ok(meta.clone()));
        let bytes = meta.encode();
        for len in 0..bytes.len() {
            assert!(ObjectMeta::decode(&bytes[..len], 1).is_err(), "{len}");
        }
        let other = ObjectMeta { chunked: full().chunked, ..coded() };
        assert!(ObjectMeta::decode(&other.encode(), 77).is_err());
    }

    #[test]
    fn metas_round_trip() {
        let mut meta = full();
        assert_eq!(ObjectMeta::decode(&meta.encode(), 77), Ok(meta.clone()));
        meta.chunked = None;
        meta.chunk_size = 0;
        meta.intent = None;
        meta.info.delete_at = None;
        meta.info.listed = ListedAs::default();
        assert_eq!(ObjectMeta::decode(&meta.encode(), 77), Ok(meta.clone()));
        assert_eq!(decode_path(&meta.encode()), Ok(meta.path.clone()));
        assert_eq!(decode_path(&encode_tombstone(&meta.path)), Ok(meta.path.clone()));
        assert!(ObjectMeta::decode(&encode_tombstone(&meta.path), 1).is_err());
    }

    #[test]
    fn an_intent_is_told_by_one_byte_and_its_container() {
        let path = full().path;
        assert_eq!(intent_of_grave(&encode_tombstone(&path)), Ok(None));
        let grave = encode_grave(&path, Some(300));
        assert_eq!(intent_of_grave(&grave), Ok(Some((path.clone(), 300))));
        assert_eq!(decode_path(&grave), Ok(path));
        assert!(intent_of_grave(&grave[..grave.len() - 1]).is_err());
    }

    #[test]
    fn cut_metas_are_errors() {
        let bytes = full().encode();
        for len in 0..bytes.len() {
            assert!(ObjectMeta::decode(&bytes[..len], 1).is_err(), "{len}");
        }
    }
}
