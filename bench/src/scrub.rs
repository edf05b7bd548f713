//! How fast the auditor reads a disk when nothing holds it back, beside a raw loop that reads a file in order on the same disk.
//!
//! Objects of one size on a fresh disk, each with its row; a pass reads and verifies all of them, and the lines of listings.

use std::path::Path;
use std::sync::atomic::Ordering;

use quarry_engine::io::SplitMix64;
use quarry_engine::work::{Auditor, Pace, Runner, Worker};
use serde_json::json;

use crate::args::Options;
use crate::engine::prepare;
use crate::failure::Failure;
use crate::load::{Limit, as_f64, closed_loop, median, now};
use crate::machine::cpu_us;
use crate::raw::Raw;
use crate::report::{Beside, Report, Scenario, details, round, say, size_text};
use crate::rig::{Layer, Rig, runtime};

const MIB: f64 = 1_048_576.0;
/// The raw loop's reads: as large as the largest record, as many at a time as it takes to keep a disk busy.
const READ: usize = 1 << 20;
const READS: usize = 8;
/// Puts at a time.
const PUTS: usize = 32;
/// Most objects of a disk.
const OBJECTS: u64 = 131_072;
/// An auditor that nothing holds back: units of 64 KiB.
const RATE: u32 = 1 << 20;

/// What one pass of the auditor came to.
struct Audited {
    bytes: u64,
    seconds: f64,
    cpu_us: u64,
    disk_us: u64,
    reads: u64,
}

/// Every size on a fresh disk.
pub(crate) fn run(options: &Options, scratch: &Path, report: &mut Report) -> Result<(), Failure> {
    let (place, target) = prepare(options, scratch)?;
    if options.device.is_some() {
        say("scrub: measured on files alone");
        return Ok(());
    }
    let mut raw = Raw::open(target)?;
    for size in &options.size {
        let rig = Rig::fresh(&place, Layer::Object)?;
        let objects = (place.bytes / 2 / (*size + 1024)).min(OBJECTS);
        fill(&rig, *size, objects)?;
        report.add(measure(options, &rig, *size, objects, &mut raw)?)?;
        rig.close()?;
    }
    drop(raw);
    for file in ["engine", "raw"] {
        std::fs::remove_file(scratch.join(file)).map_err(Failure::io("remove scratch file"))?;
    }
    std::fs::remove_dir_all(&place.index).map_err(Failure::io("remove index"))
}

fn fill(rig: &Rig, size: u64, objects: u64) -> Result<(), Failure> {
    let mut random = SplitMix64::new(1);
    let workers: Vec<_> = (0..PUTS).map(|_| random.split()).collect();
    let limit = Limit { time: std::time::Duration::from_secs(3600), ops: objects };
    let bytes = usize::try_from(size).unwrap_or(usize::MAX);
    let put = async |_: &mut SplitMix64, _| rig.put(bytes).await;
    runtime()?.block_on(async {
        closed_loop(workers, limit, put).await?;
        Ok(rig.handle.checkpoint().await?)
    })
}

/// A pass of an auditor that was made just now, at the pace that its runner gives it.
async fn audit(rig: &Rig) -> Result<Audited, Failure> {
    let Some(store) = rig.store() else { return Err(Failure::Other("there is no store".to_owned())) };
    let pace = Pace { units_per_second: RATE, idle_seconds: 1 };
    let auditor: Box<dyn Worker> = Box::new(Auditor::new(rig.handle.clone(), store.clone()));
    let began = now();
    let mut runner = Runner::new(auditor, pace, Box::new(move || began.elapsed()), Box::new(|| 0));
    let reports = runner.reports();
    let (cpu, disk) = (cpu_us("self", |_| true), disk_us());
    let reads = rig.handle.counters().reads.load(Ordering::Relaxed);
    while reports.read().progress.passes == 0 {
        let pause = runner.turn().await;
        if reports.read().errors > 0 {
            return Err(Failure::Other(reports.read().last_error.unwrap_or_default()));
        }
        // A runner of a node sleeps so long; and others have their turn.
        tokio::time::sleep(pause.whole.min(std::time::Duration::from_millis(50))).await;
    }
    let progress = reports.read().progress;
    if progress.findings > 0 {
        return Err(Failure::Other(progress.last_finding.unwrap_or_default()));
    }
    Ok(Audited {
        bytes: progress.bytes,
        seconds: began.elapsed().as_secs_f64().max(1e-9),
        cpu_us: cpu_us("self", |_| true) - cpu,
        disk_us: disk_us() - disk,
        reads: rig.handle.counters().reads.load(Ordering::Relaxed) - reads,
    })
}

fn disk_us() -> u64 {
    cpu_us("self", |thread| thread.starts_with("disk-"))
}

fn measure(
    options: &Options,
    rig: &Rig,
    size: u64,
    objects: u64,
    raw: &mut Raw,
) -> Result<Scenario, Failure> {
    let runtime = runtime()?;
    let (mut done, mut rounds, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let scan = raw.scan_pass(READ, READS, objects * size)?;
        let raw_rate = scan.rate() * as_f64(READ as u64) / MIB;
        let audited = runtime.block_on(audit(rig))?;
        rounds.push((as_f64(audited.bytes) / audited.seconds / MIB, raw_rate));
        alone.push(raw_rate);
        done.push(audited);
    }
    let what = "O_DIRECT reads of 1 MiB in order, 8 at a time; ratio of bytes";
    let of =
        |figure: &dyn Fn(&Audited) -> f64| json!(round(median(&done.iter().map(figure).collect::<Vec<_>>())));
    let gb = |one: &Audited| as_f64(one.bytes) / 1e9;
    let details = details([
        ("objects", json!(objects)),
        ("objects_per_s", of(&|one| as_f64(objects) / one.seconds)),
        ("cpu_s_per_gb", of(&|one| as_f64(one.cpu_us) / 1e6 / gb(one))),
        ("disk_thread_s_per_gb", of(&|one| as_f64(one.disk_us) / 1e6 / gb(one))),
        ("cpu_us_per_object", of(&|one| as_f64(one.cpu_us) / as_f64(objects))),
        ("reads_per_object", of(&|one| as_f64(one.reads) / as_f64(objects))),
        ("pass_seconds", of(&|one| one.seconds)),
    ]);
    Ok(Scenario {
        name: format!("scrub/{}", size_text(size)),
        unit: "MiB/s",
        figures: rounds.iter().map(|(ours, _)| *ours).collect(),
        raw: Some(Beside::new(what, "MiB/s", &rounds)),
        wanted: None,
        details,
    })
}
