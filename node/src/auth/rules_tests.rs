//! Tests of application credentials with access rules: what their tokens are good for.

use std::sync::Arc;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::rules::Asked;
use super::tests::{CONFIG, auth_with, call, headers, keystone_token, password, v1_token};
use super::{Access, Auth, PAPERS, unix_now};
use crate::papers::Cabinet;
use crate::swift::testing::Rig;

/// A credential of demo's with these rules, and a token of it.
async fn lent(auth: &Arc<Auth>, name: &str, rules: Value) -> (Value, String) {
    let (admin, shown) = keystone_token(auth, &password("demo", "secret", Value::Null)).await;
    let path = format!("/v3/users/{}/application_credentials", shown["user"]["id"].as_str().unwrap());
    let wish = json!({ "application_credential": { "name": name, "access_rules": rules } });
    let (response, made) = call(auth, Method::POST, &path, &[("x-auth-token", &admin)], &wish).await;
    assert_eq!(response.status(), StatusCode::CREATED, "{made}");
    let made = made["application_credential"].clone();
    let identity = json!({ "methods": ["application_credential"],
        "application_credential": { "id": made["id"], "secret": made["secret"] } });
    let (token, _) = keystone_token(auth, &json!({ "auth": { "identity": identity } })).await;
    (made, token)
}

fn object(auth: &Auth, token: &str, service: &str, method: &Method, path: &str) -> bool {
    let mut headers = headers(&[("x-auth-token", token)]);
    if !service.is_empty() {
        headers.insert("x-service-token", service.parse().unwrap());
    }
    match auth.access(&headers, &Asked::of_objects(method, path)) {
        Access::Known(_) => true,
        Access::Denied => false,
        Access::Anonymous => panic!("a token is not nobody's"),
    }
}

/// They were kept and shown, and nobody looked at them: the token of a credential for one path deleted what was at another.
#[tokio::test]
async fn a_credentials_token_is_good_for_what_its_rules_name_alone() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start();
    let auth = auth_with(CONFIG, dir.path(), unix_now);
    auth.keep_in(Cabinet::new(rig.store(), PAPERS, true));
    let rules = json!([
        { "service": "object-store", "method": "GET", "path": "/v1/AUTH_p/c/*" },
        { "service": "volumev3", "method": "GET", "path": "/v3/{project_id}/volumes/**" },
        { "service": "identity", "method": "GET", "path": "/v3/auth/catalog" },
    ]);
    let (made, token) = lent(&auth, "some", rules).await;
    assert_eq!(made["access_rules"].as_array().unwrap().len(), 3);
    let (get, delete) = (&Method::GET, &Method::DELETE);
    assert!(object(&auth, &token, "", get, "/v1/AUTH_p/c/o"));
    assert!(!object(&auth, &token, "", delete, "/v1/AUTH_p/c/o"));
    assert!(!object(&auth, &token, "", get, "/v1/AUTH_p/d/o"));
    let sent = headers(&[("x-auth-token", &token)]);
    let volume = |method, path| auth.admitted(&token, &sent, &Asked::of_volumes(method, path)).is_some();
    assert!(volume(get, "/v3/p/volumes/detail") && !volume(get, "/v3/p/snapshots"));
    assert!(!volume(delete, "/v3/p/volumes/v"));

    // A service that acts for it kept the rules itself; whoever is none does not.
    let service = v1_token(&auth, "test5:tester5", "testing5");
    assert!(object(&auth, &token, &service, get, "/v1/AUTH_p/d/o"));
    let (other, _) = keystone_token(&auth, &password("demo", "secret", Value::Null)).await;
    for none in [other.as_str(), token.as_str(), "nonsense"] {
        assert!(!object(&auth, &token, none, get, "/v1/AUTH_p/d/o"));
    }

    // `openstack application credential create` without rules sends an empty list, and Keystone keeps none.
    for (name, none) in [("all", Value::Null), ("everything", json!([]))] {
        let (made, all) = lent(&auth, name, none).await;
        assert!(object(&auth, &all, "", delete, "/v1/AUTH_p/c/o") && made.get("access_rules").is_none());
    }
    rig.stop().await;
}

#[tokio::test]
async fn at_the_identity_api_rules_are_kept_but_for_what_a_token_says() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start();
    let auth = auth_with(CONFIG, dir.path(), unix_now);
    auth.keep_in(Cabinet::new(rig.store(), PAPERS, true));
    let rules = json!([{ "service": "identity", "method": "GET", "path": "/v3/auth/catalog" }]);
    let (_, token) = lent(&auth, "some", rules).await;
    let ask = async |method: Method, path: &str, fields: &[(&'static str, &str)], body: &Value| {
        let (response, value) = call(&auth, method, path, fields, body).await;
        (response.status(), value)
    };
    let own = [("x-auth-token", token.as_str())];
    assert_eq!(ask(Method::GET, "/v3/auth/catalog", &own, &Value::Null).await.0, StatusCode::OK);
    for path in ["/v3/auth/projects", "/v3/users", "/v3/projects"] {
        assert_eq!(ask(Method::GET, path, &own, &Value::Null).await.0, StatusCode::UNAUTHORIZED, "{path}");
    }
    // What it says is told to whoever keeps rules, to nobody else.
    let mut shown = vec![("x-auth-token", token.as_str()), ("x-subject-token", token.as_str())];
    assert_eq!(ask(Method::GET, "/v3/auth/tokens", &shown, &Value::Null).await.0, StatusCode::NOT_FOUND);
    shown.push(("openstack-identity-access-rules", "1.0"));
    let (status, value) = ask(Method::GET, "/v3/auth/tokens", &shown, &Value::Null).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    assert_eq!(value["token"]["application_credential"]["access_rules"].as_array().unwrap().len(), 1);
    assert_eq!(
        ask(Method::DELETE, "/v3/auth/tokens", &shown, &Value::Null).await.0,
        StatusCode::UNAUTHORIZED
    );
    // A token for that one has its rules.
    let again = json!({ "auth": { "identity": { "methods": ["token"], "token": { "id": token } } } });
    let (second, _) = keystone_token(&auth, &again).await;
    let second = [("x-auth-token", second.as_str())];
    assert_eq!(ask(Method::GET, "/v3/auth/catalog", &second, &Value::Null).await.0, StatusCode::OK);
    assert_eq!(ask(Method::GET, "/v3/users", &second, &Value::Null).await.0, StatusCode::UNAUTHORIZED);

    let (admin, shown) = keystone_token(&auth, &password("demo", "secret", Value::Null)).await;
    let path = format!("/v3/users/{}/application_credentials", shown["user"]["id"].as_str().unwrap());
    let rule = |method: &str, path: &str| json!([{ "service": "s", "method": method, "path": path }]);
    let many = vec![rule("GET", "/")[0].clone(); 101];
    for wrong in [rule("get", "/"), rule("COPY", "/"), rule("GET", "v1"), json!("all"), json!(many)] {
        let wish = json!({ "application_credential": { "name": "wrong", "access_rules": wrong } });
        let (status, value) = ask(Method::POST, &path, &[("x-auth-token", &admin)], &wish).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{value}");
    }
    rig.stop().await;
}
