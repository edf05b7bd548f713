//! Extra specs and encryption of volume types.
//!
//! Invariant: a spec is changed by a request that names it, and no other with it.

use serde_json::{Value, json};

use super::ask::{Answer, Ask, Reply};
use super::fault::Fault;
use super::fields::{fresh_id, given_number, map, now, text, text_map, value};
use super::types::change;
use super::{Office, several};
use crate::papers::Paper;

/// Answers what is under `/types/{id}/extra_specs`.
pub(crate) async fn extra(office: &Office, ask: &Ask, kind: &Paper, rest: &[&str]) -> Reply {
    let (id, specs) = (text(kind, "id"), map(kind, "extra_specs"));
    let missing = |key: &str| Fault::missing(format!("Volume Type {id} extra spec with key {key}"));
    if ask.method != http::Method::GET {
        ask.admin("volume_extension:types_extra_specs")?;
    } else if !ask.caller.admin && !rest.is_empty() {
        return Err(Fault::forbidden("volume_extension:types_extra_specs:show"));
    }
    match (ask.method.as_str(), rest) {
        ("GET", []) => {
            let specs = if ask.caller.admin { specs } else { serde_json::Map::new() };
            Answer::ok(json!({ "extra_specs": specs }))
        }
        ("POST", []) => {
            let given = ask.body.get("extra_specs").unwrap_or(&Value::Null);
            let given = text_map(given, true)?;
            several::judge(&given)?;
            if given.keys().any(|key| !is_key(key)) {
                return Err(Fault::bad(
                    "Key names contain only letters, digits, '_', '-', '.', ':' and spaces.",
                ));
            }
            change(office, id, |kind| {
                let mut specs = map(kind, "extra_specs");
                specs.extend(given.clone());
                kind.insert("extra_specs".to_owned(), Value::Object(specs));
                Ok(())
            })
            .await?;
            Answer::ok(json!({ "extra_specs": given }))
        }
        ("GET", [key]) => {
            let spec = specs.get(*key).ok_or_else(|| missing(key))?;
            Answer::ok(json!({ *key: spec }))
        }
        ("PUT", [key]) => {
            let given = text_map(&ask.body, true)?;
            several::judge(&given)?;
            if given.len() != 1 || !given.contains_key(*key) {
                return Err(Fault::bad("Request body and URI mismatch"));
            }
            change(office, id, |kind| {
                let mut specs = map(kind, "extra_specs");
                specs.extend(given.clone());
                kind.insert("extra_specs".to_owned(), Value::Object(specs));
                Ok(())
            })
            .await?;
            Answer::ok(Value::Object(given))
        }
        ("DELETE", [key]) => {
            change(office, id, |kind| {
                let mut specs = map(kind, "extra_specs");
                specs.remove(*key).ok_or_else(|| missing(key))?;
                kind.insert("extra_specs".to_owned(), Value::Object(specs));
                Ok(())
            })
            .await?;
            Answer::bare(202)
        }
        _ => Err(Fault::nowhere()),
    }
}

fn is_key(key: &str) -> bool {
    key.chars().all(|c| c.is_alphanumeric() || " _-.:".contains(c))
}

/// The one cipher.
const CIPHER: &str = "aes-xts-plain64";
/// Bits that may be asked for. Volumes have keys of 512 bits whatever is: no type gets less than it asks for.
const KEY_BITS: [i64; 5] = [128, 192, 256, 384, 512];

/// Answers what is under `/types/{id}/encryption`, for an admin. Volumes that are made of the type are encrypted at rest, by the node
/// that has them, whatever provider and location are named.
pub(crate) async fn encryption(office: &Office, ask: &Ask, kind: &Paper, rest: &[&str]) -> Reply {
    let id = text(kind, "id");
    let known = map(kind, "encryption");
    let missing = || Fault::missing(format!("Volume type encryption for type {id}"));
    if ask.method != http::Method::GET && is_used(office, id).await? {
        return Err(Fault::bad("Cannot change encryption specs. Volume type in use."));
    }
    match (ask.method.as_str(), rest) {
        ("GET", []) => Answer::ok(Value::Object(known)),
        ("GET", [key]) => match known.get(*key) {
            Some(value) => Answer::ok(json!({ *key: value })),
            None => Err(missing()),
        },
        ("POST", []) => {
            if !known.is_empty() {
                return Err(Fault::bad(format!("Volume type encryption for type {id} already exists.")));
            }
            let mut made = said(ask)?;
            if text(&made, "provider").is_empty() || text(&made, "control_location").is_empty() {
                return Err(Fault::bad("provider and control_location are needed."));
            }
            for (key, fact) in [("volume_type_id", json!(id)), ("encryption_id", json!(fresh_id()))] {
                made.insert(key.to_owned(), fact);
            }
            for key in ["key_size", "cipher"] {
                made.entry(key).or_insert(Value::Null);
            }
            let mut kept = made.clone();
            kept.insert("created_at".to_owned(), json!(now()));
            kept.insert("updated_at".to_owned(), Value::Null);
            kept.insert("deleted".to_owned(), json!(false));
            kept.insert("deleted_at".to_owned(), Value::Null);
            keep(office, id, &Value::Object(kept)).await?;
            Answer::ok(json!({ "encryption": made }))
        }
        ("PUT", [which]) => {
            if value(&known, "encryption_id") != *which {
                return Err(missing());
            }
            let given = said(ask)?;
            let mut kept = known;
            kept.extend(given.clone());
            kept.insert("updated_at".to_owned(), json!(now()));
            keep(office, id, &Value::Object(kept)).await?;
            Answer::ok(json!({ "encryption": given }))
        }
        ("DELETE", [which]) => {
            if value(&known, "encryption_id") != *which && *which != "provider" {
                return Err(missing());
            }
            keep(office, id, &Value::Null).await?;
            Answer::bare(202)
        }
        _ => Err(Fault::nowhere()),
    }
}

/// Whether there are volumes of a type: what they were made with does not change.
async fn is_used(office: &Office, id: &str) -> Result<bool, Fault> {
    let volumes = office.papers.all(super::volumes::DRAWER).await?;
    Ok(volumes.iter().any(|volume| text(volume, "volume_type_id") == id))
}

fn said(ask: &Ask) -> Result<Paper, Fault> {
    let mut said = Paper::new();
    for (key, given) in ask.member("encryption")? {
        let kept = match key.as_str() {
            "provider" if given.is_string() => given.clone(),
            "cipher" if given == CIPHER => given.clone(),
            "cipher" if given.is_string() => {
                return Err(Fault::bad(format!(
                    "Invalid input for field/attribute cipher: volumes are encrypted with {CIPHER} alone."
                )));
            }
            "cipher" | "key_size" if given.is_null() => Value::Null,
            "key_size" => {
                let bits = given_number(given, key)?;
                if !KEY_BITS.contains(&bits) {
                    return Err(Fault::bad("Invalid input for field/attribute key_size: 256 or 512."));
                }
                json!(bits)
            }
            "control_location" if given == "front-end" || given == "back-end" => given.clone(),
            _ => return Err(Fault::bad(format!("Invalid input for field/attribute {key}."))),
        };
        said.insert(key.clone(), kept);
    }
    Ok(said)
}

async fn keep(office: &Office, id: &str, encryption: &Value) -> Result<(), Fault> {
    change(office, id, |kind| {
        kind.insert("encryption".to_owned(), encryption.clone());
        Ok(())
    })
    .await
    .map(drop)
}
