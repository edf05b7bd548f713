//! What a store must do, as a pure function: one small universe of names, one state, one step per operation.
//!
//! Invariant: a step knows nothing of disks, crashes or time but the range of seconds in which it may have happened.
//! Invariant: `0` is no operation: a cell that holds it is empty.

use quarry_engine::object::{Condition, EtagMatch, Listing};

/// Number of an operation; names what it wrote.
pub type OpId = u32;

/// Accounts of the universe.
pub const ACCOUNTS: usize = 2;
/// Containers of each account.
pub const CONTAINERS: usize = 2;
/// Objects of each container.
pub const OBJECTS: usize = NAMES.len();
/// All containers.
pub const ALL_CONTAINERS: usize = ACCOUNTS * CONTAINERS;
/// Object names, in the order of their bytes.
pub const NAMES: [&str; 8] = ["a", "a/1", "a/2", "a/b/3", "b", "c \u{1}%", "z", "\u{e9}\u{10ffff}"];

/// Name of an account.
#[must_use]
pub fn account_name(a: usize) -> String {
    format!("AUTH_{a}")
}

/// The account of a container.
#[must_use]
pub const fn account_of(c: usize) -> usize {
    c / CONTAINERS
}

/// Name of a container within its account.
#[must_use]
pub fn container_name(c: usize) -> String {
    format!("c{}", c % CONTAINERS)
}

/// An object: whose bytes, and whose headers, content type and expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Cell {
    /// The PUT whose bytes it holds.
    pub data: OpId,
    /// The PUT or POST that wrote the rest.
    pub meta: OpId,
}

/// The whole universe.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct State {
    accounts: [bool; ACCOUNTS],
    containers: [OpId; ALL_CONTAINERS],
    objects: [[Cell; OBJECTS]; ALL_CONTAINERS],
}

/// What is known of what an operation wrote.
#[derive(Debug, Clone, Default)]
pub struct Fact {
    /// Bytes of its body.
    pub size: u64,
    /// Lower-case hex MD5 of its body.
    pub etag: String,
    /// Unix seconds at which it expires.
    pub delete_at: Option<u64>,
}

/// What every operation wrote, by its number.
pub type Book = Vec<Fact>;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "a, c and o are the numbers of an account, a container and an object throughout"
)]
pub enum Op {
    /// Create a container or change its headers.
    PutContainer { c: usize },
    /// Change its headers.
    PostContainer { c: usize },
    /// Remove it when empty.
    DeleteContainer { c: usize },
    /// Its headers and totals.
    HeadContainer { c: usize },
    /// Its objects.
    List { c: usize, listing: Listing },
    /// Totals of an account.
    HeadAccount { a: usize },
    /// Its containers and their totals.
    ListContainers { a: usize },
    /// Mark an account deleted; the reaper removes what is in it. In clusters alone: in a store's histories there is no reaper.
    DeleteAccount { a: usize },
    /// Store an object. `wrong_md5`: with an announced MD5 that is not the body's.
    Put { c: usize, o: usize, condition: Condition, wrong_md5: bool },
    /// Replace an object's headers.
    Post { c: usize, o: usize },
    /// Remove an object.
    Delete { c: usize, o: usize, condition: Condition },
    /// Read an object, whole or in part.
    Get { c: usize, o: usize },
}

/// A line of a listing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the words of a listing")]
pub enum Line {
    /// An object.
    Row { name: String, size: u64, etag: String, meta: OpId },
    /// Names rolled up.
    Subdir(String),
}

/// What a client was told.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// A PUT of a container: whether it was new.
    Made(bool),
    /// It is done.
    Done,
    /// It was there and is gone.
    Gone,
    /// It was not there.
    Absent,
    /// A container with objects in it stays.
    NotEmpty,
    /// Refused: no such account.
    NoAccount,
    /// Refused: no such container.
    NoContainer,
    /// Refused: no such object.
    NoObject,
    /// Refused: the condition does not hold.
    ConditionFailed,
    /// Refused: the body is not the announced one.
    EtagMismatch,
    /// An object, or nothing.
    Version(Option<Cell>),
    /// Header writer, objects and bytes of a container, or nothing.
    Container(Option<(OpId, u64, u64)>),
    /// Containers, objects and bytes of an account, or nothing.
    Account(Option<(u64, u64, u64)>),
    /// A listing of objects.
    Lines(Vec<Line>),
    /// A listing of containers: name, objects, bytes.
    Containers(Vec<(String, u64, u64)>),
}

/// The seconds in which an operation may have been decided.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// Earliest the wall clock showed.
    pub low: u64,
    /// Latest.
    pub high: u64,
}

/// What an operation touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Account(usize),
    Container(usize),
    Object(usize, usize),
}

impl Op {
    fn scope(&self) -> Scope {
        match *self {
            Self::HeadAccount { a } | Self::ListContainers { a } | Self::DeleteAccount { a } => {
                Scope::Account(a)
            }
            Self::PutContainer { c }
            | Self::PostContainer { c }
            | Self::DeleteContainer { c }
            | Self::HeadContainer { c }
            | Self::List { c, .. } => Scope::Container(c),
            Self::Put { c, o, .. } | Self::Post { c, o } | Self::Delete { c, o, .. } | Self::Get { c, o } => {
                Scope::Object(c, o)
            }
        }
    }

    /// Whether the order of the two can be told from what they say or leave behind.
    #[must_use]
    pub fn conflicts(&self, other: &Self) -> bool {
        use Scope::{Account, Container, Object};
        match (self.scope(), other.scope()) {
            (Object(c, o), Object(d, p)) => c == d && o == p,
            (Container(c) | Object(c, _), Container(d)) | (Container(c), Object(d, _)) => c == d,
            (Account(a), Account(b)) => a == b,
            (Account(a), Container(c) | Object(c, _)) | (Container(c) | Object(c, _), Account(a)) => {
                c / CONTAINERS == a
            }
        }
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn reads(&self) -> bool {
        matches!(
            self,
            Self::HeadContainer { .. }
                | Self::List { .. }
                | Self::HeadAccount { .. }
                | Self::ListContainers { .. }
                | Self::Get { .. }
        )
    }
}

impl State {
    /// What stands at a name.
    #[must_use]
    pub fn cell(&self, c: usize, o: usize) -> Cell {
        self.objects[c][o]
    }

    fn totals(&self, c: usize, book: &Book) -> (u64, u64) {
        let standing = self.objects[c].iter().filter(|cell| cell.data != 0);
        standing.fold((0, 0), |(n, sum), cell| (n + 1, sum + book[cell.data as usize].size))
    }

    fn container(&self, c: usize, book: &Book) -> Option<(OpId, u64, u64)> {
        let (objects, bytes) = self.totals(c, book);
        (self.containers[c] != 0).then_some((self.containers[c], objects, bytes))
    }

    fn account(&self, a: usize, book: &Book) -> Option<(u64, u64, u64)> {
        let own = (a * CONTAINERS..(a + 1) * CONTAINERS).filter_map(|c| self.container(c, book));
        let sum = own.fold((0, 0, 0), |(n, o, b), (_, objects, bytes)| (n + 1, o + objects, b + bytes));
        self.accounts[a].then_some(sum)
    }

    fn lines(&self, c: usize, listing: &Listing, book: &Book) -> Vec<Line> {
        let Listing { prefix, delimiter, marker, end_marker, limit, reverse, .. } = listing;
        let (low, high) = if *reverse { (end_marker, marker) } else { (marker, end_marker) };
        let mut lines: Vec<Line> = Vec::new();
        let mut names: Vec<usize> = (0..OBJECTS).collect();
        if *reverse {
            names.reverse();
        }
        for o in names {
            let (name, cell) = (NAMES[o], self.objects[c][o]);
            let inside = (low.is_empty() || name > low.as_str()) && (high.is_empty() || name < high.as_str());
            let Some(rest) = name.strip_prefix(prefix.as_str()).filter(|_| inside && cell.data != 0) else {
                continue;
            };
            let line = match rest.find(delimiter.as_str()).filter(|_| !delimiter.is_empty()) {
                Some(at) => Line::Subdir(format!("{prefix}{}", &rest[..at + delimiter.len()])),
                None => {
                    let Fact { size, etag, .. } = book[cell.data as usize].clone();
                    Line::Row { name: name.to_owned(), size, etag, meta: cell.meta }
                }
            };
            if lines.last() != Some(&line) {
                lines.push(line);
            }
        }
        lines.truncate(*limit);
        lines
    }

    fn with_cell(&self, c: usize, o: usize, cell: Cell) -> Self {
        let mut next = self.clone();
        next.objects[c][o] = cell;
        next
    }

    fn with_container(&self, c: usize, writer: OpId) -> Self {
        let mut next = self.clone();
        next.containers[c] = writer;
        next.accounts[c / CONTAINERS] |= writer != 0;
        next
    }
}

/// Whether a condition may hold and may fail.
fn judge(condition: &Condition, cell: Cell, book: &Book, span: Span) -> [bool; 2] {
    let etag = book[cell.data as usize].etag.as_str();
    let matches = |wanted: &EtagMatch| match wanted {
        EtagMatch::Any => true,
        EtagMatch::OneOf(etags) => etags.iter().any(|known| known == etag),
    };
    let holds = |stands: bool| {
        condition.if_match.as_ref().is_none_or(|wanted| stands && matches(wanted))
            && !condition.if_none_match.as_ref().is_some_and(|wanted| stands && matches(wanted))
    };
    let delete_at = book[cell.meta as usize].delete_at;
    let may_stand = cell.data != 0 && delete_at.is_none_or(|at| at > span.low);
    let may_be_gone = cell.data == 0 || delete_at.is_some_and(|at| at <= span.high);
    [true, false]
        .map(|wanted| (may_stand && holds(true) == wanted) || (may_be_gone && holds(false) == wanted))
}

/// Everything that `op` may say and leave behind when it happens in `state`.
#[must_use]
pub fn step(id: OpId, op: &Op, state: &State, book: &Book, span: Span) -> Vec<(Outcome, State)> {
    let stay = |outcome| vec![(outcome, state.clone())];
    match op {
        Op::PutContainer { c } => {
            vec![(Outcome::Made(state.containers[*c] == 0), state.with_container(*c, id))]
        }
        Op::PostContainer { c } if state.containers[*c] == 0 => stay(Outcome::NoContainer),
        Op::PostContainer { c } => vec![(Outcome::Done, state.with_container(*c, id))],
        Op::DeleteContainer { c } if state.containers[*c] == 0 => stay(Outcome::Absent),
        Op::DeleteContainer { c } if state.totals(*c, book).0 > 0 => stay(Outcome::NotEmpty),
        Op::DeleteContainer { c } => vec![(Outcome::Gone, state.with_container(*c, 0))],
        Op::HeadContainer { c } => stay(Outcome::Container(state.container(*c, book))),
        Op::List { c, .. } if state.containers[*c] == 0 => stay(Outcome::NoContainer),
        Op::List { c, listing } => stay(Outcome::Lines(state.lines(*c, listing, book))),
        Op::HeadAccount { a } => stay(Outcome::Account(state.account(*a, book))),
        Op::ListContainers { a } if !state.accounts[*a] => stay(Outcome::NoAccount),
        Op::ListContainers { a } => {
            let own = a * CONTAINERS..(a + 1) * CONTAINERS;
            let row = |c| state.container(c, book).map(|(_, n, bytes)| (container_name(c), n, bytes));
            stay(Outcome::Containers(own.filter_map(row).collect()))
        }
        Op::DeleteAccount { .. } => Vec::new(),
        Op::Put { c, o, condition, wrong_md5 } => {
            let mut all = Vec::new();
            if *wrong_md5 {
                all.extend(stay(Outcome::EtagMismatch));
            }
            if state.containers[*c] == 0 {
                all.extend(stay(Outcome::NoContainer));
            } else if !wrong_md5 {
                let [may_hold, may_fail] = judge(condition, state.cell(*c, *o), book, span);
                if may_hold {
                    all.push((Outcome::Done, state.with_cell(*c, *o, Cell { data: id, meta: id })));
                }
                if may_fail {
                    all.extend(stay(Outcome::ConditionFailed));
                }
            }
            all
        }
        Op::Post { c, o } if state.cell(*c, *o).data == 0 => stay(Outcome::NoObject),
        Op::Post { c, o } => {
            let cell = Cell { meta: id, ..state.cell(*c, *o) };
            vec![(Outcome::Done, state.with_cell(*c, *o, cell))]
        }
        Op::Delete { c, o, condition } => {
            let cell = state.cell(*c, *o);
            let [may_hold, may_fail] = judge(condition, cell, book, span);
            let mut all = Vec::new();
            if may_hold && cell.data != 0 {
                all.push((Outcome::Gone, state.with_cell(*c, *o, Cell::default())));
            } else if may_hold {
                all.extend(stay(Outcome::Absent));
            }
            if may_fail {
                all.extend(stay(Outcome::ConditionFailed));
            }
            all
        }
        Op::Get { c, o } => {
            let cell = state.cell(*c, *o);
            stay(Outcome::Version((cell.data != 0).then_some(cell)))
        }
    }
}
