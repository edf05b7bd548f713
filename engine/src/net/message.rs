//! What nodes say to one another: two closed enums.
//!
//! Invariant: a request names the device that it is for, and a device answers it as it answers a local caller.
//! Invariant: an error travels as a code with a text for people; no code is decided by its text.

mod consensus;
mod volume;

use bytes::Bytes;
use quarry_ring::PathHash;

pub use consensus::{Ballot, ConsensusAnswer, ConsensusCall, Position};
pub use volume::{BlockWrite, ListedVolume, TurnFields, VolumeAnswer, VolumeCall};

use super::NodeId;
use super::limits::MAX_TEXT;
use crate::block::{Fence, VolumeId};
use crate::catalog::{DataId, GroupId, Version};
use crate::disk::format::record::DeviceId;
use crate::disk::{Class, Durability};
use crate::object::names::{NamesAnswer, NamesRequest};
use crate::object::{Draft, Error};
use crate::sync::{Answer, Ask};

/// An object that a node holds open for another. Good for the incarnation of the node that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle {
    /// Drawn anew at every start of the node.
    pub incarnation: u64,
    /// Counted up.
    pub number: u64,
}

/// A call.
#[derive(Debug, Clone)]
pub enum Request {
    /// Are you there? The bytes come back.
    Ping {
        /// Anything, up to [`super::limits::MAX_PAYLOAD`].
        payload: Bytes,
    },
    /// Append a group, all or nothing ([`crate::object::Replica::append`]).
    Append {
        /// Where.
        device: DeviceId,
        /// The group.
        group: Vec<Draft>,
        /// When to answer.
        durability: Durability,
        /// Whose write it is: [`Class::Client`] or [`Class::Delete`].
        class: Class,
    },
    /// Give up an upload ([`crate::object::Replica::abandon`]).
    Abandon {
        /// Where.
        device: DeviceId,
        /// Which.
        upload: DataId,
        /// Version time of giving up.
        sequence: u64,
    },
    /// The newest version of an object ([`crate::object::Replica::version`]).
    Version {
        /// Where.
        device: DeviceId,
        /// Which.
        hash: PathHash,
    },
    /// Open the newest version of an object and hold it ([`crate::object::Replica::open`]).
    Open {
        /// Where.
        device: DeviceId,
        /// Which.
        hash: PathHash,
    },
    /// A chunk of an opened object; makes the handle's lease anew.
    Read {
        /// Where.
        device: DeviceId,
        /// From [`Response::Opened`].
        handle: Handle,
        /// Its position in the object.
        chunk: u32,
    },
    /// Let go of an opened object.
    Close {
        /// Where.
        device: DeviceId,
        /// From [`Response::Opened`].
        handle: Handle,
    },
    /// A node says where it is and which disks it has.
    Announce(Announcement),
    /// What an operator wants of a disk or a node.
    Wish(Wish),
    /// To a voter of a group of rows, or to one that will be (`engine/src/consensus`).
    Consensus {
        /// Which group.
        group: GroupId,
        /// What.
        call: ConsensusCall,
    },
    /// For the leader of an index group ([`crate::object::names::NamesService`]).
    Names(NamesRequest),
    /// What a device holds ([`crate::object::Replica::ask`]).
    Sync {
        /// Which.
        device: DeviceId,
        /// What of it.
        ask: Ask,
    },
    /// To a member of a volume.
    Volume {
        /// Where it is.
        device: DeviceId,
        /// Whose.
        volume: VolumeId,
        /// Under which the head acts.
        fence: Fence,
        /// Which life of the member is meant; 0: none yet.
        session: u64,
        /// What.
        call: VolumeCall,
    },
}

/// What an operator wants, or a node on behalf of its users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// Of a disk: 0, to hold its share; 1, to be emptied; 2, to be out.
    Device {
        /// Which.
        device: DeviceId,
        /// What.
        wanted: u8,
    },
    /// Of a node: to be emptied with all its disks and to vote no more, or to stay.
    Node {
        /// Which.
        node: NodeId,
        /// To leave.
        leaving: bool,
    },
    /// Of a row of the control group that is not about nodes and disks: the node that leads judges whether it may be written.
    Row {
        /// Which, at most [`crate::disk::limits::MAX_KEY`] bytes.
        key: Vec<u8>,
        /// What it shall be, at most [`crate::disk::limits::MAX_META`] bytes; `None`: not there.
        value: Option<Vec<u8>>,
        /// Only if there is none.
        fresh: bool,
    },
    /// Of rows of volumes: that they become these, if all that is named stands as said. They begin with `V`.
    Volumes {
        /// Keys, each with the version time with which it stands; `None`: it does not.
        guards: Vec<(Vec<u8>, Option<u64>)>,
        /// What they shall be; `None`: not there. At most [`super::limits::MAX_VOLUME_ROWS`].
        rows: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    },
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// Which node; `None`: the one that sends it.
    pub node: Option<NodeId>,
    /// Where others reach it: IP address and port, at most [`MAX_TEXT`] bytes.
    pub address: String,
    /// Its disks, their bytes and their zone; at most [`super::limits::MAX_DISKS`].
    pub devices: Vec<(DeviceId, u64, u16)>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// To a ping: its bytes.
    Pong {
        /// As they came.
        payload: Bytes,
    },
    /// Done as asked.
    Done,
    /// The newest version or tombstone, if there is one.
    Version(Option<Version>),
    /// The opened object; `None` when there is none or it is deleted.
    Opened(Option<OpenedObject>),
    /// A record's bytes as they lie in the log, checksums included; the receiver verifies them.
    Record(Bytes),
    /// Not done.
    Failed(Failure),
    /// Of a voter.
    Consensus(ConsensusAnswer),
    /// The leader's.
    Names(NamesAnswer),
    /// What the device holds.
    Sync(Answer),
    /// Of a member of a volume.
    Volume(VolumeAnswer),
}

/// An opened object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedObject {
    /// For reading its chunks; `None` when it has none.
    pub handle: Option<Handle>,
    /// How many.
    pub chunks: u32,
    /// Its record as it lies in the log.
    pub record: Bytes,
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// For programs.
    pub code: Code,
    /// For people; at most [`MAX_TEXT`] bytes.
    pub text: String,
}

/// What kind of failure. Numbers are for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    /// [`Error::Unavailable`].
    Unavailable = 1,
    /// [`Error::NoSpace`].
    NoSpace = 2,
    /// [`Error::Corrupt`].
    Corrupt = 3,
    /// [`Error::Refused`].
    Refused = 4,
    /// [`Error::NoAccount`].
    NoAccount = 5,
    /// [`Error::NoContainer`].
    NoContainer = 6,
    /// [`Error::NoObject`].
    NoObject = 7,
    /// [`Error::ConditionFailed`].
    ConditionFailed = 8,
    /// [`Error::EtagMismatch`]; the text is the actual one.
    EtagMismatch = 9,
    /// [`Error::Superseded`].
    Superseded = 10,
    /// [`Error::GrantLost`].
    GrantLost = 11,
    /// The same, and nothing came of it as far as the leader knows.
    GrantUnused = 12,
    /// The device is not at this node.
    NoDevice = 32,
    /// The handle is not, or no longer, held. Open anew.
    Expired = 33,
    /// Too many objects are held open.
    Busy = 34,
    /// The request breaks a rule of the protocol.
    BadRequest = 35,
    /// The node does not serve such requests.
    NotServed = 36,
}

impl Code {
    /// Every code.
    pub const ALL: [Self; 17] = [
        Self::Unavailable,
        Self::NoSpace,
        Self::Corrupt,
        Self::Refused,
        Self::NoAccount,
        Self::NoContainer,
        Self::NoObject,
        Self::ConditionFailed,
        Self::EtagMismatch,
        Self::Superseded,
        Self::GrantLost,
        Self::GrantUnused,
        Self::NoDevice,
        Self::Expired,
        Self::Busy,
        Self::BadRequest,
        Self::NotServed,
    ];

    /// The code of a number.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|code| *code as u8 == number)
    }
}

impl Failure {
    /// With a text that is cut to the limit.
    #[must_use]
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        let mut text = text.into();
        let end = (0..=MAX_TEXT.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        Self { code, text }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let text = |code, text: String| Self::new(code, text);
        match error {
            Error::Unavailable { reason } => text(Code::Unavailable, reason),
            Error::Elsewhere(where_to) => text(Code::Unavailable, where_to.to_string()),
            Error::NoSpace => text(Code::NoSpace, String::new()),
            Error::Corrupt { what } => text(Code::Corrupt, what),
            Error::Refused(why) => text(Code::Refused, why),
            Error::NoAccount => text(Code::NoAccount, String::new()),
            Error::NoContainer => text(Code::NoContainer, String::new()),
            Error::NoObject => text(Code::NoObject, String::new()),
            Error::ConditionFailed => text(Code::ConditionFailed, String::new()),
            Error::EtagMismatch { actual } => text(Code::EtagMismatch, actual),
            Error::Superseded => text(Code::Superseded, String::new()),
            Error::GrantLost { unused: false } => text(Code::GrantLost, String::new()),
            Error::GrantLost { unused: true } => text(Code::GrantUnused, String::new()),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let Failure { code, text } = failure;
        match code {
            Code::Unavailable => Self::Unavailable { reason: text },
            Code::NoSpace => Self::NoSpace,
            Code::Corrupt => Self::Corrupt { what: text },
            Code::Refused => Self::Refused(text),
            Code::NoAccount => Self::NoAccount,
            Code::NoContainer => Self::NoContainer,
            Code::NoObject => Self::NoObject,
            Code::ConditionFailed => Self::ConditionFailed,
            Code::EtagMismatch => Self::EtagMismatch { actual: text },
            Code::Superseded => Self::Superseded,
            Code::GrantLost => Self::GrantLost { unused: false },
            Code::GrantUnused => Self::GrantLost { unused: true },
            Code::NoDevice | Code::Expired | Code::Busy | Code::BadRequest | Code::NotServed => {
                Self::Unavailable { reason: text }
            }
        }
    }
}
