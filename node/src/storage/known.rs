//! What a node of a cluster knows of its disks from one start to the next.
//!
//! ```text
//! DATA/cluster/devices   a disk a line: its identity, how it stands (`in`, `out`, `gone`), an LSN or `lost`, and where it is
//! ```
//!
//! A disk is known by its identity, wherever it is, until an operator takes it out of the cluster: so long it is open, or it is missing. The LSN
//! is one up to which its log was durable. One that ends before it is an older copy (a restored image, a disk that was rescued in part, the half
//! of a mirror that had fallen out), or lost what was written last; what index groups have voted and volumes have promised there since,
//! they have forgotten. So has one whose log has gaps of which nobody can say what was in them.
//!
//! Invariant: a disk is missed until the cluster has it out and the configuration lists it no more. Its line stays: when it comes back, it may be
//! older than it was.
//! Invariant: a disk that has forgotten what it had made durable serves nothing, at this start and at later ones.
//! Invariant: what is noted of a log was durable before.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::disk::{DiskHandle, Lsn, Report};

use super::{OpenError, provision};
use crate::cluster::identity::Files;
use crate::config::Config;
use crate::durable_file;

/// How a disk stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It is a part of the cluster.
    In,
    /// The cluster has it out.
    Out,
    /// It is out, and was not listed at the last start.
    Gone,
}

impl Standing {
    const WORDS: [(Self, &'static str); 3] = [(Self::In, "in"), (Self::Out, "out"), (Self::Gone, "gone")];

    fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(standing, _)| *standing == self).map_or("", |(_, word)| word)
    }

    fn parse(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(_, known)| *known == word).map(|(standing, _)| *standing)
    }
}

/// Instead of an LSN: no log reaches as far.
const LOST: Lsn = Lsn::MAX;
/// How it is written.
const LOST_WORD: &str = "lost";

/// A disk that the node had.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    device: DeviceId,
    standing: Standing,
    /// Its log was durable up to here.
    durable: Lsn,
    path: PathBuf,
}

impl Entry {
    fn line(&self) -> String {
        let Self { device, standing, durable, path } = self;
        let standing = standing.word();
        let durable = if *durable == LOST { LOST_WORD.to_owned() } else { durable.to_string() };
        format!("{device} {standing} {durable} {}\n", path.display())
    }

    /// Earlier versions wrote neither how it stands nor an LSN.
    fn parse(line: &str) -> Option<Self> {
        let (device, rest) = line.split_once(' ')?;
        let mut bytes = [0; 16];
        hex::decode_to_slice(device, &mut bytes).ok()?;
        let device = DeviceId(bytes);
        if rest.starts_with('/') {
            return Some(Self { device, standing: Standing::In, durable: 0, path: rest.into() });
        }
        let mut fields = rest.splitn(3, ' ');
        let standing = Standing::parse(fields.next()?)?;
        let durable = match fields.next()? {
            LOST_WORD => LOST,
            number => number.parse().ok()?,
        };
        Some(Self { device, standing, durable, path: fields.next()?.into() })
    }
}

/// A disk, where it is, and its handle if it is open.
pub(super) type Place = (DeviceId, PathBuf, Option<DiskHandle>);

/// The disks that a node of a cluster had. A node on its own knows none here.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Where they are remembered.
    file: Option<PathBuf>,
    entries: Mutex<Vec<Entry>>,
}

impl Known {
    /// None on a first start, and on the first one of a version that remembers them.
    pub(super) fn of(config: &Config) -> Result<Self, OpenError> {
        if config.cluster.is_none() {
            return Ok(Self::default());
        }
        let file = Files::of(&config.node.data).devices;
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(OpenError::new(&file, error)),
        };
        let bad = || {
            OpenError::new(&file, "not one device a line (32 hex digits, in, an LSN, its path); restore it")
        };
        let entries = text.lines().map(|line| Entry::parse(line).ok_or_else(bad));
        let entries = Mutex::new(entries.collect::<Result<_, _>>()?);
        Ok(Self { file: Some(file), entries })
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which device was there.
    pub(super) fn at(&self, path: &Path) -> Option<DeviceId> {
        let path = provision::absolute(path);
        let there = |known: &&Entry| known.path == path && known.standing != Standing::Gone;
        self.entries().iter().find(there).map(|known| known.device)
    }

    /// Where the node had this one.
    pub(super) fn place_of(&self, device: DeviceId) -> Option<PathBuf> {
        self.entries().iter().find(|known| known.device == device).map(|known| known.path.clone())
    }

    /// Those that are a part of the cluster, and where they were.
    pub(super) fn awaited(&self) -> Vec<(DeviceId, PathBuf)> {
        let entries = self.entries();
        let awaited = entries.iter().filter(|known| known.standing == Standing::In);
        awaited.map(|known| (known.device, known.path.clone())).collect()
    }

    /// Why a disk that was opened cannot be believed; `report`: what its opening found. A loss is remembered: no later opening finds it. One
    /// that the cluster has out may have seats still: they go when others have them.
    pub(super) fn doubt(&self, disk: &DiskHandle, report: &Report) -> Result<Option<String>, OpenError> {
        let mut entries = self.entries();
        let Some(known) = entries.iter_mut().find(|known| known.device == disk.device()) else {
            return Ok(None);
        };
        let (durable, found) = (known.durable, disk.durable());
        let why = if durable == LOST {
            "it lost records that it had acknowledged, of which nobody can say whose they were".to_owned()
        } else if found < durable {
            format!(
                "its log ends at LSN {found}, and was durable up to {durable}: it is an older copy of itself, or lost what was written last"
            )
        } else if report.nameless {
            known.durable = LOST;
            self.write(&entries)?;
            format!(
                "of its log LSNs {:?} cannot be read (or were torn by a power cut, where the drive reports that as unreadable), and nobody can say whose records \
                 they were",
                report.lost
            )
        } else {
            return Ok(None);
        };
        Ok(Some(format!(
            "{why}. What index groups and volumes there have forgotten could undo what others were promised, so nothing of it is used (if there is \
             no other copy, and what is forgotten is given up: {})",
            self.forgetting(disk.device())
        )))
    }

    /// How an operator has a disk forgotten that the cluster cannot take out.
    pub(super) fn forgetting(&self, device: DeviceId) -> String {
        let file = self.file.as_deref().unwrap_or_else(|| Path::new("cluster/devices"));
        format!("stop the node, take the line of {device} out of {}, start it", file.display())
    }

    /// Remembers these, in their order: all that are listed or awaited. Others are gone. Of those that are not open it stays as it was.
    pub(super) fn remember(&self, all: &[Place]) -> Result<(), OpenError> {
        let mut entries = self.entries();
        let entry = |(device, path, disk): &Place| {
            let known = entries.iter().find(|known| known.device == *device);
            let (standing, durable) =
                known.map_or((Standing::In, 0), |known| (known.standing, known.durable));
            let standing = if standing == Standing::Gone { Standing::Out } else { standing };
            let durable = disk.as_ref().map_or(durable, |disk| disk.durable().max(durable));
            Entry { device: *device, standing, durable, path: provision::absolute(path) }
        };
        let mut now: Vec<Entry> = Vec::with_capacity(all.len());
        for entry in all.iter().map(entry) {
            if !now.iter().any(|noted| noted.device == entry.device) {
                now.push(entry);
            }
        }
        for known in entries.iter() {
            if !now.iter().any(|noted| noted.device == known.device) {
                now.push(Entry { standing: Standing::Gone, ..known.clone() });
            }
        }
        if *entries != now {
            self.write(&now)?;
            *entries = now;
        }
        Ok(())
    }

    /// Notes how far the logs of these are durable, and which devices the cluster has out: of all that are known, if that is known. Blocks.
    pub(crate) fn note(
        &self,
        disks: &[DiskHandle],
        out: Option<&BTreeSet<DeviceId>>,
    ) -> Result<(), OpenError> {
        let mut entries = self.entries();
        let mut now = entries.clone();
        for known in &mut now {
            if let Some(disk) = disks.iter().find(|disk| disk.device() == known.device) {
                known.durable = known.durable.max(disk.durable());
            }
            known.standing = match (out.map(|out| out.contains(&known.device)), known.standing) {
                (Some(true), Standing::In) => Standing::Out,
                (Some(false), _) => Standing::In,
                (_, stays) => stays,
            };
        }
        if *entries != now {
            self.write(&now)?;
            *entries = now;
        }
        Ok(())
    }

    fn write(&self, entries: &[Entry]) -> Result<(), OpenError> {
        let Some(file) = &self.file else { return Ok(()) };
        let lines: String = entries.iter().map(Entry::line).collect();
        durable_file::replace(file, lines.as_bytes(), durable_file::PRIVATE)
            .map_err(|e| OpenError::new(file, format!("write it: {e}")))
    }
}
