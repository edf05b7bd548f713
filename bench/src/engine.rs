//! Put and get through the disk engine and through the object layer, beside the raw loop with the batch sizes that
//! the engine chose.

use std::path::Path;

use quarry_engine::io::{SplitMix64, inspect_device, preallocate};
use serde_json::{Value, json};

use crate::args::Options;
use crate::failure::Failure;
use crate::load::{Limit, Pass, as_f64, closed_loop, median};
use crate::machine::cpu_us;
use crate::raw::{Raw, Target};
use crate::report::{Beside, Report, Scenario, details, round, say, size_text};
use crate::rig::{Counts, Layer, Place, Rig, runtime};

const MIB: f64 = 1_048_576.0;

/// Least share of the raw loop's rate that issue 2 asks for.
fn wanted(layer: Layer, size: u64, in_flight: usize) -> Option<f64> {
    match (layer, size, in_flight) {
        (Layer::Engine, 4096, 32) => Some(0.8),
        (Layer::Engine, 1_048_576, _) => Some(0.85),
        _ => None,
    }
}

/// Every size, every depth.
pub(crate) fn run(options: &Options, scratch: &Path, report: &mut Report) -> Result<(), Failure> {
    let (place, target) = prepare(options, scratch)?;
    let mut raw = Raw::open(target)?;
    for layer in [Layer::Engine, Layer::Object] {
        for size in &options.size {
            one_size(options, layer, *size, &place, &mut raw, report)?;
        }
    }
    drop(raw);
    if options.device.is_none() {
        for file in ["engine", "raw"] {
            std::fs::remove_file(scratch.join(file)).map_err(Failure::io("remove scratch file"))?;
        }
    }
    std::fs::remove_dir_all(&place.index).map_err(Failure::io("remove index"))
}

/// Puts at every depth, each on a fresh disk; then gets of what the last depth put.
fn one_size(
    options: &Options,
    layer: Layer,
    size: u64,
    place: &Place,
    raw: &mut Raw,
    report: &mut Report,
) -> Result<(), Failure> {
    let bench = |in_flight: usize| Bench { options, place, layer, size, in_flight };
    let mut last: Option<Rig> = None;
    for in_flight in &options.in_flight {
        if let Some(before) = last.take() {
            before.close()?;
        }
        let rig = Rig::fresh(place, layer)?;
        report.add(bench(*in_flight).put(&rig, raw)?)?;
        last = Some(rig);
    }
    let Some(rig) = last else { return Ok(()) };
    for in_flight in &options.in_flight {
        report.add(bench(*in_flight).get(&rig, raw)?)?;
    }
    rig.close()
}

/// The engine's place and the raw loop's: two files, or two parts of a device.
pub(crate) fn prepare(options: &Options, scratch: &Path) -> Result<(Place, Target), Failure> {
    let index = scratch.join("index");
    if let Some(device) = &options.device {
        let capacity = inspect_device(device)?.capacity;
        let bytes = (capacity / 4 * 3).min(options.engine_bytes()).next_multiple_of(1 << 20);
        let len = (capacity - bytes).min(options.raw_bytes()) >> 20 << 20;
        let target = Target { path: device.clone(), start: bytes, len, shared: true };
        return Ok((Place { disk: device.clone(), bytes, index }, target));
    }
    let (disk, path) = (scratch.join("engine"), scratch.join("raw"));
    let (bytes, len) = (options.engine_bytes(), options.raw_bytes());
    say(&format!("writing {} MiB of files once", (bytes + len) >> 20));
    preallocate(&disk, bytes, &mut |_| {})?;
    preallocate(&path, len, &mut |_| {})?;
    Ok((Place { disk, bytes, index }, Target { path, start: 0, len, shared: false }))
}

struct Bench<'a> {
    options: &'a Options,
    place: &'a Place,
    layer: Layer,
    size: u64,
    in_flight: usize,
}

/// What the engine did in one pass.
struct Measured {
    pass: Pass,
    counts: Counts,
    /// Processor microseconds of the disk's thread and of the whole process.
    disk_us: u64,
    all_us: u64,
}

impl Bench<'_> {
    fn name(&self, verb: &str) -> String {
        format!("{}/{verb}/{}/{}", self.layer.name(), size_text(self.size), self.in_flight)
    }

    fn bytes(&self) -> usize {
        usize::try_from(self.size).unwrap_or(usize::MAX)
    }

    /// Three quarters of the engine's bytes, shared by the passes and a warm-up of half a pass. The log takes more than
    /// the payload: a batch of one small record fills two blocks.
    fn put_limit(&self) -> Limit {
        let share = self.place.bytes / 4 * 3 / (u64::from(self.options.rounds) + 1);
        let in_log = (self.size + 1024) * if self.in_flight == 1 { 2 } else { 1 };
        Limit::new(self.options.pass(), share, in_log.max(8192 / self.in_flight as u64))
    }

    fn measure(&self, rig: &Rig, put: bool, limit: Limit) -> Result<Measured, Failure> {
        let runtime = runtime()?;
        let mut random = SplitMix64::new(rig.records());
        let workers: Vec<_> = (0..self.in_flight).map(|_| random.split()).collect();
        let (before, disk, all) = (rig.counts(), disk_us(), cpu_us("self", |_| true));
        let op = async |random: &mut SplitMix64, _| {
            if put { rig.put(self.bytes()).await } else { rig.get(self.bytes(), random).await }
        };
        let (pass, _) = runtime.block_on(closed_loop(workers, limit, op))?;
        Ok(Measured {
            pass,
            counts: rig.counts().minus(before),
            disk_us: disk_us() - disk,
            all_us: cpu_us("self", |_| true) - all,
        })
    }

    fn put(&self, rig: &Rig, raw: &mut Raw) -> Result<Scenario, Failure> {
        let limit = self.put_limit();
        let warm = Limit { time: limit.time / 2, ops: limit.ops.div_ceil(2) };
        let mut batch = batch_bytes(&self.measure(rig, true, warm)?.counts);
        let (mut done, mut rounds, mut raws) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.options.rounds {
            let budget = Limit::new(limit.time, limit.ops * self.size, batch as u64);
            let alone = raw.write_pass(batch, budget)?;
            let ours = self.measure(rig, true, limit)?;
            let log_rate = as_f64(ours.counts.written) / ours.pass.seconds / MIB;
            rounds.push((log_rate, alone.rate() * as_f64(batch as u64) / MIB));
            batch = batch_bytes(&ours.counts);
            done.push(ours);
            raws.push(alone);
        }
        let what = "sequential O_DIRECT writes of the engine's mean batch, an fdatasync after each; ratio of log bytes";
        let raw = Beside::new(what, "MiB/s", &rounds);
        let wanted = wanted(self.layer, self.size, self.in_flight);
        let wanted = wanted.map(|least| (format!("ratio >= {least}"), raw.ratio >= least));
        let mut details = self.details(&done, &raws);
        let counts = done.iter().fold(Counts::default(), |sum, one| sum.plus(one.counts));
        let ops: u64 = done.iter().map(|one| one.pass.ops).sum();
        let per = |n: u64, of: u64| json!(round(as_f64(n) / as_f64(of.max(1))));
        details.insert("log_mib_per_s".to_owned(), json!(round(median_of(&rounds, |(ours, _)| *ours))));
        details.insert("batches".to_owned(), json!(counts.batches));
        details.insert("behind_per_batch".to_owned(), per(counts.behind, counts.batches));
        details.insert("flushes_per_batch".to_owned(), per(counts.flushes, counts.batches));
        details.insert("records_per_batch".to_owned(), per(counts.records, counts.batches));
        details.insert("bytes_per_batch".to_owned(), per(counts.written, counts.batches));
        details.insert("log_bytes_per_payload_byte".to_owned(), per(counts.written, ops * self.size));
        let figures = done.iter().map(|one| one.pass.rate()).collect();
        Ok(Scenario { name: self.name("put"), unit: "puts/s", figures, raw: Some(raw), wanted, details })
    }

    fn get(&self, rig: &Rig, raw: &mut Raw) -> Result<Scenario, Failure> {
        let limit = Limit { time: self.options.pass(), ops: u64::MAX };
        let span = rig.records() * self.size;
        self.measure(rig, false, Limit { time: limit.time / 4, ..limit })?;
        let (mut done, mut rounds, mut raws) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.options.rounds {
            let alone = raw.read_pass(self.bytes(), self.in_flight, span, limit)?;
            let ours = self.measure(rig, false, limit)?;
            rounds.push((ours.pass.rate(), alone.rate()));
            done.push(ours);
            raws.push(alone);
        }
        let raw =
            Beside::new("random O_DIRECT reads of the payload's size at the same depth", "reads/s", &rounds);
        let figures = done.iter().map(|one| one.pass.rate()).collect();
        let details = self.details(&done, &raws);
        Ok(Scenario {
            name: self.name("get"),
            unit: "gets/s",
            figures,
            raw: Some(raw),
            wanted: None,
            details,
        })
    }

    fn details(&self, done: &[Measured], raws: &[Pass]) -> serde_json::Map<String, Value> {
        let mid = |figure: &dyn Fn(&Measured) -> f64| json!(round(median_of(done, figure)));
        let each = |spent: u64, one: &Measured| as_f64(spent) / as_f64(one.pass.ops.max(1));
        details([
            ("payload_mib_per_s", mid(&|one| one.pass.rate() * as_f64(self.size) / MIB)),
            ("p50_us", mid(&|one| one.pass.percentile(50))),
            ("p99_us", mid(&|one| one.pass.percentile(99))),
            ("raw_p50_us", json!(round(median_of(raws, |raw| raw.percentile(50))))),
            ("raw_p99_us", json!(round(median_of(raws, |raw| raw.percentile(99))))),
            ("disk_thread_us_per_op", mid(&|one| each(one.disk_us, one))),
            ("process_us_per_op", mid(&|one| each(one.all_us, one))),
        ])
    }
}

fn median_of<T>(many: &[T], figure: impl Fn(&T) -> f64) -> f64 {
    median(&many.iter().map(figure).collect::<Vec<_>>())
}

fn disk_us() -> u64 {
    cpu_us("self", |thread| thread.starts_with("disk-"))
}

fn batch_bytes(counts: &Counts) -> usize {
    usize::try_from(counts.written / counts.batches.max(1)).unwrap_or(usize::MAX)
}
