//! QoS specs of types, and what becomes of them at volumes.

use quarry_volume::pace::{Limits, Rate};
use serde_json::{Value, json};

use super::{Rig, ask, caller, make, office, settle, work};

#[tokio::test]
async fn a_spec_of_a_type_limits_its_volumes_or_is_told_to_clients() {
    let (rig, me, admin) = (Rig::start(), caller("p", false), caller("a", true));
    let office = office(&rig);
    let (_, body) = ask(&office, &admin, 0, "POST types", json!({ "volume_type": { "name": "slow" } })).await;
    let kind = body["volume_type"]["id"].as_str().unwrap().to_owned();
    let spec = json!({ "qos_specs": { "name": "s", "consumer": "both", "total_iops_sec": "100", "read_bytes_sec": "4096", "read_bytes_sec_max": "9", "x": "y" } });
    let (_, body) = ask(&office, &admin, 0, "POST qos-specs", spec).await;
    let spec = body["qos_specs"]["id"].as_str().unwrap().to_owned();
    let id = make(&office, &me, json!({ "size": 1, "volume_type": "slow" })).await;
    settle(&office).await;
    let limits = || office.blocks.exports.volumes().find(&work::device_name(&id)).unwrap().label.limits;
    assert!(limits().is_free());
    let associate = format!("GET qos-specs/{spec}/associate?vol_type_id={kind}");
    assert_eq!(ask(&office, &admin, 0, &associate, Value::Null).await.0, 202);
    settle(&office).await;
    let mut wanted = Limits::default();
    wanted.0[0] = Rate { per_second: 100, burst: 10 };
    wanted.0[4] = Rate { per_second: 4096, burst: 9 };
    assert_eq!(limits(), wanted, "what was made before is limited too");
    let connect = || json!({ "os-initialize_connection": { "connector": {} } });
    let told = async || {
        let (_, info) = ask(&office, &me, 0, &format!("POST volumes/{id}/action"), connect()).await;
        info["connection_info"]["data"]["qos_specs"].clone()
    };
    assert_eq!(told().await["total_iops_sec"], json!("100"));
    for (consumer, limited, tells) in [("back-end", true, false), ("front-end", false, true)] {
        let change = json!({ "qos_specs": { "consumer": consumer } });
        assert_eq!(ask(&office, &admin, 0, &format!("PUT qos-specs/{spec}"), change).await.0, 200);
        settle(&office).await;
        assert_eq!((limits() == wanted, told().await.is_object()), (limited, tells), "{consumer}");
    }
    rig.stop().await;
}
