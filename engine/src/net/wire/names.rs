//! Requests to leaders of index groups, and their answers: the second part of such a message, in the payload.
//!
//! Fields and variants stand here in the order in which they are written. They are only ever added at the end, and with a
//! new version of the protocol.

use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{Decode, Encode};
use bytes::Bytes;

use super::WireError;
use crate::clock::Timestamp;
use crate::disk::Class;
use crate::net::NodeId;
use crate::net::limits::MAX_PAYLOAD;
use crate::object::names::{
    Answer, Ask, AskedFor, Asks, Child, Elsewhere, Holding, Line, MAX_TOGETHER, NamesAnswer, NamesRequest,
    NewLine, Page, Put, Standing,
};
use crate::object::{
    Account, Container, ContainerRow, Deleted, Entry, IndexPolicy, Listing, Made, ObjectPath, ObjectRow,
    Share,
};

const CODING: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<MAX_PAYLOAD>,
> = bincode::config::standard().with_limit::<MAX_PAYLOAD>();

pub(super) fn encode(value: &impl Encode) -> Result<Bytes, WireError> {
    let bytes = bincode::encode_to_vec(value, CODING).map_err(|_| WireError::Field("names"))?;
    if bytes.len() > MAX_PAYLOAD { Err(WireError::Limit("payload")) } else { Ok(bytes.into()) }
}

pub(super) fn decode<T: Decode<()>>(bytes: &Bytes) -> Result<T, WireError> {
    let (value, taken) = bincode::decode_from_slice(bytes, CODING).map_err(|e| match e {
        DecodeError::UnexpectedEnd { .. } => WireError::Truncated,
        DecodeError::LimitExceeded => WireError::Limit("payload"),
        _ => WireError::Field("names"),
    })?;
    if taken == bytes.len() { Ok(value) } else { Err(WireError::Trailing) }
}

/// Writes a structure's fields one after the other.
macro_rules! fields {
    ($type:ty { $($field:ident),+ }) => {
        impl Encode for $type {
            fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
                $(self.$field.encode(encoder)?;)+
                Ok(())
            }
        }
        impl<C> Decode<C> for $type {
            fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
                Ok(Self { $($field: Decode::decode(decoder)?),+ })
            }
        }
    };
}

/// Writes a variant's number in one byte, then its fields.
macro_rules! variants {
    ($type:ty { $($variants:tt)+ }) => {
        encoded!($type { $($variants)+ });
        impl<C> Decode<C> for $type {
            fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
                decoded!(decoder, u8::decode(decoder)?, { $($variants)+ })
            }
        }
    };
}

/// The half of [`variants`] that writes.
macro_rules! encoded {
    ($type:ty { $($tag:literal $name:ident $({ $($field:ident),+ })? $(( $inner:ident ))?),+ $(,)? }) => {
        impl Encode for $type {
            fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
                match self {
                    $(Self::$name $({ $($field),+ })? $(( $inner ))? => {
                        let tag: u8 = $tag;
                        tag.encode(encoder)?;
                        $($($field.encode(encoder)?;)+)?
                        $($inner.encode(encoder)?;)?
                    })+
                }
                Ok(())
            }
        }
    };
}

/// The half of [`variants`] that reads what follows a number.
macro_rules! decoded {
    ($decoder:ident, $number:expr, { $($tag:literal $name:ident $({ $($field:ident),+ })? $(( $inner:ident ))?),+ $(,)? }) => {
        match $number {
            $($tag => {
                $($(let $field = Decode::decode($decoder)?;)+)?
                $(let $inner = Decode::decode($decoder)?;)?
                Ok(Self::$name $({ $($field),+ })? $(( $inner ))?)
            })+
            _ => Err(DecodeError::Other("number of a variant")),
        }
    };
}

impl Encode for Timestamp {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.encode(encoder)
    }
}

impl<C> Decode<C> for Timestamp {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        u64::decode(decoder).map(Self)
    }
}

impl Encode for NodeId {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.encode(encoder)
    }
}

impl<C> Decode<C> for NodeId {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Decode::decode(decoder).map(Self)
    }
}

impl Encode for Class {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        let number = super::number_of(&super::CLASSES, self, "class");
        number.map_err(|_| EncodeError::Other("class"))?.encode(encoder)
    }
}

impl<C> Decode<C> for Class {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let number = u8::decode(decoder)?;
        super::value_of(&super::CLASSES, number, "class").map_err(|_| DecodeError::Other("class"))
    }
}

impl<R: Encode> Encode for Page<R> {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.entries.encode(encoder)?;
        self.cut.encode(encoder)
    }
}

impl<C, R: Decode<C> + 'static> Decode<C> for Page<R> {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Ok(Self { entries: Decode::decode(decoder)?, cut: Decode::decode(decoder)? })
    }
}

impl<R: Encode> Encode for Entry<R> {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        match self {
            Self::Row(row) => {
                0_u8.encode(encoder)?;
                row.encode(encoder)
            }
            Self::Subdir(name) => {
                1_u8.encode(encoder)?;
                name.encode(encoder)
            }
        }
    }
}

impl<C, R: Decode<C>> Decode<C> for Entry<R> {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        match u8::decode(decoder)? {
            0 => Ok(Self::Row(Decode::decode(decoder)?)),
            1 => Ok(Self::Subdir(Decode::decode(decoder)?)),
            _ => Err(DecodeError::Other("number of a variant")),
        }
    }
}

impl Encode for Asks {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.encode(encoder)
    }
}

impl<C> Decode<C> for Asks {
    /// As a list is read, but never more than [`MAX_TOGETHER`]: a question takes far more in memory than in a message.
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let number = usize::try_from(u64::decode(decoder)?).unwrap_or(usize::MAX);
        if number > MAX_TOGETHER {
            return Err(DecodeError::Other("number of questions"));
        }
        (0..number).map(|_| Ask::decode(decoder)).collect::<Result<_, _>>().map(Self)
    }
}

fields!(ObjectPath { account, container, object });
fields!(Standing { id, policy, index });
fields!(Line { container, at, key });
fields!(NewLine { container, at, value, conditional });
fields!(Listing { prefix, delimiter, marker, end_marker, limit, reverse, path });
fields!(Account { created, changed, deleted, containers, objects, bytes, policies, headers });
fields!(Share { containers, objects, bytes });
fields!(Container { created, changed, policy, objects, bytes, headers, index });
fields!(ContainerRow { name, objects, bytes, changed, policy });
fields!(Child { container, policy, from, group });
fields!(Holding { objects, bytes, at, above, children });
fields!(ObjectRow { name, size, etag, content_type, timestamp });

encoded!(AskedFor {
    0 Ask(ask),
    1 Begin { lease, path, given },
    2 Settle { lease, path, before, line, class },
    3 Release { lease },
    4 Several(asks),
});

/// In place of the number of what is asked for: the term in which the sender follows stands before that.
const FOLLOWS: u8 = 5;

impl AskedFor {
    fn of<C, D: Decoder<Context = C>>(number: u8, decoder: &mut D) -> Result<Self, DecodeError> {
        decoded!(decoder, number, {
            0 Ask(ask),
            1 Begin { lease, path, given },
            2 Settle { lease, path, before, line, class },
            3 Release { lease },
            4 Several(asks),
        })
    }
}

impl Encode for NamesRequest {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.group.encode(encoder)?;
        if let Some(term) = self.follows {
            FOLLOWS.encode(encoder)?;
            term.encode(encoder)?;
        }
        self.what.encode(encoder)
    }
}

impl<C> Decode<C> for NamesRequest {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let group = Decode::decode(decoder)?;
        let (follows, number) = match u8::decode(decoder)? {
            FOLLOWS => (Some(Decode::decode(decoder)?), u8::decode(decoder)?),
            number => (None, number),
        };
        Ok(Self { group, follows, what: AskedFor::of(number, decoder)? })
    }
}

variants!(Ask {
    0 Account { account },
    1 Container { account, container },
    2 Line { path },
    3 PutAccount { account, headers, expect },
    4 MarkAccount { account, created },
    5 RemoveMarked { account },
    6 MarkedAccounts { marker, limit },
    7 PutContainer { account, container, policy, headers, expect, post, index },
    8 DeleteContainer { account, container, created },
    9 Accounts { marker, limit },
    10 Containers { account, listing, marked },
    11 Objects { account, container, listing },
    12 Holding { account, container },
    13 Shut { account, container, at },
    14 Open { account, container, at },
    15 DeleteShut { account, container, at },
});

variants!(NamesAnswer {
    0 Answer(answer),
    1 Begun { line, at },
    2 Done,
    3 NotLeader(node),
    4 Moved(node),
    5 Elsewhere(elsewhere),
    6 Several(answers),
});

variants!(Elsewhere { 0 Moved { group, from, to }, 1 Shut { at }, 2 Unknown });

encoded!(Answer {
    0 Account(account),
    1 Container(container),
    2 Line(line),
    3 Put(put),
    4 Deleted(deleted),
    5 Accounts(names),
    6 Containers(page),
    7 Objects(page),
    8 Holding(holding),
    9 Split { answer, children },
});

/// An answer that is not split: what others send must not lead us deeper and deeper.
struct Whole(Answer);

impl<C> Decode<C> for Whole {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let number = u8::decode(decoder)?;
        Answer::whole(number, decoder).map(Self)
    }
}

impl Answer {
    fn whole<C, D: Decoder<Context = C>>(number: u8, decoder: &mut D) -> Result<Self, DecodeError> {
        decoded!(decoder, number, {
            0 Account(account),
            1 Container(container),
            2 Line(line),
            3 Put(put),
            4 Deleted(deleted),
            5 Accounts(names),
            6 Containers(page),
            7 Objects(page),
            8 Holding(holding),
        })
    }
}

impl<C> Decode<C> for Answer {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        match u8::decode(decoder)? {
            9 => {
                let Whole(answer) = Decode::decode(decoder)?;
                Ok(Self::Split { answer: Box::new(answer), children: Decode::decode(decoder)? })
            }
            number => Self::whole(number, decoder),
        }
    }
}

variants!(IndexPolicy { 0 Strict, 1 Eventual });
variants!(Put { 0 Done(made), 1 Changed });
variants!(Made { 0 Created, 1 Updated });
variants!(Deleted { 0 Gone, 1 Absent, 2 NotEmpty });

#[cfg(test)]
#[path = "names_tests.rs"]
pub(super) mod tests;
