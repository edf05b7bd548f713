//! Quotas of accounts and containers: how many bytes and objects they may come to.
//!
//! Invariant: a body that would break a quota is refused before it is read, when its length is told; a chunked body
//! counts when the next one comes (as in real Swift).
//! Invariant: only resellers set quotas of accounts, and no account quota binds them.

use std::ops::Bound;

use http::header::HeaderMap;
use quarry_engine::object::{Headers, ObjectPath, Policies};

use super::error::{Result, SwiftError};
use super::headers::{Changes, text};

use super::{Api, Call};

const BYTES: &str = "quota-bytes";
const COUNT: &str = "quota-count";

/// Check the quotas that a container's PUT or POST sets.
pub(crate) fn check_container_headers(headers: &HeaderMap) -> Result<()> {
    for (name, what) in [(BYTES, "bytes"), (COUNT, "count")] {
        let value = text(headers, &format!("x-container-meta-{name}")).unwrap_or("");
        if !is_quota(value) {
            return Err(SwiftError::message(400, format!("Invalid {what} quota.")));
        }
    }
    Ok(())
}

/// Add the quotas that an account's PUT or POST sets or removes to its changes.
pub(crate) fn change_account(call: &Call, policies: &Policies, changes: &mut Changes) -> Result<()> {
    let mut wanted = Vec::new();
    for quota in [BYTES, COUNT] {
        let mut names = vec![quota.to_owned()];
        for policy in policies.iter() {
            names.push(format!("{quota}-policy-{}", policy.name.to_ascii_lowercase()));
        }
        for name in names {
            if let Some(value) = asked(&call.headers, &name) {
                wanted.push((format!("x-account-{name}"), value));
            }
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    if !call.caller.as_ref().is_some_and(|caller| caller.reseller_admin) {
        return Err(SwiftError::status(403));
    }
    if wanted.iter().any(|(_, value)| !is_quota(value)) {
        return Err(SwiftError::status(400));
    }
    for (name, value) in wanted {
        changes.set(&name, Some(value).filter(|value| !value.is_empty()));
    }
    Ok(())
}

/// The new value of one quota; empty removes it. The old header with `-meta-` still counts for bytes.
fn asked(headers: &HeaderMap, name: &str) -> Option<String> {
    let given = |full: String| text(headers, &full).map(str::to_owned);
    let removed = |full: String| given(full).is_some_and(|value| !value.is_empty());
    let legacy = name == BYTES;
    if removed(format!("x-remove-account-{name}"))
        || (legacy && removed(format!("x-remove-account-meta-{name}")))
    {
        return Some(String::new());
    }
    given(format!("x-account-{name}"))
        .or_else(|| legacy.then(|| given(format!("x-account-meta-{name}"))).flatten())
}

/// Whether an object of that length may be added.
pub(crate) async fn check(api: &Api, call: &Call, path: &ObjectPath, length: Option<u64>) -> Result<()> {
    let length = length.unwrap_or(0);
    let exceeded = || SwiftError::message(413, "Upload exceeds quota.");
    let bound = !call.caller.as_ref().is_some_and(|caller| caller.reseller_admin);
    let container = Box::pin(api.store.container(&path.account, &path.container));
    let account = async { if bound { Box::pin(api.store.account(&path.account)).await } else { Ok(None) } };
    // Asked at once, they go to whoever knows in one message. What cannot be said of one is not waited for at the other.
    let (container, account) = tokio::try_join!(container, account)?;
    let policy = container.as_ref().map(|found| found.policy);
    if let Some(found) = container {
        let fits = |name, used: u64, more| fits(&found.headers, "x-container-meta-", name, used, more);
        if !fits(BYTES, found.bytes, length) || !fits(COUNT, found.objects, 1) {
            return Err(exceeded());
        }
    }
    if let Some(found) = account {
        let fits = |name: &str, used: u64, more| fits(&found.headers, "x-account-", name, used, more);
        if !fits(BYTES, found.bytes, length) || !fits(COUNT, found.objects, 1) {
            return Err(exceeded());
        }
        let policies = api.store.policies();
        if let Some(policy) = policy.and_then(|policy| policies.get(policy)) {
            let share = found.policies.iter().find(|(index, _)| *index == policy.index);
            let share = share.map(|(_, share)| *share).unwrap_or_default();
            let name = |quota: &str| format!("{quota}-policy-{}", policy.name.to_ascii_lowercase());
            if !fits(&name(BYTES), share.bytes, length) || !fits(&name(COUNT), share.objects, 1) {
                return Err(SwiftError::message(413, "Upload exceeds policy quota."));
            }
        }
    }
    Ok(())
}

fn fits(headers: &Headers, prefix: &str, name: &str, used: u64, more: u64) -> bool {
    let mut named = headers
        .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
        .take_while(|(key, _)| key.starts_with(prefix));
    let quota = named.find(|(key, _)| key.strip_prefix(prefix) == Some(name));
    quota
        .and_then(|(_, value)| value.parse::<u64>().ok())
        .is_none_or(|quota| used.saturating_add(more) <= quota)
}

fn is_quota(value: &str) -> bool {
    value.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swift::Caller;
    use http::{HeaderName, HeaderValue};

    fn call(name: &'static str, value: &'static str, reseller_admin: bool) -> Call {
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        let caller = Some(Caller { reseller_admin, ..Caller::default() });
        Call { caller, headers, now: 0, scope: None }
    }

    fn change(name: &'static str, value: &'static str, reseller: bool) -> Result<Headers> {
        let mut changes = Changes::default();
        change_account(&call(name, value, reseller), &Policies::default(), &mut changes)?;
        let before = [("x-account-quota-bytes".to_owned(), "7".to_owned())].into();
        Ok(changes.apply(before))
    }

    #[test]
    fn only_resellers_change_account_quotas() {
        for name in ["x-account-quota-bytes", "x-account-meta-quota-bytes", "x-remove-account-quota-count"] {
            assert_eq!(change(name, "1", false).unwrap_err().code(), 403, "{name}");
            assert!(change(name, "1", true).is_ok(), "{name}");
        }
        assert_eq!(change("x-account-quota-bytes", "x", true).unwrap_err().code(), 400);
        assert_eq!(change("x-account-quota-bytes", "9", true).unwrap()["x-account-quota-bytes"], "9");
        assert!(change("x-account-quota-bytes", "", true).unwrap().is_empty());
        assert!(change("x-remove-account-meta-quota-bytes", "t", true).unwrap().is_empty());
        let policy = change("x-account-quota-count-policy-policy-0", "5", true).unwrap();
        assert_eq!(policy["x-account-quota-count-policy-policy-0"], "5");
    }

    #[test]
    fn a_quota_is_kept_to_the_last_byte() {
        let headers: Headers = [("x-container-meta-quota-bytes".to_owned(), "10".to_owned())].into();
        assert!(fits(&headers, "x-container-meta-", BYTES, 4, 6));
        assert!(!fits(&headers, "x-container-meta-", BYTES, 4, 7));
        assert!(fits(&headers, "x-container-meta-", COUNT, 4, 7));
    }
}
