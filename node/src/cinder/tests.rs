//! The volume API over a real store and real volumes on a file, asked without sockets.

mod attachments;
mod backups;
mod encryption;
mod groups;
mod images;
mod kept;
mod manage;
mod migrate;
mod qos;
mod quotas;
mod sources;
mod tasks;
mod transfers;
mod types;

use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use quarry_volume::KeyRing;
use quarry_volume::store::Volumes;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::ask::{Ask, Caller, NEWEST, query};
use super::{Cinder, Office, route, work};
use crate::block::Blocks;
use crate::config;
use crate::papers::{Paper, PaperError};
use crate::swift::testing::Rig;

fn caller(project: &str, admin: bool) -> Caller {
    Caller { user: format!("u-{project}"), project: project.to_owned(), admin, writes: true }
}

/// Who logged what is asked and answered would have told tokens, and the keys of transfers.
#[tokio::test]
async fn what_is_asked_and_answered_tells_no_secret() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let office = office(&rig);
    let id = make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    let mut ask = asked(&me, 0, "POST os-volume-transfer", json!({ "transfer": { "volume_id": id } }));
    ask.token = "a-token-of-mine".to_owned().into();
    let answer = route::answer(&office, &ask).await.unwrap();
    let body = answer.body.0.clone().unwrap();
    let key = body["transfer"]["auth_key"].as_str().unwrap();
    assert!(!key.is_empty() && !format!("{answer:?}").contains(key));
    let accept = asked(&me, 0, "POST os-volume-transfer/x/accept", json!({ "accept": { "auth_key": key } }));
    for shown in [format!("{ask:?}"), format!("{accept:?}")] {
        assert!(!shown.contains("a-token-of-mine") && !shown.contains(key), "{shown}");
    }
    office
        .papers
        .add("messages", "m", Paper::from_iter([("token".to_owned(), json!("kept-token"))]))
        .await
        .unwrap();
    let shown = format!("{office:?}");
    assert!(shown.contains("etag") && !shown.contains("kept-token"), "{shown}");
}

/// A node's volume API; another one over the same disk is the next life of that node.
fn office(rig: &Rig) -> Arc<Office> {
    let volumes = Arc::new(Volumes::open(vec![rig.disk()]).unwrap().with_keys(KeyRing::new(vec![[3; 32]])));
    let blocks = Blocks::of(volumes);
    let nbd = Some("127.0.0.1:10809".parse().unwrap());
    Cinder::new(rig.store(), blocks, None, nbd, &config::Volumes::default(), None).office
}

async fn ask(office: &Arc<Office>, by: &Caller, minor: u16, what: &str, body: Value) -> (u16, Value) {
    let ask = asked(by, minor, what, body);
    match Box::pin(route::answer(office, &ask)).await {
        Ok(answer) => (answer.status, answer.body.0.unwrap_or(Value::Null)),
        Err(fault) => (fault.status, fault.body()),
    }
}

fn asked(by: &Caller, minor: u16, what: &str, body: Value) -> Ask {
    let (method, uri) = what.split_once(' ').unwrap();
    let (path, text) = uri.split_once('?').unwrap_or((uri, ""));
    Ask {
        method: Method::from_bytes(method.as_bytes()).unwrap(),
        query: query(text),
        minor,
        caller: by.clone(),
        base: "http://n:8776/v3".to_owned(),
        path: format!("/v3/{path}"),
        body: body.into(),
        id: "req-1".to_owned(),
        token: "t".to_owned().into(),
        images: None,
        image_authority: None,
    }
}

/// Does all tasks that are due.
async fn settle(office: &Arc<Office>) {
    for _ in 0..200 {
        let mut running = JoinSet::new();
        Box::pin(work::round(office, &mut running)).await.unwrap();
        if running.is_empty() {
            return;
        }
        running.join_all().await;
    }
    panic!("tasks do not end");
}

async fn make(office: &Arc<Office>, by: &Caller, said: Value) -> String {
    let (status, body) = ask(office, by, 0, "POST volumes", json!({ "volume": said })).await;
    assert_eq!((status, &body["volume"]["status"]), (202, &json!("creating")), "{body}");
    body["volume"]["id"].as_str().unwrap().to_owned()
}

async fn status(office: &Arc<Office>, by: &Caller, path: &str) -> String {
    let (status, body) = ask(office, by, 0, &format!("GET {path}"), Value::Null).await;
    let one = body.as_object().unwrap().values().next().unwrap().clone();
    if status == 200 { one["status"].as_str().unwrap().to_owned() } else { status.to_string() }
}

async fn write(office: &Office, id: &str, at: u64, byte: u8) {
    let device = office.blocks.exports.volumes().attach(&work::device_name(id)).await.unwrap();
    device.write(at, Bytes::from(vec![byte; 8192])).await.unwrap();
    device.flush().await.unwrap();
}

async fn read(office: &Office, id: &str, at: u64) -> u8 {
    let device = office.blocks.exports.volumes().attach(&work::device_name(id)).await.unwrap();
    let found = device.read_whole(at, 8192).await.unwrap();
    assert!(found.iter().all(|byte| *byte == found[0]));
    found[0]
}

#[tokio::test]
async fn a_volume_is_made_used_frozen_copied_and_deleted() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let office = office(&rig);
    let id = make(&office, &me, json!({ "size": 1, "name": "first", "metadata": { "a": "b" } })).await;
    settle(&office).await;
    assert_eq!(status(&office, &me, &format!("volumes/{id}")).await, "available");
    write(&office, &id, 4096, 7).await;
    let snapshot = json!({ "snapshot": { "volume_id": id, "name": "s" } });
    let (code, body) = ask(&office, &me, 0, "POST snapshots", snapshot).await;
    assert_eq!(code, 202, "{body}");
    let snapshot = body["snapshot"]["id"].as_str().unwrap().to_owned();
    settle(&office).await;
    write(&office, &id, 4096, 8).await;
    let from_snapshot = make(&office, &me, json!({ "snapshot_id": snapshot, "size": 2 })).await;
    let from_volume = make(&office, &me, json!({ "source_volid": id })).await;
    settle(&office).await;
    assert_eq!((read(&office, &from_snapshot, 4096).await, read(&office, &from_volume, 4096).await), (7, 8));
    let extend = json!({ "os-extend": { "new_size": 3 } });
    assert_eq!(ask(&office, &me, 0, &format!("POST volumes/{id}/action"), extend).await.0, 202);
    settle(&office).await;
    let (_, shown) = ask(&office, &me, 0, &format!("GET volumes/{id}"), Value::Null).await;
    assert_eq!((&shown["volume"]["size"], &shown["volume"]["status"]), (&json!(3), &json!("available")));
    assert_eq!(
        ask(&office, &me, 0, &format!("DELETE volumes/{id}"), Value::Null).await.0,
        400,
        "it has a snapshot"
    );
    assert_eq!(ask(&office, &me, 0, &format!("DELETE volumes/{id}?cascade=True"), Value::Null).await.0, 202);
    settle(&office).await;
    assert_eq!(ask(&office, &me, 0, &format!("GET volumes/{id}"), Value::Null).await.0, 404);
    assert_eq!(ask(&office, &me, 0, &format!("GET snapshots/{snapshot}"), Value::Null).await.0, 404);
    assert_eq!(read(&office, &from_snapshot, 4096).await, 7);
    rig.stop().await;
}

/// `creating` for ever is what a killed Cinder leaves behind.
#[tokio::test]
async fn what_a_killed_node_had_under_way_comes_to_its_end_at_the_next_start() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let first = office(&rig);
    let (id, other) =
        (make(&first, &me, json!({ "size": 1 })).await, make(&first, &me, json!({ "size": 1 })).await);
    assert_eq!(status(&first, &me, &format!("volumes/{id}")).await, "creating");
    let second = office(&rig);
    settle(&second).await;
    assert_eq!(status(&second, &me, &format!("volumes/{id}")).await, "available");
    let snapshot = json!({ "snapshot": { "volume_id": id } });
    let (_, body) = ask(&second, &me, 0, "POST snapshots", snapshot).await;
    let snapshot = format!("snapshots/{}", body["snapshot"]["id"].as_str().unwrap());
    let extend = json!({ "os-extend": { "new_size": 2 } });
    assert_eq!(ask(&second, &me, 0, &format!("POST volumes/{other}/action"), extend).await.0, 202);
    let third = office(&rig);
    settle(&third).await;
    assert_eq!(status(&third, &me, &snapshot).await, "available");
    assert_eq!(status(&third, &me, &format!("volumes/{other}")).await, "available");
    assert_eq!(ask(&third, &me, 0, &format!("DELETE {snapshot}"), Value::Null).await.0, 202);
    assert_eq!(ask(&third, &me, 0, &format!("DELETE volumes/{other}"), Value::Null).await.0, 202);
    let fourth = office(&rig);
    settle(&fourth).await;
    assert_eq!(
        (status(&fourth, &me, &snapshot).await, status(&fourth, &me, &format!("volumes/{other}")).await),
        ("404".into(), "404".into())
    );
    assert!(
        fourth
            .blocks
            .exports
            .volumes()
            .list()
            .iter()
            .all(|volume| volume.label.name == work::device_name(&id))
    );
    rig.stop().await;
}

#[tokio::test]
async fn a_task_that_was_replaced_changes_nothing_when_it_ends() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let office = office(&rig);
    let id = make(&office, &me, json!({ "size": 1 })).await;
    let creating = office.papers.get("volumes", &id).await.unwrap().unwrap();
    let delete = json!({ "os-force_delete": {} });
    assert_eq!(
        ask(&office, &caller("x", true), 0, &format!("POST volumes/{id}/action"), delete).await.0,
        202
    );
    work::perform(&office, "volumes", &creating).await.unwrap();
    assert_eq!(status(&office, &me, &format!("volumes/{id}")).await, "deleting");
    settle(&office).await;
    assert!(office.blocks.exports.volumes().list().is_empty());
    rig.stop().await;
}

#[tokio::test]
async fn a_task_that_a_round_found_and_another_one_did_is_not_done_again() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let office = office(&rig);
    let id = make(&office, &me, json!({ "size": 1 })).await;
    let found = office.papers.get("volumes", &id).await.unwrap().unwrap();
    settle(&office).await;
    assert_eq!(ask(&office, &me, 0, &format!("DELETE volumes/{id}"), Value::Null).await.0, 202);
    settle(&office).await;
    work::perform_found(&office, "volumes", &found).await.unwrap();
    assert!(office.blocks.exports.volumes().list().is_empty(), "a volume that nobody knows of");
    rig.stop().await;
}

#[tokio::test]
async fn others_see_nothing_and_admins_all() {
    let (rig, me, other, admin) = (Rig::start(), caller("p", false), caller("q", false), caller("r", true));
    let office = office(&rig);
    let id = make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    for what in ["GET", "DELETE", "PUT"] {
        assert_eq!(
            ask(&office, &other, 0, &format!("{what} volumes/{id}"), json!({ "volume": { "name": "x" } }))
                .await
                .0,
            404
        );
    }
    let count = async |by: &Caller, uri: &str| {
        ask(&office, by, 0, uri, Value::Null).await.1["volumes"].as_array().unwrap().len()
    };
    assert_eq!(count(&other, "GET volumes/detail?all_tenants=1").await, 0);
    assert_eq!(
        (count(&admin, "GET volumes").await, count(&admin, "GET volumes?all_tenants=1").await),
        (0, 1)
    );
    let (_, mine) = ask(&office, &me, 0, &format!("GET volumes/{id}"), Value::Null).await;
    assert!(mine["volume"].get("os-vol-host-attr:host").is_none());
    let reader = Caller { writes: false, ..me };
    assert_eq!(ask(&office, &reader, 0, "POST volumes", json!({ "volume": { "size": 1 } })).await.0, 403);
    for (action, status) in [("os-show_image_metadata", 200), ("os-set_bootable", 403)] {
        let body = json!({ action: {} });
        assert_eq!(
            ask(&office, &reader, 0, &format!("POST volumes/{id}/action"), body).await.0,
            status,
            "{action}"
        );
    }
    for what in ["GET os-services", "GET scheduler-stats/get_pools", "GET qos-specs", "PUT os-quota-sets/q"] {
        assert_eq!(ask(&office, &other, 0, what, Value::Null).await.0, 403, "{what}");
    }
    assert_eq!(
        ask(&office, &other, 0, &format!("GET p/volumes/{id}"), Value::Null).await.0,
        400,
        "another's path"
    );
    rig.stop().await;
}

#[tokio::test]
async fn quotas_are_held() {
    let (rig, me, admin) = (Rig::start(), caller("p", false), caller("r", true));
    let office = office(&rig);
    let set = json!({ "quota_set": { "volumes": 1, "gigabytes": 2 } });
    assert_eq!(ask(&office, &admin, 0, "PUT os-quota-sets/p", set).await.0, 200);
    let id = make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    assert_eq!(ask(&office, &me, 0, "POST volumes", json!({ "volume": { "size": 1 } })).await.0, 413);
    let extend = |size: i64| json!({ "os-extend": { "new_size": size } });
    assert_eq!(ask(&office, &me, 0, &format!("POST volumes/{id}/action"), extend(3)).await.0, 413);
    assert_eq!(ask(&office, &me, 0, &format!("POST volumes/{id}/action"), extend(2)).await.0, 202);
    let (_, used) = ask(&office, &admin, 0, "GET os-quota-sets/p?usage=true", Value::Null).await;
    assert_eq!(used["quota_set"]["volumes"], json!({ "limit": 1, "in_use": 1, "reserved": 0 }));
    let bad = json!({ "quota_set": { "nonsense": 1 } });
    assert_eq!(ask(&office, &admin, 0, "PUT os-quota-sets/p", bad).await.0, 400);
    rig.stop().await;
}

#[tokio::test]
async fn no_key_is_newer_than_the_microversion() {
    let (rig, admin) = (Rig::start(), caller("p", true));
    let office = office(&rig);
    let id = make(&office, &admin, json!({ "size": 1 })).await;
    settle(&office).await;
    for (key, since) in [
        ("group_id", 13),
        ("provider_id", 21),
        ("shared_targets", 48),
        ("service_uuid", 48),
        ("cluster_name", 61),
        ("volume_type_id", 63),
        ("consumes_quota", 65),
    ] {
        let shown =
            async |minor| ask(&office, &admin, minor, &format!("GET volumes/{id}"), Value::Null).await.1;
        assert!(shown(since - 1).await["volume"].get(key).is_none(), "{key} before 3.{since}");
        assert!(shown(since).await["volume"].get(key).is_some(), "{key} since 3.{since}");
    }
    for (path, since) in
        [("attachments", 27), ("groups", 13), ("group_types", 11), ("group_snapshots", 14), ("messages", 3)]
    {
        assert_eq!(
            ask(&office, &admin, since - 1, &format!("GET {path}"), Value::Null).await.0,
            404,
            "{path}"
        );
        assert_eq!(ask(&office, &admin, since, &format!("GET {path}"), Value::Null).await.0, 200, "{path}");
    }
    let strict = json!({ "volume": { "size": 1, "nonsense": 1 } });
    assert_eq!(ask(&office, &admin, 53, "POST volumes", strict).await.0, 400);
    assert_eq!(ask(&office, &admin, NEWEST, "GET volumes/summary", Value::Null).await.0, 200);
    rig.stop().await;
}

#[tokio::test]
async fn attachments_make_a_volume_used_and_name_its_nbd_uri() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let office = office(&rig);
    let id = make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    let path = format!("volumes/{id}");
    let act = async |body: Value| ask(&office, &me, 0, &format!("POST {path}/action"), body).await;
    let (_, info) = act(json!({ "os-initialize_connection": { "connector": {} } })).await;
    assert_eq!(info["connection_info"]["data"]["uri"], format!("nbd://127.0.0.1:10809/volume-{id}"));
    assert_eq!(act(json!({ "os-reserve": {} })).await.0, 202);
    assert_eq!(act(json!({ "os-reserve": {} })).await.0, 400, "it is reserved");
    assert_eq!(act(json!({ "os-attach": { "host_name": "h", "mountpoint": "/dev/vdb" } })).await.0, 202);
    assert_eq!(status(&office, &me, &path).await, "in-use");
    assert_eq!(ask(&office, &me, 0, &format!("DELETE {path}"), Value::Null).await.0, 400);
    assert_eq!(act(json!({ "os-begin_detaching": {} })).await.0, 202);
    assert_eq!(act(json!({ "os-detach": {} })).await.0, 202);
    assert_eq!(status(&office, &me, &path).await, "available");
    let new = json!({ "attachment": { "volume_uuid": id, "connector": { "host": "h" } } });
    let (code, made) = ask(&office, &me, 44, "POST attachments", new).await;
    assert_eq!(
        (code, &made["attachment"]["connection_info"]["driver_volume_type"]),
        (200, &json!("nbd")),
        "{made}"
    );
    let attachment = made["attachment"]["id"].as_str().unwrap();
    assert_eq!(made["attachment"]["connection_info"]["access_mode"], "rw");
    let complete = json!({ "os-complete": {} });
    assert_eq!(
        ask(&office, &me, 44, &format!("POST attachments/{attachment}/action"), complete).await.0,
        204
    );
    assert_eq!(status(&office, &me, &path).await, "in-use");
    assert_eq!(ask(&office, &me, 44, &format!("DELETE attachments/{attachment}"), Value::Null).await.0, 200);
    assert_eq!(status(&office, &me, &path).await, "available");
    rig.stop().await;
}

#[tokio::test]
async fn an_attachment_of_mode_ro_names_an_export_that_refuses_writes() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let office = office(&rig);
    let id = make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    let new = json!({ "volume_uuid": id, "connector": { "host": "h" }, "mode": "ro" });
    let (code, made) = ask(&office, &me, 54, "POST attachments", json!({ "attachment": new })).await;
    let made = &made["attachment"];
    assert_eq!((code, &made["attach_mode"]), (200, &json!("ro")), "{made}");
    let info = &made["connection_info"];
    assert_eq!(info["access_mode"], "ro");
    assert_eq!(info["export"], format!("volume-{id}/ro"));
    assert_eq!(info["uri"], format!("nbd://127.0.0.1:10809/volume-{id}/ro"));
    let path = format!("attachments/{}", made["id"].as_str().unwrap());
    let connector = json!({ "attachment": { "connector": { "host": "other" } } });
    let (_, again) = ask(&office, &me, 54, &format!("PUT {path}"), connector).await;
    assert_eq!(again["attachment"]["connection_info"]["export"], format!("volume-{id}/ro"), "{again}");
    assert_eq!(ask(&office, &me, 54, &format!("DELETE {path}"), Value::Null).await.0, 200);
    let volume = format!("POST volumes/{id}/action");
    let attach = json!({ "os-attach": { "host_name": "h", "mountpoint": "/dev/vdb", "mode": "ro" } });
    assert_eq!(ask(&office, &me, 0, &volume, json!({ "os-reserve": {} })).await.0, 202);
    assert_eq!(ask(&office, &me, 0, &volume, attach).await.0, 202);
    let (_, all) = ask(&office, &me, 54, "GET attachments/detail", Value::Null).await;
    assert_eq!(all["attachments"][0]["connection_info"]["access_mode"], "ro", "{all}");
    rig.stop().await;
}

#[tokio::test]
async fn backups_come_back_full_and_incremental() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let office = office(&rig);
    let id = make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    write(&office, &id, 0, 1).await;
    write(&office, &id, 512 << 20, 2).await;
    let back_up = async |said: Value| {
        let (code, body) = ask(&office, &me, 0, "POST backups", json!({ "backup": said })).await;
        assert_eq!(code, 202, "{body}");
        settle(&office).await;
        body["backup"]["id"].as_str().unwrap().to_owned()
    };
    let full = back_up(json!({ "volume_id": id })).await;
    write(&office, &id, 0, 3).await;
    let next = back_up(json!({ "volume_id": id, "incremental": true })).await;
    assert_eq!(status(&office, &me, &format!("volumes/{id}")).await, "available");
    let objects = async |id: &str| {
        ask(&office, &me, 0, &format!("GET backups/{id}"), Value::Null).await.1["backup"]["object_count"]
            .clone()
    };
    assert_eq!(
        (objects(&full).await, objects(&next).await),
        (json!(3), json!(2)),
        "only what changed is written"
    );
    for (backup, first) in [(&full, 1), (&next, 3)] {
        let (code, body) =
            ask(&office, &me, 0, &format!("POST backups/{backup}/restore"), json!({ "restore": {} })).await;
        assert_eq!(code, 202, "{body}");
        settle(&office).await;
        let restored = body["restore"]["volume_id"].as_str().unwrap();
        assert_eq!(
            (
                read(&office, restored, 0).await,
                read(&office, restored, 512 << 20).await,
                read(&office, restored, 1 << 20).await
            ),
            (first, 2, 0)
        );
    }
    assert_eq!(
        ask(&office, &me, 0, &format!("DELETE backups/{full}"), Value::Null).await.0,
        400,
        "another builds on it"
    );
    for backup in [&next, &full] {
        assert_eq!(ask(&office, &me, 0, &format!("DELETE backups/{backup}"), Value::Null).await.0, 202);
        settle(&office).await;
    }
    let left = rig.store().container("AUTH_p", "volumebackups").await.unwrap().unwrap();
    assert_eq!(left.objects, 0);
    rig.stop().await;
}

#[tokio::test]
async fn a_type_that_no_node_fits_ends_in_error_with_a_message() {
    let (rig, admin) = (Rig::start(), caller("p", true));
    let office = office(&rig);
    let kind = json!({ "volume_type": { "name": "odd", "extra_specs": { "vendor_name": "nobody" } } });
    assert_eq!(ask(&office, &admin, 0, "POST types", kind).await.0, 200);
    let id = make(&office, &admin, json!({ "size": 1, "volume_type": "odd" })).await;
    settle(&office).await;
    assert_eq!(status(&office, &admin, &format!("volumes/{id}")).await, "error");
    let (_, found) = ask(&office, &admin, 3, "GET messages", Value::Null).await;
    assert_eq!(
        (&found["messages"][0]["resource_uuid"], &found["messages"][0]["event_id"]),
        (&json!(id), &json!("VOLUME_VOLUME_001_003"))
    );
    rig.stop().await;
}

#[tokio::test]
async fn a_transfer_gives_a_volume_away_to_whoever_has_the_key() -> Result<(), PaperError> {
    let (rig, me, other) = (Rig::start(), caller("p", false), caller("q", false));
    let office = office(&rig);
    let id = make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    let wanted = json!({ "transfer": { "volume_id": id } });
    let (_, made) = ask(&office, &me, 0, "POST os-volume-transfer", wanted).await;
    let (transfer, key) =
        (made["transfer"]["id"].as_str().unwrap(), made["transfer"]["auth_key"].as_str().unwrap());
    let kept = office.papers.get("transfers", transfer).await?.unwrap();
    assert!(!Value::Object((*kept).clone()).to_string().contains(key), "the key is not kept");
    let path = format!("POST os-volume-transfer/{transfer}/accept");
    assert_eq!(ask(&office, &other, 0, &path, json!({ "accept": { "auth_key": "x" } })).await.0, 400);
    assert_eq!(ask(&office, &other, 0, &path, json!({ "accept": { "auth_key": key } })).await.0, 202);
    assert_eq!(status(&office, &other, &format!("volumes/{id}")).await, "available");
    assert_eq!(ask(&office, &me, 0, &format!("GET volumes/{id}"), Value::Null).await.0, 404);
    rig.stop().await;
    Ok(())
}
