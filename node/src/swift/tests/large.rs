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

fn put_manifest(name: &str) -> String {
    format!("/v1/AUTH_a/s/{name}?multipart-manifest=put")
}

/// One GET could take all of a node's memory: the whole of a nested object was laid out first, with what its manifests have inline,
/// whatever part of it was asked for. And all of it had to be there.
#[tokio::test]
async fn a_range_of_a_nested_object_opens_only_the_manifests_that_it_needs() {
    let rig = Rig::start();
    segments(&rig).await;
    for name in ["low", "high"] {
        let put = rig.ask("PUT", &put_manifest(name), &[], r#"[{"path": "s/1"}, {"path": "s/2"}]"#).await;
        assert_eq!(put.status, 201);
    }
    let both = r#"[{"path": "s/low"}, {"path": "s/high"}, {"path": "s/3"}]"#;
    assert_eq!(rig.ask("PUT", &put_manifest("both"), &[], both).await.status, 201);
    assert_eq!(rig.ask("GET", "/v1/AUTH_a/s/both", &[], "").await.body, "aaaabbbbaaaabbbbcccc");
    assert_eq!(rig.ask("DELETE", "/v1/AUTH_a/s/high", &[], "").await.status, 204);
    for (range, wanted) in [("bytes=3-6", "abbb"), ("bytes=17-", "ccc"), ("bytes=0-7", "aaaabbbb")] {
        let get = rig.ask("GET", "/v1/AUTH_a/s/both", &[("range", range)], "").await;
        assert_eq!((get.status, &get.body[..]), (206, wanted.as_bytes()), "{range}");
    }
    let gone = rig.ask("GET", "/v1/AUTH_a/s/both", &[("range", "bytes=9-")], "").await;
    assert_eq!(gone.status, 409, "what comes first is known before the answer begins");
    let part = rig.ask("GET", "/v1/AUTH_a/s/both?part-number=1", &[], "").await;
    assert_eq!((part.status, &part.body[..]), (206, &b"aaaabbbb"[..]));
    rig.stop().await;
}

#[tokio::test]
async fn an_object_of_more_pieces_than_wait_at_a_time_is_read() {
    let rig = Rig::start();
    segments(&rig).await;
    let times =
        |path: &str, count: usize| format!("[{}]", vec![format!(r#"{{"path": "{path}"}}"#); count].join(","));
    for (name, of, count) in [("thousand", "s/1", 1000), ("many", "s/thousand", 101)] {
        assert_eq!(rig.ask("PUT", &put_manifest(name), &[], &times(of, count)).await.status, 201);
    }
    let get = rig.ask("GET", "/v1/AUTH_a/s/many", &[("range", "bytes=399998-400001,-1")], "").await;
    assert_eq!(get.status, 206);
    let get = rig.ask("GET", "/v1/AUTH_a/s/many", &[("range", "bytes=399999-400000")], "").await;
    assert_eq!((get.status, &get.body[..]), (206, &b"aa"[..]));
    rig.stop().await;
}

#[tokio::test]
async fn what_manifests_have_inline_waits_in_bounds() {
    use base64::Engine as _;
    let rig = Rig::start();
    segments(&rig).await;
    let data = base64::engine::general_purpose::STANDARD.encode(vec![b'x'; 6_000_000]);
    let mut inner = "s/1".to_owned();
    // Each level waits for the one in it, and they come to 6, 12, 18 MB.
    for (level, wanted) in [(1, 200), (2, 200), (3, 409)] {
        let name = format!("level{level}");
        let body = format!(r#"[{{"path": "{inner}"}}, {{"data": "{data}"}}]"#);
        assert_eq!(rig.ask("PUT", &put_manifest(&name), &[], &body).await.status, 201);
        let get = rig.ask("GET", &format!("/v1/AUTH_a/s/{name}"), &[], "").await;
        assert_eq!(get.status, wanted, "level {level}");
        if wanted == 200 {
            assert_eq!(get.body.len(), 4 + level * 6_000_000);
        }
        inner = format!("s/{name}");
    }
    // A range of it that needs less is read, also of the same many times over.
    let get = rig.ask("GET", "/v1/AUTH_a/s/level3", &[("range", "bytes=6000003-6000005")], "").await;
    assert_eq!((get.status, &get.body[..]), (206, &b"xxx"[..]));
    let often = format!("[{}]", vec![r#"{"path": "s/level1", "range": "0-4"}"#; 500].join(","));
    assert_eq!(rig.ask("PUT", &put_manifest("often"), &[], &often).await.status, 201);
    assert_eq!(rig.ask("GET", "/v1/AUTH_a/s/often", &[], "").await.body, "aaaax".repeat(500));
    rig.stop().await;
}

/// Bytes used had the manifest's total besides the segments', modulo 2^64: quotas were full at half, and nested manifests emptied them.
#[tokio::test]
async fn a_manifest_is_listed_with_its_total_and_counted_with_its_own_bytes() {
    let rig = Rig::start();
    segments(&rig).await;
    let stored = rig.ask("GET", "/v1/AUTH_a/s/whole?multipart-manifest=get", &[], "").await.body.len();
    let list = rig.ask("GET", "/v1/AUTH_a/s?format=json", &[], "").await;
    let rows: serde_json::Value = serde_json::from_slice(&list.body).unwrap();
    let sizes: Vec<u64> = rows.as_array().unwrap().iter().map(|row| row["bytes"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [4, 4, 4, 12]);
    let used = (12 + stored).to_string();
    assert_eq!(list.header("x-container-bytes-used"), used);
    let account = rig.ask("HEAD", "/v1/AUTH_a", &[], "").await;
    assert_eq!(account.header("x-account-bytes-used"), used);
    // A POST leaves both as they are.
    let post = rig.ask("POST", "/v1/AUTH_a/s/whole", &[("x-object-meta-a", "1")], "").await;
    assert_eq!(post.status, 202);
    let list = rig.ask("GET", "/v1/AUTH_a/s?format=json&prefix=whole", &[], "").await;
    let rows: serde_json::Value = serde_json::from_slice(&list.body).unwrap();
    assert_eq!((rows[0]["bytes"].as_u64(), list.header("x-container-bytes-used")), (Some(12), used.as_str()));
    assert_eq!(rig.ask("DELETE", "/v1/AUTH_a/s/whole", &[], "").await.status, 204);
    assert_eq!(rig.ask("HEAD", "/v1/AUTH_a/s", &[], "").await.header("x-container-bytes-used"), "12");
    rig.stop().await;
}

#[tokio::test]
async fn a_manifest_that_stands_for_more_than_can_be_added_up_is_refused() {
    let rig = Rig::start();
    rig.make("/v1/AUTH_a/s").await;
    assert_eq!(rig.ask("PUT", "/v1/AUTH_a/s/0", &[], &"x".repeat(1 << 20)).await.status, 201);
    let times =
        |path: &str, count: usize| format!("[{}]", vec![format!(r#"{{"path": "{path}"}}"#); count].join(","));
    for level in 1..=4 {
        let body = times(&format!("s/{}", level - 1), 1000);
        let put = rig.ask("PUT", &put_manifest(&level.to_string()), &[], &body).await;
        assert_eq!(put.status, 201, "{level}");
    }
    // 2^20 * 1000^4 bytes are below the bound, two of them above.
    for count in [2, 18, 1000] {
        let put = rig.ask("PUT", &put_manifest("5"), &[], &times("s/4", count)).await;
        assert_eq!(put.status, 400, "{count}");
    }
    // A dynamic one that comes to more is refused when it is read.
    for i in 0..20 {
        let put = rig.ask("PUT", &put_manifest(&format!("p/{i}")), &[], &times("s/4", 1)).await;
        assert_eq!(put.status, 201);
    }
    assert_eq!(rig.ask("PUT", "/v1/AUTH_a/s/d", &[("x-object-manifest", "s/p/")], "").await.status, 201);
    assert_eq!(rig.ask("HEAD", "/v1/AUTH_a/s/d", &[], "").await.status, 409);
    assert_eq!(rig.ask("HEAD", "/v1/AUTH_a/s/4", &[], "").await.status, 200);
    rig.stop().await;
}

#[tokio::test]
async fn expired_segments_are_opened_with_what_they_are_segments_of() {
    let rig = Rig::start();
    rig.make("/v1/AUTH_a/s").await;
    let at = (crate::swift::timestamp::now() + 3).to_string();
    let soon = [("x-delete-at", at.as_str())];
    for name in ["p/1", "p/2"] {
        assert_eq!(rig.ask("PUT", &format!("/v1/AUTH_a/s/{name}"), &soon, name).await.status, 201);
    }
    let manifest = r#"[{"path": "s/p/1"}, {"path": "s/p/2"}]"#;
    assert_eq!(rig.ask("PUT", &put_manifest("inner"), &soon, manifest).await.status, 201);
    let outer = r#"[{"path": "s/inner"}, {"path": "s/p/1"}]"#;
    assert_eq!(rig.ask("PUT", &put_manifest("outer"), &[], outer).await.status, 201);
    rig.ask("PUT", "/v1/AUTH_a/s/dynamic", &[("x-object-manifest", "s/p/")], "").await;
    tokio::time::sleep(std::time::Duration::from_millis(4100)).await;
    let open = [("x-open-expired", "true")];
    for (name, body) in [("inner", "p/1p/2"), ("outer", "p/1p/2p/1"), ("dynamic", "p/1p/2")] {
        let uri = format!("/v1/AUTH_a/s/{name}");
        let closed = rig.ask("GET", &uri, &[], "").await.status;
        assert_eq!(closed, if name == "inner" { 404 } else { 409 }, "{name}");
        let get = rig.ask("GET", &uri, &open, "").await;
        assert_eq!((get.status, &get.body[..]), (200, body.as_bytes()), "{name}");
    }
    rig.stop().await;
}
