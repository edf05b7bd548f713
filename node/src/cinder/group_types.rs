//! `/group_types` (3.11) with their specs.
//!
//! Invariant: a name belongs to one group type.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::Office;
use super::ask::{Answer, Ask, Reply, truth};
use super::fault::Fault;
use super::fields::{
    flag, fresh_id, given_flag, given_text, map, needed_name, now, paper, text, text_map, value,
};
use super::list::{Rules, page};
use crate::papers::Paper;

const DRAWER: &str = "group-types";
const RULES: Rules = Rules { filters: &["name"], sorts: &["name", "is_public"], what: "Group type" };

/// Answers what is under `/group_types`.
pub(crate) async fn answer(office: &Office, ask: &Ask, rest: &[&str]) -> Reply {
    ask.needs(11)?;
    if ask.method != http::Method::GET {
        ask.admin("group:group_types_manage")?;
    }
    match (ask.method.as_str(), rest) {
        ("GET", []) => {
            let mut all = office.papers.all(DRAWER).await?;
            all.retain(|kind| match ask.param("is_public").filter(|_| ask.caller.admin) {
                Some(text) if text.eq_ignore_ascii_case("none") => true,
                Some(text) => truth(text) == Some(flag(kind, "is_public")),
                None => flag(kind, "is_public"),
            });
            let page = page(ask, RULES, all)?;
            Answer::ok(page.body(ask, "group_types", |kind| shown(ask, kind)))
        }
        ("POST", []) => create(office, ask).await,
        ("GET", [id]) => Answer::ok(json!({ "group_type": shown(ask, &*named(office, id).await?) })),
        ("PUT", [id]) => {
            let wanted = ask.member("group_type")?;
            let (name, description) = (given_text(wanted, &["name"])?, given_text(wanted, &["description"])?);
            let public = wanted.get("is_public").map(|given| given_flag(given, "is_public")).transpose()?;
            let changed = change(office, id, |kind| {
                for (key, new) in [("name", &name), ("description", &description)] {
                    if let Some(new) = new {
                        kind.insert(key.to_owned(), new.clone());
                    }
                }
                if let Some(public) = public {
                    kind.insert("is_public".to_owned(), json!(public));
                }
                Ok(())
            })
            .await?;
            Answer::ok(json!({ "group_type": shown(ask, &changed) }))
        }
        ("DELETE", [id]) => {
            named(office, id).await?;
            if office.papers.all("groups").await?.iter().any(|group| text(group, "group_type") == *id) {
                return Err(Fault::bad("Target group type is still in use."));
            }
            office.papers.remove(DRAWER, id).await?;
            Answer::bare(202)
        }
        (_, [id, "group_specs", rest @ ..]) => {
            ask.admin("group:group_types_specs")?;
            let kind = named(office, id).await?;
            specs(office, ask, &kind, rest).await
        }
        _ => Err(Fault::nowhere()),
    }
}

fn missing(id: &str) -> Fault {
    Fault::missing(format!("Group type {id}"))
}

/// A group type by id or name.
pub(crate) async fn named(office: &Office, name: &str) -> Result<Arc<Paper>, Fault> {
    let all = office.papers.all(DRAWER).await?;
    let by = |key: &str| all.iter().find(|kind| text(kind, key) == name).cloned();
    by("id").or_else(|| by("name")).ok_or_else(|| missing(name))
}

/// Whether groups of a type want snapshots of all their volumes at one moment.
pub(crate) fn wants_consistent(kind: &Paper) -> bool {
    text(&map(kind, "group_specs"), "consistent_group_snapshot_enabled").eq_ignore_ascii_case("<is> true")
}

fn shown(ask: &Ask, kind: &Paper) -> Value {
    let mut shown = json!({
        "id": text(kind, "id"), "name": text(kind, "name"), "description": value(kind, "description"),
        "is_public": flag(kind, "is_public"),
    });
    if ask.caller.admin {
        shown["group_specs"] = Value::Object(map(kind, "group_specs"));
    }
    shown
}

async fn create(office: &Office, ask: &Ask) -> Reply {
    let wanted = ask.member("group_type")?;
    let name = needed_name(wanted)?;
    if office.papers.all(DRAWER).await?.iter().any(|kind| text(kind, "name") == name) {
        return Err(Fault::conflict(format!("Group Type {name} already exists.")));
    }
    let public = wanted.get("is_public").map_or(Ok(true), |given| given_flag(given, "is_public"))?;
    let specs = wanted.get("group_specs").filter(|given| !given.is_null());
    let specs = specs.map_or_else(|| Ok(Map::new()), |given| text_map(given, false))?;
    let made = paper(json!({
        "id": fresh_id(), "name": name, "description": given_text(wanted, &["description"])?, "is_public": public,
        "group_specs": specs, "created_at": now(),
    }));
    let made = office.papers.add(DRAWER, text(&made, "id"), made.clone()).await?;
    Answer::accepted(json!({ "group_type": shown(ask, &made) }))
}

async fn change(
    office: &Office,
    id: &str,
    edit: impl Fn(&mut Paper) -> Result<(), Fault> + Send + Sync,
) -> Result<Arc<Paper>, Fault> {
    office.papers.change(DRAWER, id, edit).await?.ok_or_else(|| missing(id))
}

async fn specs(office: &Office, ask: &Ask, kind: &Paper, rest: &[&str]) -> Reply {
    let (id, known) = (text(kind, "id"), map(kind, "group_specs"));
    let missing = |key: &str| Fault::missing(format!("Group Type {id} group spec with key {key}"));
    let add = |given: Map<String, Value>| {
        change(office, id, move |kind| {
            let mut specs = map(kind, "group_specs");
            specs.extend(given.clone());
            kind.insert("group_specs".to_owned(), Value::Object(specs));
            Ok(())
        })
    };
    match (ask.method.as_str(), rest) {
        ("GET", []) => Answer::ok(json!({ "group_specs": known })),
        ("POST", []) => {
            let given = text_map(ask.body.get("group_specs").unwrap_or(&Value::Null), false)?;
            add(given.clone()).await?;
            Answer::accepted(json!({ "group_specs": given }))
        }
        ("GET", [key]) => {
            let spec = known.get(*key).ok_or_else(|| missing(key))?;
            Answer::ok(json!({ *key: spec }))
        }
        ("PUT", [key]) => {
            let given = text_map(&ask.body, false)?;
            if given.len() != 1 || !given.contains_key(*key) {
                return Err(Fault::bad("Request body and URI mismatch"));
            }
            add(given.clone()).await?;
            Answer::ok(Value::Object(given))
        }
        ("DELETE", [key]) => {
            change(office, id, |kind| {
                let mut specs = map(kind, "group_specs");
                specs.remove(*key).ok_or_else(|| missing(key))?;
                kind.insert("group_specs".to_owned(), Value::Object(specs));
                Ok(())
            })
            .await?;
            Answer::bare(202)
        }
        _ => Err(Fault::nowhere()),
    }
}
