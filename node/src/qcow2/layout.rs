//! What the numbers in an image mean.
//!
//! Invariant: what an image says of itself is believed nowhere: no number of it makes us allocate more than a cluster, read beyond the image, or
//! write beyond its size.
//! Invariant: an image that needs another file (a backing file, a data file), a key, or a feature that is not known is refused: it would be
//! read as something else.

use bytes::Bytes;
use flate2::{Decompress, FlushDecompress, Status};

const MAGIC: &[u8] = b"QFI\xfb";
/// Bytes of the longest header that is looked at.
pub const HEADER: usize = 112;
/// Sizes of clusters, as powers of two.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Was not closed: reference counts are old, which a reader does not need.
const DIRTY: u64 = 1;
/// Where a table's entry says that a cluster is.
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;

/// Why an image is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the image cannot be read: {0}")]
pub struct BadImage(pub(super) &'static str);

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// Of the disk that the image is of.
    pub(super) bytes: u64,
    cluster_bits: u32,
    tables: u64,
    /// Entries of the first table.
    entries: u64,
}

/// What is known of a cluster of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cluster {
    Zeroes,
    /// It lies there as it is.
    Plain(u64),
    /// It lies there, compressed, in at most so many bytes.
    Compressed(u64, u64),
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], BadImage> {
    let found = bytes.get(at..at + N).and_then(|part| part.try_into().ok());
    found.ok_or(BadImage("it ends too early"))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, BadImage> {
    number(bytes, at).map(u32::from_be_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, BadImage> {
    number(bytes, at).map(u64::from_be_bytes)
}

impl Layout {
    /// Of the first bytes of an image.
    pub(super) fn parse(header: &[u8]) -> Result<Self, BadImage> {
        if header.get(..4) != Some(MAGIC) {
            return Err(BadImage("it is no qcow2"));
        }
        let version = u32_at(header, 4)?;
        let features = match version {
            2 => 0,
            3 => u64_at(header, 72)?,
            _ => return Err(BadImage("its version is not known")),
        };
        if u64_at(header, 8)? != 0 {
            return Err(BadImage("it needs another image"));
        }
        if u32_at(header, 32)? != 0 {
            return Err(BadImage("it is encrypted"));
        }
        if features & !DIRTY != 0 {
            return Err(BadImage("it has features that are not known here"));
        }
        let (cluster_bits, bytes) = (u32_at(header, 20)?, u64_at(header, 24)?);
        let (entries, tables) = (u64::from(u32_at(header, 36)?), u64_at(header, 40)?);
        if !CLUSTER_BITS.contains(&cluster_bits) || bytes > 1 << 60 {
            return Err(BadImage("its header is damaged"));
        }
        let layout = Self { bytes, cluster_bits, tables, entries };
        if layout.second_tables() > entries {
            return Err(BadImage("its first table is too short"));
        }
        Ok(layout)
    }

    /// Bytes of a cluster.
    pub(super) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Clusters of which a second table tells.
    pub(super) fn per_table(&self) -> u64 {
        self.cluster() / 8
    }

    /// Clusters of the disk.
    pub(super) fn clusters(&self) -> u64 {
        self.bytes.div_ceil(self.cluster())
    }

    /// Second tables that the disk needs.
    pub(super) fn second_tables(&self) -> u64 {
        self.clusters().div_ceil(self.per_table())
    }

    /// Where the first table tells of a second one.
    pub(super) fn place_of(&self, nth: u64) -> Result<u64, BadImage> {
        let at = nth.checked_mul(8).and_then(|at| self.tables.checked_add(at));
        at.filter(|_| nth < self.entries).ok_or(BadImage("its tables are damaged"))
    }

    /// Where an entry of the first table says that the second one is.
    pub(super) fn table(entry: u64) -> Option<u64> {
        Some(entry & PLACE).filter(|place| *place != 0)
    }

    /// What a second table says of a cluster.
    pub(super) fn look(&self, table: &[u8], cluster: u64) -> Result<Cluster, BadImage> {
        let nth = usize::try_from(cluster % self.per_table()).unwrap_or(usize::MAX / 8);
        let entry = u64_at(table, nth * 8)?;
        if entry & COMPRESSED != 0 {
            let split = 62 - (self.cluster_bits - 8);
            let place = entry & ((1 << split) - 1);
            let sectors = (entry & (COMPRESSED - 1)) >> split;
            let bytes = (sectors + 1) * 512 - place % 512;
            let most = 2 * self.cluster() + 512;
            return if bytes <= most {
                Ok(Cluster::Compressed(place, bytes))
            } else {
                Err(BadImage("its tables are damaged"))
            };
        }
        Ok(match entry & PLACE {
            0 => Cluster::Zeroes,
            _ if entry & ZERO != 0 => Cluster::Zeroes,
            place => Cluster::Plain(place),
        })
    }
}

/// A cluster of so many bytes that was compressed.
pub(super) fn expand(cluster: u64, packed: &[u8]) -> Result<Bytes, BadImage> {
    let bytes = usize::try_from(cluster).unwrap_or(0);
    let mut whole = vec![0; bytes];
    let mut inflate = Decompress::new(false);
    let done = inflate.decompress(packed, &mut whole, FlushDecompress::Finish);
    match done {
        // Whole clusters are packed; what lies behind a packed one is another's.
        Ok(Status::Ok | Status::StreamEnd | Status::BufError) if inflate.total_out() == cluster => {
            Ok(whole.into())
        }
        _ => Err(BadImage("a compressed cluster is damaged")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use quarry_engine::io::SplitMix64;

    use super::*;

    /// A header of 64 KiB clusters; the disk has 1 MiB.
    fn header(version: u32) -> Vec<u8> {
        let mut header = vec![0; HEADER];
        header[..4].copy_from_slice(MAGIC);
        header[4..8].copy_from_slice(&version.to_be_bytes());
        header[20..24].copy_from_slice(&16_u32.to_be_bytes());
        header[24..32].copy_from_slice(&(1_u64 << 20).to_be_bytes());
        header[36..40].copy_from_slice(&1_u32.to_be_bytes());
        header[40..48].copy_from_slice(&(3_u64 << 16).to_be_bytes());
        header
    }

    #[test]
    fn a_header_says_where_the_tables_are() {
        for version in [2, 3] {
            let layout = Layout::parse(&header(version)).unwrap();
            assert_eq!((layout.bytes, layout.cluster(), layout.clusters()), (1 << 20, 1 << 16, 16));
            assert_eq!((layout.place_of(0), layout.per_table()), (Ok(3 << 16), 8192));
            assert_eq!((layout.second_tables(), layout.place_of(1).is_err()), (1, true));
        }
    }

    #[test]
    fn what_needs_more_than_the_image_is_refused() {
        let with = |at: usize, byte: u8| {
            let mut header = header(3);
            header[at] = byte;
            Layout::parse(&header)
        };
        assert!(with(79, 1).is_ok(), "it was not closed");
        // Backing file, encryption, another version, features, odd clusters, a table that is too short.
        for (at, byte) in
            [(15, 1), (35, 1), (7, 4), (79, 4), (79, 8), (79, 16), (23, 8), (23, 22), (24, 0x7f), (39, 0)]
        {
            assert!(with(at, byte).is_err(), "byte {at}");
        }
        for cut in [0, 3, 30, 47, 75] {
            assert!(Layout::parse(&header(3)[..cut]).is_err());
        }
    }

    #[test]
    fn clusters_are_zeroes_plain_or_compressed() {
        let layout = Layout::parse(&header(3)).unwrap();
        let cluster: Vec<u8> = (0..1_u32 << 16).map(|at| u8::try_from(at / 300 % 251).unwrap()).collect();
        let mut packer = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        packer.write_all(&cluster).unwrap();
        let mut packed = packer.finish().unwrap();
        packed.extend([7; 100]);
        assert_eq!(expand(layout.cluster(), &packed).unwrap(), cluster);
        assert!(expand(1 << 16, &packed[..20]).is_err() && expand(1 << 16, &[]).is_err());
        let compressed = COMPRESSED | 1 << 54 | 0x1_2310;
        let entries = [0, 5 << 16, 5 << 16 | 1, 1 << 63 | 7 << 16, compressed, COMPRESSED | ((1 << 62) - 1)];
        let table: Vec<u8> = entries.iter().flat_map(|entry: &u64| entry.to_be_bytes()).collect();
        let look = |nth| layout.look(&table, nth);
        assert_eq!((look(0), look(1)), (Ok(Cluster::Zeroes), Ok(Cluster::Plain(5 << 16))));
        assert_eq!((look(2), look(3)), (Ok(Cluster::Zeroes), Ok(Cluster::Plain(7 << 16))));
        assert_eq!(look(4), Ok(Cluster::Compressed(0x1_2310, 2 * 512 - 0x110)));
        assert_eq!(
            look(5),
            Ok(Cluster::Compressed((1 << 54) - 1, 256 * 512 - 511)),
            "beyond the image, as its reader finds"
        );
        assert!(look(6).is_err(), "the table ends");
    }

    #[test]
    fn any_bytes_whatever_end_in_a_value_or_an_error() {
        let mut rng = SplitMix64::new(11);
        for round in 0..20_000 {
            let mut bytes = header(if round % 4 == 0 { 2 } else { 3 });
            for _ in 0..1 + rng.index(4) {
                let at = 8 + rng.index(HEADER - 8);
                bytes[at] = u8::try_from(rng.below(256)).unwrap();
            }
            let Ok(layout) = Layout::parse(&bytes) else { continue };
            assert!(layout.cluster() <= 2 << 20 && layout.second_tables() <= layout.entries);
            let table: Vec<u8> = (0..64).map(|_| u8::try_from(rng.below(256)).unwrap()).collect();
            for nth in [0, 7, 8, layout.clusters(), u64::MAX] {
                let _either = layout.place_of(nth);
                if let Ok(Cluster::Compressed(_, packed)) = layout.look(&table, nth) {
                    assert!(packed <= 2 * layout.cluster() + 512, "{packed} bytes are read");
                }
            }
            let _either = expand(layout.cluster(), &table);
        }
    }
}
