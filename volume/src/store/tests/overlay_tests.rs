use quarry_engine::io::SplitMix64;

use super::*;

fn run(chunk: u16, first: u8, blocks: u16) -> Run {
    Run { slice: SliceId(1), chunk: ChunkId(chunk), first, blocks }
}

fn data(byte: u8, blocks: u16) -> Bytes {
    Bytes::from(vec![byte; usize::from(blocks) * BLOCK_LENGTH])
}

#[test]
fn the_newest_write_of_each_block_is_seen() {
    let mut overlay = Overlay::default();
    overlay.insert(1, run(0, 10, 6), Some(data(1, 6)));
    overlay.insert(2, run(0, 12, 2), None);
    overlay.insert(3, run(0, 15, 3), Some(data(3, 3)));
    overlay.insert(4, run(1, 10, 1), Some(data(4, 1)));
    let seen = |first, blocks, byte: Option<u8>, sequence| Seen {
        first,
        blocks,
        data: byte.map(|byte| data(byte, blocks)),
        sequence,
    };
    assert_eq!(
        overlay.look(&run(0, 9, 8)),
        [seen(10, 2, Some(1), 1), seen(12, 2, None, 2), seen(14, 1, Some(1), 1), seen(15, 2, Some(3), 3)]
    );
    assert_eq!(overlay.look(&run(0, 0, 10)), []);
    assert_eq!(overlay.look(&run(2, 0, 256)), []);
    overlay.remove(2, run(0, 12, 2));
    assert_eq!(overlay.look(&run(0, 12, 1)), [seen(12, 1, Some(1), 1)]);
}

#[test]
fn histories_agree_with_a_model_and_end_empty() {
    for seed in 0..50 {
        let mut rng = SplitMix64::new(seed);
        let mut overlay = Overlay::default();
        let mut kept: Vec<(u64, Run)> = Vec::new();
        for sequence in 1..200 {
            let first = u8::try_from(rng.below(256)).unwrap();
            let blocks = 1 + u16::try_from(rng.below(20)).unwrap().min(255 - u16::from(first));
            let run = run(u16::try_from(rng.below(2)).unwrap(), first, blocks);
            let byte = u8::try_from(sequence).unwrap();
            overlay.insert(sequence, run, rng.chance(700).then(|| data(byte, blocks)));
            kept.push((sequence, run));
            if rng.chance(400) {
                let (sequence, run) = kept.remove(0);
                overlay.remove(sequence, run);
            }
            let asked = self::run(0, 0, 256);
            let covers = |run: &Run, block: u16| {
                run.chunk.0 == 0 && (u16::from(run.first)..u16::from(run.first) + run.blocks).contains(&block)
            };
            let seen = overlay.look(&asked);
            for block in 0..256 {
                let expected = kept.iter().rev().find(|(_, run)| covers(run, block)).map(|(at, _)| *at);
                let within = |s: &&Seen| (u16::from(s.first)..u16::from(s.first) + s.blocks).contains(&block);
                assert_eq!(
                    seen.iter().find(within).map(|s| s.sequence),
                    expected,
                    "seed {seed} block {block}"
                );
            }
        }
        for (sequence, run) in kept {
            overlay.remove(sequence, run);
        }
        assert_eq!((overlay.writes, overlay.bytes, overlay.chunks.len()), (0, 0, 0), "seed {seed}");
    }
}

#[test]
fn what_is_kept_is_bounded() {
    let mut overlay = Overlay::default();
    assert!(overlay.has_room(MAX_BYTES * 2), "one is always taken");
    let mut count = 0;
    while overlay.has_room(1 << 20) {
        count += 1;
        overlay.insert(count, run(0, 0, 256), Some(data(0, 256)));
    }
    assert_eq!(count, 32);
    let mut overlay = Overlay::default();
    for sequence in 1.. {
        if !overlay.has_room(0) {
            assert_eq!(sequence, MAX_WRITES as u64 + 1);
            break;
        }
        overlay.insert(sequence, run(0, 0, 1), None);
    }
}
