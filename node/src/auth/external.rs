//! Another Keystone, whose tokens are good here: it is asked about each of them, and what it says is believed for a short time.
//!
//! Invariant: a token that was taken back there is good here for [`GOOD`] at most, and never after its expiry.
//! Invariant: who cannot be asked about is neither let in nor told that its token is bad: that is [`Unreachable`].
//! Invariant: of tokens hashes are kept, and the node's own token and password are shown nowhere.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use quick_cache::sync::Cache;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, Semaphore};

use super::calendar::seconds_of;
use super::rules::Rules;
use super::token::{CLAIMS_VERSION, Claims, Kind};
use super::{Session, keystone_caller};
use crate::config;
use crate::remote::{Remote, without_version};

/// Seconds for which an answer is believed.
const GOOD: u64 = 60;
/// Seconds after which it is asked again.
const FRESH: u64 = 50;
/// The same of an answer that a token is bad.
const BAD: u64 = 5;
/// Questions at a time.
const AT_ONCE: usize = 32;
/// How long one may take, waiting for its turn included.
const WITHIN: Duration = Duration::from_secs(10);
/// Largest answer.
const MAX_ANSWER: usize = 4 << 20;
/// Longest token that is asked about.
const MAX_TOKEN: usize = 8 << 10;

/// It cannot be asked, and why.
#[derive(Debug, thiserror::Error)]
#[error("the identity service cannot be asked: {0}")]
pub(crate) struct Unreachable(String);

impl Unreachable {
    fn because(reason: impl std::fmt::Display) -> Self {
        Self(reason.to_string())
    }
}

/// What it said of a token, and when.
#[derive(Clone)]
struct Seen {
    at: u64,
    session: Option<Arc<Session>>,
}

/// The other Keystone.
pub(crate) struct External {
    settings: config::External,
    remote: Remote,
    seen: Cache<[u8; 32], Seen>,
    /// The node's own token.
    own: Mutex<Option<String>>,
    asking: Semaphore,
    within: Duration,
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

impl External {
    /// As the configuration says; `kept`: of how many tokens answers are kept.
    pub(crate) fn new(settings: &config::External, kept: usize) -> Result<Self, Unreachable> {
        let (url, authority) = (settings.url.get_ref(), settings.authority.as_deref());
        let remote = Remote::new(url, "/v3", authority).map_err(Unreachable::because)?;
        Ok(Self {
            settings: settings.clone(),
            remote,
            seen: Cache::new(kept),
            own: Mutex::default(),
            asking: Semaphore::new(AT_ONCE),
            within: WITHIN,
        })
    }

    /// Where clients get tokens, without `/v3`.
    pub(crate) fn url(&self) -> String {
        without_version(self.settings.url.get_ref(), "/v3").to_owned()
    }

    /// The session of a token that was asked about a moment ago.
    pub(crate) fn known(&self, token: &str, now: u64) -> Option<Arc<Session>> {
        let seen = self.seen.get(&hash(token)).filter(|seen| now < seen.at + GOOD)?;
        seen.session.filter(|session| now < session.claims.expires)
    }

    /// Asks about a token, unless what is known of it is fresh.
    pub(crate) async fn meet(&self, token: &str, now: u64) -> Result<(), Unreachable> {
        if token.len() > MAX_TOKEN || token.is_empty() {
            return Ok(());
        }
        let key = hash(token);
        let fresh = |seen: &Seen| now < seen.at + if seen.session.is_some() { FRESH } else { BAD };
        if self.seen.get(&key).is_some_and(|seen| fresh(&seen)) {
            return Ok(());
        }
        // Waiting for its turn counts: one that says nothing must not hold up who comes for as long as the line is long.
        let asked = async {
            let _asking = self.asking.acquire().await.map_err(Unreachable::because)?;
            self.validate(token).await
        };
        let answer = tokio::time::timeout(self.within, asked).await;
        let session = answer.unwrap_or_else(|_| Err(Unreachable::because("it does not answer")))?;
        self.seen.insert(key, Seen { at: now, session: session.map(Arc::new) });
        Ok(())
    }

    async fn validate(&self, token: &str) -> Result<Option<Session>, Unreachable> {
        for again in [false, true] {
            let own = self.own_token(again).await?;
            // Keystone tells of tokens with access rules only to whom it knows to keep them.
            let keeps = ("openstack-identity-access-rules", "1.0");
            let headers = [("x-auth-token", own.as_str()), ("x-subject-token", token), keeps];
            let (status, _, body) =
                self.ask(Method::GET, "/v3/auth/tokens?nocatalog", &headers, None).await?;
            match status {
                StatusCode::OK => {
                    let session = session_of(&body);
                    return session
                        .map(Some)
                        .ok_or_else(|| Unreachable::because("its answer has no user or no end"));
                }
                StatusCode::NOT_FOUND => return Ok(None),
                // The node's own token is over.
                StatusCode::UNAUTHORIZED if !again => {}
                status => {
                    return Err(Unreachable(format!(
                        "it answers {status} to the user that asks about tokens"
                    )));
                }
            }
        }
        Err(Unreachable::because("it refuses the user that asks about tokens"))
    }

    async fn own_token(&self, anew: bool) -> Result<String, Unreachable> {
        let mut own = self.own.lock().await;
        if let Some(token) = own.as_ref().filter(|_| !anew) {
            return Ok(token.clone());
        }
        let config::External { user, password, project, user_domain, project_domain, .. } = &self.settings;
        let body = json!({ "auth": {
            "identity": { "methods": ["password"], "password": {
                "user": { "name": user, "domain": { "name": user_domain }, "password": password.0 } } },
            "scope": { "project": { "name": project, "domain": { "name": project_domain } } },
        } });
        let (status, headers, _) = self.ask(Method::POST, "/v3/auth/tokens", &[], Some(&body)).await?;
        let token = headers.get("x-subject-token").and_then(|token| token.to_str().ok());
        match token.filter(|_| status == StatusCode::CREATED) {
            Some(token) => Ok(own.insert(token.to_owned()).clone()),
            None => Err(Unreachable(format!("it answers {status} to the user that asks about tokens"))),
        }
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<(StatusCode, HeaderMap, Value), Unreachable> {
        let io = TokioIo::new(self.remote.connect().await.map_err(Unreachable::because)?);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(io).await.map_err(Unreachable::because)?;
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.remote.prefix));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request = request.header("host", &self.remote.address).header("content-type", "application/json");
        let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let request = request.body(Full::new(body)).map_err(Unreachable::because)?;
        let talk = async {
            let answer = sender.send_request(request).await.map_err(Unreachable::because)?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await;
            let body = body.map_err(|_| Unreachable::because("its answer is too long or broken"))?.to_bytes();
            Ok((head.status, head.headers, serde_json::from_slice(&body).unwrap_or(Value::Null)))
        };
        // The connection moves while its answer is waited for, and goes with it.
        let mut talk = std::pin::pin!(talk);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            biased;
            answer = &mut talk => answer,
            // What it had sent is there still.
            _ended = &mut connection => talk.await,
        }
    }
}

/// What its answer says of a token.
fn session_of(body: &Value) -> Option<Session> {
    let token = body.get("token")?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let id = |name: &str| token.get(name).and_then(|of| of.get("id")).and_then(text);
    let (user, name) = (id("user")?, text(token.get("user")?.get("name")?)?);
    let list = |name: &str| token.get(name).and_then(Value::as_array).into_iter().flatten();
    let roles: Vec<String> = list("roles").filter_map(|role| text(role.get("name")?)).collect();
    let time = |name: &str| token.get(name).and_then(Value::as_str).and_then(seconds_of);
    let claims = Claims {
        version: CLAIMS_VERSION,
        kind: Kind::Keystone,
        project: id("project"),
        domain: id("domain"),
        system: token.get("system").is_some_and(|system| system["all"] == true),
        trust: None,
        credential: None,
        methods: list("methods").filter_map(text).collect(),
        issued: time("issued_at").unwrap_or(0),
        expires: time("expires_at")?,
        audit: list("audit_ids").find_map(text).unwrap_or_default(),
        secret: crate::hidden::Hidden::default(),
        user,
    };
    let caller = keystone_caller(&name, &claims.user, claims.project.as_deref(), &roles);
    let rules = token.get("application_credential").and_then(|of| Rules::of(of.get("access_rules")));
    Some(Session { caller, claims, roles, rules: rules.map(Arc::new), checked_at: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> Value {
        json!({ "token": {
            "user": { "id": "u1", "name": "ann", "domain": { "id": "default", "name": "Default" } },
            "project": { "id": "p1", "name": "demo" }, "roles": [{ "id": "r", "name": "admin" }],
            "methods": ["password"], "audit_ids": ["a1"], "issued_at": "2026-11-23T22:55:05.000000Z",
            "expires_at": "2026-11-23T23:55:05.000000Z",
        } })
    }

    fn external() -> External {
        let text = "url = \"http://[::1]:5000/identity/v3\"\nuser = \"u\"\npassword = \"secret\"\nproject = \"service\"\n";
        External::new(&toml::from_str(text).unwrap(), 16).unwrap()
    }

    #[test]
    fn an_answer_says_who_it_is() {
        let session = session_of(&answer()).unwrap();
        assert_eq!(session.caller.account, "AUTH_p1");
        assert!(session.caller.owner);
        let who = session.who().unwrap();
        assert_eq!((who.user, who.project, who.roles), ("u1", Some("p1"), &["admin".to_owned()][..]));
        for missing in ["user", "expires_at"] {
            let mut body = answer();
            body["token"].as_object_mut().unwrap().remove(missing);
            assert!(session_of(&body).is_none(), "{missing}");
        }
        let mut lent = answer();
        lent["token"]["application_credential"] = json!({ "id": "c", "access_rules": [] });
        assert!(session_of(&lent).unwrap().rules.is_some() && session.rules.is_none());
        let mut unscoped = answer();
        unscoped["token"].as_object_mut().unwrap().remove("project");
        assert_eq!(session_of(&unscoped).unwrap().caller.account, "");
    }

    #[tokio::test]
    async fn who_waits_for_a_keystone_that_says_nothing_waits_no_longer_for_others_that_do() {
        let external = External { within: Duration::from_millis(50), ..external() };
        let _others = external.asking.acquire_many(u32::try_from(AT_ONCE).unwrap()).await.unwrap();
        let asked = tokio::time::timeout(Duration::from_secs(60), external.meet("t", 1000)).await;
        assert!(asked.expect("it ends by itself").is_err());
        assert!(external.known("t", 1000).is_none());
    }

    #[test]
    fn what_was_said_is_good_for_a_minute_and_not_beyond_the_token() {
        let external = external();
        assert_eq!(external.url(), "http://[::1]:5000/identity");
        let session = Arc::new(session_of(&answer()).unwrap());
        let end = session.claims.expires;
        let learn = |at| external.seen.insert(hash("t"), Seen { at, session: Some(Arc::clone(&session)) });
        learn(1000);
        assert!(external.known("t", 1000 + GOOD - 1).is_some() && external.known("other", 1000).is_none());
        assert!(external.known("t", 1000 + GOOD).is_none());
        learn(end - 5);
        assert!(external.known("t", end - 1).is_some() && external.known("t", end).is_none());
        external.seen.insert(hash("t"), Seen { at: 1000, session: None });
        assert!(external.known("t", 1000).is_none());
    }
}
