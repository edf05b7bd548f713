//! The numbers of the protocol.

/// First words of a server.
pub(super) const GREETING: &[u8; 16] = b"NBDMAGICIHAVEOPT";
/// Before every option.
pub(super) const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
/// Before every answer to an option.
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(super) const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(super) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
pub(super) const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Flags of both sides in the greeting.
pub(super) mod hello {
    pub(in super::super) const FIXED: u16 = 1;
    pub(in super::super) const NO_ZEROES: u16 = 2;
}

/// Options of a client.
pub(super) mod option {
    pub(in super::super) const EXPORT_NAME: u32 = 1;
    pub(in super::super) const ABORT: u32 = 2;
    pub(in super::super) const LIST: u32 = 3;
    pub(in super::super) const STARTTLS: u32 = 5;
    pub(in super::super) const INFO: u32 = 6;
    pub(in super::super) const GO: u32 = 7;
    pub(in super::super) const STRUCTURED_REPLY: u32 = 8;
    pub(in super::super) const LIST_META_CONTEXT: u32 = 9;
    pub(in super::super) const SET_META_CONTEXT: u32 = 10;
    pub(in super::super) const EXTENDED_HEADERS: u32 = 11;
}

/// Kinds of information about an export.
pub(super) mod info {
    pub(in super::super) const EXPORT: u16 = 0;
    pub(in super::super) const NAME: u16 = 1;
    pub(in super::super) const DESCRIPTION: u16 = 2;
    pub(in super::super) const BLOCK_SIZE: u16 = 3;
}

/// Answers to an option.
pub(super) mod reply {
    pub(in super::super) const ACK: u32 = 1;
    pub(in super::super) const SERVER: u32 = 2;
    pub(in super::super) const INFO: u32 = 3;
    pub(in super::super) const META_CONTEXT: u32 = 4;
}

/// What an export can.
pub(super) mod feature {
    pub(in super::super) const HAS_FLAGS: u16 = 1;
    pub(in super::super) const READ_ONLY: u16 = 1 << 1;
    pub(in super::super) const FLUSH: u16 = 1 << 2;
    pub(in super::super) const FUA: u16 = 1 << 3;
    pub(in super::super) const ROTATIONAL: u16 = 1 << 4;
    pub(in super::super) const TRIM: u16 = 1 << 5;
    pub(in super::super) const WRITE_ZEROES: u16 = 1 << 6;
    pub(in super::super) const DF: u16 = 1 << 7;
    pub(in super::super) const MULTI_CONN: u16 = 1 << 8;
    pub(in super::super) const CACHE: u16 = 1 << 10;
    pub(in super::super) const FAST_ZERO: u16 = 1 << 11;
    pub(in super::super) const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Flags of a request.
pub(super) mod command_flag {
    pub(in super::super) const FUA: u16 = 1;
    pub(in super::super) const NO_HOLE: u16 = 1 << 1;
    pub(in super::super) const DF: u16 = 1 << 2;
    pub(in super::super) const REQ_ONE: u16 = 1 << 3;
    pub(in super::super) const FAST_ZERO: u16 = 1 << 4;
    pub(in super::super) const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Chunks of a structured or extended reply.
pub(super) mod chunk {
    /// Flag of the last one.
    pub(in super::super) const DONE: u16 = 1;
    pub(in super::super) const NONE: u16 = 0;
    pub(in super::super) const OFFSET_DATA: u16 = 1;
    pub(in super::super) const OFFSET_HOLE: u16 = 2;
    pub(in super::super) const BLOCK_STATUS: u16 = 5;
    pub(in super::super) const BLOCK_STATUS_EXT: u16 = 6;
    pub(in super::super) const ERROR: u16 = (1 << 15) + 1;
}

/// Status of an extent in the context `base:allocation`.
pub mod allocation {
    /// Takes no space.
    pub const HOLE: u32 = 1;
    /// Reads as zeroes.
    pub const ZERO: u32 = 2;
}

/// Status of an extent in a context `quarry:snapshot-diff:NAME`.
pub mod difference {
    /// Written since.
    pub const CHANGED: u32 = 1;
}

/// Why a server does not do what an option asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionError {
    /// No such option here.
    Unsupported,
    /// Known, and forbidden.
    Policy,
    /// Not spelt as it must be.
    Invalid,
    /// Not on this machine.
    Platform,
    /// TLS first.
    TlsRequired,
    /// No such export.
    Unknown,
    /// The server stops.
    Shutdown,
    /// The client must ask for block sizes.
    BlockSizeRequired,
    /// Asks for too much.
    TooBig,
    /// Extended headers first, or already.
    ExtendedHeadersRequired,
}

impl OptionError {
    pub(super) const fn number(self) -> u32 {
        (1 << 31)
            + match self {
                Self::Unsupported => 1,
                Self::Policy => 2,
                Self::Invalid => 3,
                Self::Platform => 4,
                Self::TlsRequired => 5,
                Self::Unknown => 6,
                Self::Shutdown => 7,
                Self::BlockSizeRequired => 8,
                Self::TooBig => 9,
                Self::ExtendedHeadersRequired => 10,
            }
    }
}

/// Why a request fails: the eight numbers that the protocol knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Errno {
    /// Not allowed.
    Permission,
    /// The disk, or what stands for it, failed.
    Io,
    /// No room in memory.
    NoMemory,
    /// The request makes no sense here.
    Invalid,
    /// Past the end, or the disk is full.
    NoSpace,
    /// Too long.
    Overflow,
    /// Cannot be done fast.
    Unsupported,
    /// The server stops.
    Shutdown,
}

impl Errno {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Permission,
        Self::Io,
        Self::NoMemory,
        Self::Invalid,
        Self::NoSpace,
        Self::Overflow,
        Self::Unsupported,
        Self::Shutdown,
    ];

    /// As it stands in a reply.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Permission => 1,
            Self::Io => 5,
            Self::NoMemory => 12,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::Overflow => 75,
            Self::Unsupported => 95,
            Self::Shutdown => 108,
        }
    }
}
