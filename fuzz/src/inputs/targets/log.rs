//! The log's structures: batches, records, segment headers and footers, superblocks.

use bytes::Bytes;
use quarry_engine::disk::Location;
use quarry_engine::disk::format::batch::{BatchHeader, Descriptor, FIXED_HEADER, header_len};
use quarry_engine::disk::format::record::{DeviceId, Kind, NewRecord, Parts, RecordView, StoredRecord};
use quarry_engine::disk::format::segment::{Footer, FooterEntry, SegmentHeader, Trailer, footer_len};
use quarry_engine::disk::format::superblock::{ClusterId, Layout, Superblock, Verdict, choose};
use quarry_engine::disk::format::{batch::HeadClass, batch::hash};
use quarry_engine::io::{BLOCK, SplitMix64};

use super::super::Target;
use super::{crc, put_u32, u32_at};

const DEVICE: DeviceId = DeviceId([7; 16]);
const SEGMENT: u64 = 16 << 20;

/// A batch with its records.
pub(super) const BATCH: Target =
    Target { name: "batch", run: batch, seeds: batch_seeds, mend: mend_batch, words: &[] };
/// One record.
pub(super) const RECORD: Target =
    Target { name: "record", run: record, seeds: record_seeds, mend: mend_record, words: &[] };
/// The first block of a segment.
pub(super) const SEGMENT_HEADER: Target =
    Target { name: "segment", run: segment, seeds: segment_seeds, mend: mend_blocks, words: &[] };
/// The last blocks of a sealed segment.
pub(super) const FOOTER: Target =
    Target { name: "footer", run: footer, seeds: footer_seeds, mend: mend_footer, words: &[] };
/// Both copies of the superblock.
pub(super) const SUPERBLOCK: Target =
    Target { name: "superblock", run: superblock, seeds: superblock_seeds, mend: mend_blocks, words: &[] };

fn new_record(rng: &mut SplitMix64) -> NewRecord {
    let kinds = [Kind::Object, Kind::Chunk, Kind::Row, Kind::Abort, Kind::VolumeExtent];
    let mut noise = vec![0; [0, 5, 300, 9000, 70_000, 140_000][rng.index(6)]];
    rng.fill(&mut noise);
    let (key, meta) = (vec![b'k'; rng.index(40)], vec![b'm'; rng.index(200)]);
    NewRecord::new(
        DEVICE,
        Parts {
            kind: kinds[rng.index(kinds.len())],
            deleted: rng.chance(200),
            sequence: rng.next_u64() >> 10,
            number: u32::try_from(rng.below(9)).unwrap_or(0),
            key: &key,
            meta: &meta,
            data: noise.into(),
        },
    )
}

fn stored(record: &NewRecord) -> Vec<u8> {
    let mut out = [record.head_bytes(), record.data()].concat();
    out.resize(record.stored_len(), 0);
    out
}

fn record_seeds(rng: &mut SplitMix64) -> Vec<Vec<u8>> {
    (0..12).map(|_| stored(&new_record(rng))).collect()
}

fn record(data: &[u8]) {
    let parsed = RecordView::parse(data);
    if let Ok(view) = &parsed {
        assert!(view.head_len <= data.len() && view.stored_len() >= view.head_len);
        let _checked = (view.check_head(DEVICE), view.check_data(DEVICE, data), view.stated_head_crc());
    }
    let Ok(stored) = StoredRecord::verify(DEVICE, Bytes::copy_from_slice(data)) else { return };
    let view = stored.view();
    let (bytes, again) = (stored.data(), NewRecord::verbatim(&stored));
    assert_eq!(bytes.len(), view.data_len);
    assert_eq!(again.view(), view, "a record that moves stays the same");
    let RecordView { kind, deleted, sequence, number, key, meta, .. } = view;
    let built = NewRecord::new(DEVICE, Parts { kind, deleted, sequence, number, key, meta, data: bytes });
    let (a, b) = (built.view(), view);
    assert_eq!((a.kind, a.deleted, a.sequence, a.number), (b.kind, b.deleted, b.sequence, b.number));
    assert_eq!((a.key, a.meta, a.data_len, a.head_len), (b.key, b.meta, b.data_len, b.head_len));
    assert!(a.check_data(DEVICE, built.data()).is_ok());
}

/// Checksums of the record at the start of `bytes`, after the documented layout.
fn mend_record_at(bytes: &mut [u8]) -> Option<u32> {
    let key_len = usize::from(u16::from_le_bytes(*bytes.get(6..)?.first_chunk()?));
    let (meta_len, data_len, head_len) = (u32_at(bytes, 8)?, u32_at(bytes, 12)?, u32_at(bytes, 28)?);
    let key = bytes.get(32..32 + key_len)?.to_vec();
    let kind = [*bytes.get(4)?];
    let (sequence, number) = (bytes.get(16..24)?.to_vec(), bytes.get(24..28)?.to_vec());
    let seed = crc(&[&DEVICE.0, &kind, &key, &sequence, &number]).to_le_bytes();
    let data = bytes.get(head_len..head_len.checked_add(data_len)?)?.to_vec();
    let mut at = 32 + key_len + meta_len;
    for (index, span) in (0_u64..).zip(data.chunks(64 << 10)) {
        put_u32(bytes.get_mut(..head_len)?, at, crc(&[&seed, &index.to_le_bytes(), span]));
        at += 4;
    }
    let sum = crc(&[&DEVICE.0, bytes.get(4..head_len)?]);
    put_u32(bytes, 0, sum);
    Some(sum)
}

fn mend_record(bytes: &mut Vec<u8>) {
    let _ = mend_record_at(bytes);
}

fn batch_seeds(rng: &mut SplitMix64) -> Vec<Vec<u8>> {
    (0..10).map(|_| whole_batch(rng)).collect()
}

fn whole_batch(rng: &mut SplitMix64) -> Vec<u8> {
    let records: Vec<NewRecord> = (0..1 + rng.index(6)).map(|_| new_record(rng)).collect();
    let moved: Vec<bool> = records.iter().map(|_| rng.chance(300)).collect();
    let mut at = header_len(records.len(), moved.iter().filter(|moved| **moved).count()).next_multiple_of(8);
    let small = |n: usize| u32::try_from(n).unwrap_or(0);
    let mut descriptors = Vec::new();
    for (record, moved) in records.iter().zip(moved) {
        let view = record.view();
        descriptors.push(Descriptor {
            offset: small(at),
            len: small(record.stored_len()),
            head_crc: view.stated_head_crc(),
            kind: view.kind,
            from: moved.then_some(Location { segment: 3, offset: 4096, len: 64 }),
        });
        at += record.stored_len();
    }
    let header = BatchHeader {
        device: DEVICE,
        segment: 5,
        segment_seq: 9,
        first_lsn: 100,
        durable_lsn: 99,
        prev_hash: rng.next_u64(),
        epoch: 2,
        total_len: small(at.next_multiple_of(BLOCK)),
        records: descriptors,
    };
    let mut out = header.encode();
    for (descriptor, record) in header.records.iter().zip(&records) {
        out.resize(descriptor.offset as usize, 0);
        out.extend_from_slice(&stored(record));
    }
    out.resize(header.total_len as usize, 0);
    assert_eq!(BatchHeader::decode(&out).as_ref(), Ok(&header));
    assert_eq!(header.flaw(&out), None);
    out
}

fn batch(data: &[u8]) {
    let stated = BatchHeader::stated_len(data);
    let Ok(header) = BatchHeader::decode(data) else { return };
    assert_eq!(stated, Some(header.encoded_len()), "a header is as long as it says");
    let encoded = header.encode();
    assert_eq!(BatchHeader::decode(&encoded).as_ref(), Ok(&header), "what is decoded encodes to the same");
    let _link = hash(&encoded);
    assert!(
        header.end_lsn() >= header.first_lsn
            && header.belongs_to(header.device, header.segment, header.segment_seq)
    );
    let flaw = header.flaw(data);
    let sound = header.records.iter().filter(|d| header.record(data, d).is_some()).count();
    assert!(flaw.is_some() || sound == header.records.len(), "a batch without a flaw has sound records");
    if let Some(flaw) = flaw {
        assert!(flaw.record < header.records.len());
    }
}

fn mend_batch(bytes: &mut Vec<u8>) {
    let _ = mend_batch_at(bytes);
}

fn mend_batch_at(bytes: &mut [u8]) -> Option<()> {
    let (count, len) = (u32_at(bytes, 28)?, u32_at(bytes, 64)?);
    let mut at = FIXED_HEADER;
    for _ in 0..count.min(64) {
        let offset = u32_at(bytes, at)?;
        let flags = *bytes.get(at + 13)?;
        if let Some(sum) = bytes.get_mut(offset..).and_then(mend_record_at) {
            put_u32(bytes, at + 8, sum);
        }
        at += if flags & 1 == 1 { 28 } else { 16 };
    }
    put_u32(bytes, 80, 0);
    let sum = crc(&[bytes.get(..len)?]);
    put_u32(bytes, 80, sum);
    Some(())
}

/// Every whole block gets its checksum at offset 12.
fn mend_blocks(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(BLOCK).max(BLOCK), 0);
    bytes.chunks_exact_mut(BLOCK).for_each(mend_block);
}

fn mend_block(block: &mut [u8]) {
    put_u32(block, 12, 0);
    let sum = crc(&[block]);
    put_u32(block, 12, sum);
}

fn segment_seeds(_: &mut SplitMix64) -> Vec<Vec<u8>> {
    let header = |class, freed| {
        SegmentHeader { device: DEVICE, segment: 3, class, freed, seq: 9, first_lsn: 77, epoch: 4 }.encode()
    };
    vec![header(HeadClass::Hot, false), header(HeadClass::Cold, true)]
}

fn segment(data: &[u8]) {
    if let Ok(header) = SegmentHeader::decode(data) {
        assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
    }
}

fn footer_seeds(rng: &mut SplitMix64) -> Vec<Vec<u8>> {
    let footer = |count: u32, rng: &mut SplitMix64| {
        let entry = |n| FooterEntry { offset: 4096 + n * 512, len: 512, head_len: 64, kind: Kind::Row };
        let entries = (0..count).map(entry).collect();
        let end = 4096 + count * 512;
        Footer { device: DEVICE, segment: 1, seq: rng.below(99), end, end_lsn: 500, entries }.encode(SEGMENT)
    };
    [0, 1, 5, 400].into_iter().map(|count| footer(count, rng)).collect()
}

fn footer(data: &[u8]) {
    let Some(start) = data.len().checked_sub(BLOCK) else { return };
    let Ok(trailer) = Trailer::decode(&data[start..], SEGMENT) else { return };
    let len = footer_len(trailer.count as usize);
    assert_eq!(u64::from(trailer.offset) + len as u64, SEGMENT);
    let Some(first) = data.len().checked_sub(len) else { return };
    if let Ok(footer) = trailer.entries(&data[first..]) {
        let again = footer.encode(SEGMENT);
        let trailer = Trailer::decode(&again[again.len() - BLOCK..], SEGMENT);
        assert_eq!(trailer.and_then(|trailer| trailer.entries(&again)), Ok(footer));
    }
}

fn mend_footer(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(BLOCK).max(BLOCK), 0);
    let trailer = bytes.len() - BLOCK;
    if let Some(count) = u32_at(bytes, trailer + 36)
        && let Some(first) = bytes.len().checked_sub(footer_len(count.min(1 << 16)))
        && let Some(entries) = bytes.get(first..first + count.min(1 << 16) * 16)
    {
        let sum = crc(&[entries]);
        put_u32(bytes, trailer + 52, sum);
    }
    mend_block(&mut bytes[trailer..]);
}

fn superblock_seeds(rng: &mut SplitMix64) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for capacity in [300 << 20, 1 << 30, 1 << 44] {
        let Some(layout) = Layout::plan(capacity) else { continue };
        let copy = |generation| Superblock {
            device: DEVICE,
            cluster: ClusterId([3; 16]),
            generation,
            epoch: generation,
            clean: rng.clone().chance(500),
            index_generation: 1,
            layout,
        };
        seeds.push([copy(4).encode(), copy(5).encode()].concat());
        seeds.push([copy(4).encode(), vec![0; BLOCK]].concat());
    }
    seeds
}

fn superblock(data: &[u8]) {
    let decode = |at: usize| Superblock::decode(data.get(at..).unwrap_or_default());
    let (a, b) = (decode(0), decode(BLOCK));
    for copy in [a, b].into_iter().flatten() {
        assert_eq!(Superblock::decode(&copy.encode()), Ok(copy));
        let layout = copy.layout;
        let last = layout.segment_start(layout.segments - 1) + layout.segment_size;
        assert!(layout.table_start(1) + layout.table_len() <= layout.data_start() && last <= layout.capacity);
    }
    match choose(a, b) {
        Verdict::Use { superblock, .. } => {
            assert!(a == Ok(superblock) || b == Ok(superblock));
            let newest = [a, b].into_iter().flatten().map(|copy| copy.generation).max();
            assert_eq!(Some(superblock.generation), newest);
        }
        Verdict::Contradiction => assert!(a.is_ok() && b.is_ok()),
        Verdict::Newer(_) | Verdict::Damaged | Verdict::Absent => assert!(a.is_err() || b.is_err()),
    }
}
