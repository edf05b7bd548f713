//! Metadata of volumes and snapshots: all keys, and one.
//!
//! Invariant: changing one key leaves the others as they are, also when two requests change different ones.

use serde_json::{Map, Value, json};

use super::Office;
use super::ask::{Answer, Ask, Reply};
use super::fault::Fault;
use super::fields::{map, text, text_map};
use crate::papers::Paper;

/// Answers what is under `…/metadata` of a paper that the caller may see.
pub(crate) async fn answer(
    office: &Office,
    ask: &Ask,
    drawer: &'static str,
    of: &Paper,
    rest: &[&str],
) -> Reply {
    let metadata = map(of, "metadata");
    let missing = || Fault::other(404, "Metadata item was not found");
    let id = text(of, "id");
    if ask.method != http::Method::GET {
        ask.writer("volume:update_volume_metadata")?;
    }
    match (ask.method.as_str(), rest) {
        ("GET", []) => Answer::ok(json!({ "metadata": metadata })),
        ("POST" | "PUT", []) => {
            let given =
                ask.body.get("metadata").ok_or_else(|| Fault::bad("Missing required element 'metadata'."))?;
            let given = text_map(given, false)?;
            let all = ask.method == http::Method::PUT;
            let kept = edit(office, drawer, id, |metadata| {
                if all {
                    metadata.clear();
                }
                metadata.extend(given.clone());
            });
            Answer::ok(json!({ "metadata": kept.await? }))
        }
        ("GET", [key]) => {
            let value = metadata.get(*key).ok_or_else(missing)?;
            Answer::ok(json!({ "meta": { *key: value } }))
        }
        ("PUT", [key]) => {
            let given = ask.body.get("meta").ok_or_else(|| Fault::bad("Missing required element 'meta'."))?;
            let given = text_map(given, false)?;
            if given.len() != 1 || !given.contains_key(*key) {
                return Err(Fault::bad("Request body and URI mismatch"));
            }
            edit(office, drawer, id, |metadata| metadata.extend(given.clone())).await?;
            Answer::ok(json!({ "meta": given }))
        }
        ("DELETE", [key]) => {
            if !metadata.contains_key(*key) {
                return Err(missing());
            }
            edit(office, drawer, id, |metadata| drop(metadata.remove(*key))).await?;
            Answer::bare(200)
        }
        _ => Err(Fault::nowhere()),
    }
}

async fn edit(
    office: &Office,
    drawer: &'static str,
    id: &str,
    edit: impl Fn(&mut Map<String, Value>) + Send + Sync,
) -> Result<Map<String, Value>, Fault> {
    let change = |paper: &mut Paper| -> Result<(), Fault> {
        let mut metadata = map(paper, "metadata");
        edit(&mut metadata);
        text_map(&Value::Object(metadata.clone()), false)?;
        paper.insert("metadata".to_owned(), Value::Object(metadata));
        Ok(())
    };
    let changed = office.papers.change(drawer, id, change).await?;
    changed.map(|paper| map(&paper, "metadata")).ok_or_else(Fault::nowhere)
}
