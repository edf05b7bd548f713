//! Volumes of types with an encryption.

use serde_json::{Value, json};

use super::groups::{copied, group, member};
use super::{Rig, ask, caller, make, office, read, settle, status, work, write};

#[tokio::test]
async fn a_type_with_an_encryption_makes_encrypted_volumes_and_says_so() {
    let (rig, me, admin) = (Rig::start(), caller("p", false), caller("a", true));
    let office = office(&rig);
    let kind = json!({ "volume_type": { "name": "secret" } });
    let (_, body) = ask(&office, &admin, 0, "POST types", kind).await;
    let kind = body["volume_type"]["id"].as_str().unwrap().to_owned();
    let place = format!("POST types/{kind}/encryption");
    let said = |cipher: &str, bits: i64| json!({ "encryption": { "provider": "luks", "control_location": "front-end", "cipher": cipher, "key_size": bits } });
    for bad in [said("aes-cbc-essiv", 256), said("aes-xts-plain64", 100)] {
        assert_eq!(ask(&office, &admin, 0, &place, bad).await.0, 400);
    }
    assert_eq!(ask(&office, &admin, 0, &place, said("aes-xts-plain64", 512)).await.0, 200);
    let id = make(&office, &me, json!({ "size": 1, "volume_type": "secret" })).await;
    let open = make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    let known = |id: &str| office.blocks.exports.volumes().find(&work::device_name(id)).unwrap().label.key;
    assert!(known(&id).is_some() && known(&open).is_none());
    for (id, encrypted) in [(&id, true), (&open, false)] {
        let (_, body) = ask(&office, &me, 0, &format!("GET volumes/{id}"), Value::Null).await;
        assert_eq!(body["volume"]["encrypted"], json!(encrypted));
    }
    let (_, shown) = ask(&office, &me, 0, &format!("GET volumes/{id}/encryption"), Value::Null).await;
    assert_eq!((&shown["cipher"], &shown["encryption_key_id"]), (&json!("aes-xts-plain64"), &Value::Null));
    let connect = json!({ "os-initialize_connection": { "connector": {} } });
    let (_, info) = ask(&office, &me, 0, &format!("POST volumes/{id}/action"), connect).await;
    assert_eq!(info["connection_info"]["data"]["encrypted"], json!(false), "clients are given plain bytes");
    // What comes of it has its key; what is of another type has its own, or none.
    write(&office, &id, 4096, 7).await;
    write(&office, &open, 4096, 6).await;
    let child = make(&office, &me, json!({ "source_volid": id })).await;
    let opened = make(&office, &me, json!({ "source_volid": id, "volume_type": "__DEFAULT__" })).await;
    let locked = make(&office, &me, json!({ "source_volid": open, "volume_type": "secret" })).await;
    settle(&office).await;
    for (id, byte) in [(&child, 7), (&opened, 7), (&locked, 6)] {
        assert_eq!(status(&office, &me, &format!("volumes/{id}")).await, "available");
        assert_eq!(read(&office, id, 4096).await, byte);
    }
    assert!(known(&opened).is_none() && known(&locked).is_some() && known(&locked) != known(&id));
    // A volume becomes one of the other kind by being written anew; what is a clone of it stays what it is.
    for (of, kind, byte) in [(&id, "__DEFAULT__", 7), (&open, "secret", 6), (&id, "secret", 7)] {
        let place = format!("POST volumes/{of}/action");
        for (policy, code) in [("never", 400), ("on-demand", 202)] {
            let retype = json!({ "os-retype": { "new_type": kind, "migration_policy": policy } });
            assert_eq!(ask(&office, &me, 0, &place, retype).await.0, code);
        }
        settle(&office).await;
        assert_eq!(status(&office, &me, &format!("volumes/{of}")).await, "available");
        assert_eq!((read(&office, of, 4096).await, known(of).is_some()), (byte, kind == "secret"));
        let (_, body) = ask(&office, &me, 0, &format!("GET volumes/{of}"), Value::Null).await;
        assert_eq!(
            (&body["volume"]["volume_type"], &body["volume"]["encrypted"]),
            (&json!(kind), &json!(kind == "secret"))
        );
        assert_eq!(read(&office, &child, 4096).await, 7);
    }
    let moved = office.blocks.exports.volumes().named(|name| crate::block::moving::end_of(name).is_some());
    assert!(moved.is_empty(), "{moved:?}");
    let backup = json!({ "backup": { "volume_id": id } });
    assert_eq!(ask(&office, &me, 0, "POST backups", backup).await.0, 400, "it would lie in clear");
    let give = json!({ "transfer": { "volume_id": id } });
    assert_eq!(ask(&office, &me, 69, "POST volume-transfers", give).await.0, 400);
    let (_, body) = ask(&office, &admin, 0, &format!("GET types/{kind}/encryption"), Value::Null).await;
    let place = format!("DELETE types/{kind}/encryption/{}", body["encryption_id"].as_str().unwrap());
    assert_eq!(ask(&office, &admin, 0, &place, Value::Null).await.0, 400, "the type is in use");
    rig.stop().await;
}

/// What was restored into a new volume whose default type is encrypted, and what was made of a group's encrypted volume, said that it is
/// of that type and lay on the disk in clear.
#[tokio::test]
async fn whatever_makes_a_volume_of_an_encrypted_type_encrypts_it() {
    let (rig, me, admin) = (Rig::start(), caller("p", false), caller("a", true));
    let office = office(&rig);
    let kind = json!({ "volume_type": { "name": "secret", "extra_specs": { "multiattach": "<is> True" } } });
    let (_, body) = ask(&office, &admin, 0, "POST types", kind).await;
    let place = format!("POST types/{}/encryption", body["volume_type"]["id"].as_str().unwrap());
    let said = json!({ "encryption": { "provider": "luks", "control_location": "front-end" } });
    assert_eq!(ask(&office, &admin, 0, &place, said).await.0, 200);
    let open = make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    write(&office, &open, 4096, 6).await;
    let (_, backup) = ask(&office, &me, 0, "POST backups", json!({ "backup": { "volume_id": open } })).await;
    settle(&office).await;
    let default = json!({ "default_type": { "volume_type": "secret" } });
    assert_eq!(ask(&office, &admin, 62, "PUT default-types/p", default).await.0, 200);
    let what = format!("POST backups/{}/restore", backup["backup"]["id"].as_str().unwrap());
    let (code, body) = ask(&office, &me, 0, &what, json!({ "restore": {} })).await;
    assert_eq!(code, 202, "{body}");
    let restored = body["restore"]["volume_id"].as_str().unwrap().to_owned();
    settle(&office).await;
    let group = group(&office, &me, &["secret"]).await;
    let source = member(&office, &me, &group, "secret").await;
    write(&office, &source, 4096, 7).await;
    let copies = copied(&office, &me, json!({ "source_group_id": group })).await;
    for (id, byte) in [(&restored, 6), (&copies[0], 7)] {
        let (_, shown) = ask(&office, &me, 50, &format!("GET volumes/{id}"), Value::Null).await;
        let shown = &shown["volume"];
        let said = (&shown["status"], &shown["encrypted"], &shown["multiattach"]);
        assert_eq!(said, (&json!("available"), &json!(true), &json!(true)), "{shown}");
        let known = office.blocks.exports.volumes().find(&work::device_name(id)).unwrap();
        assert!(known.label.key.is_some(), "{id}");
        assert_eq!(read(&office, id, 4096).await, byte);
    }
    rig.stop().await;
}
