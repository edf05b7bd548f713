//! The bytes of a batch, put together for the device: small ones are copied side by side, large data goes from where it lies.
//!
//! Invariant: the pieces are the batch byte for byte, whether data was copied or not; what no record fills is zero.

use bytes::Bytes;

use super::format::batch::Descriptor;
use super::limits::{ALIGN_FROM, MAX_BATCH};
use super::shared::Item;
use crate::io::{AlignedBuf, BLOCK, Disk, Gather, MAX_PIECES};

// Each shared piece has copied bytes on both of its sides.
const _: () = assert!(2 * (MAX_BATCH / ALIGN_FROM) < MAX_PIECES);

/// A batch of `total` bytes, its header `encoded` at the start and each item where its descriptor says, behind `lead`, which
/// is written with it.
pub(super) fn assemble<'a>(
    disk: &mut dyn Disk,
    lead: &[u8],
    encoded: &[u8],
    total: usize,
    records: &[Descriptor],
    items: impl Iterator<Item = &'a Item> + Clone,
) -> Gather {
    let placed = records.iter().zip(items).map(|(descriptor, item)| {
        let at = lead.len() + descriptor.offset as usize;
        (at, at + item.record.head_bytes().len(), item)
    });
    let shared = placed.clone().filter_map(|(_, at, item)| Some((at, in_place(at, item.record.data())?)));
    let mut shared = shared.collect::<Vec<_>>().into_iter().peekable();
    let end = lead.len() + total;
    let mut gather = Gather::default();
    let mut run = Run::begin(disk, 0, shared.peek().map_or(end, |(at, _)| *at));
    run.put(0, lead);
    run.put(lead.len(), encoded);
    for (at, data_at, item) in placed {
        let mut data: &[u8] = item.record.data();
        run.put(at, item.record.head_bytes());
        if let Some((cut, bytes)) = shared.next_if(|(cut, _)| *cut == data_at) {
            run.end(&mut gather);
            let after = cut + bytes.len();
            data = data.get(bytes.len()..).unwrap_or_default();
            gather.share(bytes);
            run = Run::begin(disk, after, shared.peek().map_or(end, |(at, _)| *at));
            run.put(after, data);
        } else {
            run.put(data_at, data);
        }
    }
    run.end(&mut gather);
    gather
}

/// The whole blocks of data that begins at `at`, where the device can take them from their place.
fn in_place(at: usize, data: &Bytes) -> Option<Bytes> {
    let whole = data.len() / BLOCK * BLOCK;
    let worth = whole >= ALIGN_FROM && at.is_multiple_of(BLOCK);
    worth.then(|| data.slice(..whole)).filter(|whole| Gather::is_fit(whole))
}

/// Bytes that are copied side by side: those from `start` of the whole on. None, behind shared data at the very end.
struct Run {
    buf: Option<AlignedBuf>,
    start: usize,
    written: usize,
}

impl Run {
    fn begin(disk: &mut dyn Disk, start: usize, end: usize) -> Self {
        let buf = (start < end).then(|| disk.buffer(end - start));
        Self { buf, start, written: 0 }
    }

    /// Copies bytes to `at` of the whole. Recycled buffers are not zeroed: every gap is.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let Some(buf) = &mut self.buf else { unreachable!("bytes behind the end of their batch") };
        let at = at - self.start;
        buf[self.written..at].fill(0);
        buf[at..at + bytes.len()].copy_from_slice(bytes);
        self.written = at + bytes.len();
    }

    fn end(self, gather: &mut Gather) {
        if let Some(mut buf) = self.buf {
            buf[self.written..].fill(0);
            gather.push(buf);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::format::batch::header_len;
    use crate::disk::format::record::{DeviceId, Kind, NewRecord, Parts};
    use crate::io::{Op, SimDisk, SimImage, SplitMix64, Wait, aligned_bytes};

    fn item(random: &mut SplitMix64, len: usize, aligned: bool) -> Item {
        let mut data = aligned_bytes(ALIGN_FROM.max(len + 1));
        data.resize(len + 1, 0);
        random.fill(&mut data);
        let data = data.freeze().slice(if aligned { 0..len } else { 1..len + 1 });
        let parts = Parts {
            kind: Kind::Object,
            deleted: false,
            sequence: 1,
            number: 0,
            key: b"key",
            meta: b"",
            data,
        };
        Item { record: NewRecord::new(DeviceId([1; 16]), parts), from: None }
    }

    /// What it is to be: everything copied.
    fn copied(lead: &[u8], encoded: &[u8], total: usize, records: &[Descriptor], items: &[Item]) -> Vec<u8> {
        let mut whole = vec![0; lead.len() + total];
        let mut put = |at: usize, bytes: &[u8]| whole[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, lead);
        put(lead.len(), encoded);
        for (descriptor, item) in records.iter().zip(items) {
            let at = lead.len() + descriptor.offset as usize;
            put(at, item.record.head_bytes());
            put(at + item.record.head_bytes().len(), item.record.data());
        }
        whole
    }

    fn written(disk: &mut SimDisk, gather: Gather) -> Vec<u8> {
        let len = gather.len();
        let buf = AlignedBuf::zeroed(len);
        let mut out = Vec::new();
        for op in [Op::Write { token: 1, offset: 0, data: gather }, Op::Read { token: 2, offset: 0, buf }] {
            out.clear();
            disk.submit(op);
            while out.is_empty() {
                disk.reap(Wait::AtMost(std::time::Duration::from_secs(1)), &mut out);
            }
        }
        out.pop().unwrap().buf.unwrap().to_vec()
    }

    #[test]
    fn pieces_in_place_and_copied_ones_make_the_same_batch() {
        let mut random = SplitMix64::new(5);
        let image = SimImage::new(64 << 20, 1);
        let mut disk = image.open();
        let sizes = [0, 100, BLOCK, ALIGN_FROM, ALIGN_FROM + 1, 1 << 20, (1 << 20) - 1, 3 * ALIGN_FROM];
        let mut pieces = std::collections::BTreeSet::new();
        for round in 0..200 {
            let count = 1 + random.below(6);
            let items: Vec<Item> = (0..count)
                .map(|_| {
                    let size = sizes[usize::try_from(random.below(sizes.len() as u64)).unwrap()];
                    let aligned = random.chance(700);
                    item(&mut random, size, aligned)
                })
                .collect();
            let mut at = header_len(items.len(), 0);
            let encoded = vec![0xab; at];
            let records: Vec<Descriptor> = items
                .iter()
                .map(|item| {
                    let view = item.record.view();
                    let offset = super::super::batching::place(at, view.head_len, view.data_len);
                    at = offset + item.record.stored_len();
                    let (offset, len) = (u32::try_from(offset).unwrap(), 0);
                    Descriptor { offset, len, head_crc: 0, kind: view.kind, from: None }
                })
                .collect();
            let total = at.next_multiple_of(BLOCK);
            let lead = vec![0xcd; if round % 2 == 0 { 0 } else { BLOCK }];
            // Buffers come back with what they held.
            let mut dirty = disk.buffer(2 << 20);
            dirty.fill(0xee);
            drop(dirty);
            let gather = assemble(&mut disk, &lead, &encoded, total, &records, items.iter());
            pieces.insert(gather.pieces());
            assert!(
                written(&mut disk, gather) == copied(&lead, &encoded, total, &records, &items),
                "{round}"
            );
        }
        assert!(pieces.contains(&1) && pieces.iter().any(|pieces| *pieces > 4), "{pieces:?}");
    }
}
