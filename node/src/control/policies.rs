//! Storage policies as rows of the control group (node/FORMAT-control.md).
//!
//! Invariant: a policy is never removed and never keeps objects otherwise than it did: what it has would be lost.
//! Invariant: rows that do not make a valid set of policies are refused by the leader before they are written.

use std::collections::BTreeMap;

use quarry_engine::disk::format::bytes::{Put, Reader};
use quarry_engine::object::{Code, Keeps, Policies, Policy};

use super::state::{BadState, Settings, State};

/// Behind the `k` of all rows of the control group.
pub(crate) const TAG: u8 = b'p';
const VERSION: u8 = 1;
const DEPRECATED: u8 = 1;
/// Most copies of an object.
pub(crate) const MAX_COPIES: u16 = 32;
/// Most names of a policy.
const MAX_NAMES: u64 = 16;

/// Policies as rows tell them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Rows {
    pub(crate) policies: BTreeMap<u16, Row>,
    /// `None`: policy 0.
    pub(crate) default: Option<u16>,
}

/// A policy's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) deprecated: bool,
    /// Copies; of the first policy those that the cluster was founded with count.
    pub(crate) kind: Kind,
    /// The first one is its name, the others are aliases.
    pub(crate) names: Vec<String>,
}

/// How a policy keeps objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Copies(u16),
    Fragments(Code),
}

impl Kind {
    /// Devices that an object lies on.
    pub(crate) fn width(self) -> u16 {
        match self {
            Self::Copies(copies) => copies,
            Self::Fragments(code) => u16::from(code.data) + u16::from(code.parity),
        }
    }
}

/// Key of a policy's row.
pub(crate) fn policy_key(index: u16) -> Vec<u8> {
    [&[b'k', TAG][..], &index.to_be_bytes()].concat()
}

/// Key of the row that says which policy is the default.
pub(crate) fn default_key() -> Vec<u8> {
    vec![b'k', TAG]
}

/// Its value.
pub(crate) fn encode_default(index: u16) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.put_varint(u64::from(index));
    out
}

fn small<T: TryFrom<u64>>(r: &mut Reader<'_>, what: &'static str) -> Result<T, BadState> {
    T::try_from(r.varint()?).map_err(|_| BadState::Field(what))
}

fn version(r: &mut Reader<'_>) -> Result<(), BadState> {
    match r.u8()? {
        VERSION => Ok(()),
        other => Err(BadState::Version(other)),
    }
}

impl Row {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (kind, a, b) = match self.kind {
            Kind::Copies(copies) => (0, u64::from(copies), 0),
            Kind::Fragments(code) => (1, u64::from(code.data), u64::from(code.parity)),
        };
        let mut out = vec![VERSION, if self.deprecated { DEPRECATED } else { 0 }, kind];
        out.put_varint(a);
        out.put_varint(b);
        out.put_varint(self.names.len() as u64);
        for name in &self.names {
            out.put_varint(name.len() as u64);
            out.extend_from_slice(name.as_bytes());
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, BadState> {
        let mut r = Reader::new(bytes);
        version(&mut r)?;
        let deprecated = r.u8()? & DEPRECATED != 0;
        let kind = r.u8()?;
        let kind = match (kind, small(&mut r, "policy")?, small(&mut r, "policy")?) {
            (0, copies @ 1..=MAX_COPIES, 0) => Kind::Copies(copies),
            (1, data, parity) => {
                let narrow = |n: u16| u8::try_from(n).unwrap_or(0);
                let code = Code::new(narrow(data), narrow(parity));
                Kind::Fragments(code.ok_or(BadState::Field("code of a policy"))?)
            }
            _ => return Err(BadState::Field("kind of a policy")),
        };
        let count = r.varint()?;
        if count == 0 || count > MAX_NAMES {
            return Err(BadState::Field("names of a policy"));
        }
        let mut names = Vec::new();
        for _ in 0..count {
            let name = std::str::from_utf8(r.prefixed()?).map_err(|_| BadState::Field("name of a policy"))?;
            names.push(name.to_owned());
        }
        Ok(Self { deprecated, kind, names })
    }
}

impl Rows {
    /// Takes a row with this key behind the tag.
    pub(crate) fn take(&mut self, rest: &[u8], value: &[u8]) -> Result<(), BadState> {
        if rest.is_empty() {
            let mut r = Reader::new(value);
            version(&mut r)?;
            self.default = Some(small(&mut r, "default policy")?);
            return Ok(());
        }
        let index = rest.try_into().map_err(|_| BadState::Field("number of a policy"))?;
        self.policies.insert(u16::from_be_bytes(index), Row::decode(value)?);
        Ok(())
    }

    /// Whether a row with this key is among them.
    pub(crate) fn has(&self, key: &[u8], value: &[u8]) -> bool {
        let mut with = self.clone();
        let rest = key.strip_prefix(&[b'k', TAG]);
        rest.is_some_and(|rest| with.take(rest, value).is_ok()) && with == *self
    }

    /// Every policy's number and how it keeps objects, the first one too.
    pub(crate) fn kinds(&self, settings: Settings) -> BTreeMap<u16, Kind> {
        let mut kinds: BTreeMap<u16, Kind> =
            self.policies.iter().map(|(index, row)| (*index, row.kind)).collect();
        kinds.insert(0, Kind::Copies(settings.replicas));
        kinds
    }

    /// As the object layer knows them.
    pub(crate) fn policies(&self) -> Result<Policies, String> {
        let default = self.default.unwrap_or(0);
        let mut all: BTreeMap<u16, Policy> = [(0, Policy::first())].into();
        for (index, row) in &self.policies {
            let mut names = row.names.iter().cloned();
            let keeps = match row.kind {
                Kind::Copies(_) => Keeps::Copies,
                Kind::Fragments(code) => Keeps::Fragments(code),
            };
            let name = names.next().unwrap_or_default();
            let (aliases, deprecated) = (names.collect(), row.deprecated);
            all.insert(*index, Policy { index: *index, name, aliases, keeps, default: false, deprecated });
        }
        all.values_mut().for_each(|policy| policy.default = policy.index == default);
        Policies::new(all.into_values().collect()).map_err(|bad| bad.to_string())
    }
}

/// Whether a row with this key may be written; `None`: it is about something else.
pub(crate) fn may_write(state: &State, key: &[u8], value: Option<&[u8]>) -> Option<Result<(), String>> {
    let rest = key.strip_prefix(&[b'k', TAG])?;
    Some(judge(state, rest, value))
}

fn judge(state: &State, rest: &[u8], value: Option<&[u8]>) -> Result<(), String> {
    let value = value.ok_or("a policy is never removed; it can be deprecated")?;
    let mut after = state.policies.clone();
    after.take(rest, value).map_err(|bad| bad.to_string())?;
    for (index, row) in &after.policies {
        let before = state.policies.policies.get(index).map(|row| row.kind);
        let same = match (before, row.kind) {
            (None, Kind::Copies(_)) | (Some(Kind::Copies(_)), Kind::Copies(_)) => true,
            (None, Kind::Fragments(_)) => *index != 0,
            (Some(before), kind) => before == kind,
        };
        if !same {
            return Err(format!("policy {index} keeps objects as it did when it was made"));
        }
    }
    after.policies().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kind: Kind, names: &[&str]) -> Row {
        Row { deprecated: false, kind, names: names.iter().map(|name| (*name).to_owned()).collect() }
    }

    fn coded() -> Kind {
        Kind::Fragments(Code { data: 4, parity: 2 })
    }

    #[test]
    fn rows_have_these_bytes_for_ever() {
        let gold = row(Kind::Copies(3), &["gold", "au"]);
        assert_eq!(
            hex::encode(gold.encode()),
            format!("01000003000204{}02{}", hex::encode("gold"), hex::encode("au"))
        );
        assert_eq!(hex::encode(row(coded(), &["ec"]).encode()), "010001040201026563");
        assert_eq!(hex::encode(policy_key(3)), "6b700003");
        assert_eq!(hex::encode(encode_default(300)), "01ac02");
    }

    #[test]
    fn policies_come_back_from_their_rows() {
        let mut rows = Rows::default();
        let ec = Row { deprecated: true, ..row(coded(), &["ec", "cold"]) };
        rows.take(&[0, 2], &ec.encode()).unwrap();
        rows.take(&[0, 1], &row(Kind::Copies(2), &["two"]).encode()).unwrap();
        rows.take(&[], &encode_default(1)).unwrap();
        assert_eq!(rows.policies[&2], ec);
        let policies = rows.policies().unwrap();
        assert_eq!(policies.named("").unwrap().index, 1);
        assert_eq!((policies.code(2).unwrap().n(), policies.named("COLD").unwrap().deprecated), (6, true));
        assert_eq!(policies.get(0).unwrap().name, "Policy-0");
        let settings = Settings { replicas: 3, part_power: 6, min_part_hours: 0, index_groups: 1 };
        assert_eq!(rows.kinds(settings).into_values().map(Kind::width).collect::<Vec<_>>(), [3, 2, 6]);
        assert!(rows.take(&[0], &ec.encode()).is_err());
        for cut in 0..ec.encode().len() {
            assert!(Row::decode(&ec.encode()[..cut]).is_err());
        }
    }

    #[test]
    fn what_would_lose_objects_or_confuse_clients_is_not_written() {
        let mut state = State::default();
        let may = |state: &State, index: u16, row: &Row| {
            may_write(state, &policy_key(index), Some(&row.encode())).unwrap()
        };
        assert_eq!(may(&state, 1, &row(coded(), &["ec"])), Ok(()));
        assert!(may(&state, 0, &row(coded(), &["ec"])).is_err(), "the first policy keeps copies");
        assert!(may(&state, 1, &row(coded(), &["policy-0"])).is_err(), "the name is taken");
        assert!(may(&state, 99, &row(coded(), &["ec"])).is_err());
        state.policies.policies.insert(1, row(coded(), &["ec"]));
        let other = Kind::Fragments(Code { data: 3, parity: 2 });
        assert!(may(&state, 1, &row(other, &["ec"])).is_err());
        assert!(may(&state, 1, &row(Kind::Copies(3), &["ec"])).is_err());
        assert_eq!(may(&state, 1, &row(coded(), &["new", "ec"])), Ok(()));
        assert!(may_write(&state, &policy_key(1), None).unwrap().is_err());
        assert!(may_write(&state, &default_key(), Some(&encode_default(7))).unwrap().is_err());
        assert_eq!(may_write(&state, &default_key(), Some(&encode_default(1))), Some(Ok(())));
        assert_eq!(may_write(&state, b"ku", None), None);
    }
}
