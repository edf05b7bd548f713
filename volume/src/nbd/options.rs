//! Options of a client, read whole before anything is done about one.
//!
//! Invariant: what is no option's spelling is [`OptionError::Invalid`], or too big, and never a partly read option.

use super::fields::Fields;
use super::limits::MAX_STRING;
use super::wire::{OptionError, info, option};

/// An option whose data is well formed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Choice {
    ExportName(String),
    Abort,
    List,
    StartTls,
    Info(Wish),
    Go(Wish),
    StructuredReply,
    ListContexts(Queries),
    SetContexts(Queries),
    ExtendedHeaders,
}

/// About which export, and what a client wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Wanted {
    pub(super) name: bool,
    pub(super) description: bool,
    pub(super) block_size: bool,
}

/// INFO and GO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) name: String,
    pub(super) wanted: Wanted,
}

/// LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Queries {
    pub(super) name: String,
    pub(super) queries: Vec<String>,
}

/// Is the data of this option read, or only counted?
pub(super) fn is_read(number: u32) -> bool {
    matches!(
        number,
        option::EXPORT_NAME
            | option::INFO
            | option::GO
            | option::LIST_META_CONTEXT
            | option::SET_META_CONTEXT
    )
}

/// An option without data that is read.
pub(super) fn plain(number: u32, length: u32) -> Result<Choice, OptionError> {
    let empty = |choice| if length == 0 { Ok(choice) } else { Err(OptionError::Invalid) };
    match number {
        option::ABORT => Ok(Choice::Abort),
        option::LIST => empty(Choice::List),
        option::STARTTLS => empty(Choice::StartTls),
        option::STRUCTURED_REPLY => empty(Choice::StructuredReply),
        option::EXTENDED_HEADERS => empty(Choice::ExtendedHeaders),
        _ => Err(OptionError::Unsupported),
    }
}

/// An option of [`is_read`] with its data.
pub(super) fn parse(number: u32, data: &[u8]) -> Result<Choice, OptionError> {
    match number {
        option::EXPORT_NAME => text(data).map(Choice::ExportName),
        option::INFO => wish(data).map(Choice::Info),
        option::GO => wish(data).map(Choice::Go),
        option::LIST_META_CONTEXT => queries(data).map(Choice::ListContexts),
        option::SET_META_CONTEXT => queries(data).map(Choice::SetContexts),
        _ => Err(OptionError::Unsupported),
    }
}

fn text(bytes: &[u8]) -> Result<String, OptionError> {
    if bytes.len() > MAX_STRING {
        return Err(OptionError::TooBig);
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(OptionError::Invalid),
    }
}

fn wish(data: &[u8]) -> Result<Wish, OptionError> {
    let mut fields = Fields(data);
    let name = text(fields.counted().ok_or(OptionError::Invalid)?)?;
    let count = fields.u16().ok_or(OptionError::Invalid)?;
    let mut wanted = Wanted::default();
    for _ in 0..count {
        match fields.u16().ok_or(OptionError::Invalid)? {
            info::NAME => wanted.name = true,
            info::DESCRIPTION => wanted.description = true,
            info::BLOCK_SIZE => wanted.block_size = true,
            _ => {}
        }
    }
    if fields.is_empty() { Ok(Wish { name, wanted }) } else { Err(OptionError::Invalid) }
}

fn queries(data: &[u8]) -> Result<Queries, OptionError> {
    let mut fields = Fields(data);
    let name = text(fields.counted().ok_or(OptionError::Invalid)?)?;
    let count = fields.u32().ok_or(OptionError::Invalid)?;
    let mut queries = Vec::new();
    for _ in 0..count {
        let query = text(fields.counted().ok_or(OptionError::Invalid)?)?;
        // A context has a namespace.
        if !query.contains(':') {
            return Err(OptionError::Invalid);
        }
        queries.push(query);
    }
    if fields.is_empty() { Ok(Queries { name, queries }) } else { Err(OptionError::Invalid) }
}
