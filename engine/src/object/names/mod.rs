//! The names seam: accounts, containers and listings as the object layer asks for them, wherever they are decided.
//!
//! A change of an object has three steps: [`Names::begin`] gives the right to decide about its name and a version time, the
//! devices get the version, [`Names::settle`] makes its line in the listing. What was settled was acknowledged; a version
//! on a device that is newer than its line was not.
//!
//! Invariant: version times that are granted for one name only grow, also when another node decides.
//! Invariant: asking twice changes nothing twice: every request bears being repeated.

mod back;
#[cfg(test)]
mod back_tests;
mod decider;
mod divided;
mod edits;
mod grown;
#[cfg(test)]
mod late_tests;
mod leases;
mod parts;
mod remote;
mod routes;
mod seats;
mod service;
#[cfg(test)]
mod split_tests;
#[cfg(test)]
mod tests;
mod together;

pub use back::returnable;
pub(crate) use decider::Decider;
pub use divided::{Divided, group_of};
pub use grown::Grown;
pub use leases::GRANT_TIME;
pub use parts::{Child, Elsewhere, Holding};
pub use remote::{Directory, Routed};
pub use seats::Seats;
pub use service::{AskedFor, NamesAnswer, NamesRequest, NamesService};
pub use together::Asks;
pub(crate) use together::MAX_TOGETHER;

use super::group::IndexGroup;
use super::locks::Permit;
use super::replica::{BoxFuture, Draft};
use super::{
    Account, Container, ContainerRow, Deleted, Entry, Headers, IndexPolicy, Listing, Made, ObjectPath,
    ObjectRow, Result, row_draft,
};
use crate::catalog::{ListingValue, PathHash, listing_key};
use crate::clock::Timestamp;
use crate::disk::Class;
use crate::disk::format::record::DeviceId;

/// Where names are decided.
pub trait Names: Send + Sync {
    /// Asks for rows, or for a change of rows alone.
    fn ask(&self, ask: Ask) -> BoxFuture<'static, Result<Answer>>;
    /// What rows of this node say, which may be old: a hint, where nobody decides.
    fn remembered(&self, ask: Ask) -> Option<Answer> {
        let _ = ask;
        None
    }
    /// The right to decide about an object's name. `given`: the version time that a trusted caller wants.
    fn begin(&self, path: ObjectPath, given: Option<Timestamp>) -> BoxFuture<'static, Result<Grant>>;
    /// Makes the line of a granted name what it is now; returns when it is durable and every later call sees it.
    fn settle(&self, grant: Grant, line: NewLine, class: Class) -> BoxFuture<'static, Result<()>>;
    /// Whether lines say what was acknowledged: then a read compares what it finds on a device with the line. Not so where
    /// one disk holds both.
    fn lines_count(&self) -> bool;
    /// Whether this node decides, so that it is the one to do what need be done once.
    fn here(&self) -> bool;
    /// The index group of an account, where there are several.
    fn group_of(&self, account: &str) -> u32 {
        let _ = account;
        0
    }
}

/// A container that stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Names its listing: the time of its creation.
    pub id: u64,
    /// Its storage policy.
    pub policy: u16,
    /// What holds while its group has no leader.
    pub index: IndexPolicy,
}

/// An object's place in a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Line {
    /// Its container, if that stands.
    pub container: Option<Standing>,
    /// Version time of the object that its line tells of, if it has one.
    pub at: Option<Timestamp>,
    /// Key of its body, where each body has a key of its own.
    pub key: Option<PathHash>,
}

/// What a line shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLine {
    /// The listing.
    pub container: u64,
    /// Version time of the object's change.
    pub at: Timestamp,
    /// The line ([`crate::catalog::ListingValue`]); `None`: there is none any more.
    pub value: Option<Vec<u8>>,
    /// The change was decided on what stood before: when somebody else decided meanwhile, it must not count.
    pub conditional: bool,
}

/// The right to decide about an object's name. Dropped, it passes on.
#[must_use]
pub struct Grant {
    /// Whose name.
    pub path: ObjectPath,
    /// What stands.
    pub line: Line,
    /// The version time of the change: greater than that of every earlier one of this name.
    pub at: Timestamp,
    /// The index group that gave it; 0 where there is but one.
    pub(crate) group: u32,
    pub(crate) hold: Hold,
}

impl std::fmt::Debug for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grant")
            .field("path", &self.path)
            .field("line", &self.line)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

/// What keeps others from deciding.
pub(crate) enum Hold {
    /// A lock of this node.
    Own {
        permit: Permit,
        /// Version time of the row.
        row: Timestamp,
        /// A record for this device may carry the line in its group.
        home: Option<DeviceId>,
    },
    /// A lease at the leader.
    Leased(remote::Lease),
    /// Nobody is kept from anything: the group is away, and the devices put changes in order.
    Alone,
}

impl Grant {
    /// The device in whose log the line may ride with the object's record.
    pub(crate) fn home(&self) -> Option<DeviceId> {
        match &self.hold {
            Hold::Own { home, .. } => *home,
            Hold::Leased(_) | Hold::Alone => None,
        }
    }
}

/// A question about rows, or a change of rows alone. `expect` is the version time of what the caller saw, `None` for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// [`Answer::Account`].
    Account {
        /// Its name.
        account: String,
    },
    /// [`Answer::Container`].
    Container {
        /// Its account.
        account: String,
        /// Its name.
        container: String,
    },
    /// [`Answer::Line`], of an object or (with an empty object name) of a container alone.
    Line {
        /// Which.
        path: ObjectPath,
    },
    /// Create or change; [`Answer::Put`].
    PutAccount {
        /// Its name.
        account: String,
        /// All its stored headers from now on.
        headers: Headers,
        /// What the caller saw.
        expect: Option<Timestamp>,
    },
    /// Mark it deleted, if it is still the one that was meant; [`Answer::Deleted`].
    MarkAccount {
        /// Its name.
        account: String,
        /// When it was made.
        created: Timestamp,
    },
    /// Remove the mark if nothing is left under it; [`Answer::Deleted`].
    RemoveMarked {
        /// Its name.
        account: String,
    },
    /// Accounts marked deleted; [`Answer::Accounts`].
    MarkedAccounts {
        /// Only names after this.
        marker: String,
        /// At most so many.
        limit: u32,
    },
    /// Create or change; [`Answer::Put`].
    PutContainer {
        /// Its account.
        account: String,
        /// Its name.
        container: String,
        /// Its policy, if it is created.
        policy: u16,
        /// All its stored headers from now on.
        headers: Headers,
        /// What the caller saw.
        expect: Option<Timestamp>,
        /// A PUT shows as the time of change in listings, a POST does not.
        post: bool,
        /// What shall hold while the group has no leader; `None`: as it is.
        index: Option<IndexPolicy>,
    },
    /// Remove it if it is empty and still the one that was meant; [`Answer::Deleted`].
    DeleteContainer {
        /// Its account.
        account: String,
        /// Its name.
        container: String,
        /// When it was made.
        created: Timestamp,
    },
    /// Account names; [`Answer::Accounts`].
    Accounts {
        /// Only names after this.
        marker: String,
        /// At most so many.
        limit: u32,
    },
    /// Containers of an account; [`Answer::Containers`].
    Containers {
        /// Its name.
        account: String,
        /// Which of them.
        listing: Listing,
        /// Also when it is marked deleted.
        marked: bool,
    },
    /// Objects of a container; [`Answer::Objects`].
    Objects {
        /// Its account.
        account: String,
        /// Its name.
        container: String,
        /// Which of them.
        listing: Listing,
    },
    /// What a group has of a container; [`Answer::Holding`].
    Holding {
        /// Its account.
        account: String,
        /// Its name.
        container: String,
    },
    /// A container that is in several groups is about to go: nothing comes in. First asked of its account's group, without a
    /// time, which gives the attempt one, and then with that of the others; [`Answer::Holding`].
    Shut {
        /// Its account.
        account: String,
        /// Its name.
        container: String,
        /// The attempt.
        at: Option<Timestamp>,
    },
    /// The attempt is over: in the account's group first, so that it cannot end well any more; [`Answer::Holding`].
    Open {
        /// Its account.
        account: String,
        /// Its name.
        container: String,
        /// The attempt.
        at: Timestamp,
    },
    /// Remove a container whose other groups are shut and have nothing of it; [`Answer::Deleted`].
    DeleteShut {
        /// Its account.
        account: String,
        /// Its name.
        container: String,
        /// The attempt.
        at: Timestamp,
    },
}

impl Ask {
    /// Whose names are asked for; `None` for all accounts.
    #[must_use]
    pub fn account(&self) -> Option<&str> {
        match self {
            Self::Account { account }
            | Self::Container { account, .. }
            | Self::PutAccount { account, .. }
            | Self::MarkAccount { account, .. }
            | Self::RemoveMarked { account }
            | Self::PutContainer { account, .. }
            | Self::DeleteContainer { account, .. }
            | Self::Containers { account, .. }
            | Self::Objects { account, .. }
            | Self::Holding { account, .. }
            | Self::Shut { account, .. }
            | Self::Open { account, .. }
            | Self::DeleteShut { account, .. } => Some(account),
            Self::Line { path } => Some(&path.account),
            Self::MarkedAccounts { .. } | Self::Accounts { .. } => None,
        }
    }
}

/// An answer to an [`Ask`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// An account, if there is one.
    Account(Option<Account>),
    /// A container, if it stands.
    Container(Option<Container>),
    /// An object's place.
    Line(Line),
    /// What became of a PUT.
    Put(Put),
    /// What became of a DELETE.
    Deleted(Deleted),
    /// Names of accounts.
    Accounts(Vec<String>),
    /// A page of containers.
    Containers(Page<ContainerRow>),
    /// A page of objects.
    Objects(Page<ObjectRow>),
    /// What a group has of a container.
    Holding(Holding),
    /// What this group says, and the groups that have more of it.
    Split {
        /// Of this group alone.
        answer: Box<Answer>,
        /// Who has more.
        children: Vec<Child>,
    },
}

/// What became of a change of headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It stands.
    Done(Made),
    /// What the caller saw is no longer so: look again.
    Changed,
}

/// A part of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<R> {
    /// In the order that was asked for.
    pub entries: Vec<Entry<R>>,
    /// Cut short by its size: more is there, behind the last entry.
    pub cut: bool,
}

/// The names of a store over the disks of one machine.
pub(crate) fn alone(decider: Decider) -> std::sync::Arc<dyn Names> {
    std::sync::Arc::new(decider)
}

/// Whether a group's rows are decided here.
pub(crate) fn leads(group: &dyn IndexGroup) -> bool {
    matches!(group.leader(), super::group::Leader::Own)
}

impl NewLine {
    /// Its record. Rows of a group ascend in time, so a line that is made later than its object has a time of its own.
    pub(crate) fn row(&self, path: &ObjectPath, sequence: Timestamp) -> Result<Draft> {
        let value = match &self.value {
            Some(value) if sequence != self.at => {
                let value = ListingValue { version: Some(self.at.0), ..ListingValue::decode(value)? };
                Some(value.encode())
            }
            value => value.clone(),
        };
        Ok(row_draft(listing_key(self.container, &path.object), value, sequence))
    }
}
