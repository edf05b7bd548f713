//! `quarry ring`: builders of rings, edited by people.
//!
//! Invariant: a builder is changed under its lock, and its file replaced whole; rings are written by `rebalance` alone.
//! Invariant: a refused command has written nothing.

mod edit;
mod output;
mod spec;
mod store;

#[cfg(test)]
mod tests;

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use quarry_ring::{Class, Overload, Replicas};

use super::{Failure, size};
use spec::{DeviceSpec, WeightSpec, class, overload, replicas};

#[derive(Debug, Subcommand)]
pub(super) enum RingCommand {
    /// Make an empty builder.
    Create(CreateArgs),
    /// Add devices; their replicas come with the next rebalance.
    Add {
        /// The builder's file.
        file: PathBuf,
        /// REGION.ZONE.NODE:WEIGHT[:CLASS[:LABEL]], such as 1.2.7:4000:hdd:store7/sdb
        #[arg(required = true)]
        devices: Vec<DeviceSpec>,
    },
    /// Remove devices: the next rebalance moves all that they hold, whenever it moved last.
    Remove {
        /// The builder's file.
        file: PathBuf,
        /// Ids, as `show` prints them.
        #[arg(required = true)]
        ids: Vec<u32>,
    },
    /// Give devices other weights; 0 empties a device step by step.
    SetWeight {
        /// The builder's file.
        file: PathBuf,
        /// ID=WEIGHT
        #[arg(required = true)]
        weights: Vec<WeightSpec>,
    },
    /// Change what the ring shall be like.
    Set(SetArgs),
    /// Make a new version of the ring, and write it beside the builder.
    Rebalance(RebalanceArgs),
    /// Show settings, devices and how full they are.
    Show {
        /// The builder's file.
        file: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Verify a builder and the ring beside it; changes nothing.
    Validate {
        /// The builder's file.
        file: PathBuf,
    },
    /// Show how far the replicas of a partition are from each other.
    Dispersion {
        /// The builder's file.
        file: PathBuf,
    },
    /// Let every partition move with the next rebalance, however short ago it moved. Only when all data is in its place!
    PretendMinPartHours {
        /// The builder's file.
        file: PathBuf,
    },
    /// Show what was done, and what the next rebalance will take up.
    History {
        /// The builder's file.
        file: PathBuf,
        /// So many events, the newest.
        #[arg(long, value_name = "N", default_value_t = 100)]
        last: usize,
    },
    /// Compare two builders or rings.
    Diff {
        /// The one before.
        before: PathBuf,
        /// The one after.
        after: PathBuf,
    },
    /// Make a builder of a `.ring.gz` or builder file of Swift.
    Import {
        /// Swift's file.
        from: PathBuf,
        /// The builder's file to make.
        file: PathBuf,
        /// What the devices are made of.
        #[arg(long, value_name = "CLASS", default_value = "hdd", value_parser = class)]
        class: Class,
    },
}

/// `quarry ring create`
#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// The builder's file to make, such as object.builder
    file: PathBuf,
    /// 2 to the power of this many partitions, 0 to 24; never changes. About 100 partitions for each device that the cluster will ever have.
    #[arg(long, value_name = "N")]
    part_power: u8,
    /// Replicas of each partition; a fraction such as 3.25 gives some partitions one more.
    #[arg(long, value_name = "N", value_parser = replicas)]
    replicas: Replicas,
    /// Hours in which no second replica of a partition moves: longer than copying takes.
    #[arg(long, value_name = "HOURS", default_value_t = 24)]
    min_part_hours: u16,
    /// How far a device may be filled above its weight for the sake of dispersion: 10%, or unlimited.
    #[arg(long, value_name = "PERCENT", default_value = "10%", value_parser = overload)]
    overload: Overload,
    /// Number of the storage policy.
    #[arg(long, value_name = "N", default_value_t = 0)]
    policy: u16,
    /// Take devices of this class only.
    #[arg(long, value_name = "CLASS", value_parser = class)]
    class: Option<Class>,
}

/// `quarry ring set`
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(super) struct Changes {
    /// Replicas of each partition.
    #[arg(long, value_name = "N", value_parser = replicas)]
    replicas: Option<Replicas>,
    /// How far a device may be filled above its weight for the sake of dispersion.
    #[arg(long, value_name = "PERCENT", value_parser = overload)]
    overload: Option<Overload>,
    /// Hours in which no second replica of a partition moves.
    #[arg(long, value_name = "HOURS")]
    min_part_hours: Option<u16>,
}

/// `quarry ring set`
#[derive(Debug, Args)]
pub(super) struct SetArgs {
    /// The builder's file.
    file: PathBuf,
    #[command(flatten)]
    changes: Changes,
}

/// `quarry ring rebalance`
#[derive(Debug, Args)]
pub(super) struct RebalanceArgs {
    /// The builder's file; the ring goes beside it, with the extension `ring`.
    file: PathBuf,
    /// Bytes that one copy of all data takes, to say how many will move.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    stored: Option<u64>,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Runs a command on a builder.
pub(super) fn run(command: &RingCommand, out: &mut impl Write) -> Result<(), Failure> {
    match command {
        RingCommand::Create(args) => edit::create(args, out),
        RingCommand::Add { file, devices } => edit::add(file, devices, out),
        RingCommand::Remove { file, ids } => edit::remove(file, ids, out),
        RingCommand::SetWeight { file, weights } => edit::set_weight(file, weights, out),
        RingCommand::Set(args) => edit::set(args, out),
        RingCommand::Rebalance(args) => edit::rebalance(args, out),
        RingCommand::PretendMinPartHours { file } => edit::pretend_min_part_hours(file, out),
        RingCommand::Import { from, file, class } => edit::import(from, file, *class, out),
        RingCommand::Show { file, json: false } => output::show(file, &store::load(file)?, out),
        RingCommand::Show { file, json: true } => output::show_json(&store::load(file)?, out),
        RingCommand::Validate { file } => output::validate(file, out),
        RingCommand::Dispersion { file } => output::dispersion(file, &store::load(file)?, out),
        RingCommand::History { file, last } => output::history(&store::load(file)?, *last, out),
        RingCommand::Diff { before, after } => output::diff(before, after, out),
    }
}
