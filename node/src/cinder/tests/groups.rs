//! Groups, for tests of what is made with them.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Caller, Office, ask, caller, settle};

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
