//! Roles of users and groups in projects, domains and the system; what roles imply; who has what.
//!
//! Invariant: a grant names a role, an actor and a target that are there.

use std::collections::BTreeSet;
use std::sync::Arc;

use http::{Method, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::resources::{find, links, shown, sort_of};
use super::{Answer, Context, Refusal, Reply};
use crate::auth::Session;
use crate::auth::roll::{Target, flag, grant_id, paper, text, texts};
use crate::papers::Paper;

/// An answer without a body.
pub(super) fn done() -> Reply {
    Ok(Answer { status: StatusCode::NO_CONTENT, body: Value::Null, subject: None })
}

/// A grant, or all of an actor at a target, as a path names it.
struct Named<'a> {
    actor_kind: &'a str,
    actor: &'a str,
    target: Target<'a>,
    role: Option<&'a str>,
    inherited: bool,
}

fn named<'a>(parts: &[&'a str]) -> Option<Named<'a>> {
    let (parts, inherited) = match parts {
        ["OS-INHERIT", rest @ .., "inherited_to_projects"] => (rest, true),
        _ => (parts, false),
    };
    let (target, rest) = match parts {
        ["projects", id, rest @ ..] => (Target::Project(id), rest),
        ["domains", id, rest @ ..] => (Target::Domain(id), rest),
        ["system", rest @ ..] if !inherited => (Target::System, rest),
        _ => return None,
    };
    let (actor_kind, actor, role) = match rest {
        ["users", actor, "roles"] => ("user", *actor, None),
        ["users", actor, "roles", role] => ("user", *actor, Some(*role)),
        ["groups", actor, "roles"] => ("group", *actor, None),
        ["groups", actor, "roles", role] => ("group", *actor, Some(*role)),
        _ => return None,
    };
    Some(Named { actor_kind, actor, target, role, inherited })
}

/// Answers a path of a grant; `None`: it is none.
pub(super) async fn answer(
    context: &Context<'_>,
    caller: &Arc<Session>,
    method: &Method,
    parts: &[&str],
) -> Option<Reply> {
    let named = named(parts)?;
    Some(act(context, caller, method, &named).await)
}

async fn act(context: &Context<'_>, caller: &Session, method: &Method, named: &Named<'_>) -> Reply {
    let changes = *method == Method::PUT || *method == Method::DELETE;
    if !(caller.is_admin() || (!changes && caller.may_look())) {
        return Err(Refusal::Forbidden);
    }
    find(context, sort_of(named.actor_kind), named.actor)?;
    match named.target {
        Target::Project(id) => drop(find(context, sort_of("project"), id)?),
        Target::Domain(id) => drop(find(context, sort_of("domain"), id)?),
        Target::System => {}
    }
    let roll = context.roll();
    let (target_kind, target) = named.target.parts();
    let Some(role) = named.role else {
        let of = |grant: &&Arc<Paper>| {
            text(grant, "actor_kind") == named.actor_kind
                && text(grant, "actor") == named.actor
                && text(grant, "target_kind") == target_kind
                && text(grant, "target") == target
                && flag(grant, "inherited", false) == named.inherited
        };
        let roles = roll.all("grant").filter(of).filter_map(|grant| roll.get("role", text(grant, "role")));
        let roles: Vec<_> = roles.map(|role| shown(context, sort_of("role"), role)).collect();
        return Ok(Answer::ok(json!({ "roles": roles, "links": links(context, "roles") })));
    };
    find(context, sort_of("role"), role)?;
    let id = grant_id(named.actor_kind, named.actor, named.target, role, named.inherited);
    let known = roll.get("grant", &id);
    match *method {
        Method::PUT if known.is_some() => done(),
        Method::PUT => {
            let grant = json!({
                "actor_kind": named.actor_kind, "actor": named.actor, "target_kind": target_kind, "target": target,
                "role": role, "inherited": named.inherited,
            });
            context.auth.add("grant", &id, paper(grant)).await?;
            done()
        }
        Method::GET | Method::HEAD if known.is_some() => done(),
        Method::DELETE if known.is_some_and(|grant| flag(grant, "listed", false)) => {
            Err(Refusal::Refused("the role is listed by the configuration or the cluster".to_owned()))
        }
        Method::DELETE if known.is_some() => {
            if !context.auth.drop_paper("grant", &id).await? {
                return Err(Refusal::Refused(
                    "the role is listed by the configuration or the cluster".to_owned(),
                ));
            }
            done()
        }
        _ => Err(Refusal::NotFound(format!("role assignment with role {role}"))),
    }
}

/// A parameter of the query.
fn param(query: &str, name: &str) -> Option<String> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let found = pairs.filter(|(known, _)| *known == name).map(|(_, value)| value).next_back()?;
    Some(percent_decode_str(found).decode_utf8_lossy().into_owned())
}

/// What is asked of `/role_assignments`.
struct Wanted {
    user: Option<String>,
    group: Option<String>,
    role: Option<String>,
    effective: bool,
    names: bool,
}

impl Wanted {
    fn takes(&self, context: &Context<'_>, (kind, actor): (&str, &str), role: &str) -> bool {
        self.role.as_ref().is_none_or(|wanted| wanted == role)
            && self.user.as_ref().is_none_or(|wanted| kind == "user" && wanted == actor)
            && self.group.as_ref().is_none_or(|wanted| kind == "group" && wanted == actor)
            && (!self.effective || context.roll().is_global(role))
    }
}

/// `/role_assignments`: as they were given, or (`effective`) as users have them.
pub(super) fn assignments(context: &Context<'_>, caller: &Session) -> Reply {
    let (roll, query) = (context.roll(), context.query);
    let wanted = Wanted {
        user: param(query, "user.id"),
        group: param(query, "group.id"),
        role: param(query, "role.id"),
        effective: param(query, "effective")
            .is_some_and(|text| !matches!(text.as_str(), "0" | "False" | "false")),
        names: param(query, "include_names").is_some(),
    };
    if !caller.may_look() && wanted.user.as_ref() != Some(&caller.claims.user) {
        return Err(Refusal::Forbidden);
    }
    let (project, domain) = (param(query, "scope.project.id"), param(query, "scope.domain.id"));
    let asked = match (&project, &domain) {
        (Some(project), _) => Some(Target::Project(project)),
        (None, Some(domain)) => Some(Target::Domain(domain)),
        (None, None) => param(query, "scope.system").map(|_| Target::System),
    };
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for grant in roll.all("grant") {
        let there = (text(grant, "target_kind"), text(grant, "target"));
        let fits = match asked {
            Some(target) if wanted.effective => roll.reaches(grant, target),
            Some(target) => there == target.parts(),
            None => true,
        };
        if !fits {
            continue;
        }
        let target: (&str, &str) = match asked {
            Some(target) if wanted.effective => target.parts(),
            _ => there,
        };
        let below = flag(grant, "inherited", false) && !wanted.effective;
        for (kind, actor) in actors(context, grant, wanted.effective) {
            for role in roles_given(context, grant, wanted.effective) {
                let new = (actor.clone(), target.0.to_owned(), target.1.to_owned(), role.clone(), below);
                if wanted.takes(context, (kind, &actor), &role) && seen.insert(new) {
                    found.push(assignment(context, (kind, &actor), target, &role, below, wanted.names));
                }
            }
        }
    }
    Ok(Answer::ok(json!({ "role_assignments": found, "links": links(context, "role_assignments") })))
}

/// Whom a grant is for: a group's members, where only users are asked for.
fn actors<'a>(context: &Context<'_>, grant: &'a Paper, effective: bool) -> Vec<(&'a str, String)> {
    let actor = text(grant, "actor");
    match text(grant, "actor_kind") {
        "group" if effective => {
            let members =
                context.roll().get("group", actor).map(|group| texts(group, "members")).unwrap_or_default();
            members.into_iter().map(|member| ("user", member.to_owned())).collect()
        }
        kind => vec![(kind, actor.to_owned())],
    }
}

fn roles_given(context: &Context<'_>, grant: &Paper, effective: bool) -> BTreeSet<String> {
    let role = text(grant, "role");
    if effective { context.roll().with_implied(role) } else { [role.to_owned()].into() }
}

fn assignment(
    context: &Context<'_>,
    actor: (&str, &str),
    target: (&str, &str),
    role: &str,
    below: bool,
    names: bool,
) -> Value {
    let roll = context.roll();
    let domain_of =
        |id: &str| json!({ "id": id, "name": roll.get("domain", id).map(|domain| text(domain, "name")) });
    let told = |kind: &str, id: &str| {
        let mut told = json!({ "id": id });
        if let Some(found) = roll.get(kind, id).filter(|_| names) {
            told["name"] = json!(text(found, "name"));
            if found.get("domain_id").is_some_and(Value::is_string) {
                told["domain"] = domain_of(text(found, "domain_id"));
            }
        }
        told
    };
    let mut scope = match target {
        ("system", _) => json!({ "system": { "all": true } }),
        (kind, id) => json!({ kind: told(kind, id) }),
    };
    if below {
        scope["OS-INHERIT:inherited_to"] = json!("projects");
    }
    let (target_kind, target_id) = target;
    let base =
        format!("{}/v3/{target_kind}s/{target_id}/{}s/{}/roles/{role}", context.base, actor.0, actor.1);
    json!({
        "role": told("role", role), actor.0: told(actor.0, actor.1), "scope": scope, "links": { "assignment": base },
    })
}

fn role_view(context: &Context<'_>, id: &str) -> Value {
    let role = context.roll().get("role", id);
    let name = role.map(|role| text(role, "name"));
    json!({ "id": id, "name": name, "links": { "self": format!("{}/v3/roles/{id}", context.base) } })
}

/// `/role_inferences`: all rules.
pub(super) fn inferences(context: &Context<'_>, caller: &Session) -> Reply {
    if !caller.may_look() {
        return Err(Refusal::Forbidden);
    }
    let priors: BTreeSet<&str> = context.roll().all("implied").map(|rule| text(rule, "prior")).collect();
    let one = |prior: &str| json!({ "prior_role": role_view(context, prior), "implies": implied_by(context, prior) });
    let all: Vec<_> = priors.into_iter().map(one).collect();
    Ok(Answer::ok(json!({ "role_inferences": all, "links": links(context, "role_inferences") })))
}

fn implied_by(context: &Context<'_>, prior: &str) -> Vec<Value> {
    let rules = context.roll().all("implied").filter(|rule| text(rule, "prior") == prior);
    rules.map(|rule| role_view(context, text(rule, "implied"))).collect()
}

/// `/roles/{role}/implies/…`.
pub(super) async fn implies(
    context: &Context<'_>,
    caller: &Session,
    method: &Method,
    prior: &str,
    rest: &[&str],
) -> Reply {
    let looks = *method == Method::GET || *method == Method::HEAD;
    if !(caller.is_admin() || (looks && caller.may_look())) {
        return Err(Refusal::Forbidden);
    }
    find(context, sort_of("role"), prior)?;
    let self_link = format!("{}/v3/roles/{prior}/implies", context.base);
    let [implied] = rest else {
        let rule = json!({ "prior_role": role_view(context, prior), "implies": implied_by(context, prior) });
        return Ok(Answer::ok(json!({ "role_inference": rule, "links": { "self": self_link } })));
    };
    find(context, sort_of("role"), implied)?;
    let id = format!("{prior} {implied}");
    let known = context.roll().get("implied", &id).cloned();
    let rule = json!({ "prior_role": role_view(context, prior), "implies": role_view(context, implied) });
    let body = json!({ "role_inference": rule, "links": { "self": format!("{self_link}/{implied}") } });
    match *method {
        Method::PUT => {
            // A role of a domain is implied by roles of domains alone.
            if context.roll().is_global(prior) && !context.roll().is_global(implied) {
                return Err(Refusal::Refused("a global role does not imply one of a domain".to_owned()));
            }
            if known.is_none() {
                let paper = paper(json!({ "prior": prior, "implied": implied }));
                context.auth.add("implied", &id, paper).await?;
            }
            Ok(Answer { status: StatusCode::CREATED, body, subject: None })
        }
        Method::GET if known.is_some() => Ok(Answer::ok(body)),
        Method::HEAD if known.is_some() => done(),
        Method::DELETE if known.is_some() => {
            if !context.auth.drop_paper("implied", &id).await? {
                return Err(Refusal::Refused("that rule is always there".to_owned()));
            }
            done()
        }
        _ => Err(Refusal::NotFound(format!("role inference {id}"))),
    }
}
