//! Records that are moved in parts: rows, live bytes, and rebuilds that find whole and parts.

use bytes::Bytes;

use super::super::span_tests::{check, model};
use super::super::tests::{Bench, DEVICE, Log, history};
use super::*;
use crate::catalog::ObjectCatalog;
use crate::disk::catalog::Catalog;
use crate::index::Range;
use crate::io::SplitMix64;

fn stored(record: &NewRecord) -> StoredRecord {
    let mut bytes = [record.head_bytes(), record.data()].concat();
    bytes.resize(record.stored_len(), 0);
    StoredRecord::verify(DEVICE, Bytes::from(bytes)).unwrap()
}

/// Each row points at its block within a record of its own write.
fn each_row_points_at_its_block(bench: &Bench, log: &Log, context: &str) {
    for pair in bench.index.scan(Table::Blocks, Range::prefix(b"b")) {
        let (key, value) = pair.unwrap();
        let (place, era) = parse_block_key(&key).unwrap();
        for (place, row) in Row::decode(&key, &value).unwrap().blocks(place) {
            let (record, _) = log.iter().find(|(_, at)| *at == row.at).expect(context);
            let view = record.view();
            let known = parse(&view).unwrap();
            assert_eq!((known.era, known.extent.position()), (era, row.position), "{context}: {place:?}");
            let nth = usize::from(place.block - known.extent.run.first);
            let data = if row.is_zeroes() { 0 } else { view.head_len + nth * BLOCK_LENGTH };
            assert_eq!(row.data as usize, data, "{context}: {place:?}");
        }
    }
}

/// Moves what is live, in parts where that gains; the log with what was moved, and how many parts there were.
fn move_all(bench: &mut Bench, log: &Log, segment: u32) -> (Log, usize) {
    let (mut moved, mut cut) = (Log::new(), 0);
    for (record, from) in log {
        if !ObjectCatalog.is_live(&bench.index, &record.view(), *from).unwrap() {
            continue;
        }
        let parts = ObjectCatalog.remains(&bench.index, DEVICE, &stored(record), *from).unwrap();
        cut += parts.as_ref().map_or(0, Vec::len);
        for record in parts.unwrap_or_else(|| vec![record.clone()]) {
            let place = u32::try_from(moved.len()).unwrap();
            let len = u32::try_from(record.stored_len()).unwrap();
            let to = Location { segment: segment + place / 10, offset: 4096 + place % 10 * (1 << 18), len };
            assert!(bench.run(|tx| ObjectCatalog.relocate(tx, &record.view(), *from, to)));
            moved.push((record, to));
        }
        assert!(!ObjectCatalog.is_live(&bench.index, &record.view(), *from).unwrap());
    }
    (moved, cut)
}

#[test]
fn a_record_that_is_moved_in_parts_loses_no_block_and_keeps_no_space() {
    let mut cut = 0;
    for seed in 0..60 {
        let mut rng = SplitMix64::new(seed);
        let log = history(&mut rng);
        let mut bench = Bench::default();
        bench.apply(&log);
        let before = bench.live(&log);
        // To higher places and to lower ones, and what was moved once more.
        let (first, second) = if rng.chance(500) { (1000, 2000) } else { (2000, 1000) };
        let (moved, parts) = move_all(&mut bench, &log, first);
        cut += parts;
        let after = bench.live(&moved);
        // Heads of the parts are new.
        let heads = 600 * i64::try_from(moved.len()).unwrap();
        assert!(after <= before + heads, "seed {seed}: {after} of {before}");
        check(&bench, &log, &mut rng, &format!("seed {seed}, moved"));
        each_row_points_at_its_block(&bench, &moved, &format!("seed {seed}, moved"));
        let (again, _) = move_all(&mut bench, &moved, second);
        assert!(bench.live(&again) <= after + heads);
        check(&bench, &log, &mut rng, &format!("seed {seed}, moved again"));
        each_row_points_at_its_block(&bench, &again, &format!("seed {seed}, moved again"));
    }
    assert!(cut > 100, "{cut} parts");
}

/// An index from before: every needed record counted whole.
#[test]
fn an_index_in_which_records_counted_whole_is_recounted_exactly() {
    for seed in 0..40 {
        let mut rng = SplitMix64::new(seed);
        let log = history(&mut rng);
        let mut bench = Bench::default();
        bench.apply(&log);
        let mut counted = 0;
        for (record, at) in &log {
            if ObjectCatalog.is_live(&bench.index, &record.view(), *at).unwrap() {
                counted += i64::try_from(footprint(at.len)).unwrap();
            }
        }
        ObjectCatalog.recount(&bench.index, &mut |_, by| counted += by).unwrap();
        assert_eq!(counted, bench.live(&log), "seed {seed}");
    }
}

#[test]
fn a_rebuild_that_finds_whole_and_parts_ends_in_the_same_blocks() {
    for seed in 0..40 {
        let mut rng = SplitMix64::new(seed);
        let log = history(&mut rng);
        let mut bench = Bench::default();
        bench.apply(&log);
        let segment = [1000, 0][rng.index(2)];
        let shifted: Log = log
            .iter()
            .map(|(record, at)| (record.clone(), Location { segment: at.segment + 500, ..*at }))
            .collect();
        let mut low = Bench::default();
        low.apply(&shifted);
        let (moved, _) = move_all(&mut low, &shifted, segment);
        let mut both = [shifted, moved].concat();
        rng.shuffle(&mut both);
        let mut rebuilt = Bench::default();
        rebuilt.apply(&both);
        rebuilt.live(&both);
        check(&rebuilt, &log, &mut rng, &format!("seed {seed}"));
        each_row_points_at_its_block(&rebuilt, &both, &format!("seed {seed}"));
        assert_eq!(model(&both), model(&log));
    }
}

#[test]
fn what_is_overwritten_while_it_is_moved_in_parts_stays_overwritten() {
    for seed in 0..40 {
        let mut rng = SplitMix64::new(seed);
        let mut log = history(&mut rng);
        // The last writes come while earlier records are on their way.
        let late = log.split_off(log.len() - 12);
        let mut bench = Bench::default();
        bench.apply(&log);
        let mut on_their_way = Vec::new();
        for (record, from) in &log {
            if let Some(parts) = ObjectCatalog.remains(&bench.index, DEVICE, &stored(record), *from).unwrap()
            {
                on_their_way.extend(parts.into_iter().map(|part| (part, *from)));
            }
        }
        bench.apply(&late);
        log.extend(late);
        for (nth, (part, from)) in (0..).zip(on_their_way) {
            let len = u32::try_from(part.stored_len()).unwrap();
            let to = Location { segment: 1000 + nth / 10, offset: 4096 + nth % 10 * (1 << 18), len };
            bench.run(|tx| ObjectCatalog.relocate(tx, &part.view(), from, to));
            log.push((part, to));
        }
        bench.live(&log);
        check(&bench, &log, &mut rng, &format!("seed {seed}"));
        each_row_points_at_its_block(&bench, &log, &format!("seed {seed}"));
    }
}
