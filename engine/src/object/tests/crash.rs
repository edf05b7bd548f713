//! Crashes: what was acknowledged stands, what was not is whole or absent, and a rebuilt index says the same.

use std::collections::BTreeMap;

use super::rig::{Rig, bytes, path};
use crate::index::Table;
use crate::object::PutSpec;

fn check(rig: &mut Rig, model: &BTreeMap<String, (u64, usize)>, what: &str) {
    let names: Vec<String> = model.keys().cloned().collect();
    assert_eq!(rig.names(), names, "{what}");
    let total: u64 = model.values().map(|(_, size)| *size as u64).sum();
    let count = model.len() as u64;
    assert_eq!(rig.totals(), [count, total, count, total], "{what}");
    for (name, (seed, size)) in model {
        assert!(rig.get(name) == Some(bytes(*seed, *size)), "{what}: {name}");
    }
    let chunks: usize =
        model.values().filter(|(_, size)| *size > 1 << 20).map(|(_, s)| s.div_ceil(1 << 20)).sum();
    for _ in 0..30 {
        rig.turn();
    }
    assert_eq!(rig.count(0, Table::Chunks), chunks, "{what}");
}

#[test]
fn acknowledged_changes_survive_crashes_and_rebuilds() {
    for seed in (0..12).filter(|seed| *seed != 5) {
        crashes_and_rebuilds(seed);
    }
}

/// A segment was sealed by batches that a crash took, but its footer reached the disk. The opening after it went on
/// appending to the segment, under the old footer, which a rebuild then believed: acknowledged records were lost.
#[test]
fn a_footer_that_outlived_its_batches_is_not_believed() {
    crashes_and_rebuilds(5);
}

fn crashes_and_rebuilds(seed: u64) {
    {
        let mut rig = Rig::new(1, 200 + seed);
        let mut model = BTreeMap::new();
        for n in 0..60_u64 {
            let name = format!("o{}", rig.rng.next_u64() % 12);
            match rig.rng.next_u64() % 8 {
                0 | 1 => {
                    rig.delete(&name);
                    model.remove(&name);
                }
                2 => {
                    rig.put(&name, &bytes(n, (2 << 20) + 17));
                    model.insert(name, (n, (2 << 20) + 17));
                }
                _ => {
                    rig.put(&name, &bytes(n, 5000));
                    model.insert(name, (n, 5000));
                }
            }
            if rig.rng.next_u64().is_multiple_of(10) {
                // An upload that is under way when the power goes.
                let store = rig.store();
                let polls = u32::try_from(rig.rng.next_u64() % 12).unwrap();
                rig.abandon(polls, async move {
                    let mut writer = store.writer(&path("never"), None).await.unwrap();
                    writer.write(bytes(1, 5 << 20)).await.unwrap();
                    std::future::pending::<()>().await;
                });
                let keep_index = rig.rng.next_u64().is_multiple_of(2);
                rig.crash(keep_index);
                check(&mut rig, &model, &format!("seed {seed}, step {n}, index kept: {keep_index}"));
            }
        }
        rig.crash(false);
        check(&mut rig, &model, &format!("seed {seed}, rebuilt"));
    }
}

/// The clock of the machine went back by a day over a reboot: newer changes still win.
#[test]
fn a_clock_that_ran_backwards_does_not_hide_new_versions() {
    let mut rig = Rig::new(1, 31);
    let before = rig.put("o", &bytes(1, 100)).timestamp;
    rig.wall.fetch_sub(86_400_000_000, std::sync::atomic::Ordering::SeqCst);
    rig.crash(true);
    let after = rig.try_put(&path("o"), &bytes(2, 100), PutSpec::default()).unwrap().timestamp;
    assert!(after > before);
    assert_eq!(rig.get("o"), Some(bytes(2, 100)));
    rig.delete("o");
    assert_eq!(rig.get("o"), None);
}
