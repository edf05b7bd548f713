//! `/domains/{domain}/config`: options of a domain's own directory, kept and shown. Nothing acts by them: users are the cluster's own.
//!
//! Invariant: only options that Keystone has are taken.

use std::sync::Arc;

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::grants::done;
use super::resources::{find, sort_of};
use super::{Answer, Context, Refusal, Reply};
use crate::auth::Session;
use crate::auth::roll::paper;
use crate::papers::Paper;

const KIND: &str = "domain_config";
/// Options and what they are when nobody sets them, as JSON.
const IDENTITY: [(&str, &str); 2] = [("driver", "\"sql\""), ("list_limit", "null")];
const LDAP: [(&str, &str); 21] = [
    ("url", "\"ldap://localhost\""),
    ("user", "null"),
    ("suffix", "\"cn=example,cn=com\""),
    ("query_scope", "\"one\""),
    ("page_size", "0"),
    ("alias_dereferencing", "\"default\""),
    ("chase_referrals", "null"),
    ("user_tree_dn", "null"),
    ("user_filter", "null"),
    ("user_objectclass", "\"inetOrgPerson\""),
    ("user_id_attribute", "\"cn\""),
    ("user_name_attribute", "\"sn\""),
    ("user_mail_attribute", "\"mail\""),
    ("user_enabled_attribute", "\"enabled\""),
    ("group_tree_dn", "null"),
    ("group_objectclass", "\"groupOfNames\""),
    ("group_id_attribute", "\"cn\""),
    ("group_name_attribute", "\"ou\""),
    ("group_member_attribute", "\"member\""),
    ("use_tls", "false"),
    ("use_pool", "true"),
];

fn known(group: &str) -> Result<&'static [(&'static str, &'static str)], Refusal> {
    match group {
        "identity" => Ok(&IDENTITY),
        "ldap" => Ok(&LDAP),
        _ => Err(Refusal::Refused(format!("there is no group {group} of options"))),
    }
}

fn default_of(group: &str) -> Result<Value, Refusal> {
    let options = known(group)?
        .iter()
        .map(|(name, text)| ((*name).to_owned(), serde_json::from_str(text).unwrap_or(Value::Null)));
    Ok(Value::Object(options.collect()))
}

/// `/domains/config/…/default`.
pub(super) fn defaults(caller: &Session, rest: &[&str]) -> Reply {
    if !caller.may_look() {
        return Err(Refusal::Forbidden);
    }
    let config = match rest {
        [] => json!({ "identity": default_of("identity")?, "ldap": default_of("ldap")? }),
        [group] => json!({ *group: default_of(group)? }),
        [group, option] => {
            let all = default_of(group)?;
            let value =
                all.get(*option).ok_or_else(|| Refusal::Refused(format!("there is no option {option}")))?;
            json!({ *option: value })
        }
        _ => return Err(Refusal::NotFound("/v3/domains/config".to_owned())),
    };
    Ok(Answer::ok(json!({ "config": config })))
}

/// `/domains/{domain}/config/…`.
pub(super) async fn answer(
    context: &Context<'_>,
    caller: &Arc<Session>,
    method: &Method,
    domain: &str,
    rest: &[&str],
    body: &[u8],
) -> Reply {
    let looks = *method == Method::GET || *method == Method::HEAD;
    if !(caller.is_admin() || (looks && caller.may_look())) {
        return Err(Refusal::Forbidden);
    }
    find(context, sort_of("domain"), domain)?;
    let kept = context.roll().get(KIND, domain);
    let kept: Map<String, Value> =
        kept.and_then(|kept| kept.get("config")).and_then(Value::as_object).cloned().unwrap_or_default();
    let missing = || Refusal::NotFound(format!("configuration of domain {domain}"));
    match (method.as_str(), rest) {
        ("GET", []) if !kept.is_empty() => Ok(Answer::ok(json!({ "config": kept }))),
        ("GET", [group]) => {
            let options = kept.get(*group).ok_or_else(missing)?;
            Ok(Answer::ok(json!({ "config": { *group: options } })))
        }
        ("GET", [group, option]) => {
            let value = kept.get(*group).and_then(|group| group.get(*option)).ok_or_else(missing)?;
            Ok(Answer::ok(json!({ "config": { *option: value } })))
        }
        ("PUT", []) => {
            let given = checked(body, rest)?;
            let status = if kept.is_empty() { StatusCode::CREATED } else { StatusCode::OK };
            keep(context, domain, &given).await?;
            Ok(Answer { status, body: json!({ "config": given }), subject: None })
        }
        ("PATCH", _) => {
            if kept.is_empty() {
                return Err(missing());
            }
            let mut all = kept;
            for (group, options) in checked(body, rest)? {
                let into = all.entry(group).or_insert_with(|| json!({}));
                if let (Some(into), Some(options)) = (into.as_object_mut(), options.as_object()) {
                    into.extend(options.clone());
                }
            }
            keep(context, domain, &all).await?;
            Ok(Answer::ok(json!({ "config": all })))
        }
        ("DELETE", []) => {
            if !context.auth.drop_paper(KIND, domain).await? {
                return Err(missing());
            }
            done()
        }
        ("DELETE", [group, option @ ..]) => {
            let mut all = kept;
            let gone = match option {
                [] => all.remove(*group),
                [option, ..] => {
                    all.get_mut(*group).and_then(Value::as_object_mut).and_then(|group| group.remove(*option))
                }
            };
            gone.ok_or_else(missing)?;
            keep(context, domain, &all).await?;
            done()
        }
        _ => Err(missing()),
    }
}

/// What a body says, as groups of options; an option alone is put in its group.
fn checked(body: &[u8], rest: &[&str]) -> Result<Map<String, Value>, Refusal> {
    let value: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let given = value["config"].as_object().cloned().ok_or(Refusal::BadRequest("the body has no config"))?;
    let given = match rest {
        [group, _] => Map::from_iter([((*group).to_owned(), Value::Object(given))]),
        _ => given,
    };
    for (group, options) in &given {
        let (names, options) =
            (known(group)?, options.as_object().ok_or(Refusal::BadRequest("a group has options"))?);
        if let Some(other) = options.keys().find(|name| !names.iter().any(|(known, _)| known == name)) {
            return Err(Refusal::Refused(format!("there is no option {other} in {group}")));
        }
    }
    Ok(given)
}

async fn keep(context: &Context<'_>, domain: &str, config: &Map<String, Value>) -> Result<(), Refusal> {
    let set = |paper: &mut Paper| drop(paper.insert("config".to_owned(), Value::Object(config.clone())));
    if context.auth.edit(KIND, domain, set).await?.is_none() {
        context.auth.add(KIND, domain, paper(json!({ "config": config }))).await?;
    }
    Ok(())
}
