//! The roll: everything that the identity API knows, as papers: domains, projects, users, groups, roles, who has which of them where,
//! services, endpoints, trusts, application credentials.
//!
//! What the configuration or the cluster lists is written into it first, and then what the API was told, which comes before it.
//! Invariant: never changes; what the API changes makes another roll.
//! Invariant: no answer shows a paper as it is kept: secrets are in it.

mod grants;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::hidden::Hidden;
use crate::papers::Paper;

pub(crate) use grants::{Target, grant_id};

/// The domain that everybody is in who is listed.
pub(crate) const DOMAIN: &str = "default";
const DOMAIN_NAME: &str = "Default";
/// Roles that are there always, each but the last with the one that it implies.
const ROLES: [(&str, Option<&str>); 5] = [
    ("admin", Some("manager")),
    ("manager", Some("member")),
    ("member", Some("reader")),
    ("reader", None),
    ("service", None),
];

/// Papers by kind and id.
#[derive(Debug, Clone, Default)]
pub(crate) struct Roll {
    /// EC2 keys are among them.
    kinds: Hidden<BTreeMap<String, BTreeMap<String, Arc<Paper>>>>,
}

/// A text of a paper; empty when it is none.
pub(crate) fn text<'a>(paper: &'a Paper, name: &str) -> &'a str {
    paper.get(name).and_then(Value::as_str).unwrap_or("")
}

/// A flag of a paper.
pub(crate) fn flag(paper: &Paper, name: &str, otherwise: bool) -> bool {
    paper.get(name).and_then(Value::as_bool).unwrap_or(otherwise)
}

/// The texts of a list.
pub(crate) fn texts<'a>(paper: &'a Paper, name: &str) -> Vec<&'a str> {
    paper.get(name).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

/// A paper of an object that a `json!` made.
pub(crate) fn paper(value: Value) -> Paper {
    if let Value::Object(map) = value { map } else { Map::new() }
}

impl Roll {
    /// What is there before anybody is listed.
    pub(crate) fn new(region: &str) -> Self {
        let mut roll = Self::default();
        roll.put(
            "domain",
            DOMAIN,
            json!({ "name": DOMAIN_NAME, "description": "", "enabled": true, "tags": [], "listed": true }),
        );
        roll.put("region", region, json!({ "description": "", "parent_region_id": null, "listed": true }));
        for (name, implied) in ROLES {
            roll.role(name);
            if let Some(implied) = implied {
                let (prior, implied) = (super::directory::role_id(name), super::directory::role_id(implied));
                roll.put(
                    "implied",
                    &format!("{prior} {implied}"),
                    json!({ "prior": prior, "implied": implied, "listed": true }),
                );
            }
        }
        roll
    }

    fn put(&mut self, kind: &str, id: &str, value: Value) {
        let mut paper = paper(value);
        paper.insert("id".to_owned(), json!(id));
        self.take(kind, id, Arc::new(paper));
    }

    fn take(&mut self, kind: &str, id: &str, paper: Arc<Paper>) {
        self.kinds.entry(kind.to_owned()).or_default().insert(id.to_owned(), paper);
    }

    /// The id of a role that is listed by name.
    fn role(&mut self, name: &str) -> String {
        let id = super::directory::role_id(name);
        if self.get("role", &id).is_none() {
            let value = json!({ "name": name, "domain_id": null, "description": null, "options": {}, "listed": true });
            self.put("role", &id, value);
        }
        id
    }

    /// Lists a project.
    pub(crate) fn list_project(&mut self, id: &str, name: &str) {
        let value = json!({
            "name": name, "domain_id": DOMAIN, "parent_id": DOMAIN, "enabled": true, "is_domain": false,
            "description": "", "tags": [], "options": {}, "listed": true,
        });
        self.put("project", id, value);
    }

    /// Lists a user with its roles: names by project.
    pub(crate) fn list_user<'a>(
        &mut self,
        id: &str,
        name: &str,
        default_project: Option<&str>,
        roles: impl Iterator<Item = (&'a String, &'a Vec<String>)>,
    ) {
        let value = json!({
            "name": name, "domain_id": DOMAIN, "enabled": true, "default_project_id": default_project, "options": {},
            "listed": true,
        });
        self.put("user", id, value);
        for (project, names) in roles {
            for name in names {
                let role = self.role(name);
                let grant = grants::grant("user", id, Target::Project(project), &role, false);
                self.put("grant", &grant_id("user", id, Target::Project(project), &role, false), grant);
            }
        }
    }

    /// Takes in what the API was told.
    pub(crate) fn tell(&mut self, papers: &[Arc<Paper>]) {
        for paper in papers {
            self.take(text(paper, "kind"), text(paper, "id"), Arc::clone(paper));
        }
    }

    /// All of a kind, by id.
    pub(crate) fn all(&self, kind: &str) -> impl Iterator<Item = &Arc<Paper>> {
        self.kinds.get(kind).into_iter().flat_map(BTreeMap::values)
    }

    /// One of a kind.
    pub(crate) fn get(&self, kind: &str, id: &str) -> Option<&Arc<Paper>> {
        self.kinds.get(kind)?.get(id)
    }

    /// One of a kind with a name, in a domain where that is given.
    pub(crate) fn named(&self, kind: &str, name: &str, domain: Option<&str>) -> Option<&Arc<Paper>> {
        self.all(kind).find(|paper| {
            text(paper, "name") == name && domain.is_none_or(|domain| text(paper, "domain_id") == domain)
        })
    }

    /// Whether a domain is there and enabled.
    pub(crate) fn domain_is_on(&self, id: &str) -> bool {
        self.get("domain", id).is_some_and(|domain| flag(domain, "enabled", true))
    }

    /// Whether a project is there and enabled, and its domain.
    pub(crate) fn project_is_on(&self, id: &str) -> bool {
        let on = |project: &Arc<Paper>| {
            flag(project, "enabled", true)
                && (flag(project, "is_domain", false) || self.domain_is_on(text(project, "domain_id")))
        };
        self.get("project", id).is_some_and(on)
    }

    /// Whether a user is there and enabled, and its domain.
    pub(crate) fn user_is_on(&self, id: &str) -> bool {
        let on =
            |user: &Arc<Paper>| flag(user, "enabled", true) && self.domain_is_on(text(user, "domain_id"));
        self.get("user", id).is_some_and(on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_api_was_told_comes_before_what_is_listed() {
        let mut roll = Roll::new("here");
        roll.list_project("p", "demo");
        let roles = BTreeMap::from([("p".to_owned(), vec!["admin".to_owned()])]);
        roll.list_user("u", "ann", Some("p"), roles.iter());
        assert!(
            roll.user_is_on("u")
                && roll.project_is_on("p")
                && roll.named("user", "ann", Some(DOMAIN)).is_some()
        );
        let told =
            paper(json!({ "kind": "user", "id": "u", "name": "ann", "domain_id": DOMAIN, "enabled": false }));
        roll.tell(&[Arc::new(told)]);
        assert!(!roll.user_is_on("u"));
    }
}
