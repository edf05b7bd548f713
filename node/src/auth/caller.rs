//! A caller as the object API knows it.

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Caller {
    /// Name for logs: `test:tester`, or a Keystone user name.
    pub(crate) user: String,
    /// Keystone's user id; empty for v1 users.
    pub(crate) user_id: String,
    /// The caller's own account, with its reseller prefix: `AUTH_test`.
    pub(crate) account: String,
    /// What access lists match, literally: `test`, `test:tester`, roles, `PROJECT:USER`.
    pub(crate) groups: Vec<String>,
    /// Whether the caller administers [`Caller::account`].
    pub(crate) owner: bool,
    /// May do everything in every account.
    pub(crate) reseller_admin: bool,
    /// May read everything in every account.
    pub(crate) reseller_reader: bool,
    /// A service's token came along with the user's.
    pub(crate) service: bool,
}
