//! The list of targets.

mod catalog;
mod config;
mod images;
mod log;
mod nbd;
mod pure;
mod rings;
mod swift;
mod wire;

use super::Target;

/// Every target.
pub const TARGETS: &[Target] = &[
    log::BATCH,
    log::RECORD,
    log::SEGMENT_HEADER,
    log::FOOTER,
    log::SUPERBLOCK,
    catalog::OBJECT_META,
    catalog::VALUES,
    pure::RING,
    pure::EXTENT,
    rings::BUILDER,
    rings::SWIFT_RING,
    wire::REQUEST,
    wire::RESPONSE,
    nbd::CLIENT,
    swift::REQUEST,
    swift::RANGE,
    swift::ACL,
    swift::MANIFEST,
    swift::DATE,
    config::CONFIG,
    config::AUTH,
    images::QCOW2,
    images::STREAM,
];

/// No checksum to mend.
fn as_is(_: &mut Vec<u8>) {}

/// CRC-32 of parts in a row.
fn crc(parts: &[&[u8]]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    parts.iter().for_each(|part| crc.update(part));
    crc.finalize()
}

/// A little-endian u32 at a place, if there is one.
fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    let field = bytes.get(at..)?.first_chunk::<4>()?;
    usize::try_from(u32::from_le_bytes(*field)).ok()
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(field) = bytes.get_mut(at..at + 4) {
        field.copy_from_slice(&value.to_le_bytes());
    }
}
