//! Tasks that are too large, broken off, or overtaken by what is done with their volumes meanwhile.

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{Paper, PaperError, Rig, ask, caller, make, office, settle, status, work};

/// Where gigabytes have no quota, an extension by 2^34 GiB was accepted; its task multiplied past what a number holds, panicked, and left
/// the volume `extending` for ever. With a quota, two volumes and an extension to the largest number the request itself panicked.
#[tokio::test]
async fn a_volume_is_extended_to_what_one_may_have_and_no_further() {
    let (rig, me, admin) = (Rig::start(), caller("p", false), caller("a", true));
    let office = office(&rig);
    let id = make(&office, &me, json!({ "size": 1 })).await;
    make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    let what = format!("POST volumes/{id}/action");
    let extend =
        async |size: i64| ask(&office, &me, 0, &what, json!({ "os-extend": { "new_size": size } })).await.0;
    assert_eq!((extend(i64::MAX).await, extend(1 << 20).await), (400, 413));
    let free = json!({ "quota_set": { "gigabytes": -1 } });
    assert_eq!(ask(&office, &admin, 0, "PUT os-quota-sets/p", free).await.0, 200);
    for size in [i64::MAX, 1 << 34, (1 << 20) + 1] {
        assert_eq!(extend(size).await, 400, "{size}");
    }
    assert_eq!(extend(2).await, 202);
    settle(&office).await;
    assert_eq!(status(&office, &me, &format!("volumes/{id}")).await, "available");
    rig.stop().await;
}

/// Such a task was written by an earlier version, and each start panicked upon it again.
#[tokio::test]
async fn a_task_of_a_size_that_no_volume_has_ends_in_its_error() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let office = office(&rig);
    let id = make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    let begun = |volume: &mut Paper| -> Result<(), PaperError> {
        volume.insert("status".to_owned(), json!("extending"));
        volume
            .insert("task".to_owned(), json!({ "do": "extend", "size": 1_i64 << 34, "before": "available" }));
        Ok(())
    };
    office.papers.change("volumes", &id, begun).await.unwrap();
    settle(&office).await;
    let path = format!("volumes/{id}");
    assert_eq!(status(&office, &me, &path).await, "error_extending");
    assert_eq!(ask(&office, &me, 0, &format!("DELETE {path}"), Value::Null).await.0, 202);
    settle(&office).await;
    assert_eq!(status(&office, &me, &path).await, "404");
    rig.stop().await;
}

/// A task that had panicked kept its paper from every later round of that node.
#[tokio::test]
async fn a_task_that_broke_off_is_begun_anew() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let office = office(&rig);
    // All drawers are open from here on: a round waits for nothing when it has begun the task.
    settle(&office).await;
    let id = make(&office, &me, json!({ "size": 1 })).await;
    let mut running = JoinSet::new();
    work::round(&office, &mut running).await.unwrap();
    assert_eq!(running.len(), 1);
    running.shutdown().await;
    settle(&office).await;
    assert_eq!(status(&office, &me, &format!("volumes/{id}")).await, "available");
    rig.stop().await;
}
