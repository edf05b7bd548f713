//! The disks that a node on its own began with.
//!
//! Where an object lies follows from all of them ([`quarry_engine::object::Spread`]), its rows lie on the first, and nothing moves what lies
//! elsewhere. With one disk more, half of the objects would not be found, and could not be deleted; with another one first, no account.
//!
//! Invariant: a node on its own serves from the devices that it began with, in their order, or does not start.

use std::path::{Path, PathBuf};

use quarry_engine::disk::format::record::DeviceId;

use super::OpenError;
use crate::config::Config;
use crate::durable_file;

/// Holds the devices in their order, one a line: its identity in hex, and where it was then.
const FILE: &str = "devices";

/// A device, and where it is.
pub(super) type Place = (DeviceId, PathBuf);

/// Refuses another number of disks before one is made. A node of a cluster may have any.
pub(super) fn expect(config: &Config) -> Result<(), OpenError> {
    match known(config)? {
        Some(known) if known.len() != config.disks.len() => Err(refused(config, &known)),
        _ => Ok(()),
    }
}

/// Whether a disk that is not there may be made: not where all are known.
pub(super) fn may_make(config: &Config, path: &Path) -> Result<(), OpenError> {
    let Some(known) = known(config)? else { return Ok(()) };
    Err(OpenError { disk: path.to_owned(), ..refused(config, &known) })
}

/// Refuses other devices, or another order. The first start remembers them.
pub(super) fn check(config: &Config, open: &[DeviceId]) -> Result<(), OpenError> {
    if config.cluster.is_some() {
        return Ok(());
    }
    let paths = config.disks.iter().map(|disk| disk.path.get_ref().clone());
    let now: Vec<Place> = open.iter().copied().zip(paths).collect();
    match known(config)? {
        None => write(&config.node.data.join(FILE), &now),
        Some(known) if known.iter().map(|(device, _)| device).eq(open) => Ok(()),
        Some(known) => Err(refused(config, &known)),
    }
}

fn known(config: &Config) -> Result<Option<Vec<Place>>, OpenError> {
    if config.cluster.is_some() {
        return Ok(None);
    }
    read(&config.node.data.join(FILE))
}

/// The devices that a file names, in its order; `None`: there is no such file.
pub(super) fn read(file: &Path) -> Result<Option<Vec<Place>>, OpenError> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(OpenError::new(file, error)),
    };
    let bad = || OpenError::new(file, "not one device a line (32 hex digits, its path); restore the file");
    text.lines().map(|line| place(line).ok_or_else(bad)).collect::<Result<_, _>>().map(Some)
}

fn place(line: &str) -> Option<Place> {
    let (device, path) = line.split_once(' ')?;
    let mut bytes = [0; 16];
    hex::decode_to_slice(device, &mut bytes).ok()?;
    Some((DeviceId(bytes), path.into()))
}

/// Has a file name these devices.
pub(super) fn write(file: &Path, now: &[Place]) -> Result<(), OpenError> {
    let lines: String = now.iter().map(|(device, path)| format!("{device} {}\n", path.display())).collect();
    durable_file::replace(file, lines.as_bytes(), durable_file::PRIVATE)
        .map_err(|e| OpenError::new(file, format!("write it: {e}")))
}

fn refused(config: &Config, known: &[Place]) -> OpenError {
    let list: Vec<String> =
        known.iter().map(|(device, path)| format!("{} (device {device})", path.display())).collect();
    let file = config.node.data.join(FILE);
    let reason = format!(
        "a node on its own keeps the disks that it began with, since where an object lies follows from all of them and their order; list \
         these as [[disk]], in this order, and no others: {}. A cluster takes further disks (`quarry cluster init` in a new data \
         directory). If one of them is lost, remove {} and start with those that you list: what lay on it is gone, and what the \
         others have may then be looked for in the wrong place",
        list.join(", "),
        file.display()
    );
    OpenError::new(&file, reason)
}

#[cfg(test)]
mod tests {
    use super::super::{Disks, Progress};
    use super::*;
    use crate::config::Source;

    fn config(data: &Path, disks: &[&str], cluster: bool) -> Config {
        let mut text = format!("[node]\ndata = \"{}\"\n", data.display());
        if cluster {
            text.push_str("[cluster]\nlisten = \"127.0.0.1:0\"\n");
        }
        for disk in disks {
            let path = data.join(disk);
            let index = data.join(format!("index-{disk}"));
            let (path, index) = (path.display(), index.display());
            text.push_str(&format!("[[disk]]\npath = \"{path}\"\nindex = \"{index}\"\nsize = \"256M\"\n"));
        }
        Config::parse(Source { file: &data.join("quarry.toml"), text: &text }).unwrap()
    }

    fn start(config: &Config) -> Result<Vec<DeviceId>, String> {
        let mut quiet: Progress = Box::new(|_, _, _| {});
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let disks = Disks::open(config, &mut quiet).and_then(|disks| runtime.block_on(disks.kept(config)));
        let disks = disks.map_err(|error| error.to_string())?;
        runtime.block_on(disks.close());
        Ok(disks.handles().iter().map(quarry_engine::disk::DiskHandle::device).collect())
    }

    /// A second disk was added to a node on its own: half of its objects were not found any more, could not be deleted, and stayed listed.
    #[test]
    fn a_node_on_its_own_starts_with_the_disks_that_it_began_with_and_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let at = |disks: &[&str]| config(dir.path(), disks, false);
        let began = start(&at(&["a", "b"])).unwrap();
        assert_eq!(start(&at(&["a", "b"])).unwrap(), began);
        for other in [&["a", "b", "c"][..], &["b", "a"], &["a"], &["a", "c"]] {
            let refused = start(&at(other)).unwrap_err();
            for wanted in ["in this order", "/a (device ", "/b (device ", "quarry cluster init", "remove "] {
                assert!(refused.contains(wanted), "{other:?}: {refused}");
            }
            assert!(!dir.path().join("c").exists(), "{other:?}: a disk was made");
        }
        assert_eq!(start(&at(&["a", "b"])).unwrap(), began);
        // A directory from before this was remembered.
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        assert_eq!(start(&at(&["a", "b"])).unwrap(), began);
        start(&at(&["b", "a"])).unwrap_err();
        // Moved disks are the same.
        std::fs::rename(dir.path().join("b"), dir.path().join("d")).unwrap();
        std::fs::rename(dir.path().join("index-b"), dir.path().join("index-d")).unwrap();
        assert_eq!(start(&at(&["a", "d"])).unwrap(), began);
    }

    #[test]
    fn a_node_of_a_cluster_may_have_other_disks_than_before() {
        let dir = tempfile::tempdir().unwrap();
        let device = |n| DeviceId([n; 16]);
        for (disks, devices) in [(&["a"][..], &[1][..]), (&["a", "b"], &[1, 2]), (&["b", "a"], &[2, 1])] {
            let (config, devices) = (config(dir.path(), disks, true), devices.iter().map(|n| device(*n)));
            expect(&config).unwrap();
            may_make(&config, &dir.path().join("c")).unwrap();
            check(&config, &devices.collect::<Vec<_>>()).unwrap();
            assert!(!dir.path().join(FILE).exists());
        }
    }
}
