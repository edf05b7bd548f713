//! The ring file: FORMAT.md beside this crate's manifest is its description.
//!
//! Invariant: `decode(encode(ring)) == ring`, and every other input is a typed error: no byte can change unseen.
//! Invariant: nothing is allocated by a count before the length of the input has confirmed it.

use crate::{Class, Device, InvalidRing, Replicas, Ring};

/// Version of the file format that [`encode`] writes.
pub const FORMAT_VERSION: u16 = 1;

const MAGIC: [u8; 8] = *b"QRYRING\n";
const HEADER_BYTES: usize = 8 + 2 + 1 + 1 + 4 + 8 + 4 + 4;
const DEVICE_BYTES: usize = 4 + 4 + 2 + 2 + 4 + 1 + 3;
const CHECKSUM_BYTES: usize = 32;
const _: () = assert!(HEADER_BYTES == 32 && DEVICE_BYTES == 20);

/// Why bytes are not a ring file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Too short, or too long, for what its header announces.
    #[error("ring file has {found} bytes, wanted {wanted}")]
    Length {
        /// Wanted, as far as the bytes tell.
        wanted: usize,
        /// Given.
        found: usize,
    },
    /// Something else than a ring.
    #[error("not a ring file")]
    Magic,
    /// Written by a newer Quarry.
    #[error("ring file format {0} is unknown; this program reads format {FORMAT_VERSION}")]
    Version(u16),
    /// Damaged.
    #[error("ring file is damaged: its checksum differs")]
    Checksum,
    /// A device class of a newer Quarry.
    #[error("device class {0} is unknown")]
    Class(u8),
    /// A reserved byte is not zero.
    #[error("a reserved byte is not zero")]
    Reserved,
    /// Undamaged and yet no ring.
    #[error(transparent)]
    Invalid(#[from] InvalidRing),
}

/// The bytes of a ring file.
#[must_use]
pub fn encode(ring: &Ring) -> Vec<u8> {
    let entries = ring.rows().iter().map(Vec::len).sum::<usize>();
    let mut out =
        Vec::with_capacity(HEADER_BYTES + ring.devices().len() * DEVICE_BYTES + entries * 2 + CHECKSUM_BYTES);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    out.extend_from_slice(&[ring.part_power(), 0]);
    out.extend_from_slice(&ring.replicas().hundredths().to_le_bytes());
    out.extend_from_slice(&ring.version().to_le_bytes());
    let devices = u32::try_from(ring.devices().len()).expect("at most MAX_DEVICES");
    out.extend_from_slice(&devices.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    for device in ring.devices() {
        put_device(&mut out, device);
        out.extend_from_slice(&[0; 3]);
    }
    for entry in ring.rows().iter().flatten() {
        out.extend_from_slice(&entry.to_le_bytes());
    }
    let checksum = blake3::hash(&out);
    out.extend_from_slice(checksum.as_bytes());
    out
}

/// The ring of a file's bytes.
pub fn decode(bytes: &[u8]) -> Result<Ring, DecodeError> {
    let too_short = DecodeError::Length { wanted: HEADER_BYTES + CHECKSUM_BYTES, found: bytes.len() };
    let (body, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(too_short)?;
    let (header, rest) = body.split_first_chunk::<HEADER_BYTES>().ok_or(too_short)?;
    let mut header = Fields(header);
    if header.take() != MAGIC {
        return Err(DecodeError::Magic);
    }
    // Before the checksum: a newer format may have another one.
    let version = u16::from_le_bytes(header.take());
    if version != FORMAT_VERSION {
        return Err(DecodeError::Version(version));
    }
    if blake3::hash(body) != *checksum {
        return Err(DecodeError::Checksum);
    }
    let [part_power, reserved] = header.take();
    let replicas = Replicas::from_hundredths(u32::from_le_bytes(header.take()));
    let ring_version = u64::from_le_bytes(header.take());
    let device_count = u32::from_le_bytes(header.take()) as usize;
    if reserved != 0 || header.take() != [0; 4] {
        return Err(DecodeError::Reserved);
    }
    if part_power > crate::MAX_PART_POWER {
        return Err(InvalidRing::PartPower(part_power).into());
    }
    if device_count > crate::MAX_DEVICES {
        return Err(InvalidRing::TooManyDevices(device_count).into());
    }
    if replicas > crate::MAX_REPLICAS {
        return Err(InvalidRing::Replicas(replicas.hundredths()).into());
    }
    let lengths: Vec<_> = (0..replicas.rows()).map(|row| replicas.row_length(row, part_power)).collect();
    let wanted = device_count * DEVICE_BYTES + lengths.iter().sum::<usize>() * 2;
    if rest.len() != wanted {
        let around = HEADER_BYTES + CHECKSUM_BYTES;
        return Err(DecodeError::Length { wanted: wanted + around, found: bytes.len() });
    }
    let (device_bytes, mut entries) = rest.split_at(device_count * DEVICE_BYTES);
    let devices = device_bytes
        .chunks_exact(DEVICE_BYTES)
        .map(|device| decode_device(Fields(device)))
        .collect::<Result<_, _>>()?;
    let mut rows = Vec::with_capacity(lengths.len());
    for length in lengths {
        let (row, rest) = entries.split_at(length * 2);
        entries = rest;
        rows.push(row.chunks_exact(2).map(|entry| u16::from_le_bytes([entry[0], entry[1]])).collect());
    }
    Ok(Ring::new(ring_version, part_power, replicas, devices, rows)?)
}

fn decode_device(mut fields: Fields<'_>) -> Result<Device, DecodeError> {
    let id = u32::from_le_bytes(fields.take());
    let node = u32::from_le_bytes(fields.take());
    let region = u16::from_le_bytes(fields.take());
    let zone = u16::from_le_bytes(fields.take());
    let weight = u32::from_le_bytes(fields.take());
    let [class] = fields.take();
    if fields.take() != [0; 3] {
        return Err(DecodeError::Reserved);
    }
    let class = Class::from_number(class).ok_or(DecodeError::Class(class))?;
    Ok(Device { id, region, zone, node, weight, class })
}

/// What both files begin a device with: all of it up to its class.
pub(crate) fn put_device(out: &mut Vec<u8>, device: &Device) {
    out.extend_from_slice(&device.id.to_le_bytes());
    out.extend_from_slice(&device.node.to_le_bytes());
    out.extend_from_slice(&device.region.to_le_bytes());
    out.extend_from_slice(&device.zone.to_le_bytes());
    out.extend_from_slice(&device.weight.to_le_bytes());
    out.push(device.class.number());
}

/// The fields of a structure whose length has been checked.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl Fields<'_> {
    pub(crate) fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("lengths are checked before fields are taken");
        self.0 = rest;
        *field
    }
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
