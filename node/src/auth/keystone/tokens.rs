//! `/v3/auth/tokens`: giving out, showing and taking back tokens.

use std::sync::Arc;

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, Context, DOMAIN_ID, DOMAIN_NAME, Refusal, Reply, catalog};
use crate::auth::Session;
use crate::auth::calendar::iso8601;
use crate::auth::directory::{Directory, User, role_id};
use crate::auth::token::{Claims, Kind};

/// `{"auth": {...}}`; unknown members are ignored, as Keystone does.
#[derive(Debug, Deserialize)]
struct Envelope {
    auth: Body,
}

#[derive(Debug, Deserialize)]
struct Body {
    identity: Identity,
    scope: Option<Scope>,
}

#[derive(Debug, Deserialize)]
struct Identity {
    methods: Vec<String>,
    password: Option<PasswordMethod>,
    token: Option<TokenMethod>,
}

#[derive(Debug, Deserialize)]
struct PasswordMethod {
    user: UserRef,
}

#[derive(Debug, Deserialize)]
struct UserRef {
    id: Option<String>,
    name: Option<String>,
    domain: Option<Domain>,
    password: String,
}

#[derive(Debug, Deserialize)]
struct TokenMethod {
    id: String,
}

#[derive(Debug, Deserialize)]
struct Domain {
    id: Option<String>,
    name: Option<String>,
}

/// `"unscoped"`, or an object with one of these.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Scope {
    Word(String),
    Project { project: ProjectRef },
    Other(Value),
}

#[derive(Debug, Deserialize)]
struct ProjectRef {
    id: Option<String>,
    name: Option<String>,
    domain: Option<Domain>,
}

impl Domain {
    /// The only domain there is.
    fn is_ours(&self) -> bool {
        match (&self.id, &self.name) {
            (Some(id), _) => id == DOMAIN_ID,
            (None, Some(name)) => name.eq_ignore_ascii_case(DOMAIN_NAME),
            (None, None) => false,
        }
    }
}

/// Who proved to be whom, and for how long at most.
struct Proven<'a> {
    user: &'a User,
    /// Of the token that was shown instead of a password.
    from: Option<Arc<Session>>,
}

/// POST: a token for a password or another token.
pub(super) fn authenticate(context: &Context<'_>, body: &[u8]) -> Reply {
    let envelope: Envelope = serde_json::from_slice(body)
        .map_err(|_| Refusal::BadRequest("not an object {\"auth\": {\"identity\": ..., \"scope\": ...}}"))?;
    let proven = prove(context, &envelope.auth.identity)?;
    let project = scope(&context.directory, proven.user, envelope.auth.scope.as_ref())?;
    let methods: Vec<&str> = match &proven.from {
        Some(session) => {
            let earlier = session.claims.methods.iter().map(String::as_str);
            earlier.filter(|method| *method != "token").chain(["token"]).collect()
        }
        None => vec!["password"],
    };
    let mut claims =
        context.auth.claims(Kind::Keystone, &proven.user.id, proven.user.fingerprint(), &methods);
    claims.project = project;
    if let Some(session) = &proven.from {
        claims.expires = session.claims.expires; // a token is never prolonged by itself
    }
    let token = context.auth.tokens.seal(&claims);
    let unknown = || Refusal::Unavailable("The cluster's keys are not known here yet.".to_owned());
    let token = token.ok_or_else(unknown)?;
    let body = describe(context, proven.user, &claims);
    Ok(Answer { status: StatusCode::CREATED, body, subject: Some(token) })
}

fn prove<'a>(context: &'a Context<'_>, identity: &Identity) -> Result<Proven<'a>, Refusal> {
    let (auth, directory) = (context.auth, &*context.directory);
    let methods: Vec<_> = identity.methods.iter().map(String::as_str).collect();
    match (&methods[..], &identity.password, &identity.token) {
        (["password"], Some(PasswordMethod { user: given }), _) => {
            let in_domain = given.domain.as_ref().is_none_or(Domain::is_ours);
            let user = match (&given.id, &given.name) {
                (Some(id), _) => directory.user(id),
                (None, Some(name)) => {
                    directory.user_named(name).filter(|_| in_domain && given.domain.is_some())
                }
                (None, None) => {
                    return Err(Refusal::BadRequest("auth.identity.password.user needs id or name"));
                }
            };
            let right = directory.password_login(user, &given.password);
            user.filter(|_| right).map(|user| Proven { user, from: None }).ok_or(Refusal::Unauthorized)
        }
        (["token"], _, Some(given)) => {
            let session = auth.session(&given.id).filter(|session| session.claims.kind == Kind::Keystone);
            let session = session.ok_or(Refusal::Unauthorized)?;
            let user = directory.user(&session.claims.user).ok_or(Refusal::Unauthorized)?;
            Ok(Proven { user, from: Some(session) })
        }
        (["password"], None, _) => Err(Refusal::BadRequest("auth.identity.password is missing")),
        (["token"], _, None) => Err(Refusal::BadRequest("auth.identity.token is missing")),
        _ => Err(Refusal::Unauthorized),
    }
}

/// The project id that a token is for: the one asked for, else the user's default.
fn scope(directory: &Directory, user: &User, scope: Option<&Scope>) -> Result<Option<String>, Refusal> {
    match scope {
        None => Ok(user.default_project.clone()),
        Some(Scope::Word(word)) if word == "unscoped" => Ok(None),
        Some(Scope::Word(_)) => Err(Refusal::BadRequest("auth.scope is neither \"unscoped\" nor an object")),
        Some(Scope::Project { project: given }) => {
            let in_domain = given.domain.as_ref().is_some_and(Domain::is_ours);
            let project = match (&given.id, &given.name) {
                (Some(id), _) => directory.project(id),
                (None, Some(name)) => directory.project_named(name).filter(|_| in_domain),
                (None, None) => return Err(Refusal::BadRequest("auth.scope.project needs id or name")),
            };
            let project = project.filter(|project| user.roles.contains_key(&project.id));
            project.map(|project| Some(project.id.clone())).ok_or(Refusal::Unauthorized)
        }
        Some(Scope::Other(other)) if other.get("domain").is_some() || other.get("system").is_some() => {
            Err(Refusal::Unauthorized) // nobody has a role there
        }
        Some(Scope::Other(_)) => Err(Refusal::BadRequest("auth.scope names no project, domain or system")),
    }
}

/// GET and HEAD: what a token says.
pub(super) fn show(context: &Context<'_>) -> Reply {
    let (token, session) = subject(context)?;
    let user = context.directory.user(&session.claims.user).ok_or_else(no_token)?;
    let mut body = describe(context, user, &session.claims);
    let bare = context.query.split('&').any(|pair| pair.split('=').next() == Some("nocatalog"));
    if bare && let Some(token) = body["token"].as_object_mut() {
        token.remove("catalog");
    }
    Ok(Answer { status: StatusCode::OK, body, subject: Some(token) })
}

/// DELETE: takes a token back.
pub(super) async fn revoke(context: &Context<'_>) -> Reply {
    let (_, session) = subject(context)?;
    match context.auth.revoke(&session).await {
        Ok(()) => Ok(Answer { status: StatusCode::NO_CONTENT, body: Value::Null, subject: None }),
        Err(error) => {
            tracing::error!(%error, "revoke token");
            Err(Refusal::Unavailable("The token could not be revoked; try again.".to_owned()))
        }
    }
}

/// The token in X-Subject-Token, when the caller may see it: its own, or any for an admin.
fn subject(context: &Context<'_>) -> Result<(String, Arc<Session>), Refusal> {
    let caller = context.caller()?;
    let token =
        context.headers.get("x-subject-token").and_then(|token| token.to_str().ok()).ok_or_else(no_token)?;
    let session = context.auth.session(token).filter(|session| session.claims.kind == Kind::Keystone);
    let session = session.ok_or_else(no_token)?;
    if session.claims.user == caller.claims.user || caller.is_admin() {
        Ok((token.to_owned(), session))
    } else {
        Err(Refusal::Forbidden)
    }
}

fn no_token() -> Refusal {
    Refusal::NotFound("the token in X-Subject-Token".to_owned())
}

/// The `token` document of Keystone's API.
fn describe(context: &Context<'_>, user: &User, claims: &Claims) -> Value {
    let domain = json!({ "id": DOMAIN_ID, "name": DOMAIN_NAME });
    let mut token = json!({
        "methods": claims.methods,
        "user": { "id": user.id, "name": user.name, "domain": domain, "password_expires_at": null },
        "audit_ids": [claims.audit],
        "issued_at": iso8601(claims.issued),
        "expires_at": iso8601(claims.expires),
    });
    if let Some(project) = claims.project.as_deref().and_then(|id| context.directory.project(id)) {
        let roles = user.roles.get(&project.id).map_or(&[][..], Vec::as_slice);
        token["project"] = json!({ "id": project.id, "name": project.name, "domain": domain });
        token["is_domain"] = json!(false);
        token["roles"] = roles.iter().map(|role| json!({ "id": role_id(role), "name": role })).collect();
        token["catalog"] = catalog::of_project(context, Some(&project.id));
    }
    json!({ "token": token })
}
