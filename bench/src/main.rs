//! `quarry-bench`: what the engine and the node do on this machine, each beside a raw loop on the same disk; and rings.
//!
//! Invariant: one JSON line a scenario on stdout, a table for people on stderr.
//! Invariant: raw and measured passes alternate within a scenario; what is quoted is the median of the rounds' ratios.
//! Invariant: a run takes no more disk than `--budget` and leaves nothing behind, unless it is killed.

mod args;
mod engine;
mod failure;
mod fragmented;
mod http;
mod kv;
mod load;
mod machine;
mod raw;
mod recovery;
mod report;
mod rig;
mod ring;
mod scrub;
mod split;
mod transport;
mod volume;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use failure::Failure;
use report::Report;

/// As the `quarry` program has it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report::complain(&failure);
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let options = &cli.options;
    let wanted = cli.command.as_ref().unwrap_or(&Command::All);
    if let Command::Child(child) = wanted {
        return recovery::child(child, options);
    }
    options.check()?;
    std::fs::create_dir_all(&options.dir).map_err(Failure::io("make directory"))?;
    let scratch = tempfile::Builder::new()
        .prefix(".quarry-bench-")
        .tempdir_in(&options.dir)
        .map_err(Failure::io("make scratch directory"))?;
    let mut report = Report::new(machine::Machine::of(scratch.path()));
    if matches!(wanted, Command::All | Command::Engine) {
        engine::run(options, scratch.path(), &mut report)?;
    }
    if matches!(wanted, Command::All | Command::Scrub) {
        scrub::run(options, scratch.path(), &mut report)?;
    }
    if matches!(wanted, Command::All | Command::Recovery) {
        recovery::run(options, scratch.path(), &mut report)?;
    }
    if matches!(wanted, Command::All | Command::Http) {
        http::run(options, scratch.path(), &mut report)?;
    }
    if matches!(wanted, Command::All | Command::Ring) {
        ring::run(options, scratch.path(), &mut report)?;
    }
    if matches!(wanted, Command::All | Command::Transport) {
        transport::run(options, &mut report)?;
    }
    // They take minutes: only when they are named.
    if matches!(wanted, Command::Split) {
        split::run(options, scratch.path(), &mut report)?;
    }
    if matches!(wanted, Command::Volume) {
        let run = if options.fragmented { fragmented::run } else { volume::run };
        run(options, scratch.path(), &mut report)?;
    }
    scratch.close().map_err(Failure::io("remove scratch directory"))?;
    report.table();
    Ok(())
}
