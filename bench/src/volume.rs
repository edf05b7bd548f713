//! A large volume: what snapshots and clones of it cost, and random writes after many snapshots.
//!
//! The map is made of records that hold zeroes: rows as any block has, without bytes. So a map of 100 GiB needs no 100 GiB.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use quarry_engine::catalog::ObjectCatalog;
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::disk::format::superblock::ClusterId;
use quarry_engine::disk::{CacheBytes, DiskConfig, DiskHandle, Format, format, start};
use quarry_engine::index::RocksOptions;
use quarry_engine::io::{OpenOptions, SplitMix64, open_device, preallocate};
use quarry_volume::VolumeId;
use quarry_volume::store::{Device, Label, Volumes};
use serde_json::json;

use crate::args::Options;
use crate::failure::Failure;
use crate::load::{as_f64, median, now};
use crate::report::{Report, Scenario, details, round, say};

const VOLUME: u64 = 1 << 40;
const SNAPSHOTS: u32 = 100;
/// Writes between two snapshots.
const BETWEEN: u64 = 200;
/// Writes of a pass, with a flush for every so many.
const WRITES: u64 = 100_000;
const FLUSH_EVERY: u64 = 64;

pub(crate) fn other(e: impl std::fmt::Display) -> Failure {
    Failure::Other(e.to_string())
}

/// A disk of so many bytes, and the volumes on it.
pub(crate) async fn open(scratch: &Path, bytes: u64) -> Result<(DiskHandle, Arc<Volumes>), Failure> {
    let path = scratch.join("volumes");
    preallocate(&path, bytes, &mut |_| {})?;
    let request = Format {
        cluster: ClusterId([7; 16]),
        device: DeviceId([1; 16]),
        segment_size: None,
        overwrite: false,
    };
    format(open_device(&path, OpenOptions::default())?.as_mut(), &request)?;
    let config = DiskConfig {
        device: path,
        io: OpenOptions::default(),
        index: RocksOptions::default(),
        index_path: scratch.join("volumes-index"),
        cache_bytes: CacheBytes { small: 16 << 20, large: 16 << 20 },
        cluster: None,
    };
    let (disk, _) = start(&config, Arc::new(ObjectCatalog), &mut |_, _| {})?;
    Ok((disk.clone(), Arc::new(Volumes::open(vec![disk]).map_err(other)?)))
}

fn label(name: &str) -> Label {
    Label { name: name.to_owned(), bytes: VOLUME, ..Label::default() }
}

/// Random writes of a block among the first `span` bytes; how many a second.
async fn writes(device: &Device, rng: &mut SplitMix64, span: u64, count: u64) -> Result<f64, Failure> {
    let mut data = vec![0; 4096];
    let began = now();
    for n in 0..count {
        data[..8].copy_from_slice(&rng.next_u64().to_le_bytes());
        let block = rng.below(span / 4096);
        device.write(block * 4096, Bytes::copy_from_slice(&data)).await.map_err(other)?;
        if n % FLUSH_EVERY == 0 {
            device.flush().await.map_err(other)?;
        }
    }
    device.flush().await.map_err(other)?;
    Ok(as_f64(count) / began.elapsed().as_secs_f64())
}

/// Median and most of some times in milliseconds.
fn times(of: &[f64]) -> (f64, f64) {
    (round(median(of)), round(of.iter().copied().fold(0.0, f64::max)))
}

async fn measure(scratch: &Path, bytes: u64, map: u64) -> Result<[Scenario; 3], Failure> {
    let (_, volumes) = open(scratch, bytes).await?;
    volumes.create(VolumeId([1; 16]), label("vol")).await.map_err(other)?;
    let device = volumes.attach("vol").await.map_err(other)?;
    let began = now();
    device.lay_out_zeroes(0, map).await.map_err(other)?;
    say(&format!("a map of {} GiB lies there after {:.0} s", map >> 30, began.elapsed().as_secs_f64()));
    let mut rng = SplitMix64::new(1);
    writes(&device, &mut rng, map, WRITES / 4).await?;
    let before = writes(&device, &mut rng, map, WRITES).await?;
    let (mut snapshots, mut clones) = (Vec::new(), Vec::new());
    for n in 0..SNAPSHOTS {
        let began = now();
        volumes.snapshot("vol", &format!("s{n}"), 0).await.map_err(other)?;
        snapshots.push(began.elapsed().as_secs_f64() * 1e3);
        writes(&device, &mut rng, map, BETWEEN).await?;
        if n % 10 == 0 {
            let mut id = [2; 16];
            id[..4].copy_from_slice(&n.to_le_bytes());
            let began = now();
            let (name, snapshot) = (format!("c{n}"), format!("s{n}"));
            volumes.clone_snapshot(VolumeId(id), label(&name), "vol", &snapshot).await.map_err(other)?;
            clones.push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    let after = writes(&device, &mut rng, map, WRITES).await?;
    let began = now();
    volumes.forget_snapshot("vol", "s55").await.map_err(other)?;
    let mut steps = 0;
    while volumes.reap().await? {
        steps += 1;
    }
    let deleting = began.elapsed().as_secs_f64() * 1e3;
    let (snapshot, slowest_snapshot) = times(&snapshots);
    let (clone, slowest_clone) = times(&clones);
    let gib = map >> 30;
    let scenario = |name: &str, figure, unit, wanted, details| Scenario {
        name: format!("volume/{name}/{gib}G"),
        unit,
        figures: vec![figure],
        raw: None,
        wanted: Some(wanted),
        details,
    };
    let slower = round(1.0 - after / before);
    Ok([
        scenario(
            "snapshot",
            snapshot,
            "ms",
            ("under 10 ms".to_owned(), slowest_snapshot < 10.0),
            details([
                ("slowest_ms", json!(slowest_snapshot)),
                ("deleted_in_ms", json!(round(deleting))),
                ("steps", json!(steps)),
                ("changed_blocks", json!(BETWEEN)),
            ]),
        ),
        scenario(
            "clone",
            clone,
            "ms",
            ("under 20 ms".to_owned(), slowest_clone < 20.0),
            details([("slowest_ms", json!(slowest_clone))]),
        ),
        scenario(
            "writes-after-100-snapshots",
            round(after),
            "writes/s",
            ("no more than 10 % slower".to_owned(), slower <= 0.1),
            details([("before", json!(round(before))), ("slower_by", json!(slower))]),
        ),
    ])
}

/// Makes a large map, then snapshots and clones.
pub(crate) fn run(options: &Options, scratch: &Path, report: &mut Report) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(Failure::io("start runtime"))?;
    let all = runtime.block_on(measure(scratch, options.engine_bytes(), options.map))?;
    all.into_iter().try_for_each(|scenario| report.add(scenario))
}
