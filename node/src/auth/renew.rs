//! Tokens for what was accepted and is still being done when the caller's own token expires.
//!
//! Invariant: nobody gets one by asking: it is for tasks of this node, which have the caller's token.
//! Invariant: it gives what the caller's own one would give now: user, password, project, role, credential and trust are looked at anew.
//! Invariant: a token that was taken back is not renewed, and neither is one that expired longer ago than [`LATEST`]. What was taken back is
//! remembered until it could be renewed no more, and what had been made in its place has expired.

use std::sync::atomic::Ordering;

use super::Auth;
use super::keystone::scope::capped;
use super::token::{Claims, Kind};

/// How long after its end a token is renewed at the latest, as long as Keystone takes one from a service.
pub(super) const LATEST: u64 = 48 * 3600;
/// A token that ends sooner is renewed: who is asked with it may look at it a little later.
pub(super) const SOON: u64 = 120;

impl Auth {
    /// A token that is good for a while yet, for what was asked for with this one: itself, or one in its place. `None`: it is none of this node's,
    /// or what it stood for is no more.
    pub(crate) fn lasting(&self, token: &str) -> Option<String> {
        let now = (self.now)();
        let claims = self.tokens.open_late(token, now, LATEST)?;
        let session = self.session_of(claims, self.changes.load(Ordering::Acquire))?;
        if now + SOON < session.claims.expires {
            return Some(token.to_owned());
        }
        // With the same audit id: who takes one back takes back the other.
        let claims = Claims { issued: now, expires: now + self.token_life, ..session.claims };
        self.tokens.seal(&capped(self.directory().roll(), claims))
    }

    /// Until when it is remembered that a token was taken back.
    pub(super) fn remembered(&self, claims: &Claims) -> u64 {
        let more = match claims.kind {
            Kind::Keystone => LATEST.max(self.token_life),
            Kind::V1 => 0,
        };
        claims.expires.saturating_add(more)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use http::Method;
    use serde_json::{Value, json};

    use super::*;
    use crate::auth::tests::{CONFIG, auth_with, call, keystone_token, password};
    use crate::auth::unix_now;

    static NOW: AtomicU64 = AtomicU64::new(0);

    #[tokio::test]
    async fn a_token_is_renewed_late_for_who_may_still_do_the_same() {
        let now = || NOW.load(Ordering::Relaxed);
        NOW.store(unix_now(), Ordering::Relaxed);
        let dir = tempfile::tempdir().unwrap();
        let auth = auth_with(CONFIG, dir.path(), now);
        let scope = json!({ "project": { "name": "demo", "domain": { "name": "Default" } } });
        let (token, _) = keystone_token(&auth, &password("demo", "secret", scope)).await;
        let (revoked, _) = keystone_token(&auth, &password("demo", "secret", Value::Null)).await;
        let (kept, _) = keystone_token(&auth, &password("guest", "guest", Value::Null)).await;
        let (ending, _) = keystone_token(&auth, &password("guest", "guest", Value::Null)).await;
        let both = [("x-auth-token", revoked.as_str()), ("x-subject-token", revoked.as_str())];
        call(&auth, Method::DELETE, "/v3/auth/tokens", &both, &Value::Null).await;
        assert_eq!(auth.lasting(&revoked), None);
        assert_eq!(auth.lasting("gAAAAAbogus"), None, "of another Keystone");
        assert_eq!(auth.lasting(&token).unwrap(), token, "it lasts");
        NOW.fetch_add(86_400 - SOON, Ordering::Relaxed);
        assert!(auth.session(&token).is_some() && auth.lasting(&token).unwrap() != token, "it ends soon");
        let replaced = auth.lasting(&ending).unwrap();
        assert!(replaced != ending && auth.session(&replaced).is_some());
        let own = [("x-auth-token", ending.as_str()), ("x-subject-token", ending.as_str())];
        call(&auth, Method::DELETE, "/v3/auth/tokens", &own, &Value::Null).await;
        assert!(auth.session(&replaced).is_none() && auth.lasting(&ending).is_none());
        NOW.fetch_add(SOON + 100, Ordering::Relaxed);
        // Whoever takes one back forgets what need not be remembered.
        let (other, _) = keystone_token(&auth, &password("guest", "guest", Value::Null)).await;
        let other = [("x-auth-token", other.as_str()), ("x-subject-token", other.as_str())];
        call(&auth, Method::DELETE, "/v3/auth/tokens", &other, &Value::Null).await;
        assert!(auth.session(&token).is_none());
        let fresh = auth.lasting(&token).unwrap();
        let session = auth.session(&fresh).unwrap();
        let who = session.who().unwrap();
        assert!(who.project.is_some() && who.roles.contains(&"admin".to_owned()), "{who:?}");
        // Of a user who has another password now, has lost the role, or is gone.
        for (from, to) in [
            ("password = \"secret\"", "password = \"changed\""),
            ("demo = [\"admin\", \"member\"], ", ""),
            ("name = \"demo\"\npassword", "name = \"renamed\"\npassword"),
        ] {
            let text = CONFIG.replace(from, to);
            assert_ne!(text, CONFIG);
            assert_eq!(auth_with(&text, dir.path(), now).lasting(&token), None, "{to}");
        }
        assert!(auth.lasting(&kept).is_some());
        // Taken back before it expired, and forgotten neither then nor while what was made in its place would be good.
        assert!(auth.session(&replaced).is_none(), "of an audit id that was taken back");
        assert_eq!((auth.lasting(&ending), auth.lasting(&revoked)), (None, None));
        NOW.fetch_add(LATEST, Ordering::Relaxed);
        assert_eq!((auth.lasting(&token), auth.lasting(&kept)), (None, None), "too late");
    }
}
