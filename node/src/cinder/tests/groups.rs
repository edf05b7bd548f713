//! Groups and group snapshots: whose volumes they reach, and what becomes of them when not all of it can be.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Caller, Office, Paper, PaperError, Rig, ask, caller, office, read, settle, status, write};

/// A group that takes volumes of these types.
pub(super) async fn group(office: &Arc<Office>, by: &Caller, kinds: &[&str]) -> String {
    let kind = json!({ "group_type": { "name": "g" } });
    let (code, body) = ask(office, &caller("admin", true), 11, "POST group_types", kind).await;
    assert!([202, 409].contains(&code), "{body}");
    let said = json!({ "group": { "group_type": "g", "volume_types": kinds } });
    let (code, body) = ask(office, by, 13, "POST groups", said).await;
    assert_eq!(code, 202, "{body}");
    body["group"]["id"].as_str().unwrap().to_owned()
}

/// A volume of a group, `available`.
pub(super) async fn member(office: &Arc<Office>, by: &Caller, group: &str, kind: &str) -> String {
    let said = json!({ "volume": { "size": 1, "group_id": group, "volume_type": kind } });
    let (code, body) = ask(office, by, 13, "POST volumes", said).await;
    assert_eq!(code, 202, "{body}");
    settle(office).await;
    body["volume"]["id"].as_str().unwrap().to_owned()
}

/// A group made of another one, or of a group snapshot: its volumes.
pub(super) async fn copied(office: &Arc<Office>, by: &Caller, from: Value) -> Vec<String> {
    let (code, body) = ask(office, by, 14, "POST groups/action", json!({ "create-from-src": from })).await;
    assert_eq!(code, 202, "{body}");
    settle(office).await;
    let what = format!("GET groups/{}?list_volume=True", body["group"]["id"].as_str().unwrap());
    let (_, body) = ask(office, by, 25, &what, Value::Null).await;
    assert_eq!(body["group"]["status"], "available", "{body}");
    let volumes = body["group"]["volumes"].as_array().unwrap();
    volumes.iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

async fn delete(office: &Arc<Office>, by: &Caller, group: &str) -> u16 {
    let said = json!({ "delete": { "delete-volumes": true } });
    ask(office, by, 13, &format!("POST groups/{group}/action"), said).await.0
}

async fn act(office: &Arc<Office>, by: &Caller, volume: &str, said: Value) -> u16 {
    ask(office, by, 70, &format!("POST volumes/{volume}/action"), said).await.0
}

async fn freeze(office: &Arc<Office>, by: &Caller, volume: &str) -> String {
    let said = json!({ "snapshot": { "volume_id": volume, "force": true } });
    let (code, body) = ask(office, by, 0, "POST snapshots", said).await;
    assert_eq!(code, 202, "{body}");
    settle(office).await;
    body["snapshot"]["id"].as_str().unwrap().to_owned()
}

async fn many(office: &Arc<Office>, by: &Caller, what: &str) -> usize {
    let (_, body) = ask(office, by, 70, &format!("GET {what}"), Value::Null).await;
    body[what].as_array().unwrap().len()
}

/// A volume kept its group when it was given away: who had the group made a copy of it with its new owner's bytes, and deleted it.
#[tokio::test]
async fn who_gave_a_volume_away_reaches_it_through_no_group() {
    let (rig, me, other) = (Rig::start(), caller("p", false), caller("q", false));
    let office = office(&rig);
    let group = group(&office, &me, &["__DEFAULT__"]).await;
    let id = member(&office, &me, &group, "__DEFAULT__").await;
    let give = || json!({ "transfer": { "volume_id": id } });
    assert_eq!(ask(&office, &me, 70, "POST volume-transfers", give()).await.0, 400, "it is in a group");
    let set = async |key: &'static str, to: Value| {
        let edit = |volume: &mut Paper| -> Result<(), PaperError> {
            volume.insert(key.to_owned(), to.clone());
            Ok(())
        };
        office.papers.change("volumes", &id, edit).await.unwrap();
    };
    // Into the group while it waits.
    set("group_id", Value::Null).await;
    let (_, made) = ask(&office, &me, 70, "POST volume-transfers", give()).await;
    let made = &made["transfer"];
    set("group_id", json!(group)).await;
    let accept = format!("POST volume-transfers/{}/accept", made["id"].as_str().unwrap());
    let key = json!({ "accept": { "auth_key": made["auth_key"] } });
    assert_eq!(ask(&office, &other, 70, &accept, key).await.0, 400);
    // As an earlier version left it.
    set("project_id", json!("q")).await;
    set("status", json!("available")).await;
    let copy = json!({ "create-from-src": { "source_group_id": group } });
    assert_eq!(ask(&office, &me, 14, "POST groups/action", copy).await.0, 400, "it has no volume");
    assert_eq!(delete(&office, &me, &group).await, 202);
    settle(&office).await;
    let path = format!("volumes/{id}");
    assert_eq!(status(&office, &other, &path).await, "available");
    assert_eq!(
        ask(&office, &other, 0, &format!("DELETE {path}"), Value::Null).await.0,
        202,
        "nothing holds it"
    );
    rig.stop().await;
}

/// A snapshot of a group snapshot went with a volume that had left the group: the group snapshot was another project's in part.
#[tokio::test]
async fn a_volume_with_a_snapshot_of_a_group_snapshot_is_not_given_away() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let office = office(&rig);
    let group = group(&office, &me, &["__DEFAULT__"]).await;
    let id = member(&office, &me, &group, "__DEFAULT__").await;
    let frozen = json!({ "group_snapshot": { "group_id": group } });
    let (_, frozen) = ask(&office, &me, 14, "POST group_snapshots", frozen).await;
    settle(&office).await;
    let leave = json!({ "group": { "remove_volumes": id } });
    assert_eq!(ask(&office, &me, 13, &format!("PUT groups/{group}"), leave).await.0, 202);
    let give = || json!({ "transfer": { "volume_id": id } });
    assert_eq!(ask(&office, &me, 70, "POST volume-transfers", give()).await.0, 400);
    let what = format!("DELETE volumes/{id}?cascade=true");
    assert_eq!(
        ask(&office, &me, 70, &what, Value::Null).await.0,
        400,
        "the snapshot is the group snapshot's"
    );
    let what = format!("DELETE group_snapshots/{}", frozen["group_snapshot"]["id"].as_str().unwrap());
    assert_eq!(ask(&office, &me, 14, &what, Value::Null).await.0, 202);
    settle(&office).await;
    assert_eq!(ask(&office, &me, 70, "POST volume-transfers", give()).await.0, 202);
    rig.stop().await;
}

/// With its volumes a group took their snapshots away; and when the second volume could not go, the first one had gone already.
#[tokio::test]
async fn a_group_goes_with_all_of_its_volumes_or_not_at_all() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let office = office(&rig);
    let group = group(&office, &me, &["__DEFAULT__"]).await;
    let mut volumes = Vec::new();
    for _ in 0..2 {
        volumes.push(member(&office, &me, &group, "__DEFAULT__").await);
    }
    // Volumes are looked at in the order of their ids.
    volumes.sort();
    let last = &volumes[1];
    let attach = json!({ "os-attach": { "host_name": "h", "mountpoint": "/dev/vdb" } });
    assert_eq!(act(&office, &me, last, attach).await, 202);
    let first = format!("volumes/{}", volumes[0]);
    assert_eq!(delete(&office, &me, &group).await, 400);
    assert_eq!(status(&office, &me, &first).await, "available");
    assert_eq!(act(&office, &me, last, json!({ "os-detach": {} })).await, 202);
    let frozen = freeze(&office, &me, last).await;
    assert_eq!(delete(&office, &me, &group).await, 400);
    settle(&office).await;
    assert_eq!(status(&office, &me, &first).await, "available");
    assert_eq!(status(&office, &me, &format!("snapshots/{frozen}")).await, "available");
    for cascade in ["false", "true"] {
        let what = format!("DELETE {first}?cascade={cascade}");
        assert_eq!(ask(&office, &me, 0, &what, Value::Null).await.0, 400, "the group holds it");
    }
    assert_eq!(ask(&office, &me, 0, &format!("DELETE snapshots/{frozen}"), Value::Null).await.0, 202);
    // It is gone in a moment.
    assert_eq!(delete(&office, &me, &group).await, 202);
    settle(&office).await;
    for id in &volumes {
        assert_eq!(status(&office, &me, &format!("volumes/{id}")).await, "404");
    }
    assert_eq!((many(&office, &me, "groups").await, many(&office, &me, "snapshots").await), (0, 0));
    rig.stop().await;
}

/// A snapshot that was accepted after it was found that there are none went with the volume.
#[tokio::test]
async fn a_volume_that_goes_alone_takes_no_snapshot_with_it() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let office = office(&rig);
    let id = super::make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    write(&office, &id, 0, 1).await;
    let frozen = format!("snapshots/{}", freeze(&office, &me, &id).await);
    let begun = |volume: &mut Paper| -> Result<(), PaperError> {
        volume.insert("status".to_owned(), json!("deleting"));
        volume.insert("task".to_owned(), json!({ "do": "delete", "cascade": false }));
        Ok(())
    };
    office.papers.change("volumes", &id, begun).await.unwrap();
    settle(&office).await;
    assert_eq!(status(&office, &me, &format!("volumes/{id}")).await, "error_deleting");
    assert_eq!((status(&office, &me, &frozen).await.as_str(), read(&office, &id, 0).await), ("available", 1));
    assert_eq!(ask(&office, &me, 0, &format!("DELETE {frozen}"), Value::Null).await.0, 202);
    settle(&office).await;
    assert_eq!(ask(&office, &me, 0, &format!("DELETE volumes/{id}"), Value::Null).await.0, 202);
    settle(&office).await;
    assert_eq!(status(&office, &me, &format!("volumes/{id}")).await, "404");
    rig.stop().await;
}

/// At the quota's end a group snapshot stayed `available` with some of its snapshots, and a group with some of its volumes. And a single
/// snapshot of one could be deleted.
#[tokio::test]
async fn a_group_snapshot_and_a_group_of_it_are_whole_or_not_there() {
    let (rig, me, admin) = (Rig::start(), caller("p", false), caller("p", true));
    let office = office(&rig);
    let group = group(&office, &me, &["__DEFAULT__"]).await;
    for _ in 0..3 {
        member(&office, &me, &group, "__DEFAULT__").await;
    }
    let quota = async |name: &str, limit: i64| {
        let set = json!({ "quota_set": { name: limit } });
        assert_eq!(ask(&office, &admin, 0, "PUT os-quota-sets/p", set).await.0, 200);
    };
    let frozen = || json!({ "group_snapshot": { "group_id": group } });
    quota("snapshots", 2).await;
    assert_eq!(ask(&office, &me, 14, "POST group_snapshots", frozen()).await.0, 413);
    settle(&office).await;
    let there = async || (many(&office, &me, "group_snapshots").await, many(&office, &me, "snapshots").await);
    assert_eq!(there().await, (0, 0));
    quota("snapshots", 3).await;
    let (code, body) = ask(&office, &me, 14, "POST group_snapshots", frozen()).await;
    assert_eq!(code, 202, "{body}");
    let frozen = body["group_snapshot"]["id"].as_str().unwrap();
    let state = async || {
        let (_, one) = ask(&office, &me, 14, &format!("GET group_snapshots/{frozen}"), Value::Null).await;
        one["group_snapshot"]["status"].as_str().unwrap().to_owned()
    };
    // Its snapshots are begun, and not there.
    assert_eq!(state().await, "creating");
    let early = json!({ "create-from-src": { "group_snapshot_id": frozen } });
    assert_eq!(ask(&office, &me, 14, "POST groups/action", early).await.0, 400);
    settle(&office).await;
    assert_eq!((there().await, state().await.as_str()), ((1, 3), "available"));
    let (_, all) = ask(&office, &me, 14, "GET snapshots", Value::Null).await;
    let single = format!("snapshots/{}", all["snapshots"][0]["id"].as_str().unwrap());
    assert_eq!(ask(&office, &me, 0, &format!("DELETE {single}"), Value::Null).await.0, 400);
    for said in [json!({ "os-force_delete": {} }), json!({ "os-unmanage": null })] {
        assert_eq!(ask(&office, &admin, 0, &format!("POST {single}/action"), said).await.0, 400);
    }
    quota("volumes", 5).await;
    for from in [json!({ "group_snapshot_id": frozen }), json!({ "source_group_id": group })] {
        let copy = json!({ "create-from-src": from });
        assert_eq!(ask(&office, &me, 14, "POST groups/action", copy).await.0, 413);
        settle(&office).await;
        assert_eq!((many(&office, &me, "groups").await, many(&office, &me, "volumes").await), (1, 3));
    }
    quota("volumes", 6).await;
    assert_eq!(copied(&office, &me, json!({ "group_snapshot_id": frozen })).await.len(), 3);
    assert_eq!(ask(&office, &me, 14, &format!("DELETE group_snapshots/{frozen}"), Value::Null).await.0, 202);
    settle(&office).await;
    assert_eq!(there().await, (0, 0));
    rig.stop().await;
}

/// Whoever is killed while it makes one, volume by volume, leaves what is `creating`, for ever.
#[tokio::test]
async fn a_group_or_a_snapshot_of_one_whose_making_was_cut_off_ends_in_error() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let office = office(&rig);
    let group = group(&office, &me, &["__DEFAULT__"]).await;
    let volume = member(&office, &me, &group, "__DEFAULT__").await;
    let said = json!({ "group_snapshot": { "group_id": group } });
    let (_, body) = ask(&office, &me, 14, "POST group_snapshots", said).await;
    let frozen = body["group_snapshot"]["id"].as_str().unwrap();
    settle(&office).await;
    let said = json!({ "create-from-src": { "source_group_id": group } });
    let copied = ask(&office, &me, 14, "POST groups/action", said.clone()).await.1;
    let copied = copied["group"]["id"].as_str().unwrap();
    settle(&office).await;
    let state = async |what: &str, of: &str| {
        ask(&office, &me, 14, &format!("GET {what}"), Value::Null).await.1[of]["status"].clone()
    };
    for (drawer, id, path, of) in [
        ("groups", copied, "groups", "group"),
        ("group-snapshots", frozen, "group_snapshots", "group_snapshot"),
    ] {
        let cut_off = |created: &str| {
            let created = created.to_owned();
            move |one: &mut Paper| -> Result<(), PaperError> {
                one.insert("status".to_owned(), json!("creating"));
                one.insert("created_at".to_owned(), json!(created));
                Ok(())
            }
        };
        let (path, just_now) = (format!("{path}/{id}"), crate::cinder::fields::now());
        office.papers.change(drawer, id, cut_off(&just_now)).await.unwrap().unwrap();
        assert_eq!(state(&path, of).await, "creating");
        office.papers.change(drawer, id, cut_off("2026-01-01T00:00:00.000000")).await.unwrap();
        assert_eq!(state(&path, of).await, "error");
    }
    let (path, whole) =
        (format!("POST groups/{copied}/action"), json!({ "delete": { "delete-volumes": true } }));
    assert_eq!(ask(&office, &me, 13, &path, whole).await.0, 202);
    assert_eq!(ask(&office, &me, 14, &format!("DELETE group_snapshots/{frozen}"), Value::Null).await.0, 202);
    settle(&office).await;
    assert_eq!((many(&office, &me, "volumes").await, many(&office, &me, "snapshots").await), (1, 0));
    // A group is not copied while a volume of it is in no state for that.
    let busy = |paper: &mut Paper| -> Result<(), PaperError> {
        paper.insert("status".to_owned(), json!("error"));
        Ok(())
    };
    office.papers.change("volumes", &volume, busy).await.unwrap();
    assert_eq!(ask(&office, &me, 14, "POST groups/action", said).await.0, 400);
    rig.stop().await;
}

/// A group that was made of another one was `available` as soon as its last volume was begun, and stayed so when none was made.
#[tokio::test]
async fn a_copied_group_is_available_when_its_volumes_are() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let office = office(&rig);
    let group = group(&office, &me, &["__DEFAULT__"]).await;
    member(&office, &me, &group, "__DEFAULT__").await;
    member(&office, &me, &group, "__DEFAULT__").await;
    let said = json!({ "create-from-src": { "source_group_id": group } });
    let (code, body) = ask(&office, &me, 14, "POST groups/action", said).await;
    assert_eq!(code, 202, "{body}");
    let copy = body["group"]["id"].as_str().unwrap();
    let state = async || {
        let (_, one) = ask(&office, &me, 13, &format!("GET groups/{copy}"), Value::Null).await;
        let shown = one["group"]["status"].as_str().unwrap().to_owned();
        let found = format!("GET groups/detail?status={shown}");
        let (_, all) = ask(&office, &me, 13, &found, Value::Null).await;
        let all = all["groups"].as_array().unwrap();
        let mine =
            all.iter().find(|group| group["id"] == copy).expect("it is found in the state that it is in");
        assert_eq!(mine["status"], shown);
        shown
    };
    assert_eq!(state().await, "creating");
    settle(&office).await;
    assert_eq!(state().await, "available");
    let (_, body) = ask(&office, &me, 25, &format!("GET groups/{copy}?list_volume=True"), Value::Null).await;
    let one = body["group"]["volumes"][0].as_str().unwrap().to_owned();
    let set = async |id: &str, to: &str| {
        let edit = |volume: &mut Paper| -> Result<(), PaperError> {
            volume.insert("status".to_owned(), json!(to));
            Ok(())
        };
        office.papers.change("volumes", id, edit).await.unwrap();
    };
    set(&one, "error").await;
    assert_eq!(state().await, "error");
    set(&one, "in-use").await;
    assert_eq!(state().await, "available");
    // What is made in it later says nothing of it.
    let later = member(&office, &me, copy, "__DEFAULT__").await;
    for status in ["creating", "error"] {
        set(&later, status).await;
        assert_eq!(state().await, "available");
    }
    rig.stop().await;
}

/// A volume that a group left behind, since it could not go with it, could be deleted and nothing else: for ever.
#[tokio::test]
async fn what_a_group_left_behind_is_held_by_nothing() {
    let (rig, me, other, admin) = (Rig::start(), caller("p", false), caller("q", false), caller("p", true));
    let office = office(&rig);
    let here = group(&office, &me, &["__DEFAULT__"]).await;
    let elsewhere = group(&office, &other, &["__DEFAULT__"]).await;
    let gone = "00000000-0000-4000-8000-000000000001";
    let volume = async |group: &str| {
        let id = super::make(&office, &me, json!({ "size": 1 })).await;
        settle(&office).await;
        let edit = |volume: &mut Paper| -> Result<(), PaperError> {
            volume.insert("group_id".to_owned(), json!(group));
            Ok(())
        };
        office.papers.change("volumes", &id, edit).await.unwrap();
        id
    };
    for (left, held) in [(gone, false), (elsewhere.as_str(), false), (here.as_str(), true)] {
        let refused = if held { 400 } else { 202 };
        let id = volume(left).await;
        let give = json!({ "transfer": { "volume_id": id } });
        let (code, made) = ask(&office, &me, 70, "POST volume-transfers", give).await;
        assert_eq!(code, refused, "{made}");
        if !held {
            let accept = format!("POST volume-transfers/{}/accept", made["transfer"]["id"].as_str().unwrap());
            let key = json!({ "accept": { "auth_key": made["transfer"]["auth_key"] } });
            assert_eq!(ask(&office, &other, 70, &accept, key).await.0, 202);
            let (_, shown) = ask(&office, &other, 13, &format!("GET volumes/{id}"), Value::Null).await;
            assert_eq!(shown["volume"]["group_id"], Value::Null);
        }
        let id = volume(left).await;
        let join = json!({ "group": { "add_volumes": id } });
        assert_eq!(ask(&office, &me, 13, &format!("PUT groups/{here}"), join).await.0, refused);
        let id = volume(left).await;
        let unmanage = act(&office, &admin, &id, json!({ "os-unmanage": null })).await;
        assert_eq!(unmanage, refused, "{left}");
    }
    // A snapshot of a group snapshot that is gone goes with its volume, to whom that is given.
    let id = super::make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    let frozen = freeze(&office, &me, &id).await;
    let edit = |snapshot: &mut Paper| -> Result<(), PaperError> {
        snapshot.insert("group_snapshot_id".to_owned(), json!(gone));
        Ok(())
    };
    office.papers.change("snapshots", &frozen, edit).await.unwrap();
    let give = json!({ "transfer": { "volume_id": id } });
    assert_eq!(ask(&office, &me, 70, "POST volume-transfers", give).await.0, 202);
    rig.stop().await;
}

/// A snapshot whose group snapshot went and that could not go itself is a snapshot as others are.
#[tokio::test]
async fn what_a_group_snapshot_left_behind_is_held_by_nothing() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let office = office(&rig);
    let id = super::make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    let frozen = freeze(&office, &me, &id).await;
    let left = |snapshot: &mut Paper| -> Result<(), PaperError> {
        snapshot.insert("group_snapshot_id".to_owned(), json!("00000000-0000-4000-8000-000000000001"));
        snapshot.insert("status".to_owned(), json!("error_deleting"));
        Ok(())
    };
    office.papers.change("snapshots", &frozen, left).await.unwrap();
    assert_eq!(ask(&office, &me, 0, &format!("DELETE snapshots/{frozen}"), Value::Null).await.0, 202);
    settle(&office).await;
    assert_eq!(many(&office, &me, "snapshots").await, 0);
    rig.stop().await;
}

/// Force deleted what was attached, in a group or frozen, and the snapshots with it: in Cinder it is about the state alone.
#[tokio::test]
async fn force_is_about_the_state_of_a_volume_and_not_about_what_holds_it() {
    let (rig, me, admin) = (Rig::start(), caller("p", false), caller("p", true));
    let office = office(&rig);
    let group = group(&office, &me, &["__DEFAULT__"]).await;
    let grouped = member(&office, &me, &group, "__DEFAULT__").await;
    let [attached, frozen, failed] = {
        let make = async || super::make(&office, &me, json!({ "size": 1 })).await;
        [make().await, make().await, make().await]
    };
    settle(&office).await;
    let attach = json!({ "os-attach": { "host_name": "h", "mountpoint": "/dev/vdb" } });
    assert_eq!(act(&office, &me, &attached, attach).await, 202);
    freeze(&office, &me, &frozen).await;
    let reset = json!({ "os-reset_status": { "status": "error" } });
    let force = || json!({ "os-force_delete": {} });
    for id in [&grouped, &attached, &frozen] {
        assert_eq!(act(&office, &admin, id, reset.clone()).await, 202);
        assert_eq!(act(&office, &admin, id, force()).await, 400);
        let what = format!("DELETE volumes/{id}?force=true");
        assert_eq!(ask(&office, &admin, 70, &what, Value::Null).await.0, 400);
    }
    let creating = super::make(&office, &me, json!({ "size": 1 })).await;
    assert_eq!(act(&office, &admin, &failed, reset).await, 202);
    for id in [&creating, &failed] {
        assert_eq!(act(&office, &admin, id, force()).await, 202);
    }
    let what = format!("DELETE volumes/{frozen}?force=true&cascade=true");
    assert_eq!(ask(&office, &admin, 70, &what, Value::Null).await.0, 202);
    settle(&office).await;
    assert_eq!((many(&office, &me, "volumes").await, many(&office, &me, "snapshots").await), (2, 0));
    rig.stop().await;
}
