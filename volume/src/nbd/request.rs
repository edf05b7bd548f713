//! Requests of a client: headers read, and judged whole before anything is done.
//!
//! Invariant: a header is either a command that can be carried out, or has one error, or ends the connection.
//! Invariant: what is admitted lies in the export, on its blocks, and asks for at most [`MAX_PAYLOAD`] bytes either way.

use bytes::Bytes;

use super::export::{Context, Style, Terms};
use super::fields::Fields;
use super::limits::{MAX_PAYLOAD, MAX_SKIPPED_PAYLOAD};
use super::wire::{EXTENDED_REQUEST_MAGIC, Errno, REQUEST_MAGIC, command_flag, feature};

/// A request's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) flags: u16,
    pub(super) kind: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// Bytes of a header.
pub(super) const fn header_bytes(style: Style) -> usize {
    match style {
        Style::Simple | Style::Structured => 28,
        Style::Extended => 32,
    }
}

const _: () = assert!(header_bytes(Style::Simple) == 4 + 2 + 2 + 8 + 8 + 4);
const _: () = assert!(header_bytes(Style::Extended) == header_bytes(Style::Simple) + 4);

/// The header in as many bytes; `None`: no request.
pub(super) fn header(bytes: &[u8], style: Style) -> Option<Header> {
    let extended = style == Style::Extended;
    let mut fields = Fields(bytes);
    let magic = fields.u32()?;
    if magic != if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC } {
        return None;
    }
    let (flags, kind) = (fields.u16()?, fields.u16()?);
    let (cookie, offset) = (fields.u64()?, fields.u64()?);
    let length = if extended { fields.u64()? } else { fields.u32()?.into() };
    Some(Header { flags, kind, cookie, offset, length })
}

/// The kinds of requests that are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
    Trim,
    Cache,
    WriteZeroes,
    BlockStatus,
}

const DISCONNECT: u16 = 2;

impl Kind {
    fn of(number: u16) -> Option<Self> {
        Some(match number {
            0 => Self::Read,
            1 => Self::Write,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            _ => return None,
        })
    }

    fn changes(self) -> bool {
        matches!(self, Self::Write | Self::Trim | Self::WriteZeroes)
    }

    /// Flags that it may carry on these terms. FUA is accepted on all.
    fn flags(self, terms: &Terms) -> u16 {
        let with_payload = if terms.style == Style::Extended { command_flag::PAYLOAD_LEN } else { 0 };
        let own = match self {
            Self::Read if terms.has(feature::DF) => command_flag::DF,
            Self::Write => with_payload,
            Self::WriteZeroes => command_flag::NO_HOLE | command_flag::FAST_ZERO,
            Self::BlockStatus => command_flag::REQ_ONE | with_payload,
            Self::Read | Self::Flush | Self::Trim | Self::Cache => 0,
        };
        own | command_flag::FUA
    }
}

/// What a volume is asked to do. Lies in the export, and is not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Answer with the bytes.
    Read {
        /// Where.
        offset: u64,
        /// How many bytes.
        length: u32,
    },
    /// Write.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Bytes,
        /// Answer when it is durable.
        durable: bool,
    },
    /// Answer when all that was answered before is durable.
    Flush,
    /// No longer needed.
    Trim {
        /// Where.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// Answer when it is durable.
        durable: bool,
    },
    /// Reads as zeroes from now on.
    WriteZeroes {
        /// Where.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// Answer when it is durable.
        durable: bool,
        /// Must take its space, so that later writes find it.
        allocate: bool,
        /// Only if it is faster than writing; else [`Errno::Unsupported`], and nothing is changed.
        fast: bool,
    },
    /// Will be read soon.
    Cache {
        /// Where.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// Answer with extents from the offset on, a list for each context in order. They may end early, not empty.
    BlockStatus {
        /// Where.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// Which.
        contexts: Vec<Context>,
        /// One extent is enough.
        one: bool,
    },
}

/// What becomes of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing more is needed. `None`: nothing is to be done, and that is success.
    Run(Kind, Option<Command>),
    /// The data to be written follows.
    Payload(u32),
    /// Numbers of contexts follow.
    Contexts(u32),
    /// After so many bytes that nobody reads.
    Refuse(Errno, u64),
    /// The client goes.
    Disconnect,
    /// No way to go on: more bytes than may be let pass.
    Flood(u64),
}

pub(super) fn judge(header: &Header, terms: &Terms) -> Verdict {
    if header.kind == DISCONNECT {
        return Verdict::Disconnect;
    }
    let kind = Kind::of(header.kind);
    let payload = payload(header, kind, terms.style);
    let most = if terms.style == Style::Extended { MAX_PAYLOAD.into() } else { MAX_SKIPPED_PAYLOAD };
    if payload > most {
        return Verdict::Flood(payload);
    }
    let admitted = kind.ok_or(Errno::Invalid).and_then(|kind| {
        admit(header, kind, terms)?;
        Ok(kind)
    });
    match admitted {
        Err(errno) => Verdict::Refuse(errno, payload),
        Ok(Kind::Write) if header.length > 0 => Verdict::Payload(narrow(header.length)),
        Ok(Kind::BlockStatus) if payload > 0 => Verdict::Contexts(narrow(payload)),
        Ok(kind) => Verdict::Run(kind, command(header, kind, terms)),
    }
}

/// Bytes that follow the header. A write has its data behind it also where the flag that must say so is missing: qemu 10
/// leaves it out, and all that follows would be read amiss.
fn payload(header: &Header, kind: Option<Kind>, style: Style) -> u64 {
    let follows = match style {
        Style::Extended => kind == Some(Kind::Write) || header.flags & command_flag::PAYLOAD_LEN != 0,
        Style::Simple | Style::Structured => kind == Some(Kind::Write),
    };
    if follows { header.length } else { 0 }
}

/// The longest list of contexts in a request: its effect length, and each number once.
fn longest_contexts(terms: &Terms) -> u64 {
    8 + 4 * terms.contexts.len() as u64
}

fn admit(header: &Header, kind: Kind, terms: &Terms) -> Result<(), Errno> {
    if header.flags & !kind.flags(terms) != 0 {
        return Err(Errno::Invalid);
    }
    if kind.changes() && terms.export.read_only {
        return Err(Errno::Permission);
    }
    let payload = header.flags & command_flag::PAYLOAD_LEN != 0;
    match kind {
        Kind::Flush => {
            return if (header.offset, header.length) == (0, 0) { Ok(()) } else { Err(Errno::Invalid) };
        }
        Kind::Write if header.length > u64::from(MAX_PAYLOAD) => return Err(Errno::Invalid),
        Kind::BlockStatus if terms.contexts.is_empty() => return Err(Errno::Invalid),
        // The length in the header is the payload's; that of the effect is judged when it is there.
        Kind::BlockStatus if payload => {
            let spelt = header.length >= 8
                && header.length <= longest_contexts(terms)
                && header.length.is_multiple_of(4);
            return if spelt { Ok(()) } else { Err(Errno::Invalid) };
        }
        _ => {}
    }
    place(header.offset, header.length, kind, terms)
}

/// Does the range lie in the export, and is it one that is answered?
pub(super) fn place(offset: u64, length: u64, kind: Kind, terms: &Terms) -> Result<(), Errno> {
    if offset.checked_add(length).is_none_or(|end| end > terms.export.bytes) {
        let room = matches!(kind, Kind::Write | Kind::WriteZeroes);
        return Err(if room { Errno::NoSpace } else { Errno::Invalid });
    }
    let block = u64::from(terms.export.minimum_block);
    if !offset.is_multiple_of(block) || !length.is_multiple_of(block) {
        return Err(Errno::Invalid);
    }
    match kind {
        Kind::Read if length > u64::from(MAX_PAYLOAD) => {
            Err(if terms.style == Style::Simple { Errno::Invalid } else { Errno::Overflow })
        }
        // There is no extent to answer with.
        Kind::BlockStatus if length == 0 => Err(Errno::Invalid),
        _ => Ok(()),
    }
}

/// The command of an admitted header without payload.
fn command(header: &Header, kind: Kind, terms: &Terms) -> Option<Command> {
    let Header { flags, offset, length, .. } = *header;
    let durable = flags & command_flag::FUA != 0;
    if length == 0 && kind != Kind::Flush {
        return None;
    }
    Some(match kind {
        Kind::Read => Command::Read { offset, length: narrow(length) },
        Kind::Write => return None,
        Kind::Flush => Command::Flush,
        Kind::Trim => Command::Trim { offset, length, durable },
        Kind::Cache => Command::Cache { offset, length },
        Kind::WriteZeroes => Command::WriteZeroes {
            offset,
            length,
            durable,
            allocate: flags & command_flag::NO_HOLE != 0,
            fast: flags & command_flag::FAST_ZERO != 0,
        },
        Kind::BlockStatus => Command::BlockStatus {
            offset,
            length,
            contexts: terms.contexts.clone(),
            one: flags & command_flag::REQ_ONE != 0,
        },
    })
}

/// The places in the list of contexts, and the effect length, that a block status request with a payload names.
pub(super) fn chosen_contexts(payload: &[u8], terms: &Terms) -> Result<(u64, Vec<usize>), Errno> {
    let mut fields = Fields(payload);
    let length = fields.u64().ok_or(Errno::Invalid)?;
    let mut chosen = Vec::new();
    while !fields.is_empty() {
        let id = fields.u32().ok_or(Errno::Invalid)?;
        let place = usize::try_from(id).ok().and_then(|id| id.checked_sub(1)).ok_or(Errno::Invalid)?;
        if place >= terms.contexts.len() || chosen.contains(&place) {
            return Err(Errno::Invalid);
        }
        chosen.push(place);
    }
    Ok((length, chosen))
}

/// A length that was compared with a limit before.
fn narrow(length: u64) -> u32 {
    u32::try_from(length).expect("a length within the limits")
}
