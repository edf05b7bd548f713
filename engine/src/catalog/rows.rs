//! Values of rows: the meta of a row's record, and the payload of its index entry.
//!
//! ```text
//! account    u8 version 1 | u8 flags (1 marked deleted) | varint created | headers
//! container  u8 version 1 | varint id (= time of creation) | varint time of the last PUT | varint policy | headers;
//!            version 2, of an eventual container: the same
//! listing    u8 version 1 | u8 flags (1 etag is text, 2 version, 4 key, 8 shown) | varint size, which is counted
//!            | md5 16 B or text etag | content type
//!            | varint version, if flag 2: the object's version time, where the record's sequence is another
//!            | key 16 B, if flag 4: of the body that counts, where each body has a key of its own
//!            | varint size that is shown, if flag 8: where it is not what is counted
//! headers    varint count | (name, value)*, each varint length | bytes
//! content    u8 number of a known type, or 0 | text
//! ```
//!
//! The time of the newest change is the record's sequence and is not repeated.

use super::keys::PathHash;
use super::value::{BadValue, headers, put_headers, put_text, text, version};
use crate::disk::format::bytes::{Put, Reader};
use crate::object::{Headers, IndexPolicy};

/// Content types that take one byte. Numbers (position + 1) are for ever; append only.
const KNOWN_TYPES: [&str; 16] = [
    "application/octet-stream",
    "text/plain",
    "text/html",
    "text/css",
    "text/javascript",
    "application/javascript",
    "application/json",
    "application/xml",
    "application/pdf",
    "application/gzip",
    "application/x-tar",
    "application/directory",
    "image/png",
    "image/jpeg",
    "video/mp4",
    "application/x-www-form-urlencoded",
];
const VERSION: u8 = 1;
/// Of the row of an eventual container: who does not know it must not take it for a strict one.
const EVENTUAL_VERSION: u8 = 2;
const MARKED: u8 = 1;
const TEXT_ETAG: u8 = 1;
const OWN_VERSION: u8 = 2;
const OWN_KEY: u8 = 4;
const SHOWN: u8 = 8;

/// An account's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountValue {
    /// Version time of its creation.
    pub created: u64,
    /// Deleted by its reseller, not yet reaped.
    pub marked: bool,
    /// Stored headers.
    pub headers: Headers,
}

impl AccountValue {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, if self.marked { MARKED } else { 0 }];
        out.put_varint(self.created);
        put_headers(&mut out, &self.headers);
        out
    }

    /// What the bytes say.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadValue> {
        let mut r = Reader::new(bytes);
        version(&mut r, VERSION)?;
        let marked = r.u8()? & MARKED != 0;
        let created = r.varint()?;
        Ok(Self { created, marked, headers: headers(&mut r)? })
    }
}

/// A container's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerValue {
    /// Version time of its creation; names its listing.
    pub id: u64,
    /// Version time of the last PUT.
    pub put: u64,
    /// Storage policy.
    pub policy: u16,
    /// What stands when its index group has no leader.
    pub index: IndexPolicy,
    /// Stored headers.
    pub headers: Headers,
}

impl ContainerValue {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let version = match self.index {
            IndexPolicy::Strict => VERSION,
            IndexPolicy::Eventual => EVENTUAL_VERSION,
        };
        let mut out = vec![version];
        out.put_varint(self.id);
        out.put_varint(self.put);
        out.put_varint(u64::from(self.policy));
        put_headers(&mut out, &self.headers);
        out
    }

    /// What the bytes say.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadValue> {
        let mut r = Reader::new(bytes);
        let index = match r.u8()? {
            VERSION => IndexPolicy::Strict,
            EVENTUAL_VERSION => IndexPolicy::Eventual,
            other => return Err(BadValue::Version(other)),
        };
        let (id, put) = (r.varint()?, r.varint()?);
        let policy = u16::try_from(r.varint()?).map_err(|_| BadValue::Field("policy"))?;
        Ok(Self { id, put, policy, index, headers: headers(&mut r)? })
    }
}

/// The ETag that a listing shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListedEtag {
    /// Lower-case hex of this.
    Md5([u8; 16]),
    /// This text.
    Text(String),
}

impl ListedEtag {
    /// What a client sees.
    #[must_use]
    pub fn into_text(self) -> String {
        match self {
            Self::Md5(md5) => hex::encode(md5),
            Self::Text(text) => text,
        }
    }
}

/// A line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListingValue {
    /// Bytes that the totals count.
    pub size: u64,
    /// Bytes that a listing shows, where these are others: those that a manifest stands for. Lines of earlier versions count them.
    pub shown: Option<u64>,
    /// Listed ETag.
    pub etag: ListedEtag,
    /// Listed MIME type.
    pub content_type: String,
    /// The object's version time, where the line was made later than the object.
    pub version: Option<u64>,
    /// Key of the body that counts, where each body has a key of its own.
    pub key: Option<PathHash>,
}

impl ListingValue {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32);
        out.push(VERSION);
        let text_etag = if matches!(self.etag, ListedEtag::Text(_)) { TEXT_ETAG } else { 0 };
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let (version, key) = (flag(self.version.is_some(), OWN_VERSION), flag(self.key.is_some(), OWN_KEY));
        out.push(text_etag | version | key | flag(self.shown.is_some(), SHOWN));
        out.put_varint(self.size);
        match &self.etag {
            ListedEtag::Md5(md5) => out.extend_from_slice(md5),
            ListedEtag::Text(etag) => put_text(&mut out, etag),
        }
        match (1u8..).zip(KNOWN_TYPES).find(|(_, known)| *known == self.content_type) {
            Some((number, _)) => out.push(number),
            None => {
                out.push(0);
                put_text(&mut out, &self.content_type);
            }
        }
        if let Some(version) = self.version {
            out.put_varint(version);
        }
        out.extend_from_slice(self.key.as_ref().map_or(&[], |key| &key[..]));
        if let Some(shown) = self.shown {
            out.put_varint(shown);
        }
        out
    }

    /// Bytes that a listing shows.
    #[must_use]
    pub fn listed(&self) -> u64 {
        self.shown.unwrap_or(self.size)
    }

    /// What the bytes say.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadValue> {
        let (size, flags, mut r) = Self::start(bytes)?;
        let etag = match flags & !(OWN_VERSION | OWN_KEY | SHOWN) {
            0 => ListedEtag::Md5(r.array()?),
            TEXT_ETAG => ListedEtag::Text(text(&mut r)?.to_owned()),
            _ => return Err(BadValue::Field("listing flags")),
        };
        let content_type = match r.u8()? {
            0 => text(&mut r)?,
            number => KNOWN_TYPES.get(usize::from(number) - 1).ok_or(BadValue::Field("content type"))?,
        };
        let version = if flags & OWN_VERSION == 0 { None } else { Some(r.varint()?) };
        let key = if flags & OWN_KEY == 0 { None } else { Some(r.array()?) };
        let shown = if flags & SHOWN == 0 { None } else { Some(r.varint()?) };
        Ok(Self { size, shown, etag, content_type: content_type.to_owned(), version, key })
    }

    /// Only the size that counts.
    pub(crate) fn size_of(bytes: &[u8]) -> Result<u64, BadValue> {
        Self::start(bytes).map(|(size, ..)| size)
    }

    fn start(bytes: &[u8]) -> Result<(u64, u8, Reader<'_>), BadValue> {
        let mut r = Reader::new(bytes);
        version(&mut r, VERSION)?;
        let flags = r.u8()?;
        Ok((r.varint()?, flags, r))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_round_trip() {
        let headers: Headers = [("x-a".to_owned(), "é".to_owned()), ("x-b".to_owned(), String::new())].into();
        let account = AccountValue { created: 9, marked: true, headers: headers.clone() };
        assert_eq!(AccountValue::decode(&account.encode()), Ok(account));
        for index in [IndexPolicy::Strict, IndexPolicy::Eventual] {
            let container =
                ContainerValue { id: u64::MAX, put: 3, policy: 65_535, index, headers: headers.clone() };
            assert_eq!(ContainerValue::decode(&container.encode()), Ok(container));
        }
        for content_type in ["text/plain", "a/b; charset=x", ""] {
            for etag in [ListedEtag::Md5([3; 16]), ListedEtag::Text("x; y".to_owned())] {
                for (version, key) in
                    [(None, None), (Some(300), None), (None, Some([7; 16])), (Some(1), Some([8; 16]))]
                {
                    for shown in [None, Some(0), Some(u64::MAX)] {
                        let (etag, content_type) = (etag.clone(), content_type.to_owned());
                        let row = ListingValue { size: 1 << 40, shown, etag, content_type, version, key };
                        assert_eq!(ListingValue::size_of(&row.encode()), Ok(1 << 40));
                        assert_eq!(ListingValue::decode(&row.encode()), Ok(row));
                    }
                }
            }
        }
    }

    #[test]
    fn every_cut_and_every_flip_is_a_value_or_an_error() {
        let (etag, content_type) = (ListedEtag::Md5([1; 16]), "x/y".to_owned());
        let (shown, version, key) = (Some(70_000), Some(300), Some([1; 16]));
        let row = ListingValue { size: 5, shown, etag, content_type, version, key };
        let bytes = row.encode();
        for len in 0..bytes.len() {
            assert!(ListingValue::decode(&bytes[..len]).is_err());
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(ListingValue::decode(&flipped).as_ref(), Ok(&row));
        }
    }

    #[test]
    fn a_line_of_a_manifest_that_an_earlier_version_wrote_counts_and_shows_what_it_did() {
        // Version 1, text ETag, 300 bytes, "e", text/plain.
        let old = [1, 1, 0xac, 0x02, 1, b'e', 2];
        let row = ListingValue::decode(&old).unwrap();
        assert_eq!((row.size, row.shown, row.listed()), (300, None, 300));
        assert_eq!(row.encode(), old, "and what needs no second number is written as ever");
        let new = ListingValue { size: 20, shown: Some(300), ..row };
        assert_eq!(new.encode(), [1, 9, 20, 1, b'e', 2, 0xac, 0x02]);
        assert_eq!(new.listed(), 300);
    }
}
