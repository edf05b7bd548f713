//! Questions and answers of anti-entropy as bytes (engine/FORMAT-wire.md).

use bincode::{Decode, Encode};
use bytes::Bytes;

use super::{Payload, WireError, bounded};
use crate::catalog::{Stamp, Stamps};
use crate::disk::limits::MAX_RECORD;
use crate::sync::{Answer, Ask, MAX_POWER, MAX_RUNS, MAX_STAMPS, MAX_SUMS, Parts, Runs};

/// Bytes of a stamp in a payload: path hash, sequence, whether it is a tombstone.
const STAMP: usize = 16 + 8 + 1;
const SUM: usize = 16;

#[derive(Encode, Decode)]
pub(super) enum AskHead {
    Sums { power: u8, runs: Runs, group: u32 },
    Stamps { power: u8, part: u32, after: Option<[u8; 16]>, limit: u32, doubt: bool },
    Held { power: u8, from: u32 },
    Record { hash: [u8; 16] },
}

#[derive(Encode, Decode)]
pub(super) enum AnswerHead {
    Sums { count: u32 },
    Stamps { count: u32, upto: Option<[u8; 16]> },
    Held { runs: Runs, next: Option<u32> },
    Record(Option<u32>),
}

fn runs_of(parts: &Parts) -> Result<Runs, WireError> {
    bounded(parts.ranges().len(), MAX_RUNS, "runs")?;
    Ok(parts.runs())
}

fn parts_of(runs: &[(u32, u32)], power: u8) -> Result<Parts, WireError> {
    bounded(runs.len(), MAX_RUNS, "runs")?;
    Parts::from_runs(runs, check_power(power)?).ok_or(WireError::Field("runs"))
}

fn check_power(power: u8) -> Result<u8, WireError> {
    if power <= MAX_POWER { Ok(power) } else { Err(WireError::Limit("power")) }
}

pub(super) fn ask_head(ask: Ask) -> Result<AskHead, WireError> {
    Ok(match ask {
        Ask::Sums { power, parts, group } => {
            AskHead::Sums { power: check_power(power)?, runs: runs_of(&parts)?, group }
        }
        Ask::Stamps { power, part, after, limit, doubt } => {
            AskHead::Stamps { power: check_power(power)?, part, after, limit, doubt }
        }
        Ask::Held { power, from } => AskHead::Held { power: check_power(power)?, from },
        Ask::Record { hash } => AskHead::Record { hash },
    })
}

pub(super) fn ask_of(head: AskHead) -> Result<Ask, WireError> {
    Ok(match head {
        AskHead::Sums { power, runs, group } => Ask::Sums { power, parts: parts_of(&runs, power)?, group },
        AskHead::Stamps { power, part, after, limit, doubt } => {
            Ask::Stamps { power: check_power(power)?, part, after, limit, doubt }
        }
        AskHead::Held { power, from } => Ask::Held { power: check_power(power)?, from },
        AskHead::Record { hash } => Ask::Record { hash },
    })
}

pub(super) fn answer_head(answer: Answer) -> Result<(AnswerHead, Vec<Bytes>), WireError> {
    Ok(match answer {
        Answer::Sums(sums) => {
            let count = bounded(sums.len(), MAX_SUMS, "sums")?;
            let bytes: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
            (AnswerHead::Sums { count }, vec![bytes.into()])
        }
        Answer::Stamps(Stamps { stamps, more, upto }) => {
            let count = bounded(stamps.len(), MAX_STAMPS, "stamps")?;
            let mut bytes = Vec::with_capacity(stamps.len() * STAMP);
            for stamp in &stamps {
                bytes.extend_from_slice(&stamp.hash);
                bytes.extend_from_slice(&stamp.sequence.to_le_bytes());
                bytes.push(u8::from(stamp.deleted));
            }
            (AnswerHead::Stamps { count, upto: upto.filter(|_| more) }, vec![bytes.into()])
        }
        Answer::Held { parts, next } => (AnswerHead::Held { runs: runs_of(&parts)?, next }, Vec::new()),
        Answer::Record(None) => (AnswerHead::Record(None), Vec::new()),
        Answer::Record(Some(record)) => {
            let len = bounded(record.len(), MAX_RECORD, "record")?;
            (AnswerHead::Record(Some(len)), vec![record])
        }
    })
}

fn items<const N: usize>(
    payload: &mut Payload,
    count: u32,
    most: usize,
    what: &'static str,
) -> Result<Vec<[u8; N]>, WireError> {
    bounded(count as usize, most, what)?;
    let bytes = payload.take(count * u32::try_from(N).unwrap_or(0))?;
    Ok(bytes.as_chunks::<N>().0.to_vec())
}

pub(super) fn answer_of(head: AnswerHead, payload: &mut Payload) -> Result<Answer, WireError> {
    Ok(match head {
        AnswerHead::Sums { count } => {
            let sums = items::<SUM>(payload, count, MAX_SUMS, "sums")?;
            Answer::Sums(sums.into_iter().map(u128::from_le_bytes).collect())
        }
        AnswerHead::Stamps { count, upto } => {
            let stamps = items::<STAMP>(payload, count, MAX_STAMPS, "stamps")?;
            let stamps = stamps.iter().map(stamp_of).collect::<Result<_, _>>()?;
            Answer::Stamps(Stamps { stamps, more: upto.is_some(), upto })
        }
        AnswerHead::Held { runs, next } => Answer::Held { parts: parts_of(&runs, MAX_POWER)?, next },
        AnswerHead::Record(len) => {
            if let Some(len) = len {
                bounded(len as usize, MAX_RECORD, "record")?;
            }
            Answer::Record(len.map(|len| payload.take(len)).transpose()?)
        }
    })
}

fn stamp_of(bytes: &[u8; STAMP]) -> Result<Stamp, WireError> {
    let cut = || WireError::Truncated;
    let (hash, rest) = bytes.split_first_chunk::<16>().ok_or_else(cut)?;
    let (sequence, rest) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
    let deleted = match rest {
        [0] => false,
        [1] => true,
        _ => return Err(WireError::Field("stamp")),
    };
    Ok(Stamp { hash: *hash, sequence: u64::from_le_bytes(*sequence), deleted })
}
