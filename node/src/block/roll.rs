//! The volumes that this node has on its disks, as the data directory has them: a disk that is missing does not say what was on it.
//!
//! ```text
//! DATA/volumes.roll   a volume a line: its disk, its identity, the key that wraps its own or `-`, and its name, unless it is there for
//!                     its clones alone
//! ```
//!
//! Without it a volume of a missing disk would be none: its name would be given to another one, `delete` would say that it is gone, and the
//! key that wraps its own would be forgotten by all nodes. A node on its own needs no roll: it does not start without one of its disks.
//!
//! Invariant: a node that misses a disk has the roll, or does not start; one that has all its disks writes it from them.

use std::path::{Path, PathBuf};

use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::object::BoxFuture;
use quarry_volume::store::{Noted, Roll, VolumeError};
use quarry_volume::{KeyName, VolumeId};

use crate::durable_file;
use crate::storage::Missing;

/// In the data directory.
const FILE: &str = "volumes.roll";
/// Instead of a key.
const NO_KEY: &str = "-";

/// The file.
#[derive(Debug)]
pub(super) struct File(PathBuf);

impl File {
    pub(super) fn of(data: &Path) -> Self {
        Self(data.join(FILE))
    }

    /// All that was noted. A node that misses no disk needs nothing of it.
    pub(super) fn read(&self, missing: &[Missing]) -> Result<Vec<Noted>, VolumeError> {
        let parse = |line: &str| parse(line).ok_or_else(|| format!("`{line}` is no volume"));
        let text = std::fs::read_to_string(&self.0).map_err(|e| e.to_string());
        let read: Result<Vec<_>, String> = text.and_then(|text| text.lines().map(parse).collect());
        match read {
            Err(_) if missing.is_empty() && !self.0.exists() => Ok(Vec::new()),
            Err(why) if missing.is_empty() => {
                tracing::warn!(file = %self.0.display(), why, "the roll of volumes cannot be read; it is written anew from the disks");
                Ok(Vec::new())
            }
            read => read.map_err(|why| {
                VolumeError::Register(format!(
                    "read {}, which says what is on a missing disk: {why}; restore the file, or start once with all disks",
                    self.0.display()
                ))
            }),
        }
    }
}

/// Volumes that are on disks which are missing.
pub(super) fn away(rolled: &[Noted], missing: &[Missing]) -> Vec<Noted> {
    let is_away = |noted: &&Noted| missing.iter().any(|missing| missing.device == noted.device);
    rolled.iter().filter(is_away).cloned().collect()
}

impl Roll for File {
    fn write(&self, all: Vec<Noted>) -> BoxFuture<'static, std::io::Result<()>> {
        let file = self.0.clone();
        Box::pin(async move {
            let text: String = all.iter().map(line).collect();
            let write = move || durable_file::replace(&file, text.as_bytes(), durable_file::PRIVATE);
            tokio::task::spawn_blocking(write).await.map_err(std::io::Error::other)?
        })
    }
}

fn line(noted: &Noted) -> String {
    let Noted { device, id, key, name } = noted;
    let key = key.map_or_else(|| NO_KEY.to_owned(), |key| key.to_string());
    let name = name.as_ref().map_or_else(String::new, |name| format!(" {name}"));
    format!("{} {} {key}{name}\n", hex::encode(device.0), hex::encode(id.0))
}

fn parse(line: &str) -> Option<Noted> {
    let mut fields = line.splitn(4, ' ');
    let device = DeviceId(bytes(fields.next()?)?);
    let id = VolumeId(bytes(fields.next()?)?);
    let key = match fields.next()? {
        NO_KEY => None,
        key => Some(KeyName(bytes(key)?)),
    };
    Some(Noted { device, id, key, name: fields.next().map(str::to_owned) })
}

fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_on_a_missing_disk_is_known_and_nothing_is_guessed() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::of(dir.path());
        let missing =
            |n| Missing { path: "/dev/x".into(), device: DeviceId([n; 16]), why: "gone".to_owned() };
        assert_eq!(file.read(&[]).unwrap(), []);
        assert!(file.read(&[missing(1)]).is_err(), "it is not known what was there");
        let noted = |device, id, key: Option<u8>, name: Option<&str>| Noted {
            device: DeviceId([device; 16]),
            id: VolumeId([id; 16]),
            key: key.map(|key| KeyName([key; 8])),
            name: name.map(str::to_owned),
        };
        let all = vec![
            noted(1, 1, None, Some("disk1")),
            noted(1, 2, Some(7), Some("secret")),
            noted(1, 3, Some(8), None),
            noted(2, 4, None, Some("other")),
        ];
        file.write(all.clone()).await.unwrap();
        let rolled = file.read(&[]).unwrap();
        assert_eq!(rolled, all);
        assert_eq!(away(&rolled, &[missing(1)]), all[..3]);
        assert_eq!(away(&rolled, &[missing(2), missing(3)]), all[3..]);
        std::fs::write(dir.path().join(FILE), "disk1\n").unwrap();
        assert!(file.read(&[missing(1)]).is_err());
        assert_eq!(file.read(&[]).unwrap(), [], "the disks say it");
    }
}
