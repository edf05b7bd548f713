//! What groups write to disk, byte by byte (engine/FORMAT-groups.md).
//!
//! Invariant: bytes decode to what was encoded, or to [`BadValue`]; never a panic, and nothing is allocated by a stated count.
//! Invariant: log entries are the same bytes on every disk and in every message.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use openraft::{EmptyNode, LeaderId};

use super::limits::{MAX_COMMAND_ENTRIES, MAX_ENTRY_ROWS, MAX_GUARDS, MAX_MEMBERS};
use super::raft::{Command, LogEntry, LogId, Membership, Payload, StoredMembership, Vote, log_id};
use super::territory::Host;
use super::types::{Entry, Expected, Guard, RowChange};
use crate::catalog::{BadValue, GroupId};
use crate::disk::format::bytes::{Put, Reader};
use crate::net::NodeId;

const VERSION: u8 = 1;

const BLANK: u8 = 0;
const ROWS: u8 = 1;
const MEMBERS: u8 = 2;

type Decoded<T> = Result<T, BadValue>;

fn open(bytes: &[u8]) -> Decoded<Reader<'_>> {
    let mut r = Reader::new(bytes);
    match r.u8()? {
        VERSION => Ok(r),
        other => Err(BadValue::Version(other)),
    }
}

fn end<T>(r: Reader<'_>, value: T) -> Decoded<T> {
    if r.rest().is_empty() { Ok(value) } else { Err(BadValue::Field("end")) }
}

fn flag(r: &mut Reader<'_>) -> Decoded<bool> {
    match r.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(BadValue::Field("flag")),
    }
}

fn count(r: &mut Reader<'_>, most: usize, what: &'static str) -> Decoded<usize> {
    let count = usize::try_from(r.varint()?).map_err(|_| BadValue::Field(what))?;
    if count > most { Err(BadValue::Field(what)) } else { Ok(count) }
}

fn put_log_id(out: &mut Vec<u8>, id: LogId) {
    out.put_u64(id.leader_id.term);
    out.put_u64(id.index);
}

fn read_log_id(r: &mut Reader<'_>) -> Decoded<LogId> {
    Ok(log_id(r.u64()?, r.u64()?))
}

fn put_option(out: &mut Vec<u8>, id: Option<LogId>) {
    out.push(u8::from(id.is_some()));
    if let Some(id) = id {
        put_log_id(out, id);
    }
}

fn read_option(r: &mut Reader<'_>) -> Decoded<Option<LogId>> {
    if flag(r)? { read_log_id(r).map(Some) } else { Ok(None) }
}

fn put_nodes<'a>(out: &mut Vec<u8>, nodes: impl ExactSizeIterator<Item = &'a NodeId>) {
    out.put_varint(nodes.len() as u64);
    nodes.for_each(|node| out.extend_from_slice(&node.0));
}

fn read_nodes(r: &mut Reader<'_>) -> Decoded<BTreeSet<NodeId>> {
    let count = count(r, MAX_MEMBERS, "members")?;
    (0..count).map(|_| Ok(NodeId(r.array()?))).collect()
}

fn put_membership(out: &mut Vec<u8>, membership: &Membership) {
    let configs = membership.get_joint_config();
    out.put_varint(configs.len() as u64);
    for config in configs {
        put_nodes(out, config.iter());
    }
    let all: Vec<&NodeId> = membership.nodes().map(|(node, _)| node).collect();
    put_nodes(out, all.into_iter());
}

fn read_membership(r: &mut Reader<'_>) -> Decoded<Membership> {
    let joint = count(r, MAX_MEMBERS, "configurations")?;
    let configs: Vec<BTreeSet<NodeId>> = (0..joint).map(|_| read_nodes(r)).collect::<Decoded<_>>()?;
    let nodes: BTreeMap<NodeId, EmptyNode> = read_nodes(r)?.into_iter().map(|n| (n, EmptyNode {})).collect();
    if configs.iter().flatten().any(|voter| !nodes.contains_key(voter)) {
        return Err(BadValue::Field("members"));
    }
    Ok(Membership::new(configs, nodes))
}

/// An entry of the log.
pub(crate) fn encode_entry(entry: &LogEntry) -> Vec<u8> {
    let mut out = vec![VERSION];
    put_log_id(&mut out, entry.log_id);
    match &entry.payload {
        Payload::Blank => out.push(BLANK),
        Payload::Normal(Command(entries)) => {
            out.push(ROWS);
            out.put_varint(entries.len() as u64);
            entries.iter().for_each(|entry| put_rows(&mut out, entry));
        }
        Payload::Membership(membership) => {
            out.push(MEMBERS);
            put_membership(&mut out, membership);
        }
    }
    out
}

/// Bytes of an entry, about: never less than it takes.
pub(crate) fn entry_bytes(entry: &Entry) -> usize {
    let guards: usize = entry.guards.iter().map(|guard| guard.key.len() + super::limits::PER_ROW).sum();
    let value = |row: &RowChange| row.value.as_ref().map_or(0, Vec::len);
    let rows = entry.rows.iter().map(|row| row.key.len() + value(row) + super::limits::PER_ROW);
    guards + rows.sum::<usize>() + super::limits::PER_ROW
}

fn put_rows(out: &mut Vec<u8>, entry: &Entry) {
    out.push(u8::from(entry.term.is_some()));
    if let Some(term) = entry.term {
        out.put_u64(term);
    }
    out.put_varint(entry.guards.len() as u64);
    for guard in &entry.guards {
        out.put_prefixed(&guard.key);
        match guard.expected {
            Expected::Absent => out.push(0),
            Expected::Sequence(sequence) => {
                out.push(1);
                out.put_u64(sequence);
            }
        }
    }
    out.put_varint(entry.rows.len() as u64);
    for row in &entry.rows {
        put_row(out, &row.key, row.sequence, row.value.as_deref());
    }
}

fn put_row(out: &mut Vec<u8>, key: &[u8], sequence: u64, value: Option<&[u8]>) {
    out.put_prefixed(key);
    out.put_u64(sequence);
    out.push(u8::from(value.is_some()));
    if let Some(value) = value {
        out.put_prefixed(value);
    }
}

fn read_row(r: &mut Reader<'_>) -> Decoded<RowChange> {
    let key = r.prefixed()?.to_vec();
    let sequence = r.u64()?;
    let value = if flag(r)? { Some(r.prefixed()?.to_vec()) } else { None };
    Ok(RowChange { key, sequence, value })
}

fn read_rows(r: &mut Reader<'_>) -> Decoded<Entry> {
    let term = if flag(r)? { Some(r.u64()?) } else { None };
    let guards = count(r, MAX_GUARDS, "guards")?;
    let guards = (0..guards).map(|_| {
        let key = r.prefixed()?.to_vec();
        let expected = if flag(r)? { Expected::Sequence(r.u64()?) } else { Expected::Absent };
        Ok(Guard { key, expected })
    });
    let guards = guards.collect::<Decoded<_>>()?;
    let rows = count(r, MAX_ENTRY_ROWS, "rows")?;
    let rows = (0..rows).map(|_| read_row(r)).collect::<Decoded<_>>()?;
    Ok(Entry { term, guards, rows })
}

/// What the bytes of a log entry say.
pub(crate) fn decode_entry(bytes: &[u8]) -> Decoded<LogEntry> {
    let mut r = open(bytes)?;
    let log_id = read_log_id(&mut r)?;
    let payload = match r.u8()? {
        BLANK => Payload::Blank,
        ROWS => {
            let entries = count(&mut r, MAX_COMMAND_ENTRIES, "entries")?;
            let entries = (0..entries).map(|_| read_rows(&mut r)).collect::<Decoded<Vec<_>>>()?;
            Payload::Normal(Command(Arc::new(entries)))
        }
        MEMBERS => Payload::Membership(read_membership(&mut r)?),
        _ => return Err(BadValue::Field("payload")),
    };
    end(r, LogEntry { log_id, payload })
}

/// What a group's state record says beside its reach.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Facts {
    pub(crate) vote: Option<Vote>,
    pub(crate) purged: Option<LogId>,
    /// How often this disk gave the group up: rows of each life have keys of their own.
    pub(crate) life: u16,
    /// The group is not here.
    pub(crate) given_up: bool,
    /// Lines that it has where it took them over; `None`: all its rows are in its own space.
    pub(crate) host: Option<Host>,
    /// A snapshot that lies here whole and is being installed.
    pub(crate) staged: Option<Staged>,
}

/// A whole snapshot on this disk.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Staged {
    /// What was applied when it was taken.
    pub(crate) marker: Marker,
    /// Numbers of its chunks: from 0 to below this.
    pub(crate) chunks: u64,
}

impl Facts {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.push(u8::from(self.vote.is_some()));
        if let Some(Vote { leader_id, committed }) = self.vote {
            out.put_u64(leader_id.term);
            out.push(u8::from(leader_id.voted_for.is_some()));
            out.extend_from_slice(&leader_id.voted_for.unwrap_or_default().0);
            out.push(u8::from(committed));
        }
        put_option(&mut out, self.purged);
        out.extend_from_slice(&self.life.to_le_bytes());
        out.push(u8::from(self.given_up));
        out.push(u8::from(self.host.is_some()));
        if let Some(host) = &self.host {
            put_host(&mut out, host);
        }
        out.push(u8::from(self.staged.is_some()));
        if let Some(staged) = &self.staged {
            out.put_u64(staged.chunks);
            out.extend_from_slice(&staged.marker.encode());
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut r = open(bytes)?;
        let vote = if flag(&mut r)? {
            let term = r.u64()?;
            let voted = flag(&mut r)?;
            let node = NodeId(r.array()?);
            let leader_id = LeaderId { term, voted_for: voted.then_some(node) };
            Some(Vote { leader_id, committed: flag(&mut r)? })
        } else {
            None
        };
        let purged = read_option(&mut r)?;
        let (life, given_up) = (u16::from_le_bytes(r.array()?), flag(&mut r)?);
        let host = if flag(&mut r)? { Some(read_host(&mut r)?) } else { None };
        if !flag(&mut r)? {
            return end(r, Self { vote, purged, life, given_up, host, staged: None });
        }
        let chunks = r.u64()?;
        let marker = Marker::decode(r.rest())?;
        Ok(Self { vote, purged, life, given_up, host, staged: Some(Staged { marker, chunks }) })
    }
}

fn put_host(out: &mut Vec<u8>, host: &Host) {
    out.put_varint(u64::from(host.space));
    out.put_u64(host.id);
    out.put_prefixed(host.from.as_bytes());
    out.push(u8::from(host.to.is_some()));
    if let Some(to) = &host.to {
        out.put_prefixed(to.as_bytes());
    }
}

fn read_host(r: &mut Reader<'_>) -> Decoded<Host> {
    let name = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| BadValue::Field("name"));
    let space = GroupId::try_from(r.varint()?).map_err(|_| BadValue::Field("space"))?;
    let (id, from) = (r.u64()?, name(r.prefixed()?)?);
    let to = if flag(r)? { Some(name(r.prefixed()?)?) } else { None };
    Ok(Host { space, id, from, to })
}

/// How far a group's rows have come.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Marker {
    /// The last entry of the log that is applied whole.
    pub(crate) applied: Option<LogId>,
    /// How many of the entries in the next log entry are applied.
    pub(crate) part: u64,
    /// Greatest version time of a row that was ever applied.
    pub(crate) max_sequence: u64,
    /// The term of the last entry of which anything is applied.
    pub(crate) term: u64,
    /// What `max_sequence` was when that term's first entry came.
    pub(crate) floor: u64,
    pub(crate) membership: StoredMembership,
}

impl Marker {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        put_option(&mut out, self.applied);
        out.put_u64(self.part);
        out.put_u64(self.max_sequence);
        out.put_u64(self.term);
        out.put_u64(self.floor);
        put_option(&mut out, *self.membership.log_id());
        put_membership(&mut out, self.membership.membership());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut r = open(bytes)?;
        let applied = read_option(&mut r)?;
        let (part, max_sequence, term, floor) = (r.u64()?, r.u64()?, r.u64()?, r.u64()?);
        let log_id = read_option(&mut r)?;
        let membership = StoredMembership::new(log_id, read_membership(&mut r)?);
        end(r, Self { applied, part, max_sequence, term, floor, membership })
    }
}

/// Rows of a chunk of a snapshot, in key order.
#[derive(Debug, Default)]
pub(crate) struct ChunkWriter {
    bytes: Vec<u8>,
}

impl ChunkWriter {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn push(&mut self, key: &[u8], sequence: u64, value: &[u8]) {
        if self.bytes.is_empty() {
            self.bytes.push(VERSION);
        }
        put_row(&mut self.bytes, key, sequence, Some(value));
    }

    /// The chunk's bytes, if there is a row in it; empty again.
    pub(crate) fn take(&mut self) -> Option<Vec<u8>> {
        let bytes = std::mem::take(&mut self.bytes);
        (!bytes.is_empty()).then_some(bytes)
    }
}

/// The rows of a chunk.
pub(crate) fn decode_chunk(bytes: &[u8]) -> Decoded<Vec<RowChange>> {
    let mut r = open(bytes)?;
    let mut rows = Vec::new();
    while !r.rest().is_empty() {
        let row = read_row(&mut r)?;
        if row.value.is_none() {
            return Err(BadValue::Field("row"));
        }
        rows.push(row);
    }
    Ok(rows)
}
