//! What was wanted when the cluster was made: kept by its first node until the control group has it.
//!
//! ```text
//! DATA/cluster/founder   toml: replicas, part_power, min_part_hours, index_groups, founded
//! ```
//!
//! Invariant: a cluster is founded once: a founder that has lost its disks founds no other of the same name.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::state::Settings;
use crate::cluster::IdentityError;
use crate::cluster::identity::{self, Files};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Founding {
    replicas: u16,
    part_power: u8,
    min_part_hours: u16,
    index_groups: u32,
    /// The control group has it all.
    #[serde(default)]
    founded: bool,
}

/// Writes it down.
pub(crate) fn write(data: &Path, settings: Settings) -> Result<(), IdentityError> {
    put(data, settings, false)
}

/// The control group has it: it is not to be founded again.
pub(crate) fn done(data: &Path, settings: Settings) -> Result<(), IdentityError> {
    put(data, settings, true)
}

fn put(data: &Path, settings: Settings, founded: bool) -> Result<(), IdentityError> {
    let Settings { replicas, part_power, min_part_hours, index_groups } = settings;
    let file = Files::of(data).founder;
    let text = toml::to_string(&Founding { replicas, part_power, min_part_hours, index_groups, founded })
        .map_err(|e| IdentityError::invalid(&file, e))?;
    identity::write(&file, &text)
}

/// What was wanted, and whether that was done, at the node that made the cluster; `None` at every other.
pub(crate) fn read(data: &Path) -> Result<Option<(Settings, bool)>, IdentityError> {
    let file = Files::of(data).founder;
    let text = match identity::read(&file) {
        Ok(text) => text,
        Err(IdentityError::Missing(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let parsed = toml::from_str(&String::from_utf8_lossy(&text));
    let Founding { replicas, part_power, min_part_hours, index_groups, founded } =
        parsed.map_err(|e| IdentityError::invalid(&file, e))?;
    if !index_groups.is_power_of_two() {
        return Err(IdentityError::invalid(&file, "index_groups is no power of two"));
    }
    Ok(Some((Settings { replicas, part_power, min_part_hours, index_groups }, founded)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_wanted_is_remembered_by_the_founder_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        std::fs::create_dir(dir.path().join("cluster")).unwrap();
        let settings = Settings { replicas: 2, part_power: 9, min_part_hours: 0, index_groups: 4 };
        write(dir.path(), settings).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some((settings, false)));
        done(dir.path(), settings).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some((settings, true)), "it is founded once");
        std::fs::write(Files::of(dir.path()).founder, "replicas = 1").unwrap();
        assert!(read(dir.path()).is_err());
    }
}
