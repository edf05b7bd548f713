//! Users, keys and revocations that nodes of a cluster have in common, without a cluster: each node adopts the same rows.

use http::{Method, StatusCode};
use quarry_engine::net::{Code, Failure, NetError, NodeId};
use quarry_engine::object::BoxFuture;
use serde_json::Value;

use super::tests::{CONFIG, auth_with, call, headers, known, password, v1_token};
use super::*;
use crate::config::{Config, Source};

const NOW: u64 = 1_700_000_000;

fn in_cluster(text: &str) -> String {
    format!("{text}\n[cluster]\nlisten = \"127.0.0.1:7000\"\n")
}

fn apply(people: &mut People, rows: Vec<(Vec<u8>, Vec<u8>)>) {
    rows.into_iter().for_each(|(key, value)| people.take(&key[2..], &value).unwrap());
}

/// The users of [`CONFIG`] as a cluster has them, and a first key.
fn people() -> People {
    let config = Config::parse(Source { file: Path::new("c"), text: CONFIG }).unwrap();
    let mut people = People::default();
    apply(&mut people, rows_of(&config.auth, |_| true));
    renew(&mut people, NOW);
    people
}

fn renew(people: &mut People, now: u64) {
    for (key, value) in people.due(now, crate::storage::random_bytes, 9) {
        people.take(&key[2..], &value.unwrap()).unwrap();
    }
}

/// A node whose own configuration has no users.
fn node(people: &People) -> Arc<Auth> {
    let text = in_cluster("[node]\ndata = \"data\"\n[[disk]]\npath = \"d\"\nindex = \"i\"\n");
    let auth = auth_with(&text, Path::new("/nowhere"), || NOW);
    auth.adopt(people, None);
    auth
}

/// Says what is asked of it.
struct Told(std::sync::Mutex<Vec<Wish>>, bool);

impl Transport for Told {
    fn local(&self) -> NodeId {
        NodeId([1; 16])
    }

    fn call(
        &self,
        _: NodeId,
        request: Request,
        _: Duration,
    ) -> BoxFuture<'static, Result<Response, NetError>> {
        let Request::Wish(wish) = request else { panic!("{request:?}") };
        self.0.lock().unwrap().push(wish);
        let refused = || Response::Failed(Failure::new(Code::Unavailable, "no leader"));
        let answer = if self.1 { Response::Done } else { refused() };
        Box::pin(std::future::ready(Ok(answer)))
    }

    fn cast(&self, _: NodeId, _: Request) {}

    fn name(&self) -> &'static str {
        "told"
    }
}

#[tokio::test]
async fn a_token_of_one_node_is_good_at_every_other_in_both_forms() {
    let people = people();
    let (one, two) = (node(&people), node(&people));
    let token = v1_token(&one, "test:tester", "testing");
    assert_eq!(known(&two, &[("x-auth-token", &token)]).caller.account, "AUTH_test");
    let body = password("demo", "secret", Value::Null);
    let (answer, _) = call(&one, Method::POST, "/v3/auth/tokens", &[], &body).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    let token = answer.headers()["x-subject-token"].to_str().unwrap().to_owned();
    let session = known(&two, &[("x-auth-token", &token)]);
    assert!(session.is_admin() && session.caller.account.starts_with("AUTH_"));
    // A node that is started anew knows no more than the rows.
    assert_eq!(known(&node(&people), &[("x-auth-token", &token)]).caller, session.caller);
    let wrong = v1::answer(
        &two,
        &Method::GET,
        "/auth/v1.0",
        &headers(&[("x-auth-user", "test:tester"), ("x-auth-key", "testing2")]),
    );
    assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn what_the_cluster_changes_ends_tokens_and_what_it_does_not_change_does_not() {
    let mut people = people();
    let auth = node(&people);
    let token = v1_token(&auth, "test:tester", "testing");
    let other = v1_token(&auth, "test5:tester5", "testing5");
    let before = people.clone();
    people.v1_users.get_mut("test:tester").unwrap().verifier = Verifier::of("new");
    auth.adopt(&people, Some(&before));
    assert!(auth.session(&token).is_none() && auth.session(&other).is_some());
    let token = v1_token(&auth, "test:tester", "new");
    let before = people.clone();
    let audit = auth.session(&token).unwrap().claims.audit.clone();
    let (key, value) = people::revoked_row(&audit, NOW + 99);
    apply(&mut people, vec![(key, value)]);
    auth.adopt(&people, Some(&before));
    assert!(auth.session(&token).is_none(), "revoked at another node");
    let before = people.clone();
    people.v1_users.remove("test5:tester5");
    auth.adopt(&people, Some(&before));
    assert!(auth.session(&other).is_none());
}

#[tokio::test]
async fn keys_change_and_tokens_live_on() {
    let mut people = people();
    let auth = node(&people);
    let token = v1_token(&auth, "test:tester", "testing");
    let before = people.clone();
    renew(&mut people, NOW + 24 * 3600);
    assert_eq!(people.keys.0.len(), 2);
    auth.adopt(&people, Some(&before));
    assert!(auth.session(&token).is_some());
    people.keys.0.remove(&0);
    auth.adopt(&people, Some(&before));
    assert!(auth.session(&token).is_none(), "sealed with a key that is no more");
}

#[tokio::test]
async fn a_revocation_is_answered_when_the_cluster_has_it() {
    let people = people();
    for (done, status) in [(false, StatusCode::SERVICE_UNAVAILABLE), (true, StatusCode::NO_CONTENT)] {
        let auth = node(&people);
        let told = Arc::new(Told(std::sync::Mutex::default(), done));
        auth.join(Arc::<Told>::clone(&told));
        let claims =
            auth.claims(Kind::Keystone, &derived_id("user", "demo"), fingerprint_of(&auth), &["password"]);
        let token = auth.tokens.seal(&claims).unwrap();
        let fields = [("x-auth-token", &*token), ("x-subject-token", &*token)];
        assert!(auth.session(&token).is_some());
        let (answer, _) = call(&auth, Method::DELETE, "/v3/auth/tokens", &fields, &Value::Null).await;
        assert_eq!(answer.status(), status);
        assert_eq!(told.0.lock().unwrap().len(), 1);
        assert_eq!(auth.session(&token).is_none(), done);
    }
}

fn fingerprint_of(auth: &Auth) -> String {
    auth.directory().user_named("demo", "default").unwrap().fingerprint()
}

#[test]
fn before_the_cluster_is_known_nobody_gets_a_token() {
    let auth = auth_with(&in_cluster(CONFIG), Path::new("/nowhere"), || NOW);
    let login = headers(&[("x-auth-user", "test:tester"), ("x-auth-key", "testing")]);
    let answer = v1::answer(&auth, &Method::GET, "/auth/v1.0", &login);
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[test]
fn the_clusters_key_counts_not_the_configurations() {
    let mut people = people();
    people.v1_users.get_mut("test:tester").unwrap().verifier = Verifier::of("other");
    let auth = auth_with(&in_cluster(CONFIG), Path::new("/nowhere"), || NOW);
    auth.adopt(&people, None);
    v1_token(&auth, "test:tester", "other");
    let login = headers(&[("x-auth-user", "test:tester"), ("x-auth-key", "testing")]);
    let answer = v1::answer(&auth, &Method::GET, "/auth/v1.0", &login);
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
}
