//! The row of a volume in the control group, modelled: one place that is always up and takes a change if what it names still stands;
//! and what a node does with it, as `node/src/control/volumes.rs` does.
//!
//! Invariant: of two who change the row one is told so.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use quarry_engine::consensus::Runtime;
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::{Code, Failure, NodeId, Request, Response, Service, Transport, Wish};
use quarry_engine::object::BoxFuture;
use quarry_volume::head::Configuration;
use quarry_volume::store::Views;
use quarry_volume::{Fence, VolumeId};

use super::part::VOLUME;
use crate::cluster::locked;

/// Where it is.
pub(crate) const CONTROL: NodeId = NodeId([0xfe; 16]);
/// How long a change may take, and the pause between two tries.
const WITHIN: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);
/// How often an epoch is asked for.
const TRIES: usize = 50;

/// What the group has committed of the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) epoch: u64,
    pub(crate) configuration: Configuration,
    /// To which writes belong.
    pub(crate) era: u32,
    /// Of each its era, and what its client calls it.
    pub(crate) snapshots: Vec<(u32, u64)>,
    /// What nodes keep in rows of their own is here with the parent's.
    pub(crate) clones: Vec<CloneRow>,
}

/// A clone of one of its snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CloneRow {
    pub(crate) id: u8,
    /// What the snapshot's client calls it.
    pub(crate) of: u64,
    /// The snapshot's.
    pub(crate) era: u32,
    pub(crate) epoch: u64,
    pub(crate) configuration: Configuration,
    /// Its members are being made.
    pub(crate) making: bool,
    /// It needs its parent.
    pub(crate) descends: bool,
    /// It has a snapshot, of its first era.
    pub(crate) frozen: bool,
    /// It is on its way back to that, and how often it was.
    pub(crate) returning: bool,
    pub(crate) returns: u32,
}

impl CloneRow {
    pub(crate) fn volume(&self) -> VolumeId {
        VolumeId([self.id; 16])
    }

    pub(crate) fn views(&self) -> Views {
        match self.frozen {
            true => Views { era: 1, snapshots: vec![0] },
            false => Views::default(),
        }
    }
}

/// A volume, as its heads are told of it.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) volume: VolumeId,
    pub(crate) epoch: u64,
    pub(crate) configuration: Configuration,
    pub(crate) views: Views,
}

impl Row {
    pub(crate) fn views(&self) -> Views {
        Views { era: self.era, snapshots: self.snapshots.iter().map(|(era, _)| *era).collect() }
    }
}

/// The group; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Control(Arc<Mutex<(Row, u64)>>);

fn encode(row: &Row) -> Vec<u8> {
    let mut out = row.epoch.to_le_bytes().to_vec();
    out.extend_from_slice(&row.era.to_le_bytes());
    out.push(u8::try_from(row.snapshots.len()).unwrap_or(u8::MAX));
    for (era, name) in &row.snapshots {
        out.extend_from_slice(&era.to_le_bytes());
        out.extend_from_slice(&name.to_le_bytes());
    }
    put_configuration(&mut out, &row.configuration);
    for clone in &row.clones {
        out.extend([clone.id, u8::from(clone.making), clone.descends.into()]);
        out.extend([u8::from(clone.frozen), clone.returning.into()]);
        out.extend_from_slice(&clone.returns.to_le_bytes());
        out.extend_from_slice(&clone.of.to_le_bytes());
        out.extend_from_slice(&clone.era.to_le_bytes());
        out.extend_from_slice(&clone.epoch.to_le_bytes());
        put_configuration(&mut out, &clone.configuration);
    }
    out
}

fn put_configuration(out: &mut Vec<u8>, configuration: &Configuration) {
    let Configuration { version, members, joining } = configuration;
    out.extend_from_slice(&version.to_le_bytes());
    for list in [members, joining] {
        out.push(u8::try_from(list.len()).unwrap_or(u8::MAX));
        list.iter().for_each(|device| out.extend_from_slice(&device.0));
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (field, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(*field)
}

fn take_configuration(rest: &mut &[u8]) -> Option<Configuration> {
    fn list(rest: &mut &[u8]) -> Option<Vec<DeviceId>> {
        let [count] = take(rest)?;
        let (ids, behind) = rest.split_at_checked(usize::from(count) * 16)?;
        *rest = behind;
        Some(ids.as_chunks().0.iter().map(|id| DeviceId(*id)).collect())
    }
    let version = u32::from_le_bytes(take(rest)?);
    Some(Configuration { version, members: list(rest)?, joining: list(rest)? })
}

fn decode(mut bytes: &[u8]) -> Option<Row> {
    let rest = &mut bytes;
    let (epoch, era) = (u64::from_le_bytes(take(rest)?), u32::from_le_bytes(take(rest)?));
    let [count] = take(rest)?;
    let mut snapshots = Vec::new();
    for _ in 0..count {
        snapshots.push((u32::from_le_bytes(take(rest)?), u64::from_le_bytes(take(rest)?)));
    }
    let configuration = take_configuration(rest)?;
    let mut clones = Vec::new();
    while !rest.is_empty() {
        let [id, making, descends, frozen, returning] = take(rest)?;
        let returns = u32::from_le_bytes(take(rest)?);
        let of = u64::from_le_bytes(take(rest)?);
        let (era, epoch) = (u32::from_le_bytes(take(rest)?), u64::from_le_bytes(take(rest)?));
        let configuration = take_configuration(rest)?;
        let [making, descends, frozen, returning] = [making, descends, frozen, returning].map(|is| is == 1);
        let row =
            CloneRow { id, of, era, epoch, configuration, making, descends, frozen, returning, returns };
        clones.push(row);
    }
    Some(Row { epoch, configuration, era, snapshots, clones })
}

impl Control {
    pub(crate) fn new(configuration: Configuration) -> Self {
        let (snapshots, clones) = (Vec::new(), Vec::new());
        let row = Row { epoch: 0, configuration, era: 0, snapshots, clones };
        Self(Arc::new(Mutex::new((row, 1))))
    }

    /// The row, and the version time with which it stands.
    pub(crate) fn read(&self) -> (Row, u64) {
        locked(&self.0).clone()
    }
}

impl Service for Control {
    fn handle(&self, _from: NodeId, request: Request) -> BoxFuture<'static, Response> {
        let refused = |code| Response::Failed(Failure::new(code, "not changed"));
        let response = match request {
            Request::Wish(Wish::Volumes { guards, rows }) => {
                let mut standing = locked(&self.0);
                let guarded = guards.first().and_then(|(_, time)| *time);
                let next = rows.first().and_then(|(_, row)| decode(row.as_deref()?));
                match next.filter(|_| guarded == Some(standing.1)) {
                    Some(next) => {
                        *standing = (next, standing.1 + 1);
                        Response::Done
                    }
                    None => refused(Code::ConditionFailed),
                }
            }
            _ => refused(Code::NotServed),
        };
        Box::pin(std::future::ready(response))
    }
}

/// The row as a node uses it.
#[derive(Clone)]
pub(crate) struct Register {
    pub(crate) control: Control,
    pub(crate) net: Arc<dyn Transport>,
    pub(crate) runtime: Arc<dyn Runtime>,
}

impl Register {
    async fn change(&self, row: &Row, time: u64) -> bool {
        let key = b"Vi".to_vec();
        let (guards, rows) = (vec![(key.clone(), Some(time))], vec![(key, Some(encode(row)))]);
        let wish = Request::Wish(Wish::Volumes { guards, rows });
        matches!(self.net.call(CONTROL, wish, WITHIN).await, Ok(Response::Done))
    }

    /// Raises the epoch. One that was given and lost is given to nobody else.
    pub(crate) async fn raise(&self) -> Option<Row> {
        for _ in 0..TRIES {
            let (row, time) = self.control.read();
            let next = Row { epoch: row.epoch + 1, ..row };
            if self.change(&next, time).await {
                return Some(next);
            }
            self.runtime.sleep(PAUSE).await;
        }
        None
    }

    /// Commits a snapshot for the head of an epoch; none: it is not known whether it is one.
    pub(crate) async fn snapshot(&self, epoch: u64, name: u64) -> Option<Views> {
        let mut era = None;
        for _ in 0..TRIES {
            let (row, time) = self.control.read();
            if row.snapshots.iter().any(|(_, known)| *known == name) {
                return Some(row.views());
            }
            if row.epoch != epoch || *era.get_or_insert(row.era) != row.era {
                return None;
            }
            let mut next = Row { era: row.era + 1, ..row };
            next.snapshots.push((row.era, name));
            self.change(&next, time).await;
            self.runtime.sleep(PAUSE).await;
        }
        None
    }

    /// Raises the epoch of a volume that is there.
    pub(crate) async fn granted(&self, volume: VolumeId) -> Option<Standing> {
        if volume == VOLUME {
            let row = self.raise().await?;
            let views = row.views();
            return Some(Standing { volume, epoch: row.epoch, configuration: row.configuration, views });
        }
        let raised = |clone: &mut CloneRow| clone.epoch += 1;
        let clone = self.change_clone(volume, |clone| !clone.making, raised).await?;
        let (views, CloneRow { epoch, configuration, .. }) = (clone.views(), clone);
        Some(Standing { volume, epoch, configuration, views })
    }

    /// Changes the row of a clone that is as wanted; none: it is not, or nobody knows.
    async fn change_clone(
        &self,
        volume: VolumeId,
        wanted: impl Fn(&CloneRow) -> bool,
        change: impl Fn(&mut CloneRow),
    ) -> Option<CloneRow> {
        for _ in 0..TRIES {
            let (mut row, time) = self.control.read();
            let clone = row.clones.iter_mut().find(|clone| clone.volume() == volume && wanted(clone))?;
            change(clone);
            let next = clone.clone();
            if self.change(&row, time).await {
                return Some(next);
            }
            self.runtime.sleep(PAUSE).await;
        }
        None
    }

    /// A clone of a snapshot is being made, if this is still the head.
    pub(crate) async fn begin_clone(&self, epoch: u64, id: u8, of: u64) -> Option<CloneRow> {
        for _ in 0..TRIES {
            let (mut row, time) = self.control.read();
            if let Some(known) = row.clones.iter().find(|known| known.id == id) {
                // What was asked before was done, and its answer lost.
                return Some(known.clone());
            }
            let (era, _) = *row.snapshots.iter().find(|(_, name)| *name == of && row.epoch == epoch)?;
            let configuration = Configuration { version: 1, ..row.configuration.clone() };
            let clone = CloneRow {
                id,
                of,
                era,
                epoch: 1,
                configuration,
                making: true,
                descends: true,
                frozen: false,
                returning: false,
                returns: 0,
            };
            row.clones.push(clone.clone());
            if self.change(&row, time).await {
                return Some(clone);
            }
            self.runtime.sleep(PAUSE).await;
        }
        None
    }

    /// It is there, with these members.
    pub(crate) async fn end_clone(&self, clone: &CloneRow, made: &[DeviceId]) -> bool {
        let (members, joining) = clone.configuration.all().partition(|device| made.contains(device));
        let configuration = Configuration { version: 1, members, joining };
        let is_making = |known: &CloneRow| known.making;
        let there = |known: &mut CloneRow| {
            known.making = false;
            known.configuration = configuration.clone();
        };
        self.change_clone(clone.volume(), is_making, there).await.is_some()
    }

    /// Changes the row of a clone, if the head is still that of this epoch.
    pub(crate) async fn edit_clone(
        &self,
        volume: VolumeId,
        epoch: u64,
        change: impl Fn(&mut CloneRow),
    ) -> Option<CloneRow> {
        self.change_clone(volume, |clone| clone.epoch == epoch, change).await
    }

    /// A snapshot is none any more, if this is still the head and nothing is a clone of it.
    pub(crate) async fn forget(&self, epoch: u64, name: u64) -> Option<Views> {
        for _ in 0..TRIES {
            let (mut row, time) = self.control.read();
            if row.epoch != epoch {
                return None;
            }
            if row.clones.iter().any(|clone| clone.of == name && clone.descends) {
                return None;
            }
            row.snapshots.retain(|(_, known)| *known != name);
            if self.change(&row, time).await {
                return Some(row.views());
            }
            self.runtime.sleep(PAUSE).await;
        }
        None
    }

    /// Commits another configuration for the head of an epoch, or tells under what another one acts.
    pub(crate) async fn configure(
        &self,
        volume: VolumeId,
        epoch: u64,
        wanted: &Configuration,
    ) -> Result<(), Fence> {
        loop {
            let (mut row, time) = self.control.read();
            let clone = row.clones.iter_mut().find(|clone| clone.volume() == volume);
            let (now, standing) = match clone {
                Some(clone) => (clone.epoch, &mut clone.configuration),
                None => (row.epoch, &mut row.configuration),
            };
            if standing == wanted {
                return Ok(());
            }
            if now > epoch || standing.version >= wanted.version {
                return Err(Fence { epoch: now, configuration: standing.version });
            }
            *standing = wanted.clone();
            self.change(&row, time).await;
            self.runtime.sleep(PAUSE).await;
        }
    }
}
