//! Who may do what: the rules of Swift's tempauth, for accounts, containers and objects.
//!
//! Invariant: without a rule that lets the caller in, the answer is 401 for strangers and 403 for known callers.

use http::HeaderValue;
use http::header::WWW_AUTHENTICATE;

use super::acl::{self, AccountAcl};
use super::error::{Result, SwiftError};
use super::headers::text;
use super::limits::SwiftOptions;
use super::{Api, Call, Caller};

/// What a request does to its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// GET and HEAD.
    Read,
    /// Everything else.
    Write,
    /// PUT and DELETE of an account.
    Manage,
}

/// What a request is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) account: &'a str,
    pub(crate) container: Option<&'a str>,
    /// An object in the container, not the container.
    pub(crate) object: bool,
}

impl<'a> Subject<'a> {
    pub(crate) fn account(account: &'a str) -> Self {
        Self { account, container: None, object: false }
    }

    pub(crate) fn container(account: &'a str, container: &'a str) -> Self {
        Self { account, container: Some(container), object: false }
    }

    pub(crate) fn object(path: &'a quarry_engine::object::ObjectPath) -> Self {
        Self { account: &path.account, container: Some(&path.container), object: true }
    }
}

/// Permission to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grant {
    /// Sees and sets what only the owner of the account may.
    pub(crate) owner: bool,
}

const OWNER: Grant = Grant { owner: true };
const GUEST: Grant = Grant { owner: false };

/// Decide. The caller's own account and resellers cost no look-up.
pub(crate) async fn authorize(api: &Api, call: &Call, subject: Subject<'_>, verb: Verb) -> Result<Grant> {
    let caller = call.caller.as_ref();
    if !api.options.reseller_prefixes.iter().any(|prefix| subject.account.starts_with(prefix.as_str())) {
        return Err(denied(caller, subject.account));
    }
    if let Some(scope) = &call.scope {
        // A signed request has the rights of its signature and no others.
        return if scope.covers(subject.account, subject.container) && verb != Verb::Manage {
            Ok(GUEST)
        } else {
            Err(denied(None, subject.account))
        };
    }
    if let Some(grant) = caller.and_then(|caller| by_role(&api.options, caller, subject.account, verb)) {
        return Ok(grant);
    }
    if let Some(container) = subject.container
        && (subject.object || verb == Verb::Read)
        && let Some(found) = api.store.container(subject.account, container).await?
    {
        let name = if verb == Verb::Read { "x-container-read" } else { "x-container-write" };
        let list = found.headers.get(name).map_or("", String::as_str);
        if by_container_acl(list, caller, text(&call.headers, "referer"), &subject) {
            return Ok(GUEST);
        }
    }
    if let Some(caller) = caller
        && let Some(found) = api.store.account(subject.account).await?
        && let Some(list) = found.headers.get("x-account-access-control")
        && let Ok(list) = AccountAcl::parse(list)
        && let Some(grant) = by_account_acl(&list, caller, subject.container.is_some(), verb)
    {
        return Ok(grant);
    }
    Err(denied(caller, subject.account))
}

fn by_role(options: &SwiftOptions, caller: &Caller, account: &str, verb: Verb) -> Option<Grant> {
    if caller.reseller_admin {
        return Some(OWNER);
    }
    if verb != Verb::Manage && caller.may_admin(account, &options.service_prefix) {
        return Some(OWNER);
    }
    (caller.reseller_reader && verb == Verb::Read).then_some(GUEST)
}

fn by_container_acl(
    list: &str,
    caller: Option<&Caller>,
    referrer: Option<&str>,
    subject: &Subject<'_>,
) -> bool {
    if list.is_empty() {
        return false;
    }
    // Swift's keystoneauth as well looks for roles only where the account is that of the caller's project.
    let named = |caller: &Caller| {
        let own = caller.account == subject.account;
        acl::names_group(list, &caller.groups) || (own && acl::names_group(list, &caller.roles))
    };
    (acl::allows_referrer(list, referrer) && (subject.object || acl::opens_listings(list)))
        || caller.is_some_and(named)
}

fn by_account_acl(list: &AccountAcl, caller: &Caller, below_account: bool, verb: Verb) -> Option<Grant> {
    let named = |members: &[String]| members.iter().any(|member| caller.groups.contains(member));
    if named(&list.admin) {
        return Some(OWNER);
    }
    if named(&list.read_write) && (below_account || verb == Verb::Read) {
        return Some(GUEST);
    }
    (named(&list.read_only) && verb == Verb::Read).then_some(GUEST)
}

fn denied(caller: Option<&Caller>, account: &str) -> SwiftError {
    if caller.is_some() {
        return SwiftError::status(403);
    }
    let realm = format!("Swift realm=\"{}\"", quote(account));
    let value = HeaderValue::from_str(&realm).unwrap_or_else(|_| HeaderValue::from_static("Swift"));
    SwiftError::status(401).with(WWW_AUTHENTICATE, value)
}

/// Percent-encode all but letters, digits, `_.-~` and `/`.
pub(crate) fn quote(text: &str) -> String {
    const SAFE: &percent_encoding::AsciiSet =
        &percent_encoding::NON_ALPHANUMERIC.remove(b'_').remove(b'.').remove(b'-').remove(b'~').remove(b'/');
    percent_encoding::utf8_percent_encode(text, SAFE).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(groups: &[&str]) -> Caller {
        Caller { groups: groups.iter().map(|group| (*group).to_owned()).collect(), ..Caller::default() }
    }

    #[test]
    fn account_lists_grant_by_degree() {
        let list = AccountAcl::parse(r#"{"admin":["a"],"read-write":["w"],"read-only":["r"]}"#).unwrap();
        let grant = |who: &str, below, verb| by_account_acl(&list, &caller(&[who]), below, verb);
        assert_eq!(grant("a", false, Verb::Manage), Some(OWNER));
        assert_eq!(grant("w", true, Verb::Write), Some(GUEST));
        assert_eq!(grant("w", false, Verb::Write), None);
        assert_eq!(grant("w", false, Verb::Read), Some(GUEST));
        assert_eq!(grant("r", true, Verb::Read), Some(GUEST));
        assert_eq!(grant("r", true, Verb::Write), None);
        assert_eq!(grant("x", true, Verb::Read), None);
    }

    #[test]
    fn referrers_see_objects_but_listings_only_when_opened() {
        let allows = |list, caller: Option<&Caller>, object| {
            by_container_acl(list, caller, None, &Subject { account: "AUTH_a", container: Some("c"), object })
        };
        assert!(allows(".r:*", None, true));
        assert!(!allows(".r:*", None, false));
        assert!(allows(".r:*,.rlistings", None, false));
        assert!(!allows("", Some(&caller(&[""])), true));
        assert!(allows("test:tester", Some(&caller(&["test:tester"])), false));
    }

    #[test]
    fn only_resellers_manage_accounts() {
        let options = SwiftOptions::default();
        let owner = Caller { account: "AUTH_a".into(), owner: true, ..Caller::default() };
        assert_eq!(by_role(&options, &owner, "AUTH_a", Verb::Write), Some(OWNER));
        assert_eq!(by_role(&options, &owner, "AUTH_a", Verb::Manage), None);
        let reseller = Caller { reseller_admin: true, ..Caller::default() };
        assert_eq!(by_role(&options, &reseller, "AUTH_a", Verb::Manage), Some(OWNER));
        let reader = Caller { reseller_reader: true, ..Caller::default() };
        assert_eq!(by_role(&options, &reader, "AUTH_a", Verb::Read), Some(GUEST));
        assert_eq!(by_role(&options, &reader, "AUTH_a", Verb::Write), None);
    }

    #[test]
    fn the_realm_cannot_break_the_header() {
        assert_eq!(quote("AUTH_h\"\nX: <b>/é"), "AUTH_h%22%0AX%3A%20%3Cb%3E/%C3%A9");
    }
}
