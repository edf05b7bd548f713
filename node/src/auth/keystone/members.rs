//! Who is in a group, in which projects and groups a user is, and the tags of projects.
//!
//! Invariant: a group's members stand in its own paper.

use std::sync::Arc;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::grants::done;
use super::resources::{find, links, passes, shown, sort_of};
use super::{Answer, Context, Refusal, Reply};
use crate::auth::Session;
use crate::auth::roll::{flag, texts};
use crate::papers::Paper;

/// The projects in which a user has roles.
pub(super) fn projects_of(context: &Context<'_>, caller: &Session, user: &str) -> Reply {
    if caller.claims.user != user && !caller.may_look() {
        return Err(Refusal::Forbidden);
    }
    find(context, sort_of("user"), user)?;
    let roll = context.roll();
    let own = roll.projects_of(user).into_iter().filter_map(|id| roll.get("project", id));
    let own = own.filter(|project| !flag(project, "is_domain", false));
    let own: Vec<Value> = own.map(|project| shown(context, sort_of("project"), project)).collect();
    let own: Vec<Value> = own.into_iter().filter(|project| passes(context.query, project)).collect();
    Ok(Answer::ok(json!({ "projects": own, "links": links(context, &format!("users/{user}/projects")) })))
}

/// The domains in which a user has roles.
pub(super) fn domains_of(context: &Context<'_>, user: &str) -> Reply {
    let roll = context.roll();
    let own = roll.domains_of(user).into_iter().filter_map(|id| roll.get("domain", id));
    let own: Vec<Value> = own.map(|domain| shown(context, sort_of("domain"), domain)).collect();
    Ok(Answer::ok(json!({ "domains": own, "links": links(context, "auth/domains") })))
}

/// The groups of a user.
pub(super) fn groups_of(context: &Context<'_>, caller: &Session, user: &str) -> Reply {
    if caller.claims.user != user && !caller.may_look() {
        return Err(Refusal::Forbidden);
    }
    find(context, sort_of("user"), user)?;
    let roll = context.roll();
    let own = roll.groups_of(user).into_iter().filter_map(|id| roll.get("group", id));
    let own: Vec<Value> = own.map(|group| shown(context, sort_of("group"), group)).collect();
    Ok(Answer::ok(json!({ "groups": own, "links": links(context, &format!("users/{user}/groups")) })))
}

/// `/groups/{group}/users/…`.
pub(super) async fn of_group(
    context: &Context<'_>,
    caller: &Session,
    method: &Method,
    group: &str,
    rest: &[&str],
) -> Reply {
    let looks = *method == Method::GET || *method == Method::HEAD;
    if !(caller.is_admin() || (looks && caller.may_look())) {
        return Err(Refusal::Forbidden);
    }
    let found = find(context, sort_of("group"), group)?;
    let members = texts(&found, "members");
    let [user] = rest else {
        let roll = context.roll();
        let all = members.iter().filter_map(|member| roll.get("user", member));
        let all: Vec<Value> = all.map(|user| shown(context, sort_of("user"), user)).collect();
        return Ok(Answer::ok(
            json!({ "users": all, "links": links(context, &format!("groups/{group}/users")) }),
        ));
    };
    find(context, sort_of("user"), user)?;
    let is_in = members.contains(user);
    match *method {
        Method::PUT => {
            change(context, group, |members| {
                if !members.iter().any(|member| member == user) {
                    members.push((*user).to_owned());
                }
            })
            .await?;
            done()
        }
        Method::GET | Method::HEAD if is_in => done(),
        Method::DELETE if is_in => {
            change(context, group, |members| members.retain(|member| member != user)).await?;
            done()
        }
        _ => Err(Refusal::NotFound(format!("user {user} in group {group}"))),
    }
}

async fn change(
    context: &Context<'_>,
    group: &str,
    edit: impl Fn(&mut Vec<String>) + Send + Sync,
) -> Result<(), Refusal> {
    let edit = |paper: &mut Paper| {
        let mut members: Vec<String> = texts(paper, "members").into_iter().map(str::to_owned).collect();
        edit(&mut members);
        paper.insert("members".to_owned(), json!(members));
    };
    context.auth.edit("group", group, edit).await?;
    Ok(())
}

/// `/projects/{project}/tags/…`.
pub(super) async fn tags(
    context: &Context<'_>,
    caller: &Arc<Session>,
    method: &Method,
    project: &str,
    rest: &[&str],
    body: &[u8],
) -> Reply {
    let own = caller.claims.project.as_deref() == Some(project);
    let looks = *method == Method::GET || *method == Method::HEAD;
    if !(caller.is_admin() || (looks && (own || caller.may_look()))) {
        return Err(Refusal::Forbidden);
    }
    let found = find(context, sort_of("project"), project)?;
    let tags: Vec<String> = texts(&found, "tags").into_iter().map(str::to_owned).collect();
    let keep = async |tags: Vec<String>| -> Result<(), Refusal> {
        if tags.len() > 80
            || tags.iter().any(|tag| tag.is_empty() || tag.chars().count() > 255 || tag.contains(['/', ',']))
        {
            return Err(Refusal::BadRequest(
                "a project has up to 80 tags of up to 255 characters without / and ,",
            ));
        }
        context
            .auth
            .edit("project", project, |paper| drop(paper.insert("tags".to_owned(), json!(tags))))
            .await?;
        Ok(())
    };
    match (method.as_str(), rest) {
        ("GET", []) => Ok(Answer::ok(
            json!({ "tags": tags, "links": links(context, &format!("projects/{project}/tags")) }),
        )),
        ("PUT", []) => {
            let given: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
            let given = given["tags"].as_array().ok_or(Refusal::BadRequest("the body has no tags"))?;
            let mut given: Vec<String> = given.iter().filter_map(Value::as_str).map(str::to_owned).collect();
            given.sort();
            given.dedup();
            keep(given.clone()).await?;
            Ok(Answer::ok(
                json!({ "tags": given, "links": links(context, &format!("projects/{project}/tags")) }),
            ))
        }
        ("DELETE", []) => {
            keep(Vec::new()).await?;
            done()
        }
        ("PUT", [tag]) => {
            let mut all = tags;
            if !all.iter().any(|known| known == tag) {
                all.push((*tag).to_owned());
            }
            keep(all).await?;
            Ok(Answer { status: StatusCode::CREATED, body: Value::Null, subject: None })
        }
        ("GET" | "HEAD", [tag]) if tags.iter().any(|known| known == tag) => done(),
        ("DELETE", [tag]) if tags.iter().any(|known| known == tag) => {
            keep(tags.into_iter().filter(|known| known != tag).collect()).await?;
            done()
        }
        _ => Err(Refusal::NotFound(format!("tag of project {project}"))),
    }
}
