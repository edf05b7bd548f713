//! Quotas where two nodes take requests at once.

use std::time::Duration;

use super::migrate::Pair;
use super::*;
use crate::cinder::quotas::Need;
use crate::cinder::reserve::testing::{aba, leave, notes};

/// A project's quota, and what it uses of it.
async fn set(pair: &Pair, limits: Value) {
    let (status, body) =
        ask(&pair.offices[0], &caller("p", true), 70, "PUT os-quota-sets/p", json!({ "quota_set": limits }))
            .await;
    assert_eq!(status, 200, "{body}");
}

/// Waits until nothing is reserved any more.
async fn let_go(pair: &Pair) {
    for _ in 0..1000 {
        if notes(&pair.offices[1], "p").await == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("what was reserved is never let go");
}

/// Requests at both nodes at once, and how many of them were taken.
async fn at_once(pair: &Pair, what: &str, said: impl Fn(usize) -> Value) -> usize {
    let mut running = JoinSet::new();
    for turn in 0..12 {
        let (office, what, said) = (Arc::clone(&pair.offices[turn % 2]), what.to_owned(), said(turn));
        running.spawn(async move { ask(&office, &caller("p", false), 70, &what, said).await });
    }
    let answers = running.join_all().await;
    assert!(answers.iter().all(|(status, _)| [200, 202, 413].contains(status)), "{answers:?}");
    answers.iter().filter(|(status, _)| *status != 413).count()
}

/// Both nodes counted, both saw room for one more, and both wrote: a project had more than its quota.
#[tokio::test]
async fn two_nodes_together_give_out_a_quota_and_no_more() {
    let pair = Pair::start();
    set(&pair, json!({ "volumes": 5, "gigabytes": 7, "groups": 1, "snapshots": 2 })).await;
    let made = at_once(&pair, "POST volumes", |_| json!({ "volume": { "size": 1 } })).await;
    assert_eq!(made, 5, "all that there is, and no more");
    let_go(&pair).await;
    let volumes = pair.offices[1].papers.all("volumes").await.unwrap();
    assert_eq!(volumes.len(), 5);
    Box::pin(pair.settle()).await;
    // Two gigabytes are left, and two snapshots.
    let ids: Vec<_> = volumes.iter().map(|paper| paper["id"].as_str().unwrap().to_owned()).collect();
    let frozen =
        at_once(&pair, "POST snapshots", |turn| json!({ "snapshot": { "volume_id": ids[turn % 5] } })).await;
    assert_eq!(frozen, 2);
    let_go(&pair).await;
    let (_, said) =
        ask(&pair.offices[1], &caller("p", false), 70, "GET os-quota-sets/p?usage=true", Value::Null).await;
    assert_eq!(said["quota_set"]["gigabytes"]["in_use"], 7, "{said}");
}

/// The last one of a quota, asked for at both nodes in the same moment.
#[tokio::test]
async fn the_last_of_a_quota_is_given_once() {
    let pair = Pair::start();
    let class = json!({ "quota_class_set": { "volumes": 1 } });
    let admin = caller("p", true);
    assert_eq!(ask(&pair.offices[0], &admin, 70, "PUT os-quota-class-sets/default", class).await.0, 200);
    for round in 0..16 {
        let by = caller(&format!("p{round}"), false);
        let said = || json!({ "volume": { "size": 1 } });
        let [one, two] = &pair.offices;
        let (one, two) = tokio::join!(
            ask(one, &by, 70, "POST volumes", said()),
            ask(two, &by, 70, "POST volumes", said())
        );
        let mut both = [one.0, two.0];
        both.sort_unstable();
        assert_eq!(both, [202, 413], "round {round}: {} {}", one.1, two.1);
    }
}

/// Two projects accepted one transfer at two nodes in the same moment: both were told that the volume is theirs.
#[tokio::test]
async fn a_transfer_is_accepted_by_one() {
    let pair = Pair::start();
    let [one, two] = &pair.offices;
    let giver = caller("giver", false);
    for round in 0..8 {
        let id = make(one, &giver, json!({ "size": 1 })).await;
        Box::pin(pair.settle()).await;
        let said = json!({ "transfer": { "volume_id": id } });
        let (status, made) = ask(one, &giver, 70, "POST os-volume-transfer", said).await;
        assert_eq!(status, 202, "{made}");
        let transfer = &made["transfer"];
        let what = format!("POST os-volume-transfer/{}/accept", transfer["id"].as_str().unwrap());
        let said = || json!({ "accept": { "auth_key": transfer["auth_key"] } });
        let (p, q) = (caller("p", false), caller("q", false));
        let (first, second) = tokio::join!(ask(one, &p, 70, &what, said()), ask(two, &q, 70, &what, said()));
        let mut both = [first.0, second.0];
        both.sort_unstable();
        assert_eq!(both, [202, 404], "round {round}: {} {}", first.1, second.1);
        let owner = if first.0 == 202 { &p } else { &q };
        assert_eq!(ask(two, owner, 70, &format!("GET volumes/{id}"), Value::Null).await.0, 200);
    }
}

/// A node was killed when the volume was given and its snapshot was not: who accepted again at its quota's end was refused, for the
/// volume counted twice.
#[tokio::test]
async fn what_a_killed_accept_gave_already_is_not_counted_again() {
    let pair = Pair::start();
    set(&pair, json!({ "volumes": 1, "gigabytes": 2, "snapshots": 1 })).await;
    let [one, two] = &pair.offices;
    let (giver, p) = (caller("giver", false), caller("p", false));
    let id = make(one, &giver, json!({ "size": 1 })).await;
    Box::pin(pair.settle()).await;
    let freeze = json!({ "snapshot": { "volume_id": id } });
    assert_eq!(ask(one, &giver, 70, "POST snapshots", freeze).await.0, 202);
    Box::pin(pair.settle()).await;
    let said = json!({ "transfer": { "volume_id": id } });
    let (_, made) = ask(one, &giver, 70, "POST volume-transfers", said).await;
    let transfer = &made["transfer"];
    let what = format!("POST volume-transfers/{}/accept", transfer["id"].as_str().unwrap());
    let said = json!({ "accept": { "auth_key": transfer["auth_key"] } });
    // As far as the killed node came.
    let given = |paper: &mut Paper| -> Result<(), PaperError> {
        paper.insert("project_id".to_owned(), json!("p"));
        paper.insert("status".to_owned(), json!("available"));
        Ok(())
    };
    assert!(one.papers.change("volumes", &id, given).await.unwrap().is_some());
    let (status, body) = ask(two, &p, 70, &what, said).await;
    assert_eq!(status, 202, "{body}");
    let_go(&pair).await;
    let (_, used) = ask(two, &p, 70, "GET os-quota-sets/p?usage=true", Value::Null).await;
    let used = |name: &str| used["quota_set"][name]["in_use"].as_i64();
    assert_eq!([used("volumes"), used("gigabytes"), used("snapshots")], [Some(1), Some(2), Some(1)]);
    assert_eq!(ask(one, &p, 70, "POST volumes", json!({ "volume": { "size": 1 } })).await.0, 413);
}

/// A node was killed when the volume was given and its snapshot was not, and the giver, who saw the transfer yet, deleted it: the snapshot
/// stayed with the giver, of a volume that was another's. And the key of such a transfer took the volume from the one that its new owner made.
#[tokio::test]
async fn what_a_killed_accept_left_is_given_when_the_transfer_is_deleted() {
    let pair = Pair::start();
    let [one, two] = &pair.offices;
    let (giver, p, q) = (caller("giver", false), caller("p", false), caller("q", false));
    let id = make(one, &giver, json!({ "size": 1 })).await;
    Box::pin(pair.settle()).await;
    let freeze = json!({ "snapshot": { "volume_id": id } });
    let (_, frozen) = ask(one, &giver, 70, "POST snapshots", freeze).await;
    let snapshot = format!("GET snapshots/{}", frozen["snapshot"]["id"].as_str().unwrap());
    Box::pin(pair.settle()).await;
    let said = || json!({ "transfer": { "volume_id": id } });
    let (_, made) = ask(one, &giver, 70, "POST volume-transfers", said()).await;
    let first = made["transfer"].clone();
    // As far as the killed node came.
    let given = |paper: &mut Paper| -> Result<(), PaperError> {
        paper.insert("project_id".to_owned(), json!("p"));
        paper.insert("user_id".to_owned(), json!("u-p"));
        paper.insert("status".to_owned(), json!("available"));
        Ok(())
    };
    assert!(one.papers.change("volumes", &id, given).await.unwrap().is_some());
    let (status, second) = ask(one, &p, 70, "POST volume-transfers", said()).await;
    assert_eq!(status, 202, "{second}");
    let second = &second["transfer"];
    let accept = |transfer: &Value| {
        let path = format!("POST volume-transfers/{}/accept", transfer["id"].as_str().unwrap());
        (path, json!({ "accept": { "auth_key": transfer["auth_key"] } }))
    };
    let (path, key) = accept(&first);
    assert_eq!(ask(two, &q, 70, &path, key).await.0, 404, "what it was for is over");
    let path = format!("DELETE volume-transfers/{}", first["id"].as_str().unwrap());
    assert_eq!(ask(one, &giver, 70, &path, Value::Null).await.0, 202);
    let seen = async |by: &Caller| ask(two, by, 70, &snapshot, Value::Null).await.0;
    assert_eq!((seen(&giver).await, seen(&p).await), (404, 200));
    let (_, volume) = ask(two, &p, 70, &format!("GET volumes/{id}"), Value::Null).await;
    assert_eq!(
        volume["volume"]["status"], "awaiting-transfer",
        "the other transfer is no business of the giver"
    );
    let (path, key) = accept(second);
    let (status, body) = ask(two, &q, 70, &path, key).await;
    assert_eq!(status, 202, "{body}");
    assert_eq!((seen(&p).await, seen(&q).await), (404, 200));
}

/// What a refused or broken-off request reserved would be missing for ever.
#[tokio::test]
async fn what_a_request_reserved_is_let_go_however_it_ends() {
    let pair = Pair::start();
    set(&pair, json!({ "volumes": 1 })).await;
    // Its caller goes away at some moment.
    for wait in [0, 1, 2, 5, 10] {
        let (by, said) = (caller("p", false), json!({ "volume": { "size": 1 } }));
        let asked = ask(&pair.offices[0], &by, 70, "POST volumes", said);
        drop(tokio::time::timeout(Duration::from_millis(wait), asked).await);
        let_go(&pair).await;
    }
    let made = pair.offices[1].papers.all("volumes").await.unwrap().len();
    assert!(made <= 1, "{made}");
    let more = at_once(&pair, "POST volumes", |_| json!({ "volume": { "size": 1 } })).await;
    assert_eq!(made + more, 1);
    let_go(&pair).await;
}

/// A node that was killed in between leaves its note; others wait for it, and after a time it counts no more.
#[tokio::test]
async fn what_a_killed_node_reserved_lapses() {
    for (ago, wanted) in [(0, 413), (600, 202)] {
        let pair = Pair::start();
        set(&pair, json!({ "volumes": 1 })).await;
        let need = Need { project: "p", kind: "", wants: &[("volumes", 1)] };
        leave(&pair.offices[0], need, Duration::from_secs(ago)).await;
        let said = json!({ "volume": { "size": 1 } });
        let (status, body) = ask(&pair.offices[1], &caller("p", false), 70, "POST volumes", said).await;
        assert_eq!(status, wanted, "{ago} s ago: {body}");
        assert_eq!(pair.offices[1].papers.all("volumes").await.unwrap().len(), usize::from(wanted == 202));
    }
}

/// Another request's note came and went between a count and its note: the notes looked as before, and its paper was not counted.
#[tokio::test]
async fn notes_that_came_and_went_are_noticed() {
    let pair = Pair::start();
    let need = Need { project: "p", kind: "", wants: &[("volumes", 1)] };
    aba(&pair.offices[0], &pair.offices[1], need).await;
}
