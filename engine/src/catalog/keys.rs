//! Keys of rows and of the catalog's own bookkeeping.
//!
//! ```text
//! Rows     "a" | account                                 an account
//!          "c" | escaped account | container             a container; escape: 00 -> 00 ff, end: 00 01
//!          "o" | container id u64 BE | object            a line of a listing
//!          "k" | anything                                a row of the control group
//!          "p" | container id u64 BE                     the part of a container that a child group has
//!          "q" | container id u64 BE                     the container is about to go
//!          "r" | container id u64 BE | first name        a range of a container that a child group has taken over
//!          "g" | group u32 BE | one of the above         the same, in a group other than the first
//! Objects  path hash 16 B
//! Chunks   data id 16 B | number u32 BE
//! Graves   table number u8 (0 Objects, 2 Rows) | the key it had there
//! System   01 "u" | data id                              open upload -> varint chunks seen
//!          01 "x" | delete_at u64 BE | path hash         expiry queue -> path
//!          01 "i" | path hash                            intent: a version whose line is yet to be made (intents.rs)
//!          01 "c" | container id u64 BE                  totals of a container and of its ranges, and its account while the
//!                                                        row is live
//!          01 "a" | account                              totals of an account
//!          01 "d" | account                              account marked deleted, waiting for the reaper
//!          01 "w" | worker name                          where a worker goes on
//!          01 "G" | group u32 BE | "c", "a" or "d" | …   the same of groups other than the first
//!          01 "g" | key of a consensus record            group.rs
//! ```
//!
//! Invariant: keys sort as the names in them do, as bytes.
//! Invariant: no key of one group begins with the prefix of another; the first index group alone has none.

use super::entry::DataId;
use super::value::BadValue;
use crate::index::Table;

/// What decides where an object lies, and its key in the index.
pub type PathHash = [u8; 16];

/// Storage policies are numbered below this.
pub const POLICIES: u16 = 15;

/// What the last five bytes of a key begin with where it belongs to a policy other than the first; the last one is its number.
const TAG: [u8; 4] = [0x71, 0xec, 0x0b, 0xd5];
const TAG_AT: usize = size_of::<PathHash>() - TAG.len() - 1;
const POLICY_DOMAIN: &[u8] = b"quarry policy key v1\0";

/// The policy that a key belongs to.
#[must_use]
pub fn policy_of(key: &PathHash) -> u16 {
    match key[TAG_AT..].strip_prefix(&TAG) {
        Some([policy]) if *policy > 0 && u16::from(*policy) < POLICIES => u16::from(*policy),
        _ => 0,
    }
}

/// Key of an object in a policy, or of one body of it where each has a key of its own.
///
/// In policy 0 it is the path hash, but that none looks like a key of another policy.
#[must_use]
pub fn policy_key(policy: u16, path: PathHash, body: Option<&DataId>) -> PathHash {
    let mut key = path;
    if policy == 0 && body.is_none() {
        key[TAG_AT] ^= u8::from(policy_of(&key) != 0);
        return key;
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(POLICY_DOMAIN);
    hasher.update(&policy.to_le_bytes());
    hasher.update(&path);
    if let Some(body) = body {
        hasher.update(body);
    }
    hasher.finalize_xof().fill(&mut key);
    key[TAG_AT..TAG_AT + TAG.len()].copy_from_slice(&TAG);
    key[TAG_AT + TAG.len()] = u8::try_from(policy).unwrap_or(u8::MAX);
    key
}

/// A group of rows: the control group is 0, index groups begin at 1.
pub type GroupId = u32;

/// The first index group: all that a machine on its own has. Its rows have no prefix.
pub const FIRST_GROUP: GroupId = 1;

/// Greatest number of a group.
pub const MAX_GROUP_ID: GroupId = 0xffff;

/// The number that stands for a group in the keys of a disk: another for each of its lives there, itself in the first.
pub(crate) fn space_of(group: GroupId, life: u16) -> GroupId {
    GroupId::from(life) << 16 | group
}

/// Group and life of such a number.
pub(crate) fn group_of_space(space: GroupId) -> (GroupId, u16) {
    (space & MAX_GROUP_ID, u16::try_from(space >> 16).unwrap_or(u16::MAX))
}

/// What the key of every row of a group begins with; none for the first.
#[must_use]
pub fn group_prefix(group: GroupId) -> Vec<u8> {
    if group == FIRST_GROUP { Vec::new() } else { [&b"g"[..], &group.to_be_bytes()].concat() }
}

/// The group of a row key, and the key within it.
pub(crate) fn split_group(key: &[u8]) -> Result<(GroupId, &[u8]), BadValue> {
    let Some(rest) = key.strip_prefix(b"g") else { return Ok((FIRST_GROUP, key)) };
    let (group, inner) = rest.split_first_chunk::<4>().ok_or(BadValue::Truncated)?;
    match u32::from_be_bytes(*group) {
        FIRST_GROUP => Err(BadValue::Field("group")),
        group => Ok((group, inner)),
    }
}

/// A row key within its group, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RowKey<'a> {
    Control(&'a [u8]),
    Account(&'a str),
    Container { account: String, container: &'a str },
    Listing { id: u64, object: &'a str },
    Part,
    Going,
    Given { from: &'a str },
}

const ESCAPED_NUL: [u8; 2] = [0, 0xff];
const END: [u8; 2] = [0, 1];

/// Key of an account's row.
#[must_use]
pub fn account_key(account: &str) -> Vec<u8> {
    [b"a", account.as_bytes()].concat()
}

/// Key prefix of the containers of an account.
#[must_use]
pub fn containers_prefix(account: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(account.len() + 3);
    key.push(b'c');
    for byte in account.bytes() {
        if byte == 0 { key.extend_from_slice(&ESCAPED_NUL) } else { key.push(byte) }
    }
    key.extend_from_slice(&END);
    key
}

/// Key of a container's row.
#[must_use]
pub fn container_key(account: &str, container: &str) -> Vec<u8> {
    let mut key = containers_prefix(account);
    key.extend_from_slice(container.as_bytes());
    key
}

/// Key prefix of the listing of a container.
#[must_use]
pub fn listing_prefix(id: u64) -> Vec<u8> {
    [&b"o"[..], &id.to_be_bytes()].concat()
}

/// Key of an object's line in a listing.
#[must_use]
pub fn listing_key(id: u64, object: &str) -> Vec<u8> {
    [&b"o"[..], &id.to_be_bytes(), object.as_bytes()].concat()
}

/// The object's name in the key of a line of this listing.
pub(crate) fn line_name(id: u64, key: &[u8]) -> Option<&[u8]> {
    key.strip_prefix(b"o")?.strip_prefix(&id.to_be_bytes()[..])
}

/// What the key of the row about the part of a container that a child has begins with.
pub(crate) const PART: u8 = b'p';

/// The container of such a row's key.
pub(crate) fn parse_part(key: &[u8]) -> Result<u64, BadValue> {
    let id = key.strip_prefix(&[PART]).and_then(|id| id.try_into().ok());
    id.map(u64::from_be_bytes).ok_or(BadValue::Field("row key"))
}

/// Key of the row that says that a container is about to go.
#[must_use]
pub fn going_key(id: u64) -> Vec<u8> {
    [&b"q"[..], &id.to_be_bytes()].concat()
}

/// Key of the row that says which part of a container a child group has.
#[must_use]
pub fn part_key(id: u64) -> Vec<u8> {
    [&[PART], &id.to_be_bytes()[..]].concat()
}

/// What the keys of rows about ranges that child groups have taken over begin with.
pub(crate) const GIVEN: u8 = b'r';

/// Key of such a row.
#[must_use]
pub fn given_key(id: u64, from: &str) -> Vec<u8> {
    [&[GIVEN], &id.to_be_bytes()[..], from.as_bytes()].concat()
}

/// The container and first name of such a row's key.
pub(crate) fn parse_given(key: &[u8]) -> Result<(u64, &str), BadValue> {
    let rest = key.strip_prefix(&[GIVEN]).ok_or(BadValue::Field("row key"))?;
    let (id, from) = rest.split_first_chunk::<8>().ok_or(BadValue::Truncated)?;
    let from = std::str::from_utf8(from).map_err(|_| BadValue::Field("row key"))?;
    Ok((u64::from_be_bytes(*id), from))
}

impl<'a> RowKey<'a> {
    pub(crate) fn parse(key: &'a [u8]) -> Result<Self, BadValue> {
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| BadValue::Field("row key"));
        match key.split_first() {
            // Of the control group; `V`: rows of volumes, which what follows the cluster does not read.
            Some((b'k' | b'V', rest)) => Ok(Self::Control(rest)),
            Some((b'a', account)) => Ok(Self::Account(text(account)?)),
            Some((b'c', rest)) => {
                let (account, container) = unescape(rest).ok_or(BadValue::Field("row key"))?;
                let account = String::from_utf8(account).map_err(|_| BadValue::Field("row key"))?;
                Ok(Self::Container { account, container: text(container)? })
            }
            Some((b'o', rest)) => {
                let (id, object) = rest.split_first_chunk::<8>().ok_or(BadValue::Truncated)?;
                Ok(Self::Listing { id: u64::from_be_bytes(*id), object: text(object)? })
            }
            Some((&PART, id)) if id.len() == 8 => Ok(Self::Part),
            Some((b'q', id)) if id.len() == 8 => Ok(Self::Going),
            Some((&GIVEN, _)) => parse_given(key).map(|(_, from)| Self::Given { from }),
            _ => Err(BadValue::Field("row key")),
        }
    }
}

fn unescape(mut rest: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut account = Vec::new();
    loop {
        match rest {
            [0, 0xff, tail @ ..] => {
                account.push(0);
                rest = tail;
            }
            [0, 1, tail @ ..] => return Some((account, tail)),
            [0, ..] | [] => return None,
            [byte, tail @ ..] => {
                account.push(*byte);
                rest = tail;
            }
        }
    }
}

pub(crate) fn chunk_key(data_id: &DataId, number: u32) -> Vec<u8> {
    [&data_id[..], &number.to_be_bytes()].concat()
}

pub(crate) fn grave_key(table: Table, key: &[u8]) -> Vec<u8> {
    [&[table as u8], key].concat()
}

const SPACE: u8 = 1;

fn system(tag: u8, parts: [&[u8]; 2]) -> Vec<u8> {
    let mut key = Vec::with_capacity(2 + parts[0].len() + parts[1].len());
    key.extend_from_slice(&[SPACE, tag]);
    key.extend_from_slice(parts[0]);
    key.extend_from_slice(parts[1]);
    key
}

pub(crate) const OPEN_UPLOADS: [u8; 2] = [SPACE, b'u'];
pub(crate) const EXPIRIES: [u8; 2] = [SPACE, b'x'];
pub(crate) const INTENTS: [u8; 2] = [SPACE, b'i'];

pub(crate) fn open_upload(data_id: &DataId) -> Vec<u8> {
    system(b'u', [data_id, &[]])
}

pub(crate) fn intent(hash: &[u8]) -> Vec<u8> {
    system(b'i', [hash, &[]])
}

pub(crate) fn expiry(delete_at: u64, hash: &[u8]) -> Vec<u8> {
    system(b'x', [&delete_at.to_be_bytes(), hash])
}

/// What the bookkeeping of groups other than the first begins with.
pub(crate) const GROUP_TOTALS: [u8; 2] = [SPACE, b'G'];
/// Tags of the bookkeeping that each group has of its own.
pub(crate) const FIRST_TOTALS: [u8; 3] = [b'a', b'c', b'd'];

/// A key of bookkeeping that each group has of its own.
pub(crate) fn of_group(group: GroupId, tag: u8, part: &[u8]) -> Vec<u8> {
    if group == FIRST_GROUP {
        return system(tag, [part, &[]]);
    }
    let [a, b, c, d] = group.to_be_bytes();
    system(b'G', [&[a, b, c, d, tag], part])
}

pub(crate) fn container_totals(group: GroupId, id: u64) -> Vec<u8> {
    of_group(group, b'c', &id.to_be_bytes())
}

/// Whether a key of bookkeeping is that of a container's totals.
pub(crate) fn is_container(key: &[u8]) -> bool {
    match key.strip_prefix(&GROUP_TOTALS) {
        Some(rest) => rest.get(4) == Some(&b'c'),
        None => key.starts_with(&[SPACE, b'c']),
    }
}

pub(crate) fn account_totals(group: GroupId, account: &str) -> Vec<u8> {
    of_group(group, b'a', account.as_bytes())
}

pub(crate) fn marked_account(group: GroupId, account: &str) -> Vec<u8> {
    of_group(group, b'd', account.as_bytes())
}

/// What the keys of a group's accounts that are marked deleted begin with.
pub(crate) fn marked_accounts(group: GroupId) -> Vec<u8> {
    of_group(group, b'd', &[])
}

pub(crate) const CONSENSUS: [u8; 2] = [SPACE, b'g'];

pub(crate) fn worker_place(name: &str) -> Vec<u8> {
    system(b'w', [name.as_bytes(), &[]])
}

/// When and what, of a row of the expiry queue.
pub(crate) fn parse_expiry(key: &[u8]) -> Result<(u64, PathHash), BadValue> {
    let rest = key.strip_prefix(&EXPIRIES).ok_or(BadValue::Field("expiry"))?;
    let (at, hash) = rest.split_first_chunk::<8>().ok_or(BadValue::Truncated)?;
    let hash = hash.try_into().map_err(|_| BadValue::Field("expiry"))?;
    Ok((u64::from_be_bytes(*at), hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_keys_come_apart_as_they_were_put_together() {
        for account in ["AUTH_a", "a\0b", "\0", "é", ""] {
            assert_eq!(RowKey::parse(&account_key(account)), Ok(RowKey::Account(account)));
            let key = container_key(account, "c\0d");
            let parsed = RowKey::Container { account: account.to_owned(), container: "c\0d" };
            assert_eq!(RowKey::parse(&key), Ok(parsed));
        }
        let key = listing_key(7, "a/b");
        assert_eq!(RowKey::parse(&key), Ok(RowKey::Listing { id: 7, object: "a/b" }));
    }

    #[test]
    fn containers_sort_by_account_then_name_and_never_mix() {
        let names = ["", "\0", "\0\0", "\0\u{1}", "a", "a\0", "a\0b", "ab", "b"];
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        for account in names {
            pairs.extend(names.map(|container| (account, container)));
        }
        let mut by_key = pairs.clone();
        by_key.sort_by_key(|(account, container)| container_key(account, container));
        pairs.sort_unstable();
        assert_eq!(by_key, pairs);
    }

    #[test]
    fn groups_have_keys_of_their_own() {
        assert_eq!(split_group(&account_key("a")), Ok((FIRST_GROUP, &account_key("a")[..])));
        for group in [0, 2, u32::MAX] {
            let key = [group_prefix(group), account_key("a")].concat();
            assert_eq!(split_group(&key), Ok((group, &account_key("a")[..])));
            assert_ne!(account_totals(group, "a"), account_totals(FIRST_GROUP, "a"));
        }
        assert!(split_group(b"g\0\0\0\x01a").is_err(), "the first group has no prefix");
        assert!(split_group(b"g\0\0").is_err());
    }

    #[test]
    fn a_key_tells_its_policy_and_none_of_the_first_looks_like_another() {
        let path = [7; 16];
        assert_eq!((policy_key(0, path, None), policy_of(&path)), (path, 0));
        let mut keys = std::collections::HashSet::from([path]);
        for policy in 1..POLICIES {
            for body in [None, Some(&[1; 16]), Some(&[2; 16])] {
                let key = policy_key(policy, path, body);
                assert_eq!(policy_of(&key), policy);
                assert!(keys.insert(key));
                assert_eq!(policy_of(&policy_key(0, key, None)), 0, "such a path hash is told apart");
            }
        }
        assert_eq!(hex::encode(policy_key(3, path, Some(&[9; 16]))), GOLDEN);
        assert_eq!(policy_of(&policy_key(POLICIES, path, None)), 0, "there is no such policy");
    }

    const GOLDEN: &str = "de0ce29bea7b4a4186af6171ec0bd503";

    #[test]
    fn keys_of_ranges_sort_by_container_and_name() {
        assert_eq!(RowKey::parse(b"knodes"), Ok(RowKey::Control(b"nodes")));
        assert_eq!(
            RowKey::parse(b"Vivol"),
            Ok(RowKey::Control(b"ivol")),
            "rows of volumes are the control group's"
        );
        assert_eq!(RowKey::parse(&part_key(7)), Ok(RowKey::Part));
        assert_eq!(RowKey::parse(&going_key(7)), Ok(RowKey::Going));
        assert_eq!(parse_part(&part_key(7)), Ok(7));
        assert_eq!(RowKey::parse(&given_key(7, "m")), Ok(RowKey::Given { from: "m" }));
        assert_eq!(parse_given(&given_key(7, "m")), Ok((7, "m")));
        assert!(given_key(7, "m") < given_key(7, "n") && given_key(7, "n") < given_key(8, "a"));
        assert!(parse_given(b"r1234567").is_err());
        assert!(RowKey::parse(b"p1234567").is_err());
    }

    #[test]
    fn foreign_keys_are_errors() {
        for key in [&b""[..], b"z", b"c", b"cabc", b"c\0\x02", b"o123", b"a\xff"] {
            assert!(RowKey::parse(key).is_err(), "{key:?}");
        }
    }
}
