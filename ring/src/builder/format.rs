//! The builder file: FORMAT.md beside this crate's manifest is its description.
//!
//! Invariant: `decode(encode(builder)) == builder`, and every other input is a typed error: no byte can change unseen.
//! Invariant: nothing is allocated by a count before the length of the input has confirmed it.

use super::{Builder, Change, Event, InvalidBuilder, MAX_HISTORY, Member, Overload, Parts, Settings};
use crate::format::{Fields, put_device};
use crate::{Class, Device, InvalidRing, MAX_DEVICES, MAX_PART_POWER, MAX_REPLICAS, Replicas};

/// Version of the file format that [`encode_builder`] writes.
pub const BUILDER_FORMAT_VERSION: u16 = 1;

const MAGIC: [u8; 8] = *b"QRYBLDR\n";
const HEADER_BYTES: usize = 8 + 2 + 1 + 1 + 4 + 8 + 4 + 4 + 4 + 4 + 2 + 2 + 4 + 4 + 4;
const DEVICE_BYTES: usize = 4 + 4 + 2 + 2 + 4 + 1 + 1 + 1 + 1;
const EVENT_BYTES: usize = 8 + 4 + 1 + 3 + 4 * 4;
const CHECKSUM_BYTES: usize = 32;
const _: () = assert!(HEADER_BYTES == 56 && DEVICE_BYTES == 20 && EVENT_BYTES == 32);

/// The class byte of a policy that takes every class.
const ANY_CLASS: u8 = 255;
/// The flag of a device that is to go.
const REMOVED: u8 = 1;

/// Why bytes are not a builder file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BuilderDecodeError {
    /// Too short, or too long, for what its header announces.
    #[error("builder file has {found} bytes, wanted {wanted}")]
    Length {
        /// Wanted, as far as the bytes tell.
        wanted: usize,
        /// Given.
        found: usize,
    },
    /// Something else than a builder.
    #[error("not a builder file")]
    Magic,
    /// Written by a newer Quarry.
    #[error("builder file format {0} is unknown; this program reads format {BUILDER_FORMAT_VERSION}")]
    Version(u16),
    /// Damaged.
    #[error("builder file is damaged: its checksum differs")]
    Checksum,
    /// A device class of a newer Quarry.
    #[error("device class {0} is unknown")]
    Class(u8),
    /// An event of a newer Quarry.
    #[error("event {0} is unknown")]
    Event(u8),
    /// A reserved bit is not zero.
    #[error("a reserved byte is not zero")]
    Reserved,
    /// A label is no UTF-8, or the labels are longer or shorter than announced.
    #[error("the labels of the devices are damaged")]
    Labels,
    /// Undamaged and yet no builder.
    #[error(transparent)]
    Invalid(#[from] InvalidBuilder),
}

impl From<InvalidRing> for BuilderDecodeError {
    fn from(error: InvalidRing) -> Self {
        Self::Invalid(error.into())
    }
}

/// The bytes of a builder file.
#[must_use]
pub fn encode_builder(builder: &Builder) -> Vec<u8> {
    let parts = builder.parts();
    let settings = &parts.settings;
    let count = |n: usize| u32::try_from(n).expect("limits of a builder").to_le_bytes();
    let labels: usize = parts.members.iter().map(|member| member.label.len()).sum();
    let mut out = Vec::with_capacity(length(parts, labels));
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&BUILDER_FORMAT_VERSION.to_le_bytes());
    out.extend_from_slice(&[settings.part_power, settings.class.map_or(ANY_CLASS, Class::number)]);
    out.extend_from_slice(&settings.replicas.hundredths().to_le_bytes());
    out.extend_from_slice(&parts.version.to_le_bytes());
    out.extend_from_slice(&parts.next_id.to_le_bytes());
    out.extend_from_slice(&count(parts.members.len()));
    out.extend_from_slice(&parts.built.map_or(0, Replicas::hundredths).to_le_bytes());
    out.extend_from_slice(&settings.overload.hundredths().to_le_bytes());
    out.extend_from_slice(&settings.min_part_hours.to_le_bytes());
    out.extend_from_slice(&settings.policy.to_le_bytes());
    out.extend_from_slice(&count(parts.history.len()));
    out.extend_from_slice(&count(labels));
    out.extend_from_slice(&[0; 4]);
    for member in &parts.members {
        put_device(&mut out, &member.device);
        let label = u8::try_from(member.label.len()).expect("a short label");
        out.extend_from_slice(&[u8::from(member.removed) * REMOVED, label, 0]);
    }
    for member in &parts.members {
        out.extend_from_slice(member.label.as_bytes());
    }
    for entry in parts.rows.iter().flatten() {
        out.extend_from_slice(&entry.to_le_bytes());
    }
    for hour in &parts.last_moved {
        out.extend_from_slice(&hour.to_le_bytes());
    }
    for event in &parts.history {
        put_event(&mut out, event);
    }
    let checksum = blake3::hash(&out);
    out.extend_from_slice(checksum.as_bytes());
    out
}

fn length(parts: &Parts, labels: usize) -> usize {
    let entries: usize = parts.rows.iter().map(Vec::len).sum();
    let table = 2 * entries + 4 * parts.last_moved.len();
    let lists = DEVICE_BYTES * parts.members.len() + EVENT_BYTES * parts.history.len();
    HEADER_BYTES + lists + labels + table + CHECKSUM_BYTES
}

/// The header, taken apart.
struct Header {
    settings: Settings,
    version: u64,
    next_id: u32,
    devices: usize,
    built: Option<Replicas>,
    events: usize,
    labels: usize,
}

/// The builder of a file's bytes.
pub fn decode_builder(bytes: &[u8]) -> Result<Builder, BuilderDecodeError> {
    let too_short = BuilderDecodeError::Length { wanted: HEADER_BYTES + CHECKSUM_BYTES, found: bytes.len() };
    let (body, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(too_short)?;
    let (header, rest) = body.split_first_chunk::<HEADER_BYTES>().ok_or(too_short)?;
    let mut header = Fields(header);
    if header.take() != MAGIC {
        return Err(BuilderDecodeError::Magic);
    }
    // Before the checksum: a newer format may have another one.
    let version = u16::from_le_bytes(header.take());
    if version != BUILDER_FORMAT_VERSION {
        return Err(BuilderDecodeError::Version(version));
    }
    if blake3::hash(body) != *checksum {
        return Err(BuilderDecodeError::Checksum);
    }
    let header = decode_header(header)?;
    let replicas = header.built.unwrap_or(Replicas::whole(0));
    let lengths: Vec<_> =
        (0..replicas.rows()).map(|row| replicas.row_length(row, header.settings.part_power)).collect();
    let partitions = 1_usize << header.settings.part_power;
    let table = 2 * lengths.iter().sum::<usize>() + 4 * partitions;
    let lists = DEVICE_BYTES * header.devices + header.labels + EVENT_BYTES * header.events;
    if rest.len() != lists + table {
        let wanted = HEADER_BYTES + lists + table + CHECKSUM_BYTES;
        return Err(BuilderDecodeError::Length { wanted, found: bytes.len() });
    }
    let (devices, rest) = rest.split_at(DEVICE_BYTES * header.devices);
    let (labels, mut rest) = rest.split_at(header.labels);
    let members = decode_members(devices, labels)?;
    let mut rows = Vec::with_capacity(lengths.len());
    for length in lengths {
        let (row, after) = rest.split_at(length * 2);
        rest = after;
        rows.push(row.chunks_exact(2).map(|entry| u16::from_le_bytes([entry[0], entry[1]])).collect());
    }
    let (hours, events) = rest.split_at(4 * partitions);
    let last_moved = hours.chunks_exact(4).map(|hour| u32::from_le_bytes(Fields(hour).take())).collect();
    let history = events.chunks_exact(EVENT_BYTES).map(|event| decode_event(Fields(event)));
    let history = history.collect::<Result<_, _>>()?;
    let Header { settings, version, next_id, built, .. } = header;
    Ok(Builder::from_parts(Parts { settings, version, next_id, members, built, rows, last_moved, history })?)
}

/// The fields after the format's version, each within its limits.
fn decode_header(mut header: Fields<'_>) -> Result<Header, BuilderDecodeError> {
    let [part_power, class] = header.take();
    let replicas = Replicas::from_hundredths(u32::from_le_bytes(header.take()));
    let version = u64::from_le_bytes(header.take());
    let next_id = u32::from_le_bytes(header.take());
    let devices = u32::from_le_bytes(header.take()) as usize;
    let built = Replicas::from_hundredths(u32::from_le_bytes(header.take()));
    let overload = Overload::from_hundredths(u32::from_le_bytes(header.take()));
    let min_part_hours = u16::from_le_bytes(header.take());
    let policy = u16::from_le_bytes(header.take());
    let events = u32::from_le_bytes(header.take()) as usize;
    let labels = u32::from_le_bytes(header.take()) as usize;
    if header.take() != [0; 4] {
        return Err(BuilderDecodeError::Reserved);
    }
    let class = match class {
        ANY_CLASS => None,
        number => Some(Class::from_number(number).ok_or(BuilderDecodeError::Class(number))?),
    };
    if part_power > MAX_PART_POWER {
        return Err(InvalidRing::PartPower(part_power).into());
    }
    if built > MAX_REPLICAS {
        return Err(InvalidRing::Replicas(built.hundredths()).into());
    }
    if devices > MAX_DEVICES {
        return Err(InvalidRing::TooManyDevices(devices).into());
    }
    if events > MAX_HISTORY {
        return Err(InvalidBuilder::TooManyEvents(events).into());
    }
    let settings = Settings { part_power, replicas, min_part_hours, overload, policy, class };
    let built = Some(built).filter(|built| built.hundredths() > 0);
    Ok(Header { settings, version, next_id, devices, built, events, labels })
}

fn decode_members(devices: &[u8], mut labels: &[u8]) -> Result<Vec<Member>, BuilderDecodeError> {
    let mut members = Vec::with_capacity(devices.len() / DEVICE_BYTES);
    for device in devices.chunks_exact(DEVICE_BYTES) {
        let mut fields = Fields(device);
        let id = u32::from_le_bytes(fields.take());
        let node = u32::from_le_bytes(fields.take());
        let region = u16::from_le_bytes(fields.take());
        let zone = u16::from_le_bytes(fields.take());
        let weight = u32::from_le_bytes(fields.take());
        let [class, flags, label, reserved] = fields.take();
        let class = Class::from_number(class).ok_or(BuilderDecodeError::Class(class))?;
        if flags & !REMOVED != 0 || reserved != 0 {
            return Err(BuilderDecodeError::Reserved);
        }
        let (text, rest) = labels.split_at_checked(usize::from(label)).ok_or(BuilderDecodeError::Labels)?;
        labels = rest;
        let label = std::str::from_utf8(text).map_err(|_| BuilderDecodeError::Labels)?.to_owned();
        let device = Device { id, region, zone, node, weight, class };
        members.push(Member { device, label, removed: flags & REMOVED != 0 });
    }
    if labels.is_empty() { Ok(members) } else { Err(BuilderDecodeError::Labels) }
}

fn put_event(out: &mut Vec<u8>, event: &Event) {
    let (kind, [one, two, three]) = match event.change {
        Change::Created => (0, [0; 3]),
        Change::Imported => (1, [0; 3]),
        Change::Added { device, weight } => (2, [device, weight, 0]),
        Change::Removed { device } => (3, [device, 0, 0]),
        Change::Weighted { device, from, to } => (4, [device, from, to]),
        Change::Replicated { from, to } => (5, [from.hundredths(), to.hundredths(), 0]),
        Change::Overloaded { from, to } => (6, [from.hundredths(), to.hundredths(), 0]),
        Change::MinPartHours { from, to } => (7, [from.into(), to.into(), 0]),
        Change::PretendedMinPartHours => (8, [0; 3]),
        Change::Rebalanced { moved, placed } => (9, [moved, placed, 0]),
    };
    out.extend_from_slice(&event.version.to_le_bytes());
    out.extend_from_slice(&event.hour.to_le_bytes());
    out.extend_from_slice(&[kind, 0, 0, 0]);
    for figure in [one, two, three, 0_u32] {
        out.extend_from_slice(&figure.to_le_bytes());
    }
}

fn decode_event(mut fields: Fields<'_>) -> Result<Event, BuilderDecodeError> {
    let version = u64::from_le_bytes(fields.take());
    let hour = u32::from_le_bytes(fields.take());
    let [kind, reserved @ ..]: [u8; 4] = fields.take();
    let figures = [(); 4].map(|()| u32::from_le_bytes(fields.take()));
    let [one, two, three, _] = figures;
    let (replicas, overload) = (Replicas::from_hundredths, Overload::from_hundredths);
    let hours = |figure: u32| u16::try_from(figure).map_err(|_| BuilderDecodeError::Reserved);
    let (used, change) = match kind {
        0 => (0, Change::Created),
        1 => (0, Change::Imported),
        2 => (2, Change::Added { device: one, weight: two }),
        3 => (1, Change::Removed { device: one }),
        4 => (3, Change::Weighted { device: one, from: two, to: three }),
        5 => (2, Change::Replicated { from: replicas(one), to: replicas(two) }),
        6 => (2, Change::Overloaded { from: overload(one), to: overload(two) }),
        7 => (2, Change::MinPartHours { from: hours(one)?, to: hours(two)? }),
        8 => (0, Change::PretendedMinPartHours),
        9 => (2, Change::Rebalanced { moved: one, placed: two }),
        unknown => return Err(BuilderDecodeError::Event(unknown)),
    };
    if reserved != [0; 3] || figures.iter().skip(used).any(|&figure| figure != 0) {
        return Err(BuilderDecodeError::Reserved);
    }
    Ok(Event { version, hour, change })
}
