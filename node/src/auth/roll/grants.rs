//! Who has which role where: directly, by a group, from above, by implication.
//!
//! Invariant: a role of a domain (one that has a `domain_id`) is never in a token itself; what it implies is.

use std::collections::{BTreeSet, VecDeque};

use serde_json::{Value, json};

use super::{Roll, flag, text, texts};
use crate::papers::Paper;

/// Where a role is had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    Project(&'a str),
    Domain(&'a str),
    System,
}

impl<'a> Target<'a> {
    /// Its kind and id.
    pub(crate) fn parts(self) -> (&'static str, &'a str) {
        match self {
            Self::Project(id) => ("project", id),
            Self::Domain(id) => ("domain", id),
            Self::System => ("system", "all"),
        }
    }
}

/// The name of a grant.
pub(crate) fn grant_id(actor: &str, id: &str, target: Target<'_>, role: &str, inherited: bool) -> String {
    let (kind, of) = target.parts();
    format!("{actor} {id} {kind} {of} {role} {}", if inherited { "below" } else { "there" })
}

/// The paper of a grant.
pub(crate) fn grant(actor: &str, id: &str, target: Target<'_>, role: &str, inherited: bool) -> Value {
    let (kind, of) = target.parts();
    json!({ "actor_kind": actor, "actor": id, "target_kind": kind, "target": of, "role": role, "inherited": inherited })
}

impl Roll {
    /// Ids of the groups that a user is in.
    pub(crate) fn groups_of(&self, user: &str) -> Vec<&str> {
        let mine = self.all("group").filter(|group| texts(group, "members").contains(&user));
        mine.map(|group| text(group, "id")).collect()
    }

    /// Projects above a project, and its domain last.
    fn above<'a>(&'a self, project: &'a str) -> Vec<Target<'a>> {
        let mut above = Vec::new();
        let mut at = self.get("project", project);
        while let Some(here) = at {
            let parent = text(here, "parent_id");
            let parent_project = self.get("project", parent).filter(|_| above.len() < 64);
            match parent_project {
                Some(_) => above.push(Target::Project(parent)),
                None => above.push(Target::Domain(text(here, "domain_id"))),
            }
            at = parent_project;
        }
        above
    }

    fn is_for(grant: &Paper, target: Target<'_>) -> bool {
        let (kind, id) = target.parts();
        text(grant, "target_kind") == kind && text(grant, "target") == id
    }

    /// Whether a grant gives its role at a target.
    pub(crate) fn reaches(&self, grant: &Paper, target: Target<'_>) -> bool {
        if !flag(grant, "inherited", false) {
            return Self::is_for(grant, target);
        }
        match target {
            Target::Project(project) => {
                self.above(project).into_iter().any(|above| Self::is_for(grant, above))
            }
            _ => false,
        }
    }

    /// A role and all that it implies, over however many steps.
    pub(crate) fn with_implied(&self, role: &str) -> BTreeSet<String> {
        let (mut known, mut open) = (BTreeSet::from([role.to_owned()]), VecDeque::from([role.to_owned()]));
        while let Some(prior) = open.pop_front() {
            for rule in self.all("implied").filter(|rule| text(rule, "prior") == prior) {
                let implied = text(rule, "implied").to_owned();
                if known.insert(implied.clone()) {
                    open.push_back(implied);
                }
            }
        }
        known
    }

    /// Whether a role can be in a token.
    pub(crate) fn is_global(&self, role: &str) -> bool {
        self.get("role", role).is_some_and(|role| text(role, "domain_id").is_empty())
    }

    /// Ids of the roles that a user has at a target.
    pub(crate) fn roles_of(&self, user: &str, target: Target<'_>) -> BTreeSet<String> {
        let groups = self.groups_of(user);
        let is_actor = |grant: &Paper| match text(grant, "actor_kind") {
            "user" => text(grant, "actor") == user,
            _ => groups.contains(&text(grant, "actor")),
        };
        let granted = self.all("grant").filter(|grant| is_actor(grant) && self.reaches(grant, target));
        let all: BTreeSet<String> =
            granted.flat_map(|grant| self.with_implied(text(grant, "role"))).collect();
        all.into_iter().filter(|role| self.is_global(role)).collect()
    }

    /// Names of roles.
    pub(crate) fn names(&self, roles: &BTreeSet<String>) -> Vec<String> {
        let named = roles.iter().filter_map(|role| self.get("role", role));
        named.map(|role| text(role, "name").to_owned()).collect()
    }

    /// Ids of the projects in which a user has a role.
    pub(crate) fn projects_of(&self, user: &str) -> Vec<&str> {
        let all = self.all("project").map(|project| text(project, "id"));
        all.filter(|project| !self.roles_of(user, Target::Project(project)).is_empty()).collect()
    }

    /// Ids of the domains in which a user has a role.
    pub(crate) fn domains_of(&self, user: &str) -> Vec<&str> {
        let all = self.all("domain").map(|domain| text(domain, "id"));
        all.filter(|domain| !self.roles_of(user, Target::Domain(domain)).is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{DOMAIN, paper};
    use super::*;

    fn roll(grants: &[(&str, &str, Target<'_>, &str, bool)]) -> Roll {
        let mut roll = Roll::new("here");
        roll.list_project("top", "top");
        let mut told = vec![
            json!({ "kind": "project", "id": "leaf", "name": "leaf", "domain_id": DOMAIN, "parent_id": "top" }),
            json!({ "kind": "user", "id": "u", "name": "u", "domain_id": DOMAIN }),
            json!({ "kind": "group", "id": "g", "name": "g", "domain_id": DOMAIN, "members": ["u"] }),
            json!({ "kind": "role", "id": "r1", "name": "one", "domain_id": null }),
            json!({ "kind": "role", "id": "r2", "name": "two", "domain_id": null }),
            json!({ "kind": "role", "id": "rd", "name": "of a domain", "domain_id": DOMAIN }),
            json!({ "kind": "implied", "id": "rd r2", "prior": "rd", "implied": "r2" }),
            json!({ "kind": "implied", "id": "r2 rd", "prior": "r2", "implied": "rd" }),
        ];
        for (actor, id, target, role, inherited) in grants {
            let mut one = grant(actor, id, *target, role, *inherited);
            one["kind"] = json!("grant");
            one["id"] = json!(grant_id(actor, id, *target, role, *inherited));
            told.push(one);
        }
        let told: Vec<_> = told.into_iter().map(|one| Arc::new(paper(one))).collect();
        roll.tell(&told);
        roll
    }

    #[test]
    fn roles_come_directly_by_groups_from_above_and_by_implication() {
        use Target::{Domain, Project, System};
        for (given, asked, names) in [
            (("user", "u", Project("top"), "r1", false), Project("top"), vec!["one"]),
            (("user", "u", Project("top"), "r1", false), Project("leaf"), vec![]),
            (("user", "u", Project("top"), "r1", true), Project("leaf"), vec!["one"]),
            (("user", "u", Project("top"), "r1", true), Project("top"), vec![]),
            (("group", "g", Domain(DOMAIN), "r1", true), Project("leaf"), vec!["one"]),
            (("group", "g", Domain(DOMAIN), "r1", true), Domain(DOMAIN), vec![]),
            (("group", "g", System, "r1", false), System, vec!["one"]),
            (("user", "u", Project("top"), "rd", false), Project("top"), vec!["two"]),
            (("user", "other", Project("top"), "r1", false), Project("top"), vec![]),
        ] {
            let roll = roll(&[given]);
            assert_eq!(roll.names(&roll.roles_of("u", asked)), names, "{given:?} {asked:?}");
        }
        let all = roll(&[("user", "u", Project("top"), "r1", true)]);
        assert_eq!((all.projects_of("u"), all.domains_of("u")), (vec!["leaf"], vec![]));
    }
}
