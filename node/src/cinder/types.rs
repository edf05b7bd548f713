//! `/types`: volume types, who may use them, and which one is the default.
//!
//! Invariant: every volume has a type; `__DEFAULT__` is there always, and has one id for ever.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::ask::{Answer, Ask, Reply, truth};
use super::fault::Fault;
use super::fields::{
    flag, fresh_id, given_flag, given_text, map, needed_name, now, paper, text, text_map, texts, value,
};
use super::list::{Rules, page};
use super::{Office, quotas, several, specs};
use crate::papers::{Paper, PaperError};

pub(crate) const DRAWER: &str = "types";
const DEFAULTS: &str = "default-types";
/// The built-in type.
const BUILT_IN: &str = "__DEFAULT__";
const BUILT_IN_ID: &str = "9f2a54c1-7f0b-4d61-8d57-0d5ba5f0c3a1";
const RULES: Rules = Rules { filters: &["name"], sorts: &["name", "is_public"], what: "Volume type" };
/// Extra specs that users may see; the others tell of the machines.
const VISIBLE: [&str; 3] = ["multiattach", "replication_enabled", "RESKEY:availability_zones"];

/// Answers what is under `/types`.
pub(crate) async fn answer(office: &Office, ask: &Ask, rest: &[&str]) -> Reply {
    match (ask.method.as_str(), rest) {
        ("GET", []) => list(office, ask).await,
        ("POST", []) => create(office, ask).await,
        ("GET", ["default"]) => {
            let kind = default_of(office, &ask.caller.project).await?;
            Answer::ok(json!({ "volume_type": shown(ask, &kind, true) }))
        }
        ("GET", [id]) => {
            let kind = seen(office, ask, id).await?;
            Answer::ok(json!({ "volume_type": shown(ask, &kind, true) }))
        }
        ("PUT", [id]) => update(office, ask, id).await,
        ("DELETE", [id]) => delete(office, ask, id).await,
        ("POST", [id, "action"]) => access(office, ask, id).await,
        ("GET", [id, "os-volume-type-access"]) => {
            ask.admin("volume_extension:volume_type_access")?;
            let kind = by_id(office, id).await?;
            if flag(&kind, "is_public") {
                return Err(Fault::other(404, "Access list not available for public volume types."));
            }
            let one = |project: String| json!({ "volume_type_id": id, "project_id": project });
            let all: Vec<_> = texts(&kind, "access").into_iter().map(one).collect();
            Answer::ok(json!({ "volume_type_access": all }))
        }
        (_, [id, "extra_specs", rest @ ..]) => {
            let kind = if ask.method == http::Method::GET {
                seen(office, ask, id).await?
            } else {
                by_id(office, id).await?
            };
            specs::extra(office, ask, &kind, rest).await
        }
        (_, [id, "encryption", rest @ ..]) => {
            ask.admin("volume_extension:volume_type_encryption")?;
            let kind = by_id(office, id).await?;
            specs::encryption(office, ask, &kind, rest).await
        }
        _ => Err(Fault::nowhere()),
    }
}

/// All types, the built-in one among them.
pub(crate) async fn all(office: &Office) -> Result<Vec<Arc<Paper>>, Fault> {
    let all = office.papers.all(DRAWER).await?;
    if all.iter().any(|kind| text(kind, "id") == BUILT_IN_ID) {
        return Ok(all);
    }
    let built_in = new(BUILT_IN_ID, BUILT_IN, &json!("Default Volume Type"), true);
    match office.papers.add(DRAWER, BUILT_IN_ID, built_in).await {
        Ok(_) | Err(PaperError::Taken) => Ok(office.papers.all(DRAWER).await?),
        Err(error) => Err(error.into()),
    }
}

fn new(id: &str, name: &str, description: &Value, public: bool) -> Paper {
    paper(json!({
        "id": id, "name": name, "description": description, "is_public": public, "extra_specs": {}, "access": [],
        "qos_specs_id": null, "encryption": null, "created_at": now(),
    }))
}

fn missing(id: &str) -> Fault {
    Fault::missing(format!("Volume type {id}"))
}

async fn by_id(office: &Office, id: &str) -> Result<Arc<Paper>, Fault> {
    let found = all(office).await?.into_iter().find(|kind| text(kind, "id") == id);
    found.ok_or_else(|| missing(id))
}

/// A type by name or id.
pub(crate) async fn named(office: &Office, name: &str) -> Result<Arc<Paper>, Fault> {
    let all = all(office).await?;
    let by = |key: &str| all.iter().find(|kind| text(kind, key) == name).cloned();
    by("id").or_else(|| by("name")).ok_or_else(|| missing(name))
}

fn may_use(ask: &Ask, kind: &Paper) -> bool {
    flag(kind, "is_public") || texts(kind, "access").contains(&ask.caller.project)
}

/// A type by name or id that the caller may make volumes of.
pub(crate) async fn visible(office: &Office, ask: &Ask, name: &str) -> Result<Arc<Paper>, Fault> {
    let kind = named(office, name).await?;
    if may_use(ask, &kind) || ask.caller.admin { Ok(kind) } else { Err(missing(name)) }
}

async fn seen(office: &Office, ask: &Ask, id: &str) -> Result<Arc<Paper>, Fault> {
    let kind = by_id(office, id).await?;
    if may_use(ask, &kind) || ask.caller.admin { Ok(kind) } else { Err(missing(id)) }
}

/// The type of volumes that name none.
pub(crate) async fn default_of(office: &Office, project: &str) -> Result<Arc<Paper>, Fault> {
    if let Some(chosen) = office.papers.get(DEFAULTS, project).await?
        && let Ok(kind) = by_id(office, text(&chosen, "volume_type_id")).await
    {
        return Ok(kind);
    }
    by_id(office, BUILT_IN_ID).await
}

/// What is known of the encryption of a type's volumes; null: they are not encrypted.
pub(crate) fn encryption_of(kind: &Paper) -> Value {
    let known = kind.get("encryption").filter(|known| known.is_object());
    known.map_or(Value::Null, |known| {
        json!({
            "cipher": known["cipher"], "key_size": known["key_size"], "provider": known["provider"],
            "control_location": known["control_location"],
        })
    })
}

fn shown(ask: &Ask, kind: &Paper, access: bool) -> Value {
    let mut specs = map(kind, "extra_specs");
    if !ask.caller.admin {
        specs.retain(|key, _| VISIBLE.contains(&key.as_str()));
    }
    let public = flag(kind, "is_public");
    let mut shown = json!({
        "id": text(kind, "id"), "name": text(kind, "name"), "description": value(kind, "description"),
        "is_public": public, "extra_specs": specs,
    });
    if access {
        shown["os-volume-type-access:is_public"] = json!(public);
        if ask.caller.admin {
            shown["qos_specs_id"] = value(kind, "qos_specs_id");
        }
    }
    shown
}

async fn list(office: &Office, ask: &Ask) -> Reply {
    let mut kinds = all(office).await?;
    let public = ask.param("is_public");
    kinds.retain(|kind| match public.filter(|_| ask.caller.admin) {
        Some(text) if text.eq_ignore_ascii_case("none") => true,
        Some(text) => truth(text) == Some(flag(kind, "is_public")),
        None => may_use(ask, kind),
    });
    let page = page(ask, RULES, kinds)?;
    Answer::ok(page.body(ask, "volume_types", |kind| shown(ask, kind, true)))
}

async fn create(office: &Office, ask: &Ask) -> Reply {
    ask.admin("volume_extension:type_create")?;
    let wanted = ask.member("volume_type")?;
    let name = needed_name(wanted)?;
    let description = given_text(wanted, &["description"])?.unwrap_or(Value::Null);
    let public = wanted.get("os-volume-type-access:is_public").or_else(|| wanted.get("is_public"));
    let public = public.map_or(Ok(true), |given| given_flag(given, "is_public"))?;
    let specs = wanted.get("extra_specs").filter(|given| !given.is_null());
    let specs = specs.map_or_else(|| Ok(Map::new()), |given| text_map(given, true))?;
    several::judge(&specs)?;
    if all(office).await?.iter().any(|kind| text(kind, "name") == name) {
        return Err(Fault::conflict(format!("Volume Type {name} already exists.")));
    }
    let mut made = new(&fresh_id(), &name, &description, public);
    made.insert("extra_specs".to_owned(), Value::Object(specs));
    let made = office.papers.add(DRAWER, text(&made, "id"), made.clone()).await?;
    let mut shown = shown(ask, &made, true);
    if let Some(shown) = shown.as_object_mut() {
        shown.remove("qos_specs_id");
    }
    Answer::ok(json!({ "volume_type": shown }))
}

/// Changes a type that is there.
pub(crate) async fn change(
    office: &Office,
    id: &str,
    edit: impl Fn(&mut Paper) -> Result<(), Fault> + Send + Sync,
) -> Result<Arc<Paper>, Fault> {
    office.papers.change(DRAWER, id, edit).await?.ok_or_else(|| missing(id))
}

async fn update(office: &Office, ask: &Ask, id: &str) -> Reply {
    ask.admin("volume_extension:type_update")?;
    let before = by_id(office, id).await?;
    let wanted = ask.member("volume_type")?;
    let (name, description) = (given_text(wanted, &["name"])?, given_text(wanted, &["description"])?);
    let public = wanted.get("is_public").map(|given| given_flag(given, "is_public")).transpose()?;
    if name.is_none() && description.is_none() && public.is_none() {
        return Err(Fault::bad("Specify volume type name, description, is_public or a combination thereof."));
    }
    if name.as_ref().is_some_and(|name| name.as_str() == Some("")) {
        return Err(Fault::bad("Volume type name can not be empty."));
    }
    let taken = |kind: &Arc<Paper>| {
        text(kind, "id") != id && name.as_ref().and_then(Value::as_str) == Some(text(kind, "name"))
    };
    if all(office).await?.iter().any(taken) {
        return Err(Fault::conflict("A volume type of this name is there already."));
    }
    let renamed = name.as_ref().and_then(Value::as_str).filter(|name| *name != text(&before, "name"));
    if let Some(name) = renamed {
        quotas::copy_type(office, text(&before, "name"), name).await?;
    }
    let changed = change(office, id, |kind| {
        if let Some(name @ Value::String(_)) = &name {
            kind.insert("name".to_owned(), name.clone());
        }
        if let Some(description) = &description {
            kind.insert("description".to_owned(), description.clone());
        }
        if let Some(public) = public {
            kind.insert("is_public".to_owned(), json!(public));
        }
        Ok(())
    })
    .await?;
    if renamed.is_some() {
        quotas::forget_type(office, text(&before, "name")).await?;
    }
    Answer::ok(json!({ "volume_type": shown(ask, &changed, false) }))
}

async fn delete(office: &Office, ask: &Ask, id: &str) -> Reply {
    ask.admin("volume_extension:type_delete")?;
    by_id(office, id).await?;
    let used = office.papers.all("volumes").await?;
    if id == BUILT_IN_ID || used.iter().any(|volume| text(volume, "volume_type_id") == id) {
        return Err(Fault::bad("Target volume type is still in use."));
    }
    office.papers.remove(DRAWER, id).await?;
    Answer::bare(202)
}

async fn access(office: &Office, ask: &Ask, id: &str) -> Reply {
    ask.admin("volume_extension:volume_type_access:addProjectAccess")?;
    let kind = by_id(office, id).await?;
    let project_of = |key: &str| {
        let given = ask.body.get(key)?;
        Some(given.get("project").and_then(Value::as_str).unwrap_or("").to_owned())
    };
    let (add, remove) = (project_of("addProjectAccess"), project_of("removeProjectAccess"));
    if flag(&kind, "is_public") {
        return Err(Fault::conflict("Invalid volume type: it is public, so there is no access to change."));
    }
    let (project, adds) = match (add, remove) {
        (Some(project), None) => (project, true),
        (None, Some(project)) => (project, false),
        _ => return Err(Fault::bad("There is no such action.")),
    };
    if project.is_empty() {
        return Err(Fault::bad("Invalid input for field/attribute project."));
    }
    change(office, id, |kind| {
        let mut access = texts(kind, "access");
        match (adds, access.contains(&project)) {
            (true, true) => {
                return Err(Fault::conflict("Volume type access for this project is there already."));
            }
            (false, false) => return Err(Fault::missing(format!("Volume type access for {project}"))),
            (true, false) => access.push(project.clone()),
            (false, true) => access.retain(|known| *known != project),
        }
        kind.insert("access".to_owned(), json!(access));
        Ok(())
    })
    .await?;
    Answer::bare(202)
}

/// `/default-types/…` (3.62).
pub(crate) async fn defaults(office: &Office, ask: &Ask, rest: &[&str]) -> Reply {
    ask.needs(62)?;
    ask.admin("volume_extension:default_set_or_update")?;
    let shown = |chosen: &Paper| json!({ "project_id": text(chosen, "project_id"), "volume_type_id": text(chosen, "volume_type_id") });
    match (ask.method.as_str(), rest) {
        ("GET", []) => {
            let all = office.papers.all(DEFAULTS).await?;
            Answer::ok(json!({ "default_types": all.iter().map(|chosen| shown(chosen)).collect::<Vec<_>>() }))
        }
        ("GET", [project]) => match office.papers.get(DEFAULTS, project).await? {
            Some(chosen) => Answer::ok(json!({ "default_type": shown(&chosen) })),
            None => Err(Fault::missing(format!("Default type for project {project}"))),
        },
        ("PUT", [project]) => {
            let name = ask.member("default_type")?.get("volume_type").and_then(Value::as_str).unwrap_or("");
            let kind = named(office, name).await?;
            let chosen = paper(json!({ "project_id": project, "volume_type_id": text(&kind, "id") }));
            office.papers.remove(DEFAULTS, project).await?;
            office.papers.add(DEFAULTS, project, chosen.clone()).await?;
            Answer::ok(json!({ "default_type": shown(&chosen) }))
        }
        ("DELETE", [project]) => {
            office.papers.remove(DEFAULTS, project).await?;
            Answer::bare(204)
        }
        _ => Err(Fault::nowhere()),
    }
}
