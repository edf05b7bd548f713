//! Large objects, static and dynamic, and copies of them.

use super::rig::Rig;

/// Three segments and a manifest of them, with data between.
async fn segments(rig: &Rig) {
    rig.make("/v1/AUTH_a/s").await;
    for (name, body) in [("1", "aaaa"), ("2", "bbbb"), ("3", "cccc")] {
        assert_eq!(rig.ask("PUT", &format!("/v1/AUTH_a/s/{name}"), &[], body).await.status, 201);
    }
    let manifest =
        r#"[{"path": "s/1"}, {"data": "LS0="}, {"path": "/s/2", "range": "1-2"}, {"path": "s/3"}]"#;
    let put = rig.ask("PUT", "/v1/AUTH_a/s/whole?multipart-manifest=put", &[], manifest).await;
    assert_eq!(put.status, 201, "{put:?}");
}

#[tokio::test]
async fn a_static_large_object_is_its_segments() {
    let rig = Rig::start();
    segments(&rig).await;
    let get = rig.ask("GET", "/v1/AUTH_a/s/whole", &[], "").await;
    assert_eq!((get.status, &get.body[..]), (200, &b"aaaa--bbcccc"[..]));
    assert_eq!(get.header("x-static-large-object"), "True");
    let etag = get.header("etag").to_owned();
    assert!(etag.starts_with('"') && etag.len() == 34, "{etag}");
    let get = rig.ask("GET", "/v1/AUTH_a/s/whole", &[("range", "bytes=3-8")], "").await;
    assert_eq!((get.status, &get.body[..]), (206, &b"a--bbc"[..]));
    let get = rig.ask("GET", "/v1/AUTH_a/s/whole?part-number=3", &[], "").await;
    assert_eq!((get.status, &get.body[..], get.header("content-range")), (206, &b"bb"[..], "bytes 6-7/12"));
    assert_eq!(rig.ask("GET", "/v1/AUTH_a/s/whole", &[("if-none-match", &etag)], "").await.status, 304);
    let head = rig.ask("HEAD", "/v1/AUTH_a/s/whole", &[], "").await;
    assert_eq!((head.header("content-length"), head.header("etag")), ("12", etag.as_str()));

    let nested = r#"[{"path": "s/whole", "range": "2-7"}, {"path": "s/whole"}]"#;
    assert_eq!(rig.ask("PUT", "/v1/AUTH_a/s/nested?multipart-manifest=put", &[], nested).await.status, 201);
    assert_eq!(rig.ask("GET", "/v1/AUTH_a/s/nested", &[], "").await.body, "aa--bbaaaa--bbcccc");

    let list = rig.ask("GET", "/v1/AUTH_a/s?format=json&prefix=whole", &[], "").await;
    let rows: serde_json::Value = serde_json::from_slice(&list.body).unwrap();
    assert_eq!((&rows[0]["bytes"], &rows[0]["slo_etag"]), (&12.into(), &etag.into()));
    rig.stop().await;
}

#[tokio::test]
async fn a_changed_segment_is_noticed_and_never_sent() {
    let rig = Rig::start();
    segments(&rig).await;
    assert_eq!(rig.ask("PUT", "/v1/AUTH_a/s/1", &[], "AAAA").await.status, 201);
    assert_eq!(rig.ask("GET", "/v1/AUTH_a/s/whole", &[], "").await.status, 409);
    let later = rig.ask("GET", "/v1/AUTH_a/s/whole", &[("range", "bytes=4-")], "").await;
    assert_eq!((later.status, &later.body[..]), (206, &b"--bbcccc"[..]));
    let missing = r#"[{"path": "s/none"}, {"path": "s/1", "etag": "x"}]"#;
    let put = rig.ask("PUT", "/v1/AUTH_a/s/bad?multipart-manifest=put", &[], missing).await;
    assert_eq!(put.status, 400);
    assert_eq!(put.body, "Errors:\ns/none, 404 Not Found\ns/1, Etag Mismatch\n");
    rig.stop().await;
}

#[tokio::test]
async fn copies_are_of_the_whole_or_of_the_manifest() {
    let rig = Rig::start();
    segments(&rig).await;
    let whole = [("destination", "s/flat"), ("x-object-meta-new", "1")];
    let copy = rig.ask("COPY", "/v1/AUTH_a/s/whole", &whole, "").await;
    assert_eq!((copy.status, copy.header("x-copied-from")), (201, "s/whole"));
    let flat = rig.ask("GET", "/v1/AUTH_a/s/flat?multipart-manifest=get", &[], "").await;
    assert_eq!((&flat.body[..], flat.header("x-object-meta-new")), (&b"aaaa--bbcccc"[..], "1"));
    assert!(!flat.headers.contains_key("x-static-large-object"));
    let from = [("x-copy-from", "/s/whole")];
    let copy = rig.ask("PUT", "/v1/AUTH_a/s/again?multipart-manifest=get", &from, "").await;
    assert_eq!(copy.status, 201, "{copy:?}");
    let again = rig.ask("GET", "/v1/AUTH_a/s/again", &[], "").await;
    assert_eq!((&again.body[..], again.header("x-static-large-object")), (&b"aaaa--bbcccc"[..], "True"));

    let gone = rig.ask("DELETE", "/v1/AUTH_a/s/whole?multipart-manifest=delete", &[], "").await;
    assert!(gone.body.starts_with(b"Number Deleted: 4\n"), "{gone:?}");
    assert_eq!(rig.ask("GET", "/v1/AUTH_a/s", &[], "").await.body, "again\nflat\n");
    rig.stop().await;
}

#[tokio::test]
async fn a_dynamic_large_object_is_what_its_prefix_lists() {
    let rig = Rig::start();
    rig.make("/v1/AUTH_a/s").await;
    for (name, body) in [("p/2", "two"), ("p/1", "one"), ("q", "other")] {
        rig.ask("PUT", &format!("/v1/AUTH_a/s/{name}"), &[], body).await;
    }
    rig.ask("PUT", "/v1/AUTH_a/s/whole", &[("x-object-manifest", "s/p%2F")], "").await;
    assert_eq!(rig.ask("GET", "/v1/AUTH_a/s/whole", &[], "").await.body, "onetwo");
    let get = rig.ask("GET", "/v1/AUTH_a/s/whole", &[("range", "bytes=2-3")], "").await;
    assert_eq!((get.status, &get.body[..]), (206, &b"et"[..]));
    assert_eq!(rig.ask("HEAD", "/v1/AUTH_a/s/whole", &[], "").await.header("content-length"), "6");
    rig.ask("PUT", "/v1/AUTH_a/s/p/3", &[], "three").await;
    assert_eq!(rig.ask("GET", "/v1/AUTH_a/s/whole", &[], "").await.body, "onetwothree");
    let own = rig.ask("GET", "/v1/AUTH_a/s/whole?multipart-manifest=get", &[], "").await;
    assert_eq!(own.body, "");
    rig.stop().await;
}
