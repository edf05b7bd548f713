//! What a user has for itself: its password, application credentials with access rules, EC2 keys.
//!
//! Invariant: the secret of an application credential is shown once, when it is made; what is kept is a slow hash.
//! Invariant: an application credential has no role that its user does not have.
//! Invariant: the access rules that a credential was made with are kept where it is used ([`crate::auth::rules`]).

use std::sync::Arc;

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::grants::done;
use super::resources::{find, fresh_id, links, passes, sort_of, verifier};
use super::{Answer, Context, Refusal, Reply, lent, signed};
use crate::auth::Session;
use crate::auth::calendar::seconds_of;
use crate::auth::roll::{flag, paper, text};
use crate::auth::rules::{MAX_PATH, MAX_RULES, METHODS};
use crate::papers::Paper;

fn object(body: &[u8], key: &str) -> Result<Map<String, Value>, Refusal> {
    let value: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let given = value.get(key).and_then(Value::as_object).cloned();
    given.ok_or(Refusal::BadRequest("the body has no object of the kind that the path names"))
}

fn is_look(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// `POST /users/{user}/password`: by whoever knows the old one.
pub(super) async fn change_password(context: &Context<'_>, user: &str, body: &[u8]) -> Reply {
    let given = object(body, "user")?;
    let said = |key: &str| given.get(key).and_then(Value::as_str).unwrap_or("");
    let known = context.directory.user(user);
    if !context.directory.password_login(known, said("original_password")) {
        return Err(Refusal::Unauthorized);
    }
    if said("password").is_empty() {
        return Err(Refusal::BadRequest("a password is not empty"));
    }
    let kept = json!(verifier(Some(said("password").to_owned())).await);
    context.auth.edit("user", user, |paper| drop(paper.insert("verifier".to_owned(), kept.clone()))).await?;
    done()
}

/// `/users/{user}/application_credentials/…` and `/users/{user}/access_rules/…`.
pub(super) async fn answer(
    context: &Context<'_>,
    caller: &Arc<Session>,
    method: &Method,
    user: &str,
    what: &str,
    rest: &[&str],
    body: &[u8],
) -> Reply {
    // What an application credential is made with is its user's alone.
    if !caller.may_use_of(user, method) || (*method == Method::POST && caller.claims.user != user) {
        return Err(Refusal::Forbidden);
    }
    if !is_look(method) {
        lent::may_manage_lasting(context, caller)?;
    }
    let rules = what == "access_rules";
    let (kind, one) =
        if rules { ("access_rule", "access_rule") } else { ("app_credential", "application_credential") };
    let missing = |id: &str| Refusal::NotFound(format!("{one} {id}"));
    let mine = |id: &str| {
        let found = context.roll().get(kind, id).filter(|paper| text(paper, "user_id") == user);
        found.cloned().ok_or_else(|| missing(id))
    };
    match (method.as_str(), rest) {
        ("GET", []) => {
            let all = context.roll().all(kind).filter(|paper| text(paper, "user_id") == user);
            let all: Vec<Value> = all.map(|paper| view(context, user, what, paper)).collect();
            let all: Vec<Value> = all.into_iter().filter(|value| passes(context.query, value)).collect();
            let many = if rules { "access_rules" } else { "application_credentials" };
            Ok(Answer::ok(json!({ many: all, "links": links(context, &format!("users/{user}/{many}")) })))
        }
        ("POST", []) if !rules => create(context, caller, user, &object(body, one)?).await,
        ("GET" | "HEAD", [id]) => Ok(Answer::ok(json!({ one: view(context, user, what, &*mine(id)?) }))),
        ("DELETE", [id]) => {
            mine(id)?;
            let used = |paper: &&Arc<Paper>| {
                let rules = paper.get("access_rules").and_then(Value::as_array).into_iter().flatten();
                rules.into_iter().any(|rule| rule["id"] == *id)
            };
            if rules && context.roll().all("app_credential").any(|paper| used(&paper)) {
                return Err(Refusal::Refused("an application credential uses the rule".to_owned()));
            }
            context.auth.drop_paper(kind, id).await?;
            done()
        }
        _ => Err(Refusal::NotFound(format!("/v3/users/{user}/{what}"))),
    }
}

fn view(context: &Context<'_>, user: &str, what: &str, paper: &Paper) -> Value {
    let mut shown = paper.clone();
    for hidden in ["kind", "verifier", "user_id"] {
        shown.remove(hidden);
    }
    if what == "application_credentials" {
        let roles = crate::auth::roll::texts(paper, "roles")
            .into_iter()
            .filter_map(|id| context.roll().get("role", id));
        let roles: Vec<Value> = roles
            .map(|role| json!({ "id": text(role, "id"), "name": text(role, "name"), "domain_id": null }))
            .collect();
        shown.insert("roles".to_owned(), json!(roles));
    }
    let link = format!("{}/v3/users/{user}/{what}/{}", context.base, text(paper, "id"));
    shown.insert("links".to_owned(), json!({ "self": link }));
    Value::Object(shown)
}

async fn create(
    context: &Context<'_>,
    caller: &Arc<Session>,
    user: &str,
    given: &Map<String, Value>,
) -> Reply {
    let Some(project) = caller.claims.project.as_deref() else {
        return Err(Refusal::BadRequest("an application credential is for the project of the token"));
    };
    let name = given.get("name").and_then(Value::as_str).unwrap_or("");
    if name.is_empty() || name.chars().count() > 255 {
        return Err(Refusal::BadRequest("name has 1 to 255 characters"));
    }
    let roll = context.roll();
    let taken = |paper: &&Arc<Paper>| text(paper, "user_id") == user && text(paper, "name") == name;
    if roll.all("app_credential").any(|paper| taken(&paper)) {
        return Err(Refusal::Conflict("an application credential of this name is there already".to_owned()));
    }
    let expires = match given.get("expires_at") {
        None | Some(Value::Null) => Value::Null,
        Some(Value::String(at)) => {
            seconds_of(at).ok_or(Refusal::BadRequest("expires_at is no time"))?;
            let (whole, fraction) =
                at.trim_end_matches('Z').split_once('.').unwrap_or((at.trim_end_matches('Z'), ""));
            json!(format!("{whole}.{fraction:0<6.6}"))
        }
        Some(_) => return Err(Refusal::BadRequest("expires_at is no time")),
    };
    let roles = wanted_roles(context, caller, given)?;
    let rules = match given.get("access_rules") {
        None | Some(Value::Null) => None,
        Some(Value::Array(all)) if all.len() <= MAX_RULES => {
            let mut rules = Vec::with_capacity(all.len());
            for rule in all {
                rules.push(access_rule(context, user, rule).await?);
            }
            Some(rules)
        }
        Some(_) => return Err(Refusal::BadRequest("access_rules is a list of at most 100 rules")),
    };
    let secret =
        given.get("secret").and_then(Value::as_str).map_or_else(|| fresh_id() + &fresh_id(), str::to_owned);
    let id = fresh_id();
    let mut made = paper(json!({
        "name": name, "description": given.get("description"), "user_id": user, "project_id": project, "roles": roles,
        "expires_at": expires, "unrestricted": flag(given, "unrestricted", false), "system": null,
        "verifier": verifier(Some(secret.clone())).await,
    }));
    // An empty list is none, as Keystone keeps it: `openstack application credential create` sends one where all is to be allowed.
    if let Some(rules) = rules.filter(|rules| !rules.is_empty()) {
        made.insert("access_rules".to_owned(), json!(rules));
    }
    context.auth.add("app_credential", &id, made).await?;
    let now = context.auth.directory();
    let found =
        now.roll().get("app_credential", &id).cloned().ok_or_else(|| Refusal::NotFound(id.clone()))?;
    let mut shown = view(context, user, "application_credentials", &found);
    shown["secret"] = json!(secret);
    Ok(Answer {
        status: StatusCode::CREATED,
        body: json!({ "application_credential": shown }),
        subject: None,
    })
}

/// Ids of the roles that a credential shall have: those that are asked for, of those that the caller has.
fn wanted_roles(
    context: &Context<'_>,
    caller: &Session,
    given: &Map<String, Value>,
) -> Result<Vec<String>, Refusal> {
    let roll = context.roll();
    let has = super::scope::role_ids(roll, &caller.claims, (context.auth.now)()).unwrap_or_default();
    let Some(wanted) = given.get("roles").and_then(Value::as_array).filter(|wanted| !wanted.is_empty())
    else {
        return Ok(has.into_iter().collect());
    };
    let mut roles = Vec::new();
    for one in wanted {
        let found = match (one["id"].as_str(), one["name"].as_str()) {
            (Some(id), _) => roll.get("role", id),
            (None, Some(name)) => roll.all("role").find(|role| text(role, "name") == name),
            (None, None) => None,
        };
        let found = found.filter(|role| has.contains(text(role, "id")));
        let found = found.ok_or(Refusal::BadRequest("a role that the user does not have in the project"))?;
        roles.push(text(found, "id").to_owned());
    }
    Ok(roles)
}

async fn access_rule(context: &Context<'_>, user: &str, rule: &Value) -> Result<Value, Refusal> {
    if let Some(id) = rule["id"].as_str() {
        let found = context.roll().get("access_rule", id).filter(|paper| text(paper, "user_id") == user);
        let found = found.ok_or_else(|| Refusal::NotFound(format!("access rule {id}")))?;
        return Ok(
            json!({ "id": id, "path": found.get("path"), "method": found.get("method"), "service": found.get("service") }),
        );
    }
    let said = |key: &str| rule[key].as_str().filter(|text| !text.is_empty());
    let (Some(path), Some(method), Some(service)) = (said("path"), said("method"), said("service")) else {
        return Err(Refusal::BadRequest("an access rule has path, method and service"));
    };
    if !path.starts_with('/') || path.len() > MAX_PATH || !METHODS.contains(&method) || service.len() > 64 {
        return Err(Refusal::BadRequest(
            "an access rule's path begins with / and has at most 225 bytes, and its method is one in capitals",
        ));
    }
    let same = |paper: &&Arc<Paper>| {
        text(paper, "user_id") == user
            && (text(paper, "path"), text(paper, "method"), text(paper, "service")) == (path, method, service)
    };
    let known = context.roll().all("access_rule").find(same).map(|paper| text(paper, "id").to_owned());
    let id = match known {
        Some(id) => id,
        None => {
            let id = fresh_id();
            let made = paper(json!({ "user_id": user, "path": path, "method": method, "service": service }));
            context.auth.add("access_rule", &id, made).await?;
            id
        }
    };
    Ok(json!({ "id": id, "path": path, "method": method, "service": service }))
}

/// `/users/{user}/credentials/OS-EC2/…`: credentials of type `ec2`.
pub(super) async fn ec2(
    context: &Context<'_>,
    caller: &Arc<Session>,
    method: &Method,
    user: &str,
    rest: &[&str],
    body: &[u8],
) -> Reply {
    if !caller.may_use_of(user, method) {
        return Err(Refusal::Forbidden);
    }
    if !is_look(method) {
        lent::may_manage(context, caller)?;
    }
    find(context, sort_of("user"), user)?;
    let view = |paper: &Paper| {
        let blob: Value = serde_json::from_str(text(paper, "blob")).unwrap_or(Value::Null);
        let access = blob["access"].as_str().unwrap_or("").to_owned();
        let link = format!("{}/v3/users/{user}/credentials/OS-EC2/{access}", context.base);
        json!({
            "access": access, "secret": blob["secret"], "user_id": user, "tenant_id": paper.get("project_id"),
            "trust_id": blob["trust_id"], "links": { "self": link },
        })
    };
    let roll = context.roll();
    let mine: Vec<Arc<Paper>> = {
        let all = roll
            .all("credential")
            .filter(|paper| text(paper, "type") == "ec2" && text(paper, "user_id") == user);
        all.filter(|paper| lent::sees(caller, paper)).cloned().collect()
    };
    match (method.as_str(), rest) {
        ("GET", []) => {
            let all: Vec<Value> = mine.iter().map(|paper| view(paper)).collect();
            Ok(Answer::ok(
                json!({ "credentials": all, "links": links(context, &format!("users/{user}/credentials/OS-EC2")) }),
            ))
        }
        ("POST", []) => {
            let given: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
            let project = given["tenant_id"].as_str().unwrap_or("");
            find(context, sort_of("project"), project)?;
            if !roll.projects_of(user).contains(&project) && !caller.is_admin() {
                return Err(Refusal::Forbidden);
            }
            use sha2::{Digest, Sha256};
            let (access, secret) = (fresh_id(), fresh_id());
            let id = hex::encode(Sha256::digest(access.as_bytes()));
            let blob = json!({ "access": access, "secret": secret }).to_string();
            let mut made =
                paper(json!({ "type": "ec2", "user_id": user, "project_id": project, "blob": blob }));
            signed::bind_new(&mut made, caller)?;
            context.auth.add("credential", &id, made.clone()).await?;
            Ok(Answer {
                status: StatusCode::CREATED,
                body: json!({ "credential": view(&made) }),
                subject: None,
            })
        }
        (_, [access]) => {
            let of = |paper: &&Arc<Paper>| view(paper)["access"] == *access;
            let found =
                mine.iter().find(of).ok_or_else(|| Refusal::NotFound(format!("credential {access}")))?;
            match *method {
                Method::GET | Method::HEAD => Ok(Answer::ok(json!({ "credential": view(found) }))),
                Method::DELETE => {
                    context.auth.drop_paper("credential", text(found, "id")).await?;
                    done()
                }
                _ => Err(Refusal::MethodNotAllowed("GET, HEAD, DELETE")),
            }
        }
        _ => Err(Refusal::MethodNotAllowed("GET, POST")),
    }
}
