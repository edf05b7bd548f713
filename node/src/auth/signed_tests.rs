//! Tests of EC2 keys: what a request that was signed with one gives, and who may ask.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::Sha256;

use super::tests::{CONFIG, auth_with, call, password};
use super::{Auth, PAPERS, unix_now};
use crate::papers::Cabinet;
use crate::swift::testing::Rig;

const TOKENS: &str = "/v3/auth/tokens";

async fn token(auth: &Arc<Auth>, body: &Value) -> (String, Value) {
    let (response, body) = call(auth, Method::POST, TOKENS, &[], body).await;
    assert_eq!(response.status(), StatusCode::CREATED, "{body}");
    (response.headers()["x-subject-token"].to_str().unwrap().to_owned(), body["token"].clone())
}

async fn ask(auth: &Arc<Auth>, token: &str, method: Method, path: &str, body: &Value) -> (StatusCode, Value) {
    let (response, value) = call(auth, method, path, &[("x-auth-token", token)], body).await;
    (response.status(), value)
}

/// A request signed by version 2.
fn request(access: &str, secret: &str) -> Value {
    let text = format!("GET\ncloud\n/\nAWSAccessKeyId={access}&SignatureVersion=2");
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(text.as_bytes());
    json!({ "credentials": {
        "access": access, "signature": STANDARD.encode(mac.finalize().into_bytes()), "host": "cloud", "verb": "GET",
        "path": "/", "params": { "AWSAccessKeyId": access, "SignatureVersion": "2" },
    } })
}

/// The access key and its secret.
fn key(credential: &Value) -> (String, String) {
    let member = |name: &str| credential[name].as_str().unwrap().to_owned();
    (member("access"), member("secret"))
}

#[tokio::test]
async fn a_signed_request_gives_a_token_of_whoever_signed() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start();
    let auth = auth_with(CONFIG, dir.path(), unix_now);
    auth.keep_in(Cabinet::new(rig.store(), PAPERS, true));
    let (admin, _) = token(&auth, &password("demo", "secret", Value::Null)).await;
    let other = json!({ "project": { "name": "other", "domain": { "name": "Default" } } });
    let (guest, shown) = token(&auth, &password("guest", "guest", other)).await;
    let (user, project) = (shown["user"]["id"].as_str().unwrap(), shown["project"]["id"].clone());
    let own = format!("/v3/users/{user}/credentials/OS-EC2");
    let (status, made) = ask(&auth, &guest, Method::POST, &own, &json!({ "tenant_id": project })).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let (access, secret) = key(&made["credential"]);
    let good = request(&access, &secret);
    let (response, given) =
        call(&auth, Method::POST, "/v3/ec2tokens", &[("x-auth-token", &admin)], &good).await;
    assert_eq!(response.status(), StatusCode::OK, "{given}");
    let subject = response.headers()["x-subject-token"].to_str().unwrap().to_owned();
    assert_eq!(given["token"]["user"]["id"], user);
    assert_eq!(given["token"]["methods"], json!(["ec2credential"]));
    assert_eq!(given["token"]["roles"].as_array().unwrap().len(), 1, "{given}");
    assert_eq!(given["token"]["project"]["id"], project);
    // For the API that the request was for alone: it could get other tokens, of other projects, and credentials that last.
    for path in [own.as_str(), "/v3/auth/catalog", "/v3/auth/projects"] {
        assert_eq!(
            ask(&auth, &subject, Method::GET, path, &Value::Null).await.0,
            StatusCode::FORBIDDEN,
            "{path}"
        );
    }
    let seen = [("x-auth-token", subject.as_str()), ("x-subject-token", subject.as_str())];
    assert_eq!(call(&auth, Method::GET, TOKENS, &seen, &Value::Null).await.0.status(), StatusCode::OK);
    let again = async |scope: Value| {
        let identity = json!({ "methods": ["token"], "token": { "id": subject } });
        let body = json!({ "auth": { "identity": identity, "scope": scope } });
        call(&auth, Method::POST, TOKENS, &[], &body).await.0
    };
    for scope in
        [json!("unscoped"), json!({ "system": { "all": true } }), json!({ "domain": { "id": "default" } })]
    {
        let status = again(scope.clone()).await.status();
        assert!(status == StatusCode::FORBIDDEN || status == StatusCode::UNAUTHORIZED, "{scope}: {status}");
    }
    let renewed = again(json!({ "project": { "id": project } })).await;
    assert_eq!(
        (renewed.status(), again(Value::Null).await.status()),
        (StatusCode::CREATED, StatusCode::CREATED)
    );
    let renewed = renewed.headers()["x-subject-token"].to_str().unwrap().to_owned();
    assert_eq!(
        ask(&auth, &renewed, Method::GET, &own, &Value::Null).await.0,
        StatusCode::FORBIDDEN,
        "renewed"
    );

    let asked =
        async |token: &str, body: &Value| ask(&auth, token, Method::POST, "/v3/ec2tokens", body).await.0;
    assert_eq!(asked(&guest, &good).await, StatusCode::FORBIDDEN, "neither service nor admin");
    assert_eq!(asked("nobody", &good).await, StatusCode::UNAUTHORIZED);
    assert_eq!(asked(&admin, &request(&access, "guessed")).await, StatusCode::UNAUTHORIZED);
    assert_eq!(asked(&admin, &request("unknown", &secret)).await, StatusCode::NOT_FOUND);
    assert_eq!(asked(&admin, &json!({})).await, StatusCode::BAD_REQUEST);
    let forged = ask(&auth, &admin, Method::POST, "/v3/s3tokens", &good).await.0;
    assert_eq!(forged, StatusCode::UNAUTHORIZED, "no text was signed");
    assert_eq!(ask(&auth, &guest, Method::DELETE, &format!("{own}/{access}"), &Value::Null).await.0, 204);
    assert_eq!(asked(&admin, &good).await, StatusCode::NOT_FOUND);
    rig.stop().await;
}

#[tokio::test]
async fn a_key_gives_no_more_than_its_maker_had() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start();
    let auth = auth_with(CONFIG, dir.path(), unix_now);
    auth.keep_in(Cabinet::new(rig.store(), PAPERS, true));
    let (admin, shown) = token(&auth, &password("demo", "secret", Value::Null)).await;
    let (user, project) = (shown["user"]["id"].as_str().unwrap(), shown["project"]["id"].clone());
    let path = format!("/v3/users/{user}/application_credentials");
    let wish = json!({ "application_credential": { "name": "little", "roles": [{ "name": "member" }],
        "unrestricted": true } });
    let (status, made) = ask(&auth, &admin, Method::POST, &path, &wish).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let made = &made["application_credential"];
    let (little, _) = token(
        &auth,
        &json!({ "auth": { "identity": { "methods": ["application_credential"],
        "application_credential": { "id": made["id"], "secret": made["secret"] } } } }),
    )
    .await;
    let roles = async |access: &str, secret: &str| {
        let body = request(access, secret);
        let (status, given) = ask(&auth, &admin, Method::POST, "/v3/ec2tokens", &body).await;
        assert_eq!(status, StatusCode::OK, "{given}");
        let names = given["token"]["roles"].as_array().unwrap().iter();
        names.map(|role| role["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let own = format!("/v3/users/{user}/credentials/OS-EC2");
    let (_, made) = ask(&auth, &little, Method::POST, &own, &json!({ "tenant_id": project })).await;
    let (access, secret) = key(&made["credential"]);
    assert!(!roles(&access, &secret).await.contains(&"admin".to_owned()));

    // The same by the other way, with a blob that says otherwise.
    let blob = json!({ "access": "mine", "secret": "s", "app_cred_id": null, "trust_id": "x" }).to_string();
    let wish =
        json!({ "credential": { "type": "ec2", "user_id": user, "project_id": project, "blob": blob } });
    let (status, made) = ask(&auth, &little, Method::POST, "/v3/credentials", &wish).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    assert!(!roles("mine", "s").await.contains(&"admin".to_owned()));
    let path = format!("/v3/credentials/{}", made["credential"]["id"].as_str().unwrap());
    let freed = json!({ "credential": { "blob": json!({ "access": "mine", "secret": "s" }).to_string() } });
    assert_eq!(ask(&auth, &little, Method::PATCH, &path, &freed).await.0, StatusCode::BAD_REQUEST);
    let elsewhere = json!({ "credential": { "project_id": "another" } });
    assert_eq!(ask(&auth, &little, Method::PATCH, &path, &elsewhere).await.0, StatusCode::FORBIDDEN);
    let given = json!({ "credential": { "user_id": "another" } });
    assert_eq!(ask(&auth, &little, Method::PATCH, &path, &given).await.0, StatusCode::FORBIDDEN);
    rig.stop().await;
}

/// Two nodes over one store: what one was told the other knows when it is asked for a token, also before it looks by itself.
#[tokio::test]
async fn who_is_new_has_a_token_at_another_node_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start();
    let nodes = ["a", "b"].map(|name| {
        let data = dir.path().join(name);
        std::fs::create_dir(&data).unwrap();
        let auth = auth_with(CONFIG, &data, unix_now);
        auth.keep_in(Cabinet::new(rig.store(), PAPERS, false));
        auth
    });
    let (admin, _) = token(&nodes[0], &password("demo", "secret", Value::Null)).await;
    let wish = json!({ "user": { "name": "new", "password": "fresh", "domain_id": "default" } });
    let (status, made) = ask(&nodes[0], &admin, Method::POST, "/v3/users", &wish).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let login = |password: &str| super::tests::password("new", password, json!("unscoped"));
    token(&nodes[1], &login("fresh")).await;
    let (refused, _) = call(&nodes[1], Method::POST, TOKENS, &[], &login("stale")).await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    rig.stop().await;
}

/// Found by reading the change once more: who may look at everything could have made itself a key of anybody.
#[tokio::test]
async fn who_may_look_at_everything_makes_and_deletes_no_keys_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start();
    let auth = auth_with(CONFIG, dir.path(), unix_now);
    auth.keep_in(Cabinet::new(rig.store(), PAPERS, true));
    let (admin, shown) = token(&auth, &password("demo", "secret", Value::Null)).await;
    let (victim, project) = (shown["user"]["id"].as_str().unwrap(), shown["project"]["id"].clone());
    let guest = auth.directory().roll().named("user", "guest", None).unwrap()["id"].clone();
    let reader = auth.directory().roll().named("role", "reader", None).unwrap()["id"].clone();
    let grant = format!("/v3/system/users/{}/roles/{}", guest.as_str().unwrap(), reader.as_str().unwrap());
    assert_eq!(ask(&auth, &admin, Method::PUT, &grant, &Value::Null).await.0, StatusCode::NO_CONTENT);
    let (looks, _) = token(&auth, &password("guest", "guest", json!({ "system": { "all": true } }))).await;
    let keys = format!("/v3/users/{victim}/credentials/OS-EC2");
    let wish = json!({ "tenant_id": project });
    let (status, made) = ask(&auth, &admin, Method::POST, &keys, &wish).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let one = format!("{keys}/{}", made["credential"]["access"].as_str().unwrap());
    assert_eq!(ask(&auth, &looks, Method::GET, &keys, &Value::Null).await.0, StatusCode::OK);
    assert_eq!(ask(&auth, &looks, Method::POST, &keys, &wish).await.0, StatusCode::FORBIDDEN);
    assert_eq!(ask(&auth, &looks, Method::DELETE, &one, &Value::Null).await.0, StatusCode::FORBIDDEN);
    let path = format!("/v3/users/{victim}/application_credentials");
    let (status, made) =
        ask(&auth, &admin, Method::POST, &path, &json!({ "application_credential": { "name": "a" } })).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let one = format!("{path}/{}", made["application_credential"]["id"].as_str().unwrap());
    assert_eq!(ask(&auth, &looks, Method::GET, &one, &Value::Null).await.0, StatusCode::OK);
    assert_eq!(ask(&auth, &looks, Method::DELETE, &one, &Value::Null).await.0, StatusCode::FORBIDDEN);
    assert_eq!(ask(&auth, &admin, Method::DELETE, &one, &Value::Null).await.0, StatusCode::NO_CONTENT);
    rig.stop().await;
}

/// A token of a trust became one of its trustor, with all that the trustor may, and one of an application credential left its project.
#[tokio::test]
async fn what_was_lent_is_lent_no_further() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start();
    let auth = auth_with(CONFIG, dir.path(), unix_now);
    auth.keep_in(Cabinet::new(rig.store(), PAPERS, true));
    let (admin, shown) = token(&auth, &password("demo", "secret", Value::Null)).await;
    let (user, project) = (shown["user"]["id"].as_str().unwrap(), shown["project"]["id"].clone());
    let credentials = format!("/v3/users/{user}/application_credentials");
    let wish =
        |name: &str| json!({ "application_credential": { "name": name, "roles": [{ "name": "member" }] } });
    let (_, made) = ask(&auth, &admin, Method::POST, &credentials, &wish("little")).await;
    let made = &made["application_credential"];
    let identity = json!({ "methods": ["application_credential"],
        "application_credential": { "id": made["id"], "secret": made["secret"] } });
    let (little, _) = token(&auth, &json!({ "auth": { "identity": identity } })).await;
    let trust = json!({ "trust": { "trustor_user_id": user, "trustee_user_id": user, "project_id": project,
        "impersonation": true, "roles": [{ "name": "member" }] } });
    let (status, given) = ask(&auth, &admin, Method::POST, "/v3/OS-TRUST/trusts", &trust).await;
    assert_eq!(status, StatusCode::CREATED, "{given}");
    let scope = json!({ "OS-TRUST:trust": { "id": given["trust"]["id"] } });
    let (trusted, _) = token(&auth, &password("demo", "secret", scope)).await;

    let again = async |shown: &str, scope: Value| {
        let identity = json!({ "methods": ["token"], "token": { "id": shown } });
        let body = json!({ "auth": { "identity": identity, "scope": scope } });
        ask(&auth, "", Method::POST, "/v3/auth/tokens", &body).await
    };
    let other = json!({ "project": { "name": "other", "domain": { "id": "default" } } });
    for scope in [other, json!("unscoped"), json!({ "project": { "id": project } })] {
        assert_eq!(again(&little, scope.clone()).await.0, StatusCode::FORBIDDEN, "{scope}");
        assert_eq!(again(&trusted, scope.clone()).await.0, StatusCode::FORBIDDEN, "{scope}");
    }
    assert_eq!(again(&trusted, Value::Null).await.0, StatusCode::FORBIDDEN);
    let (status, same) = again(&little, Value::Null).await;
    assert_eq!((status, &same["token"]["project"]["id"]), (StatusCode::CREATED, &project));
    let roles = same["token"]["roles"].as_array().unwrap();
    assert!(roles.iter().all(|role| role["name"] != "admin"), "{roles:?}");
    // A key of the user's own, and what it may do, are not what was lent.
    let keys = format!("/v3/users/{user}/credentials/OS-EC2");
    let wanted = json!({ "tenant_id": project });
    let (status, own) = ask(&auth, &admin, Method::POST, &keys, &wanted).await;
    assert_eq!(status, StatusCode::CREATED, "{own}");
    let one = format!("{keys}/{}", own["credential"]["access"].as_str().unwrap());
    let (_, all) = ask(&auth, &admin, Method::GET, "/v3/credentials", &Value::Null).await;
    let by_id = format!("/v3/credentials/{}", all["credentials"][0]["id"].as_str().unwrap());
    for shown in [&little, &trusted] {
        let (status, seen) = ask(&auth, shown, Method::GET, &keys, &Value::Null).await;
        assert_eq!((status, &seen["credentials"]), (StatusCode::OK, &json!([])));
        let (status, seen) = ask(&auth, shown, Method::GET, "/v3/credentials", &Value::Null).await;
        assert_eq!((status, &seen["credentials"]), (StatusCode::OK, &json!([])));
        let secret = json!({ "credential": { "blob": "{\"access\": \"a\", \"secret\": \"s\"}" } });
        for (method, path, body, found) in [
            (Method::GET, &one, &Value::Null, StatusCode::NOT_FOUND),
            (Method::GET, &by_id, &Value::Null, StatusCode::FORBIDDEN),
            (Method::PATCH, &by_id, &secret, StatusCode::FORBIDDEN),
            (Method::DELETE, &by_id, &Value::Null, StatusCode::FORBIDDEN),
            (
                Method::DELETE,
                &format!("{credentials}/{}", made["id"].as_str().unwrap()),
                &Value::Null,
                StatusCode::FORBIDDEN,
            ),
        ] {
            assert_eq!(ask(&auth, shown, method.clone(), path, body).await.0, found, "{method} {path}");
        }
        let gone = ask(&auth, shown, Method::DELETE, &one, &Value::Null).await.0;
        assert!([StatusCode::FORBIDDEN, StatusCode::NOT_FOUND].contains(&gone), "{gone}");
    }
    assert_eq!(ask(&auth, &little, Method::POST, &keys, &wanted).await.0, StatusCode::FORBIDDEN);
    // As Keystone has it: services make keys with a trust, which give what that does, and end it with itself.
    let (status, bound) = ask(&auth, &trusted, Method::POST, &keys, &wanted).await;
    assert_eq!((status, &bound["credential"]["trust_id"]), (StatusCode::CREATED, &given["trust"]["id"]));
    let (_, seen) = ask(&auth, &trusted, Method::GET, &keys, &Value::Null).await;
    assert_eq!(seen["credentials"], json!([bound["credential"]]));
    for (shown, path, body) in [
        (&little, "/v3/OS-TRUST/trusts", &trust),
        (&trusted, "/v3/OS-TRUST/trusts", &trust),
        (&little, credentials.as_str(), &wish("more")),
        (&trusted, credentials.as_str(), &wish("more")),
    ] {
        assert_eq!(ask(&auth, shown, Method::POST, path, body).await.0, StatusCode::FORBIDDEN, "{path}");
    }
    let (_, second) = ask(&auth, &admin, Method::POST, "/v3/OS-TRUST/trusts", &trust).await;
    let path = |given: &Value| format!("/v3/OS-TRUST/trusts/{}", given["trust"]["id"].as_str().unwrap());
    let end = async |shown, given| ask(&auth, shown, Method::DELETE, &path(given), &Value::Null).await.0;
    assert_eq!(end(&little, &given).await, StatusCode::FORBIDDEN);
    assert_eq!(end(&trusted, &second).await, StatusCode::FORBIDDEN, "another one");
    assert_eq!(end(&trusted, &given).await, StatusCode::NO_CONTENT);
    rig.stop().await;
}

/// It lasted for a whole token's life after what it had been got with was over.
#[tokio::test]
async fn a_token_lasts_no_longer_than_what_it_was_got_with() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start();
    let auth = auth_with(CONFIG, dir.path(), unix_now);
    auth.keep_in(Cabinet::new(rig.store(), PAPERS, true));
    let (admin, shown) = token(&auth, &password("demo", "secret", Value::Null)).await;
    let (user, project) = (shown["user"]["id"].as_str().unwrap(), shown["project"]["id"].clone());
    let end = super::iso8601(unix_now() + 600);
    let path = format!("/v3/users/{user}/application_credentials");
    let wish = json!({ "application_credential": { "name": "brief", "expires_at": end } });
    let (status, made) = ask(&auth, &admin, Method::POST, &path, &wish).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let made = &made["application_credential"];
    let identity = json!({ "methods": ["application_credential"],
        "application_credential": { "id": made["id"], "secret": made["secret"] } });
    let trust = json!({ "trust": { "trustor_user_id": user, "trustee_user_id": user, "project_id": project,
        "impersonation": true, "roles": [{ "name": "member" }], "expires_at": end } });
    let (status, given) = ask(&auth, &admin, Method::POST, "/v3/OS-TRUST/trusts", &trust).await;
    assert_eq!(status, StatusCode::CREATED, "{given}");
    let scope = json!({ "OS-TRUST:trust": { "id": given["trust"]["id"] } });
    for login in [json!({ "auth": { "identity": identity } }), password("demo", "secret", scope)] {
        let (brief, shown) = token(&auth, &login).await;
        assert_eq!(shown["expires_at"].as_str().unwrap()[..19], end[..19]);
        let renewed = auth.session(&auth.lasting(&brief).unwrap()).unwrap();
        assert!(renewed.claims.expires <= unix_now() + 600);
    }
    rig.stop().await;
}
