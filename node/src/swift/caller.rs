//! Who sent a request, as the authentication in front of this API found out.
//!
//! Invariant: this module grants nothing by itself; `authorize` decides with it.

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Caller {
    /// Name for logs: `test:tester`, or a Keystone user name.
    pub user: String,
    /// Keystone's user id; empty for v1 users.
    pub user_id: String,
    /// The caller's own account, with its reseller prefix: `AUTH_test`.
    pub account: String,
    /// What access lists match, literally: `test`, `test:tester`, `PROJECT:USER`.
    pub groups: Vec<String>,
    /// Keystone's roles in [`Caller::account`]: lists of its own containers match them too, and no others, as a role of this name may be
    /// anybody's elsewhere.
    pub roles: Vec<String>,
    /// Whether the caller administers [`Caller::account`].
    pub owner: bool,
    /// May do everything in every account.
    pub reseller_admin: bool,
    /// May read everything in every account.
    pub reseller_reader: bool,
    /// A service's token came along with the user's.
    pub service: bool,
}

impl Caller {
    /// Whether the caller administers `account`: its own one, and the service's account of the same project when
    /// a service vouches for the request.
    #[must_use]
    pub fn may_admin(&self, account: &str, service_prefix: &str) -> bool {
        if !self.owner {
            return false;
        }
        if !service_prefix.is_empty()
            && let Some(project) = account.strip_prefix(service_prefix)
        {
            return self.service && self.account.split_once('_').is_some_and(|(_, own)| own == project);
        }
        account == self.account
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_account_needs_both_the_user_and_the_service() {
        let mut caller = Caller { account: "AUTH_test".into(), owner: true, ..Caller::default() };
        assert!(caller.may_admin("AUTH_test", "SERVICE_"));
        assert!(!caller.may_admin("AUTH_test2", "SERVICE_"));
        assert!(!caller.may_admin("SERVICE_test", "SERVICE_"));
        caller.service = true;
        assert!(caller.may_admin("SERVICE_test", "SERVICE_"));
        assert!(!caller.may_admin("SERVICE_other", "SERVICE_"));
        caller.owner = false;
        assert!(!caller.may_admin("AUTH_test", "SERVICE_"));
    }
}
