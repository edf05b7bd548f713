//! What tokens may do that stand for some of a user's rights alone: those of trusts, of application credentials, and of requests that
//! were signed with an EC2 key.
//!
//! Invariant: what was lent neither widens nor outlasts itself: with it nobody sees, makes or changes what would give more, or for longer.

use serde_json::Value;

use super::{Context, Refusal};
use crate::auth::Session;
use crate::auth::roll::{flag, text};
use crate::papers::Paper;

/// The method of tokens that were got with a signed request.
pub(super) const BY_SIGNATURE: &str = "ec2credential";

/// Whether a session was got with a signed request, at first or by a token that was.
pub(super) fn is_by_signature(session: &Session) -> bool {
    session.claims.methods.iter().any(|method| method == BY_SIGNATURE)
}

/// Refuses to make, change or take away credentials with an application credential that is not unrestricted (Keystone's
/// `_check_unrestricted_application_credential`, which asks at some of these alone). With a trust EC2 keys are made, as services do for
/// their users: they give what the trust does.
pub(super) fn may_manage(context: &Context<'_>, caller: &Session) -> Result<(), Refusal> {
    let unrestricted = |id: &str| {
        context.roll().get("app_credential", id).is_some_and(|paper| flag(paper, "unrestricted", false))
    };
    let restricted = caller.claims.credential.as_deref().is_some_and(|id| !unrestricted(id));
    if restricted { Err(Refusal::Forbidden) } else { Ok(()) }
}

/// The same of application credentials, which are for good: with a trust none is made.
pub(super) fn may_manage_lasting(context: &Context<'_>, caller: &Session) -> Result<(), Refusal> {
    if caller.claims.trust.is_some() { Err(Refusal::Forbidden) } else { may_manage(context, caller) }
}

/// Refuses what changes trusts, but for one thing: a trust is ended with itself, as services do that have nothing else of its trustor.
/// `ended`: the trust that is to be deleted.
pub(super) fn may_trust(caller: &Session, ended: Option<&str>) -> Result<(), Refusal> {
    let claims = &caller.claims;
    let other = claims.trust.is_some() && claims.trust.as_deref() != ended;
    if claims.credential.is_some() || other { Err(Refusal::Forbidden) } else { Ok(()) }
}

/// Whether a session may see a credential, which shows its secret, and change it: whoever was lent some rights sees EC2 keys that give the same.
pub(super) fn sees(caller: &Session, credential: &Paper) -> bool {
    let claims = &caller.claims;
    if claims.trust.is_none() && claims.credential.is_none() {
        return true;
    }
    let blob: Value = serde_json::from_str(text(credential, "blob")).unwrap_or(Value::Null);
    let bound = |member: &str| blob[member].as_str().filter(|id| !id.is_empty());
    text(credential, "type") == "ec2"
        && bound("trust_id") == claims.trust.as_deref()
        && bound("app_cred_id") == claims.credential.as_deref()
}
