//! First starts: the cluster's identity, and disk files that do not exist yet.
//!
//! Invariant: a disk file appears under its name only when it is whole and formatted.
//! Invariant: a file that was there at an earlier start, or whose index is there, is missed, never replaced: its file
//! system may just not be mounted.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::disk::format::superblock::{ClusterId, Superblock, Verdict};
use quarry_engine::disk::{Format, format, read_superblock};
use quarry_engine::io::{BLOCK, OpenOptions, open_device, preallocate};

use super::{OpenError, Progress};
use crate::cluster::identity::Files;
use crate::config::{Config, Disk};
use crate::durable_file;

/// Holds the cluster's identity, 32 hex digits.
const CLUSTER_FILE: &str = "cluster.id";
/// Holds the disk files that were made, one path a line.
const KNOWN_FILE: &str = "disks";

/// Makes what the first start needs; the identity that all disks must have.
pub(super) fn prepare(config: &Config, progress: &mut Progress) -> Result<ClusterId, OpenError> {
    let data = &config.node.data;
    let cluster = cluster(config)?;
    let known_file = data.join(KNOWN_FILE);
    let mut known = read_known(&known_file)?;
    // In place of a node whose disk is lost there is nothing to be missed.
    let anew = Files::of(data).replaces.exists();
    for disk in &config.disks {
        let path = disk.path.get_ref();
        let exists = path.try_exists().map_err(|e| OpenError::new(path, e))?;
        if !exists {
            make_missing(disk, cluster, (!anew).then_some(&known), progress)?;
        }
        let name = absolute(path);
        if path.is_file() && known.insert(name) {
            let lines: String = known.iter().map(|path| format!("{}\n", path.display())).collect();
            durable_file::replace(&known_file, lines.as_bytes(), durable_file::PRIVATE)
                .map_err(|e| OpenError::new(path, format!("write {}: {e}", known_file.display())))?;
        }
    }
    Ok(cluster)
}

fn make_missing(
    disk: &Disk,
    cluster: ClusterId,
    known: Option<&BTreeSet<PathBuf>>,
    progress: &mut Progress,
) -> Result<(), OpenError> {
    let (path, index) = (disk.path.get_ref(), disk.index.get_ref());
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
                "it was here before and is gone; mount its file system or put it back (to begin anew: another path, or \
                 remove {} and the line in the data directory's file `{KNOWN_FILE}`; the only disk of a cluster's node: \
                 `quarry join TOKEN --data DIR --replace` makes it another node, in its own place)",
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
    make_disk_file(path, size.0, cluster, progress).map(|_| ())
}

/// Makes, fills and formats a disk file beside its name, then gives it its name.
pub(crate) fn make_disk_file(
    path: &Path,
    size: u64,
    cluster: ClusterId,
    progress: &mut Progress,
) -> Result<Superblock, OpenError> {
    let failed = |verb: &str, error: &dyn std::fmt::Display| OpenError::new(path, format!("{verb}: {error}"));
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

/// The cluster that the data directory names; at the first start that of the disks, or a fresh one.
fn cluster(config: &Config) -> Result<ClusterId, OpenError> {
    match known_cluster(&config.node.data)? {
        Some(cluster) => Ok(cluster),
        None => {
            let cluster = cluster_of_disks(config)?.unwrap_or_else(random_cluster);
            remember_cluster(&config.node.data, cluster)?;
            Ok(cluster)
        }
    }
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

/// The one cluster of the disks that are formatted already.
fn cluster_of_disks(config: &Config) -> Result<Option<ClusterId>, OpenError> {
    let mut found: Option<ClusterId> = None;
    for disk in &config.disks {
        let path = disk.path.get_ref();
        if !path.try_exists().map_err(|e| OpenError::new(path, e))? {
            continue;
        }
        let options = OpenOptions { read_only: true, ..OpenOptions::default() };
        let mut device = open_device(path, options).map_err(|e| OpenError::new(path, e))?;
        if let Ok(Verdict::Use { superblock, .. }) = read_superblock(device.as_mut()) {
            if found.is_some_and(|other| other != superblock.cluster) {
                let reason = "belongs to another cluster than the disks before it; list disks of one cluster";
                return Err(OpenError::new(path, reason));
            }
            found = Some(superblock.cluster);
        }
    }
    Ok(found)
}

fn read_known(file: &Path) -> Result<BTreeSet<PathBuf>, OpenError> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(text.lines().map(PathBuf::from).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(OpenError::new(file, error)),
    }
}

fn absolute(path: &Path) -> PathBuf {
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
