//! Swift's ring file, format version 1: gzip over a magic, a JSON header and rows of 16-bit device ids.

use std::io::Read;

use flate2::read::GzDecoder;
use serde::Deserialize;

use super::{Foreign, Found, ImportError, part_power};

const MAGIC: &[u8; 4] = b"R1NG";
/// Longest header: 65,535 devices of a kilobyte.
const MAX_HEADER: u64 = 64 << 20;
/// Most entries of the table: a few bytes of gzip may stand for very many.
const MAX_ENTRIES: usize = 1 << 27;

/// Why bytes are no ring file of Swift that is understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GzipError {
    /// Damaged or cut.
    #[error("it is damaged or cut")]
    Damaged,
    /// Not a ring, or one of before 2012.
    #[error("no ring in it")]
    Magic,
    /// A newer format.
    #[error("format version {0} is not read; write it with --format-version 1, or import the builder file")]
    Version(u16),
    /// The header is no JSON, or lacks something.
    #[error("its header is damaged")]
    Header,
    /// Ids of more than 16 bits.
    #[error("device ids of {0} bytes are not read")]
    WideIds(u64),
    /// A row that is neither whole nor the last.
    #[error("row {0} has the wrong length")]
    Row(usize),
}

#[derive(Deserialize)]
struct Header {
    devs: Vec<Option<HeaderDevice>>,
    part_shift: i64,
    replica_count: usize,
    #[serde(default)]
    byteorder: Option<String>,
    #[serde(default)]
    version: Option<u64>,
    #[serde(default)]
    dev_id_bytes: Option<u64>,
}

#[derive(Deserialize)]
struct HeaderDevice {
    #[serde(default = "first_region")]
    region: i64,
    zone: i64,
    weight: f64,
    #[serde(default)]
    ip: String,
    #[serde(default)]
    port: u32,
    #[serde(default)]
    device: String,
}

/// Very old files know no regions.
fn first_region() -> i64 {
    1
}

pub(super) fn read(bytes: &[u8]) -> Result<Found, ImportError> {
    let mut input = GzDecoder::new(bytes);
    let [m0, m1, m2, m3, v0, v1] = exact(&mut input)?;
    if [m0, m1, m2, m3] != *MAGIC {
        return Err(GzipError::Magic.into());
    }
    let version = u16::from_be_bytes([v0, v1]);
    if version != 1 {
        return Err(GzipError::Version(version).into());
    }
    let length = u64::from(u32::from_be_bytes(exact(&mut input)?));
    if length > MAX_HEADER {
        return Err(GzipError::Header.into());
    }
    let mut json = Vec::new();
    (&mut input).take(length).read_to_end(&mut json).map_err(|_| GzipError::Damaged)?;
    let header: Header = serde_json::from_slice(&json).map_err(|_| GzipError::Header)?;
    if let Some(wide) = header.dev_id_bytes.filter(|&bytes| bytes != 2) {
        return Err(GzipError::WideIds(wide).into());
    }
    let part_power = part_power(32_i64.saturating_sub(header.part_shift))?;
    if header.replica_count > MAX_ENTRIES >> part_power {
        return Err(ImportError::Field("replica_count"));
    }
    let big = header.byteorder.as_deref() == Some("big");
    let rows = rows(&mut input, header.replica_count, 1 << part_power, big)?;
    let device = |device: HeaderDevice| Foreign {
        region: device.region,
        zone: device.zone,
        weight: device.weight,
        label: format!("{}:{}/{}", device.ip, device.port, device.device),
        ip: device.ip,
        removed: false,
    };
    Ok(Found {
        part_power,
        replicas: None,
        min_part_hours: 1,
        overload: 0.0,
        version: header.version.unwrap_or(1),
        devices: header.devs.into_iter().map(|found| found.map(device)).collect(),
        rows,
        last_moved: Vec::new(),
    })
}

fn exact<const N: usize>(input: &mut impl Read) -> Result<[u8; N], GzipError> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes).map_err(|_| GzipError::Damaged)?;
    Ok(bytes)
}

/// The rows; the last may be short. Reads to the end, where gzip's own checksum is.
fn rows(
    input: &mut impl Read,
    count: usize,
    partitions: usize,
    big: bool,
) -> Result<Vec<Vec<u16>>, GzipError> {
    let mut rows = Vec::new();
    for row in 0..count {
        let mut bytes = Vec::new();
        input.take(2 * partitions as u64).read_to_end(&mut bytes).map_err(|_| GzipError::Damaged)?;
        let whole = bytes.len() == 2 * partitions;
        if !bytes.len().is_multiple_of(2) || !whole && row + 1 < count {
            return Err(GzipError::Row(row));
        }
        let id = |bytes: &[u8]| {
            let bytes = [bytes[0], bytes[1]];
            if big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
        };
        rows.push(bytes.chunks_exact(2).map(id).collect());
    }
    let mut rest = [0; 1];
    match input.read(&mut rest) {
        Ok(0) => Ok(rows),
        Ok(_) => Err(GzipError::Row(count)),
        Err(_) => Err(GzipError::Damaged),
    }
}
