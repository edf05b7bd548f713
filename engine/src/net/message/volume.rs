//! What the head of a volume and its members say to one another.
//!
//! The engine carries it; what it means is decided in the crate `volume`.

use bytes::Bytes;

use crate::block::{BlockPlace, Position, Run, VolumeId};

/// A run of blocks and the write that it is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockWrite {
    /// Its place in the order.
    pub position: Position,
    /// Which blocks.
    pub run: Run,
    /// The era to which it belongs: snapshots of earlier ones do not see it.
    pub era: u32,
    /// Zeroes that take no space; else its bytes are among those of the message, in order.
    pub zeroes: bool,
}

/// A volume with one member, or a snapshot of the volume before it in a list, as its node tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedVolume {
    /// Whose.
    pub volume: VolumeId,
    /// It is a snapshot.
    pub snapshot: bool,
    /// At most [`crate::net::limits::MAX_TEXT`] bytes.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// At rest.
    pub encrypted: bool,
    /// Clients are connected to it.
    pub used: bool,
}

/// Where an epoch's head began: its number, and the sequence on which it builds.
pub type TurnFields = (u64, u64);

/// A call to a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeCall {
    /// Refuse lower fences for good, and say what you have.
    Promise,
    /// You hold the beginning of this history: continue it.
    Begin {
        /// Who wrote it, oldest first, at most [`crate::net::limits::MAX_TURNS`].
        turns: Vec<TurnFields>,
        /// Its last sequence.
        end: u64,
    },
    /// You are not whole from now on; what you have from above `common` is void.
    Fill {
        /// Up to here you have what the others have.
        common: u64,
        /// The write before the next.
        after: u64,
    },
    /// You were sent everything: you are whole, with this history.
    Join {
        /// Who wrote it, oldest first, at most [`crate::net::limits::MAX_TURNS`].
        turns: Vec<TurnFields>,
        /// Its last sequence.
        end: u64,
    },
    /// Writes in the order, each one the next; at most [`crate::net::limits::MAX_WRITES`].
    Write {
        /// What and where.
        writes: Vec<BlockWrite>,
        /// The bytes of all of them.
        data: Bytes,
        /// Answered when they, and all before them, are durable, as [`VolumeCall::Flush`].
        flush: bool,
    },
    /// Rows of another member, to one that is being filled; at most [`crate::net::limits::MAX_WRITES`].
    Put {
        /// What and where.
        rows: Vec<BlockWrite>,
        /// The bytes of all of them.
        data: Bytes,
    },
    /// Make all up to this sequence durable.
    Flush(u64),
    /// Say that you are promised to nobody else.
    Confirm,
    /// Read a run, as of this sequence or later.
    Read {
        /// Which blocks.
        run: Run,
        /// The write that must be there.
        at: u64,
        /// The last era that is seen.
        era: u32,
    },
    /// Rows from a place on, in the order of their places.
    Rows {
        /// Where to begin.
        from: BlockPlace,
        /// Only those of later writes than this.
        above: u64,
        /// With their bytes.
        data: bool,
        /// As a view that sees eras up to this one.
        era: u32,
        /// Only those of eras from this one on.
        since: u32,
    },
    /// The volume is gone, for good. Under no fence.
    Delete,
    /// Of a volume of the called node that goes to another one: its first data from a byte on. Of no device, under no fence.
    Copy {
        /// In bytes.
        from: u64,
    },
    /// Snapshots are there of these eras, at most [`crate::net::limits::MAX_WRITES`], and of none but them below the present one: give back
    /// what none of them sees.
    Thin {
        /// Ascending.
        views: Vec<u32>,
        /// The present one.
        era: u32,
        /// The write that must be there.
        at: u64,
    },
    /// Have a member of another volume beside you, that begins as your snapshot is and shares its blocks.
    Fork {
        /// The other volume.
        clone: VolumeId,
        /// The snapshot's.
        era: u32,
        /// The write that must be there.
        at: u64,
    },
    /// Of a clone: have for yourself what you see of the volume below, from a place on. Answered with no rows, and where to go on.
    TakeOver {
        /// Where to begin.
        from: BlockPlace,
        /// The last era that the oldest view of the clone sees.
        oldest: u32,
    },
    /// Tell of the called node's volumes with one member and their snapshots. Of no device and no volume, under no fence.
    List {
        /// How many of the list are known.
        from: u32,
    },
    /// Of a snapshot of a volume whose head is at the called node: its first data from a byte on. Of no device, under no fence.
    View {
        /// The snapshot's.
        era: u32,
        /// In bytes.
        from: u64,
        /// Where to look no further, in bytes.
        upto: u64,
    },
}

/// What a member answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeAnswer {
    /// To [`VolumeCall::Promise`].
    Promised {
        /// Which life of the member it is.
        session: u64,
        /// Its history.
        turns: Vec<TurnFields>,
        /// Up to here.
        end: u64,
        /// It has all of that and nothing else.
        whole: bool,
        /// It has all of that, and more if it is not whole. Otherwise it was emptied, and had that.
        kept: bool,
    },
    /// Done, as asked.
    Done,
    /// To [`VolumeCall::Fill`]: send rows from above this sequence.
    Filling(u64),
    /// The bytes that were read, and the newest sequence among them.
    Read {
        /// Or zero.
        newest: u64,
        /// Blocks in a row, and whether they are zeroes.
        pieces: Vec<(u16, bool)>,
        /// The bytes of those that are not.
        data: Bytes,
    },
    /// To [`VolumeCall::Rows`] and [`VolumeCall::TakeOver`].
    Rows {
        /// In order.
        rows: Vec<BlockWrite>,
        /// Where to go on; `None`: that was all.
        next: Option<BlockPlace>,
        /// Their bytes, if they were wanted.
        data: Bytes,
    },
    /// Blocks cannot be read.
    Unreadable,
    /// No: a code that the crate `volume` gives, and two numbers that tell more.
    Refused(u8, u64, u64),
    /// Done, to [`VolumeCall::Write`] or [`VolumeCall::Confirm`]; and the disk is so full that clients shall write no more data.
    Tight,
    /// To [`VolumeCall::Copy`].
    Copied {
        /// Where the data begins, in bytes; before it are zeroes.
        at: u64,
        /// At most a mebibyte; nothing: there is no more.
        data: Bytes,
    },
    /// To [`VolumeCall::List`]: at most [`crate::net::limits::MAX_LISTED`], each volume with its snapshots behind it; none: there are no
    /// more.
    Listed(Vec<ListedVolume>),
}
