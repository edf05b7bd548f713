//! Volumes of snapshots and volumes, what becomes of them when those are deleted, and volumes that go back.

use serde_json::{Value, json};

use super::{Rig, ask, caller, make, office, read, settle, status, work, write};

#[tokio::test]
async fn volumes_of_others_cost_nothing_and_outlive_them() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let office = office(&rig);
    let id = make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    write(&office, &id, 4096, 7).await;
    let said = json!({ "snapshot": { "volume_id": id } });
    let (_, body) = ask(&office, &me, 0, "POST snapshots", said).await;
    let snapshot = body["snapshot"]["id"].as_str().unwrap().to_owned();
    settle(&office).await;
    let of_snapshot = make(&office, &me, json!({ "snapshot_id": snapshot, "size": 2 })).await;
    let of_volume = make(&office, &me, json!({ "source_volid": id })).await;
    settle(&office).await;
    let known = |id: &str| office.blocks.exports.volumes().find(&work::device_name(id));
    for id in [&of_snapshot, &of_volume] {
        assert!(known(id).unwrap().parent().is_some(), "it was not copied");
    }
    assert_eq!(known(&of_snapshot).unwrap().label.bytes, 2 << 30);
    let names: Vec<_> = known(&id).unwrap().snapshots().into_iter().map(|one| one.label.name).collect();
    assert_eq!(
        names,
        [work::snapshot_name(&snapshot)],
        "what was kept while a volume was made of the other is seen by nobody"
    );
    // Both go while others are clones of them.
    assert_eq!(ask(&office, &me, 0, &format!("DELETE snapshots/{snapshot}"), Value::Null).await.0, 202);
    settle(&office).await;
    assert_eq!(status(&office, &me, &format!("snapshots/{snapshot}")).await, "404");
    assert_eq!(ask(&office, &me, 0, &format!("DELETE volumes/{id}"), Value::Null).await.0, 202);
    settle(&office).await;
    assert_eq!(status(&office, &me, &format!("volumes/{id}")).await, "404");
    assert!(known(&id).is_err());
    for id in [&of_snapshot, &of_volume] {
        assert_eq!(read(&office, id, 4096).await, 7);
    }
    // The next life of the node knows the same.
    let office = super::office(&rig);
    assert_eq!(read(&office, &of_volume, 4096).await, 7);
    for id in [&of_snapshot, &of_volume] {
        assert_eq!(ask(&office, &me, 0, &format!("DELETE volumes/{id}"), Value::Null).await.0, 202);
    }
    settle(&office).await;
    let volumes = office.blocks.exports.volumes();
    while volumes.reap().await.unwrap() {}
    assert!(volumes.list().is_empty());
    rig.stop().await;
}

#[tokio::test]
async fn a_volume_goes_back_to_its_newest_snapshot() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let office = office(&rig);
    let id = make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    write(&office, &id, 4096, 1).await;
    let said = json!({ "snapshot": { "volume_id": id } });
    let (_, body) = ask(&office, &me, 0, "POST snapshots", said).await;
    let snapshot = body["snapshot"]["id"].as_str().unwrap().to_owned();
    settle(&office).await;
    write(&office, &id, 4096, 2).await;
    write(&office, &id, 1 << 20, 3).await;
    let back = json!({ "revert": { "snapshot_id": snapshot } });
    assert_eq!(ask(&office, &me, 40, &format!("POST volumes/{id}/action"), back).await.0, 202);
    // Killed in the middle: the next life goes on with it.
    let office = super::office(&rig);
    settle(&office).await;
    assert_eq!(status(&office, &me, &format!("volumes/{id}")).await, "available");
    assert_eq!((read(&office, &id, 4096).await, read(&office, &id, 1 << 20).await), (1, 0));
    rig.stop().await;
}
