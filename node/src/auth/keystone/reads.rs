//! Reads of who exists: users, projects, roles, services, endpoints, regions and the one domain.
//!
//! Invariant: an admin sees all; others see themselves, their projects and the domain.

use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::{Answer, Context, DOMAIN_ID, DOMAIN_NAME, Refusal, Reply, catalog};
use crate::auth::Session;
use crate::auth::directory::role_id;

/// What can be listed and shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Users,
    Projects,
    Domains,
    Roles,
    Services,
    Endpoints,
    Regions,
}

/// Every kind with its name in paths and lists, and its name when it is one.
const KINDS: [(Kind, &str, &str); 7] = [
    (Kind::Users, "users", "user"),
    (Kind::Projects, "projects", "project"),
    (Kind::Domains, "domains", "domain"),
    (Kind::Roles, "roles", "role"),
    (Kind::Services, "services", "service"),
    (Kind::Endpoints, "endpoints", "endpoint"),
    (Kind::Regions, "regions", "region"),
];

/// Query parameters that filter a list by the member of the same name; others are ignored, as Keystone does.
const FILTERS: [&str; 8] =
    ["id", "name", "domain_id", "type", "service_id", "interface", "region_id", "enabled"];

impl Kind {
    /// The kind with this name in paths.
    pub(super) fn named(name: &str) -> Option<Self> {
        KINDS.iter().find(|(_, many, _)| *many == name).map(|(kind, _, _)| *kind)
    }

    fn names(self) -> (&'static str, &'static str) {
        KINDS.iter().find(|(kind, _, _)| *kind == self).map_or(("", ""), |(_, many, one)| (many, one))
    }
}

/// GET of a list.
pub(super) fn list(context: &Context<'_>, caller: &Session, kind: Kind) -> Reply {
    let may = caller.is_admin() || matches!(kind, Kind::Domains | Kind::Regions);
    if !may {
        return Err(Refusal::Forbidden);
    }
    let (many, _) = kind.names();
    let found: Vec<_> = all(context, kind).into_iter().filter(|value| passes(context.query, value)).collect();
    Ok(Answer::ok(json!({ many: found, "links": links(context, many) })))
}

/// GET of one.
pub(super) fn show(context: &Context<'_>, caller: &Session, kind: Kind, id: &str) -> Reply {
    let (many, one) = kind.names();
    let own = match kind {
        Kind::Users => caller.claims.user == id,
        Kind::Projects => {
            let user = context.directory.user(&caller.claims.user);
            user.is_some_and(|user| user.roles.contains_key(id))
        }
        Kind::Domains | Kind::Regions => true,
        Kind::Roles | Kind::Services | Kind::Endpoints => false,
    };
    if !own && !caller.is_admin() {
        return Err(Refusal::Forbidden);
    }
    let found = all(context, kind).into_iter().find(|value| value["id"] == id);
    let found = found.ok_or_else(|| Refusal::NotFound(format!("{one} {id} among {many}")))?;
    Ok(Answer::ok(json!({ one: found })))
}

/// The projects in which a user has roles.
pub(super) fn projects_of(context: &Context<'_>, caller: &Session, user: &str) -> Reply {
    if caller.claims.user != user && !caller.is_admin() {
        return Err(Refusal::Forbidden);
    }
    let user = context.directory.user(user).ok_or_else(|| Refusal::NotFound(format!("user {user}")))?;
    let mut found = all(context, Kind::Projects);
    found.retain(|project| project["id"].as_str().is_some_and(|id| user.roles.contains_key(id)));
    found.retain(|project| passes(context.query, project));
    Ok(Answer::ok(json!({ "projects": found, "links": links(context, "auth/projects") })))
}

/// The `links` member of a list.
pub(super) fn links(context: &Context<'_>, path: &str) -> Value {
    json!({ "self": format!("{}/v3/{path}", context.base), "previous": null, "next": null })
}

fn all(context: &Context<'_>, kind: Kind) -> Vec<Value> {
    let directory = &context.directory;
    let (many, _) = kind.names();
    let with_link = |id: &str, mut value: Value| {
        value["id"] = json!(id);
        value["links"] = json!({ "self": format!("{}/v3/{many}/{id}", context.base) });
        value
    };
    match kind {
        Kind::Users => {
            let user = |user: &crate::auth::directory::User| {
                let value = json!({
                    "name": user.name, "domain_id": DOMAIN_ID, "enabled": true, "options": {},
                    "default_project_id": user.default_project, "password_expires_at": null,
                });
                with_link(&user.id, value)
            };
            directory.users().iter().map(user).collect()
        }
        Kind::Projects => {
            let project = |project: &crate::auth::directory::Project| {
                let value = json!({
                    "name": project.name, "domain_id": DOMAIN_ID, "parent_id": DOMAIN_ID, "enabled": true,
                    "is_domain": false, "description": "", "tags": [], "options": {},
                });
                with_link(&project.id, value)
            };
            directory.projects().iter().map(project).collect()
        }
        Kind::Domains => {
            let value =
                json!({ "name": DOMAIN_NAME, "enabled": true, "description": "", "tags": [], "options": {} });
            vec![with_link(DOMAIN_ID, value)]
        }
        Kind::Roles => {
            let role = |name: &str| {
                with_link(&role_id(name), json!({ "name": name, "domain_id": null, "options": {} }))
            };
            directory.roles().into_iter().map(role).collect()
        }
        Kind::Services => catalog::all_services(context),
        Kind::Endpoints => catalog::all_endpoints(context),
        Kind::Regions => {
            let value = json!({ "description": "", "parent_region_id": null });
            vec![with_link(&context.auth.region, value)]
        }
    }
}

/// Whether a value passes the filters of a query.
fn passes(query: &str, value: &Value) -> bool {
    query.split('&').filter_map(|pair| pair.split_once('=')).all(|(name, wanted)| {
        let wanted = wanted.replace('+', " ");
        let wanted = percent_decode_str(&wanted).decode_utf8_lossy();
        match FILTERS.contains(&name).then(|| value.get(name)).flatten() {
            None => true,
            Some(Value::String(found)) => *found == wanted,
            Some(found) => found.to_string().eq_ignore_ascii_case(&wanted),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_compare_members_of_the_same_name() {
        let value = json!({ "name": "a b", "enabled": true, "links": "x" });
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
