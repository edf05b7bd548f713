//! Volumes that go to another node: two nodes' volume APIs over one cabinet of papers, each with a disk of its own.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use quarry_engine::net::{NetError, NodeId, Request, Response, Transport, VolumeAnswer, VolumeCall};
use quarry_engine::object::BoxFuture;

use super::*;
use crate::block::Exports;
use crate::block::listed;
use crate::block::moving::{self, End};
use crate::cinder::drain;
use crate::cinder::migrate::{doer, perform};

/// What nodes of a test have, by node.
type Nodes = Arc<Mutex<HashMap<NodeId, Arc<Exports>>>>;

/// Calls between the nodes of a test.
struct Wire {
    local: NodeId,
    nodes: Nodes,
}

impl Transport for Wire {
    fn local(&self) -> NodeId {
        self.local
    }

    fn call(
        &self,
        to: NodeId,
        request: Request,
        _: Duration,
    ) -> BoxFuture<'static, Result<Response, NetError>> {
        let known = self.nodes.lock().unwrap_or_else(PoisonError::into_inner).get(&to).cloned();
        Box::pin(async move {
            let own = known.unwrap();
            Ok(Response::Volume(match request {
                Request::Volume { volume, call: VolumeCall::Copy { from }, .. } => {
                    moving::tell(own.volumes(), volume, from).await
                }
                Request::Volume { call: VolumeCall::List { from }, .. } => {
                    VolumeAnswer::Listed(listed::page(&own, from))
                }
                _ => panic!("nothing else is asked: {request:?}"),
            }))
        })
    }

    fn cast(&self, _: NodeId, request: Request) {
        panic!("nothing is cast: {request:?}");
    }

    fn name(&self) -> &'static str {
        "test"
    }
}

/// Two nodes; the papers are on the first one's disk.
pub(super) struct Pair {
    disks: [Rig; 2],
    nodes: Nodes,
    pub(super) offices: [Arc<Office>; 2],
}

const NAMES: [&str; 2] = ["one", "two"];

fn host(node: usize) -> String {
    format!("{}@quarry#quarry", NodeId([u8::try_from(node).unwrap() + 1; 16]))
}

impl Pair {
    pub(super) fn start() -> Self {
        let disks = [Rig::start(), Rig::start()];
        let nodes = Nodes::default();
        let offices = [0, 1].map(|node| Self::open(&disks, &nodes, node));
        Self { disks, nodes, offices }
    }

    fn open(disks: &[Rig; 2], nodes: &Nodes, node: usize) -> Arc<Office> {
        let volumes = Volumes::open(vec![disks[node].disk()]).unwrap();
        let volumes = Arc::new(volumes.with_keys(KeyRing::new(vec![[3; 32]])));
        let local = NodeId([u8::try_from(node).unwrap() + 1; 16]);
        let blocks = Blocks::of(volumes);
        nodes.lock().unwrap().insert(local, blocks.exports.clone());
        let net = Some(Arc::new(Wire { local, nodes: nodes.clone() }) as Arc<dyn Transport>);
        let nbd = Some("127.0.0.1:10809".parse().unwrap());
        let backend = config::BackendName(NAMES[node].to_owned());
        let volumes = config::Volumes { backend, ..config::Volumes::default() };
        Cinder::new(disks[0].store(), blocks, net, nbd, &volumes, None).office
    }

    /// The next life of a node.
    fn restart(&mut self, node: usize) {
        self.offices[node] = Self::open(&self.disks, &self.nodes, node);
    }

    pub(super) async fn settle(&self) {
        for _ in 0..4 {
            for office in &self.offices {
                settle(office).await;
            }
        }
    }

    /// A volume of the first node with some bytes.
    async fn volume(&self, said: Value) -> String {
        let (status, body) = ask(&self.offices[0], &me(), 0, "POST volumes", json!({ "volume": said })).await;
        assert_eq!(status, 202, "{body}");
        let id = body["volume"]["id"].as_str().unwrap().to_owned();
        Box::pin(self.settle()).await;
        let (_, shown) = self.show(&id).await;
        assert_eq!(shown["os-vol-host-attr:host"], json!(host(0)));
        write(&self.offices[0], &id, 4096, 7).await;
        write(&self.offices[0], &id, 700 << 20, 8).await;
        id
    }

    async fn show(&self, id: &str) -> (u16, Value) {
        let what = format!("GET volumes/{id}");
        let (status, body) = ask(&self.offices[1], &caller("p", true), 70, &what, Value::Null).await;
        (status, body["volume"].clone())
    }

    async fn act(&self, id: &str, said: Value) -> u16 {
        let what = format!("POST volumes/{id}/action");
        ask(&self.offices[0], &caller("p", true), 70, &what, said).await.0
    }

    async fn migrate(&self, id: &str, to: usize) -> u16 {
        self.act(id, json!({ "os-migrate_volume": { "host": host(to) } })).await
    }

    /// Names of volumes that a node has.
    fn has(&self, node: usize) -> Vec<String> {
        let volumes = self.offices[node].blocks.exports.volumes().list();
        volumes.into_iter().map(|volume| volume.label.name).collect()
    }

    /// It is at this node alone, whole, and free.
    async fn is_at(&self, id: &str, node: usize, status: Value) {
        let (_, shown) = self.show(id).await;
        let state = (&shown["os-vol-host-attr:host"], &shown["status"], &shown["migration_status"]);
        assert_eq!(state, (&json!(host(node)), &json!("available"), &status), "{shown}");
        assert_eq!(self.has(node), [work::device_name(id)]);
        assert!(self.has(1 - node).is_empty(), "{:?}", self.has(1 - node));
        assert_eq!(read(&self.offices[node], id, 4096).await, 7);
        assert_eq!(read(&self.offices[node], id, 700 << 20).await, 8);
        assert_eq!(read(&self.offices[node], id, 64 << 20).await, 0);
    }

    async fn stop(self) {
        for disk in self.disks {
            disk.stop().await;
        }
    }
}

fn me() -> Caller {
    caller("p", false)
}

/// One look for tasks at a node, to their ends.
async fn round(office: &Arc<Office>) {
    let mut running = JoinSet::new();
    work::round(office, &mut running).await.unwrap();
    running.join_all().await;
}

#[tokio::test]
async fn a_volume_goes_to_another_node_and_home_again() {
    let pair = Pair::start();
    let id = pair.volume(json!({ "size": 1 })).await;
    let (office, admin) = (&pair.offices[0], caller("p", true));
    let what = format!("POST volumes/{id}/action");
    let go = |host: &str| json!({ "os-migrate_volume": { "host": host, "lock_volume": true } });
    assert_eq!(ask(office, &me(), 70, &what, go(&host(1))).await.0, 403);
    for bad in [go(&host(0)), go("nowhere@quarry#quarry"), go("")] {
        assert_eq!(ask(office, &admin, 70, &what, bad).await.0, 400);
    }
    for to in [1, 0, 1] {
        assert_eq!(pair.migrate(&id, to).await, 202);
        let (_, shown) = pair.show(&id).await;
        assert_eq!(
            (&shown["status"], &shown["migration_status"]),
            (&json!("maintenance"), &json!("migrating"))
        );
        assert_eq!(pair.migrate(&id, to).await, 400, "it is on its way");
        assert_eq!(ask(office, &admin, 70, &format!("DELETE volumes/{id}"), Value::Null).await.0, 400);
        pair.settle().await;
        pair.is_at(&id, to, json!("success")).await;
    }
    pair.stop().await;
}

#[tokio::test]
async fn a_volume_arrives_whatever_node_is_started_anew_and_whatever_is_done_twice() {
    let mut pair = Pair::start();
    let id = pair.volume(json!({ "size": 1 })).await;
    assert_eq!(pair.migrate(&id, 1).await, 202);
    for _ in 0..5 {
        let paper = pair.offices[0].papers.get("volumes", &id).await.unwrap().unwrap();
        for node in [0, 1] {
            round(&pair.offices[node]).await;
            if paper.get("task").is_some() && doer(&paper) == host(node) {
                // As a node does that was killed before it had written what follows.
                let again = perform(&pair.offices[node], &paper).await;
                assert!(again.is_ok(), "{again:?}");
            }
            pair.restart(node);
        }
    }
    pair.settle().await;
    pair.is_at(&id, 1, json!("success")).await;
    pair.stop().await;
}

#[tokio::test]
async fn nobody_finds_a_volume_that_is_on_its_way_and_one_that_is_reset_is_as_it_was() {
    let pair = Pair::start();
    let id = pair.volume(json!({ "size": 1 })).await;
    let exports = &pair.offices[0].blocks.exports;
    let used = exports.open(&work::device_name(&id)).await.unwrap();
    assert_eq!(pair.migrate(&id, 1).await, 400, "a client has it");
    drop(used);
    assert_eq!(pair.migrate(&id, 1).await, 202);
    round(&pair.offices[0]).await;
    assert_eq!(pair.has(0), [End::Leaving.name_of(&id)]);
    for name in [work::device_name(&id), End::Leaving.name_of(&id), String::new()] {
        assert!(exports.open(&name).await.is_err(), "{name}");
    }
    assert!(exports.list().is_empty());
    // A copy that came to nothing is there, beside it.
    let arriving = quarry_volume::store::Label {
        name: End::Arriving.name_of(&id),
        bytes: 1 << 30,
        ..Default::default()
    };
    let other = pair.offices[1].blocks.exports.volumes();
    other.create(quarry_volume::VolumeId([9; 16]), arriving.clone()).await.unwrap();
    exports.volumes().create(quarry_volume::VolumeId([8; 16]), arriving).await.unwrap();
    let reset = json!({ "os-reset_status": { "status": "available", "migration_status": "none" } });
    assert_eq!(pair.act(&id, reset).await, 202);
    pair.settle().await;
    pair.is_at(&id, 0, Value::Null).await;
    pair.stop().await;
}

#[tokio::test]
async fn what_an_earlier_way_left_keeps_no_volume_from_its_next_one() {
    let pair = Pair::start();
    let id = pair.volume(json!({ "size": 1 })).await;
    let name = End::Leaving.name_of(&id);
    let left = quarry_volume::store::Label { name, bytes: 1 << 30, ..Default::default() };
    let volumes = pair.offices[0].blocks.exports.volumes();
    volumes.create(quarry_volume::VolumeId([8; 16]), left).await.unwrap();
    assert_eq!(pair.migrate(&id, 1).await, 202);
    pair.settle().await;
    pair.is_at(&id, 1, json!("success")).await;
    pair.stop().await;
}

#[tokio::test]
async fn a_volume_that_cannot_go_stays_and_a_message_says_so() {
    let pair = Pair::start();
    let id = pair.volume(json!({ "size": 1 })).await;
    let volumes = pair.offices[0].blocks.exports.volumes();
    let name = work::device_name(&id);
    volumes.snapshot(&name, "by-hand", 1).await.unwrap();
    assert_eq!(pair.migrate(&id, 1).await, 202);
    pair.settle().await;
    pair.is_at(&id, 0, json!("error")).await;
    let (_, body) = ask(&pair.offices[1], &me(), 3, "GET messages", Value::Null).await;
    assert_eq!(body["messages"][0]["resource_uuid"], json!(id));
    volumes.forget_snapshot(&name, "by-hand").await.unwrap();
    // What is deleted by force in the middle leaves nothing.
    assert_eq!(pair.migrate(&id, 1).await, 202);
    round(&pair.offices[0]).await;
    assert_eq!(pair.act(&id, json!({ "os-force_delete": {} })).await, 202);
    pair.settle().await;
    assert_eq!((pair.show(&id).await.0, pair.has(0).len(), pair.has(1).len()), (404, 0, 0));
    pair.stop().await;
}

#[tokio::test]
async fn a_type_of_another_back_end_takes_its_volumes_there_where_that_is_wished() {
    let pair = Pair::start();
    let admin = caller("p", true);
    for (name, specs) in [("two", json!({ "volume_backend_name": "two" })), ("any", json!({}))] {
        let kind = json!({ "volume_type": { "name": name, "extra_specs": specs } });
        assert_eq!(ask(&pair.offices[0], &admin, 0, "POST types", kind).await.0, 200);
    }
    let id = pair.volume(json!({ "size": 1, "volume_type": "any" })).await;
    let retype = |policy: &str| json!({ "os-retype": { "new_type": "two", "migration_policy": policy } });
    for (policy, code) in [("never", 400), ("perhaps", 400), ("on-demand", 202)] {
        assert_eq!(pair.act(&id, retype(policy)).await, code, "{policy}");
    }
    assert_eq!(pair.show(&id).await.1["status"], json!("retyping"));
    pair.settle().await;
    pair.is_at(&id, 1, json!("success")).await;
    assert_eq!(pair.show(&id).await.1["volume_type"], json!("two"));
    let (_, pools) =
        ask(&pair.offices[0], &admin, 0, "GET scheduler-stats/get_pools?detail=true", Value::Null).await;
    let names = pools["pools"].as_array().unwrap().iter();
    let names: Vec<_> = names.map(|pool| pool["capabilities"]["volume_backend_name"].clone()).collect();
    assert_eq!(names, NAMES);
    pair.stop().await;
}

#[tokio::test]
async fn a_volume_that_no_node_fits_ends_in_error_and_one_message_says_so() {
    let pair = Pair::start();
    let admin = caller("p", true);
    let kind = json!({ "volume_type": { "name": "far", "extra_specs": { "volume_backend_name": "three" } } });
    assert_eq!(ask(&pair.offices[0], &admin, 0, "POST types", kind).await.0, 200);
    let said = json!({ "volume": { "size": 1, "volume_type": "far" } });
    let (status, body) = ask(&pair.offices[0], &me(), 0, "POST volumes", said).await;
    assert_eq!(status, 202, "{body}");
    let id = body["volume"]["id"].as_str().unwrap();
    // All nodes find it at the same time, and one comes late.
    let paper = pair.offices[0].papers.get("volumes", id).await.unwrap().unwrap();
    let [one, two] = &pair.offices;
    let (first, second) =
        tokio::join!(work::perform(one, "volumes", &paper), work::perform(two, "volumes", &paper));
    first.and(second).unwrap();
    work::perform(two, "volumes", &paper).await.unwrap();
    let (_, shown) = pair.show(id).await;
    assert_eq!((&shown["status"], &shown["os-vol-host-attr:host"]), (&json!("error"), &Value::Null));
    let (_, body) = ask(&pair.offices[1], &me(), 3, "GET messages", Value::Null).await;
    assert_eq!(body["messages"].as_array().unwrap().len(), 1, "{body}");
    assert_eq!(ask(&pair.offices[1], &me(), 0, &format!("DELETE volumes/{id}"), Value::Null).await.0, 202);
    pair.settle().await;
    assert_eq!(pair.show(id).await.0, 404);
    pair.stop().await;
}

#[tokio::test]
async fn volumes_of_one_node_are_taken_over_and_given_up_at_another() {
    let pair = Pair::start();
    let (there, admin) = (&pair.offices[1], caller("p", true));
    let volumes = pair.offices[0].blocks.exports.volumes();
    // More than one page tells of.
    for nth in 0..300_u64 {
        let name = format!("disk{nth:03}");
        let label = quarry_volume::store::Label { name: name.clone(), bytes: 1 << 30, ..Default::default() };
        let id = [&nth.to_be_bytes()[..], &[7; 8]].concat();
        let id = quarry_volume::VolumeId(id.try_into().unwrap());
        volumes.create(id, label).await.unwrap();
        volumes.snapshot(&name, "monday", 1).await.unwrap();
    }
    let list = |what: &str, host: &str| {
        format!("GET manageable_{what}?limit=1000&host={}", host.replace('#', "%23"))
    };
    let (status, body) = ask(there, &admin, 8, &list("volumes", &host(0)), Value::Null).await;
    assert_eq!((status, body["manageable-volumes"].as_array().unwrap().len()), (200, 300), "{body}");
    let (_, body) = ask(there, &admin, 8, &list("snapshots", &host(0)), Value::Null).await;
    assert_eq!(body["manageable-snapshots"].as_array().unwrap().len(), 300);
    let (_, body) = ask(there, &admin, 8, &list("volumes", &host(1)), Value::Null).await;
    assert_eq!(body, json!({ "manageable-volumes": [] }));
    assert_eq!(ask(there, &admin, 8, &list("volumes", "nowhere"), Value::Null).await.0, 400);
    let take = json!({ "volume": { "host": host(0), "ref": { "source-name": "disk007" } } });
    let (status, body) = ask(there, &admin, 8, "POST manageable_volumes", take).await;
    assert_eq!(status, 202, "{body}");
    let id = body["volume"]["id"].as_str().unwrap().to_owned();
    pair.settle().await;
    assert_eq!(pair.show(&id).await.1["status"], json!("available"));
    assert!(volumes.find(&work::device_name(&id)).is_ok() && volumes.find("disk007").is_err());
    let frozen = json!({ "snapshot": { "volume_id": id, "ref": { "source-name": "monday" } } });
    let (status, body) = ask(there, &admin, 8, "POST manageable_snapshots", frozen).await;
    assert_eq!(status, 202, "{body}");
    let snapshot = body["snapshot"]["id"].as_str().unwrap().to_owned();
    pair.settle().await;
    let (_, body) = ask(there, &admin, 8, &format!("GET snapshots/{snapshot}"), Value::Null).await;
    assert_eq!(body["snapshot"]["status"], json!("available"));
    let give_up = || json!({ "os-unmanage": null });
    let what = format!("POST snapshots/{snapshot}/action");
    assert_eq!(ask(there, &admin, 8, &what, give_up()).await.0, 202);
    assert_eq!(ask(there, &admin, 8, &format!("POST volumes/{id}/action"), give_up()).await.0, 202);
    assert_eq!(volumes.find(&work::device_name(&id)).unwrap().snapshots().len(), 1, "it is as it was");
    pair.stop().await;
}

#[tokio::test]
async fn a_node_that_is_emptied_gives_away_what_nobody_uses_under_the_same_names() {
    let mut pair = Pair::start();
    let id = pair.volume(json!({ "size": 1 })).await;
    let exports = pair.offices[0].blocks.exports.clone();
    let volumes = exports.volumes();
    for (nth, name) in (1..).zip(["by-hand", "used", "frozen", "taken"]) {
        let key = (name == "by-hand").then(|| volumes.wrap(&[4; 64]).unwrap());
        let label = quarry_volume::store::Label {
            name: name.to_owned(),
            bytes: (1 << 20) + 4096,
            description: "an operator's".to_owned(),
            key,
            ..Default::default()
        };
        volumes.create(quarry_volume::VolumeId([nth; 16]), label).await.unwrap();
    }
    let device = volumes.attach("by-hand").await.unwrap();
    device.write_through(1 << 20, vec![9; 4096].into()).await.unwrap();
    volumes.snapshot("frozen", "monday", 1).await.unwrap();
    let taken = quarry_volume::store::Label { name: "taken".to_owned(), bytes: 8192, ..Default::default() };
    let there = pair.offices[1].blocks.exports.clone();
    there.volumes().create(quarry_volume::VolumeId([8; 16]), taken).await.unwrap();
    let used = exports.open("used").await.unwrap();
    for _ in 0..4 {
        drain::empty(&pair.offices[0]).await.unwrap();
        // A node that is killed goes on when it is back.
        round(&pair.offices[0]).await;
        round(&pair.offices[1]).await;
        pair.restart(1);
        pair.settle().await;
    }
    let mut left = pair.has(0);
    left.sort();
    assert_eq!(left, ["frozen", "taken", "used"]);
    let at = pair.offices[1].blocks.exports.volumes();
    let moved = at.find("by-hand").unwrap();
    let label = (moved.label.bytes, moved.label.description.as_str(), moved.label.key.is_some());
    assert_eq!(label, ((1 << 20) + 4096, "an operator's", true));
    let read = at.attach("by-hand").await.unwrap().read_whole(1 << 20, 4096).await.unwrap();
    assert!(read.iter().all(|byte| *byte == 9));
    assert_eq!(at.find("taken").unwrap().label.bytes, 8192, "the other volume of that name is as it was");
    assert_eq!(read_at(&pair, 1, &id).await, 7);
    assert_eq!(pair.show(&id).await.1["os-vol-host-attr:host"], json!(host(1)));
    drop(used);
    drain::empty(&pair.offices[0]).await.unwrap();
    pair.settle().await;
    assert!(pair.offices[1].blocks.exports.volumes().find("used").is_ok());
    pair.stop().await;
}

async fn read_at(pair: &Pair, node: usize, id: &str) -> u8 {
    read(&pair.offices[node], id, 4096).await
}
