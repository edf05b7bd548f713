//! Transfers that were cut off, and what the one who accepts may have.

use serde_json::{Value, json};

use super::{Paper, PaperError, Rig, ask, caller, make, office, settle, status};

/// The volume was written before its transfer: who was killed in between left it `awaiting-transfer` for ever. Now the transfer comes
/// first, and one that its volume does not name takes nothing, also while the volume waits for another one.
#[tokio::test]
async fn a_transfer_that_its_volume_does_not_name_takes_nothing() {
    let (rig, me, other) = (Rig::start(), caller("p", false), caller("q", false));
    let office = office(&rig);
    let id = make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    let path = format!("volumes/{id}");
    let give = async || {
        let said = json!({ "transfer": { "volume_id": id } });
        ask(&office, &me, 70, "POST volume-transfers", said).await
    };
    let accept = async |made: &Value| {
        let what = format!("POST volume-transfers/{}/accept", made["transfer"]["id"].as_str().unwrap());
        let key = json!({ "accept": { "auth_key": made["transfer"]["auth_key"] } });
        ask(&office, &other, 70, &what, key).await.0
    };
    let (_, lost) = give().await;
    // As far as a node came that was killed then.
    let untold = |volume: &mut Paper| -> Result<(), PaperError> {
        volume.insert("status".to_owned(), json!("available"));
        volume.remove("transfer");
        Ok(())
    };
    office.papers.change("volumes", &id, untold).await.unwrap();
    assert_eq!(accept(&lost).await, 404);
    let (code, made) = give().await;
    assert_eq!(code, 202, "{made}");
    assert_eq!(accept(&lost).await, 404, "it waits for the other one");
    assert_eq!(give().await.0, 400);
    let (_, all) = ask(&office, &me, 70, "GET volume-transfers", Value::Null).await;
    assert_eq!(all["transfers"].as_array().unwrap().len(), 2, "one that was refused is not there: {all}");
    let end = format!("DELETE volume-transfers/{}", lost["transfer"]["id"].as_str().unwrap());
    assert_eq!(ask(&office, &me, 70, &end, Value::Null).await.0, 202);
    assert_eq!(status(&office, &me, &path).await, "awaiting-transfer");
    assert_eq!(accept(&made).await, 202);
    assert_eq!(status(&office, &other, &path).await, "available");
    rig.stop().await;
}

/// Who accepted got a volume that it could not have made.
#[tokio::test]
async fn a_volume_that_is_larger_than_a_project_may_have_one_is_not_accepted() {
    let (rig, me, admin) = (Rig::start(), caller("p", false), caller("a", true));
    let office = office(&rig);
    let id = make(&office, &me, json!({ "size": 2 })).await;
    settle(&office).await;
    let set = json!({ "quota_set": { "per_volume_gigabytes": 1 } });
    assert_eq!(ask(&office, &admin, 0, "PUT os-quota-sets/q", set).await.0, 200);
    let said = json!({ "transfer": { "volume_id": id } });
    let (_, made) = ask(&office, &me, 70, "POST volume-transfers", said).await;
    let what = format!("POST volume-transfers/{}/accept", made["transfer"]["id"].as_str().unwrap());
    let key = json!({ "accept": { "auth_key": made["transfer"]["auth_key"] } });
    assert_eq!(ask(&office, &caller("q", false), 70, &what, key).await.0, 413);
    assert_eq!(status(&office, &me, &format!("volumes/{id}")).await, "awaiting-transfer");
    rig.stop().await;
}
