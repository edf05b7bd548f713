//! A volume that is read in order: after it was written in order, after all of it was overwritten at random, twice, after
//! cleaning, and after what was read was brought into order.
//!
//! Reads of 1 MiB, 8 at a time, past the page cache. Beside the rate: how many requests of the device and how much processor a
//! MiB cost, which a shared machine does not blur, and what the volume takes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use quarry_engine::disk::DiskHandle;
use quarry_engine::io::SplitMix64;
use quarry_engine::work::{Cleaner, Orderer, Outcome, Worker};
use quarry_volume::VolumeId;
use quarry_volume::store::{Device, Label};
use serde_json::json;

use crate::args::Options;
use crate::failure::Failure;
use crate::load::{Limit, as_f64, closed_loop, now};
use crate::report::{Report, Scenario, details, round, say};
use crate::volume::{open, other};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4 << 10;
/// Reads and writes that are under way together.
const TOGETHER: usize = 8;
/// How often all of it is overwritten.
const OVERWRITES: u64 = 2;
/// Moments that are measured.
const MOMENTS: [&str; 4] = ["in-order", "overwritten", "cleaned", "ordered"];

/// What a pass over the volume came to.
#[derive(Debug, Clone, Copy)]
struct Pass {
    mib_per_second: f64,
    requests_per_mib: f64,
    cpu_ms_per_mib: f64,
    live_mib: f64,
    written_mib: f64,
}

/// Milliseconds of processor that this process has used.
fn processor_ms() -> f64 {
    // Fields 14 and 15, hundredths of a second; the second may have blanks in it, and ends with the last bracket.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let rest = stat.rsplit(')').next().unwrap_or_default();
    let fields = rest.split_whitespace().skip(11).take(2);
    fields.filter_map(|ticks| ticks.parse::<u64>().ok()).map(|ticks| as_f64(ticks) * 10.0).sum()
}

fn mib(bytes: u64) -> f64 {
    as_f64(bytes) / as_f64(MIB)
}

async fn read_in_order(disk: &DiskHandle, device: &Device) -> Result<Pass, Failure> {
    let bytes = device.bytes();
    let counters = disk.counters();
    let (reads, cpu) = (counters.reads.load(Ordering::Relaxed), processor_ms());
    let limit = Limit::new(std::time::Duration::from_secs(3600), bytes, MIB);
    let (pass, _) = closed_loop(vec![(); TOGETHER], limit, async |(), number| {
        device.read(number * MIB, MIB).await.map(|_| ()).map_err(other)
    })
    .await?;
    let reads = counters.reads.load(Ordering::Relaxed) - reads;
    Ok(Pass {
        mib_per_second: round(pass.rate()),
        requests_per_mib: round(as_f64(reads) / mib(bytes)),
        cpu_ms_per_mib: round((processor_ms() - cpu) / mib(bytes)),
        live_mib: round(mib(disk.usage().live)),
        written_mib: round(mib(counters.written_bytes.load(Ordering::Relaxed))),
    })
}

fn filled(rng: &mut SplitMix64, bytes: u64) -> Bytes {
    let mut data = vec![0; usize::try_from(bytes).unwrap_or(0)];
    rng.fill(&mut data);
    data.into()
}

async fn write_in_order(device: &Device, rng: &mut SplitMix64) -> Result<(), Failure> {
    let data = filled(rng, MIB);
    for nth in 0..device.bytes() / MIB {
        device.write(nth * MIB, data.clone()).await.map_err(other)?;
    }
    device.flush().await.map_err(other)
}

/// A worker until it has nothing to do.
async fn work(worker: &mut dyn Worker) -> Result<u64, Failure> {
    let mut units = 0;
    loop {
        match worker.step(64).await {
            Outcome::Did(did) => units += u64::from(did),
            Outcome::Idle | Outcome::Waits(_) => return Ok(units),
            Outcome::Failed(why) => return Err(Failure::Other(why)),
        }
    }
}

/// Overwrites as many blocks as the volume has, at random, and cleans as a node does.
async fn overwrite(
    disk: &DiskHandle,
    device: &Device,
    cleaner: &mut Cleaner,
    rng: &mut SplitMix64,
) -> Result<(), Failure> {
    let (blocks, data) = (device.bytes() / BLOCK, filled(rng, BLOCK));
    for nth in 0..blocks {
        device.write(rng.below(blocks) * BLOCK, data.clone()).await.map_err(other)?;
        if nth % 4096 == 0 && disk.wants_cleaning() {
            work(cleaner).await?;
        }
    }
    device.flush().await.map_err(other)
}

/// Cleans every segment that is worth it, as a disk does in time.
async fn clean_all(disk: &DiskHandle) -> Result<(), Failure> {
    let mut skip = Vec::new();
    loop {
        let victims = disk.victims(&skip);
        if victims.is_empty() {
            return disk.checkpoint().await.map_err(other);
        }
        // Each once: cold segments are worth cleaning again as long as the volume is written to.
        skip.extend(victims.iter().copied());
        disk.clean_together(&victims).await.map_err(other)?;
        disk.checkpoint().await.map_err(other)?;
    }
}

async fn measure(scratch: &Path, options: &Options) -> Result<Vec<[Pass; 4]>, Failure> {
    let (disk, volumes) = open(scratch, options.engine_bytes()).await?;
    let clock = Arc::new(AtomicU64::new(0));
    let wall = { Arc::new(move || clock.fetch_add(60_000_000, Ordering::Relaxed)) };
    let mut cleaner = Cleaner::new(disk.clone());
    let mut orderer = Orderer::new(disk.clone(), wall);
    let mut rng = SplitMix64::new(1);
    let mut rounds = Vec::new();
    for nth in 0..options.rounds {
        let name = format!("vol{nth}");
        let mut id = [1; 16];
        id[..8].copy_from_slice(&(nth as u64).to_le_bytes());
        let label = Label { name: name.clone(), bytes: options.volume, ..Label::default() };
        volumes.create(VolumeId(id), label).await.map_err(other)?;
        let device = volumes.attach(&name).await.map_err(other)?;
        write_in_order(&device, &mut rng).await?;
        let in_order = read_in_order(&disk, &device).await?;
        for _ in 0..OVERWRITES {
            overwrite(&disk, &device, &mut cleaner, &mut rng).await?;
        }
        let overwritten = read_in_order(&disk, &device).await?;
        clean_all(&disk).await?;
        let cleaned = read_in_order(&disk, &device).await?;
        let began = now();
        let units = work(&mut orderer).await?;
        say(&format!(
            "round {nth}: brought into order: {units} units in {:.1} s",
            began.elapsed().as_secs_f64()
        ));
        let ordered = read_in_order(&disk, &device).await?;
        rounds.push([in_order, overwritten, cleaned, ordered]);
        drop(device);
        volumes.delete(&name).await.map_err(other)?;
        while volumes.reap().await.map_err(other)? {}
        clean_all(&disk).await?;
    }
    Ok(rounds)
}

/// Reads a volume in order in four states of its disorder.
pub(crate) fn run(options: &Options, scratch: &Path, report: &mut Report) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(Failure::io("start runtime"))?;
    let rounds = runtime.block_on(measure(scratch, options))?;
    for (nth, moment) in MOMENTS.into_iter().enumerate() {
        let passes: Vec<Pass> = rounds.iter().filter_map(|round| round.get(nth)).copied().collect();
        let all = |figure: fn(&Pass) -> f64| json!(passes.iter().map(figure).collect::<Vec<_>>());
        report.add(Scenario {
            name: format!("volume/read/{moment}"),
            unit: "MiB/s",
            figures: passes.iter().map(|pass| pass.mib_per_second).collect(),
            raw: None,
            wanted: None,
            details: details([
                ("volume_mib", json!(options.volume >> 20)),
                ("requests_per_mib", all(|pass| pass.requests_per_mib)),
                ("cpu_ms_per_mib", all(|pass| pass.cpu_ms_per_mib)),
                ("live_mib", all(|pass| pass.live_mib)),
                ("written_mib", all(|pass| pass.written_mib)),
            ]),
        })?;
    }
    Ok(())
}
