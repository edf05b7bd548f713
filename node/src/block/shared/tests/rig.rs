//! Three stores, the control group over which volumes are registered, and what befalls messages to members.
//!
//! Members are reached by the network also from their own node, so that each may die while the node of the head lives.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::{NetError, NodeId, Request, Response, Transport, VolumeAnswer, VolumeCall};
use quarry_engine::object::BoxFuture;
use quarry_ring::Class;
use quarry_volume::head::{Configuration, Standing as How, Until};
use quarry_volume::pace::Limits;
use quarry_volume::store::{Members, Reach, Replicated, Seen, VolumeError};
use quarry_volume::{KeyRing, SLICE_BYTES, VolumeId};
use tokio::sync::watch;

use super::super::Shared;
use crate::control::state::{Device, Member, State, Wanted};
use crate::control::tests::{Cluster, node, until};
use crate::control::volumes::{Register, Row};
use crate::swift::testing::Rig;

pub(super) const VOLUME: VolumeId = VolumeId([9; 16]);
pub(super) const NAME: &str = "vol";
const BYTES: u64 = 64 << 20;
/// How much faster time goes for heads.
const FASTER: u32 = 4;

pub(super) fn device(n: u8) -> DeviceId {
    DeviceId([n + 10; 16])
}

/// What befalls messages to members.
#[derive(Default)]
pub(super) struct Weather {
    members: Vec<Arc<Members>>,
    away: Mutex<HashSet<u8>>,
    /// Whose heads reach nobody any more; 0: nobody's.
    pub(super) dead: AtomicU8,
    /// Up to where each was asked to make what it has durable.
    flushed: Mutex<BTreeMap<u8, u64>>,
    /// Rows are given to nobody: a member that is filled is filled until this ends.
    pub(super) holds_rows: AtomicBool,
    /// The same of what a clone takes over.
    pub(super) holds_take_over: AtomicBool,
    /// What one is read for takes this many milliseconds.
    pub(super) slow_reads: AtomicU8,
    /// Its disk has no room for one that is filled; 0: nobody's.
    pub(super) full: AtomicU8,
}

impl Weather {
    pub(super) fn away(&self, n: u8) {
        self.away.lock().unwrap().insert(n);
    }

    pub(super) fn back(&self, n: u8) {
        self.away.lock().unwrap().remove(&n);
    }

    /// How many were asked to make all up to there durable.
    pub(super) fn flushed(&self, upto: u64) -> usize {
        self.flushed.lock().unwrap().values().filter(|known| **known >= upto).count()
    }

    fn is_away(&self, n: u8) -> bool {
        self.away.lock().unwrap().contains(&n)
    }

    async fn hold(&self, call: &VolumeCall) {
        let holds = match call {
            VolumeCall::Rows { .. } => &self.holds_rows,
            VolumeCall::TakeOver { .. } => &self.holds_take_over,
            _ => return,
        };
        while holds.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

struct Net {
    local: NodeId,
    weather: Arc<Weather>,
}

impl Transport for Net {
    fn local(&self) -> NodeId {
        self.local
    }

    fn call(
        &self,
        to: NodeId,
        request: Request,
        within: Duration,
    ) -> BoxFuture<'static, Result<Response, NetError>> {
        let (weather, n, from) = (Arc::clone(&self.weather), to.0[0], self.local.0[0]);
        Box::pin(async move {
            let lost = || NetError::Lost { to, reason: "away".to_owned() };
            let Request::Volume { device, volume, fence, session, call } = request else {
                return Err(lost());
            };
            if weather.is_away(n) || weather.dead.load(Ordering::Relaxed) == from {
                return Err(lost());
            }
            if let VolumeCall::Flush(upto) = &call {
                let mut flushed = weather.flushed.lock().unwrap();
                let known = flushed.entry(n).or_default();
                *known = (*known).max(*upto);
            }
            if matches!(call, VolumeCall::Fill { .. }) && weather.full.load(Ordering::Relaxed) == n {
                return Ok(Response::Volume(VolumeAnswer::Tight));
            }
            let answer = async {
                weather.hold(&call).await;
                if matches!(call, VolumeCall::Read { .. }) {
                    let slow = weather.slow_reads.load(Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(slow.into())).await;
                }
                let members = &weather.members[usize::from(n) - 1];
                members.answer(device, volume, fence, session, call).await
            };
            let answer = tokio::time::timeout(within, answer).await.map_err(|_| NetError::Deadline(to))?;
            if weather.is_away(n) { Err(lost()) } else { Ok(Response::Volume(answer)) }
        })
    }

    fn cast(&self, _: NodeId, _: Request) {}

    fn name(&self) -> &'static str {
        "test"
    }
}

/// Three nodes with a store each.
pub(super) struct World {
    cluster: Cluster,
    disks: Vec<Rig>,
    pub(super) weather: Arc<Weather>,
    state: watch::Sender<Arc<State>>,
}

impl World {
    pub(super) async fn start() -> Self {
        let cluster = Cluster::start(1).await;
        let disks: Vec<Rig> = (1..=3).map(|n| Rig::start_as(n + 10)).collect();
        let members = disks.iter().map(|disk| Arc::new(Members::open(vec![disk.disk()]).unwrap()));
        let weather = Arc::new(Weather { members: members.collect(), ..Weather::default() });
        let mut state = State::default();
        for n in 1..=3 {
            let address = "127.0.0.1:1".parse().unwrap();
            state.members.insert(node(n), Member { number: n.into(), address, since: 1, leaving: false });
            let (wanted, class) = (Wanted::Share, Class::Ssd);
            let (node, bytes, region, away) = (node(n), 1 << 30, 1, false);
            let known = Device { node, bytes, region, zone: n.into(), class, wanted, away };
            state.devices.insert(device(n), known);
        }
        let (state, _) = watch::channel(Arc::new(state));
        Self { cluster, disks, weather, state }
    }

    /// With a volume that has members on the first so many stores.
    pub(super) async fn with_volume(members: u8) -> (Self, Arc<Shared>) {
        let world = Self::start().await;
        let one = world.node(1);
        let configuration = Configuration::new((1..=members).map(device).collect());
        let row = Row {
            id: VOLUME,
            name: NAME.to_owned(),
            description: String::new(),
            bytes: BYTES,
            slice_bytes: SLICE_BYTES,
            made: 1,
            epoch: 0,
            head: None,
            configuration,
            key: None,
            era: 0,
            snapshots: Vec::new(),
            limits: Limits::default(),
            parent: None,
            returning: None,
            wanted: 0,
        };
        one.register.make(&row, None).await.unwrap();
        (world, one)
    }

    /// The volumes as a node sees them; asked again, as one that was started anew does.
    pub(super) fn node(&self, n: u8) -> Arc<Shared> {
        let seat = &self.cluster.nodes[usize::from(n) - 1];
        let register = Register::new(seat.groups.control.clone(), Arc::clone(&seat.net));
        let nobody = || Arc::new(Members::open(Vec::new()).unwrap());
        let reach = Reach {
            members: nobody(),
            net: Some(Arc::new(Net { local: node(n), weather: Arc::clone(&self.weather) })),
            node_of: Arc::new(|device: DeviceId| Some(node(device.0[0] - 10))),
            timer: Arc::new(|time| Box::pin(tokio::time::sleep(time / FASTER))),
            kept: Arc::default(),
        };
        let keys = KeyRing::new(Vec::new());
        Arc::new(Shared::over(register, reach, nobody(), self.state.subscribe(), keys))
    }

    /// The control group has no quorum any more.
    pub(super) fn lose_control(&self) {
        self.cluster.kill(2);
        self.cluster.kill(3);
    }

    pub(super) async fn stop(self) {
        for disk in self.disks {
            disk.stop().await;
        }
        self.cluster.stop().await;
    }
}

impl Shared {
    /// The volume's row as this node knows it.
    pub(super) fn now(&self) -> Row {
        self.register.row(VOLUME).unwrap().unwrap().0
    }

    /// Waits until the head sees its members so.
    pub(super) async fn until_seen(&self, what: &str, good: impl Fn(&[Seen]) -> bool) {
        until(what, async || good(&self.seen(&self.now()).await)).await;
    }

    /// The epoch of the head that is here, if there is one.
    pub(super) async fn epoch_here(&self) -> Option<u64> {
        self.place(VOLUME).head.lock().await.as_ref().map(Replicated::epoch)
    }
}

/// Waits until members have the same, block by block: one may be a moment late.
pub(super) async fn until_same(shared: &Arc<Shared>, members: usize) {
    until("members have the same", async || {
        let compared = shared.compare(NAME).await.unwrap();
        assert_eq!(compared.members, members);
        compared.different == 0
    })
    .await;
}

pub(super) fn all_count(n: usize) -> impl Fn(&[Seen]) -> bool {
    move |seen| seen.len() == n && seen.iter().all(|one| one.counts && one.standing == How::Active)
}

pub(super) fn stands(n: u8, how: How) -> impl Fn(&[Seen]) -> bool {
    move |seen| seen.iter().any(|one| one.device == device(n) && one.standing == how)
}

pub(super) fn counts_no_more(n: u8) -> impl Fn(&[Seen]) -> bool {
    move |seen| seen.iter().any(|one| one.device == device(n) && !one.counts)
}

pub(super) async fn write(head: &Replicated, block: u64, value: u8) -> Result<(), VolumeError> {
    head.write(block * 4096, Bytes::from(vec![value; 4096]), Until::Written).await
}

pub(super) async fn value(head: &Replicated, block: u64) -> u8 {
    head.read_whole(block * 4096, 4096).await.unwrap()[0]
}
