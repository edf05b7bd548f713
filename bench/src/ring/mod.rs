//! Rings: time to build, change and look up; and beside swift-ring-builder on the same clusters, where it is installed.
//!
//! Invariant: both are judged by one yardstick: Swift's builders are imported, and measured as our own.

mod cluster;
mod swift;

use std::hint::black_box;

use quarry_ring::{Builder, Diff, Health, Ring, diff};
use serde_json::{Value, json};

use crate::args::Options;
use crate::failure::Failure;
use crate::load::{as_f64, median, now};
use crate::report::{Beside, Report, Scenario, details, round};
use cluster::{Cluster, Step};

/// A hundredth of what Swift 2.38.3 took for 1,000 devices and 2^18 partitions of 3 replicas.
const WANTED_BUILD_MS: f64 = 396.0;
const WANTED_CHANGE_MS: f64 = 75.0;
/// For 10,000 devices and 2^20 partitions.
const WANTED_LARGE_MS: f64 = 5000.0;
const WANTED_LARGE_MIB: f64 = 1024.0;
const WANTED_LOOKUP_NS: f64 = 50.0;
/// How many times faster than Swift, on the same.
const WANTED_TIMES: f64 = 100.0;
/// Look-ups of one pass.
const LOOKUPS: u32 = 4_000_000;

/// What a step came to.
#[derive(Debug, Clone)]
struct Outcome {
    health: Health,
    moves: Option<Diff>,
}

pub(crate) fn run(options: &Options, scratch: &std::path::Path, report: &mut Report) -> Result<(), Failure> {
    for (cluster, wanted_build, wanted_change) in
        [(cluster::UNIFORM, WANTED_BUILD_MS, Some(WANTED_CHANGE_MS)), (cluster::LARGE, WANTED_LARGE_MS, None)]
    {
        let ring = steps(options, cluster, wanted_build, wanted_change, report)?;
        lookup(options, cluster, &ring, report)?;
    }
    let Some(python) = swift::python(options)? else { return Ok(()) };
    for cluster in cluster::COMPARED {
        compare(options, cluster, &python, scratch, report)?;
    }
    Ok(())
}

/// The time of each step; the ring at the end.
fn steps(
    options: &Options,
    cluster: &Cluster,
    wanted_build: f64,
    wanted_change: Option<f64>,
    report: &mut Report,
) -> Result<Ring, Failure> {
    let mut builder = cluster.empty()?;
    for step in [Step::Build, Step::Add, Step::Remove, Step::Weight] {
        let (figures, done) = measured(options, &builder, step)?;
        builder = done;
        let peak = as_f64(crate::machine::peak_kib()) / 1024.0;
        let wanted = match step {
            Step::Build => {
                let memory_holds = wanted_build < WANTED_LARGE_MS || peak < WANTED_LARGE_MIB;
                Some((format!("< {wanted_build} ms"), median(&figures) < wanted_build && memory_holds))
            }
            _ => wanted_change.map(|wanted| (format!("< {wanted} ms"), median(&figures) < wanted)),
        };
        let health = builder.health();
        report.add(Scenario {
            name: format!("ring/{}/{}", step.name(), cluster.name),
            unit: "ms",
            figures,
            raw: None,
            wanted,
            details: details([
                ("partitions", builder.partitions().into()),
                ("devices", builder.members().len().into()),
                ("balance_percent", percent(health.balance)),
                ("dispersion_percent", percent(health.crowded)),
                ("peak_mib", round(peak).into()),
            ]),
        })?;
    }
    ring(&builder)
}

/// One step, from the same builder again and again: milliseconds, and what it leads to.
fn measured(options: &Options, builder: &Builder, step: Step) -> Result<(Vec<f64>, Builder), Failure> {
    let mut figures = Vec::new();
    let mut last = None;
    for _ in 0..options.rounds {
        let mut again = builder.clone();
        step.edit(&mut again)?;
        let began = now();
        again.rebalance(2).map_err(|error| Failure::Other(error.to_string()))?;
        figures.push(began.elapsed().as_secs_f64() * 1e3);
        last = Some(again);
    }
    let last = last.ok_or_else(|| Failure::Other("--rounds: give 1 or more".to_owned()))?;
    Ok((figures, last))
}

fn lookup(options: &Options, cluster: &Cluster, ring: &Ring, report: &mut Report) -> Result<(), Failure> {
    let mut figures = Vec::new();
    for round in 0..options.rounds {
        let mut partition = round | 1;
        let began = now();
        let mut sum = 0_u32;
        for _ in 0..LOOKUPS {
            // A linear congruential walk, so that the next partition is not in the cache for its neighbour's sake.
            partition = partition.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            for device in ring.lookup(partition >> (32 - u32::from(ring.part_power()))) {
                sum = sum.wrapping_add(device.id);
            }
        }
        black_box(sum);
        figures.push(began.elapsed().as_secs_f64() * 1e9 / f64::from(LOOKUPS));
    }
    let holds = median(&figures) < WANTED_LOOKUP_NS;
    report.add(Scenario {
        name: format!("ring/lookup/{}", cluster.name),
        unit: "ns",
        figures,
        raw: None,
        wanted: Some((format!("< {WANTED_LOOKUP_NS} ns"), holds)),
        details: details([("partitions", (1_u64 << ring.part_power()).into())]),
    })
}

/// Every step here and there: balance, dispersion, movement, time.
fn compare(
    options: &Options,
    cluster: &Cluster,
    python: &std::path::Path,
    scratch: &std::path::Path,
    report: &mut Report,
) -> Result<(), Failure> {
    let peer = swift::run(python, cluster, scratch)?;
    let mut builder = cluster.empty()?;
    let mut before: [Option<Ring>; 2] = [None, None];
    for (step, theirs) in Step::ALL.into_iter().zip(peer) {
        let (figures, done) = measured(options, &builder, step)?;
        let ours = outcome(&done, &mut before[0])?;
        let swift = outcome(&theirs.builder, &mut before[1])?;
        builder = done;
        let seconds = theirs.seconds * 1e3;
        let rounds: Vec<_> = figures.iter().map(|&figure| (figure, seconds)).collect();
        let worse = verdict(&ours, &swift);
        let holds = worse.is_empty();
        let fast = median(&figures) * WANTED_TIMES < seconds;
        let (wanted, met) = if cluster.name == cluster::UNIFORM.name {
            (format!("no worse, {WANTED_TIMES} x faster"), holds && fast)
        } else {
            ("no worse".to_owned(), holds)
        };
        report.add(Scenario {
            name: format!("ring/{}/{}", step.name(), cluster.name),
            unit: "ms",
            raw: Some(Beside::new("swift-ring-builder", "ms", &rounds)),
            wanted: Some((wanted, met)),
            figures,
            details: details([
                ("devices", builder.members().len().into()),
                ("partitions", builder.partitions().into()),
                ("ours", ours.json()),
                ("swift", swift.json()),
                ("worse_in", worse.into()),
            ]),
        })?;
    }
    Ok(())
}

impl Outcome {
    fn moved(&self) -> Option<u64> {
        self.moves.as_ref().map(|moves| moves.moved)
    }

    fn json(&self) -> Value {
        json!({
            "balance_percent": percent(self.health.balance),
            "off_target_percent": percent(self.health.off_target),
            "dispersion_percent": percent(self.health.crowded),
            "replicas_moved": self.moved(),
        })
    }
}

fn outcome(builder: &Builder, before: &mut Option<Ring>) -> Result<Outcome, Failure> {
    let ring = ring(builder)?;
    let moves = before.as_ref().map(|before| diff(before, &ring)).transpose();
    let moves = moves.map_err(|error| Failure::Other(error.to_string()))?;
    *before = Some(ring);
    Ok(Outcome { health: builder.health(), moves })
}

/// In what ours is worse.
fn verdict(ours: &Outcome, theirs: &Outcome) -> Vec<&'static str> {
    let worse = [
        ("balance", ours.health.balance > theirs.health.balance),
        ("dispersion", ours.health.crowded > theirs.health.crowded),
        ("movement", ours.moved() > theirs.moved()),
    ];
    worse.into_iter().filter(|(_, worse)| *worse).map(|(what, _)| what).collect()
}

fn ring(builder: &Builder) -> Result<Ring, Failure> {
    let ring = builder.ring().map_err(|error| Failure::Other(error.to_string()))?;
    ring.ok_or_else(|| Failure::Other("a builder without a ring".to_owned()))
}

/// Millionths as a percentage.
fn percent(millionths: u64) -> Value {
    (as_f64(millionths) / 1e4).into()
}
