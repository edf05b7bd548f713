//! `quarry disk`: work on disks that no node has open.
//!
//! Invariant: nothing is written before the device is known to be ours, but by `format`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use quarry_engine::disk::format::superblock::{Superblock, Verdict};
use quarry_engine::disk::{CacheBytes, OpenError, check, read_superblock, rebuild_index, start};
use quarry_engine::io::{DeviceKind, OpenOptions, inspect_device, open_device};

use quarry_engine::work::{Auditor, Outcome, Worker};

use super::wish::{self, Replace, Which};
use super::{Failure, progress, size};
use crate::config::{MIN_DISK, size_text};
use crate::control::operator::What;
use crate::storage;

/// Units of 64 KiB in a step, between two looks at how far it is.
const AUDIT_STEP: u32 = 512;

#[derive(Debug, Subcommand)]
pub(super) enum DiskCommand {
    /// Make a disk: writes superblocks; a file that is not there is made and written once in full.
    Format {
        /// The block device or file.
        path: PathBuf,
        /// Size of a file that is to be made; not for devices and files that are there.
        #[arg(long, value_name = "SIZE", value_parser = size)]
        size: Option<u64>,
        /// Cluster that it shall belong to, 32 hex digits (`quarry disk info` shows it); a new one when absent.
        #[arg(long, value_name = "ID", value_parser = cluster)]
        cluster: Option<String>,
        /// Destroy what is on it.
        #[arg(long)]
        overwrite: bool,
    },
    /// Show identity, sizes and state.
    Info {
        /// The block device or file.
        path: PathBuf,
    },
    /// Verify every byte of the log; changes nothing.
    Check {
        /// The block device or file.
        path: PathBuf,
    },
    /// Drop the index and make it anew from the segments.
    RebuildIndex(DiskArgs),
    /// Verify every object and row that is needed; opens the disk as a node would.
    Audit(DiskArgs),
    /// Give a disk of a running cluster its share (again). New disks get theirs by themselves.
    Add(Which),
    /// Empty a disk of a running cluster, one replica of a partition after the other.
    Drain(Which),
    /// Let a new disk of a running cluster take over from an old one, which is emptied, or is out at once with --dead.
    Replace(Replace),
    /// Take a disk out of a running cluster at once: it is gone, or good for nothing. Others make new copies.
    Remove(Which),
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

/// 32 hex digits.
fn cluster(text: &str) -> Result<String, String> {
    storage::parse_cluster(text).map(|_| text.to_owned()).ok_or_else(|| "allowed: 32 hex digits".to_owned())
}

impl From<storage::OpenError> for Failure {
    fn from(error: storage::OpenError) -> Self {
        Self(error.to_string())
    }
}

/// Runs a command on a disk.
pub(super) fn run(command: &DiskCommand, out: &mut impl Write) -> Result<(), Failure> {
    match command {
        DiskCommand::Format { path, size, cluster, overwrite } => {
            format(path, *size, cluster.as_deref(), *overwrite, out)
        }
        DiskCommand::Info { path } => info(path, out),
        DiskCommand::RebuildIndex(disk) => make_index(disk, out),
        DiskCommand::Check { path } => check_log(path, out),
        DiskCommand::Add(which) => wish::of_disk(which, What::Share, out),
        DiskCommand::Drain(which) => wish::of_disk(which, What::Empty, out),
        DiskCommand::Remove(which) => wish::of_disk(which, What::Out, out),
        DiskCommand::Replace(replace) => wish::replace_disk(replace, out),
        DiskCommand::Audit(disk) => audit(disk, out),
    }
}

fn format(
    path: &Path,
    size: Option<u64>,
    cluster: Option<&str>,
    overwrite: bool,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let what = || format!("format disk {}", path.display());
    let cluster = cluster.and_then(storage::parse_cluster).unwrap_or_else(storage::random_cluster);
    let exists = path.try_exists().map_err(|e| Failure::new(what(), e))?;
    let superblock = match (exists, size) {
        (true, Some(_)) => {
            return Err(Failure::new(what(), "it is there already and has a size; leave --size out"));
        }
        (true, None) => storage::format_disk(path, cluster, overwrite)?,
        (false, None) => {
            return Err(Failure::new(what(), "no such file or device; give --size to make a file"));
        }
        (false, Some(size)) if size < MIN_DISK => {
            return Err(Failure::new(what(), format!("too small; give {} or more", size_text(MIN_DISK))));
        }
        (false, Some(size)) => storage::make_disk_file(path, size, cluster, &mut progress::bar())?,
    };
    print(path, &superblock, out)?;
    Ok(())
}

fn info(path: &Path, out: &mut impl Write) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::new(format!("show disk {}", path.display()), error);
    let device = inspect_device(path).map_err(|e| failed(&e))?;
    let kind = match device.kind {
        DeviceKind::Block => "block device",
        DeviceKind::File => "file",
    };
    let superblock = our_superblock(path).map_err(|e| failed(&e))?;
    print(path, &superblock, out)?;
    writeln!(out, "  kind          {kind}, {} byte sectors", device.physical_sector)?;
    writeln!(out, "  allocated     {}", device.allocated)?;
    writeln!(out, "  write-through {}", if device.write_through { "yes" } else { "no" })?;
    writeln!(out, "  O_DIRECT      {}", if device.direct { "yes" } else { "no" })?;
    Ok(())
}

fn print(path: &Path, superblock: &Superblock, out: &mut impl Write) -> std::io::Result<()> {
    let layout = superblock.layout;
    writeln!(out, "{}", path.display())?;
    writeln!(out, "  device        {}", superblock.device)?;
    writeln!(out, "  cluster       {}", storage::cluster_text(superblock.cluster))?;
    writeln!(out, "  capacity      {}", layout.capacity)?;
    writeln!(out, "  segments      {} of {}", layout.segments, size_text(layout.segment_size))?;
    writeln!(out, "  opened        {} times", superblock.epoch)?;
    writeln!(out, "  closed        {}", if superblock.clean { "cleanly" } else { "no: open, or crashed" })
}

/// The superblock of a device that is ours, and that nobody has open.
fn our_superblock(path: &Path) -> Result<Superblock, String> {
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let mut device = open_device(path, options).map_err(|e| e.to_string())?;
    match read_superblock(device.as_mut()).map_err(|e| e.to_string())? {
        Verdict::Use { superblock, .. } => Ok(superblock),
        Verdict::Absent => Err(OpenError::Unformatted.to_string()),
        Verdict::Newer(version) => Err(OpenError::Newer(version).to_string()),
        Verdict::Contradiction => Err(OpenError::Damaged("its copies name different devices").to_string()),
        Verdict::Damaged => Err(OpenError::Damaged("no copy verifies").to_string()),
    }
}

/// Verifies the log from end to end: damage is listed, and makes the command fail.
fn check_log(path: &Path, out: &mut impl Write) -> Result<(), Failure> {
    let what = format!("check disk {}", path.display());
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let mut device = open_device(path, options).map_err(|e| Failure::new(&what, e))?;
    let mut bar = progress::bar();
    let report = check(device.as_mut(), &mut |done, total| bar(&what, done, total));
    drop(bar);
    let report = report.map_err(|e| Failure::new(&what, e))?;
    for finding in &report.findings {
        writeln!(out, "{finding}")?;
    }
    let (segments, batches, records) = (report.segments, report.batches, report.records);
    writeln!(
        out,
        "{}: {segments} segments, {batches} batches, {records} records, {} bytes are sound",
        path.display(),
        report.bytes
    )?;
    match report.bad {
        0 => Ok(()),
        bad => {
            let listed = report.findings.len();
            Err(Failure::new(
                what,
                format!("{bad} findings, {listed} listed above; repair from replicas, replace the disk"),
            ))
        }
    }
}

fn make_index(disk: &DiskArgs, out: &mut impl Write) -> Result<(), Failure> {
    let what = format!("rebuild index of disk {}", disk.path.display());
    let failed = |error: &dyn std::fmt::Display| Failure::new(&what, error);
    let config = storage::disk_config(&disk.path, &disk.index, CacheBytes::default(), None);
    let mut bar = progress::bar();
    let mut tell = |done, total| bar(&what, done, total);
    let (handle, report) = rebuild_index(&config, storage::catalog(), &mut tell).map_err(|e| failed(&e))?;
    drop(bar);
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|e| failed(&e))?;
    runtime.block_on(handle.close()).map_err(|e| failed(&e))?;
    writeln!(out, "{}: index made from {} records", disk.path.display(), report.records)?;
    Ok(())
}

/// Opens the disk (which replays its log, if it must) and reads everything that is needed on it.
fn audit(disk: &DiskArgs, out: &mut impl Write) -> Result<(), Failure> {
    let what = format!("audit disk {}", disk.path.display());
    let failed = |error: &dyn std::fmt::Display| Failure::new(&what, error);
    let config = storage::disk_config(&disk.path, &disk.index, CacheBytes::default(), None);
    let mut bar = progress::bar();
    let mut tell = |done, total| bar(&what, done, total);
    let (handle, report) = start(&config, storage::catalog(), &mut tell).map_err(|e| failed(&e))?;
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|e| failed(&e))?;
    let mut auditor = Auditor::offline(handle.clone());
    // The next opening finds them no more, that of the disk's node neither.
    for lost in &report.lost {
        let lsns = format!("{} to {}", lost.start, lost.end.saturating_sub(1));
        writeln!(out, "acknowledged records are lost: LSNs {lsns}")?;
    }
    if report.nameless {
        let device = handle.device();
        writeln!(
            out,
            "nobody can say whose they were: take the disk out if its node is one of a cluster (`quarry disk remove {device}`)"
        )?;
    }
    let mut findings = report.lost.len();
    let mut items = 0;
    loop {
        let outcome = runtime.block_on(auditor.step(AUDIT_STEP));
        for finding in auditor.take_findings() {
            findings += 1;
            writeln!(out, "{finding}")?;
        }
        let progress = auditor.progress();
        match outcome {
            Outcome::Did(_) => {
                items = progress.done;
                bar(&what, progress.done, progress.total);
            }
            Outcome::Idle => break,
            Outcome::Waits(why) | Outcome::Failed(why) => {
                // What could not be read is what is told of.
                let _also_failed = runtime.block_on(handle.close());
                return Err(failed(&why));
            }
        }
    }
    drop(bar);
    runtime.block_on(handle.close()).map_err(|e| failed(&e))?;
    writeln!(out, "{}: {items} objects and rows read", disk.path.display())?;
    match findings {
        0 => Ok(()),
        n => Err(Failure::new(
            what,
            format!("{n} damaged, named above; put them again or repair from replicas"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One letter too many dropped the index of a disk that was well, which took hours to make anew.
    #[test]
    fn the_index_of_another_disk_is_not_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let disk =
            |path: &str, index: &str| DiskArgs { path: dir.path().join(path), index: dir.path().join(index) };
        for path in ["d1", "d2"] {
            let (path, cluster) = (dir.path().join(path), storage::random_cluster());
            storage::make_disk_file(&path, MIN_DISK, cluster, &mut progress::bar()).unwrap();
        }
        let one = disk("d1", "i1");
        make_index(&one, &mut Vec::new()).unwrap();
        let error = make_index(&disk("d2", "i1"), &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("index belongs to device"), "{error}");
        let config = storage::disk_config(&one.path, &one.index, CacheBytes::default(), None);
        let (handle, report) = start(&config, storage::catalog(), &mut |_, _| ()).unwrap();
        assert!(report.rebuilt.is_none(), "{report:?}");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(handle.close()).unwrap();
        drop(handle);
        // One that is damaged is made anew, as before.
        std::fs::write(one.index.join("CURRENT"), "rubbish").unwrap();
        make_index(&one, &mut Vec::new()).unwrap();
    }
}
