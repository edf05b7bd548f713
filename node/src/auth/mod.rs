//! Who calls: tokens of Swift's v1 auth and of Keystone v3, and the users behind them.
//!
//! Decides who a caller is, never what it may do: that is the API's.
//! Invariant: a session is only ever made from a token that opened, for a user who is still listed with the same key.
//! Invariant: a cached session ends with its token: at its expiry, and at any revocation it is looked at anew.

mod calendar;
mod directory;
mod endpoints;
pub(crate) mod keystone;
mod token;
pub(crate) mod users_file;
pub(crate) mod v1;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderMap;
use quick_cache::sync::Cache;

use crate::config;
use crate::swift::Caller;
use directory::{ACCOUNT_PREFIX, Directory, User};
use token::{CLAIMS_VERSION, Claims, Kind, Tokens};

pub(crate) use directory::ListedTwice;
pub(crate) use endpoints::{Arrival, Endpoints};
pub(crate) use token::TokenError;

/// Roles that own the account of their project, as Swift's keystoneauth has them by default.
const OWNER_ROLES: [&str; 2] = ["admin", "swiftoperator"];
/// Keystone's role that may do anything in any account, as Swift's keystoneauth names it.
const RESELLER_ROLE: &str = "ResellerAdmin";
/// Group or role whose token, sent as X-Service-Token, opens service accounts.
const SERVICE_GROUP: &str = "service";

/// Reads the time in Unix seconds.
pub(crate) type Now = fn() -> u64;

/// The wall clock in Unix seconds.
pub(crate) fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Authentication of one node.
#[derive(Debug)]
pub(crate) struct Auth {
    directory: Directory,
    tokens: Tokens,
    endpoints: Endpoints,
    region: String,
    /// Seconds.
    token_life: u64,
    cache: Cache<Box<str>, Arc<Session>>,
    /// Counts revocations: a cached session of an older count is looked at anew.
    revocations: AtomicU64,
    now: Now,
}

/// An authenticated caller.
#[derive(Debug)]
pub(crate) struct Session {
    /// As the object API knows it.
    pub(crate) caller: Caller,
    claims: Claims,
    /// Role names within the project.
    roles: Vec<String>,
    /// [`Auth::revocations`] when the token was checked.
    checked_at: u64,
}

/// What a request's tokens amount to.
#[derive(Debug, Clone)]
pub(crate) enum Access {
    /// No token of ours.
    Anonymous,
    /// A good token.
    Known(Arc<Session>),
    /// A token that looks like ours and is not good.
    Denied,
}

/// Why authentication could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    /// Keys or revocations.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Users.
    #[error(transparent)]
    Users(#[from] ListedTwice),
}

impl Auth {
    /// Over the users in `lists`; keys and revocations are kept in `data`.
    pub(crate) fn open(
        config: &config::Config,
        lists: &[&config::Auth],
        data: &Path,
        endpoints: Endpoints,
        now: Now,
    ) -> Result<Self, SetupError> {
        Ok(Self {
            directory: Directory::new(lists)?,
            tokens: Tokens::open(data)?,
            endpoints,
            region: config.node.region.clone(),
            token_life: config.auth.token_life.get().as_secs(),
            cache: Cache::new(config.limits.token_cache.get()),
            revocations: AtomicU64::new(0),
            now,
        })
    }

    /// Who sends these headers.
    pub(crate) fn access(&self, headers: &HeaderMap) -> Access {
        let Some(token) = headers.get("x-auth-token").or_else(|| headers.get("x-storage-token")) else {
            return Access::Anonymous;
        };
        let Some(token) = token.to_str().ok().filter(|token| looks_like_ours(token)) else {
            return Access::Anonymous;
        };
        let Some(session) = self.session(token) else {
            return Access::Denied;
        };
        let service = headers.get("x-service-token").and_then(|token| token.to_str().ok());
        match service.and_then(|token| self.session(token)) {
            Some(service) => Access::Known(Arc::new(session.joined(&service))),
            None => Access::Known(session),
        }
    }

    /// The session of a token, if it is good.
    pub(crate) fn session(&self, token: &str) -> Option<Arc<Session>> {
        let now = (self.now)();
        let revocations = self.revocations.load(Ordering::Acquire);
        if let Some(session) = self.cache.get(token)
            && session.checked_at == revocations
        {
            return (now < session.claims.expires).then_some(session);
        }
        let claims = self.tokens.open_token(token, now)?;
        let session = Arc::new(self.session_of(claims, revocations)?);
        self.cache.insert(token.into(), Arc::clone(&session));
        Some(session)
    }

    /// The session that claims stand for: `None` when the user, the project, the role or the key is no more.
    fn session_of(&self, claims: Claims, checked_at: u64) -> Option<Session> {
        match claims.kind {
            Kind::V1 => {
                let user =
                    self.directory.v1(&claims.user).filter(|user| user.fingerprint() == claims.secret)?;
                Some(Session { caller: user.caller.clone(), claims, roles: Vec::new(), checked_at })
            }
            Kind::Keystone => {
                let user =
                    self.directory.user(&claims.user).filter(|user| user.fingerprint() == claims.secret)?;
                let roles = match &claims.project {
                    Some(project) => user.roles.get(project)?.clone(),
                    None => Vec::new(),
                };
                let caller = keystone_caller(user, claims.project.as_deref(), &roles);
                Some(Session { caller, claims, roles, checked_at })
            }
        }
    }

    /// Claims of a new token that begins now.
    fn claims(&self, kind: Kind, user: &str, secret: String, methods: &[&str]) -> Claims {
        let issued = (self.now)();
        Claims {
            version: CLAIMS_VERSION,
            kind,
            user: user.to_owned(),
            project: None,
            methods: methods.iter().map(|&method| method.to_owned()).collect(),
            issued,
            expires: issued + self.token_life,
            audit: token::audit_id(),
            secret,
        }
    }

    /// Takes a token back, durably, and ends it in the cache. Blocks on a file.
    fn revoke(&self, session: &Session) -> Result<(), TokenError> {
        self.tokens.revoke(&session.claims, (self.now)())?;
        self.revocations.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }
}

impl Session {
    /// The caller together with the service that acts for it.
    fn joined(&self, service: &Self) -> Self {
        let mut caller = self.caller.clone();
        caller.groups.extend(service.caller.groups.iter().cloned());
        caller.service = service.caller.groups.iter().any(|group| group == SERVICE_GROUP);
        Self { caller, claims: self.claims.clone(), roles: self.roles.clone(), checked_at: self.checked_at }
    }

    fn is_admin(&self) -> bool {
        self.roles.iter().any(|role| role == "admin")
    }
}

/// Whether a token has a form that we give out: others may belong to a proxy in front, and count as none.
fn looks_like_ours(token: &str) -> bool {
    token.starts_with(ACCOUNT_PREFIX) || token.starts_with("gAAAA")
}

/// A Keystone user within a project. Access lists know it as `project:user` in the forms of Swift's keystoneauth, and
/// by its role names.
fn keystone_caller(user: &User, project: Option<&str>, roles: &[String]) -> Caller {
    let has = |wanted: &[&str]| roles.iter().any(|role| wanted.contains(&role.as_str()));
    let mut caller = Caller { user: user.name.clone(), user_id: user.id.clone(), ..Caller::default() };
    caller.groups.push(format!("*:{}", user.id));
    if let Some(project) = project {
        caller.account = format!("{ACCOUNT_PREFIX}{project}");
        caller.groups.extend([format!("{project}:{}", user.id), format!("{project}:*")]);
        caller.groups.extend(roles.iter().cloned());
        caller.owner = has(&OWNER_ROLES);
        caller.reseller_admin = has(&[RESELLER_ROLE]);
    }
    caller
}
