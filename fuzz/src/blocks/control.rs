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
use quarry_volume::Fence;
use quarry_volume::head::Configuration;
use quarry_volume::store::Views;

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
    let Configuration { version, members, joining } = &row.configuration;
    let mut out = row.epoch.to_le_bytes().to_vec();
    out.extend_from_slice(&row.era.to_le_bytes());
    out.push(u8::try_from(row.snapshots.len()).unwrap_or(u8::MAX));
    for (era, name) in &row.snapshots {
        out.extend_from_slice(&era.to_le_bytes());
        out.extend_from_slice(&name.to_le_bytes());
    }
    out.extend_from_slice(&version.to_le_bytes());
    for list in [members, joining] {
        out.push(u8::try_from(list.len()).unwrap_or(u8::MAX));
        list.iter().for_each(|device| out.extend_from_slice(&device.0));
    }
    out
}

fn decode(bytes: &[u8]) -> Option<Row> {
    fn list(rest: &mut &[u8]) -> Option<Vec<DeviceId>> {
        let (count, behind) = rest.split_first()?;
        let (ids, behind) = behind.split_at_checked(usize::from(*count) * 16)?;
        *rest = behind;
        Some(ids.as_chunks().0.iter().map(|id| DeviceId(*id)).collect())
    }
    let (epoch, rest) = bytes.split_first_chunk()?;
    let (era, rest) = rest.split_first_chunk()?;
    let (count, mut rest) = rest.split_first()?;
    let mut snapshots = Vec::new();
    for _ in 0..*count {
        let (era, behind) = rest.split_first_chunk()?;
        let (name, behind) = behind.split_first_chunk()?;
        snapshots.push((u32::from_le_bytes(*era), u64::from_le_bytes(*name)));
        rest = behind;
    }
    let (version, mut rest) = rest.split_first_chunk()?;
    let (members, joining) = (list(&mut rest)?, list(&mut rest)?);
    let configuration = Configuration { version: u32::from_le_bytes(*version), members, joining };
    Some(Row { epoch: u64::from_le_bytes(*epoch), configuration, era: u32::from_le_bytes(*era), snapshots })
}

impl Control {
    pub(crate) fn new(configuration: Configuration) -> Self {
        let row = Row { epoch: 0, configuration, era: 0, snapshots: Vec::new() };
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

    /// A snapshot is none any more, if this is still the head.
    pub(crate) async fn forget(&self, epoch: u64, name: u64) -> Option<Views> {
        for _ in 0..TRIES {
            let (mut row, time) = self.control.read();
            if row.epoch != epoch {
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
    pub(crate) async fn configure(&self, epoch: u64, wanted: &Configuration) -> Result<(), Fence> {
        loop {
            let (row, time) = self.control.read();
            if row.configuration == *wanted {
                return Ok(());
            }
            if row.epoch > epoch || row.configuration.version >= wanted.version {
                return Err(Fence { epoch: row.epoch, configuration: row.configuration.version });
            }
            self.change(&Row { configuration: wanted.clone(), ..row }, time).await;
            self.runtime.sleep(PAUSE).await;
        }
    }
}
