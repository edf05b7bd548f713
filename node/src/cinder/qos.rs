//! `/qos-specs`: told to whoever attaches (`front-end`), held by the node that has a volume (`back-end`), or both.
//!
//! What a volume's type says is written into the volume's label, where whoever serves it finds it (`crate::block`), also after a restart.
//! Invariant: a volume of the API is limited as its type says, and as nothing else does, within a look of [`hold`].
//! Invariant: what a type is associated with is in the type's own paper; a spec that a type has is deleted by force alone.

use std::sync::Arc;

use quarry_volume::pace::Limits;
use serde_json::{Map, Value, json};

use super::Office;
use super::ask::{Answer, Ask, Reply};
use super::fault::Fault;
use super::fields::{fresh_id, map, needed_name, now, paper, text, text_map};
use super::list::{Rules, page};
use super::types;
use super::volume_view::links;
use crate::block::limits_of;
use crate::papers::{Paper, PaperError};

const DRAWER: &str = "qos-specs";
const RULES: Rules =
    Rules { filters: &["name", "consumer", "id"], sorts: &["name", "consumer"], what: "QoS specs" };
const CONSUMERS: [&str; 3] = ["front-end", "back-end", "both"];

/// Answers what is under `/qos-specs`.
pub(crate) async fn answer(office: &Office, ask: &Ask, rest: &[&str]) -> Reply {
    ask.admin("volume_extension:qos_specs_manage")?;
    match (ask.method.as_str(), rest) {
        ("GET", []) => {
            let page = page(ask, RULES, office.papers.all(DRAWER).await?)?;
            Answer::ok(page.body(ask, "qos_specs", |spec| shown(spec)))
        }
        ("POST", []) => create(office, ask).await,
        ("GET", [id]) => {
            let spec = find(office, id).await?;
            Answer::ok(json!({ "qos_specs": shown(&spec), "links": links(ask, "qos-specs", id) }))
        }
        ("PUT", [id]) => {
            find(office, id).await?;
            let mut given = text_map(ask.body.get("qos_specs").unwrap_or(&Value::Null), true)?;
            let consumer = given.remove("consumer");
            check_consumer(consumer.as_ref())?;
            edit(office, id, |spec| {
                let mut specs = map(spec, "specs");
                specs.extend(given.clone());
                spec.insert("specs".to_owned(), Value::Object(specs));
                if let Some(consumer) = &consumer {
                    spec.insert("consumer".to_owned(), consumer.clone());
                }
            })
            .await?;
            if let Some(consumer) = consumer {
                given.insert("consumer".to_owned(), consumer);
            }
            Answer::ok(json!({ "qos_specs": given }))
        }
        ("PUT", [id, "delete_keys"]) => delete_keys(office, ask, id).await,
        ("DELETE", [id]) => {
            find(office, id).await?;
            let used = using(office, id).await?;
            if !used.is_empty() && !ask.param_flag("force") {
                return Err(Fault::bad(format!("QoS Specs {id} is still associated with entities.")));
            }
            disassociate(office, &used).await?;
            office.papers.remove(DRAWER, id).await?;
            Answer::bare(202)
        }
        ("GET", [id, "associations"]) => {
            find(office, id).await?;
            let one = |kind: &Arc<Paper>| json!({ "association_type": "volume_type", "id": text(kind, "id"), "name": text(kind, "name") });
            let all: Vec<_> = using(office, id).await?.iter().map(one).collect();
            Answer::ok(json!({ "qos_associations": all }))
        }
        ("GET", [id, "associate"]) => associate(office, ask, id).await,
        ("GET", [id, "disassociate"]) => {
            find(office, id).await?;
            let wanted = ask.param("vol_type_id").unwrap_or("");
            let mut used = using(office, id).await?;
            used.retain(|kind| text(kind, "id") == wanted);
            if used.is_empty() {
                types::named(office, wanted).await?;
            }
            disassociate(office, &used).await?;
            Answer::bare(202)
        }
        ("GET", [id, "disassociate_all"]) => {
            find(office, id).await?;
            disassociate(office, &using(office, id).await?).await?;
            Answer::bare(202)
        }
        _ => Err(Fault::nowhere()),
    }
}

/// Which of the consumers a spec has.
fn is_for(spec: &Paper, consumer: &str) -> bool {
    matches!(text(spec, "consumer"), both if both == "both" || both == consumer)
}

/// All types and specs, for looking up those of many volumes.
struct Known {
    types: Vec<Arc<Paper>>,
    specs: Vec<Arc<Paper>>,
}

impl Known {
    async fn read(office: &Office) -> Result<Self, PaperError> {
        let types = office.papers.all(types::DRAWER).await?;
        Ok(Self { types, specs: office.papers.all(DRAWER).await? })
    }

    fn spec_of(&self, volume: &Paper) -> Option<&Arc<Paper>> {
        let by = |all: &'_ [Arc<Paper>], id: &str| all.iter().position(|paper| text(paper, "id") == id);
        let kind = self.types.get(by(&self.types, text(volume, "volume_type_id"))?)?;
        self.specs.get(by(&self.specs, text(kind, "qos_specs_id"))?)
    }

    fn limits_of(&self, volume: &Paper) -> Limits {
        let spec = self.spec_of(volume).filter(|spec| is_for(spec, "back-end"));
        let specs = spec.map(|spec| map(spec, "specs")).unwrap_or_default();
        limits_of(|key| text(&specs, key).parse().ok())
    }
}

/// What whoever attaches a volume shall hold; null: nothing.
pub(crate) async fn for_clients(office: &Office, volume: &Paper) -> Result<Value, PaperError> {
    let known = Known::read(office).await?;
    let spec = known.spec_of(volume).filter(|spec| is_for(spec, "front-end"));
    Ok(spec.map_or(Value::Null, |spec| Value::Object(map(spec, "specs"))))
}

/// What this node shall hold a volume to.
pub(super) async fn limits_for(office: &Office, volume: &Paper) -> Result<Limits, PaperError> {
    Ok(Known::read(office).await?.limits_of(volume))
}

/// Limits this node's volumes as their types say, and those of several members that it writes down for all.
pub(super) async fn hold(office: &Office) -> Result<(), PaperError> {
    let (exports, known) = (&office.blocks.exports, Known::read(office).await?);
    for volume in office.papers.all(super::volumes::DRAWER).await? {
        let (name, limits) = (super::work::device_name(text(&volume, "id")), known.limits_of(&volume));
        if exports.limits_here(&name).is_some_and(|now| now != limits)
            && let Err(error) = exports.limit(&name, limits).await
        {
            tracing::warn!(%error, name, "limit volume");
        }
    }
    Ok(())
}

async fn find(office: &Office, id: &str) -> Result<Arc<Paper>, Fault> {
    let found = office.papers.get(DRAWER, id).await?;
    found.ok_or_else(|| Fault::other(404, format!("No such qos_specs {id}.")))
}

fn shown(spec: &Paper) -> Value {
    json!({
        "id": text(spec, "id"), "name": text(spec, "name"), "consumer": text(spec, "consumer"),
        "specs": map(spec, "specs"),
    })
}

fn check_consumer(consumer: Option<&Value>) -> Result<(), Fault> {
    match consumer.map(|consumer| consumer.as_str().unwrap_or("")) {
        Some(consumer) if !CONSUMERS.contains(&consumer) => {
            Err(Fault::bad(format!("Valid consumer of QoS specs are: {}", CONSUMERS.join(", "))))
        }
        _ => Ok(()),
    }
}

async fn create(office: &Office, ask: &Ask) -> Reply {
    let wanted = ask.member("qos_specs")?;
    let name = needed_name(wanted)?;
    let rest: Map<String, Value> = wanted
        .iter()
        .filter(|(key, _)| key.as_str() != "name")
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let mut specs = text_map(&Value::Object(rest), true)?;
    let consumer = specs.remove("consumer");
    check_consumer(consumer.as_ref())?;
    if office.papers.all(DRAWER).await?.iter().any(|spec| text(spec, "name") == name) {
        return Err(Fault::conflict(format!("QoS Specs {name} already exists.")));
    }
    let made = paper(json!({
        "id": fresh_id(), "name": name, "consumer": consumer.unwrap_or_else(|| json!("back-end")), "specs": specs,
        "created_at": now(),
    }));
    let made = office.papers.add(DRAWER, text(&made, "id"), made.clone()).await?;
    Answer::ok(json!({ "qos_specs": shown(&made), "links": links(ask, "qos-specs", text(&made, "id")) }))
}

async fn edit(office: &Office, id: &str, edit: impl Fn(&mut Paper) + Send + Sync) -> Result<(), Fault> {
    let edit = |spec: &mut Paper| -> Result<(), Fault> {
        edit(spec);
        Ok(())
    };
    office.papers.change(DRAWER, id, edit).await?;
    office.kick.notify_one();
    Ok(())
}

async fn delete_keys(office: &Office, ask: &Ask, id: &str) -> Reply {
    let spec = find(office, id).await?;
    let keys = ask.body.get("keys").and_then(Value::as_array);
    let keys = keys.ok_or_else(|| Fault::bad("Missing required element 'keys'."))?;
    let keys: Vec<String> = keys.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let specs = map(&spec, "specs");
    if let Some(key) = keys.iter().find(|key| !specs.contains_key(*key)) {
        return Err(Fault::bad(format!("Qos specs {id} has no spec with key {key}.")));
    }
    edit(office, id, |spec| {
        let mut specs = map(spec, "specs");
        specs.retain(|key, _| !keys.contains(key));
        spec.insert("specs".to_owned(), Value::Object(specs));
    })
    .await?;
    Answer::bare(202)
}

/// The types that have a spec.
async fn using(office: &Office, id: &str) -> Result<Vec<Arc<Paper>>, Fault> {
    let mut kinds = types::all(office).await?;
    kinds.retain(|kind| text(kind, "qos_specs_id") == id);
    Ok(kinds)
}

async fn associate(office: &Office, ask: &Ask, id: &str) -> Reply {
    find(office, id).await?;
    let kind = types::named(office, ask.param("vol_type_id").unwrap_or("")).await?;
    let has = text(&kind, "qos_specs_id");
    if !has.is_empty() && has != id {
        return Err(Fault::bad("Type is already associated with another qos specs."));
    }
    set(office, text(&kind, "id"), &json!(id)).await?;
    Answer::bare(202)
}

async fn disassociate(office: &Office, kinds: &[Arc<Paper>]) -> Result<(), Fault> {
    for kind in kinds {
        set(office, text(kind, "id"), &Value::Null).await?;
    }
    Ok(())
}

async fn set(office: &Office, kind: &str, spec: &Value) -> Result<(), Fault> {
    types::change(office, kind, |kind| {
        kind.insert("qos_specs_id".to_owned(), spec.clone());
        Ok(())
    })
    .await?;
    office.kick.notify_one();
    Ok(())
}
