//! Types that are renamed, and volumes that get another one.

use serde_json::{Value, json};

use super::groups::{group, member};
use super::{Rig, ask, caller, make, office, settle};

/// The quotas of a type are kept by its name: when it was renamed they were unlimited.
#[tokio::test]
async fn a_type_that_is_renamed_keeps_its_quotas() {
    let (rig, me, admin) = (Rig::start(), caller("p", false), caller("a", true));
    let office = office(&rig);
    let (_, body) = ask(&office, &admin, 0, "POST types", json!({ "volume_type": { "name": "one" } })).await;
    let kind = body["volume_type"]["id"].as_str().unwrap().to_owned();
    let set = json!({ "quota_set": { "volumes_one": 1 } });
    assert_eq!(ask(&office, &admin, 0, "PUT os-quota-sets/p", set).await.0, 200);
    let class = json!({ "quota_class_set": { "snapshots_one": 3 } });
    assert_eq!(ask(&office, &admin, 0, "PUT os-quota-class-sets/default", class).await.0, 200);
    let rename = |name: &str| json!({ "volume_type": { "name": name } });
    for name in ["two", "two", "three"] {
        assert_eq!(ask(&office, &admin, 0, &format!("PUT types/{kind}"), rename(name)).await.0, 200);
    }
    let (_, kept) = ask(&office, &admin, 0, "GET os-quota-sets/p", Value::Null).await;
    let of = |name: &str| kept["quota_set"][name].clone();
    assert_eq!((of("volumes_three"), of("snapshots_three")), (json!(1), json!(3)), "{kept}");
    let said = || json!({ "volume": { "size": 1, "volume_type": "three" } });
    assert_eq!(ask(&office, &me, 0, "POST volumes", said()).await.0, 202);
    assert_eq!(ask(&office, &me, 0, "POST volumes", said()).await.0, 413);
    // A new type of the old name has none.
    assert_eq!(ask(&office, &admin, 0, "POST types", rename("one")).await.0, 200);
    let (_, kept) = ask(&office, &admin, 0, "GET os-quota-sets/p", Value::Null).await;
    assert_eq!(kept["quota_set"]["volumes_one"], -1, "{kept}");
    rig.stop().await;
}

/// A volume in use became one that several attach, or was one no more while several had it; and one of a group got a type that the group
/// does not take.
#[tokio::test]
async fn a_volume_in_use_or_in_a_group_keeps_what_they_rely_on() {
    let (rig, me, admin) = (Rig::start(), caller("p", false), caller("p", true));
    let office = office(&rig);
    for (name, specs) in [("shared", json!({ "multiattach": "<is> True" })), ("plain", json!({}))] {
        let kind = json!({ "volume_type": { "name": name, "extra_specs": specs } });
        assert_eq!(ask(&office, &admin, 0, "POST types", kind).await.0, 200);
    }
    let id = make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    let act = async |id: &str, said: Value| {
        ask(&office, &me, 0, &format!("POST volumes/{id}/action"), said).await.0
    };
    let retype = |name: &str| json!({ "os-retype": { "new_type": name } });
    let attach = json!({ "os-attach": { "host_name": "h", "mountpoint": "/dev/vdb" } });
    assert_eq!(act(&id, attach).await, 202);
    assert_eq!((act(&id, retype("shared")).await, act(&id, retype("plain")).await), (400, 202));
    assert_eq!(act(&id, json!({ "os-detach": {} })).await, 202);
    assert_eq!(act(&id, retype("shared")).await, 202);
    let group = group(&office, &me, &["__DEFAULT__"]).await;
    let id = member(&office, &me, &group, "__DEFAULT__").await;
    assert_eq!(act(&id, retype("plain")).await, 400);
    rig.stop().await;
}
