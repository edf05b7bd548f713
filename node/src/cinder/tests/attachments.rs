//! Attachments that come and go while something else is done with their volumes.

use std::sync::Arc;

use quarry_volume::KeyRing;
use quarry_volume::store::Volumes;
use serde_json::{Value, json};

use super::{Blocks, Cinder, Rig, ask, caller, config, make, office, settle, status};

/// Who detached a volume that was being backed up made it `available` meanwhile: another task took the place of the one under way. And
/// one that ended in time left the volume `in-use` with nobody who used it.
#[tokio::test]
async fn a_volume_that_is_detached_meanwhile_keeps_its_state_until_the_end_and_is_free_then() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let office = office(&rig);
    let id = make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    let path = format!("volumes/{id}");
    let attach = async || {
        let said = json!({ "attachment": { "volume_uuid": id, "connector": { "host": "h" } } });
        let (code, made) = ask(&office, &me, 44, "POST attachments", said).await;
        assert_eq!(code, 200, "{made}");
        let attachment = format!("attachments/{}", made["attachment"]["id"].as_str().unwrap());
        let complete = json!({ "os-complete": {} });
        assert_eq!(ask(&office, &me, 44, &format!("POST {attachment}/action"), complete).await.0, 204);
        attachment
    };
    for detached in [true, false] {
        let attachment = attach().await;
        let said = json!({ "backup": { "volume_id": id, "force": true } });
        assert_eq!(ask(&office, &me, 0, "POST backups", said).await.0, 202);
        if detached {
            assert_eq!(ask(&office, &me, 44, &format!("DELETE {attachment}"), Value::Null).await.0, 200);
        }
        assert_eq!(status(&office, &me, &path).await, "backing-up");
        let extend = json!({ "os-extend": { "new_size": 2 } });
        assert_eq!(ask(&office, &me, 70, &format!("POST {path}/action"), extend).await.0, 400);
        settle(&office).await;
        let state = if detached { "available" } else { "in-use" };
        assert_eq!(status(&office, &me, &path).await, state);
    }
    rig.stop().await;
}

/// With no node that serves NBD clients an attachment was refused and none was there, but the volume stayed reserved for it.
#[tokio::test]
async fn an_attachment_that_cannot_be_connected_reserves_nothing() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let volumes = Arc::new(Volumes::open(vec![rig.disk()]).unwrap().with_keys(KeyRing::new(vec![[3; 32]])));
    let blocks = Blocks::of(volumes);
    let office = Cinder::new(rig.store(), blocks, None, None, &config::Volumes::default(), None).office;
    let id = make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    let said = json!({ "attachment": { "volume_uuid": id, "connector": { "host": "h" } } });
    assert_eq!(ask(&office, &me, 44, "POST attachments", said).await.0, 400);
    assert_eq!(status(&office, &me, &format!("volumes/{id}")).await, "available");
    rig.stop().await;
}
