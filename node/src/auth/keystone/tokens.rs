//! `/v3/auth/tokens`: giving out, showing and taking back tokens.

use std::sync::Arc;

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::scope::{capped, lasts, role_ids};
use super::{Answer, Context, Refusal, Reply, catalog, lent};
use crate::auth::Session;
use crate::auth::calendar::iso8601;
use crate::auth::directory::User;
use crate::auth::roll::{Roll, flag, text};
use crate::auth::token::{Claims, Kind};
use crate::hidden::Hidden;
use crate::papers::Paper;

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
    application_credential: Option<CredentialMethod>,
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
    #[serde(default)]
    password: Hidden,
}

#[derive(Debug, Deserialize)]
struct TokenMethod {
    id: Hidden,
}

#[derive(Debug, Deserialize)]
struct CredentialMethod {
    id: Option<String>,
    name: Option<String>,
    secret: Hidden,
    user: Option<UserRef>,
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
    Project {
        project: ProjectRef,
    },
    Domain {
        domain: Domain,
    },
    System {
        system: Value,
    },
    Trust {
        #[serde(rename = "OS-TRUST:trust")]
        trust: TrustRef,
    },
    Other {},
}

#[derive(Debug, Deserialize)]
struct TrustRef {
    id: String,
}

#[derive(Debug, Deserialize)]
struct ProjectRef {
    id: Option<String>,
    name: Option<String>,
    domain: Option<Domain>,
}

impl Domain {
    /// The id of the domain that is meant, if there is one.
    fn id(&self, roll: &Roll) -> Option<String> {
        match (&self.id, &self.name) {
            (Some(id), _) => roll.get("domain", id).map(|_| id.clone()),
            (None, Some(name)) => {
                let named = |domain: &&Arc<Paper>| text(domain, "name").eq_ignore_ascii_case(name);
                roll.all("domain").find(named).map(|domain| text(domain, "id").to_owned())
            }
            (None, None) => None,
        }
    }
}

/// Who proved to be whom, and for how long at most.
struct Proven<'a> {
    user: &'a User,
    /// Of the token that was shown instead of a password.
    from: Option<Arc<Session>>,
    /// The application credential that was shown instead of a password.
    credential: Option<Arc<Paper>>,
}

/// POST: a token for a password, another token or an application credential.
pub(super) fn authenticate(context: &Context<'_>, body: &[u8]) -> Reply {
    let envelope: Envelope = serde_json::from_slice(body)
        .map_err(|_| Refusal::BadRequest("not an object {\"auth\": {\"identity\": ..., \"scope\": ...}}"))?;
    let proven = prove(context, &envelope.auth.identity)?;
    if !context.roll().user_is_on(&proven.user.id) {
        return Err(Refusal::Unauthorized);
    }
    let methods: Vec<&str> = match (&proven.from, &proven.credential) {
        (Some(session), _) => {
            let earlier = session.claims.methods.iter().map(String::as_str);
            earlier.filter(|method| *method != "token").chain(["token"]).collect()
        }
        (None, Some(_)) => vec!["application_credential"],
        (None, None) => vec!["password"],
    };
    let mut claims =
        context.auth.claims(Kind::Keystone, &proven.user.id, proven.user.fingerprint(), &methods);
    if let Some(session) = &proven.from {
        claims.expires = session.claims.expires; // a token is never prolonged by itself
        claims.credential.clone_from(&session.claims.credential);
    }
    if let Some(credential) = &proven.credential {
        claims.project = Some(text(credential, "project_id").to_owned());
        claims.credential = Some(text(credential, "id").to_owned());
    } else if let Some(session) = proven.from.as_ref().filter(|session| session.claims.credential.is_some()) {
        // An application credential is for its own project alone.
        if envelope.auth.scope.is_some() {
            return Err(Refusal::Forbidden);
        }
        claims.project.clone_from(&session.claims.project);
    } else if let Some(session) = proven.from.as_ref().filter(|session| lent::is_by_signature(session)) {
        // So is what a signed request gave; it may be renewed.
        claims.project.clone_from(&session.claims.project);
        let same = claims.clone();
        if envelope.auth.scope.is_some() {
            claims.project = None;
            scope(context, proven.user, envelope.auth.scope.as_ref(), &mut claims)?;
        }
        if claims != same {
            return Err(Refusal::Forbidden);
        }
    } else {
        scope(context, proven.user, envelope.auth.scope.as_ref(), &mut claims)?;
    }
    seal(context, claims, StatusCode::CREATED)
}

/// A token that says this, unless its user may do nothing with it. It lasts no longer than what it was got with.
pub(super) fn seal(context: &Context<'_>, claims: Claims, status: StatusCode) -> Reply {
    let claims = &capped(context.roll(), claims);
    if role_ids(context.roll(), claims, claims.issued).is_none() {
        return Err(Refusal::Unauthorized);
    }
    let token = context.auth.tokens.seal(claims);
    let unknown = || Refusal::Unavailable("The cluster's keys are not known here yet.".to_owned());
    let token = token.ok_or_else(unknown)?;
    let user = context.directory.user(&claims.user).ok_or(Refusal::Unauthorized)?;
    let body = describe(context, user, claims);
    Ok(Answer { status, body, subject: Some(token) })
}

/// The user that a reference means.
fn user_of<'a>(context: &'a Context<'_>, given: &UserRef) -> Result<Option<&'a User>, Refusal> {
    match (&given.id, &given.name, &given.domain) {
        (Some(id), ..) => Ok(context.directory.user(id)),
        (None, Some(name), Some(domain)) => {
            let domain = domain.id(context.roll());
            Ok(domain.and_then(|domain| context.directory.user_named(name, &domain)))
        }
        (None, Some(_), None) => Ok(None),
        (None, None, _) => Err(Refusal::BadRequest("auth.identity.password.user needs id or name")),
    }
}

fn prove<'a>(context: &'a Context<'_>, identity: &Identity) -> Result<Proven<'a>, Refusal> {
    let (auth, directory) = (context.auth, &*context.directory);
    let methods: Vec<_> = identity.methods.iter().map(String::as_str).collect();
    match (&methods[..], &identity.password, &identity.token, &identity.application_credential) {
        (["password"], Some(PasswordMethod { user: given }), ..) => {
            let user = user_of(context, given)?;
            let right = directory.password_login(user, &given.password);
            let proven = |user| Proven { user, from: None, credential: None };
            user.filter(|_| right).map(proven).ok_or(Refusal::Unauthorized)
        }
        (["token"], _, Some(given), _) => {
            let session = auth.session(&given.id).filter(|session| session.claims.kind == Kind::Keystone);
            let session = session.ok_or(Refusal::Unauthorized)?;
            if session.claims.trust.is_some() {
                // It would become one of its trustor, with all that the trustor may (Keystone: `auth/plugins/token.py`).
                return Err(Refusal::Forbidden);
            }
            let user = directory.user(&session.claims.user).ok_or(Refusal::Unauthorized)?;
            Ok(Proven { user, from: Some(session), credential: None })
        }
        (["application_credential"], _, _, Some(given)) => by_credential(context, given),
        (["password"], None, ..) => Err(Refusal::BadRequest("auth.identity.password is missing")),
        (["token"], _, None, _) => Err(Refusal::BadRequest("auth.identity.token is missing")),
        _ => Err(Refusal::Unauthorized),
    }
}

fn by_credential<'a>(context: &'a Context<'_>, given: &CredentialMethod) -> Result<Proven<'a>, Refusal> {
    let roll = context.roll();
    let found = match (&given.id, &given.name, &given.user) {
        (Some(id), ..) => roll.get("app_credential", id),
        (None, Some(name), Some(user)) => {
            let user = user_of(context, user)?.ok_or(Refusal::Unauthorized)?;
            let mine = |paper: &&Arc<Paper>| text(paper, "user_id") == user.id && text(paper, "name") == name;
            roll.all("app_credential").find(mine)
        }
        _ => {
            return Err(Refusal::BadRequest(
                "auth.identity.application_credential needs id, or name and user",
            ));
        }
    };
    let right = context.directory.credential_login(found.map(|found| &**found), &given.secret);
    let found = found.filter(|_| right).ok_or(Refusal::Unauthorized)?;
    if !lasts(found, (context.auth.now)()) {
        return Err(Refusal::Unauthorized);
    }
    let user = context.directory.user(text(found, "user_id")).ok_or(Refusal::Unauthorized)?;
    Ok(Proven { user, from: None, credential: Some(Arc::clone(found)) })
}

/// Writes down what a token is for: what is asked for, else the user's default project.
fn scope(
    context: &Context<'_>,
    user: &User,
    scope: Option<&Scope>,
    claims: &mut Claims,
) -> Result<(), Refusal> {
    let roll = context.roll();
    match scope {
        None => {
            claims.project.clone_from(&user.default_project);
            if claims.project.is_some() && role_ids(roll, claims, claims.issued).is_none() {
                claims.project = None;
            }
        }
        Some(Scope::Word(word)) if word == "unscoped" => {}
        Some(Scope::Word(_)) => {
            return Err(Refusal::BadRequest("auth.scope is neither \"unscoped\" nor an object"));
        }
        Some(Scope::Project { project: given }) => {
            let project = match (&given.id, &given.name) {
                (Some(id), _) => roll.get("project", id),
                (None, Some(name)) => {
                    let domain = given.domain.as_ref().and_then(|domain| domain.id(roll));
                    domain.and_then(|domain| roll.named("project", name, Some(&domain)))
                }
                (None, None) => return Err(Refusal::BadRequest("auth.scope.project needs id or name")),
            };
            claims.project = Some(text(project.ok_or(Refusal::Unauthorized)?, "id").to_owned());
        }
        Some(Scope::Domain { domain }) => {
            claims.domain = Some(domain.id(roll).ok_or(Refusal::Unauthorized)?);
        }
        Some(Scope::System { system }) => {
            if system["all"] != true {
                return Err(Refusal::BadRequest("auth.scope.system is {\"all\": true}"));
            }
            claims.system = true;
        }
        Some(Scope::Trust { trust }) => {
            let found =
                roll.get("trust", &trust.id).filter(|trust| text(trust, "trustee_user_id") == user.id);
            let found = found.ok_or(Refusal::Unauthorized)?;
            claims.trust = Some(trust.id.clone());
            claims.project = Some(text(found, "project_id").to_owned());
            if flag(found, "impersonation", false) {
                let trustor =
                    context.directory.user(text(found, "trustor_user_id")).ok_or(Refusal::Unauthorized)?;
                claims.user.clone_from(&trustor.id);
                claims.secret = trustor.fingerprint().into();
            }
        }
        Some(Scope::Other {}) => {
            return Err(Refusal::BadRequest("auth.scope names no project, domain or system"));
        }
    }
    Ok(())
}

/// GET and HEAD: what a token says.
pub(super) fn show(context: &Context<'_>) -> Reply {
    let (token, session) = subject(context)?;
    if session.rules.is_some() && !keeps_rules(context) {
        // It would let the token do anything: for it there is none, as Keystone has it.
        return Err(no_token());
    }
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
    let caller = context.anybody()?;
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

/// Whether who asks about tokens says that it keeps the access rules of application credentials.
fn keeps_rules(context: &Context<'_>) -> bool {
    let version = context.headers.get("openstack-identity-access-rules");
    let version = version.and_then(|version| version.to_str().ok()?.trim().parse::<f64>().ok());
    version.is_some_and(|version| version >= 1.0)
}

fn no_token() -> Refusal {
    Refusal::NotFound("the token in X-Subject-Token".to_owned())
}

/// The `token` document of Keystone's API.
fn describe(context: &Context<'_>, user: &User, claims: &Claims) -> Value {
    let roll = context.roll();
    let domain_of =
        |id: &str| json!({ "id": id, "name": roll.get("domain", id).map(|domain| text(domain, "name")) });
    let mut token = json!({
        "methods": claims.methods,
        "user": { "id": user.id, "name": user.name, "domain": domain_of(&user.domain), "password_expires_at": null },
        "audit_ids": [claims.audit],
        "issued_at": iso8601(claims.issued),
        "expires_at": iso8601(claims.expires),
    });
    if let Some(project) = claims.project.as_deref().and_then(|id| roll.get("project", id)) {
        let (id, name) = (text(project, "id"), text(project, "name"));
        token["project"] = json!({ "id": id, "name": name, "domain": domain_of(text(project, "domain_id")) });
        token["is_domain"] = json!(flag(project, "is_domain", false));
    } else if let Some(domain) = &claims.domain {
        token["domain"] = domain_of(domain);
    } else if claims.system {
        token["system"] = json!({ "all": true });
    } else {
        return json!({ "token": token });
    }
    if let Some(trust) = claims.trust.as_deref().and_then(|id| roll.get("trust", id)) {
        token["OS-TRUST:trust"] = json!({
            "id": text(trust, "id"), "impersonation": flag(trust, "impersonation", false),
            "trustor_user": { "id": text(trust, "trustor_user_id") },
            "trustee_user": { "id": text(trust, "trustee_user_id") },
        });
    }
    if let Some(credential) = claims.credential.as_deref().and_then(|id| roll.get("app_credential", id)) {
        token["application_credential"] = json!({
            "id": text(credential, "id"), "name": text(credential, "name"),
            "restricted": !flag(credential, "unrestricted", false),
        });
        if let Some(rules) = credential.get("access_rules") {
            token["application_credential"]["access_rules"] = rules.clone();
        }
    }
    let roles = role_ids(roll, claims, (context.auth.now)()).unwrap_or_default();
    let roles = roles.iter().filter_map(|id| roll.get("role", id));
    token["roles"] =
        roles.map(|role| json!({ "id": text(role, "id"), "name": text(role, "name") })).collect();
    token["catalog"] = catalog::of_project(context, Some(claims.project.as_deref().unwrap_or("")));
    json!({ "token": token })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_for_a_token_is_not_shown_again() {
        let text = r#"{"auth": {"identity": {"methods": ["password"],
            "password": {"user": {"id": "u", "password": "hunter1"}}, "token": {"id": "hunter2"},
            "application_credential": {"id": "c", "secret": "hunter3"}}}}"#;
        let envelope: Envelope = serde_json::from_str(text).unwrap();
        let shown = format!("{envelope:?}");
        assert!(shown.contains("\"c\"") && !shown.contains("hunter"), "{shown}");
        for wrong in ["\"hunter1\"", "\"hunter2\"", "\"hunter3\""] {
            let error = serde_json::from_str::<Envelope>(&text.replace(wrong, "4711")).unwrap_err();
            assert!(!error.to_string().contains("4711"), "{error}");
        }
    }
}
