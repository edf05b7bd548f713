//! The command `quarry-fuzz`: fuzz the parsers, run histories of stores, see a failure again.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use quarry_fuzz::inputs::{self, Broken, TARGETS, Target};
use quarry_fuzz::store::{Plant, history};
use quarry_fuzz::volume;
use quarry_fuzz::{blocks, cluster};

#[derive(Debug, Parser)]
#[command(about = "Random tests of Quarry, each from a seed")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the targets.
    List,
    /// Fuzz parsers: all, or those named.
    Run {
        /// Targets.
        targets: Vec<String>,
        /// For each target.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Decides all inputs; by the clock when absent.
        #[arg(long)]
        seed: Option<u64>,
        /// Where a failing input is saved.
        #[arg(long, default_value = ".")]
        save: PathBuf,
    },
    /// Run one target on a file.
    Repro {
        /// The target.
        target: String,
        /// The input.
        file: PathBuf,
    },
    /// Run histories of whole stores.
    Store {
        /// One history.
        #[arg(long, conflicts_with = "seeds")]
        seed: Option<u64>,
        /// Several: FIRST..END.
        #[arg(long, value_parser = parse_range)]
        seeds: Option<Range<u64>>,
        /// From a seed that the clock chooses, for so long.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Plant a bug, to see that it is found.
        #[arg(long, value_enum, default_value_t)]
        plant: Plant,
    },
    /// Run histories of whole clusters.
    Cluster {
        /// One history.
        #[arg(long, conflicts_with = "seeds")]
        seed: Option<u64>,
        /// Several: FIRST..END.
        #[arg(long, value_parser = parse_range)]
        seeds: Option<Range<u64>>,
        /// From a seed that the clock chooses, for so long.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Plant a bug, to see that it is found.
        #[arg(long, value_enum, default_value_t)]
        planted: cluster::Plant,
        /// Lines of the log that a failure shows.
        #[arg(long, default_value_t = cluster::LINES)]
        lines: usize,
    },
    /// Run histories of volumes with several members as nodes run them.
    Blocks {
        /// One history.
        #[arg(long, conflicts_with = "seeds")]
        seed: Option<u64>,
        /// Several: FIRST..END.
        #[arg(long, value_parser = parse_range)]
        seeds: Option<Range<u64>>,
        /// From a seed that the clock chooses, for so long.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Plant a bug, to see that it is found.
        #[arg(long, value_enum, default_value_t)]
        planted: blocks::Plant,
        /// Lines of the log that a failure shows.
        #[arg(long, default_value_t = cluster::LINES)]
        lines: usize,
    },
    /// Run histories of the protocol of volumes with several members, whose disks and nodes are modelled.
    Volume {
        /// One history.
        #[arg(long, conflicts_with = "seeds")]
        seed: Option<u64>,
        /// Several: FIRST..END.
        #[arg(long, value_parser = parse_range)]
        seeds: Option<Range<u64>>,
        /// From a seed that the clock chooses, for so long.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Plant a bug, to see that it is found.
        #[arg(long, value_enum, default_value_t)]
        planted: volume::Plant,
        /// Lines of the log that a failure shows.
        #[arg(long, default_value_t = cluster::LINES)]
        lines: usize,
    },
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let (first, end) = text.split_once("..").ok_or("write FIRST..END")?;
    let number = |text: &str| text.parse::<u64>().map_err(|e| e.to_string());
    Ok(number(first)?..number(end)?)
}

#[expect(clippy::print_stdout, reason = "this command's output")]
fn say(text: &str) {
    println!("{text}");
}

fn seed_of_clock() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() / 60 * 100_000)
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let sound = match command.unwrap_or(Command::Run {
        targets: Vec::new(),
        seconds: 60,
        seed: None,
        save: PathBuf::from("."),
    }) {
        Command::List => {
            TARGETS.iter().for_each(|target| say(target.name));
            true
        }
        Command::Run { targets, seconds, seed, save } => run(&targets, seconds, seed, &save),
        Command::Repro { target, file } => repro(&target, &file),
        Command::Store { seed, seeds, seconds, plant } => {
            let seeds = seed.map(|seed| seed..seed + 1).or(seeds);
            store(seeds, Duration::from_secs(seconds), plant)
        }
        Command::Cluster { seed, seeds, seconds, planted, lines } => {
            let seeds = seed.map(|seed| seed..seed + 1).or(seeds);
            clusters(seeds, Duration::from_secs(seconds), planted, lines)
        }
        Command::Blocks { seed, seeds, seconds, planted, lines } => {
            let seeds = seed.map(|seed| seed..seed + 1).or(seeds);
            blocks_on_nodes(seeds, Duration::from_secs(seconds), planted, lines)
        }
        Command::Volume { seed, seeds, seconds, planted, lines } => {
            let seeds = seed.map(|seed| seed..seed + 1).or(seeds);
            volumes(seeds, Duration::from_secs(seconds), planted, lines)
        }
    };
    if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(names: &[String], seconds: u64, seed: Option<u64>, save: &Path) -> bool {
    let mut chosen: Vec<&'static Target> = Vec::new();
    for name in names {
        match inputs::target(name) {
            Some(target) => chosen.push(target),
            None => {
                say(&format!("no target {name}; `quarry-fuzz list` lists them"));
                return false;
            }
        }
    }
    if chosen.is_empty() {
        chosen.extend(TARGETS);
    }
    let seed = seed.unwrap_or_else(seed_of_clock);
    let mut sound = true;
    for target in chosen {
        let start = Instant::now();
        let limit = Duration::from_secs(seconds);
        match inputs::fuzz(target, seed, |count| count % 64 != 0 || start.elapsed() < limit) {
            Ok(count) => {
                say(&format!("{}: {count} inputs from seed {seed} in {:.0?}", target.name, start.elapsed()));
            }
            Err(Broken { input, what }) => {
                sound = false;
                let file = save.join(format!("{}-{seed}.input", target.name));
                let saved = std::fs::write(&file, &input);
                say(&format!("{} FAILED, seed {seed}: {what}", target.name));
                say(&match saved {
                    Ok(()) => format!("reproduce: quarry-fuzz repro {} {}", target.name, file.display()),
                    Err(e) => format!("input not saved ({e}): {input:02x?}"),
                });
            }
        }
    }
    sound
}

fn repro(name: &str, file: &Path) -> bool {
    let (Some(target), Ok(input)) = (inputs::target(name), std::fs::read(file)) else {
        say("no such target or file");
        return false;
    };
    match inputs::attempt(target, &input) {
        Ok(()) => say("sound"),
        Err(broken) => {
            say(&broken.what);
            return false;
        }
    }
    true
}

/// What came of many histories.
struct Ran {
    histories: u64,
    failures: u64,
    took: Duration,
}

/// Runs the histories of these seeds, or of seeds from the clock's on for so long; failures are told as they come.
fn histories<S: std::fmt::Debug, E: std::fmt::Display>(
    seeds: Option<Range<u64>>,
    limit: Duration,
    run: impl Fn(u64) -> Result<S, E>,
    mut add: impl FnMut(&S),
) -> Ran {
    let start = Instant::now();
    let timed = seeds.is_none();
    let seeds = seeds.unwrap_or_else(|| seed_of_clock()..u64::MAX);
    let one = seeds.end - seeds.start == 1;
    let (mut histories, mut failures) = (0, 0);
    for seed in seeds {
        if timed && start.elapsed() >= limit {
            break;
        }
        match run(seed) {
            Ok(summary) => {
                if one {
                    say(&format!("{summary:?}"));
                }
                add(&summary);
            }
            Err(failure) => {
                failures += 1;
                say(&failure.to_string());
            }
        }
        histories += 1;
    }
    Ran { histories, failures, took: start.elapsed() }
}

/// Simulated time, and how much faster than life it went.
fn pace(millis: u64, took: Duration) -> String {
    let hours = Duration::from_millis(millis).as_secs_f64() / 3600.0;
    let rate = u128::from(millis) / took.as_millis().max(1);
    format!("{hours:.1} simulated hours in {took:.0?}, {rate} times as fast as life")
}

fn store(seeds: Option<Range<u64>>, limit: Duration, plant: Plant) -> bool {
    let (mut operations, mut restarts) = (0_u64, 0_u64);
    let Ran { histories, failures, took } = histories(
        seeds,
        limit,
        |seed| history(seed, plant),
        |summary| {
            operations += summary.operations;
            restarts += summary.restarts;
        },
    );
    let rate = u128::from(operations) * 1000 / took.as_millis().max(1);
    say(&format!(
        "{histories} histories, {operations} operations ({rate} a second), {restarts} starts, {failures} failures in {took:.0?}"
    ));
    failures == 0
}

fn clusters(seeds: Option<Range<u64>>, limit: Duration, planted: cluster::Plant, lines: usize) -> bool {
    let mut sum = cluster::Summary::default();
    let run = |seed| cluster::history_with(seed, planted, lines);
    let Ran { histories, failures, took } = histories(seeds, limit, run, |summary| sum.add(summary));
    say(&format!(
        "{histories} histories, {} operations ({} unanswered), {} troubles, {} crashes, {} terms, {} groups made of others ({} \
         gone again), {} containers deleted, {} changes without a group ({} in one that comes and goes), {} answers of volumes, {failures} failures; {}",
        sum.operations,
        sum.unanswered,
        sum.troubles,
        sum.crashes,
        sum.terms,
        sum.splits,
        sum.returned,
        sum.gone,
        sum.alone,
        sum.strays,
        sum.blocks,
        pace(sum.millis, took),
    ));
    failures == 0
}

fn volumes(seeds: Option<Range<u64>>, limit: Duration, planted: volume::Plant, lines: usize) -> bool {
    let mut sum = volume::Summary::default();
    let run = |seed| volume::history_with(seed, planted, lines);
    let Ran { histories, failures, took } = histories(seeds, limit, run, |summary| sum.add(summary));
    say(&format!(
        "{histories} histories, {} answers, {} heads, {} crashes, {} pages of rows, {} changes of the members, {} heads that lost \
         unflushed writes, {failures} failures in {took:.0?}",
        sum.answers, sum.heads, sum.crashes, sum.fills, sum.changes, sum.lost,
    ));
    failures == 0
}

fn blocks_on_nodes(seeds: Option<Range<u64>>, limit: Duration, planted: blocks::Plant, lines: usize) -> bool {
    let mut sum = blocks::Summary::default();
    let run = |seed| blocks::history_with(seed, planted, lines);
    let Ran { histories, failures, took } = histories(seeds, limit, run, |summary| sum.add(summary));
    say(&format!(
        "{histories} histories, {} answers ({} failed), {} heads, {} crashes, {} changes of the members, {} snapshots read {} times, \
         {} clones read {} times, of which {} took over and {} went back, {failures} failures; {}",
        sum.answers,
        sum.failed,
        sum.heads,
        sum.crashes,
        sum.changes,
        sum.frozen[0],
        sum.frozen[1],
        sum.clones[0],
        sum.clones[1],
        sum.clones[2],
        sum.clones[3],
        pace(sum.millis, took),
    ));
    failures == 0
}
