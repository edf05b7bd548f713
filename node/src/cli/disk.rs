//! `quarry disk`: work on disks that no node has open.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Failure, size};

#[derive(Debug, Subcommand)]
pub(super) enum DiskCommand {
    /// Make a disk: writes superblocks and tables; a file is written once in full.
    Format {
        #[command(flatten)]
        disk: DiskArgs,
        /// Size of the file; not for block devices.
        #[arg(long, value_name = "SIZE", value_parser = size)]
        size: Option<u64>,
    },
    /// Show identity, sizes and state.
    Info(DiskArgs),
    /// Verify every byte of the log; changes nothing.
    Check(DiskArgs),
    /// Drop the index and make it anew from the segments' footers.
    RebuildIndex(DiskArgs),
    /// Verify every live object and extent; changes nothing.
    Audit(DiskArgs),
}

/// Which disk.
#[derive(Debug, Args)]
pub(super) struct DiskArgs {
    /// The block device or file.
    path: PathBuf,
    /// Directory of its index.
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
}

/// Runs a command on a disk.
pub(super) fn run(command: &DiskCommand, _out: &mut impl Write) -> Result<(), Failure> {
    let (verb, disk) = match command {
        DiskCommand::Format { disk, .. } => ("format", disk),
        DiskCommand::Info(disk) => ("show", disk),
        DiskCommand::Check(disk) => ("check", disk),
        DiskCommand::RebuildIndex(disk) => ("rebuild index of", disk),
        DiskCommand::Audit(disk) => ("audit", disk),
    };
    Err(Failure::new(format!("{verb} disk {}", disk.path.display()), "the disk engine is not linked in yet"))
}
