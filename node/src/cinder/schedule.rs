//! Which node a new volume goes to: those that have what its type wants and room, the roomiest of them.
//!
//! Invariant: a type that no node fits does not stop a request: the volume ends in `error`, with a message that says why.

use serde_json::{Value, json};

use super::Office;
use super::fault::Fault;
use super::fields::{map, text};
use super::services::{Pool, pools};
use super::several;
use crate::papers::Paper;

/// Extra specs in scopes of others say nothing to the scheduler.
const OWN_SCOPE: &str = "capabilities";

/// Whether volumes of a type may be attached by several.
pub(crate) fn is_multiattach(kind: &Paper) -> bool {
    meets(&json!(true), text(&map(kind, "extra_specs"), "multiattach"))
}

/// The host that a new volume goes to; empty when none fits. One that is to have several members is made there, and is where they are.
pub(crate) async fn choose(office: &Office, volume: &Paper, kind: &Paper) -> Result<String, Fault> {
    let near = near(office, volume).await?;
    let mut fitting = pools(office).await?;
    let there = fitting.iter().filter(|pool| pool.up).count();
    if there < several::wanted_by(kind) {
        return Ok(String::new());
    }
    // A copy is made where its source is; one with several members is read at any node.
    fitting.retain(|pool| near.as_ref().is_none_or(|near| *near == pool.name));
    Ok(best_of(fitting, kind).unwrap_or_default())
}

/// The host that a volume goes to when it gets this type.
pub(crate) async fn roomiest(office: &Office, kind: &Paper) -> Result<Option<String>, Fault> {
    Ok(best_of(pools(office).await?, kind))
}

/// The same of one that is to leave its host.
pub(crate) async fn elsewhere(office: &Office, kind: &Paper, host: &str) -> Result<Option<String>, Fault> {
    let mut pools = pools(office).await?;
    pools.retain(|pool| pool.name != host);
    Ok(best_of(pools, kind))
}

fn best_of(mut pools: Vec<Pool>, kind: &Paper) -> Option<String> {
    // Thin: what counts is that there is room at all.
    pools.retain(|pool| !pool.disabled && pool.up && pool.roomy && pool_fits(pool, kind));
    let roomiest = pools.into_iter().max_by(|a, b| (a.free_gb, &b.name).cmp(&(b.free_gb, &a.name)));
    roomiest.map(|pool| pool.name)
}

async fn near(office: &Office, volume: &Paper) -> Result<Option<String>, Fault> {
    let of = |drawer, key| {
        let id = text(volume, key).to_owned();
        async move { office.papers.get(drawer, &id).await }
    };
    let source = match of("snapshots", "snapshot_id").await? {
        Some(snapshot) => Some(snapshot),
        None => of("volumes", "source_volid").await?,
    };
    let source = source.filter(|source| several::members(source) < 2);
    Ok(source.map(|source| text(&source, "host").to_owned()).filter(|host| !host.is_empty()))
}

/// Whether volumes of a type may be where `host` says.
pub(crate) async fn fits(office: &Office, kind: &Paper, host: &str) -> Result<bool, Fault> {
    let pools = pools(office).await?;
    Ok(pools.iter().any(|pool| pool.name == host && pool_fits(pool, kind)))
}

fn pool_fits(pool: &Pool, kind: &Paper) -> bool {
    let capabilities = pool.capabilities();
    map(kind, "extra_specs").iter().all(|(key, wanted)| {
        let key = match key.split_once(':') {
            Some((OWN_SCOPE, key)) => key,
            Some(_) => return true,
            None => key,
        };
        let wanted = wanted.as_str().unwrap_or("");
        capabilities.get(key).is_some_and(|found| meets(found, wanted))
    })
}

/// Whether a capability is what a spec wants: `<is> True`, `<in> text`, `<or> a <or> b`, `s== text`, `>= 5`, or the text itself.
fn meets(found: &Value, wanted: &str) -> bool {
    let said = match found {
        Value::String(text) => text.clone(),
        Value::Bool(flag) => if *flag { "True" } else { "False" }.to_owned(),
        other => other.to_string(),
    };
    let (operator, rest) = wanted.split_once(' ').unwrap_or(("", wanted));
    let numbers = || Some((said.parse::<f64>().ok()?, rest.trim().parse::<f64>().ok()?));
    let compare = |test: fn(f64, f64) -> bool| numbers().is_some_and(|(a, b)| test(a, b));
    match operator {
        "<is>" => said.eq_ignore_ascii_case(rest.trim()),
        "<in>" => said.contains(rest.trim()),
        "<or>" => rest.split("<or>").any(|one| one.trim() == said),
        "<all>" => rest.split("<all>").all(|one| said.contains(one.trim())),
        "s==" => said == rest,
        "s!=" => said != rest,
        "s<" => said.as_str() < rest,
        "s<=" => said.as_str() <= rest,
        "s>" => said.as_str() > rest,
        "s>=" => said.as_str() >= rest,
        "=" | ">=" => compare(|a, b| a >= b),
        "<=" => compare(|a, b| a <= b),
        "==" => compare(|a, b| a.total_cmp(&b).is_eq()),
        "!=" => compare(|a, b| a.total_cmp(&b).is_ne()),
        _ => said.eq_ignore_ascii_case(wanted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_compare_as_cinder_has_them() {
        for (found, wanted, fits) in [
            (json!("nbd"), "nbd", true),
            (json!("nbd"), "iSCSI", false),
            (json!(true), "<is> True", true),
            (json!(false), "<is> True", false),
            (json!("quarry"), "<or> a <or> quarry", true),
            (json!("quarry"), "<in> uar", true),
            (json!(10), ">= 5", true),
            (json!(10), "<= 5", false),
            (json!(10), "== 10", true),
            (json!("b"), "s> a", true),
            (json!("x"), ">= 5", false),
        ] {
            assert_eq!(meets(&found, wanted), fits, "{found} {wanted}");
        }
    }
}
