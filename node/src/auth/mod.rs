//! Who calls: tokens of Swift's v1 auth and of Keystone v3, and the users behind them.
//!
//! Decides who a caller is, never what it may do: that is the API's; but a token that was lent for some requests is good for no others.
//! Invariant: a session is only ever made from a token that opened, for a user who is still listed with the same key.
//! Invariant: a cached session ends with its token: at its expiry, and at any revocation or change of users it is looked at anew.
//! Invariant: nobody is asked who a caller is: users, keys and revocations of a cluster are known at every node. Only where another
//! Keystone's tokens are good that one is asked, before a request is looked at (`meet`).

mod calendar;
mod directory;
mod endpoints;
mod external;
mod keep;
pub(crate) mod keystone;
mod renew;
pub(crate) mod roll;
pub(crate) mod rules;
mod token;
pub(crate) mod users_file;
pub(crate) mod v1;
mod verifier;

#[cfg(test)]
mod elsewhere_tests;
#[cfg(test)]
mod rules_tests;
#[cfg(test)]
mod shared_tests;
#[cfg(test)]
mod signed_tests;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use http::HeaderMap;
use quarry_engine::net::{Request, Response, Transport, Wish};
use quick_cache::sync::Cache;

use crate::config;
use crate::control::people::{self, People};
use crate::swift::Caller;
use directory::{ACCOUNT_PREFIX, Directory};
use external::{External, Unreachable};
use rules::{Asked, Rules};
use token::{CLAIMS_VERSION, Claims, Kind, Tokens};

pub(crate) use calendar::iso8601;
pub(crate) use directory::{ListedTwice, derived_id, rows_of};
pub(crate) use endpoints::{Arrival, Endpoints};
pub(crate) use keep::ACCOUNT as PAPERS;
pub(crate) use token::TokenError;
pub(crate) use verifier::Verifier;

/// Roles that own the account of their project, as Swift's keystoneauth has them by default.
const OWNER_ROLES: [&str; 2] = ["admin", "swiftoperator"];
/// Keystone's role that may do anything in any account, as Swift's keystoneauth names it.
const RESELLER_ROLE: &str = "ResellerAdmin";
/// Group or role whose token, sent as X-Service-Token, opens service accounts.
const SERVICE_GROUP: &str = "service";

/// How long a revocation in a cluster may take.
const WITHIN: Duration = Duration::from_secs(10);

/// The users that a node was given: test users and others.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listed {
    /// The well-known users of test suites, which come before all others.
    pub(crate) test: Option<config::Auth>,
    /// Of the configuration; at a node alone that has none, those that it made at its first start.
    pub(crate) own: config::Auth,
    /// At a node of a cluster: those that its founder made at its first start. They are the cluster's since.
    pub(crate) made: Option<config::Auth>,
}

impl Listed {
    /// The lists that count here, in their order.
    fn lists(&self) -> impl Iterator<Item = &config::Auth> {
        self.test.iter().chain([&self.own])
    }

    /// All lists that clients may be told of.
    pub(crate) fn told(&self) -> impl Iterator<Item = &config::Auth> {
        self.lists().chain(&self.made)
    }
}

/// Reads the time in Unix seconds.
pub(crate) type Now = fn() -> u64;

/// The wall clock in Unix seconds.
pub(crate) fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Authentication of one node.
pub(crate) struct Auth {
    listed: Listed,
    directory: RwLock<Arc<Directory>>,
    tokens: Tokens,
    /// What the identity API was told is kept here.
    cabinet: OnceLock<crate::papers::Cabinet>,
    /// As it was read last.
    told: std::sync::Mutex<Vec<Arc<crate::papers::Paper>>>,
    /// What the cluster has, as it was adopted last.
    people: std::sync::Mutex<Option<People>>,
    /// What the cluster is told by, at a node that is in one.
    cluster: OnceLock<Arc<dyn Transport>>,
    endpoints: Endpoints,
    /// Another Keystone, whose tokens are good too.
    external: Option<External>,
    region: String,
    /// Seconds.
    token_life: u64,
    cache: Cache<Box<str>, Arc<Session>>,
    /// Counts revocations and changes of users: a cached session of an older count is looked at anew.
    changes: AtomicU64,
    now: Now,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

/// An authenticated caller.
#[derive(Debug)]
pub(crate) struct Session {
    /// As the object API knows it.
    pub(crate) caller: Caller,
    claims: Claims,
    /// Role names within the project.
    roles: Vec<String>,
    /// The requests that it is good for, where these are not all: of the application credential that the token was given for.
    rules: Option<Arc<Rules>>,
    /// [`Auth::changes`] when the token was checked.
    checked_at: u64,
}

/// What a request's tokens amount to.
#[derive(Debug, Clone)]
pub(crate) enum Access {
    /// No token of ours.
    Anonymous,
    /// A good token.
    Known(Arc<Session>),
    /// A token that looks like ours and is not good, or not for this request.
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
    /// Another Keystone.
    #[error(transparent)]
    External(#[from] Unreachable),
}

impl Auth {
    /// Over the users in `listed`; keys and revocations are kept in `data`. A node of a cluster knows nobody until it
    /// [adopts](Self::adopt) what the cluster has.
    pub(crate) fn open(
        config: &config::Config,
        listed: &Listed,
        data: &Path,
        endpoints: Endpoints,
        now: Now,
    ) -> Result<Self, SetupError> {
        let tokens = if config.cluster.is_some() { Tokens::shared() } else { Tokens::open(data)? };
        let lists: Vec<_> = listed.lists().collect();
        let kept = config.limits.token_cache.get();
        let external = config.identity.external.as_ref();
        let external = external.map(|settings| External::new(settings, kept)).transpose()?;
        Ok(Self {
            external,
            listed: listed.clone(),
            directory: RwLock::new(Arc::new(Directory::new(&lists)?.told(&config.node.region, &[], None))),
            cabinet: OnceLock::new(),
            told: std::sync::Mutex::default(),
            people: std::sync::Mutex::default(),
            tokens,
            cluster: OnceLock::new(),
            endpoints,
            region: config.node.region.clone(),
            token_life: config.auth.token_life.get().as_secs(),
            cache: Cache::new(kept),
            changes: AtomicU64::new(0),
            now,
        })
    }

    /// From now on revocations are told to the cluster.
    pub(crate) fn join(&self, cluster: Arc<dyn Transport>) {
        self.cluster.get_or_init(|| cluster);
    }

    /// Takes over what the cluster has; `before` is what was taken over last.
    pub(crate) fn adopt(&self, people: &People, before: Option<&People>) {
        if before == Some(people) {
            return;
        }
        self.tokens.adopt(people, (self.now)());
        if before.is_none_or(|before| !before.same_persons(people)) {
            *self.people.lock().unwrap_or_else(PoisonError::into_inner) = Some(people.clone());
            self.rebuild();
        }
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Base URL of the volume API, without a path.
    pub(crate) fn volume_url(&self, headers: &HeaderMap, arrival: Arrival) -> String {
        self.endpoints.volume(headers, arrival)
    }

    /// Where another service is, as the catalog says: what services use, or else what everybody does.
    pub(crate) fn service_url(&self, kind: &str) -> Option<String> {
        let directory = self.directory();
        let roll = directory.roll();
        let services = roll.all("service").filter(|service| roll::flag(service, "enabled", true));
        let services: Vec<&str> =
            services.filter(|it| roll::text(it, "type") == kind).map(|it| roll::text(it, "id")).collect();
        let endpoints = || roll.all("endpoint").filter(|endpoint| roll::flag(endpoint, "enabled", true));
        let found = ["internal", "public", "admin"].into_iter().find_map(|interface| {
            endpoints().find(|it| {
                roll::text(it, "interface") == interface && services.contains(&roll::text(it, "service_id"))
            })
        });
        found.map(|endpoint| roll::text(endpoint, "url").trim_end_matches('/').to_owned())
    }

    /// Base URL of the identity API, without a path.
    pub(crate) fn identity_url(&self, headers: &HeaderMap, arrival: Arrival) -> String {
        match &self.external {
            Some(external) if arrival != Arrival::Identity => external.url(),
            _ => self.endpoints.identity(headers, arrival),
        }
    }

    /// Asks another Keystone, if its tokens are good here, about those in these headers that are none of this node's.
    pub(crate) async fn meet(&self, headers: &HeaderMap) -> Result<(), Unreachable> {
        let Some(external) = &self.external else { return Ok(()) };
        for name in ["x-auth-token", "x-storage-token", "x-service-token"] {
            let token = headers.get(name).and_then(|token| token.to_str().ok());
            if let Some(token) = token.filter(|token| self.session(token).is_none()) {
                external.meet(token, (self.now)()).await.inspect_err(|error| tracing::warn!("{error}"))?;
            }
        }
        Ok(())
    }

    /// The session of a token of this node, or of another Keystone that was asked about it.
    pub(crate) fn anyones(&self, token: &str) -> Option<Arc<Session>> {
        self.session(token).or_else(|| self.external.as_ref()?.known(token, (self.now)()))
    }

    fn directory(&self) -> Arc<Directory> {
        Arc::clone(&self.directory.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Who sends these headers, and asks that.
    pub(crate) fn access(&self, headers: &HeaderMap, asked: &Asked<'_>) -> Access {
        let Some(token) = headers.get("x-auth-token").or_else(|| headers.get("x-storage-token")) else {
            return Access::Anonymous;
        };
        let ours = |token: &&str| self.external.is_some() || looks_like_ours(token);
        let Some(token) = token.to_str().ok().filter(ours) else {
            return Access::Anonymous;
        };
        let Some(session) = self.anyones(token) else {
            return Access::Denied;
        };
        if !self.admits(&session, headers, asked) {
            return Access::Denied;
        }
        match self.service(headers) {
            Some(service) => Access::Known(Arc::new(session.joined(&service))),
            None => Access::Known(session),
        }
    }

    /// The session of the service that acts for the caller. A token that was lent for some requests alone is none's.
    fn service(&self, headers: &HeaderMap) -> Option<Arc<Session>> {
        let token = headers.get("x-service-token").and_then(|token| token.to_str().ok());
        self.anyones(token?).filter(|session| session.rules.is_none())
    }

    /// Whether a session is good for what these headers came with. What a service asks for somebody is not what that one asked the
    /// service for: of that the rules were kept there. It must be a service: upstream any good token passes for one.
    fn admits(&self, session: &Session, headers: &HeaderMap, asked: &Asked<'_>) -> bool {
        let Some(rules) = &session.rules else { return true };
        rules.allow(asked) || self.service(headers).is_some_and(|service| service.vouches())
    }

    /// The session of a Keystone's token, if it is good for this.
    pub(crate) fn admitted(
        &self,
        token: &str,
        headers: &HeaderMap,
        asked: &Asked<'_>,
    ) -> Option<Arc<Session>> {
        self.anyones(token).filter(|session| self.admits(session, headers, asked))
    }

    /// The session of a token that this node, or its cluster, gave out, if it is good.
    pub(crate) fn session(&self, token: &str) -> Option<Arc<Session>> {
        let now = (self.now)();
        let changes = self.changes.load(Ordering::Acquire);
        if let Some(session) = self.cache.get(token)
            && session.checked_at == changes
        {
            return (now < session.claims.expires).then_some(session);
        }
        let claims = self.tokens.open_token(token, now)?;
        let session = Arc::new(self.session_of(claims, changes)?);
        self.cache.insert(token.into(), Arc::clone(&session));
        Some(session)
    }

    /// The session that claims stand for: `None` when the user, the project, the role or the key is no more.
    fn session_of(&self, claims: Claims, checked_at: u64) -> Option<Session> {
        let directory = self.directory();
        match claims.kind {
            Kind::V1 => {
                let user = directory.v1(&claims.user).filter(|user| user.fingerprint() == *claims.secret)?;
                let caller = user.caller.clone();
                Some(Session { caller, claims, roles: Vec::new(), rules: None, checked_at })
            }
            Kind::Keystone => {
                let user =
                    directory.user(&claims.user).filter(|user| user.fingerprint() == *claims.secret)?;
                let roles = keystone::scope::roles(directory.roll(), &claims, (self.now)())?;
                let claims = keystone::scope::capped(directory.roll(), claims);
                let caller = keystone_caller(&user.name, &user.id, claims.project.as_deref(), &roles);
                let credential = claims.credential.as_deref();
                let credential = credential.and_then(|id| directory.roll().get("app_credential", id));
                let rules = credential.and_then(|paper| Rules::of(paper.get("access_rules"))).map(Arc::new);
                Some(Session { caller, claims, roles, rules, checked_at })
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
            domain: None,
            system: false,
            trust: None,
            credential: None,
            methods: methods.iter().map(|&method| method.to_owned()).collect(),
            issued,
            expires: issued + self.token_life,
            audit: token::audit_id(),
            secret: secret.into(),
        }
    }

    /// Takes a token back, durably, and ends it in the cache.
    async fn revoke(self: &Arc<Self>, session: &Arc<Session>) -> Result<(), TokenError> {
        let until = self.remembered(&session.claims);
        if let Some(cluster) = self.cluster.get() {
            let (key, value) = people::revoked_row(&session.claims.audit, until);
            let wish = Request::Wish(Wish::Row { key, value: Some(value), fresh: false });
            match cluster.call(cluster.local(), wish, WITHIN).await {
                Ok(Response::Done) => {}
                Ok(Response::Failed(failure)) => return Err(TokenError::Cluster(failure.to_string())),
                Ok(_) => return Err(TokenError::Cluster("it answered another question".to_owned())),
                Err(error) => return Err(TokenError::Cluster(error.to_string())),
            }
        }
        let (auth, session) = (Arc::clone(self), Arc::clone(session));
        let noted = move || auth.tokens.revoke(&session.claims.audit, until, (auth.now)());
        let done = tokio::task::spawn_blocking(noted).await;
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        self.changes.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }
}

/// Who a session of Keystone's is, to other APIs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Who<'a> {
    /// Id.
    pub(crate) user: &'a str,
    /// Id; none for a token of no project.
    pub(crate) project: Option<&'a str>,
    /// Names of its roles there.
    pub(crate) roles: &'a [String],
}

impl Session {
    /// Who it is; `None` for users of v1 auth.
    pub(crate) fn who(&self) -> Option<Who<'_>> {
        let Claims { kind: Kind::Keystone, user, project, .. } = &self.claims else { return None };
        Some(Who { user, project: project.as_deref(), roles: &self.roles })
    }

    /// The caller together with the service that acts for it.
    fn joined(&self, service: &Self) -> Self {
        let mut caller = self.caller.clone();
        caller.groups.extend(service.caller.groups.iter().cloned());
        caller.service = service.vouches();
        let (claims, roles, rules) = (self.claims.clone(), self.roles.clone(), self.rules.clone());
        Self { caller, claims, roles, rules, checked_at: self.checked_at }
    }

    /// It is a service's, which may act for others.
    fn vouches(&self) -> bool {
        self.caller.groups.iter().chain(&self.caller.roles).any(|group| group == SERVICE_GROUP)
    }

    fn is_admin(&self) -> bool {
        self.roles.iter().any(|role| role == "admin")
    }

    /// May look at everything: an admin, or a reader of the whole system.
    fn may_look(&self) -> bool {
        self.is_admin() || (self.claims.system && self.roles.iter().any(|role| role == "reader"))
    }

    /// May do this with what a user has for itself: its own, all of it; an admin as well; who may look at everything, looks.
    fn may_use_of(&self, user: &str, method: &http::Method) -> bool {
        let looks = matches!(*method, http::Method::GET | http::Method::HEAD);
        self.claims.user == user || self.is_admin() || (looks && self.may_look())
    }
}

/// Whether a token has a form that we give out: others may belong to a proxy in front, and count as none.
fn looks_like_ours(token: &str) -> bool {
    token.starts_with(ACCOUNT_PREFIX) || token.starts_with("gAAAA")
}

/// A Keystone user within a project. Access lists know it as `project:user` in the forms of Swift's keystoneauth, and those of the project's
/// own containers by its role names.
fn keystone_caller(name: &str, id: &str, project: Option<&str>, roles: &[String]) -> Caller {
    let has = |wanted: &[&str]| roles.iter().any(|role| wanted.contains(&role.as_str()));
    let mut caller = Caller { user: name.to_owned(), user_id: id.to_owned(), ..Caller::default() };
    caller.groups.extend([format!("*:{id}"), "*:*".to_owned()]);
    if let Some(project) = project {
        caller.account = format!("{ACCOUNT_PREFIX}{project}");
        caller.groups.extend([format!("{project}:{id}"), format!("{project}:*")]);
        caller.roles = roles.to_vec();
        caller.owner = has(&OWNER_ROLES);
        caller.reseller_admin = has(&[RESELLER_ROLE]);
    }
    caller
}
