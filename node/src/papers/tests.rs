//! Tests of cabinets over a store on a file.

use serde_json::json;

use super::*;
use crate::swift::testing::Rig;

fn paper(value: &Value) -> Paper {
    value.as_object().unwrap().clone()
}

#[tokio::test]
async fn papers_come_back_also_to_another_cabinet() {
    let rig = Rig::start();
    let cabinet = Cabinet::new(rig.store(), ".test", true);
    assert!(cabinet.all("d").await.unwrap().is_empty());
    cabinet.add("d", "one", paper(&json!({ "n": 1 }))).await.unwrap();
    assert!(matches!(cabinet.add("d", "one", Paper::new()).await, Err(PaperError::Taken)));
    let edit = |paper: &mut Paper| -> Result<(), PaperError> {
        paper.insert("n".to_owned(), json!(2));
        Ok(())
    };
    assert_eq!(cabinet.change("d", "one", edit).await.unwrap().unwrap()["n"], 2);
    assert!(cabinet.change("d", "other", edit).await.unwrap().is_none());
    let again = Cabinet::new(rig.store(), ".test", true);
    assert_eq!(again.get("d", "one").await.unwrap().unwrap()["n"], 2);
    assert!(again.remove("d", "one").await.unwrap() && !again.remove("d", "one").await.unwrap());
    assert!(Cabinet::new(rig.store(), ".test", true).all("d").await.unwrap().is_empty());
    rig.stop().await;
}

#[tokio::test]
async fn two_nodes_that_change_one_paper_lose_neither_change() {
    let rig = Rig::start();
    let (a, b) = (Cabinet::new(rig.store(), ".test", false), Cabinet::new(rig.store(), ".test", false));
    a.add("d", "one", paper(&json!({}))).await.unwrap();
    for (turn, cabinet) in [&a, &b, &a, &b].into_iter().enumerate() {
        let edit = |paper: &mut Paper| -> Result<(), PaperError> {
            paper.insert(turn.to_string(), json!(true));
            Ok(())
        };
        cabinet.change("d", "one", edit).await.unwrap();
    }
    assert_eq!(a.get("d", "one").await.unwrap().unwrap().len(), 4);
    let many = async |cabinet: &Cabinet, name: &str| {
        for n in 0..10 {
            let edit = |paper: &mut Paper| -> Result<(), PaperError> {
                paper.insert(format!("{name}{n}"), json!(true));
                Ok(())
            };
            cabinet.change("d", "one", edit).await.unwrap();
        }
    };
    tokio::join!(many(&a, "a"), many(&b, "b"));
    assert_eq!(b.get("d", "one").await.unwrap().unwrap().len(), 24);
    assert!(b.remove("d", "one").await.unwrap());
    assert!(a.get("d", "one").await.unwrap().is_none() && a.all("d").await.unwrap().is_empty());
    rig.stop().await;
}

#[tokio::test]
async fn a_change_whose_caller_goes_away_is_seen_all_the_same() {
    let rig = Rig::start();
    let (alone, other) =
        (Cabinet::new(rig.store(), ".test", true), Cabinet::new(rig.store(), ".test", false));
    for turn in 0..40_u64 {
        let (changed, removed) = (format!("changed{turn}"), format!("removed{turn}"));
        for name in [&changed, &removed] {
            alone.add("d", name, paper(&json!({ "n": 1 }))).await.unwrap();
        }
        let edit = |paper: &mut Paper| -> Result<(), PaperError> {
            paper.insert("n".to_owned(), json!(2));
            Ok(())
        };
        let patience = std::time::Duration::from_micros(turn * 50);
        let _left = tokio::time::timeout(patience, alone.change("d", &changed, edit)).await;
        let _left = tokio::time::timeout(patience, alone.remove("d", &removed)).await;
        for name in [&changed, &removed] {
            let held = alone.get("d", name).await.unwrap();
            assert_eq!(held, other.get("d", name).await.unwrap(), "{name}");
        }
    }
    rig.stop().await;
}

/// Where others write too, a drawer may have a great many papers; one of them costs one look.
#[tokio::test]
async fn one_paper_is_looked_at_without_the_others() {
    let rig = Rig::start();
    let (a, b) = (Cabinet::new(rig.store(), ".test", false), Cabinet::new(rig.store(), ".test", false));
    let edit = |paper: &mut Paper| -> Result<(), PaperError> {
        paper.insert("n".to_owned(), json!(2));
        Ok(())
    };
    assert!(b.change("d", "one", edit).await.unwrap().is_none(), "before there is a drawer");
    assert!(b.get("d", "one").await.unwrap().is_none() && !b.remove("d", "one").await.unwrap());
    for name in ["one", "two", "three"] {
        a.add("d", name, paper(&json!({ "n": 1 }))).await.unwrap();
    }
    assert!(matches!(b.add("d", "one", Paper::new()).await, Err(PaperError::Taken)));
    assert_eq!(b.change("d", "one", edit).await.unwrap().unwrap()["n"], 2);
    assert!(b.remove("d", "two").await.unwrap());
    let held = b.drawer("d").await;
    assert_eq!(held.lock().await.papers.keys().collect::<Vec<_>>(), ["one"]);
    assert_eq!(a.all("d").await.unwrap().len(), 2);
    rig.stop().await;
}

/// The account has no reseller prefix, so that not even a reseller admin reaches it.
#[tokio::test]
async fn no_object_api_reaches_a_cabinet() {
    let rig = Rig::start();
    let cabinet = Cabinet::new(rig.store(), ".test", true);
    cabinet.add("d", "one", paper(&json!({ "secret": true }))).await.unwrap();
    let reseller = crate::swift::Caller { reseller_admin: true, ..crate::swift::Caller::default() };
    for path in ["/v1/.test", "/v1/.test/d", "/v1/.test/d/one"] {
        assert_eq!(
            rig.ask_as(Some(reseller.clone()), "GET", path, &[], Bytes::new()).await.status,
            403,
            "{path}"
        );
    }
    rig.stop().await;
}
