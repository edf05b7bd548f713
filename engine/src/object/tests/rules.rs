//! Rules that hold for every client: conditions, listings, counters, versions.

use std::sync::Arc;

use super::rig::{Rig, START, all, any, bytes, path};
use crate::clock::Timestamp;
use crate::disk::Class;
use crate::object::copies::tombstone;
use crate::object::{
    Condition, Deleted, Entry, Error, EtagMatch, ListedAs, Made, ObjectEdit, PutSpec, Spread, Store, hash_of,
};

#[test]
fn bodies_of_every_size_come_back_and_are_listed_and_counted() {
    let mut rig = Rig::new(1, 1);
    let mut total = 0;
    let sizes = [0, 1, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5 << 20, (7 << 20) + 12_345];
    for (n, size) in sizes.into_iter().enumerate() {
        let body = bytes(n as u64, size);
        let committed = rig.put(&format!("o{n}"), &body);
        assert_eq!(committed.size, size as u64);
        total += size as u64;
        assert_eq!(rig.get(&format!("o{n}")), Some(body), "{size}");
        let objects = n as u64 + 1;
        assert_eq!(rig.totals(), [objects, total, objects, total]);
        assert_eq!(rig.names().len(), n + 1);
    }
    let store = rig.store();
    let info = rig.run(store.object(&path("o2"))).unwrap().unwrap();
    assert_eq!(info.blake3, *blake3::hash(&bytes(2, 4096)).as_bytes());
    let rows = rig.run(store.list_objects("AUTH_a", "c", &all())).unwrap();
    let Entry::Row(row) = &rows[2] else { panic!("{rows:?}") };
    assert_eq!((row.name.as_str(), row.size, row.content_type.as_str()), ("o2", 4096, "text/plain"));
    assert_eq!((row.etag.clone(), row.timestamp), (hex::encode(info.md5), info.timestamp));
}

/// A crash came between the tombstone, on one disk, and the line, on another: the object was listed and counted, its container could not
/// be deleted, and DELETE said that there was nothing to delete.
#[test]
fn a_line_that_a_crash_in_a_delete_left_goes_with_the_next_delete() {
    let mut rig = Rig::new(2, 8);
    let names: Vec<String> = (0..10).map(|n| format!("o{n}")).collect();
    for name in &names {
        rig.put(name, &bytes(1, 100));
    }
    let elsewhere = rig.count(1, crate::index::Table::Objects);
    assert!((1..10).contains(&elsewhere));
    let store = rig.store();
    for name in &names {
        let (at, hash) = (store.clock().tick(), hash_of(&path(name)));
        let grave = tombstone(&path(name), hash, at);
        rig.run(store.inner.copies.commit(&hash, grave, None, Class::Delete)).unwrap();
        assert_eq!(rig.get(name), None);
    }
    assert_eq!(rig.names().len(), 10);
    for name in &names {
        assert_eq!(rig.delete(name), Deleted::Gone);
        assert_eq!(rig.delete(name), Deleted::Absent);
    }
    assert_eq!(rig.totals(), [0; 4]);
    assert_eq!(rig.run(store.delete_container("AUTH_a", "c")).unwrap(), Deleted::Gone);
}

#[test]
fn every_range_of_a_large_object_is_right() {
    let mut rig = Rig::new(1, 2);
    let body = bytes(1, (6 << 20) + 99);
    rig.put("o", &body);
    let store = rig.store();
    let reader = rig.run(store.open(&path("o"))).unwrap().unwrap();
    let mib = 1 << 20;
    let size = body.len();
    for (start, end) in
        [(0, 0), (0, 1), (mib - 1, mib + 1), (mib, 2 * mib), (5, size), (size - 1, size), (size, size)]
    {
        let mut range = reader.range(start as u64..end as u64);
        let mut out = Vec::new();
        while let Some(piece) = rig.run(range.next()) {
            let piece = piece.unwrap();
            assert!(!piece.is_empty() && piece.len() <= mib);
            out.extend_from_slice(&piece);
        }
        assert!(out == body[start..end], "{start}..{end}");
    }
}

#[test]
fn an_etag_that_differs_stores_nothing() {
    let mut rig = Rig::new(1, 3);
    for size in [100, 3 << 20] {
        let spec = PutSpec { expect_md5: Some([0; 16]), ..PutSpec::default() };
        let result = rig.try_put(&path("o"), &bytes(1, size), spec);
        assert!(matches!(result, Err(Error::EtagMismatch { .. })));
        for _ in 0..50 {
            rig.turn();
        }
        assert_eq!(rig.get("o"), None);
        assert_eq!(rig.totals(), [0; 4]);
        assert_eq!(rig.count(0, crate::index::Table::Chunks), 0, "chunks were given up");
    }
}

#[test]
fn conditions_are_judged_against_the_standing_version() {
    let mut rig = Rig::new(1, 4);
    let body = bytes(1, 10);
    let put = |rig: &mut Rig, if_match, if_none_match| {
        let spec = PutSpec { condition: Condition { if_match, if_none_match }, ..PutSpec::default() };
        rig.try_put(&path("o"), &body, spec)
    };
    let one = |etag: &str| Some(EtagMatch::OneOf(vec![etag.to_owned()]));
    let refused = |result| assert!(matches!(result, Err(Error::ConditionFailed)), "{result:?}");
    refused(put(&mut rig, any(), None));
    let etag = hex::encode(put(&mut rig, None, any()).unwrap().md5);
    refused(put(&mut rig, None, any()));
    refused(put(&mut rig, None, one(&etag)));
    refused(put(&mut rig, one("0"), None));
    put(&mut rig, one(&etag), None).unwrap();
    put(&mut rig, any(), one("0")).unwrap();
    let store = rig.store();
    let condition = Condition { if_match: one("0"), if_none_match: None };
    let deleted = rig.run(store.delete_object(&path("o"), &condition));
    assert!(matches!(deleted, Err(Error::ConditionFailed)));
    let condition = Condition { if_match: one(&etag), if_none_match: None };
    assert_eq!(rig.run(store.delete_object(&path("o"), &condition)).unwrap(), Deleted::Gone);
    assert_eq!(rig.delete("o"), Deleted::Absent);
}

#[test]
fn an_expired_object_counts_as_absent_for_conditions() {
    let mut rig = Rig::new(1, 5);
    let spec = PutSpec { delete_at: Some(START + 10), ..PutSpec::default() };
    rig.try_put(&path("o"), &bytes(1, 10), spec).unwrap();
    let condition = Condition { if_match: None, if_none_match: any() };
    let spec = PutSpec { condition, ..PutSpec::default() };
    assert!(matches!(rig.try_put(&path("o"), &bytes(2, 10), spec.clone()), Err(Error::ConditionFailed)));
    rig.advance(11);
    rig.try_put(&path("o"), &bytes(2, 10), spec).unwrap();
}

#[test]
fn a_timestamp_that_is_not_newer_is_superseded_also_by_a_tombstone() {
    let mut rig = Rig::new(1, 6);
    let now = rig.put("o", &bytes(1, 10)).timestamp;
    let at = |timestamp| PutSpec { timestamp: Some(timestamp), ..PutSpec::default() };
    for late in [Timestamp(now.0 - 1), now] {
        assert!(matches!(rig.try_put(&path("o"), &bytes(2, 9), at(late)), Err(Error::Superseded)));
    }
    rig.try_put(&path("o"), &bytes(2, 9), at(Timestamp(now.0 + 1_000_000))).unwrap();
    assert_eq!(rig.delete("o"), Deleted::Gone);
    let late = at(Timestamp(now.0 + 1_000_001));
    assert!(matches!(rig.try_put(&path("o"), &bytes(2, 9), late), Err(Error::Superseded)));
    let after = rig.put("o", &bytes(3, 9)).timestamp;
    assert!(after.0 > now.0 + 1_000_001, "the clock has seen the given time");
}

#[test]
fn a_post_keeps_the_data_and_changes_the_rest() {
    let mut rig = Rig::new(1, 7);
    for size in [4096, 3 << 20] {
        let body = bytes(1, size);
        let put = rig.put("o", &body).timestamp;
        let store = rig.store();
        let edit = |info: &crate::object::ObjectInfo| {
            assert_eq!(info.size, size as u64);
            let headers = [("x-object-meta-a".to_owned(), "b".to_owned())].into();
            let listed = ListedAs { size: Some(77), ..ListedAs::default() };
            Ok(ObjectEdit { content_type: "a/b".to_owned(), delete_at: Some(9), headers, listed })
        };
        let changed = rig.run(store.post_object(&path("o"), edit)).unwrap();
        let info = rig.run(store.object(&path("o"))).unwrap().unwrap();
        assert_eq!((info.timestamp, info.data_timestamp), (changed, put));
        assert_eq!((info.content_type.as_str(), info.delete_at, info.headers.len()), ("a/b", Some(9), 1));
        assert_eq!(rig.get("o"), Some(body));
        // What it shows is not what it takes.
        assert_eq!(rig.totals(), [1, size as u64, 1, size as u64]);
        let listed = rig.run(store.list_objects("AUTH_a", "c", &all()));
        assert!(matches!(&listed.unwrap()[..], [Entry::Row(row)] if row.size == 77));
    }
    let store = rig.store();
    let absent = rig.run(store.post_object(&path("none"), |_| Ok(ObjectEdit::default())));
    assert!(matches!(absent, Err(Error::NoObject)));
}

#[test]
fn containers_are_made_with_their_account_and_go_only_when_empty() {
    let mut rig = Rig::new(1, 8);
    let store = rig.store();
    let made = rig.run(store.put_container("AUTH_b", "x", 3, |c| {
        assert!(c.is_none());
        Ok([("k".to_owned(), "v".to_owned())].into())
    }));
    assert_eq!(made.unwrap(), Made::Created);
    let account = rig.run(store.account("AUTH_b")).unwrap().unwrap();
    assert_eq!((account.containers, account.objects, account.headers.len()), (1, 0, 0));
    let made = rig.run(store.put_container("AUTH_b", "x", 9, |c| Ok(c.unwrap().headers.clone())));
    assert_eq!(made.unwrap(), Made::Updated);
    let container = rig.run(store.container("AUTH_b", "x")).unwrap().unwrap();
    assert_eq!((container.policy, container.headers.len()), (3, 1));
    assert!(container.changed > container.created);

    rig.put("o", &bytes(1, 5));
    assert_eq!(rig.run(store.delete_container("AUTH_a", "c")).unwrap(), Deleted::NotEmpty);
    rig.delete("o");
    assert_eq!(rig.run(store.delete_container("AUTH_a", "c")).unwrap(), Deleted::Gone);
    assert_eq!(rig.run(store.delete_container("AUTH_a", "c")).unwrap(), Deleted::Absent);
    let late = rig.try_put(&path("o"), &bytes(1, 5), PutSpec::default());
    assert!(matches!(late, Err(Error::NoContainer)));
    assert!(matches!(rig.run(store.list_objects("AUTH_a", "c", &all())), Err(Error::NoContainer)));
    assert_eq!(rig.run(store.list_accounts("", 10)).unwrap(), ["AUTH_a", "AUTH_b"]);
    assert_eq!(rig.run(store.list_accounts("AUTH_a", 10)).unwrap(), ["AUTH_b"]);
    let refused = rig.run(store.post_container("AUTH_b", "x", |_| Err(Error::Refused("no".to_owned()))));
    assert!(matches!(refused, Err(Error::Refused(_))));
}

#[test]
fn a_container_made_anew_does_not_show_what_the_old_one_held() {
    let mut rig = Rig::new(1, 9);
    let store = rig.store();
    rig.put("o", &bytes(1, 5));
    rig.delete("o");
    rig.run(store.delete_container("AUTH_a", "c")).unwrap();
    rig.run(store.put_container("AUTH_a", "c", 0, |_| Ok(Default::default()))).unwrap();
    assert!(rig.names().is_empty());
    rig.put("o", &bytes(2, 6));
    assert_eq!(rig.totals(), [1, 6, 1, 6]);
}

#[test]
fn names_and_headers_that_no_record_holds_are_refused() {
    let mut rig = Rig::new(1, 10);
    let long = "x".repeat(5000);
    let result = rig.try_put(&path(&long), &bytes(1, 5), PutSpec::default());
    assert!(matches!(result, Err(Error::Refused(_))));
    let headers = [("x".to_owned(), "y".repeat(70_000))].into();
    let result = rig.try_put(&path("o"), &bytes(1, 2 << 20), PutSpec { headers, ..PutSpec::default() });
    assert!(matches!(result, Err(Error::Refused(_))));
    assert_eq!(rig.totals(), [0; 4]);
}

#[test]
fn several_disks_share_the_objects_and_one_keeps_the_rows() {
    let mut rig = Rig::new(3, 11);
    for n in 0..30 {
        rig.put(&format!("o{n:02}"), &bytes(n, 2000));
    }
    rig.put("large", &bytes(99, 3 << 20));
    assert_eq!(rig.names().len(), 31);
    assert_eq!(rig.totals()[0], 31);
    let held: Vec<usize> = (0..3).map(|n| rig.count(n, crate::index::Table::Objects)).collect();
    assert!(held.iter().all(|n| *n > 3) && held.iter().sum::<usize>() == 31, "{held:?}");
    assert_eq!([1, 2].map(|n| rig.count(n, crate::index::Table::Rows)), [0, 0]);
    for n in 0..30 {
        assert_eq!(rig.get(&format!("o{n:02}")), Some(bytes(n, 2000)));
        assert_eq!(rig.delete(&format!("o{n:02}")), Deleted::Gone);
    }
    assert_eq!(rig.names(), ["large"]);
    assert_eq!(rig.get("large"), Some(bytes(99, 3 << 20)));
}

#[test]
fn without_disks_there_is_no_store() {
    let clock = crate::clock::Clock::new(Box::new(|| 1));
    let result = Store::start(Vec::new(), Box::new(Spread::over(Vec::new())), clock, Default::default());
    assert!(matches!(result, Err(Error::Unavailable { .. })));
    let _: Option<Arc<Store>> = None;
}
