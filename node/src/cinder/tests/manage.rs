//! Volumes of the volume layer that the API takes over and gives up.

use quarry_volume::VolumeId;
use quarry_volume::store::Label;
use serde_json::{Value, json};

use super::{Rig, ask, caller, make, office, read, settle, status, work, write};

#[tokio::test]
async fn a_volume_and_its_snapshot_are_taken_over_and_given_up() {
    let (rig, me, admin) = (Rig::start(), caller("p", false), caller("p", true));
    let office = office(&rig);
    let volumes = office.blocks.exports.volumes();
    let label = Label { name: "disk1".into(), bytes: (1 << 30) + 4096, ..Label::default() };
    volumes.create(VolumeId([7; 16]), label).await.unwrap();
    let device = volumes.attach("disk1").await.unwrap();
    device.write_through(4096, vec![5; 8192].into()).await.unwrap();
    drop(device);
    volumes.snapshot("disk1", "monday", 1).await.unwrap();
    let host = "quarry@quarry#quarry";
    let list = |what: &str| format!("GET manageable_{what}/detail?host={}", host.replace('#', "%23"));
    assert_eq!(ask(&office, &me, 8, &list("volumes"), Value::Null).await.0, 403);
    let (_, body) = ask(&office, &admin, 8, &list("volumes"), Value::Null).await;
    let one = json!({
        "reference": { "source-name": "disk1" }, "size": 2, "safe_to_manage": true, "reason_not_safe": null, "cinder_id": null, "extra_info": null,
    });
    assert_eq!(body, json!({ "manageable-volumes": [one] }));
    let take =
        |name: &str| json!({ "volume": { "host": host, "ref": { "source-name": name }, "name": "mine" } });
    assert_eq!(ask(&office, &admin, 8, "POST manageable_volumes", take("none")).await.0, 400);
    let (code, body) = ask(&office, &admin, 8, "POST manageable_volumes", take("disk1")).await;
    assert_eq!(code, 202, "{body}");
    let id = body["volume"]["id"].as_str().unwrap().to_owned();
    settle(&office).await;
    assert_eq!(status(&office, &admin, &format!("volumes/{id}")).await, "available");
    assert_eq!(read(&office, &id, 4096).await, 5);
    assert!(volumes.find("disk1").is_err(), "it has the API's name");
    let name = work::device_name(&id);
    assert_eq!(ask(&office, &admin, 8, "POST os-volume-manage", take(&name)).await.0, 400, "it is managed");
    let snapshot =
        json!({ "snapshot": { "volume_id": id, "ref": { "source-name": "monday" }, "name": "s" } });
    let (code, body) = ask(&office, &admin, 8, "POST manageable_snapshots", snapshot).await;
    assert_eq!(code, 202, "{body}");
    let frozen = body["snapshot"]["id"].as_str().unwrap().to_owned();
    settle(&office).await;
    assert_eq!(status(&office, &admin, &format!("snapshots/{frozen}")).await, "available");
    let (_, body) = ask(&office, &admin, 8, &list("snapshots"), Value::Null).await;
    assert_eq!(body["manageable-snapshots"][0]["cinder_id"], json!(frozen));
    let give_up = || json!({ "os-unmanage": null });
    let volume = format!("POST volumes/{id}/action");
    assert_eq!(ask(&office, &admin, 8, &volume, give_up()).await.0, 400, "it has a snapshot");
    assert_eq!(ask(&office, &admin, 8, &format!("POST snapshots/{frozen}/action"), give_up()).await.0, 202);
    assert_eq!(ask(&office, &me, 8, &volume, give_up()).await.0, 403);
    assert_eq!(ask(&office, &admin, 8, &volume, give_up()).await.0, 202);
    assert_eq!(status(&office, &admin, &format!("volumes/{id}")).await, "404");
    // As it was, and by the name that it had from the API it comes back.
    assert_eq!(read(&office, &id, 4096).await, 5);
    assert_eq!(volumes.find(&name).unwrap().snapshots().len(), 1);
    let (code, body) = ask(&office, &admin, 8, "POST os-volume-manage", take(&name)).await;
    assert_eq!(code, 202, "{body}");
    settle(&office).await;
    let again = body["volume"]["id"].as_str().unwrap();
    assert_eq!(status(&office, &admin, &format!("volumes/{again}")).await, "available");
    write(&office, again, 0, 1).await;
    let other = make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    assert_ne!(other, again);
    rig.stop().await;
}
