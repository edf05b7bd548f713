//! What the identity API lists, makes, changes and deletes: one table of kinds, one way for all of them.
//!
//! Invariant: an admin sees and changes all; others see themselves, their projects and what is no secret.
//! Invariant: what is shown of a paper is what a client gave, and never a secret: [`HIDDEN`] is left out.
//! Invariant: what the configuration lists is changed by the API, but not deleted.

use std::sync::Arc;

use http::Method;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use super::{
    Answer, Context, Refusal, Reply, catalog, cleanup, config, grants, lent, making, members, own, signed,
    trusts,
};
use crate::auth::roll::{flag, paper, text};
use crate::auth::{Session, Verifier};
use crate::papers::{Paper, PaperError};
use crate::storage::random_bytes;

/// Members of papers that no answer has.
pub(super) const HIDDEN: [&str; 5] = ["kind", "listed", "verifier", "members", "password"];

/// A kind of thing.
#[derive(Debug)]
pub(super) struct Sort {
    pub(super) kind: &'static str,
    /// In paths, behind `prefix`.
    pub(super) many: &'static str,
    pub(super) one: &'static str,
    prefix: &'static str,
    /// Longest name; 0: it needs none.
    name: usize,
    /// Texts that are empty when they are not given.
    pub(super) blank: &'static [&'static str],
}

const fn sort(
    kind: &'static str,
    many: &'static str,
    one: &'static str,
    prefix: &'static str,
    name: usize,
) -> Sort {
    Sort { kind, many, one, prefix, name, blank: &["description"] }
}

const SORTS: [Sort; 12] = [
    sort("domain", "domains", "domain", "", 64),
    sort("project", "projects", "project", "", 64),
    sort("user", "users", "user", "", 255),
    sort("group", "groups", "group", "", 64),
    Sort { blank: &[], ..sort("role", "roles", "role", "", 255) },
    sort("region", "regions", "region", "", 0),
    Sort { blank: &[], ..sort("service", "services", "service", "", 0) },
    Sort { blank: &[], ..sort("endpoint", "endpoints", "endpoint", "", 0) },
    Sort { blank: &[], ..sort("policy", "policies", "policy", "", 0) },
    Sort { blank: &[], ..sort("credential", "credentials", "credential", "", 0) },
    sort("consumer", "consumers", "consumer", "OS-OAUTH1/", 0),
    sort("endpoint_group", "endpoint_groups", "endpoint_group", "OS-EP-FILTER/", 255),
];

/// The kind of a plural, behind its prefix.
pub(super) fn sort_of(kind: &str) -> &'static Sort {
    SORTS.iter().find(|sort| sort.kind == kind).expect("only kinds of the table are asked for")
}

/// Answers a request that is about the roll.
pub(super) async fn answer(context: &Context<'_>, method: &Method, parts: &[&str], body: &[u8]) -> Reply {
    let caller = context.caller()?;
    if let Some(reply) = Box::pin(special(context, &caller, method, parts, body)).await {
        return reply;
    }
    let (prefix, parts) = match parts {
        [prefix @ ("OS-OAUTH1" | "OS-EP-FILTER"), rest @ ..] => (format!("{prefix}/"), rest),
        _ => (String::new(), parts),
    };
    let found =
        parts.first().and_then(|many| SORTS.iter().find(|sort| sort.many == *many && sort.prefix == prefix));
    let Some(sort) = found else { return Err(Refusal::NotFound(format!("/v3/{}", parts.join("/")))) };
    let given = || given(sort, body);
    if sort.kind == "credential" && !matches!(*method, Method::GET | Method::HEAD) {
        lent::may_manage(context, &caller)?;
    }
    match (method.as_str(), &parts[1..]) {
        ("GET" | "HEAD", []) => list(context, &caller, sort),
        ("GET" | "HEAD", [id]) => show(context, &caller, sort, id),
        ("POST", []) => making::create(context, &caller, sort, None, given()?).await,
        ("PUT", [id]) if sort.kind == "region" => {
            making::create(context, &caller, sort, Some(id), given()?).await
        }
        ("PATCH", [id]) => update(context, &caller, sort, id, given()?).await,
        ("DELETE", [id]) => {
            may_change(context, &caller, sort, Some(id))?;
            find(context, sort, id)?;
            cleanup::delete(context, sort, id).await
        }
        (_, [] | [_]) => Err(Refusal::MethodNotAllowed("GET, HEAD, POST, PATCH, DELETE")),
        _ => Err(Refusal::NotFound(format!("/v3/{}", parts.join("/")))),
    }
}

/// Paths that are more than a kind and an id.
async fn special(
    context: &Context<'_>,
    caller: &Arc<Session>,
    method: &Method,
    parts: &[&str],
    body: &[u8],
) -> Option<Reply> {
    Some(match parts {
        ["users", user, "projects"] => members::projects_of(context, caller, user),
        ["users", user, "groups"] => members::groups_of(context, caller, user),
        ["users", user, "password"] if method == Method::POST => {
            own::change_password(context, user, body).await
        }
        ["users", user, rest @ ("application_credentials" | "access_rules"), tail @ ..] => {
            own::answer(context, caller, method, user, rest, tail, body).await
        }
        ["users", user, "credentials", "OS-EC2", tail @ ..] => {
            own::ec2(context, caller, method, user, tail, body).await
        }
        ["groups", group, "users", tail @ ..] => {
            members::of_group(context, caller, method, group, tail).await
        }
        ["projects", project, "tags", tail @ ..] => {
            members::tags(context, caller, method, project, tail, body).await
        }
        ["domains", "config", tail @ .., "default"] => config::defaults(caller, tail),
        ["domains", domain, "config", tail @ ..] => {
            config::answer(context, caller, method, domain, tail, body).await
        }
        ["role_assignments"] => grants::assignments(context, caller),
        ["role_inferences"] => grants::inferences(context, caller),
        ["roles", role, "implies", tail @ ..] => grants::implies(context, caller, method, role, tail).await,
        ["OS-TRUST", "trusts", tail @ ..] => trusts::answer(context, caller, method, tail, body).await,
        _ => return grants::answer(context, caller, method, parts).await,
    })
}

fn given(sort: &Sort, body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    let value: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let given = value.get(sort.one).and_then(Value::as_object).cloned();
    given.ok_or(Refusal::BadRequest("the body has no object of the kind that the path names"))
}

pub(super) fn may_change(
    context: &Context<'_>,
    caller: &Session,
    sort: &Sort,
    id: Option<&str>,
) -> Result<(), Refusal> {
    let own = sort.kind == "credential"
        && id.is_none_or(|id| {
            let found = context.roll().get("credential", id);
            found.is_some_and(|found| text(found, "user_id") == caller.claims.user)
        });
    let hidden = sort.kind == "credential"
        && id
            .and_then(|id| context.roll().get("credential", id))
            .is_some_and(|found| !lent::sees(caller, found));
    if (caller.is_admin() || own) && !hidden { Ok(()) } else { Err(Refusal::Forbidden) }
}

/// A thing of a kind, or 404.
pub(super) fn find(context: &Context<'_>, sort: &Sort, id: &str) -> Result<Arc<Paper>, Refusal> {
    let found = match sort.kind {
        "service" => catalog::all_services(context)
            .into_iter()
            .map(paper)
            .find(|one| text(one, "id") == id)
            .map(Arc::new),
        "endpoint" => catalog::all_endpoints(context)
            .into_iter()
            .map(paper)
            .find(|one| text(one, "id") == id)
            .map(Arc::new),
        // A project may be a domain, and is one under either name.
        "domain" => context.roll().get("domain", id).cloned(),
        kind => context.roll().get(kind, id).cloned(),
    };
    found.ok_or_else(|| Refusal::NotFound(format!("{} {id}", sort.one)))
}

/// A paper as it is shown.
pub(super) fn shown(context: &Context<'_>, sort: &Sort, paper: &Paper) -> Value {
    let id = text(paper, "id");
    let mut shown: Map<String, Value> = paper.clone();
    HIDDEN.iter().for_each(|hidden| drop(shown.remove(*hidden)));
    let link = format!("{}/v3/{}{}/{id}", context.base, sort.prefix, sort.many);
    shown.insert("links".to_owned(), json!({ "self": link }));
    if sort.kind == "user" {
        shown.entry("password_expires_at").or_insert(Value::Null);
    }
    if sort.kind == "consumer" {
        shown.remove("secret");
    }
    Value::Object(shown)
}

/// The `links` member of a list.
pub(super) fn links(context: &Context<'_>, path: &str) -> Value {
    json!({ "self": format!("{}/v3/{path}", context.base), "previous": null, "next": null })
}

fn list(context: &Context<'_>, caller: &Session, sort: &Sort) -> Reply {
    let open = matches!(sort.kind, "domain" | "region") || sort.kind == "credential";
    if !caller.may_look() && !open {
        return Err(Refusal::Forbidden);
    }
    let all: Vec<Value> = match sort.kind {
        "service" => catalog::all_services(context),
        "endpoint" => catalog::all_endpoints(context),
        "credential" => {
            let seen = context.roll().all("credential").filter(|paper| lent::sees(caller, paper));
            seen.map(|paper| shown(context, sort, paper)).collect()
        }
        _ => context.roll().all(sort.kind).map(|paper| shown(context, sort, paper)).collect(),
    };
    // Roles of domains are listed where a domain is named, and others where none is.
    let named_domain = context.query.split('&').any(|pair| pair.starts_with("domain_id="));
    let fits = |value: &Value| match sort.kind {
        "role" => named_domain || value["domain_id"].is_null(),
        "credential" => caller.may_look() || value["user_id"] == caller.claims.user,
        "project" => asks_for_domains(context.query) || value["is_domain"] != true,
        _ => true,
    };
    let found: Vec<Value> =
        all.into_iter().filter(|value| fits(value) && passes(context.query, value)).collect();
    let many = sort.many;
    Ok(Answer::ok(json!({ many: found, "links": links(context, &format!("{}{many}", sort.prefix)) })))
}

fn asks_for_domains(query: &str) -> bool {
    query.split('&').any(|pair| pair.eq_ignore_ascii_case("is_domain=true"))
}

/// Query parameters that page, sort or choose otherwise than by a member.
const NO_FILTERS: [&str; 6] = ["limit", "marker", "sort_key", "sort_dir", "include_names", "effective"];

/// Whether a value passes the filters of a query: each compares the member of its name, if there is one.
pub(super) fn passes(query: &str, value: &Value) -> bool {
    query.split('&').filter_map(|pair| pair.split_once('=')).all(|(name, wanted)| {
        let wanted = wanted.replace('+', " ");
        let wanted = percent_decode_str(&wanted).decode_utf8_lossy();
        match value.get(name).filter(|_| !NO_FILTERS.contains(&name)) {
            None | Some(Value::Object(_) | Value::Array(_)) => true,
            Some(Value::String(found)) => *found == wanted,
            Some(found) => found.to_string().eq_ignore_ascii_case(&wanted),
        }
    })
}

fn show(context: &Context<'_>, caller: &Session, sort: &Sort, id: &str) -> Reply {
    let own = match sort.kind {
        "user" => caller.claims.user == id,
        "project" => context.roll().projects_of(&caller.claims.user).contains(&id),
        "domain" | "region" => true,
        "credential" => {
            context.roll().get("credential", id).is_none_or(|one| text(one, "user_id") == caller.claims.user)
        }
        _ => false,
    };
    if !own && !caller.may_look() {
        return Err(Refusal::Forbidden);
    }
    let found = find(context, sort, id)?;
    if sort.kind == "credential" && !lent::sees(caller, &found) {
        return Err(Refusal::Forbidden);
    }
    Ok(Answer::ok(json!({ sort.one: shown(context, sort, &found) })))
}

/// A fresh id: 32 hex digits, as Keystone's.
pub(super) fn fresh_id() -> String {
    hex::encode(random_bytes::<16>())
}

/// The hash of a secret as papers keep it. Takes milliseconds.
pub(super) async fn verifier(secret: Option<String>) -> String {
    let made = tokio::task::spawn_blocking(move || {
        let verifier = secret.map_or_else(Verifier::decoy, |secret| Verifier::of(&secret));
        let mut bytes = Vec::new();
        verifier.put(&mut bytes);
        hex::encode(bytes)
    });
    made.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

pub(super) fn same_name(sort: &Sort, other: &Paper, made: &Paper) -> bool {
    let domain = |paper: &Paper| text(paper, "domain_id").to_owned();
    match sort.kind {
        "domain" | "endpoint_group" => text(other, "name") == text(made, "name"),
        "project" if flag(made, "is_domain", false) => {
            text(other, "name") == text(made, "name") && flag(other, "is_domain", false)
        }
        "project" | "user" | "group" | "role" => {
            text(other, "name") == text(made, "name") && domain(other) == domain(made)
        }
        _ => false,
    }
}

/// Refuses what no paper may say.
pub(super) fn check(sort: &Sort, given: &Map<String, Value>, new: bool) -> Result<(), Refusal> {
    if sort.name > 0 && (new || given.contains_key("name")) {
        let name = given.get("name").and_then(Value::as_str).unwrap_or("");
        if name.trim().is_empty() || name.chars().count() > sort.name {
            return Err(Refusal::Bad(format!("name has 1 to {} characters", sort.name)));
        }
    }
    for key in ["enabled", "is_domain"] {
        if given.get(key).is_some_and(|value| !value.is_boolean()) {
            return Err(Refusal::Bad(format!("{key} is true or false")));
        }
    }
    if given.get("description").is_some_and(|value| !value.is_string() && !value.is_null()) {
        return Err(Refusal::BadRequest("description is a text"));
    }
    let needs: &[&str] = match sort.kind {
        "endpoint" if new => &["service_id", "interface", "url"],
        "service" if new => &["type"],
        "policy" | "credential" if new => &["type", "blob"],
        _ => &[],
    };
    match needs.iter().find(|need| given.get(**need).and_then(Value::as_str).is_none_or(str::is_empty)) {
        Some(need) => Err(Refusal::Bad(format!("{need} is needed"))),
        None => Ok(()),
    }
}

async fn update(
    context: &Context<'_>,
    caller: &Session,
    sort: &Sort,
    id: &str,
    mut given: Map<String, Value>,
) -> Reply {
    may_change(context, caller, sort, Some(id))?;
    let found = find(context, sort, id)?;
    check(sort, &given, false)?;
    given.retain(|key, _| {
        !["id", "links"].contains(&key.as_str()) && (!HIDDEN.contains(&key.as_str()) || key == "password")
    });
    let mut wanted = (*found).clone();
    wanted.extend(given.clone());
    if sort.kind == "endpoint" {
        if given.contains_key("region") && !given.contains_key("region_id") {
            wanted.remove("region_id");
        }
        making::place_endpoint(context, &mut wanted)?;
        for key in ["region", "region_id"] {
            given.insert(key.to_owned(), wanted.get(key).cloned().unwrap_or(Value::Null));
        }
        let region = text(&wanted, "region_id");
        if !region.is_empty() && context.roll().get("region", region).is_none() {
            let paper = paper(json!({ "description": "", "parent_region_id": null }));
            context.auth.add("region", region, paper).await?;
        }
    }
    if sort.kind == "credential" {
        signed::may_become(&found, &wanted, caller)?;
    }
    let renamed = |other: &&Arc<Paper>| text(other, "id") != id && same_name(sort, other, &wanted);
    if given.contains_key("name") && context.roll().all(sort.kind).any(|other| renamed(&other)) {
        return Err(Refusal::Conflict(format!("a {} of this name is there already", sort.one)));
    }
    if let Some(password) = given.remove("password") {
        let password = password.as_str().map(str::to_owned);
        given.insert("verifier".to_owned(), json!(verifier(password).await));
    }
    let edit = |paper: &mut Paper| paper.extend(given.clone());
    let changed = context.auth.edit(sort.kind, id, edit).await?;
    if sort.kind == "project" && flag(&found, "is_domain", false) {
        context.auth.edit("domain", id, edit).await?;
    }
    let changed = changed.ok_or_else(|| Refusal::NotFound(format!("{} {id}", sort.one)))?;
    Ok(Answer::ok(json!({ sort.one: shown(context, sort, &changed) })))
}

impl From<PaperError> for Refusal {
    fn from(error: PaperError) -> Self {
        match error {
            PaperError::Taken => Self::Conflict("it is there already".to_owned()),
            PaperError::TooLarge | PaperError::Bad(_) => Self::Bad(error.to_string()),
            error => {
                tracing::warn!(%error, "read or write papers of the identity API");
                Self::Unavailable("The service is not available now; try again.".to_owned())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_compare_members_of_the_same_name() {
        let value = json!({ "name": "a b", "enabled": true, "links": {} });
        for (query, pass) in [
            ("", true),
            ("name=a%20b", true),
            ("name=a+b", true),
            ("name=c", false),
            ("enabled=True", true),
            ("enabled=false", false),
            ("links=y", true),
            ("type=z", true),
        ] {
            assert_eq!(passes(query, &value), pass, "{query}");
        }
    }
}
