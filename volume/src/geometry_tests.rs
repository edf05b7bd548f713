use super::*;

/// splitmix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn runs_cover_a_range_once_in_order() {
    for seed in 0..500 {
        let mut state = seed;
        let slice_bytes = CHUNK_BYTES << (random(&mut state) % 11);
        let volume_bytes = (1 + random(&mut state) % (3 << 18)) * BLOCK_BYTES;
        let geometry = Geometry::new(volume_bytes, slice_bytes).unwrap();
        let offset = random(&mut state) % (volume_bytes / BLOCK_BYTES) * BLOCK_BYTES;
        let length = (1 + random(&mut state) % ((volume_bytes - offset) / BLOCK_BYTES)) * BLOCK_BYTES;
        let mut at = offset;
        for run in geometry.split(offset, length).unwrap() {
            assert_eq!(geometry.offset_of(run.slice, run.chunk, run.first), Some(at), "seed {seed}");
            assert!(run.blocks >= 1 && u16::from(run.first) + run.blocks <= BLOCKS_PER_CHUNK, "seed {seed}");
            assert!(run.slice.0 < geometry.slices(), "seed {seed}");
            at += run.bytes();
        }
        assert_eq!(at, offset + length, "seed {seed}");
        let mut at = offset;
        for (slice, in_slice, length) in geometry.split_by_slice(offset, length).unwrap() {
            assert_eq!(u64::from(slice.0) * slice_bytes + in_slice, at, "seed {seed}");
            assert!(length > 0 && in_slice + length <= slice_bytes, "seed {seed}");
            at += length;
        }
        assert_eq!(at, offset + length, "seed {seed}");
    }
}

#[test]
fn a_range_over_a_slice_boundary_is_cut_there() {
    let geometry = Geometry::new(2 * SLICE_BYTES, SLICE_BYTES).unwrap();
    let runs: Vec<_> = geometry.split(SLICE_BYTES - 2 * BLOCK_BYTES, 3 * BLOCK_BYTES).unwrap().collect();
    let before = Run { slice: SliceId(0), chunk: ChunkId(1023), first: 254, blocks: 2 };
    let after = Run { slice: SliceId(1), chunk: ChunkId(0), first: 0, blocks: 1 };
    assert_eq!(runs, [before, after]);
    let whole = geometry.split(CHUNK_BYTES, CHUNK_BYTES).unwrap().next().unwrap();
    assert_eq!(whole, Run { slice: SliceId(0), chunk: ChunkId(1), first: 0, blocks: 256 });
}

#[test]
fn behind_the_last_chunk_of_a_slice_the_next_one_begins() {
    for slice_bytes in [CHUNK_BYTES, 4 * CHUNK_BYTES, SLICE_BYTES] {
        let geometry = Geometry::new(2 * slice_bytes, slice_bytes).unwrap();
        let chunks = ChunkId(narrow(slice_bytes / CHUNK_BYTES));
        let from = |slice, chunk, block| geometry.offset_from(SliceId(slice), chunk, block);
        assert_eq!(from(0, chunks, 0), Some(slice_bytes));
        assert_eq!(from(1, chunks, 0), None);
        assert_eq!(from(u32::MAX, ChunkId(u16::MAX), u8::MAX), None);
        for offset in [0, BLOCK_BYTES, slice_bytes - BLOCK_BYTES, slice_bytes, 2 * slice_bytes - BLOCK_BYTES]
        {
            let run = geometry.split(offset, BLOCK_BYTES).unwrap().next().unwrap();
            assert_eq!(from(run.slice.0, run.chunk, run.first), Some(offset));
        }
    }
}

#[test]
fn the_largest_volume_can_be_addressed_to_its_last_block() {
    for slice_bytes in [CHUNK_BYTES, SLICE_BYTES] {
        let geometry = Geometry::new(MAX_VOLUME_BYTES, slice_bytes).unwrap();
        let last = MAX_VOLUME_BYTES - BLOCK_BYTES;
        let run = geometry.split(last, BLOCK_BYTES).unwrap().next().unwrap();
        assert_eq!(run.slice.0, geometry.slices() - 1);
        assert_eq!(geometry.offset_of(run.slice, run.chunk, run.first), Some(last));
        assert_eq!(geometry.offset_of(SliceId(u32::MAX), ChunkId(u16::MAX), u8::MAX), None);
    }
}

#[test]
fn bad_ranges_are_refused() {
    let geometry = Geometry::new(10 * BLOCK_BYTES, CHUNK_BYTES).unwrap();
    let refused = |offset, length| geometry.split(offset, length).err();
    let unaligned = |offset, length| Some(SplitError::Unaligned { offset, length });
    assert_eq!(refused(1, BLOCK_BYTES), unaligned(1, BLOCK_BYTES));
    assert_eq!(refused(0, 512), unaligned(0, 512));
    assert_eq!(refused(0, 0), Some(SplitError::Empty { offset: 0 }));
    let volume_bytes = 10 * BLOCK_BYTES;
    for (offset, length) in [(0, 11 * BLOCK_BYTES), (volume_bytes, BLOCK_BYTES), (!0 << 12, !0 << 12)] {
        assert_eq!(refused(offset, length), Some(SplitError::PastEnd { offset, length, volume_bytes }));
        assert!(geometry.split_by_slice(offset, length).is_err());
    }
    assert_eq!(refused(9 * BLOCK_BYTES, BLOCK_BYTES), None);
}

#[test]
fn bad_sizes_are_refused() {
    for bytes in [0, 1, BLOCK_BYTES + 1, MAX_VOLUME_BYTES + BLOCK_BYTES, u64::MAX] {
        assert_eq!(Geometry::new(bytes, SLICE_BYTES), Err(GeometryError::VolumeSize(bytes)));
    }
    for bytes in [0, BLOCK_BYTES, 3 * CHUNK_BYTES, 2 * SLICE_BYTES] {
        assert_eq!(Geometry::new(SLICE_BYTES, bytes), Err(GeometryError::SliceSize(bytes)));
    }
}
