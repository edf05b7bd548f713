//! First starts: the cluster's identity, and disk files that do not exist yet.
//!
//! Invariant: a disk file appears under its name only when it is whole and formatted.
//! Invariant: the data directory names a cluster only when every disk that was there is of it: a start that fails settles nothing.
//! Invariant: users and keys are made anew only for disks that nobody has used: else the data directory is missed, not new.
//! Invariant: no file is made among devices: one that is missing would become a file in memory.
//! Invariant: a file that was there at an earlier start, or whose index is there, is missed, never replaced: its file
//! system may just not be mounted.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::disk::format::superblock::{ClusterId, Superblock, Verdict};
use quarry_engine::disk::{self, Format, format, read_superblock};
use quarry_engine::io::{BLOCK, OpenOptions, open_device, preallocate};

use super::{Known, LOCK_WAIT, OpenError, Progress, kept};
use crate::cluster::Identity;
use crate::cluster::identity::Files;
use crate::config::{Config, Disk};
use crate::durable_file;

/// Holds the cluster's identity, 32 hex digits.
const CLUSTER_FILE: &str = "cluster.id";
/// Holds the disk files that were made, one path a line.
const KNOWN_FILE: &str = "disks";

/// Makes what the first start needs; the identity that all disks must have. A disk that the node had is looked for when it is opened.
pub(super) fn prepare(config: &Config, had: &Known, progress: &mut Progress) -> Result<ClusterId, OpenError> {
    let data = &config.node.data;
    let settled = known_cluster(data)?;
    let cluster = settled.map_or_else(|| first_cluster(config), Ok)?;
    let known_file = data.join(KNOWN_FILE);
    let mut known = read_known(&known_file)?;
    // In place of a node whose disk is lost there is nothing to be missed.
    let anew = Files::of(data).replaces.exists();
    for disk in &config.disks {
        let path = disk.path.get_ref();
        let exists = match path.try_exists() {
            Ok(true) => true,
            Ok(false) | Err(_) if had.at(path).is_some() => continue,
            Ok(false) => false,
            Err(error) => return Err(OpenError::new(path, error)),
        };
        if !exists {
            make_missing(config, disk, cluster, (!anew).then_some(&known), progress)?;
        }
        let name = absolute(path);
        if path.is_file() && known.insert(name) {
            let lines: String = known.iter().map(|path| format!("{}\n", path.display())).collect();
            durable_file::replace(&known_file, lines.as_bytes(), durable_file::PRIVATE)
                .map_err(|e| OpenError::new(path, format!("write {}: {e}", known_file.display())))?;
        }
    }
    if settled.is_none() {
        // Before any disk is opened: what was in use has a data directory that names its cluster.
        remember_cluster(data, cluster)?;
    }
    Ok(cluster)
}

/// Whether the disks fit a data directory that is new, if it is: found out before anything is made in it.
pub(crate) fn check_first_start(config: &Config) -> Result<(), OpenError> {
    match known_cluster(&config.node.data)? {
        Some(_) => Ok(()),
        None => first_cluster(config).map(drop),
    }
}

/// The cluster of a node that starts for the first time: that of its identity, else that of its disks, else a fresh one.
fn first_cluster(config: &Config) -> Result<ClusterId, OpenError> {
    let data = &config.node.data;
    let own = if config.cluster.is_some() || Files::of(data).node.exists() {
        let identity = Identity::load(data).map_err(|e| OpenError::new(data, e))?;
        Some(identity.cluster)
    } else {
        None
    };
    let mut found = Vec::new();
    for disk in &config.disks {
        let path = disk.path.get_ref();
        if path.try_exists().map_err(|e| OpenError::new(path, e))? {
            found.push((path, superblock(path)?));
        }
    }
    let of_disks = found.iter().find_map(|(_, superblock)| superblock.as_ref().map(|found| found.cluster));
    let settled = own.or(of_disks);
    for (path, superblock) in found {
        match (superblock, settled) {
            (None, settled) => return Err(unformatted(path, settled)),
            (Some(found), Some(cluster)) if found.cluster != cluster => {
                return Err(of_another_cluster(path, found.cluster, cluster));
            }
            (Some(found), _) if own.is_none() && found.epoch > 0 => {
                return Err(data_is_missed(path, data, &found));
            }
            _ => {}
        }
    }
    Ok(settled.unwrap_or_else(random_cluster))
}

/// The superblock of a disk that is there; `None`: it is not formatted.
fn superblock(path: &Path) -> Result<Option<Superblock>, OpenError> {
    let options = OpenOptions { read_only: true, lock_wait: LOCK_WAIT, ..OpenOptions::default() };
    let mut device = open_device(path, options).map_err(|e| OpenError::new(path, e))?;
    match read_superblock(device.as_mut()).map_err(|e| OpenError::new(path, e))? {
        Verdict::Use { superblock, .. } => Ok(Some(superblock)),
        Verdict::Absent => Ok(None),
        Verdict::Newer(version) => Err(OpenError::new(path, disk::OpenError::Newer(version))),
        Verdict::Contradiction => {
            Err(OpenError::new(path, disk::OpenError::Damaged("its copies name different devices")))
        }
        Verdict::Damaged => Err(OpenError::new(path, disk::OpenError::Damaged("no copy verifies"))),
    }
}

/// What is said of a device that is not formatted: how it is, for a node of `cluster` if that is known.
pub(super) fn unformatted(path: &Path, cluster: Option<ClusterId>) -> OpenError {
    let of = cluster.map_or_else(String::new, |cluster| format!(" --cluster {}", cluster_text(cluster)));
    let reason = format!("not a Quarry device; format it with `quarry disk format {}{of}`", path.display());
    OpenError::new(path, reason)
}

/// What is said of a disk of another cluster.
pub(super) fn of_another_cluster(path: &Path, found: ClusterId, own: ClusterId) -> OpenError {
    let (found, own) = (cluster_text(found), cluster_text(own));
    let reason = format!(
        "belongs to cluster {found}, not to {own} as this node; list disks of one cluster, or, if nothing on it is needed, \
         format it anew with `quarry disk format {} --cluster {own} --overwrite`",
        path.display()
    );
    OpenError::new(path, reason)
}

/// A disk that was in use, and a data directory without what was in it then.
fn data_is_missed(path: &Path, data: &Path, found: &Superblock) -> OpenError {
    let reason = format!(
        "a node, or a command such as `quarry disk audit`, has used it ({} starts), and that one's data directory is not {}, which is new: mount its file system, name \
         the right one as node.data, or restore it; users, keys of tokens and of encrypted volumes are in it (to begin with \
         new ones all the same, write {} into {})",
        found.epoch,
        data.display(),
        cluster_text(found.cluster),
        data.join(CLUSTER_FILE).display()
    );
    OpenError::new(path, reason)
}

fn make_missing(
    config: &Config,
    disk: &Disk,
    cluster: ClusterId,
    known: Option<&BTreeSet<PathBuf>>,
    progress: &mut Progress,
) -> Result<(), OpenError> {
    let (path, index) = (disk.path.get_ref(), disk.index.get_ref());
    refuse_missing_device(path)?;
    let Some(size) = disk.size else {
        return Err(OpenError::new(
            path,
            "no such file or device; give `size` in its [[disk]] to make a file",
        ));
    };
    let index_is_there = std::fs::read_dir(index).is_ok_and(|mut entries| entries.next().is_some());
    match known {
        Some(known) if known.contains(&absolute(path)) || index_is_there => {
            let reason = format!(
                "it was here before and is gone; mount its file system or put it back (to begin anew: another data directory, or \
                 remove {}, the line in the data directory's file `{KNOWN_FILE}`, and its file `devices`; the only disk of a cluster's \
                 node: `quarry join TOKEN --data DIR --replace` makes it another node, in its own place)",
                index.display()
            );
            return Err(OpenError::new(path, reason));
        }
        None if index_is_there => {
            std::fs::remove_dir_all(index)
                .map_err(|e| OpenError::new(path, format!("remove index {}: {e}", index.display())))?;
        }
        _ => {}
    }
    kept::may_make(config, path)?;
    make_disk_file(path, size.0, cluster, progress).map(|_| ())
}

/// Refuses to make a file where a device should be.
fn refuse_missing_device(path: &Path) -> Result<(), OpenError> {
    let above = path.parent().and_then(|parent| parent.canonicalize().ok());
    let place = above.unwrap_or_else(|| absolute(path));
    let among_devices = place.starts_with("/dev") && !place.starts_with("/dev/shm");
    if among_devices || path.is_symlink() {
        let reason = "the device is missing; connect or replace it, or take its [[disk]] out of the configuration (names below \
                      /dev/disk/by-id stay when devices are numbered anew)";
        return Err(OpenError::new(path, reason));
    }
    Ok(())
}

/// Makes, fills and formats a disk file beside its name, then gives it its name.
pub(crate) fn make_disk_file(
    path: &Path,
    size: u64,
    cluster: ClusterId,
    progress: &mut Progress,
) -> Result<Superblock, OpenError> {
    let failed = |verb: &str, error: &dyn std::fmt::Display| OpenError::new(path, format!("{verb}: {error}"));
    refuse_missing_device(path)?;
    let size = size - size % BLOCK as u64;
    let mut name = path.file_name().ok_or_else(|| OpenError::new(path, "not a file name"))?.to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(|e| failed("make its directory", &e))?;
    }
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed("remove what an interrupted start left", &error));
        }
        _ => {}
    }
    tracing::info!(disk = %path.display(), size, "making disk file; every byte is written once");
    let what = format!("make disk file {}", path.display());
    preallocate(&temporary, size, &mut |done| progress(&what, done, size))
        .map_err(|e| failed("make it", &e))?;
    let superblock = format_disk(&temporary, cluster, false)?;
    std::fs::rename(&temporary, path).map_err(|e| failed("name it", &e))?;
    durable_file::sync_directory(path).map_err(|e| failed("flush its directory", &e))?;
    Ok(superblock)
}

/// Formats an existing device or file with a fresh identity.
pub(crate) fn format_disk(path: &Path, cluster: ClusterId, overwrite: bool) -> Result<Superblock, OpenError> {
    let mut disk = open_device(path, OpenOptions::default()).map_err(|e| OpenError::new(path, e))?;
    let request = Format { cluster, device: DeviceId(random_bytes()), segment_size: None, overwrite };
    format(disk.as_mut(), &request).map_err(|e| OpenError::new(path, e))
}

/// The cluster that a data directory names, if it names one.
pub(crate) fn known_cluster(data: &Path) -> Result<Option<ClusterId>, OpenError> {
    let file = data.join(CLUSTER_FILE);
    match std::fs::read_to_string(&file) {
        Ok(text) => match parse_cluster(text.trim()) {
            Some(cluster) => Ok(Some(cluster)),
            None => Err(OpenError::new(&file, "not 32 hex digits; restore the file")),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(OpenError::new(&file, error)),
    }
}

/// Names a data directory's cluster from now on.
pub(crate) fn remember_cluster(data: &Path, cluster: ClusterId) -> Result<(), OpenError> {
    let file = data.join(CLUSTER_FILE);
    let text = format!("{}\n", cluster_text(cluster));
    durable_file::replace(&file, text.as_bytes(), durable_file::PRIVATE)
        .map_err(|e| OpenError::new(&file, format!("write it: {e}")))
}

fn read_known(file: &Path) -> Result<BTreeSet<PathBuf>, OpenError> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(text.lines().map(PathBuf::from).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(OpenError::new(file, error)),
    }
}

pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// An identity in hex.
pub(crate) fn cluster_text(cluster: ClusterId) -> String {
    hex::encode(cluster.0)
}

/// An identity from 32 hex digits.
pub(crate) fn parse_cluster(text: &str) -> Option<ClusterId> {
    let mut bytes = [0; 16];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(ClusterId(bytes))
}

/// A fresh identity.
pub(crate) fn random_cluster() -> ClusterId {
    ClusterId(random_bytes())
}

/// Bytes that nobody can guess.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    bytes
}

#[cfg(test)]
#[path = "provision_tests.rs"]
mod tests;
