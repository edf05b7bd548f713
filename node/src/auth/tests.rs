//! Tests of authentication without sockets: sessions, roles, revocation, service tokens, Keystone's documents.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

use super::*;
use crate::config::{Config, Source};

pub(super) const CONFIG: &str = r#"
[node]
data = "data"
[[disk]]
path = "d"
index = "i"
[[auth.v1_user]]
account = "test"
user = "tester"
key = "testing"
groups = [".admin"]
[[auth.v1_user]]
account = "test5"
user = "tester5"
key = "testing5"
groups = ["service"]
[[auth.project]]
name = "demo"
[[auth.project]]
name = "other"
[[auth.user]]
name = "demo"
password = "secret"
default_project = "demo"
roles = { demo = ["admin", "member"], other = ["member"] }
[[auth.user]]
name = "guest"
password = "guest"
roles = { other = ["reader"] }
"#;

pub(super) fn auth_with(text: &str, data: &Path, now: Now) -> Arc<Auth> {
    let config = Config::parse(Source { file: Path::new("quarry.toml"), text }).unwrap();
    let endpoints = Endpoints::new(&config.listen, 8080, 5000, 8776);
    Arc::new(
        Auth::open(
            &config,
            &Listed { test: None, own: config.auth.clone(), made: None },
            data,
            endpoints,
            now,
        )
        .unwrap(),
    )
}

pub(super) fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

pub(super) fn v1_token(auth: &Auth, user: &str, key: &str) -> String {
    let response =
        v1::answer(auth, &Method::GET, "/auth/v1.0", &headers(&[("x-auth-user", user), ("x-auth-key", key)]));
    assert_eq!(response.status(), StatusCode::OK);
    response.headers()["x-auth-token"].to_str().unwrap().to_owned()
}

/// Who sends these headers with a request that needs no more than a good token.
pub(super) fn access(auth: &Auth, headers: &HeaderMap) -> Access {
    auth.access(headers, &Asked::of_objects(&Method::GET, "/v1/AUTH_test"))
}

pub(super) fn known(auth: &Auth, fields: &[(&'static str, &str)]) -> Arc<Session> {
    match access(auth, &headers(fields)) {
        Access::Known(session) => session,
        other => panic!("{other:?}"),
    }
}

pub(super) async fn call(
    auth: &Arc<Auth>,
    method: Method,
    path: &str,
    fields: &[(&'static str, &str)],
    body: &Value,
) -> (Response<()>, Value) {
    let mut request = Request::builder().method(method).uri(path);
    request.headers_mut().unwrap().extend(headers(fields));
    let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let response = keystone::answer(auth, Arrival::Identity, request.body(Full::new(body)).unwrap()).await;
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let value = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() };
    (Response::from_parts(head, ()), value)
}

pub(super) fn password(user: &str, password: &str, scope: Value) -> Value {
    let mut body = json!({ "auth": { "identity": { "methods": ["password"], "password": { "user": {
        "name": user, "domain": { "name": "Default" }, "password": password } } } } });
    if !scope.is_null() {
        body["auth"]["scope"] = scope;
    }
    body
}

pub(super) async fn keystone_token(auth: &Arc<Auth>, body: &Value) -> (String, Value) {
    let (response, value) = call(auth, Method::POST, "/v3/auth/tokens", &[("host", "n:5000")], body).await;
    assert_eq!(response.status(), StatusCode::CREATED, "{value}");
    (response.headers()["x-subject-token"].to_str().unwrap().to_owned(), value["token"].clone())
}

#[test]
fn a_v1_login_gives_a_session_with_tempauths_groups() {
    let dir = tempfile::tempdir().unwrap();
    let auth = auth_with(CONFIG, dir.path(), unix_now);
    let token = v1_token(&auth, "test:tester", "testing");
    let session = known(&auth, &[("x-auth-token", &token)]);
    assert_eq!(session.caller.groups, ["test", "test:tester", "AUTH_test", "SERVICE_test"]);
    assert_eq!((session.caller.account.as_str(), session.caller.owner), ("AUTH_test", true));
    assert!(
        Arc::ptr_eq(&session, &known(&auth, &[("x-storage-token", &token)])),
        "the second look is cached"
    );
}

#[test]
fn wrong_keys_and_unknown_users_get_401_with_the_realm() {
    let dir = tempfile::tempdir().unwrap();
    let auth = auth_with(CONFIG, dir.path(), unix_now);
    for (user, key) in [
        ("test:tester", "wrong"),
        ("test:nobody", "testing"),
        ("test:tester", "testing5"),
        ("test:nobody", ""),
    ] {
        let fields = headers(&[("x-auth-user", user), ("x-auth-key", key)]);
        let response = v1::answer(&auth, &Method::GET, "/auth/v1.0", &fields);
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(response.headers()["www-authenticate"], "Swift realm=\"test\"");
        assert!(!response.headers().contains_key("x-auth-token"));
    }
}

#[test]
fn a_service_token_joins_the_users_and_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let auth = auth_with(CONFIG, dir.path(), unix_now);
    let user = v1_token(&auth, "test:tester", "testing");
    let service = v1_token(&auth, "test5:tester5", "testing5");
    let joined = known(&auth, &[("x-auth-token", &user), ("x-service-token", &service)]);
    assert!(joined.caller.service && joined.caller.groups.iter().any(|group| group == "service"));
    assert_eq!(joined.caller.user, "test:tester");
    assert!(!known(&auth, &[("x-auth-token", &user), ("x-service-token", &user)]).caller.service);
    assert!(matches!(access(&auth, &headers(&[("x-service-token", &service)])), Access::Anonymous));
}

#[test]
fn foreign_tokens_count_as_none_and_broken_ones_are_denied() {
    let dir = tempfile::tempdir().unwrap();
    let auth = auth_with(CONFIG, dir.path(), unix_now);
    assert!(matches!(access(&auth, &HeaderMap::new()), Access::Anonymous));
    assert!(matches!(access(&auth, &headers(&[("x-auth-token", "bogus")])), Access::Anonymous));
    assert!(matches!(access(&auth, &headers(&[("x-auth-token", "AUTH_tkbogus")])), Access::Denied));
    assert!(matches!(access(&auth, &headers(&[("x-auth-token", "gAAAAAbogus")])), Access::Denied));
}

#[test]
fn a_cached_session_ends_when_its_token_expires() {
    static NOW: AtomicU64 = AtomicU64::new(0);
    NOW.store(unix_now(), Ordering::Relaxed);
    let dir = tempfile::tempdir().unwrap();
    let auth = auth_with(CONFIG, dir.path(), || NOW.load(Ordering::Relaxed));
    let token = v1_token(&auth, "test:tester", "testing");
    known(&auth, &[("x-auth-token", &token)]);
    NOW.fetch_add(86_400, Ordering::Relaxed);
    assert!(matches!(access(&auth, &headers(&[("x-auth-token", &token)])), Access::Denied));
}

#[test]
fn a_changed_key_or_a_removed_user_ends_the_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let token = v1_token(&auth_with(CONFIG, dir.path(), unix_now), "test:tester", "testing");
    let fields = headers(&[("x-auth-token", &token)]);
    assert!(matches!(access(&auth_with(CONFIG, dir.path(), unix_now), &fields), Access::Known(_)));
    for (from, to) in [("\"testing\"", "\"changed\""), ("\"tester\"", "\"renamed\"")] {
        let changed = auth_with(&CONFIG.replace(from, to), dir.path(), unix_now);
        assert!(matches!(access(&changed, &fields), Access::Denied), "{to}");
    }
}

#[tokio::test]
async fn a_keystone_token_has_the_documented_shape() {
    let dir = tempfile::tempdir().unwrap();
    let auth = auth_with(CONFIG, dir.path(), unix_now);
    let (token, body) = keystone_token(&auth, &password("demo", "secret", Value::Null)).await;
    let project = body["project"]["id"].as_str().unwrap();
    assert_eq!(body["project"]["name"], "demo");
    assert_eq!(body["project"]["domain"], json!({ "id": "default", "name": "Default" }));
    assert_eq!(body["user"]["name"], "demo");
    assert_eq!(body["methods"], json!(["password"]));
    let roles: Vec<&str> =
        body["roles"].as_array().unwrap().iter().filter_map(|role| role["name"].as_str()).collect();
    for role in ["admin", "manager", "member", "reader"] {
        assert!(roles.contains(&role), "{roles:?}: admin implies them");
    }
    assert!(
        body["expires_at"].as_str().unwrap().ends_with("Z")
            && body["audit_ids"].as_array().unwrap().len() == 1
    );
    let store =
        body["catalog"].as_array().unwrap().iter().find(|entry| entry["type"] == "object-store").unwrap();
    for (at, interface) in ["public", "internal", "admin"].into_iter().enumerate() {
        assert_eq!(store["endpoints"][at]["interface"], interface);
        assert_eq!(store["endpoints"][at]["url"], format!("http://n:8080/v1/AUTH_{project}"));
        assert_eq!(store["endpoints"][at]["region"], "RegionOne");
    }
    let session = known(&auth, &[("x-auth-token", &token)]);
    assert_eq!((session.caller.account.clone(), session.caller.owner), (format!("AUTH_{project}"), true));
    let member = "member".to_owned();
    assert!(session.caller.roles.contains(&member) && !session.caller.groups.contains(&member));
}

#[tokio::test]
async fn scopes_choose_the_project_and_its_roles() {
    let dir = tempfile::tempdir().unwrap();
    let auth = auth_with(CONFIG, dir.path(), unix_now);
    let other = json!({ "project": { "name": "other", "domain": { "id": "default" } } });
    let (token, body) = keystone_token(&auth, &password("demo", "secret", other.clone())).await;
    assert_eq!(
        (&body["project"]["name"], body["roles"].as_array().unwrap().len()),
        (&json!("other"), 2),
        "member and reader"
    );
    assert!(!known(&auth, &[("x-auth-token", &token)]).caller.owner, "member is no owner");
    let (unscoped, body) = keystone_token(&auth, &password("demo", "secret", json!("unscoped"))).await;
    assert!(body.get("project").is_none() && body.get("catalog").is_none());
    assert_eq!(known(&auth, &[("x-auth-token", &unscoped)]).caller.account, "");
    let rescope = json!({ "auth": { "identity": { "methods": ["token"], "token": { "id": unscoped } }, "scope": other } });
    let (_, body) = keystone_token(&auth, &rescope).await;
    assert_eq!(
        (&body["project"]["name"], &body["methods"]),
        (&json!("other"), &json!(["password", "token"]))
    );
}

#[tokio::test]
async fn refusals_have_keystones_shape() {
    let dir = tempfile::tempdir().unwrap();
    let auth = auth_with(CONFIG, dir.path(), unix_now);
    let no_project = json!({ "project": { "name": "demo", "domain": { "id": "default" } } });
    for (body, code) in [
        (password("demo", "wrong", Value::Null), 401),
        (password("nobody", "secret", Value::Null), 401),
        (password("guest", "guest", no_project), 401),
        (password("demo", "secret", json!({ "domain": { "id": "default" } })), 401),
        (password("demo", "secret", json!({})), 400),
        (json!({ "auth": {} }), 400),
        (json!({ "auth": { "identity": { "methods": ["token"], "token": { "id": "gAAAAA" } } } }), 401),
        (json!({ "x": "y".repeat(70_000) }), 413),
    ] {
        let (response, value) = call(&auth, Method::POST, "/v3/auth/tokens", &[], &body).await;
        assert_eq!(response.status().as_u16(), code, "{value}");
        assert_eq!(value["error"]["code"], code);
        assert!(value["error"]["title"].is_string() && value["error"]["message"].is_string());
    }
    let v1 = v1_token(&auth, "test:tester", "testing");
    let with_v1 = json!({ "auth": { "identity": { "methods": ["token"], "token": { "id": v1 } } } });
    assert_eq!(
        call(&auth, Method::POST, "/v3/auth/tokens", &[], &with_v1).await.0.status(),
        StatusCode::UNAUTHORIZED
    );
}

#[tokio::test]
async fn a_deleted_token_is_refused_at_once_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let auth = auth_with(CONFIG, dir.path(), unix_now);
    let (token, _) = keystone_token(&auth, &password("demo", "secret", Value::Null)).await;
    let (kept, _) = keystone_token(&auth, &password("demo", "secret", Value::Null)).await;
    known(&auth, &[("x-auth-token", &token)]);
    let both = [("x-auth-token", kept.as_str()), ("x-subject-token", token.as_str())];
    let (shown, body) = call(&auth, Method::GET, "/v3/auth/tokens?nocatalog", &both, &Value::Null).await;
    assert_eq!((shown.status(), body["token"].get("catalog")), (StatusCode::OK, None));
    let (gone, _) = call(&auth, Method::DELETE, "/v3/auth/tokens", &both, &Value::Null).await;
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    assert!(matches!(access(&auth, &headers(&both)), Access::Known(_)), "the other token stays");
    let fields = headers(&[("x-auth-token", &token)]);
    assert!(matches!(access(&auth, &fields), Access::Denied));
    assert!(matches!(access(&auth_with(CONFIG, dir.path(), unix_now), &fields), Access::Denied));
    let (shown, _) = call(&auth, Method::GET, "/v3/auth/tokens", &both, &Value::Null).await;
    assert_eq!(shown.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn reads_show_an_admin_all_and_others_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let auth = auth_with(CONFIG, dir.path(), unix_now);
    let (admin, _) = keystone_token(&auth, &password("demo", "secret", Value::Null)).await;
    let (guest, body) = keystone_token(&auth, &password("guest", "guest", Value::Null)).await;
    let guest_id = body["user"]["id"].as_str().unwrap();
    let get = async |token: &str, path: &str| {
        let (response, body) = call(&auth, Method::GET, path, &[("x-auth-token", token)], &Value::Null).await;
        (response.status().as_u16(), body)
    };
    let (_, found) = get(&admin, "/v3/projects?name=other").await;
    assert_eq!(
        (found["projects"].as_array().unwrap().len(), &found["projects"][0]["name"]),
        (1, &json!("other"))
    );
    assert_eq!(get(&admin, "/v3/users").await.1["users"].as_array().unwrap().len(), 2);
    assert_eq!(get(&guest, "/v3/users").await.0, 403);
    assert_eq!(get(&guest, &format!("/v3/users/{guest_id}")).await.0, 200);
    let (_, own) = get(&guest, "/v3/auth/projects").await;
    assert_eq!(
        (own["projects"].as_array().unwrap().len(), &own["projects"][0]["name"]),
        (1, &json!("other"))
    );
    assert_eq!(get(&guest, "/v3/auth/catalog").await.1["catalog"].as_array().unwrap().len(), 4);
    assert_eq!(get("", "/v3/auth/catalog").await.0, 401);
    assert_eq!(get("", "/v3").await.1["version"]["id"], "v3.14");
    assert_eq!(get("", "/").await.0, 300);
    for path in ["/v3/domains", "/v3/regions", "/v3/roles", "/v3/services", "/v3/endpoints"] {
        assert_eq!(get(&admin, path).await.0, 200, "{path}");
    }
}
