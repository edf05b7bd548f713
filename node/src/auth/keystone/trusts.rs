//! `/OS-TRUST/trusts`: a user lets another one act in its project, with some of its roles.
//!
//! Invariant: only the trustor itself makes a trust, of roles that it has; only trustor, trustee and admins see it.

use std::sync::Arc;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::grants::done;
use super::resources::{find, fresh_id, links, passes, shown, sort_of};
use super::{Answer, Context, Refusal, Reply, lent};
use crate::auth::Session;
use crate::auth::calendar::{iso8601, seconds_of};
use crate::auth::roll::{Target, paper, text, texts};
use crate::papers::Paper;

/// Answers what is under `/OS-TRUST/trusts`.
pub(super) async fn answer(
    context: &Context<'_>,
    caller: &Arc<Session>,
    method: &Method,
    rest: &[&str],
    body: &[u8],
) -> Reply {
    let rest: Vec<&str> = rest.iter().copied().filter(|part| !part.is_empty()).collect();
    if !matches!(*method, Method::GET | Method::HEAD) {
        let ended = rest.first().copied().filter(|_| *method == Method::DELETE && rest.len() == 1);
        lent::may_trust(caller, ended)?;
    }
    match (method.as_str(), &rest[..]) {
        ("GET", []) => {
            let query = context.query;
            let own = ["trustor_user_id", "trustee_user_id"]
                .iter()
                .any(|key| query.split('&').any(|pair| pair == format!("{key}={}", caller.claims.user)));
            if !caller.may_look() && !own {
                return Err(Refusal::Forbidden);
            }
            let all: Vec<Value> =
                context.roll().all("trust").map(|trust| view(context, trust, false)).collect();
            let all: Vec<Value> = all.into_iter().filter(|trust| passes(query, trust)).collect();
            Ok(Answer::ok(json!({ "trusts": all, "links": links(context, "OS-TRUST/trusts") })))
        }
        ("POST", []) => create(context, caller, body).await,
        ("GET" | "HEAD", [id]) => {
            let trust = of(context, caller, id)?;
            Ok(Answer::ok(json!({ "trust": view(context, &trust, true) })))
        }
        ("DELETE", [id]) => {
            let trust = of(context, caller, id)?;
            if text(&trust, "trustor_user_id") != caller.claims.user && !caller.is_admin() {
                return Err(Refusal::Forbidden);
            }
            context.auth.drop_paper("trust", id).await?;
            done()
        }
        ("GET", [id, "roles"]) => {
            let trust = of(context, caller, id)?;
            Ok(Answer::ok(
                json!({ "roles": roles(context, &trust), "links": links(context, &format!("OS-TRUST/trusts/{id}/roles")) }),
            ))
        }
        ("GET" | "HEAD", [id, "roles", role]) => {
            let trust = of(context, caller, id)?;
            let missing = || Refusal::NotFound(format!("role {role} of trust {id}"));
            let role =
                roles(context, &trust).into_iter().find(|known| known["id"] == *role).ok_or_else(missing)?;
            Ok(Answer::ok(json!({ "role": role })))
        }
        _ => Err(Refusal::NotFound("/v3/OS-TRUST/trusts".to_owned())),
    }
}

/// A trust that the caller may see.
fn of(context: &Context<'_>, caller: &Session, id: &str) -> Result<Arc<Paper>, Refusal> {
    let missing = || Refusal::NotFound(format!("trust {id}"));
    let trust = context.roll().get("trust", id).ok_or_else(missing)?;
    let sides = [text(trust, "trustor_user_id"), text(trust, "trustee_user_id")];
    if sides.contains(&caller.claims.user.as_str()) || caller.may_look() {
        Ok(Arc::clone(trust))
    } else {
        Err(Refusal::Forbidden)
    }
}

fn roles(context: &Context<'_>, trust: &Paper) -> Vec<Value> {
    let roles = texts(trust, "roles").into_iter().filter_map(|id| context.roll().get("role", id));
    roles.map(|role| shown(context, sort_of("role"), role)).collect()
}

fn view(context: &Context<'_>, trust: &Paper, full: bool) -> Value {
    let mut shown = trust.clone();
    shown.remove("kind");
    shown.remove("roles");
    let link = format!("{}/v3/OS-TRUST/trusts/{}", context.base, text(trust, "id"));
    if full {
        shown.insert("roles".to_owned(), json!(roles(context, trust)));
        shown.insert(
            "roles_links".to_owned(),
            json!({ "self": format!("{link}/roles"), "previous": null, "next": null }),
        );
    }
    shown.insert("links".to_owned(), json!({ "self": link }));
    Value::Object(shown)
}

async fn create(context: &Context<'_>, caller: &Arc<Session>, body: &[u8]) -> Reply {
    let value: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let given = value["trust"].as_object().ok_or(Refusal::BadRequest("the body has no trust"))?;
    let said = |key: &str| given.get(key).and_then(Value::as_str).unwrap_or("");
    let (trustor, trustee, project) = (said("trustor_user_id"), said("trustee_user_id"), said("project_id"));
    if trustor != caller.claims.user {
        return Err(Refusal::Forbidden);
    }
    let impersonation = given.get("impersonation").and_then(Value::as_bool);
    let impersonation = impersonation.ok_or(Refusal::BadRequest("impersonation is true or false"))?;
    find(context, sort_of("user"), trustee)?;
    let expires = match given.get("expires_at") {
        None | Some(Value::Null) => Value::Null,
        Some(at) => {
            let seconds =
                at.as_str().and_then(seconds_of).ok_or(Refusal::BadRequest("expires_at is no time"))?;
            if seconds <= (context.auth.now)() {
                return Err(Refusal::BadRequest("expires_at is over"));
            }
            json!(iso8601(seconds))
        }
    };
    let roll = context.roll();
    let has = roll.roles_of(trustor, Target::Project(project));
    let mut roles = Vec::new();
    for one in given.get("roles").and_then(Value::as_array).into_iter().flatten() {
        let found = match (one["id"].as_str(), one["name"].as_str()) {
            (Some(id), _) => roll.get("role", id),
            (None, Some(name)) => roll.all("role").find(|role| text(role, "name") == name),
            (None, None) => None,
        };
        let found = found.filter(|role| has.contains(text(role, "id")));
        roles.push(text(found.ok_or(Refusal::Forbidden)?, "id").to_owned());
    }
    if roles.is_empty() {
        return Err(Refusal::Forbidden);
    }
    let id = fresh_id();
    let made = paper(json!({
        "trustor_user_id": trustor, "trustee_user_id": trustee, "project_id": project, "impersonation": impersonation,
        "expires_at": expires, "roles": roles, "remaining_uses": null, "deleted_at": null, "redelegation_count": 0,
    }));
    context.auth.add("trust", &id, made).await?;
    let now = context.auth.directory();
    let found = now.roll().get("trust", &id).cloned().ok_or_else(|| Refusal::NotFound(id.clone()))?;
    Ok(Answer {
        status: StatusCode::CREATED,
        body: json!({ "trust": view(context, &found, true) }),
        subject: None,
    })
}
