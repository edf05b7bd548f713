//! The API over a real store on a real file: what requests do, one after the other.

mod large;
pub(crate) mod rig;
mod rights;

use bytes::Bytes;
use rig::Rig;

use super::timestamp;

#[tokio::test]
async fn an_object_is_stored_listed_read_and_removed() {
    let rig = Rig::start();
    rig.make("/v1/AUTH_a/c").await;
    let put =
        rig.ask("PUT", "/v1/AUTH_a/c/d/o.txt", &[("x-object-meta-colour", "r\u{f6}t")], "hello world").await;
    assert_eq!((put.status, put.header("etag")), (201, "5eb63bbbe01eeed093cb22bb8f5acdc3"));
    let get = rig.ask("GET", "/v1/AUTH_a/c/d/o.txt", &[], "").await;
    assert_eq!((get.status, &get.body[..]), (200, &b"hello world"[..]));
    assert_eq!(get.header("content-type"), "text/plain");
    assert_eq!(get.headers["x-object-meta-colour"].as_bytes(), "r\u{f6}t".as_bytes());
    assert_eq!(get.header("last-modified"), put.header("last-modified"));
    assert_eq!(get.header("x-trans-id"), "tx1");
    let head = rig.ask("HEAD", "/v1/AUTH_a/c/d/o.txt", &[], "").await;
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, "11", 0));

    let list = rig.ask("GET", "/v1/AUTH_a/c?format=json", &[], "").await;
    let rows: serde_json::Value = serde_json::from_slice(&list.body).unwrap();
    assert_eq!(rows[0]["name"], "d/o.txt");
    assert_eq!(rows[0]["hash"], "5eb63bbbe01eeed093cb22bb8f5acdc3");
    assert_eq!(list.header("x-container-object-count"), "1");
    assert_eq!(list.header("x-container-bytes-used"), "11");
    let list = rig.ask("GET", "/v1/AUTH_a/c?delimiter=/", &[], "").await;
    assert_eq!(list.body, "d/\n");
    assert_eq!(rig.ask("DELETE", "/v1/AUTH_a/c", &[], "").await.status, 409);

    assert_eq!(rig.ask("DELETE", "/v1/AUTH_a/c/d/o.txt", &[], "").await.status, 204);
    assert_eq!(rig.ask("DELETE", "/v1/AUTH_a/c/d/o.txt", &[], "").await.status, 404);
    assert_eq!(rig.ask("GET", "/v1/AUTH_a/c", &[], "").await.status, 204);
    assert_eq!(rig.ask("DELETE", "/v1/AUTH_a/c", &[], "").await.status, 204);
    assert_eq!(rig.ask("GET", "/v1/AUTH_a/c", &[], "").await.status, 404);
    rig.stop().await;
}

#[tokio::test]
async fn a_container_is_strict_until_it_is_made_eventual_and_then_stays_so() {
    let rig = Rig::start();
    rig.make("/v1/AUTH_a/c").await;
    assert_eq!(rig.ask("HEAD", "/v1/AUTH_a/c", &[], "").await.header("x-index-policy"), "strict");
    for wrong in ["sometimes", "", "Eventual"] {
        for method in ["PUT", "POST"] {
            let answer = rig.ask(method, "/v1/AUTH_a/c", &[("x-index-policy", wrong)], "").await;
            assert_eq!(answer.status, 400, "{method} {wrong:?}");
        }
    }
    let (strict, eventual) = ([("x-index-policy", "strict")], [("x-index-policy", "eventual")]);
    assert_eq!(rig.ask("POST", "/v1/AUTH_a/c", &strict, "").await.status, 204);
    assert_eq!(rig.ask("POST", "/v1/AUTH_a/c", &eventual, "").await.status, 204);
    for (method, wanted) in [("PUT", 202), ("POST", 204)] {
        assert_eq!(rig.ask(method, "/v1/AUTH_a/c", &strict, "").await.status, 409);
        assert_eq!(rig.ask(method, "/v1/AUTH_a/c", &eventual, "").await.status, wanted);
        assert_eq!(rig.ask(method, "/v1/AUTH_a/c", &[], "").await.status, wanted);
        assert_eq!(rig.ask("GET", "/v1/AUTH_a/c", &[], "").await.header("x-index-policy"), "eventual");
    }
    assert_eq!(rig.ask("PUT", "/v1/AUTH_a/d", &eventual, "").await.status, 201);
    assert_eq!(rig.ask("HEAD", "/v1/AUTH_a/d", &[], "").await.header("x-index-policy"), "eventual");
    assert_eq!(rig.ask("PUT", "/v1/AUTH_a/d/o", &[], "x").await.status, 201);
    assert_eq!(
        rig.ask("GET", "/v1/AUTH_a/d?format=json", &[], "").await.header("x-container-object-count"),
        "1"
    );
    rig.stop().await;
}

#[tokio::test]
async fn ranges_and_conditions_are_those_of_the_stored_object() {
    let rig = Rig::start();
    rig.make("/v1/AUTH_a/c").await;
    let body: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let put = rig.ask_bytes("PUT", "/v1/AUTH_a/c/o", &[], Bytes::from(body.clone())).await;
    let etag = put.header("etag").to_owned();
    let get = rig.ask("GET", "/v1/AUTH_a/c/o", &[("range", "bytes=999999-2000000")], "").await;
    assert_eq!(get.status, 206);
    assert_eq!(get.header("content-range"), "bytes 999999-2000000/3000000");
    assert!(get.body == body[999_999..=2_000_000]);
    assert!(rig.ask("GET", "/v1/AUTH_a/c/o", &[], "").await.body == body);

    let get = rig.ask("GET", "/v1/AUTH_a/c/o", &[("range", "bytes=0-1,-2")], "").await;
    let boundary = get.header("content-type").split_once("boundary=").unwrap().1;
    let part = |range: &str, bytes: &[u8]| {
        let head = format!(
            "--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {range}/3000000\r\n\r\n"
        );
        [head.as_bytes(), bytes, b"\r\n"].concat()
    };
    let last = &body[2_999_998..];
    let expected =
        [part("0-1", &body[..2]), part("2999998-2999999", last), format!("--{boundary}--").into_bytes()]
            .concat();
    assert_eq!(get.body, expected);
    assert_eq!(get.header("content-length"), expected.len().to_string());

    let get = rig.ask("GET", "/v1/AUTH_a/c/o", &[("range", "bytes=3000000-")], "").await;
    assert_eq!((get.status, get.header("content-range")), (416, "bytes */3000000"));
    let get = rig.ask("GET", "/v1/AUTH_a/c/o", &[("if-none-match", &etag)], "").await;
    assert_eq!((get.status, get.body.len(), get.header("etag")), (304, 0, etag.as_str()));
    assert_eq!(rig.ask("GET", "/v1/AUTH_a/c/o", &[("if-match", "x")], "").await.status, 412);
    let put = rig.ask("PUT", "/v1/AUTH_a/c/o", &[("if-none-match", "*")], "new").await;
    assert_eq!(put.status, 412);
    rig.stop().await;
}

#[tokio::test]
async fn a_body_that_breaks_off_or_lies_about_its_etag_leaves_nothing() {
    let rig = Rig::start();
    rig.make("/v1/AUTH_a/c").await;
    assert_eq!(rig.break_off("/v1/AUTH_a/c/o", 2_000_000).await, 499);
    let wrong = [("etag", "00000000000000000000000000000000")];
    assert_eq!(rig.ask("PUT", "/v1/AUTH_a/c/o", &wrong, "x").await.status, 422);
    assert_eq!(rig.ask("GET", "/v1/AUTH_a/c/o", &[], "").await.status, 404);
    assert_eq!(rig.ask("GET", "/v1/AUTH_a/c", &[], "").await.status, 204);
    assert_eq!(rig.ask("PUT", "/v1/AUTH_a/none/o", &[], "x").await.status, 404);
    rig.stop().await;
}

#[tokio::test]
async fn metadata_limits_hold_for_what_several_requests_come_to() {
    let rig = Rig::start();
    rig.make("/v1/AUTH_a/c").await;
    let value = "v".repeat(250);
    for i in 0..16 {
        let name = format!("x-container-meta-{i:04}");
        assert_eq!(rig.ask("POST", "/v1/AUTH_a/c", &[(&name, &value)], "").await.status, 204);
    }
    let one_more = rig.ask("POST", "/v1/AUTH_a/c", &[("x-container-meta-more", &value)], "").await;
    assert_eq!((one_more.status, &one_more.body[..]), (400, &b"Total metadata too large; max 4096"[..]));
    assert_eq!(rig.ask("HEAD", "/v1/AUTH_a/c", &[], "").await.headers.get("x-container-meta-more"), None);
    let swap = [("x-container-meta-0000", ""), ("x-container-meta-more", value.as_str())];
    assert_eq!(rig.ask("POST", "/v1/AUTH_a/c", &swap, "").await.status, 204);
    let head = rig.ask("HEAD", "/v1/AUTH_a/c", &[], "").await;
    assert!(head.headers.contains_key("x-container-meta-more"));
    assert!(!head.headers.contains_key("x-container-meta-0000"));
    rig.stop().await;
}

#[tokio::test]
async fn a_post_replaces_headers_and_an_expired_object_is_gone() {
    let rig = Rig::start();
    rig.make("/v1/AUTH_a/c").await;
    rig.ask("PUT", "/v1/AUTH_a/c/o", &[("x-object-meta-a", "1"), ("content-disposition", "inline")], "x")
        .await;
    let post =
        rig.ask("POST", "/v1/AUTH_a/c/o", &[("x-object-meta-b", "2"), ("x-delete-after", "1")], "").await;
    assert_eq!(post.status, 202);
    let head = rig.ask("HEAD", "/v1/AUTH_a/c/o", &[], "").await;
    assert_eq!(head.header("x-object-meta-b"), "2");
    assert!(!head.headers.contains_key("x-object-meta-a"));
    assert!(!head.headers.contains_key("content-disposition"));
    assert!(head.headers.contains_key("x-delete-at"));
    tokio::time::sleep(std::time::Duration::from_millis(2100)).await;
    assert_eq!(rig.ask("GET", "/v1/AUTH_a/c/o", &[], "").await.status, 404);
    assert_eq!(rig.ask("POST", "/v1/AUTH_a/c/o", &[], "").await.status, 404);
    assert_eq!(rig.ask("GET", "/v1/AUTH_a/c/o", &[("x-open-expired", "true")], "").await.status, 200);
    let put = rig.ask("PUT", "/v1/AUTH_a/c/o", &[("if-none-match", "*")], "y").await;
    assert_eq!(put.status, 201);
    rig.stop().await;
}

/// It was 204, as if somebody had seen it until then; Swift answers 404, and removes it all the same.
#[tokio::test]
async fn a_delete_of_an_expired_object_removes_what_nobody_was_to_see() {
    let rig = Rig::start();
    rig.make("/v1/AUTH_a/c").await;
    let at = (timestamp::now() + 3).to_string();
    for name in ["o", "bulk", "named"] {
        let put = rig.ask("PUT", &format!("/v1/AUTH_a/c/{name}"), &[("x-delete-at", &at)], "x").await;
        assert_eq!(put.status, 201);
    }
    tokio::time::sleep(std::time::Duration::from_millis(4100)).await;
    assert_eq!(rig.ask("DELETE", "/v1/AUTH_a/c/o", &[], "").await.status, 404);
    let bulk = rig.ask("POST", "/v1/AUTH_a?bulk-delete", &[], "c/bulk\n").await;
    assert!(bulk.body.starts_with(b"Number Deleted: 0\nNumber Not Found: 1\n"), "{bulk:?}");
    // The expirer's own way of asking tells success from nothing there.
    let named = [("x-if-delete-at", at.as_str())];
    assert_eq!(rig.ask("DELETE", "/v1/AUTH_a/c/named", &named, "").await.status, 204);
    for name in ["o", "bulk", "named"] {
        let open = [("x-open-expired", "true")];
        assert_eq!(rig.ask("GET", &format!("/v1/AUTH_a/c/{name}"), &open, "").await.status, 404, "{name}");
    }
    assert_eq!(rig.ask("HEAD", "/v1/AUTH_a/c", &[], "").await.header("x-container-object-count"), "0");
    rig.stop().await;
}

#[tokio::test]
async fn many_names_go_in_one_request() {
    let rig = Rig::start();
    rig.make("/v1/AUTH_a/c").await;
    for name in ["a", "b%20%2525", "d/e"] {
        rig.ask("PUT", &format!("/v1/AUTH_a/c/{name}"), &[], "x").await;
    }
    let json = [("accept", "application/json")];
    let report =
        rig.ask("POST", "/v1/AUTH_a?bulk-delete", &json, "c\n/c/a\nc/b%20%2525\nc/d/e\nc/none\n").await;
    let report: serde_json::Value = serde_json::from_slice(&report.body).unwrap();
    assert_eq!(report["Response Status"], "200 OK");
    assert_eq!((&report["Number Deleted"], &report["Number Not Found"]), (&4.into(), &1.into()));
    assert_eq!(rig.ask("HEAD", "/v1/AUTH_a/c", &[], "").await.status, 404);
    rig.stop().await;
}
