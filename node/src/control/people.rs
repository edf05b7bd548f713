//! Users, projects, the keys of tokens, and tokens that were taken back, as rows of the control group (node/FORMAT-control.md).
//!
//! Invariant: nothing here shows a key: what is written into logs has none.
//! Invariant: a key verifies for as long as a token that it sealed may live, and seals only when every node has had time to
//! learn it.
//! Invariant: which rows are made or dropped follows from the rows and the time alone.

use std::collections::BTreeMap;

use quarry_engine::disk::format::bytes::{Put, Reader};

use super::state::{BadState, KeyValue};
use crate::auth::Verifier;

/// Second byte of the keys of these rows.
pub(super) const TAG: u8 = b'u';
const VERSION: u8 = 1;

/// Seconds after which a new key is made.
const ROTATE: u64 = 24 * 3600;
/// Seconds before a new key seals: a node that has not heard of the cluster for so long does not serve anyway.
const SPREAD: u64 = 300;
/// Longest life of a token in seconds, as the configuration permits, and the slack of clocks.
const LONGEST: u64 = 30 * 24 * 3600 + 3600;
/// Most tokens that are taken back and remembered.
const MAX_REVOKED: usize = 49_152;
/// Most users and projects.
const MAX_PEOPLE: usize = 16_384;

/// Who may use the cluster, and with what.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct People {
    /// The founder's users were taken over.
    pub(crate) founded: bool,
    /// By `account:user`.
    pub(crate) v1_users: BTreeMap<String, V1Person>,
    /// Names by id.
    pub(crate) projects: BTreeMap<String, String>,
    /// By id.
    pub(crate) users: BTreeMap<String, Person>,
    pub(crate) keys: Keys,
    /// Seconds of the expiry of tokens that are not good any more, by audit id.
    pub(crate) revoked: BTreeMap<String, u64>,
}

/// A user of v1 auth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct V1Person {
    pub(crate) groups: Vec<String>,
    pub(crate) verifier: Verifier,
}

/// A Keystone user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Person {
    pub(crate) name: String,
    pub(crate) default_project: Option<String>,
    /// Role names by project id.
    pub(crate) roles: BTreeMap<String, Vec<String>>,
    pub(crate) verifier: Verifier,
}

/// What tokens are sealed with, by number: in the order in which they were made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Keys(pub(crate) BTreeMap<u64, Key>);

/// One of them.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Key {
    /// Unix seconds.
    pub(crate) made: u64,
    pub(crate) bytes: [u8; 32],
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("made", &self.made).finish_non_exhaustive()
    }
}

impl Keys {
    /// The number of the key that seals at a time.
    pub(crate) fn sealing(&self, now: u64) -> Option<u64> {
        let ripe = self.0.iter().rev().find(|(_, key)| key.made + SPREAD <= now);
        ripe.or_else(|| self.0.iter().next()).map(|(number, _)| *number)
    }
}

fn key(kind: u8, rest: &[u8]) -> Vec<u8> {
    [&super::state::prefix()[..], &[TAG, kind], rest].concat()
}

/// Key of the row that says that the founder's users were taken over.
pub(crate) fn founded_key() -> Vec<u8> {
    key(b's', &[])
}

/// Key of a v1 user's row.
pub(crate) fn v1_key(name: &str) -> Vec<u8> {
    key(b'v', name.as_bytes())
}

/// Key of a project's row.
pub(crate) fn project_key(id: &str) -> Vec<u8> {
    key(b'p', id.as_bytes())
}

/// Key of a Keystone user's row.
pub(crate) fn user_key(id: &str) -> Vec<u8> {
    key(b'u', id.as_bytes())
}

/// The row of a token that is not good any more.
pub(crate) fn revoked_row(audit: &str, expires: u64) -> KeyValue {
    let mut value = vec![VERSION];
    value.put_varint(expires);
    (key(b'r', audit.as_bytes()), value)
}

fn key_row(number: u64, made: &Key) -> KeyValue {
    let mut value = vec![VERSION];
    value.put_varint(made.made);
    value.extend_from_slice(&made.bytes);
    (key(b'k', &number.to_be_bytes()), value)
}

/// The value of [`founded_key`].
pub(crate) fn founded_value() -> Vec<u8> {
    vec![VERSION]
}

/// The value of a project's row.
pub(crate) fn project_value(name: &str) -> Vec<u8> {
    [&[VERSION], name.as_bytes()].concat()
}

impl V1Person {
    /// The value of its row.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        self.verifier.put(&mut out);
        put_texts(&mut out, &self.groups);
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, BadState> {
        let mut r = reader(bytes)?;
        let verifier = verifier(&mut r)?;
        Ok(Self { groups: texts(&mut r)?, verifier })
    }
}

impl Person {
    /// The value of its row.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        self.verifier.put(&mut out);
        put_text(&mut out, &self.name);
        put_text(&mut out, self.default_project.as_deref().unwrap_or(""));
        out.put_varint(self.roles.len() as u64);
        for (project, roles) in &self.roles {
            put_text(&mut out, project);
            put_texts(&mut out, roles);
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, BadState> {
        let mut r = reader(bytes)?;
        let verifier = verifier(&mut r)?;
        let name = text(&mut r)?;
        let default_project = Some(text(&mut r)?).filter(|project| !project.is_empty());
        let mut roles = BTreeMap::new();
        for _ in 0..r.varint()? {
            roles.insert(text(&mut r)?, texts(&mut r)?);
        }
        Ok(Self { name, default_project, roles, verifier })
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_varint(text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn put_texts(out: &mut Vec<u8>, texts: &[String]) {
    out.put_varint(texts.len() as u64);
    texts.iter().for_each(|text| put_text(out, text));
}

fn text(r: &mut Reader<'_>) -> Result<String, BadState> {
    plain(r.prefixed()?)
}

fn texts(r: &mut Reader<'_>) -> Result<Vec<String>, BadState> {
    let many = r.varint()?;
    (0..many).map(|_| text(r)).collect()
}

fn plain(bytes: &[u8]) -> Result<String, BadState> {
    String::from_utf8(bytes.to_vec()).map_err(|_| BadState::Field("text of a user's row"))
}

fn verifier(r: &mut Reader<'_>) -> Result<Verifier, BadState> {
    Verifier::read(r)?.ok_or(BadState::Field("secret of a user"))
}

fn reader(bytes: &[u8]) -> Result<Reader<'_>, BadState> {
    let mut r = Reader::new(bytes);
    match r.u8()? {
        VERSION => Ok(r),
        other => Err(BadState::Version(other)),
    }
}

impl People {
    /// Takes in a row; `rest` is its key behind [`TAG`].
    pub(crate) fn take(&mut self, rest: &[u8], value: &[u8]) -> Result<(), BadState> {
        let (kind, rest) = rest.split_first().ok_or(BadState::Field("key"))?;
        match (kind, rest) {
            (b's', []) => {
                reader(value)?;
                self.founded = true;
            }
            (b'v', name) => {
                self.v1_users.insert(plain(name)?, V1Person::decode(value)?);
            }
            (b'p', id) => {
                self.projects.insert(plain(id)?, plain(reader(value)?.rest())?);
            }
            (b'u', id) => {
                self.users.insert(plain(id)?, Person::decode(value)?);
            }
            (b'r', audit) => {
                self.revoked.insert(plain(audit)?, reader(value)?.varint()?);
            }
            (b'k', number) => {
                let number = number.try_into().map_err(|_| BadState::Field("number of a key"))?;
                let mut r = reader(value)?;
                let (made, bytes) = (r.varint()?, r.array()?);
                self.keys.0.insert(u64::from_be_bytes(number), Key { made, bytes });
            }
            _ => return Err(BadState::Field("key")),
        }
        Ok(())
    }

    /// Whether a row may be written because a node asks for it: not the keys of tokens, and nothing that no node could read.
    pub(crate) fn may_write(&self, key: &[u8], value: Option<&[u8]>) -> Result<(), String> {
        let rest = key.strip_prefix(&[super::state::prefix()[0], TAG]);
        let rest = rest.ok_or("that row is not written on demand")?;
        match rest.first() {
            Some(b'k') => return Err("keys of tokens are made by the cluster".to_owned()),
            Some(b'r') if self.revoked.len() >= MAX_REVOKED => {
                return Err(format!("{MAX_REVOKED} tokens were revoked of late"));
            }
            Some(b'v' | b'p' | b'u') if self.many() >= MAX_PEOPLE => {
                return Err(format!("the cluster has {MAX_PEOPLE} users and projects"));
            }
            _ => {}
        }
        match value {
            Some(value) => Self::default().take(rest, value).map_err(|e| e.to_string()),
            None => Ok(()),
        }
    }

    /// Whether users and projects are the same.
    pub(crate) fn same_persons(&self, other: &Self) -> bool {
        self.v1_users == other.v1_users && self.projects == other.projects && self.users == other.users
    }

    fn many(&self) -> usize {
        self.v1_users.len() + self.projects.len() + self.users.len()
    }

    /// Rows that the leader of the control group changes now: a key that is due, and what is over. At most `limit`.
    pub(crate) fn due(
        &self,
        now: u64,
        fresh: impl FnOnce() -> [u8; 32],
        limit: usize,
    ) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let mut rows = Vec::new();
        let newest = self.keys.0.iter().next_back();
        if newest.is_none_or(|(_, key)| key.made + ROTATE <= now) {
            let number = newest.map_or(0, |(number, _)| number + 1);
            let (name, value) = key_row(number, &Key { made: now, bytes: fresh() });
            rows.push((name, Some(value)));
        }
        // A key seals until the next is ripe.
        let next = self.keys.0.values().skip(1);
        let over = self.keys.0.keys().zip(next).filter(|(_, next)| next.made + SPREAD + LONGEST <= now);
        rows.extend(over.map(|(number, _)| (key(b'k', &number.to_be_bytes()), None)));
        let ended = self.revoked.iter().filter(|(_, expires)| **expires + SPREAD <= now);
        rows.extend(ended.map(|(audit, _)| (key(b'r', audit.as_bytes()), None)));
        rows.truncate(limit);
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rows: &[(Vec<u8>, Option<Vec<u8>>)]) -> People {
        let mut people = People::default();
        for (key, value) in rows {
            people.take(&key[2..], value.as_ref().unwrap()).unwrap();
        }
        people
    }

    #[test]
    fn rows_have_these_bytes_for_ever() {
        let verifier =
            Verifier::read(&mut Reader::new(&[&[9][..], &[1; 16], &[2; 32]].concat())).unwrap().unwrap();
        let secret = format!("09{}{}", "01".repeat(16), "02".repeat(32));
        let one = V1Person { groups: vec![".admin".to_owned()], verifier: verifier.clone() };
        assert_eq!(hex::encode(one.encode()), format!("01{secret}0106{}", hex::encode(".admin")));
        let roles = [("p".to_owned(), vec!["r".to_owned()])].into();
        let person = Person { name: "n".to_owned(), default_project: None, roles, verifier };
        assert_eq!(hex::encode(person.encode()), format!("01{secret}016e00010170010172"));
        assert_eq!(hex::encode(v1_key("a:b")), hex::encode("kuva:b"));
        let (name, value) = revoked_row("id", 300);
        assert_eq!((hex::encode(name), hex::encode(value)), (hex::encode("kurid"), "01ac02".to_owned()));
        let (name, value) = key_row(1, &Key { made: 300, bytes: [7; 32] });
        assert_eq!(hex::encode(name), format!("{}0000000000000001", hex::encode("kuk")));
        assert_eq!(hex::encode(value), format!("01ac02{}", "07".repeat(32)));
        for row in [one.encode(), person.encode()] {
            for cut in 0..row.len() {
                let mut people = People::default();
                assert!(people.take(b"vx", &row[..cut]).is_err() && people.take(b"ux", &row[..cut]).is_err());
            }
        }
        assert_eq!(of(&[(v1_key("a:b"), Some(one.encode()))]).v1_users["a:b"], one);
        assert_eq!(of(&[(user_key("i"), Some(person.encode()))]).users["i"], person);
    }

    #[test]
    fn a_key_seals_when_all_know_it_and_verifies_while_its_tokens_live() {
        let mut people = of(&People::default().due(1000, || [1; 32], 9));
        assert_eq!(
            (people.keys.0.len(), people.keys.sealing(1000)),
            (1, Some(0)),
            "the first one seals at once"
        );
        assert!(people.due(1000 + ROTATE - 1, || [2; 32], 9).is_empty());
        let second = people.due(1000 + ROTATE, || [2; 32], 9);
        for (key, value) in second {
            people.take(&key[2..], &value.unwrap()).unwrap();
        }
        let made = 1000 + ROTATE;
        assert_eq!(
            (people.keys.sealing(made + SPREAD - 1), people.keys.sealing(made + SPREAD)),
            (Some(0), Some(1))
        );
        // The last token of the first key ends `LONGEST` after the second began to seal.
        people.keys.0.insert(2, Key { made: made + 40 * ROTATE, bytes: [3; 32] });
        assert!(people.due(made + SPREAD + LONGEST - 1, || [4; 32], 9).is_empty());
        let gone = people.due(made + SPREAD + LONGEST, || [4; 32], 9);
        assert_eq!(gone, vec![(key(b'k', &0_u64.to_be_bytes()), None)]);
        assert!(!format!("{people:?}").contains("2, 2, 2"), "no key is shown");
    }

    #[test]
    fn what_is_over_is_dropped_and_little_by_little() {
        let mut people = of(&People::default().due(0, || [1; 32], 9));
        people.revoked = (0..9).map(|n| (format!("t{n}"), n)).collect();
        assert_eq!(people.due(SPREAD + 4, || [1; 32], 3).len(), 3);
        assert_eq!(people.due(SPREAD + 1, || [1; 32], 9).len(), 2);
    }

    #[test]
    fn nobody_writes_keys_or_what_no_node_could_read() {
        let mut people = People::default();
        let (name, value) = revoked_row("a", 5);
        assert_eq!(people.may_write(&name, Some(&value)), Ok(()));
        assert!(people.may_write(&name, Some(&[9])).is_err());
        assert!(people.may_write(&name[..2], Some(&value)).is_err());
        assert!(people.may_write(b"ks", Some(&value)).is_err() && people.may_write(b"km", None).is_err());
        let (name_of_key, value_of_key) = key_row(0, &Key { made: 0, bytes: [0; 32] });
        assert!(people.may_write(&name_of_key, Some(&value_of_key)).is_err());
        assert!(people.may_write(&name_of_key, None).is_err());
        people.revoked = (0..MAX_REVOKED).map(|n| (n.to_string(), 1)).collect();
        assert!(people.may_write(&name, Some(&value)).is_err());
    }
}
