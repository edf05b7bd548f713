//! What heads and members of volumes say as bytes (engine/FORMAT-wire.md).

use bincode::{Decode, Encode};
use bytes::Bytes;

use super::{Payload, WireError, bounded};
use crate::block::{BLOCKS_PER_CHUNK, BlockPlace, ChunkId, Position, Run, SliceId, VolumeId};
use crate::net::limits::{MAX_LISTED, MAX_PAYLOAD, MAX_TEXT, MAX_TURNS, MAX_WRITES};
use crate::net::{BlockWrite, ListedVolume, TurnFields, VolumeAnswer, VolumeCall};

#[derive(Encode, Decode)]
pub(super) struct RunHead {
    slice: u32,
    chunk: u16,
    first: u8,
    blocks: u16,
}

#[derive(Encode, Decode)]
pub(super) struct WriteHead {
    epoch: u64,
    sequence: u64,
    run: RunHead,
    era: u32,
    zeroes: bool,
}

#[derive(Encode, Decode)]
pub(super) struct ListedHead {
    volume: [u8; 16],
    snapshot: bool,
    name: String,
    bytes: u64,
    encrypted: bool,
    used: bool,
}

type PlaceHead = (u32, u16, u8);

#[derive(Encode, Decode)]
pub(super) enum CallHead {
    Promise,
    Begin { turns: Vec<TurnFields>, end: u64 },
    Fill { common: u64, after: u64 },
    Join { turns: Vec<TurnFields>, end: u64 },
    Write { writes: Vec<WriteHead>, data: u32, flush: bool },
    Put { rows: Vec<WriteHead>, data: u32 },
    Flush(u64),
    Confirm,
    Read { run: RunHead, at: u64, era: u32 },
    Rows { from: PlaceHead, above: u64, data: bool, era: u32, since: u32 },
    Delete,
    Copy { from: u64 },
    Thin { views: Vec<u32>, era: u32, at: u64 },
    Fork { clone: [u8; 16], era: u32, at: u64 },
    TakeOver { from: PlaceHead, oldest: u32 },
    List { from: u32 },
    View { era: u32, from: u64, upto: u64 },
}

#[derive(Encode, Decode)]
pub(super) enum AnswerHead {
    Promised { session: u64, turns: Vec<TurnFields>, end: u64, whole: bool, kept: bool },
    Done,
    Filling(u64),
    Read { newest: u64, pieces: Vec<(u16, bool)>, data: u32 },
    Rows { rows: Vec<WriteHead>, next: Option<PlaceHead>, data: u32 },
    Unreadable,
    Refused(u8, u64, u64),
    Tight,
    Copied { at: u64, data: u32 },
    Listed(Vec<ListedHead>),
}

fn run_head(run: Run) -> RunHead {
    RunHead { slice: run.slice.0, chunk: run.chunk.0, first: run.first, blocks: run.blocks }
}

fn run_of(head: &RunHead) -> Result<Run, WireError> {
    let RunHead { slice, chunk, first, blocks } = *head;
    if blocks == 0 || blocks > BLOCKS_PER_CHUNK - u16::from(first) {
        return Err(WireError::Field("run of blocks"));
    }
    Ok(Run { slice: SliceId(slice), chunk: ChunkId(chunk), first, blocks })
}

fn writes_head(writes: Vec<BlockWrite>) -> Result<Vec<WriteHead>, WireError> {
    bounded(writes.len(), MAX_WRITES, "writes")?;
    let head = |BlockWrite { position, run, era, zeroes }| WriteHead {
        epoch: position.epoch,
        sequence: position.sequence,
        run: run_head(run),
        era,
        zeroes,
    };
    Ok(writes.into_iter().map(head).collect())
}

fn writes_of(heads: Vec<WriteHead>) -> Result<Vec<BlockWrite>, WireError> {
    bounded(heads.len(), MAX_WRITES, "writes")?;
    let write = |head: WriteHead| {
        let position = Position { epoch: head.epoch, sequence: head.sequence };
        Ok(BlockWrite { position, run: run_of(&head.run)?, era: head.era, zeroes: head.zeroes })
    };
    heads.into_iter().map(write).collect()
}

fn turns(turns: Vec<TurnFields>) -> Result<Vec<TurnFields>, WireError> {
    bounded(turns.len(), MAX_TURNS, "turns")?;
    Ok(turns)
}

fn listed_head(listed: Vec<ListedVolume>) -> Result<Vec<ListedHead>, WireError> {
    bounded(listed.len(), MAX_LISTED, "volumes")?;
    let head = |ListedVolume { volume, snapshot, name, bytes, encrypted, used }: ListedVolume| {
        bounded(name.len(), MAX_TEXT, "name of a volume")?;
        Ok(ListedHead { volume: volume.0, snapshot, name, bytes, encrypted, used })
    };
    listed.into_iter().map(head).collect()
}

fn listed_of(heads: Vec<ListedHead>) -> Result<Vec<ListedVolume>, WireError> {
    bounded(heads.len(), MAX_LISTED, "volumes")?;
    let listed = |ListedHead { volume, snapshot, name, bytes, encrypted, used }: ListedHead| {
        bounded(name.len(), MAX_TEXT, "name of a volume")?;
        Ok(ListedVolume { volume: VolumeId(volume), snapshot, name, bytes, encrypted, used })
    };
    heads.into_iter().map(listed).collect()
}

fn eras(eras: Vec<u32>) -> Result<Vec<u32>, WireError> {
    bounded(eras.len(), MAX_WRITES, "eras")?;
    Ok(eras)
}

fn place_head(place: BlockPlace) -> PlaceHead {
    (place.slice.0, place.chunk.0, place.block)
}

fn place_of((slice, chunk, block): PlaceHead) -> BlockPlace {
    BlockPlace { slice: SliceId(slice), chunk: ChunkId(chunk), block }
}

/// A list of pieces that are told apart; they lie in one chunk.
fn pieces(pieces: Vec<(u16, bool)>) -> Result<Vec<(u16, bool)>, WireError> {
    bounded(pieces.len(), BLOCKS_PER_CHUNK.into(), "pieces")?;
    let blocks: u32 = pieces.iter().map(|(blocks, _)| u32::from(*blocks)).sum();
    if blocks > BLOCKS_PER_CHUNK.into() { Err(WireError::Field("pieces")) } else { Ok(pieces) }
}

pub(super) fn call_head(call: VolumeCall) -> Result<(CallHead, Vec<Bytes>), WireError> {
    let head = match call {
        VolumeCall::Promise => CallHead::Promise,
        VolumeCall::Begin { turns: list, end } => CallHead::Begin { turns: turns(list)?, end },
        VolumeCall::Fill { common, after } => CallHead::Fill { common, after },
        VolumeCall::Join { turns: list, end } => CallHead::Join { turns: turns(list)?, end },
        VolumeCall::Write { writes, data, flush } => {
            let length = bounded(data.len(), MAX_PAYLOAD, "payload")?;
            return Ok((CallHead::Write { writes: writes_head(writes)?, data: length, flush }, vec![data]));
        }
        VolumeCall::Put { rows, data } => {
            let length = bounded(data.len(), MAX_PAYLOAD, "payload")?;
            return Ok((CallHead::Put { rows: writes_head(rows)?, data: length }, vec![data]));
        }
        VolumeCall::Flush(sequence) => CallHead::Flush(sequence),
        VolumeCall::Confirm => CallHead::Confirm,
        VolumeCall::Read { run, at, era } => CallHead::Read { run: run_head(run), at, era },
        VolumeCall::Rows { from, above, data, era, since } => {
            CallHead::Rows { from: place_head(from), above, data, era, since }
        }
        VolumeCall::Delete => CallHead::Delete,
        VolumeCall::Copy { from } => CallHead::Copy { from },
        VolumeCall::Thin { views, era, at } => CallHead::Thin { views: eras(views)?, era, at },
        VolumeCall::Fork { clone, era, at } => CallHead::Fork { clone: clone.0, era, at },
        VolumeCall::TakeOver { from, oldest } => CallHead::TakeOver { from: place_head(from), oldest },
        VolumeCall::List { from } => CallHead::List { from },
        VolumeCall::View { era, from, upto } => CallHead::View { era, from, upto },
    };
    Ok((head, Vec::new()))
}

pub(super) fn call_of(head: CallHead, payload: &mut Payload) -> Result<VolumeCall, WireError> {
    Ok(match head {
        CallHead::Promise => VolumeCall::Promise,
        CallHead::Begin { turns: list, end } => VolumeCall::Begin { turns: turns(list)?, end },
        CallHead::Fill { common, after } => VolumeCall::Fill { common, after },
        CallHead::Join { turns: list, end } => VolumeCall::Join { turns: turns(list)?, end },
        CallHead::Write { writes, data, flush } => {
            VolumeCall::Write { writes: writes_of(writes)?, data: payload.take(data)?, flush }
        }
        CallHead::Put { rows, data } => VolumeCall::Put { rows: writes_of(rows)?, data: payload.take(data)? },
        CallHead::Flush(sequence) => VolumeCall::Flush(sequence),
        CallHead::Confirm => VolumeCall::Confirm,
        CallHead::Read { run, at, era } => VolumeCall::Read { run: run_of(&run)?, at, era },
        CallHead::Rows { from, above, data, era, since } => {
            VolumeCall::Rows { from: place_of(from), above, data, era, since }
        }
        CallHead::Delete => VolumeCall::Delete,
        CallHead::Copy { from } => VolumeCall::Copy { from },
        CallHead::Thin { views, era, at } => VolumeCall::Thin { views: eras(views)?, era, at },
        CallHead::Fork { clone, era, at } => VolumeCall::Fork { clone: VolumeId(clone), era, at },
        CallHead::TakeOver { from, oldest } => VolumeCall::TakeOver { from: place_of(from), oldest },
        CallHead::List { from } => VolumeCall::List { from },
        CallHead::View { era, from, upto } => VolumeCall::View { era, from, upto },
    })
}

pub(super) fn answer_head(answer: VolumeAnswer) -> Result<(AnswerHead, Vec<Bytes>), WireError> {
    let head = match answer {
        VolumeAnswer::Promised { session, turns: list, end, whole, kept } => {
            AnswerHead::Promised { session, turns: turns(list)?, end, whole, kept }
        }
        VolumeAnswer::Done => AnswerHead::Done,
        VolumeAnswer::Filling(from) => AnswerHead::Filling(from),
        VolumeAnswer::Read { newest, pieces: list, data } => {
            let length = bounded(data.len(), MAX_PAYLOAD, "payload")?;
            return Ok((AnswerHead::Read { newest, pieces: pieces(list)?, data: length }, vec![data]));
        }
        VolumeAnswer::Rows { rows, next, data } => {
            let length = bounded(data.len(), MAX_PAYLOAD, "payload")?;
            let head =
                AnswerHead::Rows { rows: writes_head(rows)?, next: next.map(place_head), data: length };
            return Ok((head, vec![data]));
        }
        VolumeAnswer::Unreadable => AnswerHead::Unreadable,
        VolumeAnswer::Refused(why, one, two) => AnswerHead::Refused(why, one, two),
        VolumeAnswer::Tight => AnswerHead::Tight,
        VolumeAnswer::Copied { at, data } => {
            let length = bounded(data.len(), MAX_PAYLOAD, "payload")?;
            return Ok((AnswerHead::Copied { at, data: length }, vec![data]));
        }
        VolumeAnswer::Listed(listed) => AnswerHead::Listed(listed_head(listed)?),
    };
    Ok((head, Vec::new()))
}

pub(super) fn answer_of(head: AnswerHead, payload: &mut Payload) -> Result<VolumeAnswer, WireError> {
    Ok(match head {
        AnswerHead::Promised { session, turns: list, end, whole, kept } => {
            VolumeAnswer::Promised { session, turns: turns(list)?, end, whole, kept }
        }
        AnswerHead::Done => VolumeAnswer::Done,
        AnswerHead::Filling(from) => VolumeAnswer::Filling(from),
        AnswerHead::Read { newest, pieces: list, data } => {
            VolumeAnswer::Read { newest, pieces: pieces(list)?, data: payload.take(data)? }
        }
        AnswerHead::Rows { rows, next, data } => {
            VolumeAnswer::Rows { rows: writes_of(rows)?, next: next.map(place_of), data: payload.take(data)? }
        }
        AnswerHead::Unreadable => VolumeAnswer::Unreadable,
        AnswerHead::Refused(why, one, two) => VolumeAnswer::Refused(why, one, two),
        AnswerHead::Tight => VolumeAnswer::Tight,
        AnswerHead::Copied { at, data } => VolumeAnswer::Copied { at, data: payload.take(data)? },
        AnswerHead::Listed(heads) => VolumeAnswer::Listed(listed_of(heads)?),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::block::Fence;
    use crate::disk::format::record::DeviceId;
    use crate::net::{Request, Response};

    fn write(sequence: u64, zeroes: bool) -> BlockWrite {
        let run = Run { slice: SliceId(1), chunk: ChunkId(300), first: 255, blocks: 1 };
        BlockWrite { position: Position { epoch: 7, sequence }, run, era: 5, zeroes }
    }

    pub(in super::super) fn requests() -> Vec<(Request, &'static str)> {
        let of = |call| Request::Volume {
            device: DeviceId([0xd0; 16]),
            volume: VolumeId([0xee; 16]),
            fence: Fence { epoch: 300, configuration: 2 },
            session: 9,
            call,
        };
        let text = |rest: &str| -> &'static str {
            format!("0d{}{}fb2c010209{rest}", "d0".repeat(16), "ee".repeat(16)).leak()
        };
        let place = BlockPlace { slice: SliceId(1), chunk: ChunkId(2), block: 3 };
        let data = Bytes::from_static(b"bytes");
        let run = write(0, false).run;
        vec![
            (of(VolumeCall::Promise), text("00|")),
            (of(VolumeCall::Begin { turns: vec![(1, 0), (7, 5)], end: 6 }), text("01020100070506|")),
            (of(VolumeCall::Fill { common: 5, after: 6 }), text("020506|")),
            (of(VolumeCall::Join { turns: vec![(1, 0)], end: 6 }), text("0301010006|")),
            (
                of(VolumeCall::Write {
                    writes: vec![write(3, false), write(4, true)],
                    data: data.clone(),
                    flush: true,
                }),
                text("0402070301fb2c01ff010500070401fb2c01ff0105010501|6279746573"),
            ),
            (
                of(VolumeCall::Put { rows: vec![write(3, false)], data }),
                text("0501070301fb2c01ff01050005|6279746573"),
            ),
            (of(VolumeCall::Flush(9)), text("0609|")),
            (of(VolumeCall::Confirm), text("07|")),
            (of(VolumeCall::Read { run, at: 8, era: 6 }), text("0801fb2c01ff010806|")),
            (
                of(VolumeCall::Rows { from: place, above: 4, data: true, era: 6, since: 2 }),
                text("0901020304010602|"),
            ),
            (of(VolumeCall::Delete), text("0a|")),
            (of(VolumeCall::Copy { from: 4096 }), text("0bfb0010|")),
            (of(VolumeCall::Thin { views: vec![1, 4], era: 6, at: 9 }), text("0c0201040609|")),
            (
                of(VolumeCall::Fork { clone: VolumeId([0xcc; 16]), era: 6, at: 9 }),
                text(&format!("0d{}0609|", "cc".repeat(16))),
            ),
            (of(VolumeCall::TakeOver { from: place, oldest: 6 }), text("0e01020306|")),
            (of(VolumeCall::List { from: 300 }), text("0ffb2c01|")),
            (of(VolumeCall::View { era: 6, from: 8, upto: 300 }), text("100608fb2c01|")),
        ]
    }

    pub(in super::super) fn responses() -> Vec<(Response, &'static str)> {
        let data = Bytes::from_static(b"bytes");
        let place = BlockPlace { slice: SliceId(1), chunk: ChunkId(2), block: 3 };
        let (session, turns) = (9, vec![(1, 0)]);
        let promised = VolumeAnswer::Promised { session, turns, end: 6, whole: false, kept: true };
        let (volume, name) = (VolumeId([7; 16]), "disk".to_owned());
        let listed = ListedVolume { volume, snapshot: true, name, bytes: 300, encrypted: false, used: true };
        let rows = VolumeAnswer::Rows { rows: vec![write(3, true)], next: Some(place), data: Bytes::new() };
        [
            (promised, "090009010100060001|"),
            (VolumeAnswer::Done, "0901|"),
            (VolumeAnswer::Filling(300), "0902fb2c01|"),
            (
                VolumeAnswer::Read { newest: 8, pieces: vec![(1, false), (2, true)], data: data.clone() },
                "090308020100020105|6279746573",
            ),
            (rows, "090401070301fb2c01ff0105010101020300|"),
            (VolumeAnswer::Unreadable, "0905|"),
            (VolumeAnswer::Refused(1, 300, 2), "090601fb2c0102|"),
            (VolumeAnswer::Tight, "0907|"),
            (VolumeAnswer::Copied { at: 4096, data }, "0908fb001005|6279746573"),
            (
                VolumeAnswer::Listed(vec![listed]),
                "0909010707070707070707070707070707070701046469736bfb2c010001|",
            ),
        ]
        .into_iter()
        .map(|(answer, golden)| (Response::Volume(answer), golden))
        .collect()
    }

    #[test]
    fn runs_lie_in_one_chunk() {
        let head = |first, blocks| RunHead { slice: 0, chunk: 0, first, blocks };
        assert!(run_of(&head(255, 1)).is_ok() && run_of(&head(0, 256)).is_ok());
        assert!(run_of(&head(255, 2)).is_err() && run_of(&head(0, 0)).is_err());
        assert!(pieces(vec![(200, true), (57, false)]).is_err());
    }
}
