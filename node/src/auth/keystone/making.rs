//! How things of the roll are made: what a client may leave out, where projects and endpoints belong.
//!
//! Invariant: what is refused is refused before anything is written.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::resources::{HIDDEN, Sort, check, fresh_id, may_change, same_name, shown, verifier};
use super::{Answer, Context, Refusal, Reply, catalog, signed};
use crate::auth::Session;
use crate::auth::roll::{DOMAIN, Roll, flag, paper, text};
use crate::papers::Paper;

/// Makes something of a kind.
pub(super) async fn create(
    context: &Context<'_>,
    caller: &Session,
    sort: &Sort,
    id: Option<&str>,
    mut given: Map<String, Value>,
) -> Reply {
    if sort.kind != "credential"
        || given.get("user_id").and_then(Value::as_str) != Some(caller.claims.user.as_str())
    {
        may_change(context, caller, sort, Some(""))?;
    }
    let wished = given.remove("id").and_then(|id| id.as_str().map(str::to_owned));
    let wished = wished.filter(|_| sort.kind == "region").or_else(|| id.map(str::to_owned));
    check(sort, &given, true)?;
    let mut made = paper(json!({}));
    for (key, value) in given {
        if !HIDDEN.contains(&key.as_str()) || key == "password" {
            made.insert(key, value);
        }
    }
    for blank in sort.blank {
        if made.get(*blank).is_none_or(Value::is_null) {
            made.insert((*blank).to_owned(), json!(""));
        }
    }
    let id = match (sort.kind, wished) {
        ("credential", _) => credential_id(&made),
        (_, Some(id)) if !id.is_empty() && id.len() <= 255 => id,
        _ => fresh_id(),
    };
    complete(context, sort, &mut made)?;
    if sort.kind == "credential" {
        signed::bind_new(&mut made, caller)?;
    }
    if sort.kind == "user" {
        let password = made.remove("password").and_then(|given| given.as_str().map(str::to_owned));
        made.insert("verifier".to_owned(), json!(verifier(password).await));
    }
    if sort.kind == "consumer" {
        made.insert("secret".to_owned(), json!(fresh_id()));
    }
    let unique = |other: &Arc<Paper>| same_name(sort, other, &made);
    if context.roll().all(sort.kind).any(unique) || context.roll().get(sort.kind, &id).is_some() {
        return Err(Refusal::Conflict(format!("a {} of this name is there already", sort.one)));
    }
    made.insert("id".to_owned(), json!(id));
    keep_new(context, sort, &id, made.clone()).await?;
    let mut body = shown(context, sort, &made);
    if let Some(secret) = made.get("secret").filter(|_| sort.kind == "consumer") {
        body["secret"] = secret.clone();
    }
    Ok(Answer { status: StatusCode::CREATED, body: json!({ sort.one: body }), subject: None })
}

async fn keep_new(context: &Context<'_>, sort: &Sort, id: &str, made: Paper) -> Result<(), Refusal> {
    let auth = context.auth;
    if sort.kind == "endpoint" && !text(&made, "region_id").is_empty() {
        let region = text(&made, "region_id").to_owned();
        if context.roll().get("region", &region).is_none() {
            let paper = paper(json!({ "description": "", "parent_region_id": null }));
            auth.add("region", &region, paper).await?;
        }
    }
    if sort.kind == "project" && flag(&made, "is_domain", false) {
        // It is a domain as well.
        let domain = paper(json!({
            "name": text(&made, "name"), "description": text(&made, "description"), "enabled": flag(&made, "enabled", true),
            "tags": [], "options": {},
        }));
        auth.add("domain", id, domain).await?;
    }
    Ok(auth.add(sort.kind, id, made).await?)
}

/// The id of a credential follows from what it opens, as Keystone's: SHA-256 of the access key.
fn credential_id(made: &Paper) -> String {
    use sha2::{Digest, Sha256};
    let blob: Value = serde_json::from_str(text(made, "blob")).unwrap_or(Value::Null);
    match (text(made, "type"), blob["access"].as_str()) {
        ("ec2", Some(access)) => hex::encode(Sha256::digest(access.as_bytes())),
        _ => fresh_id() + &fresh_id(),
    }
}

/// Writes down what a client may leave out, and refuses what names nothing.
fn complete(context: &Context<'_>, sort: &Sort, made: &mut Paper) -> Result<(), Refusal> {
    let roll = context.roll();
    let mut default = |key: &str, value: Value| {
        made.entry(key).or_insert(value);
    };
    match sort.kind {
        "domain" => {
            default("enabled", json!(true));
            default("tags", json!([]));
            default("options", json!({}));
        }
        "project" => {
            default("enabled", json!(true));
            default("is_domain", json!(false));
            default("tags", json!([]));
            default("options", json!({}));
            place_project(roll, made)?;
        }
        "user" | "group" => {
            if sort.kind == "user" {
                default("enabled", json!(true));
                default("options", json!({}));
            }
            default("domain_id", json!(DOMAIN));
            let domain = text(made, "domain_id").to_owned();
            if roll.get("domain", &domain).is_none() {
                return Err(Refusal::NotFound(format!("domain {domain}")));
            }
        }
        "role" => {
            default("domain_id", Value::Null);
            default("description", Value::Null);
            default("options", json!({}));
        }
        "region" => default("parent_region_id", Value::Null),
        "service" => default("enabled", json!(true)),
        "endpoint" => {
            default("enabled", json!(true));
            place_endpoint(context, made)?;
        }
        "credential" => default("project_id", Value::Null),
        "endpoint_group" => default("filters", json!({})),
        _ => {}
    }
    Ok(())
}

/// Gives an endpoint its region under both names, and refuses one of a service that is not there.
pub(super) fn place_endpoint(context: &Context<'_>, made: &mut Paper) -> Result<(), Refusal> {
    let service = text(made, "service_id");
    if !catalog::all_services(context).iter().any(|known| known["id"] == service) {
        return Err(Refusal::Bad(format!("there is no service {service}")));
    }
    if !["public", "internal", "admin"].contains(&text(made, "interface")) {
        return Err(Refusal::BadRequest("interface is public, internal or admin"));
    }
    let mut region = ["region_id", "region"].into_iter().map(|key| text(made, key).to_owned());
    let region = region.rfind(|region| !region.is_empty()).map_or(Value::Null, Value::String);
    made.insert("region".to_owned(), region.clone());
    made.insert("region_id".to_owned(), region);
    Ok(())
}

fn place_project(roll: &Roll, made: &mut Paper) -> Result<(), Refusal> {
    let parent = text(made, "parent_id").to_owned();
    let above = roll.get("project", &parent);
    if flag(made, "is_domain", false) {
        made.insert("domain_id".to_owned(), Value::Null);
        made.insert("parent_id".to_owned(), Value::Null);
        return Ok(());
    }
    let of_parent = above.map(|above| text(above, "domain_id")).filter(|domain| !domain.is_empty());
    let domain = match (text(made, "domain_id"), of_parent) {
        ("", Some(domain)) => domain.to_owned(),
        ("", None) if roll.get("domain", &parent).is_some() => parent.clone(),
        ("", None) => DOMAIN.to_owned(),
        (domain, _) => domain.to_owned(),
    };
    if roll.get("domain", &domain).is_none() {
        return Err(Refusal::NotFound(format!("domain {domain}")));
    }
    if !parent.is_empty() && above.is_none() && roll.get("domain", &parent).is_none() {
        return Err(Refusal::NotFound(format!("project {parent}")));
    }
    let parent = if parent.is_empty() { domain.clone() } else { parent };
    made.insert("domain_id".to_owned(), json!(domain));
    made.insert("parent_id".to_owned(), json!(parent));
    Ok(())
}
