//! The handshake of one connection, from the greeting to the agreed [`Terms`]. Pure: bytes and answers in, bytes and
//! demands out.
//!
//! The caller sends what is in the outbox, hands in what arrives, and does what is demanded. While a demand is open
//! no byte is taken.
//!
//! Invariant: every whole option gets its answer or ends the connection; options are answered in their order.
//! Invariant: nothing that was agreed on before TLS, and no byte that came before it, counts afterwards.
//! Invariant: where TLS is required, nothing but STARTTLS and ABORT is answered without it.
//! Invariant: contexts count for the export that they were selected for, and only if their selection was the last.

use super::export::{Context, Export, Style, Terms};
use super::limits::{MAX_CONTEXTS, MAX_LISTED, MAX_OPTION_DATA, MAX_OPTION_SKIPPED, MAX_OPTIONS};
use super::options::{self, Choice, Queries, Wanted, Wish};
use super::outbox::Outbox;
use super::wire::{GREETING, OPTION_MAGIC, OPTION_REPLY_MAGIC, OptionError, hello, info, option, reply};
use super::{fields::Fields, limits::MAX_PAYLOAD};

/// When TLS is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// Never.
    Off,
    /// If the client wishes; exports may insist.
    Offered,
    /// Before anything else.
    Required,
}

/// What a look at an export is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To be told of it.
    Look,
    /// To use it: the connection is its client if the answer is an export.
    Enter,
}

/// What the caller is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Demand {
    /// Say with [`Handshake::list`] what there is.
    List,
    /// Say with [`Handshake::export`] what this is.
    Find {
        /// As the client spells it; empty for the usual one.
        name: String,
        /// What for.
        purpose: Purpose,
    },
    /// Send the outbox, speak TLS from here on, and say so with [`Handshake::secured`].
    StartTls,
    /// Send the outbox and go on with a session.
    Enter(Box<Terms>),
    /// Send the outbox and close the connection.
    Close(Ending),
}

/// Why a handshake ends without a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ending {
    /// The client asked for it.
    #[error("the client gave up")]
    Aborted,
    /// Unknown flags in the client's greeting.
    #[error("the client's flags {0:#x} are unknown")]
    Flags(u32),
    /// No option's magic number.
    #[error("no option")]
    Magic,
    /// An option that an old client cannot know.
    #[error("a client of the old form used option {0}")]
    OldClient(u32),
    /// An option longer than may be let pass.
    #[error("option {0} has {1} bytes")]
    Long(u32, u32),
    /// More options than may be tried.
    #[error("too many options")]
    Options,
    /// An export was chosen in the form that knows no errors, and cannot be had.
    #[error("the export cannot be had")]
    Export,
    /// Bytes in clear behind the request for TLS.
    #[error("bytes were sent in clear behind STARTTLS")]
    Clear,
}

/// One line of a list of exports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
}

/// One connection that has not agreed yet.
#[derive(Debug)]
pub struct Handshake {
    tls: Tls,
    secure: bool,
    fixed: bool,
    no_zeroes: bool,
    style: Style,
    selected: Option<(String, Vec<Context>)>,
    options: u32,
    stage: Stage,
    /// What has arrived of the piece that the stage waits for.
    partial: Vec<u8>,
    outbox: Outbox,
}

#[derive(Debug)]
enum Stage {
    Flags,
    Header,
    Data { number: u32, length: usize },
    Skip { number: u32, left: u32, result: Result<Choice, OptionError> },
    Asked(Asked),
    Over,
}

/// Who waits for the caller's answer.
#[derive(Debug)]
enum Asked {
    ExportName,
    List,
    Tls,
    Info(Wanted),
    Go(Wanted, String),
    ListContexts(Queries),
    SetContexts(Queries),
}

const FLAGS_BYTES: usize = 4;
const HEADER_BYTES: usize = 16;
/// Zeroes behind the answer to EXPORT_NAME for clients that do not do without.
const OLD_ZEROES: usize = 124;

impl Handshake {
    /// A connection that begins, with the greeting to be sent.
    #[must_use]
    pub fn new(tls: Tls) -> Self {
        let mut outbox = Outbox::default();
        outbox.put(GREETING);
        outbox.put_u16(hello::FIXED | hello::NO_ZEROES);
        Self {
            tls,
            secure: false,
            fixed: false,
            no_zeroes: false,
            style: Style::default(),
            selected: None,
            options: 0,
            stage: Stage::Flags,
            partial: Vec::new(),
            outbox,
        }
    }

    /// What is to be sent.
    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// Is TLS spoken?
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// Takes bytes: how many, and what is demanded. Without a demand all are taken, unless one is open.
    pub fn feed(&mut self, input: &[u8]) -> (usize, Option<Demand>) {
        let mut rest = input;
        while let Some(needed) = self.needed() {
            let (piece, behind) = rest.split_at(needed.min(rest.len()));
            rest = behind;
            if let Stage::Skip { left, .. } = &mut self.stage {
                *left -= u32::try_from(piece.len()).unwrap_or(*left);
            } else {
                self.partial.extend_from_slice(piece);
            }
            if piece.len() < needed {
                break;
            }
            if let Some(demand) = self.whole() {
                return (input.len() - rest.len(), Some(demand));
            }
        }
        (input.len() - rest.len(), None)
    }

    /// Bytes until the stage's piece is whole; `None`: no byte is taken.
    fn needed(&self) -> Option<usize> {
        let whole = match &self.stage {
            Stage::Flags => FLAGS_BYTES,
            Stage::Header => HEADER_BYTES,
            Stage::Data { length, .. } => *length,
            Stage::Skip { left, .. } => return usize::try_from(*left).ok(),
            Stage::Asked(_) | Stage::Over => return None,
        };
        Some(whole - self.partial.len())
    }

    /// The stage's piece is there.
    fn whole(&mut self) -> Option<Demand> {
        let partial = std::mem::take(&mut self.partial);
        match std::mem::replace(&mut self.stage, Stage::Header) {
            Stage::Flags => self.flags(Fields(&partial).u32().unwrap_or(u32::MAX)),
            Stage::Header => self.header(Fields(&partial)),
            Stage::Data { number, .. } => self.judge(number, options::parse(number, &partial)),
            Stage::Skip { number, result, .. } => self.judge(number, result),
            Stage::Asked(_) | Stage::Over => None,
        }
    }

    fn flags(&mut self, flags: u32) -> Option<Demand> {
        let (fixed, no_zeroes) = (u32::from(hello::FIXED), u32::from(hello::NO_ZEROES));
        if flags & !(fixed | no_zeroes) != 0 {
            return self.end(Ending::Flags(flags));
        }
        self.fixed = flags & fixed != 0;
        self.no_zeroes = flags & no_zeroes != 0;
        None
    }

    fn header(&mut self, mut fields: Fields<'_>) -> Option<Demand> {
        let magic = fields.u64();
        let (Some(number), Some(length)) = (fields.u32(), fields.u32()) else {
            return self.end(Ending::Magic);
        };
        self.options += 1;
        if magic != Some(OPTION_MAGIC) {
            return self.end(Ending::Magic);
        }
        if !self.fixed && number != option::EXPORT_NAME {
            return self.end(Ending::OldClient(number));
        }
        if self.options > MAX_OPTIONS {
            return self.end(Ending::Options);
        }
        if length > MAX_OPTION_SKIPPED {
            return self.end(Ending::Long(number, length));
        }
        let kept = usize::try_from(length).ok().filter(|length| *length <= MAX_OPTION_DATA);
        self.stage = match kept {
            Some(length) if options::is_read(number) && !self.needs_tls() => Stage::Data { number, length },
            None if options::is_read(number) => {
                Stage::Skip { number, left: length, result: Err(OptionError::TooBig) }
            }
            _ => Stage::Skip { number, left: length, result: options::plain(number, length) },
        };
        None
    }

    fn needs_tls(&self) -> bool {
        self.tls == Tls::Required && !self.secure
    }

    /// An option is whole: answers it, or asks.
    fn judge(&mut self, number: u32, result: Result<Choice, OptionError>) -> Option<Demand> {
        let free = matches!(number, option::ABORT | option::STARTTLS);
        if number == option::EXPORT_NAME && (self.needs_tls() || result.is_err()) {
            return self.end(Ending::Export);
        }
        let choice = match result {
            _ if self.needs_tls() && !free => return self.refuse(number, OptionError::TlsRequired),
            Err(error) => {
                if number == option::SET_META_CONTEXT {
                    self.selected = None;
                }
                return self.refuse(number, error);
            }
            Ok(choice) => choice,
        };
        match choice {
            Choice::ExportName(_) if self.style == Style::Extended => self.end(Ending::Export),
            Choice::ExportName(name) => self.find(name, Purpose::Enter, Asked::ExportName),
            Choice::Abort => {
                self.answer(number, reply::ACK, 0);
                self.end(Ending::Aborted)
            }
            Choice::List => self.ask(Asked::List, Demand::List),
            Choice::StartTls => self.start_tls(),
            Choice::Info(Wish { name, wanted }) => self.find(name, Purpose::Look, Asked::Info(wanted)),
            Choice::Go(Wish { name, wanted }) => {
                self.find(name.clone(), Purpose::Enter, Asked::Go(wanted, name))
            }
            Choice::StructuredReply if self.style == Style::Extended => {
                self.refuse(number, OptionError::ExtendedHeadersRequired)
            }
            Choice::StructuredReply => self.agree(number, Style::Structured),
            Choice::ExtendedHeaders => self.agree(number, Style::Extended),
            Choice::ListContexts(_) | Choice::SetContexts(_) if self.style == Style::Simple => {
                self.selected = None;
                self.refuse(number, OptionError::Invalid)
            }
            Choice::ListContexts(queries) => {
                self.find(queries.name.clone(), Purpose::Look, Asked::ListContexts(queries))
            }
            Choice::SetContexts(queries) => {
                self.selected = None;
                self.find(queries.name.clone(), Purpose::Look, Asked::SetContexts(queries))
            }
        }
    }

    fn agree(&mut self, number: u32, style: Style) -> Option<Demand> {
        self.style = style;
        self.answer(number, reply::ACK, 0);
        None
    }

    fn start_tls(&mut self) -> Option<Demand> {
        match (self.tls, self.secure) {
            (Tls::Off, _) => self.refuse(option::STARTTLS, OptionError::Policy),
            (_, true) => self.refuse(option::STARTTLS, OptionError::Invalid),
            (_, false) => {
                self.answer(option::STARTTLS, reply::ACK, 0);
                self.ask(Asked::Tls, Demand::StartTls)
            }
        }
    }

    fn find(&mut self, name: String, purpose: Purpose, asked: Asked) -> Option<Demand> {
        self.ask(asked, Demand::Find { name, purpose })
    }

    fn ask(&mut self, asked: Asked, demand: Demand) -> Option<Demand> {
        self.stage = Stage::Asked(asked);
        Some(demand)
    }

    fn end(&mut self, ending: Ending) -> Option<Demand> {
        self.stage = Stage::Over;
        Some(Demand::Close(ending))
    }

    /// Who asked; what waited is over with that.
    fn asked(&mut self) -> Option<Asked> {
        match std::mem::replace(&mut self.stage, Stage::Header) {
            Stage::Asked(asked) => Some(asked),
            other => {
                self.stage = other;
                None
            }
        }
    }

    /// Answers [`Demand::StartTls`]: TLS stands. `unread`: bytes that the caller had read and this has not taken; they
    /// came in clear, so with any of them the connection ends.
    ///
    /// Panics, as all answers do, if it was not demanded: our bug.
    pub fn secured(&mut self, unread: usize) -> Option<Demand> {
        assert!(matches!(self.asked(), Some(Asked::Tls)), "TLS was not demanded");
        if unread > 0 {
            return self.end(Ending::Clear);
        }
        self.secure = true;
        self.style = Style::default();
        self.selected = None;
        None
    }

    /// Answers [`Demand::List`].
    pub fn list(&mut self, exports: &[Listed]) -> Option<Demand> {
        assert!(matches!(self.asked(), Some(Asked::List)), "no list was demanded");
        if exports.len() > MAX_LISTED {
            return self.refuse(option::LIST, OptionError::TooBig);
        }
        for Listed { name, description } in exports {
            self.answer(option::LIST, reply::SERVER, 4 + name.len() + description.len());
            self.outbox.put_u32(length32(name.len()));
            self.outbox.put(name.as_bytes());
            self.outbox.put(description.as_bytes());
        }
        self.answer(option::LIST, reply::ACK, 0);
        None
    }

    /// Answers [`Demand::Find`]: the export, or why there is none for this client.
    pub fn export(&mut self, found: Result<Export, OptionError>) -> Option<Demand> {
        let asked = self.asked().expect("an export was demanded");
        let number = match &asked {
            Asked::ExportName => option::EXPORT_NAME,
            Asked::Info(_) => option::INFO,
            Asked::Go(..) => option::GO,
            Asked::ListContexts(_) => option::LIST_META_CONTEXT,
            Asked::SetContexts(_) => option::SET_META_CONTEXT,
            Asked::List | Asked::Tls => panic!("no export was demanded"),
        };
        if let Ok(export) = &found {
            export.check();
        }
        let found = found.and_then(|export| match self.tls {
            _ if self.secure || !export.tls_only => Ok(export),
            Tls::Off => Err(OptionError::Policy),
            Tls::Offered | Tls::Required => Err(OptionError::TlsRequired),
        });
        let export = match found {
            Ok(export) => export,
            Err(_) if number == option::EXPORT_NAME => return self.end(Ending::Export),
            Err(error) => return self.refuse(number, error),
        };
        match asked {
            Asked::ExportName => self.export_name(export),
            Asked::Info(wanted) => {
                self.describe(number, &export, wanted, true);
                self.answer(number, reply::ACK, 0);
                None
            }
            Asked::Go(wanted, name) => self.go(export, wanted, &name),
            Asked::ListContexts(queries) => self.list_contexts(&export, &queries),
            Asked::SetContexts(queries) => self.set_contexts(&export, queries),
            Asked::List | Asked::Tls => None,
        }
    }

    fn export_name(&mut self, export: Export) -> Option<Demand> {
        let contexts = self.take_selected(&export, &export.name);
        self.outbox.put_u64(export.bytes);
        self.outbox.put_u16(export.features(self.style, !contexts.is_empty()));
        if !self.no_zeroes {
            self.outbox.put_zeroes(OLD_ZEROES);
        }
        self.enter(export, contexts)
    }

    fn go(&mut self, export: Export, wanted: Wanted, name: &str) -> Option<Demand> {
        if export.minimum_block > 1 && !wanted.block_size {
            self.describe(option::GO, &export, Wanted { block_size: true, ..wanted }, true);
            return self.refuse(option::GO, OptionError::BlockSizeRequired);
        }
        let contexts = self.take_selected(&export, name);
        self.describe(option::GO, &export, wanted, !contexts.is_empty());
        self.answer(option::GO, reply::ACK, 0);
        self.enter(export, contexts)
    }

    /// The contexts that were selected for what is entered now, as `name`.
    fn take_selected(&mut self, export: &Export, name: &str) -> Vec<Context> {
        let selected = self.selected.take().filter(|(of, _)| of == name || *of == export.name);
        selected.map(|(_, contexts)| contexts).unwrap_or_default()
    }

    fn enter(&mut self, export: Export, contexts: Vec<Context>) -> Option<Demand> {
        self.stage = Stage::Over;
        Some(Demand::Enter(Box::new(Terms { export, style: self.style, contexts })))
    }

    /// `selectable`: as `Export::features` has it.
    fn describe(&mut self, number: u32, export: &Export, wanted: Wanted, selectable: bool) {
        self.answer(number, reply::INFO, 12);
        self.outbox.put_u16(info::EXPORT);
        self.outbox.put_u64(export.bytes);
        self.outbox.put_u16(export.features(self.style, selectable));
        if wanted.name {
            self.describe_in_words(number, info::NAME, &export.name);
        }
        if let Some(description) = export.description.as_ref().filter(|_| wanted.description) {
            self.describe_in_words(number, info::DESCRIPTION, description);
        }
        if wanted.block_size {
            self.answer(number, reply::INFO, 14);
            self.outbox.put_u16(info::BLOCK_SIZE);
            self.outbox.put_u32(export.minimum_block);
            self.outbox.put_u32(export.preferred_block);
            self.outbox.put_u32(MAX_PAYLOAD);
        }
    }

    fn describe_in_words(&mut self, number: u32, kind: u16, words: &str) {
        self.answer(number, reply::INFO, 2 + words.len());
        self.outbox.put_u16(kind);
        self.outbox.put(words.as_bytes());
    }

    fn list_contexts(&mut self, export: &Export, queries: &Queries) -> Option<Demand> {
        let found = if queries.queries.is_empty() {
            export.all_contexts()
        } else {
            export.find_contexts(&queries.queries, true)
        };
        for context in found.iter().take(MAX_LISTED) {
            self.context(option::LIST_META_CONTEXT, 0, context);
        }
        self.answer(option::LIST_META_CONTEXT, reply::ACK, 0);
        None
    }

    fn set_contexts(&mut self, export: &Export, queries: Queries) -> Option<Demand> {
        let found = export.find_contexts(&queries.queries, false);
        if found.len() > MAX_CONTEXTS {
            return self.refuse(option::SET_META_CONTEXT, OptionError::TooBig);
        }
        for (id, context) in (1..).zip(&found) {
            self.context(option::SET_META_CONTEXT, id, context);
        }
        self.answer(option::SET_META_CONTEXT, reply::ACK, 0);
        self.selected = Some((queries.name, found));
        None
    }

    fn context(&mut self, number: u32, id: u32, context: &Context) {
        let name = context.name();
        self.answer(number, reply::META_CONTEXT, 4 + name.len());
        self.outbox.put_u32(id);
        self.outbox.put(name.as_bytes());
    }

    fn refuse(&mut self, number: u32, error: OptionError) -> Option<Demand> {
        self.answer(number, error.number(), 0);
        None
    }

    /// The head of an answer.
    fn answer(&mut self, number: u32, kind: u32, length: usize) {
        self.outbox.put_u64(OPTION_REPLY_MAGIC);
        self.outbox.put_u32(number);
        self.outbox.put_u32(kind);
        self.outbox.put_u32(length32(length));
    }
}

/// A length that the limits keep small.
fn length32(length: usize) -> u32 {
    u32::try_from(length).expect("answers are short")
}

#[cfg(test)]
#[path = "tests/handshake_tests.rs"]
mod tests;
