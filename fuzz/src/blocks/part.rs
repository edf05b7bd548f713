//! What a node has of volumes: the members on its disks, and the heads that it is, put together as `node/src/block` and
//! `node/src/control/member.rs` do.
//!
//! Invariant: nothing here is simulated but the runtime, the network and the drives that are handed in.

use std::collections::BTreeMap;
use std::sync::Arc;

use quarry_engine::consensus::Runtime;
use quarry_engine::disk::DiskHandle;
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::{
    BlockWrite, NodeId, Request, Response, Service, Timer, Transport, VolumeAnswer, VolumeCall,
};
use quarry_engine::object::{BoxFuture, Spawn};
use quarry_volume::head::{Configuration, Session};
use quarry_volume::store::{Attachment, Members, Peer, Reach, Replicated};
use quarry_volume::{CHUNK_BYTES, Fence, Geometry, VolumeId};

use super::control::{Control, Register, Row, Standing};
use super::plant::{Bent, Plant};

pub(crate) const VOLUME: VolumeId = VolumeId([5; 16]);
/// Chunks of it.
pub(crate) const CHUNKS: u64 = 2;

/// A node's part.
#[derive(Clone)]
pub(crate) struct Part {
    members: Arc<Members>,
    reach: Reach,
    register: Register,
    plant: Plant,
}

/// What a part is made of.
pub(crate) struct Making {
    pub(crate) disks: Vec<DiskHandle>,
    pub(crate) net: Arc<dyn Transport>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) control: Control,
    pub(crate) plant: Plant,
}

/// The machine of a device, as `machine.rs` numbers them.
fn node_of(device: DeviceId) -> NodeId {
    NodeId([device.0[0]; 16])
}

/// Of the volume, and of its snapshots.
pub(crate) fn geometry() -> Geometry {
    Geometry::new(CHUNKS * CHUNK_BYTES, CHUNK_BYTES).expect("whole chunks")
}

impl Part {
    /// What the control group has of the volume.
    pub(crate) fn register(&self) -> &Register {
        &self.register
    }

    pub(crate) fn new(making: Making) -> Result<Self, String> {
        let Making { disks, net, runtime, control, plant } = making;
        let spawner = runtime.clone();
        let spawn: Spawn = Arc::new(move |work| spawner.spawn(work));
        let sleeper = runtime.clone();
        let timer: Timer = Arc::new(move |time| sleeper.sleep(time));
        let open = |disks| Members::open_on(disks, spawn.clone()).map(Arc::new).map_err(|e| e.to_string());
        let members = open(disks)?;
        // Bugs are planted at the door: then all come in there.
        let near = if plant == Plant::Nothing { members.clone() } else { open(Vec::new())? };
        let node_of = Arc::new(|device| Some(node_of(device)));
        let reach = Reach { members: near, net: Some(net.clone()), node_of, timer, kept: Arc::default() };
        Ok(Self { members, reach, register: Register { control, net, runtime }, plant })
    }

    /// Answers for its members, and hands everything else on.
    pub(crate) fn door(&self, others: Option<Arc<dyn Service>>) -> Arc<dyn Service> {
        Arc::new(Door { members: self.members.clone(), others, plant: self.plant, bent: Arc::default() })
    }

    /// Becomes the head, once it is served.
    pub(crate) async fn attach(self, volume: VolumeId) -> Result<Replicated, String> {
        let granted = self.register.granted(volume).await.ok_or("the control group does not answer")?;
        let Standing { volume, epoch, configuration, views } = granted;
        let near = configuration.all().find(|device| self.members.has(*device));
        let geometry = geometry();
        let (wanted, cipher) = (configuration.all().count(), None);
        let what = Attachment { volume, geometry, epoch, configuration, wanted, near, cipher, views };
        let register = self.register.clone();
        let commit = Arc::new(move |wanted: Configuration| -> BoxFuture<'static, Result<(), Fence>> {
            let register = register.clone();
            Box::pin(async move { register.configure(volume, epoch, &wanted).await })
        });
        let head = Replicated::attach(&what, &self.reach, commit);
        head.served().await.map_err(|e| format!("epoch {epoch}: {e}"))?;
        Ok(head)
    }

    /// All that the members hold, under an epoch of its own.
    pub(crate) async fn tables(self, volume: VolumeId) -> Result<(BTreeMap<DeviceId, Table>, Row), String> {
        let granted = self.register.granted(volume).await.ok_or("the control group does not answer")?;
        let fence = Fence { epoch: granted.epoch, configuration: granted.configuration.version };
        let mut tables = BTreeMap::new();
        let views = [granted.views.snapshots, vec![u32::MAX]].concat();
        for device in granted.configuration.members.iter().copied() {
            tables.insert(device, self.table(Peer { device, volume }, fence, &views).await?);
        }
        Ok((tables, self.register.control.read().0))
    }

    async fn table(&self, peer: Peer, fence: Fence, views: &[u32]) -> Result<Table, String> {
        let asked = |session, call| self.reach.ask(peer, fence, Session(session), call);
        let session = match asked(0, VolumeCall::Promise).await {
            Ok(VolumeAnswer::Promised { session, whole: true, .. }) => session,
            other => return Err(format!("a member does not promise: {other:?}")),
        };
        let mut table = Table::new();
        for era in views.iter().copied() {
            let mut next = Some(quarry_engine::block::FIRST_PLACE);
            while let Some(from) = next {
                let call = VolumeCall::Rows { from, above: 0, data: true, era, since: 0 };
                let (rows, behind, data) = match asked(session, call).await {
                    Ok(VolumeAnswer::Rows { rows, next, data }) => (rows, next, data),
                    other => return Err(format!("a member does not give its rows: {other:?}")),
                };
                next = behind;
                enter(&mut table, era, rows, data);
            }
        }
        Ok(table)
    }
}

fn enter(table: &mut Table, era: u32, rows: Vec<BlockWrite>, mut data: bytes::Bytes) {
    for row in rows {
        for nth in 0..row.run.blocks {
            let block = u64::from(row.run.first) + u64::from(nth);
            let place = (era, u64::from(row.run.slice.0), u64::from(row.run.chunk.0), block);
            let bytes = (!row.zeroes).then(|| data.split_to(data.len().min(4096)).to_vec());
            table.insert(place, ((row.position.epoch, row.position.sequence), bytes));
        }
    }
}

/// By the last era that is seen, slice, chunk and block: the place in the order, and the bytes; `None`: zeroes.
pub(crate) type Table = BTreeMap<(u32, u64, u64, u64), ((u64, u64), Option<Vec<u8>>)>;

struct Door {
    members: Arc<Members>,
    others: Option<Arc<dyn Service>>,
    plant: Plant,
    bent: Arc<Bent>,
}

impl Service for Door {
    fn handle(&self, from: NodeId, request: Request) -> BoxFuture<'static, Response> {
        match request {
            Request::Volume { device, volume, fence, session, call } => {
                let (members, plant, bent) = (self.members.clone(), self.plant, self.bent.clone());
                Box::pin(async move {
                    let call = plant.asked(&bent, (device, volume), call);
                    let confirms = call == VolumeCall::Confirm;
                    let answer = members.answer(device, volume, fence, session, call).await;
                    Response::Volume(plant.answered(&bent, device, confirms, answer))
                })
            }
            request => match &self.others {
                Some(others) => others.handle(from, request),
                None => unreachable!("nothing else is asked"),
            },
        }
    }
}
