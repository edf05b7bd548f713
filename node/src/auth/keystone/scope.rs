//! What a token is for, and which roles that gives.
//!
//! Invariant: a token has its roles from the roll as it is now, not as it was when the token was given out.

use std::collections::BTreeSet;

use crate::auth::calendar::seconds_of;
use crate::auth::roll::{Roll, Target, text, texts};
use crate::auth::token::Claims;
use crate::papers::Paper;

/// Names of the roles of a token; `None`: it is good for nothing any more.
pub(crate) fn roles(roll: &Roll, claims: &Claims, now: u64) -> Option<Vec<String>> {
    Some(roll.names(&role_ids(roll, claims, now)?))
}

/// Ids of the roles of a token.
pub(crate) fn role_ids(roll: &Roll, claims: &Claims, now: u64) -> Option<BTreeSet<String>> {
    if !roll.user_is_on(&claims.user) {
        return None;
    }
    let user = claims.user.as_str();
    let found = if let Some(trust) = &claims.trust {
        let trust = roll.get("trust", trust).filter(|trust| lasts(trust, now))?;
        let trustor = text(trust, "trustor_user_id");
        if !roll.user_is_on(trustor) || !roll.project_is_on(claims.project.as_deref()?) {
            return None;
        }
        let has = roll.roles_of(trustor, Target::Project(claims.project.as_deref()?));
        limited(roll, trust, &has)
    } else if let Some(credential) = &claims.credential {
        let project = claims.project.as_deref()?;
        let credential =
            roll.get("app_credential", credential).filter(|credential| lasts(credential, now))?;
        let has = roll.roles_of(user, Target::Project(project));
        roll.project_is_on(project).then(|| limited(roll, credential, &has))?
    } else if let Some(project) = &claims.project {
        let on = roll.project_is_on(project);
        on.then(|| roll.roles_of(user, Target::Project(project)))?
    } else if let Some(domain) = &claims.domain {
        let on = roll.domain_is_on(domain);
        on.then(|| roll.roles_of(user, Target::Domain(domain)))?
    } else if claims.system {
        roll.roles_of(user, Target::System)
    } else {
        return Some(BTreeSet::new());
    };
    (!found.is_empty()).then_some(found)
}

/// The roles of a paper, and what they imply, as far as whoever gave it has them.
fn limited(roll: &Roll, paper: &Paper, has: &BTreeSet<String>) -> BTreeSet<String> {
    let given = texts(paper, "roles").into_iter().flat_map(|role| roll.with_implied(role));
    given.filter(|role| has.contains(role)).collect()
}

/// Claims that end with the trust or the application credential that they rest on, if that is earlier.
pub(crate) fn capped(roll: &Roll, claims: Claims) -> Claims {
    let papers = [("trust", &claims.trust), ("app_credential", &claims.credential)];
    let papers = papers.into_iter().filter_map(|(kind, id)| roll.get(kind, id.as_deref()?));
    let ends = papers.filter_map(|paper| seconds_of(text(paper, "expires_at"))).min();
    let expires = ends.map_or(claims.expires, |end| end.min(claims.expires));
    Claims { expires, ..claims }
}

/// Whether a paper's time is not over.
pub(crate) fn lasts(paper: &Paper, now: u64) -> bool {
    let end = text(paper, "expires_at");
    end.is_empty() || seconds_of(end).is_some_and(|end| now < end)
}
