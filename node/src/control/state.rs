//! What the cluster is, as rows of the control group (node/FORMAT-control.md).
//!
//! Invariant: rows that this version cannot read are an error, never ignored: a node that misreads the cluster is worse than
//! one that stops.
//! Invariant: a ring is believed when all of it is there and its hash is right.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use quarry_engine::disk::format::bytes::{Put, Reader, Truncated};
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::NodeId;
use quarry_ring::{Builder, Class, decode_builder, encode_builder};

use super::children::{self, Children};
use super::people::{self, People};
use super::policies;
use super::seating::{self, Seating};

/// Bytes of a builder in one row.
pub(crate) const RING_PART: usize = 48 << 10;
pub(super) const VERSION: u8 = 1;
const PREFIX: u8 = b'k';
/// Most index groups of a cluster.
pub(crate) const MAX_INDEX_GROUPS: u32 = 1024;

/// The cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct State {
    /// `None`: not founded.
    pub(crate) settings: Option<Settings>,
    pub(crate) members: BTreeMap<NodeId, Member>,
    pub(crate) devices: BTreeMap<DeviceId, Device>,
    /// Of the first policy.
    pub(crate) builder: Option<Builder>,
    pub(crate) people: People,
    /// Who votes in each index group.
    pub(crate) groups: Seating,
    /// Groups that took lines over from others, or are about to, and from which.
    pub(crate) children: Children,
    /// Of these, whose lines were taken back: nobody votes in them.
    pub(crate) over: BTreeSet<u32>,
    /// Of the other policies.
    pub(crate) other_builders: BTreeMap<u16, Builder>,
    pub(crate) policies: policies::Rows,
}

/// What is wanted of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Copies of each object, as soon as there are as many nodes.
    pub(crate) replicas: u16,
    /// The ring has 2 to the power of this many partitions; for ever.
    pub(crate) part_power: u8,
    /// Hours in which a partition moves no second time.
    pub(crate) min_part_hours: u16,
    /// Index groups, a power of two; for ever.
    pub(crate) index_groups: u32,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// In the ring.
    pub(crate) number: u32,
    /// Where others reach it.
    pub(crate) address: SocketAddr,
    /// Version time of its first announcement.
    pub(crate) since: u64,
    /// To hold nothing any more.
    pub(crate) leaving: bool,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) node: NodeId,
    pub(crate) bytes: u64,
    pub(crate) region: u16,
    pub(crate) zone: u16,
    pub(crate) class: Class,
    pub(crate) wanted: Wanted,
    /// Its node says that it does not serve. It keeps its place, and is given no new one.
    pub(crate) away: bool,
}

/// Behind the row of a disk that is away.
const AWAY: u8 = 1;

/// What a disk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// To hold its share.
    Share,
    /// To be emptied, one replica of a partition after the other.
    Empty,
    /// To be out of the ring: gone, or good for nothing.
    Out,
}

/// Why rows are not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadState {
    #[error("a row of the control group ends too early")]
    Truncated,
    #[error("a row of the control group is of version {0}; this program knows version {VERSION}: upgrade it")]
    Version(u8),
    #[error("a row of the control group is damaged: {0}")]
    Field(&'static str),
}

impl From<Truncated> for BadState {
    fn from(_: Truncated) -> Self {
        Self::Truncated
    }
}

/// A row's key and its value.
pub(crate) type KeyValue = (Vec<u8>, Vec<u8>);

/// First byte of all keys of the control group.
pub(crate) fn prefix() -> Vec<u8> {
    vec![PREFIX]
}

pub(super) fn key(tag: u8, rest: &[u8]) -> Vec<u8> {
    [&[PREFIX, tag], rest].concat()
}

pub(crate) fn settings_key() -> Vec<u8> {
    key(b's', &[])
}

pub(crate) fn member_key(node: NodeId) -> Vec<u8> {
    key(b'm', &node.0)
}

pub(crate) fn device_key(device: DeviceId) -> Vec<u8> {
    key(b'd', &device.0)
}

/// Key of the row that says which ring of a policy is the present one.
pub(crate) fn ring_key(policy: u16) -> Vec<u8> {
    key(b'R', &policy.to_be_bytes())
}

fn ring_part_key(policy: u16, version: u64, part: u16) -> Vec<u8> {
    key(b'r', &[&policy.to_be_bytes()[..], &version.to_be_bytes(), &part.to_be_bytes()].concat())
}

impl Settings {
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut out = vec![VERSION, self.part_power];
        out.put_varint(u64::from(self.replicas));
        out.put_varint(u64::from(self.min_part_hours));
        out.put_varint(u64::from(self.index_groups));
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, BadState> {
        let mut r = reader(bytes)?;
        let part_power = r.u8()?;
        let (replicas, min_part_hours) = (small(&mut r, "replicas")?, small(&mut r, "hours")?);
        let index_groups = small(&mut r, "index groups")?;
        if !u32::is_power_of_two(index_groups) || index_groups > MAX_INDEX_GROUPS {
            return Err(BadState::Field("index groups"));
        }
        Ok(Self { replicas, part_power, min_part_hours, index_groups })
    }
}

impl Member {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, u8::from(self.leaving)];
        out.put_varint(u64::from(self.number));
        out.put_varint(self.since);
        out.extend_from_slice(self.address.to_string().as_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, BadState> {
        let mut r = reader(bytes)?;
        let leaving = r.u8()? & 1 != 0;
        let number = small(&mut r, "number of a node")?;
        let since = r.varint()?;
        let text = std::str::from_utf8(r.rest()).map_err(|_| BadState::Field("address"))?;
        let address = text.parse().map_err(|_| BadState::Field("address"))?;
        Ok(Self { number, address, since, leaving })
    }
}

impl Device {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let class = Class::ALL.iter().position(|class| *class == self.class).unwrap_or(0);
        let wanted = match self.wanted {
            Wanted::Share => 0,
            Wanted::Empty => 1,
            Wanted::Out => 2,
        };
        let mut out = vec![VERSION, wanted, u8::try_from(class).unwrap_or(0)];
        out.extend_from_slice(&self.node.0);
        out.put_varint(self.bytes);
        out.put_varint(u64::from(self.region));
        out.put_varint(u64::from(self.zone));
        if self.away {
            out.push(AWAY);
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, BadState> {
        let mut r = reader(bytes)?;
        let wanted = match r.u8()? {
            0 => Wanted::Share,
            1 => Wanted::Empty,
            2 => Wanted::Out,
            _ => return Err(BadState::Field("what a device is for")),
        };
        let class = Class::ALL.get(usize::from(r.u8()?)).copied().ok_or(BadState::Field("class"))?;
        let node = NodeId(r.array()?);
        let bytes = r.varint()?;
        let (region, zone) = (small(&mut r, "region")?, small(&mut r, "zone")?);
        let away = match r.rest() {
            [] => false,
            [AWAY] => true,
            _ => return Err(BadState::Field("end of a disk")),
        };
        Ok(Self { node, bytes, region, zone, class, wanted, away })
    }
}

pub(super) fn reader(bytes: &[u8]) -> Result<Reader<'_>, BadState> {
    let mut r = Reader::new(bytes);
    match r.u8()? {
        VERSION => Ok(r),
        other => Err(BadState::Version(other)),
    }
}

fn small<T: TryFrom<u64>>(r: &mut Reader<'_>, what: &'static str) -> Result<T, BadState> {
    T::try_from(r.varint()?).map_err(|_| BadState::Field(what))
}

/// The row that says which ring is present.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RingRow {
    version: u64,
    parts: u16,
    hash: [u8; 32],
}

/// A builder as rows: its parts, and the row that makes it the present one, to be written last.
pub(crate) fn ring_rows(builder: &Builder) -> (Vec<KeyValue>, KeyValue) {
    let bytes = encode_builder(builder);
    let (version, policy) = (builder.version(), builder.settings().policy);
    let parts: Vec<KeyValue> = (0_u16..)
        .zip(bytes.chunks(RING_PART))
        .map(|(part, chunk)| (ring_part_key(policy, version, part), chunk.to_vec()))
        .collect();
    let mut row = vec![VERSION];
    row.put_varint(version);
    row.put_varint(parts.len() as u64);
    row.extend_from_slice(blake3::hash(&bytes).as_bytes());
    (parts, (ring_key(policy), row))
}

/// Keys of parts of a policy that belong to no present ring.
pub(crate) fn stale_parts(rows: &BTreeMap<Vec<u8>, Vec<u8>>, policy: u16) -> Vec<Vec<u8>> {
    let present = rows.get(&ring_key(policy)).and_then(|row| RingRow::decode(row).ok());
    let Some(present) = present else { return Vec::new() };
    let ours = key(b'r', &[&policy.to_be_bytes()[..], &present.version.to_be_bytes()].concat());
    let parts = key(b'r', &policy.to_be_bytes());
    rows.keys().filter(|key| key.starts_with(&parts) && !key.starts_with(&ours)).cloned().collect()
}

impl RingRow {
    fn decode(bytes: &[u8]) -> Result<Self, BadState> {
        let mut r = reader(bytes)?;
        let version = r.varint()?;
        let parts = small(&mut r, "parts of a ring")?;
        Ok(Self { version, parts, hash: r.array()? })
    }
}

impl State {
    /// From all rows of the group.
    pub(crate) fn of_rows(rows: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Self, BadState> {
        let mut state = Self::default();
        for (key, value) in rows {
            match key.get(1..).and_then(<[u8]>::split_first) {
                Some((b's', [])) => state.settings = Some(Settings::decode(value)?),
                Some((b'm', node)) => {
                    state.members.insert(NodeId(id(node)?), Member::decode(value)?);
                }
                Some((b'd', device)) => {
                    state.devices.insert(DeviceId(id(device)?), Device::decode(value)?);
                }
                Some((b'g', group)) => {
                    let group = group.try_into().map_err(|_| BadState::Field("number of a group"))?;
                    state.groups.insert(u32::from_be_bytes(group), seating::decode(value)?);
                }
                Some((&children::TAG, rest)) => children::take(&mut state, rest, value)?,
                Some((b'R', policy)) => {
                    let policy = policy.try_into().map_err(|_| BadState::Field("policy of a ring"))?;
                    let policy = u16::from_be_bytes(policy);
                    state.set_builder(builder_of(rows, policy, &RingRow::decode(value)?)?);
                }
                Some((&policies::TAG, rest)) => state.policies.take(rest, value)?,
                Some((b'r', _)) => {}
                Some((&people::TAG, rest)) => state.people.take(rest, value)?,
                _ => return Err(BadState::Field("key")),
            }
        }
        let over = &state.over;
        state.groups.retain(|group, _| !over.contains(group));
        Ok(state)
    }

    /// Whether clients can be served: there is a ring, there are index groups, and users, and a key for their tokens.
    pub(crate) fn is_usable(&self) -> bool {
        self.builder.is_some()
            && !self.groups.is_empty()
            && self.people.founded
            && !self.people.keys.0.is_empty()
    }

    /// Whether a node has a part in the cluster: it stays, or a disk of it is not out yet.
    pub(crate) fn takes_part(&self, node: NodeId) -> bool {
        let stays = self.members.get(&node).is_some_and(|member| !member.leaving);
        stays || self.devices.values().any(|device| device.node == node && device.wanted != Wanted::Out)
    }

    /// Whether a disk is to hold its share, at a node that stays.
    pub(crate) fn stays(&self, device: DeviceId) -> bool {
        let known = self.devices.get(&device).filter(|known| known.wanted == Wanted::Share);
        known.is_some_and(|known| self.members.get(&known.node).is_some_and(|node| !node.leaving))
    }

    /// Whether something new may be given to a disk: it stays, and serves as far as its node says.
    pub(crate) fn may_take(&self, device: DeviceId) -> bool {
        self.stays(device) && self.devices.get(&device).is_some_and(|known| !known.away)
    }

    /// Whether a node was a member and takes part no more.
    pub(crate) fn has_left(&self, node: NodeId) -> bool {
        self.members.contains_key(&node) && !self.takes_part(node)
    }

    /// The builder of a policy's ring.
    pub(crate) fn builder_of(&self, policy: u16) -> Option<&Builder> {
        if policy == 0 { self.builder.as_ref() } else { self.other_builders.get(&policy) }
    }

    /// Takes another builder for its policy.
    pub(crate) fn set_builder(&mut self, builder: Builder) {
        match builder.settings().policy {
            0 => self.builder = Some(builder),
            policy => drop(self.other_builders.insert(policy, builder)),
        }
    }

    /// The device of each number in a policy's ring.
    pub(crate) fn ring_devices(&self, policy: u16) -> BTreeMap<u32, DeviceId> {
        let named = |label: &str| {
            let mut bytes = [0; 16];
            hex::decode_to_slice(label, &mut bytes).ok().map(|()| DeviceId(bytes))
        };
        let members = self.builder_of(policy).into_iter().flat_map(Builder::members);
        members.filter_map(|member| Some((member.device.id, named(&member.label)?))).collect()
    }
}

fn id(bytes: &[u8]) -> Result<[u8; 16], BadState> {
    bytes.try_into().map_err(|_| BadState::Field("identity in a key"))
}

fn builder_of(
    rows: &BTreeMap<Vec<u8>, Vec<u8>>,
    policy: u16,
    present: &RingRow,
) -> Result<Builder, BadState> {
    let mut bytes = Vec::new();
    for part in 0..present.parts {
        let part = rows.get(&ring_part_key(policy, present.version, part));
        bytes.extend_from_slice(part.ok_or(BadState::Field("part of a ring is missing"))?);
    }
    if *blake3::hash(&bytes).as_bytes() != present.hash {
        return Err(BadState::Field("hash of a ring"));
    }
    let builder = decode_builder(&bytes).map_err(|_| BadState::Field("ring"))?;
    if builder.settings().policy == policy { Ok(builder) } else { Err(BadState::Field("policy of a ring")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quarry_ring::{Overload, Replicas};

    fn rows(pairs: impl IntoIterator<Item = KeyValue>) -> BTreeMap<Vec<u8>, Vec<u8>> {
        pairs.into_iter().collect()
    }

    fn sample() -> (Settings, Member, Device) {
        let settings = Settings { replicas: 3, part_power: 12, min_part_hours: 1, index_groups: 8 };
        let address = "10.0.0.1:6100".parse().unwrap();
        let member = Member { number: 300, address, since: 5, leaving: true };
        let (region, zone, class, wanted) = (1, 2, Class::Ssd, Wanted::Empty);
        let device = Device { node: NodeId([7; 16]), bytes: 300, region, zone, class, wanted, away: false };
        (settings, member, device)
    }

    fn builder() -> Builder {
        let settings = quarry_ring::Settings {
            part_power: 14,
            replicas: Replicas::whole(2),
            min_part_hours: 1,
            overload: Overload::DEFAULT,
            policy: 0,
            class: None,
        };
        let mut builder = Builder::new(settings, 1).unwrap();
        for label in 0..3_u8 {
            let (node, class) = (label.into(), Class::Hdd);
            let device = quarry_ring::Device { id: 0, region: 0, zone: 0, node, weight: 10, class };
            builder.add(&device, &hex::encode([label; 16]), 1).unwrap();
        }
        builder.rebalance(1).unwrap();
        builder
    }

    #[test]
    fn rows_have_these_bytes_for_ever() {
        let (settings, member, device) = sample();
        assert_eq!(hex::encode(settings.encode()), "010c030108");
        assert_eq!(hex::encode(member.encode()), format!("0101ac0205{}", hex::encode("10.0.0.1:6100")));
        assert_eq!(hex::encode(device.encode()), format!("010101{}ac020102", "07".repeat(16)));
        let away = Device { away: true, ..device };
        assert_eq!(hex::encode(away.encode()), format!("{}01", hex::encode(device.encode())));
        assert_eq!(Device::decode(&away.encode()), Ok(away));
        assert!(Device::decode(&[device.encode(), vec![2]].concat()).is_err());
        assert_eq!(hex::encode(member_key(NodeId([1; 16]))), format!("6b6d{}", "01".repeat(16)));
        assert_eq!(hex::encode(ring_part_key(0, 2, 3)), "6b72000000000000000000020003");
    }

    #[test]
    fn a_state_comes_back_from_its_rows() {
        let (settings, member, device) = sample();
        let (parts, last) = ring_rows(&builder());
        assert!(parts.len() > 1);
        let all = rows(
            [
                (settings_key(), settings.encode()),
                (member_key(NodeId([7; 16])), member.encode()),
                (device_key(DeviceId([8; 16])), device.encode()),
                children::row(1025, 1),
                last,
            ]
            .into_iter()
            .chain(parts),
        );
        let state = State::of_rows(&all).unwrap();
        assert_eq!(state.settings, Some(settings));
        assert_eq!(state.members, [(NodeId([7; 16]), member)].into());
        assert_eq!(state.devices, [(DeviceId([8; 16]), device)].into());
        assert_eq!(state.ring_devices(0).get(&2), Some(&DeviceId([2; 16])));
        assert_eq!(state.children, [(1025, 1)].into());
        assert_eq!(state.builder, Some(builder()));
        assert_eq!(stale_parts(&all, 0), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn a_ring_that_is_not_whole_is_no_ring() {
        let (parts, last) = ring_rows(&builder());
        let all = rows(parts.into_iter().chain([last]));
        for key in all.keys().filter(|key| key[1] == b'r') {
            let mut fewer = all.clone();
            fewer.remove(key);
            assert!(State::of_rows(&fewer).is_err());
            let mut other = all.clone();
            other.get_mut(key).unwrap()[0] ^= 1;
            assert!(State::of_rows(&other).is_err());
        }
    }

    #[test]
    fn parts_of_other_rings_are_stale() {
        let (parts, last) = ring_rows(&builder());
        let mut all = rows(parts.into_iter().chain([last]));
        all.insert(ring_part_key(0, 99, 0), vec![1]);
        assert_eq!(stale_parts(&all, 0), vec![ring_part_key(0, 99, 0)]);
    }

    #[test]
    fn what_is_not_understood_stops() {
        let (settings, ..) = sample();
        let mut value = settings.encode();
        value[0] = 2;
        assert_eq!(State::of_rows(&rows([(settings_key(), value)])), Err(BadState::Version(2)));
        assert!(State::of_rows(&rows([(b"kz".to_vec(), vec![1])])).is_err());
        assert!(State::of_rows(&rows([(settings_key(), vec![1])])).is_err());
    }
}
