//! What is told to the leader of the control group, who writes it down: where a node is and which disks it has, and what an
//! operator wants of them.
//!
//! Invariant: a node speaks for itself alone: who it is says its certificate.
//! Invariant: what is announced again and has not changed changes nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quarry_engine::clock::Clock;
use quarry_engine::consensus::{Group, StatusWatch};
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::{
    Announcement, Code, Failure, NetError, NodeId, Request, Response, Service, Transport, Wish,
};
use quarry_engine::object::BoxFuture;
use quarry_ring::Class;

use super::children;
use super::groups::{ControlError, Own, Table, change, put};
use super::health;
use super::left::Left;
use super::policies;
use super::state::{Device, Member, State, Wanted, device_key, member_key};
use super::volumes;

/// Pause until the next announcement when one was taken note of, and when not or nothing is heard of the cluster.
const PAUSE: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(500);
/// Pause between two looks whether the cluster is heard of.
const LOOK: Duration = Duration::from_secs(2);
/// Who hears nothing of the control group for so long asks whether it is a member still.
const SILENCE: Duration = Duration::from_secs(3);
/// How long one may take.
const WITHIN: Duration = Duration::from_secs(5);
/// How long who leads is waited for.
const ELECTION: Duration = Duration::from_secs(3);
/// Rows of one change.
const ROWS: usize = 4;

/// Rows, and what they shall be.
type Changes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// Tells the leader of this node.
pub(crate) struct Announcer {
    pub(crate) groups: Own,
    pub(crate) net: Arc<dyn Transport>,
    /// Asked while the leader is not known.
    pub(crate) contacts: Vec<NodeId>,
    pub(crate) left: Arc<Left>,
}

/// What became of an announcement.
enum Noted {
    Member,
    Left,
    Failed(String),
}

impl Announcer {
    /// Announces for as long as it is polled.
    pub(crate) async fn run(self, what: Announcement) {
        let mut turn = 0;
        let (mut failed, mut said) = (false, false);
        loop {
            let noted = self.announce(self.whom(turn, failed), &what).await;
            turn += 1;
            failed = matches!(noted, Noted::Failed(_));
            match noted {
                Noted::Member => self.left.tell(false),
                Noted::Left => self.left.tell(true),
                Noted::Failed(why) if !said && turn > 10 => {
                    said = true;
                    tracing::warn!("the cluster has not taken note of this node: {why}; it is tried again");
                }
                Noted::Failed(_) => {}
            }
            said &= failed;
            self.rest(failed).await;
        }
    }

    /// Waits until it is time again: for long while the cluster is heard of.
    async fn rest(&self, failed: bool) {
        let (step, until) = if failed { (RETRY, RETRY) } else { (LOOK, PAUSE) };
        let until = Instant::now() + until;
        while Instant::now() < until {
            tokio::time::sleep(step).await;
            if self.groups.control.silent_for() > SILENCE {
                return;
            }
        }
    }

    /// The leader as this node knows it; another one now and then when that failed.
    fn whom(&self, turn: usize, failed: bool) -> Option<NodeId> {
        let voters = self.groups.control.status().voters.into_iter();
        let others = voters.filter(|node| *node != self.net.local());
        let others: Vec<NodeId> = self.contacts.iter().copied().chain(others).collect();
        let other = others.get(turn / 2 % others.len().max(1)).copied();
        let leader = self.groups.control.leader();
        if failed && turn % 2 == 1 { other.or(leader) } else { leader.or(other) }
    }

    async fn announce(&self, to: Option<NodeId>, what: &Announcement) -> Noted {
        let Some(to) = to else {
            let why = "no other node is known: join again, or list one as [[cluster.peer]]";
            return Noted::Failed(why.to_owned());
        };
        match self.net.call(to, Request::Announce(what.clone()), WITHIN).await {
            Ok(Response::Done) => Noted::Member,
            Ok(Response::Failed(Failure { code: Code::NotServed, .. })) => Noted::Left,
            Ok(Response::Failed(failure)) => Noted::Failed(failure.to_string()),
            Ok(_) => Noted::Failed("the peer answered another question".to_owned()),
            Err(error) => Noted::Failed(error.to_string()),
        }
    }
}

/// Takes announcements, and hands everything else on.
pub(crate) struct Announcements {
    pub(crate) groups: Own,
    pub(crate) net: Arc<dyn Transport>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) others: Arc<dyn Service>,
}

impl Service for Announcements {
    fn handle(&self, from: NodeId, request: Request) -> BoxFuture<'static, Response> {
        let (groups, net, clock) = (self.groups.clone(), Arc::clone(&self.net), Arc::clone(&self.clock));
        let answer = |taken: Result<Response, String>| {
            taken.unwrap_or_else(|why| Response::Failed(Failure::new(Code::Unavailable, why)))
        };
        match request {
            Request::Announce(what) => {
                Box::pin(async move { answer(take(&groups, &*net, &clock, from, what).await) })
            }
            Request::Wish(wish) => {
                Box::pin(
                    async move { answer(grant(&groups, &*net, &clock, from == net.local(), wish).await) },
                )
            }
            request => self.others.handle(from, request),
        }
    }
}

async fn take(
    groups: &Own,
    net: &dyn Transport,
    clock: &Clock,
    from: NodeId,
    what: Announcement,
) -> Result<Response, String> {
    let Announcement { node, address, devices } = what;
    let node = node.unwrap_or(from);
    let status = groups.control.status();
    if !status.leads {
        let leader = status.leader.ok_or("this node knows no leader")?;
        // A member speaks for a node that does not know the leader yet.
        if node != from || leader == net.local() {
            return Err("this node does not lead".to_owned());
        }
        let told = Announcement { node: Some(node), address, devices };
        return net.call(leader, Request::Announce(told), WITHIN).await.map_err(|e| e.to_string());
    }
    let address: SocketAddr = address.parse().map_err(|_| "the address is none".to_owned())?;
    let stays = write(groups, clock, node, address, &devices).await.map_err(|e| e.to_string())?;
    let left = || Response::Failed(Failure::new(Code::NotServed, "the node has left the cluster"));
    Ok(if stays { Response::Done } else { left() })
}

/// False: it has left.
async fn write(
    groups: &Own,
    clock: &Clock,
    node: NodeId,
    address: SocketAddr,
    devices: &[(DeviceId, u64, u16)],
) -> Result<bool, ControlError> {
    groups.control.barrier().await?;
    let table = Table::read(&groups.control)?;
    let state = table.state()?;
    let rows = rows_of(&state, clock.unix_seconds() * 1_000_000, node, address, devices);
    for some in rows.chunks(ROWS) {
        change(&groups.control, clock, &table, put(some.to_vec())).await?;
    }
    if !rows.is_empty() {
        tracing::info!(%node, %address, disks = devices.len(), "node is a member");
    }
    // One that brings a disk again, or another, is judged at its next announcement.
    Ok(!rows.is_empty() || !state.has_left(node))
}

/// Writes down what an operator wants, or hands it on (`first`: it comes from this node) to the leader.
async fn grant(
    groups: &Own,
    net: &dyn Transport,
    clock: &Clock,
    first: bool,
    wish: Wish,
) -> Result<Response, String> {
    if first && let Some(answer) = hand_on(&groups.control, net, &wish).await {
        return answer;
    }
    if !groups.control.status().leads {
        return Err("the control group has no leader now".to_owned());
    }
    if let Wish::Volumes { guards, rows } = wish {
        return volumes::write(groups, clock, guards, rows).await.map_err(|e| e.to_string())?;
    }
    let written = async {
        groups.control.barrier().await?;
        let table = Table::read(&groups.control)?;
        let state = table.state()?;
        let rows = match wish {
            Wish::Row { key, value, fresh } => row_wished(&table, &state, key, value, fresh),
            wish => wished(&state, &wish),
        };
        for some in rows.as_ref().map_or(&[][..], Vec::as_slice).chunks(ROWS) {
            change(&groups.control, clock, &table, some.to_vec()).await?;
        }
        Ok::<_, ControlError>(rows)
    };
    written.await.map_err(|e| e.to_string())?.map(|_| Response::Done)
}

/// Hands a wish on to whoever leads; nothing, where this node does or nobody. One that cannot be reached was perhaps killed: then the next
/// one is waited for, as long as an election takes.
async fn hand_on(control: &Group, net: &dyn Transport, wish: &Wish) -> Option<Result<Response, String>> {
    let until = Instant::now() + ELECTION;
    let mut gone = None;
    loop {
        led(control, gone, until.saturating_duration_since(Instant::now())).await;
        let status = control.status();
        let leader = status.leader.filter(|leader| !status.leads && *leader != net.local())?;
        let told = net.call(leader, Request::Wish(wish.clone()), WITHIN);
        let told = tokio::select! {
            told = told => told,
            () = deposed(control.watch(), leader) => return Some(Err("another node leads now".to_owned())),
        };
        match told {
            // It was not asked.
            Err(NetError::Unreachable { .. }) if Instant::now() < until => gone = Some(leader),
            told => return Some(told.map_err(|error| error.to_string())),
        }
    }
}

/// Waits until somebody leads who is not gone.
async fn led(control: &Group, gone: Option<NodeId>, within: Duration) {
    let mut changes = control.watch();
    let nobody = || control.leader().is_none_or(|leader| Some(leader) == gone);
    let waited = async { while nobody() && changes.changed().await.is_some() {} };
    let _over = tokio::time::timeout(within, waited).await;
}

/// Waits until another node leads than this one, from which no answer will come then: it may have been killed.
async fn deposed(mut status: StatusWatch, leader: NodeId) {
    let mut now = status.now();
    while !is_deposed(now.leads, now.leader, leader) {
        match status.changed().await {
            Some(changed) => now = changed,
            // This voter is gone, and says nothing of others any more.
            None => std::future::pending().await,
        }
    }
}

/// Nobody for a moment is no other.
fn is_deposed(leads: bool, now: Option<NodeId>, leader: NodeId) -> bool {
    leads || now.is_some_and(|now| now != leader)
}

/// The row that a node wishes for, unless it is so already.
fn row_wished(
    table: &Table,
    state: &State,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
    fresh: bool,
) -> Result<Changes, String> {
    let judged = policies::may_write(state, &key, value.as_deref());
    let judged = judged.or_else(|| health::may_write(state, &key, value.as_deref()));
    match judged.or_else(|| children::may_write(state, &key, value.as_deref())) {
        Some(judged) => judged?,
        None => state.people.may_write(&key, value.as_deref())?,
    }
    match table.rows.get(&key) {
        // Somebody was faster.
        Some(_) if fresh => Ok(Vec::new()),
        row if row == value.as_ref() => Ok(Vec::new()),
        _ => Ok(vec![(key, value)]),
    }
}

/// Rows that a wish of a disk or node changes.
fn wished(state: &State, wish: &Wish) -> Result<Changes, String> {
    let rows = wished_of(state, wish);
    if rows.is_empty() {
        return Err("the cluster knows no such disk or node, or it is so already".to_owned());
    }
    Ok(put(rows))
}

fn wished_of(state: &State, wish: &Wish) -> Vec<super::state::KeyValue> {
    let mut rows = Vec::new();
    let mut want = |id: &DeviceId, device: &Device, wanted: Wanted| {
        if device.wanted != wanted {
            rows.push((device_key(*id), Device { wanted, ..device.clone() }.encode()));
        }
    };
    match *wish {
        Wish::Row { .. } | Wish::Volumes { .. } => {}
        Wish::Device { device, wanted } => {
            let wanted = match wanted {
                0 => Wanted::Share,
                1 => Wanted::Empty,
                _ => Wanted::Out,
            };
            if let Some(known) = state.devices.get(&device) {
                want(&device, known, wanted);
            }
        }
        Wish::Node { node, leaving } => {
            let wanted = if leaving { Wanted::Empty } else { Wanted::Share };
            let own = state.devices.iter().filter(|(_, device)| device.node == node);
            own.filter(|(_, device)| device.wanted != Wanted::Out)
                .for_each(|(id, device)| want(id, device, wanted));
            if let Some(member) = state.members.get(&node).filter(|member| member.leaving != leaving) {
                rows.push((member_key(node), Member { leaving, ..member.clone() }.encode()));
            }
        }
    }
    rows
}

/// Rows that an announcement changes.
fn rows_of(
    state: &State,
    now: u64,
    node: NodeId,
    address: SocketAddr,
    devices: &[(DeviceId, u64, u16)],
) -> Vec<super::state::KeyValue> {
    let mut rows = Vec::new();
    let known = state.members.get(&node);
    if known.is_none_or(|member| member.address != address) {
        let next = || state.members.values().map(|member| member.number).max().map_or(0, |most| most + 1);
        let fresh = || Member { number: next(), address, since: now, leaving: false };
        let member = known.map_or_else(fresh, |member| Member { address, ..member.clone() });
        rows.push((member_key(node), member.encode()));
    }
    for (id, bytes, zone) in devices {
        let known = state.devices.get(id);
        if known.is_some_and(|known| known.node == node && known.bytes == *bytes && known.zone == *zone) {
            continue;
        }
        let fresh = || Device {
            node,
            bytes: *bytes,
            region: 0,
            zone: *zone,
            class: Class::Hdd,
            wanted: Wanted::Share,
            away: false,
        };
        let device =
            known.map_or_else(fresh, |known| Device { node, bytes: *bytes, zone: *zone, ..known.clone() });
        rows.push((device_key(*id), device.encode()));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Cluster, node};
    use super::*;

    /// Nobody had heard that it was gone, and the wish was refused.
    #[tokio::test]
    async fn a_wish_that_a_killed_leader_did_not_take_is_handed_on_to_the_next_one() {
        let cluster = Cluster::start(0).await;
        let address = "10.0.0.2:6100".parse().unwrap();
        cluster.write(rows_of(&State::default(), 1, node(2), address, &[])).await;
        assert_eq!(cluster.control(2).leader(), Some(node(1)));
        cluster.kill(1);
        let (asked, wish) = (&cluster.nodes[1], Wish::Node { node: node(2), leaving: true });
        let granted = grant(&asked.groups, &*asked.net, &asked.clock, true, wish).await;
        assert_eq!(granted, Ok(Response::Done));
        cluster.control(2).barrier().await.unwrap();
        assert!(cluster.state(2).members[&node(2)].leaving);
        cluster.stop().await;
    }

    /// When the leader was killed, who had just asked it something stood for five seconds: so did whoever attached a volume after its head's
    /// node was killed, where that led.
    #[test]
    fn a_leader_is_waited_for_until_another_one_leads() {
        let [leader, other] = [1, 2].map(|byte| NodeId([byte; 16]));
        assert!(!is_deposed(false, Some(leader), leader) && !is_deposed(false, None, leader));
        assert!(is_deposed(false, Some(other), leader) && is_deposed(true, None, leader));
    }

    #[test]
    fn what_is_announced_again_changes_nothing() {
        let (node, address) = (NodeId([1; 16]), "10.0.0.1:6100".parse().unwrap());
        let devices = [(DeviceId([2; 16]), 300, 0), (DeviceId([3; 16]), 400, 1)];
        let mut state = State::default();
        let rows = rows_of(&state, 5, node, address, &devices);
        assert_eq!(rows.len(), 3);
        let mut table: std::collections::BTreeMap<_, _> = rows.into_iter().collect();
        state = State::of_rows(&table).unwrap();
        assert!(rows_of(&state, 6, node, address, &devices).is_empty());
        let moved = "10.0.0.9:6100".parse().unwrap();
        let rows = rows_of(&state, 7, node, moved, &devices);
        assert_eq!(rows.len(), 1);
        table.extend(rows);
        state = State::of_rows(&table).unwrap();
        let member = &state.members[&node];
        assert_eq!((member.address, member.since, member.number), (moved, 5, 0));
        let drained = wished_of(&state, &Wish::Node { node, leaving: true });
        assert_eq!(drained.len(), 3);
        let mut leaving = table.clone();
        leaving.extend(drained);
        let leaving = State::of_rows(&leaving).unwrap();
        assert!(leaving.devices.values().all(|device| device.wanted == Wanted::Empty));
        assert!(wished(&leaving, &Wish::Node { node, leaving: true }).is_err());
        assert_eq!(wished_of(&leaving, &Wish::Device { device: DeviceId([2; 16]), wanted: 2 }).len(), 1);
        assert!(wished(&state, &Wish::Device { device: DeviceId([8; 16]), wanted: 2 }).is_err());
        let other = rows_of(&state, 8, NodeId([9; 16]), address, &devices[..1]);
        table.extend(other);
        state = State::of_rows(&table).unwrap();
        assert_eq!(state.members[&NodeId([9; 16])].number, 1);
        assert_eq!(state.devices[&DeviceId([2; 16])].node, NodeId([9; 16]));
    }
}
