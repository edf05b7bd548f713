//! Who may do what, end to end.

use bytes::Bytes;
use hmac::{Hmac, Mac};

use super::rig::{Rig, owner};
use crate::swift::Caller;

async fn status(rig: &Rig, caller: Option<Caller>, method: &str, uri: &str, headers: &[(&str, &str)]) -> u16 {
    rig.ask_as(caller, method, uri, headers, Bytes::new()).await.status
}

#[tokio::test]
async fn strangers_get_401_and_known_callers_403_until_a_list_lets_them_in() {
    let rig = Rig::start();
    rig.make("/v1/AUTH_a/c").await;
    rig.ask("PUT", "/v1/AUTH_a/c/o", &[], "x").await;
    let stranger = rig.ask_as(None, "GET", "/v1/AUTH_a/c/o", &[], Bytes::new()).await;
    assert_eq!((stranger.status, stranger.header("www-authenticate")), (401, "Swift realm=\"AUTH_a\""));
    assert_eq!(status(&rig, Some(owner("b")), "GET", "/v1/AUTH_a/c/o", &[]).await, 403);

    let lists = [("x-container-read", ".r:*.example.com, b:admin"), ("x-container-write", "b")];
    assert_eq!(rig.ask("POST", "/v1/AUTH_a/c", &lists, "").await.status, 204);
    assert_eq!(status(&rig, Some(owner("b")), "GET", "/v1/AUTH_a/c/o", &[]).await, 200);
    assert_eq!(status(&rig, Some(owner("b")), "PUT", "/v1/AUTH_a/c/p", &[]).await, 201);
    assert_eq!(status(&rig, Some(owner("b")), "POST", "/v1/AUTH_a/c", &[]).await, 403);
    assert_eq!(status(&rig, None, "GET", "/v1/AUTH_a/c/o", &[]).await, 401);
    let from = [("referer", "http://www.example.com/page")];
    assert_eq!(status(&rig, None, "GET", "/v1/AUTH_a/c/o", &from).await, 200);
    assert_eq!(status(&rig, None, "GET", "/v1/AUTH_a/c", &from).await, 401);
    let seen = rig.ask_as(Some(owner("b")), "HEAD", "/v1/AUTH_a/c", &[], Bytes::new()).await;
    assert_eq!((seen.status, seen.header("x-container-write")), (204, ""));
    assert_eq!(rig.ask("POST", "/v1/AUTH_a/c", &[("x-container-write", ".r:*")], "").await.status, 400);
    rig.stop().await;
}

/// A role was taken for a group: whoever had it in any project was let in, and to an account's own list as well.
#[tokio::test]
async fn a_role_in_a_list_is_one_of_the_containers_own_project() {
    let rig = Rig::start();
    rig.make("/v1/AUTH_a/c").await;
    rig.ask("PUT", "/v1/AUTH_a/c/o", &[], "x").await;
    let lists = [("x-container-read", "member"), ("x-container-write", "member")];
    assert_eq!(rig.ask("POST", "/v1/AUTH_a/c", &lists, "").await.status, 204);
    let list = [("x-account-access-control", r#"{"admin":["member"]}"#)];
    assert_eq!(rig.ask("POST", "/v1/AUTH_a", &list, "").await.status, 204);
    let member = |account: &str| {
        let (account, roles) = (format!("AUTH_{account}"), vec!["member".to_owned()]);
        Some(Caller { user: "m".into(), account, roles, groups: vec!["*:*".into()], ..Caller::default() })
    };
    for (method, object) in [("GET", "o"), ("PUT", "p")] {
        let uri = format!("/v1/AUTH_a/c/{object}");
        assert!(status(&rig, member("a"), method, &uri, &[]).await < 300, "{method}");
        assert_eq!(status(&rig, member("b"), method, &uri, &[]).await, 403, "{method}");
    }
    assert_eq!(status(&rig, member("b"), "HEAD", "/v1/AUTH_a", &[]).await, 403);
    // Anybody who shows who they are.
    assert_eq!(rig.ask("POST", "/v1/AUTH_a/c", &[("x-container-read", "*:*")], "").await.status, 204);
    assert_eq!(status(&rig, member("b"), "GET", "/v1/AUTH_a/c/o", &[]).await, 200);
    rig.stop().await;
}

#[tokio::test]
async fn accounts_are_the_resellers_and_their_quotas_bind() {
    let rig = Rig::start();
    let reseller = Caller { reseller_admin: true, ..owner("admin") };
    assert_eq!(rig.ask("PUT", "/v1/AUTH_a", &[], "").await.status, 403);
    assert_eq!(status(&rig, Some(reseller.clone()), "PUT", "/v1/AUTH_a", &[]).await, 201);
    rig.make("/v1/AUTH_a/c").await;
    let quota = [("x-account-quota-bytes", "5")];
    assert_eq!(rig.ask("POST", "/v1/AUTH_a", &quota, "").await.status, 403);
    assert_eq!(status(&rig, Some(reseller.clone()), "POST", "/v1/AUTH_a", &quota).await, 204);
    assert_eq!(rig.ask("PUT", "/v1/AUTH_a/c/o", &[], "12345").await.status, 201);
    assert_eq!(rig.ask("PUT", "/v1/AUTH_a/c/p", &[], "6").await.status, 413);
    assert_eq!(status(&rig, Some(reseller.clone()), "DELETE", "/v1/AUTH_a", &[]).await, 204);
    assert_eq!(rig.ask("GET", "/v1/AUTH_a", &[], "").await.status, 410);
    assert_eq!(rig.ask("PUT", "/v1/AUTH_a/new", &[], "").await.status, 503);
    rig.stop().await;
}

#[tokio::test]
async fn a_signature_opens_one_object_for_one_method() {
    let rig = Rig::start();
    rig.make("/v1/AUTH_a/c").await;
    rig.ask("PUT", "/v1/AUTH_a/c/o", &[("x-object-meta-secret", "1")], "hello").await;
    rig.ask("PUT", "/v1/AUTH_a/c/p", &[], "other").await;
    rig.ask("POST", "/v1/AUTH_a", &[("x-account-meta-temp-url-key", "key")], "").await;
    let mut mac = <Hmac<sha2::Sha256> as Mac>::new_from_slice(b"key").unwrap();
    mac.update(b"GET\n9999999999\n/v1/AUTH_a/c/o");
    let signature = hex::encode(mac.finalize().into_bytes());
    let query = format!("temp_url_expires=9999999999&temp_url_sig={signature}");
    let get = rig.ask_as(None, "GET", &format!("/v1/AUTH_a/c/o?{query}"), &[], Bytes::new()).await;
    assert_eq!((get.status, &get.body[..]), (200, &b"hello"[..]));
    assert_eq!(get.header("content-disposition"), "attachment; filename=\"o\"; filename*=UTF-8''o");
    assert!(!get.headers.contains_key("x-object-meta-secret"));
    assert_eq!(status(&rig, None, "HEAD", &format!("/v1/AUTH_a/c/o?{query}"), &[]).await, 200);
    assert_eq!(status(&rig, None, "PUT", &format!("/v1/AUTH_a/c/o?{query}"), &[]).await, 401);
    assert_eq!(status(&rig, None, "GET", &format!("/v1/AUTH_a/c/p?{query}"), &[]).await, 401);
    rig.stop().await;
}

#[tokio::test]
async fn browsers_are_told_what_a_container_allows() {
    let rig = Rig::start();
    rig.make("/v1/AUTH_a/c").await;
    let allow = [("x-container-meta-access-control-allow-origin", "http://good")];
    rig.ask("POST", "/v1/AUTH_a/c", &allow, "").await;
    rig.ask("PUT", "/v1/AUTH_a/c/o", &[("x-object-meta-a", "1")], "x").await;
    let ask = |origin: &'static str| [("origin", origin), ("access-control-request-method", "GET")];
    let rig_ref = &rig;
    let preflight = |origin: &'static str| async move {
        rig_ref.ask_as(None, "OPTIONS", "/v1/AUTH_a/c/o", &ask(origin), Bytes::new()).await
    };
    assert_eq!(preflight("http://bad").await.status, 401);
    let good = preflight("http://good").await;
    assert_eq!((good.status, good.header("access-control-allow-origin")), (200, "http://good"));
    let get = rig.ask("GET", "/v1/AUTH_a/c/o", &[("origin", "http://good")], "").await;
    assert!(get.header("access-control-expose-headers").ends_with(", x-object-meta-a"));
    let get = rig.ask("GET", "/v1/AUTH_a/c/o", &[("origin", "http://bad")], "").await;
    assert_eq!((get.status, get.header("access-control-allow-origin")), (200, ""));
    rig.stop().await;
}
