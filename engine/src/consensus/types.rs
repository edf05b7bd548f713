//! What a group of rows is asked and what it answers.

use crate::catalog::{self, BadValue, Belongs, GivenValue, GroupId, PartValue};
use crate::index::Range;
use crate::net::NodeId;

/// One change: the row's key within the group, its value or that there is none, and its version time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowChange {
    /// Its key, without the group's prefix.
    pub key: Vec<u8>,
    /// Its version time: greater than any that this key has had.
    pub sequence: u64,
    /// `None`: the row goes.
    pub value: Option<Vec<u8>>,
}

/// What a row must be for an entry to be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// No such row stands.
    Absent,
    /// It stands with this version time.
    Sequence(u64),
}

/// A range of a container's lines that a group gave to another, which took it over where it lay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The container.
    pub id: u64,
    /// The first name.
    pub from: String,
    /// The name behind the last; `None`: to the container's end.
    pub to: Option<String>,
    /// Who has it.
    pub group: GroupId,
    /// Whose container it is.
    pub of: Belongs,
    /// It was taken back: what the other one made of its lines is not above this version time, and is gone.
    pub back: Option<u64>,
}

/// What a group has of a container, of which it took a range over from another group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The container.
    pub id: u64,
    /// Version time of the row that says so.
    pub sequence: u64,
    /// What it says.
    pub value: PartValue,
}

impl Given {
    /// Keys of its lines.
    pub(crate) fn lines(&self) -> Range {
        catalog::lines(self.id, &self.from, self.to.as_deref())
    }

    /// Whether a row is one of its lines.
    pub(crate) fn has(&self, key: &[u8]) -> bool {
        let within = |name: &[u8]| {
            name >= self.from.as_bytes() && self.to.as_ref().is_none_or(|to| name < to.as_bytes())
        };
        catalog::line_name(self.id, key).is_some_and(within)
    }

    /// What the row of a range says.
    pub(crate) fn of_row(key: &[u8], value: &[u8]) -> Result<Self, BadValue> {
        let (id, from) = catalog::parse_given(key)?;
        let GivenValue { to, group, of, back, .. } = GivenValue::decode(value)?;
        Ok(Self { id, from: from.to_owned(), to, group, of, back })
    }
}

/// A condition on a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// Its key, without the group's prefix.
    pub key: Vec<u8>,
    /// What is expected.
    pub expected: Expected,
}

/// A proposal: all of it happens, or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    /// The term in which it was decided; in any other it is [`Outcome::Fenced`]. `None`: in any.
    pub term: Option<u64>,
    /// All must hold.
    pub guards: Vec<Guard>,
    /// At most [`super::limits::MAX_ENTRY_ROWS`].
    pub rows: Vec<RowChange>,
}

/// A guard that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// Its position in the entry.
    pub guard: usize,
    /// The version time of the row that stands there.
    pub stands: Option<u64>,
}

/// What became of an entry. Every voter of the group comes to the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Its rows stand.
    Applied,
    /// Nothing happened: these guards did not hold.
    Refused(Vec<Failed>),
    /// Nothing happened: the row at this position has a version time that is not greater than what stands under its key, or
    /// than what stood anywhere in the group when the term began.
    Stale {
        /// Position in the entry.
        row: usize,
        /// The version time that it must be greater than.
        above: u64,
    },
    /// Nothing happened: it belongs to another term.
    Fenced {
        /// The term in which it came.
        term: u64,
    },
    /// Nothing happened: a row or guard is about a line that another group has taken over.
    Moved(GroupId),
    /// It was applied before a crash; what came of it is not known any more. Nobody who proposed it is told this.
    Repeated,
}

/// Why a group did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// Another node leads, or nobody that is known here. Nothing was done.
    #[error("this node does not lead the group")]
    NotLeader(Option<NodeId>),
    /// The entry breaks a limit.
    #[error("entry is over the limit of {0}")]
    Limit(&'static str),
    /// The disk has no room for new rows. Nothing was done.
    #[error("disk is full")]
    NoSpace,
    /// What was asked cannot be done now.
    #[error("group is unavailable: {0}")]
    Unavailable(String),
    /// Asked of the members, what cannot be.
    #[error("change of members is refused: {0}")]
    Members(String),
    /// Another group has taken the line over.
    #[error("group {0} has taken the line over")]
    Moved(GroupId),
    /// What is on the disk is not a group that can be believed: this voter must be replaced.
    #[error("group {group} on this disk is damaged: {what}")]
    Damaged {
        /// Which.
        group: GroupId,
        /// How.
        what: String,
    },
}
