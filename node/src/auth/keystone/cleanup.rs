//! What goes with something that is deleted.
//!
//! Invariant: no grant, membership, trust or credential outlives whom it is about; a domain goes with all that is in it.

use http::StatusCode;
use serde_json::{Value, json};

use super::resources::{Sort, sort_of};
use super::{Answer, Context, Refusal, Reply};
use crate::auth::roll::{flag, text, texts};
use crate::papers::Paper;

/// Deletes something that is there.
pub(super) async fn delete(context: &Context<'_>, sort: &Sort, id: &str) -> Reply {
    let roll = context.roll();
    if roll.get(sort.kind, id).is_none_or(|paper| flag(paper, "listed", false)) {
        return Err(Refusal::Refused(format!(
            "{} {id} is listed by the configuration or the cluster",
            sort.one
        )));
    }
    let is_domain =
        sort.kind == "domain" || roll.get("project", id).is_some_and(|one| flag(one, "is_domain", false));
    if is_domain && roll.domain_is_on(id) {
        return Err(Refusal::Refused("a domain is deleted when it is disabled".to_owned()));
    }
    if sort.kind == "project" && roll.all("project").any(|other| text(other, "parent_id") == id) {
        return Err(Refusal::Refused("the project has others below it".to_owned()));
    }
    if sort.kind == "region" && roll.all("region").any(|other| text(other, "parent_region_id") == id) {
        return Err(Refusal::Refused("the region has others below it".to_owned()));
    }
    if is_domain {
        of_domain(context, id).await?;
        context.auth.drop_paper("domain", id).await?;
        context.auth.drop_paper("project", id).await?;
    }
    beside(context, sort.kind, id).await?;
    context.auth.drop_paper(sort.kind, id).await?;
    Ok(Answer { status: StatusCode::NO_CONTENT, body: Value::Null, subject: None })
}

async fn of_domain(context: &Context<'_>, domain: &str) -> Result<(), Refusal> {
    for kind in ["user", "group", "project", "role"] {
        let sort = sort_of(kind);
        let of: Vec<String> = {
            let all = context.roll().all(kind).filter(|paper| text(paper, "domain_id") == domain);
            all.map(|paper| text(paper, "id").to_owned()).collect()
        };
        for id in of {
            beside(context, sort.kind, &id).await?;
            context.auth.drop_paper(kind, &id).await?;
        }
    }
    context.auth.drop_paper("domain_config", domain).await?;
    Ok(())
}

/// What is about something.
async fn beside(context: &Context<'_>, kind: &str, id: &str) -> Result<(), Refusal> {
    let auth = context.auth;
    let by = |keys: &'static [&'static str]| {
        let id = id.to_owned();
        move |paper: &Paper| keys.iter().any(|key| text(paper, key) == id)
    };
    match kind {
        "user" => {
            auth.drop_all("grant", by(&["actor"])).await?;
            auth.drop_all("trust", by(&["trustor_user_id", "trustee_user_id"])).await?;
            for kind in ["credential", "app_credential", "access_rule"] {
                auth.drop_all(kind, by(&["user_id"])).await?;
            }
            let groups: Vec<String> = {
                let mine = context.roll().all("group").filter(|group| texts(group, "members").contains(&id));
                mine.map(|group| text(group, "id").to_owned()).collect()
            };
            for group in groups {
                let leave = |group: &mut Paper| {
                    let left: Vec<String> = texts(group, "members")
                        .into_iter()
                        .filter(|member| *member != id)
                        .map(str::to_owned)
                        .collect();
                    group.insert("members".to_owned(), json!(left));
                };
                auth.edit("group", &group, leave).await?;
            }
        }
        "group" => auth.drop_all("grant", by(&["actor"])).await?,
        "project" => {
            auth.drop_all("grant", by(&["target"])).await?;
            for kind in ["trust", "app_credential", "credential"] {
                auth.drop_all(kind, by(&["project_id"])).await?;
            }
        }
        "domain" => auth.drop_all("grant", by(&["target"])).await?,
        "role" => {
            auth.drop_all("grant", by(&["role"])).await?;
            auth.drop_all("implied", by(&["prior", "implied"])).await?;
        }
        "service" => auth.drop_all("endpoint", by(&["service_id"])).await?,
        _ => {}
    }
    Ok(())
}
