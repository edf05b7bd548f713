//! Rows of spans beside rows of blocks: what is found is what was written, whatever has which row.

use std::collections::BTreeMap;

use super::recall::first_era_known;
use super::row::{Row, block_key, parse_block_key};
use super::span::{SpanRow, is_whole, spans};
use super::store::{first_era, mapped, mapped_from};
use super::tests::{Bench, Log, VOLUME, extent, history};
use super::*;
use crate::disk::catalog::Catalog;
use crate::disk::format::record::NewRecord;
use crate::index::{Range, Table, WriteSet};
use crate::io::SplitMix64;

/// For each block and era the sequence of the newest write.
pub(super) type Model = BTreeMap<(BlockPlace, u32), u64>;

pub(super) fn model(log: &Log) -> Model {
    let mut model = Model::new();
    for (record, _) in log {
        let view = record.view();
        let Ok(extent) = Extent::decode(view.meta) else { continue };
        for block in extent.run.numbers() {
            let newest = model.entry((BlockPlace::of(&extent.run, block), view.number)).or_default();
            *newest = (*newest).max(extent.sequence);
        }
    }
    model
}

fn seen(model: &Model, place: BlockPlace, era: u32) -> Option<(u32, u64)> {
    model.range((place, 0)..=(place, era)).next_back().map(|((_, era), sequence)| (*era, *sequence))
}

fn told(blocks: &[Mapped]) -> Vec<(BlockPlace, (u32, u64))> {
    blocks.iter().map(|block| (block.place, (block.era, block.row.position.sequence))).collect()
}

fn expected(model: &Model, run: &Run, era: u32) -> Vec<(BlockPlace, (u32, u64))> {
    let places = run.numbers().map(|block| BlockPlace::of(run, block));
    places.filter_map(|place| Some((place, seen(model, place, era)?))).collect()
}

fn some_run(rng: &mut SplitMix64) -> Run {
    let first = u8::try_from(rng.below(60)).unwrap();
    let blocks = u16::try_from(1 + rng.below(60)).unwrap();
    Run { slice: SliceId(3), chunk: ChunkId(u16::try_from(rng.below(3)).unwrap()), first, blocks }
}

pub(super) fn check(bench: &Bench, log: &Log, rng: &mut SplitMix64, context: &str) {
    let model = model(log);
    for _ in 0..30 {
        let run = some_run(rng);
        let era = [0, 1, 3, u32::MAX][rng.index(4)];
        let layer = Layer { volume: VOLUME, era };
        let found = mapped(&bench.index, &run, layer).unwrap();
        assert_eq!(told(&found), expected(&model, &run, era), "{context}: {run:?} in {era}");
        let found = first_era(&bench.index, &run, VOLUME).unwrap();
        assert_eq!(told(&found), expected(&model, &run, 0), "{context}: {run:?} in the first era");
        let few = Run { blocks: run.blocks.min(1 + u16::try_from(rng.below(8)).unwrap()), ..run };
        for _ in 0..1 + rng.below(3) {
            let found = first_era_known(&bench.index, &bench.index.memo, &few, VOLUME).unwrap();
            assert_eq!(told(&found), expected(&model, &few, 0), "{context}: {few:?}, recalled");
        }
        let (from, most) = (BlockPlace::of(&run, run.first), 1 + rng.index(100));
        let (found, whole) = mapped_from(&bench.index, from, layer, most).unwrap();
        let mut places: Vec<BlockPlace> = model.keys().map(|(place, _)| *place).collect();
        places.dedup();
        places.retain(|place| *place >= from && seen(&model, *place, era).is_some());
        assert_eq!(whole, places.len() <= most, "{context}");
        places.truncate(most);
        assert_eq!(found.iter().map(|block| block.place).collect::<Vec<_>>(), places, "{context}");
    }
}

#[test]
fn what_is_found_is_what_was_written() {
    for seed in 0..40 {
        let mut rng = SplitMix64::new(seed);
        let log = history(&mut rng);
        let mut bench = Bench::default();
        bench.apply(&log);
        check(&bench, &log, &mut rng, &format!("seed {seed}"));
    }
}

/// Rows as they were before there were spans.
fn without_spans(bench: &Bench) {
    let rows: Vec<_> = bench.index.scan(Table::Blocks, Range::prefix(b"b")).map(Result::unwrap).collect();
    let mut changes = Vec::new();
    for (key, value) in rows {
        let (at, era) = parse_block_key(&key).unwrap();
        if let row @ Row::Span(_) = Row::decode(&key, &value).unwrap() {
            changes.push((Table::Blocks, key.into_vec(), None));
            for (BlockPlace { slice, chunk, block }, row) in row.blocks(at) {
                let key = block_key(VOLUME, slice, chunk, block, era);
                changes.push((Table::Blocks, key, Some(row.encode())));
            }
        }
    }
    bench.index.apply(WriteSet { changes }).unwrap();
}

#[test]
fn an_index_from_before_there_were_spans_goes_on() {
    for seed in 0..40 {
        let mut rng = SplitMix64::new(seed);
        let log = history(&mut rng);
        let (old, new) = log.split_at(rng.index(log.len()));
        let mut bench = Bench::default();
        bench.apply(&old.to_vec());
        without_spans(&bench);
        bench.apply(&new.to_vec());
        let live = bench.live(&log);
        assert_eq!(live, Bench::default().apply(&log).live(&log), "seed {seed}");
        check(&bench, &log, &mut rng, &format!("seed {seed}"));
        let mut moved = Log::new();
        for (record, from) in &log {
            let to = crate::disk::Location { segment: from.segment + 1000, ..*from };
            let was = crate::catalog::ObjectCatalog.is_live(&bench.index, &record.view(), *from).unwrap();
            let did = bench.run(|tx| crate::catalog::ObjectCatalog.relocate(tx, &record.view(), *from, to));
            assert_eq!(did, was, "seed {seed}");
            moved.extend(did.then(|| (record.clone(), to)));
        }
        assert_eq!(bench.live(&moved), live, "seed {seed}: after all was moved");
        check(&bench, &log, &mut rng, &format!("seed {seed}, moved"));
    }
}

fn placed(record: NewRecord, number: u32) -> (NewRecord, crate::disk::Location) {
    let len = u32::try_from(record.stored_len()).unwrap();
    (record, crate::disk::Location { segment: 1, offset: number * (2 << 20), len })
}

fn chunk_run(first: u8, blocks: u16) -> Run {
    Run { slice: SliceId(0), chunk: ChunkId(0), first, blocks }
}

#[test]
fn a_chunk_that_is_written_whole_has_sixteen_rows() {
    let mut bench = Bench::default();
    let log = vec![placed(extent(chunk_run(0, 256), 1, 0, false), 0)];
    let rows = |bench: &Bench| bench.dump().keys().filter(|key| key[0] == b'b').count();
    assert_eq!(rows(bench.apply(&log)), 16);
    // Trimmed, it has as many, and written again.
    bench.apply(&vec![placed(extent(chunk_run(0, 256), 2, 0, true), 1)]);
    assert_eq!(rows(&bench), 16);
    bench.apply(&log).apply(&vec![placed(extent(chunk_run(0, 256), 3, 0, false), 2)]);
    assert_eq!(rows(&bench), 16);
    // A block of it alone: its row, beside that of its span.
    bench.apply(&vec![placed(extent(chunk_run(17, 1), 4, 0, false), 3)]);
    assert_eq!(rows(&bench), 17);
}

#[test]
fn blocks_that_are_dropped_one_by_one_take_their_span_and_its_record_along() {
    let mut bench = Bench::default();
    let log = vec![placed(extent(chunk_run(0, 32), 1, 0, false), 0)];
    bench.apply(&log);
    let at = |block| (BlockPlace { slice: SliceId(0), chunk: ChunkId(0), block }, 0);
    for block in 0..32 {
        assert!(bench.live(&log) > 0, "block {block}");
        bench.run(|tx| map::drop_blocks(tx, VOLUME, &[at(block)]));
        // A crash may lose what was done, and then it is done again.
        bench.run(|tx| map::drop_blocks(tx, VOLUME, &[at(block)]));
    }
    assert_eq!(bench.live(&log), 0);
    assert!(bench.dump().keys().all(|key| key[0] == b'l'));
}

#[test]
fn a_run_is_cut_at_spans() {
    let cut = |first, blocks| spans(&chunk_run(first, blocks)).collect::<Vec<_>>();
    assert_eq!(cut(3, 1), [(3, 3)]);
    assert_eq!(cut(15, 18), [(15, 15), (16, 31), (32, 32)]);
    assert_eq!(cut(240, 16), [(240, 255)]);
    assert!(is_whole((16, 31)) && !is_whole((16, 30)) && !is_whole((1, 15)));
    assert_eq!(cut(0, 256).len(), 16);
}

#[test]
fn rows_of_spans_come_back_and_others_are_refused() {
    let mut bench = Bench::default();
    bench.apply(&vec![placed(extent(chunk_run(0, 16), 1, 0, false), 0)]);
    bench.apply(&vec![placed(extent(chunk_run(4, 1), 2, 0, false), 1)]);
    let (_, value) = bench.dump().into_iter().find(|(key, _)| key.len() == 29).unwrap();
    let row = SpanRow::decode(&value).unwrap();
    assert_eq!((row.encode(), row.shown(), row.block(4)), (value.clone(), 15, None));
    // What knows rows of blocks only refuses it.
    assert!(BlockRow::decode(&value).is_err());
    for length in 0..value.len() {
        assert!(SpanRow::decode(&value[..length]).is_err(), "{length} bytes");
    }
    assert!(SpanRow::decode(&[&value[..], &[0]].concat()).is_err());
}
