//! What volumes, snapshots and backups may become, as tables.
//!
//! ```text
//!            from (one of)                      during             then              when it fails
//! delete     available error error_extending …  deleting           (gone)            error_deleting
//! ```
//!
//! Invariant: whoever changes a state asks these tables; what an admin resets by hand is the only exception.
//! Invariant: what is under way is written in the paper (`task`) together with its state, so that a restart goes on with it.

/// What is done with a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    Create,
    Delete,
    Extend,
    Revert,
    Retype,
    Migrate,
    Reserve,
    Attach,
    BeginDetaching,
    Detach,
    Transfer,
    Backup,
    Upload,
    Restore,
    Snapshot,
    CreateSnapshot,
    DeleteSnapshot,
    CreateBackup,
    DeleteBackup,
    Manage,
    ManageSnapshot,
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    deed: Deed,
    /// In the task of a paper.
    pub(crate) name: &'static str,
    /// States in which it may begin.
    pub(crate) from: &'static [&'static str],
    /// State while it is done.
    pub(crate) during: &'static str,
    /// State afterwards; `SAME`: the one before.
    pub(crate) done: &'static str,
    /// State when it failed; `SAME`: the one before.
    pub(crate) failed: &'static str,
}

/// The state before.
pub(crate) const SAME: &str = "";

const fn rule(
    deed: Deed,
    name: &'static str,
    from: &'static [&'static str],
    [during, done, failed]: [&'static str; 3],
) -> Rule {
    Rule { deed, name, from, during, done, failed }
}

const SETTLED: &[&str] = &["available", "in-use"];
const DELETABLE: &[&str] =
    &["available", "error", "error_restoring", "error_extending", "error_managing", "error_deleting"];

/// All deeds.
pub(crate) const RULES: [Rule; 21] = [
    rule(Deed::Create, "create", &[], ["creating", "available", "error"]),
    rule(Deed::Delete, "delete", DELETABLE, ["deleting", "deleted", "error_deleting"]),
    rule(Deed::Extend, "extend", SETTLED, ["extending", SAME, "error_extending"]),
    rule(Deed::Revert, "revert", &["available"], ["reverting", "available", "error"]),
    rule(Deed::Retype, "retype", SETTLED, ["retyping", SAME, SAME]),
    rule(Deed::Migrate, "migrate", &["available"], ["maintenance", SAME, SAME]),
    rule(Deed::Reserve, "reserve", &["available"], ["attaching", "attaching", SAME]),
    rule(
        Deed::Attach,
        "attach",
        &["available", "attaching", "reserved"],
        ["attaching", "in-use", "error_attaching"],
    ),
    rule(Deed::BeginDetaching, "begin_detaching", &["in-use"], ["detaching", "detaching", SAME]),
    rule(Deed::Detach, "detach", &["in-use", "detaching"], ["detaching", "available", "error_detaching"]),
    rule(Deed::Transfer, "transfer", &["available"], ["awaiting-transfer", "awaiting-transfer", SAME]),
    rule(Deed::Backup, "backup", SETTLED, ["backing-up", SAME, SAME]),
    rule(Deed::Upload, "upload", SETTLED, ["uploading", SAME, SAME]),
    rule(Deed::Restore, "restore", &["available"], ["restoring-backup", "available", "error_restoring"]),
    rule(Deed::Snapshot, "snapshot", SETTLED, [SAME, SAME, SAME]),
    rule(Deed::CreateSnapshot, "create", &[], ["creating", "available", "error"]),
    rule(
        Deed::DeleteSnapshot,
        "delete",
        &["available", "error", "error_deleting"],
        ["deleting", "deleted", "error_deleting"],
    ),
    rule(Deed::CreateBackup, "create", &[], ["creating", "available", "error"]),
    rule(Deed::DeleteBackup, "delete", &["available", "error"], ["deleting", "deleted", "error_deleting"]),
    rule(Deed::Manage, "manage", &[], ["managing", "available", "error_managing"]),
    rule(Deed::ManageSnapshot, "manage", &[], ["creating", "available", "error"]),
];

/// The row of a deed.
pub(crate) fn rule_of(deed: Deed) -> &'static Rule {
    RULES.iter().find(|rule| rule.deed == deed).expect("each deed has a row: a test holds it")
}

impl Rule {
    /// Whether it may begin in this state.
    pub(crate) fn begins_in(&self, status: &str) -> bool {
        self.from.contains(&status)
    }
}

/// States that an admin may set.
pub(crate) const VOLUME_STATES: [&str; 20] = [
    "creating",
    "available",
    "deleting",
    "error",
    "error_deleting",
    "attaching",
    "detaching",
    "in-use",
    "maintenance",
    "reserved",
    "awaiting-transfer",
    "backing-up",
    "restoring-backup",
    "error_backing-up",
    "error_restoring",
    "error_extending",
    "error_managing",
    "extending",
    "retyping",
    "uploading",
];
/// The same of attachments.
pub(crate) const ATTACH_STATES: [&str; 6] =
    ["attached", "detached", "attaching", "detaching", "reserved", "deleted"];
/// The same of snapshots.
pub(crate) const SNAPSHOT_STATES: [&str; 5] =
    ["creating", "available", "deleting", "error", "error_deleting"];
/// The same of backups.
pub(crate) const BACKUP_STATES: [&str; 2] = ["available", "error"];

#[cfg(test)]
mod tests {
    use super::*;

    const DEEDS: [Deed; 21] = [
        Deed::Create,
        Deed::Delete,
        Deed::Extend,
        Deed::Revert,
        Deed::Retype,
        Deed::Migrate,
        Deed::Reserve,
        Deed::Attach,
        Deed::BeginDetaching,
        Deed::Detach,
        Deed::Transfer,
        Deed::Backup,
        Deed::Upload,
        Deed::Restore,
        Deed::Snapshot,
        Deed::CreateSnapshot,
        Deed::DeleteSnapshot,
        Deed::CreateBackup,
        Deed::DeleteBackup,
        Deed::Manage,
        Deed::ManageSnapshot,
    ];

    #[test]
    fn each_deed_has_one_row() {
        for deed in DEEDS {
            assert_eq!(RULES.iter().filter(|rule| rule.deed == deed).count(), 1, "{deed:?}");
            assert_eq!(rule_of(deed).deed, deed);
        }
    }

    #[test]
    fn nothing_begins_while_something_is_under_way() {
        for rule in &RULES {
            for other in &RULES {
                let under_way = !matches!(other.during, SAME) && other.done != other.during;
                let takes_over = matches!(rule.deed, Deed::Attach | Deed::Detach);
                assert!(!(under_way && rule.begins_in(other.during)) || takes_over, "{rule:?} in {other:?}");
            }
        }
    }
}
