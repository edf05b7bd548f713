//! What is kept of volumes while something is made of them.

use std::sync::Arc;

use quarry_volume::store::{Label, Volumes};
use quarry_volume::{KeyRing, VolumeId};
use serde_json::{Value, json};

use super::{Blocks, Cinder, Rig, ask, caller, config, make, office, settle, status, work};

/// A backup that found no way to read what it had just frozen ended in `error`, and what was frozen stayed for ever.
#[tokio::test]
async fn a_backup_that_cannot_read_leaves_nothing_frozen() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let first = office(&rig);
    let id = make(&first, &me, json!({ "size": 1 })).await;
    let (exports, name) = (&first.blocks.exports, work::device_name(&id));
    // One that was encrypted by hand.
    let key = Some(exports.volumes().wrap(&[5; 64]).unwrap());
    let label = Label { name: name.clone(), bytes: 1 << 30, key, ..Label::default() };
    exports.create(VolumeId([9; 16]), label, 1).await.unwrap();
    settle(&first).await;
    assert_eq!(status(&first, &me, &format!("volumes/{id}")).await, "available");
    drop(first);
    // The node has lost the key that opens it.
    let volumes = Arc::new(Volumes::open(vec![rig.disk()]).unwrap().with_keys(KeyRing::new(vec![[4; 32]])));
    let blocks = Blocks::of(volumes);
    let second = Cinder::new(rig.store(), blocks, None, None, &config::Volumes::default(), None).office;
    let said = json!({ "backup": { "volume_id": id } });
    let (code, body) = ask(&second, &me, 0, "POST backups", said).await;
    assert_eq!(code, 202, "{body}");
    settle(&second).await;
    let backup = body["backup"]["id"].as_str().unwrap();
    let (_, shown) = ask(&second, &me, 0, &format!("GET backups/{backup}"), Value::Null).await;
    assert_eq!(shown["backup"]["status"], "error", "{shown}");
    assert_eq!(status(&second, &me, &format!("volumes/{id}")).await, "available");
    assert!(second.blocks.exports.volumes().find(&name).unwrap().snapshots().is_empty());
    rig.stop().await;
}
