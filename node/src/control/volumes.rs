//! Volumes that have several members, as rows of the control group (node/FORMAT-control.md). A row each, under a letter of
//! their own: nothing that follows the cluster reads them all.
//!
//! Invariant: a name belongs to one volume: both its rows are written together, given that neither stood.
//! Invariant: an epoch and a configuration are changed given that the row stands as it was read; of two who change it one is told so.
//! Invariant: what is read here may be old, and is never believed against the group.

mod doubts;
pub(crate) mod wrapping;

use std::sync::Arc;
use std::time::Duration;

use quarry_engine::clock::{Clock, Timestamp};
use quarry_engine::consensus::{Entry, Expected, Group, Guard, Outcome, RowChange, StatusWatch};
use quarry_engine::disk::format::bytes::{Put, Reader};
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::index::Range;
use quarry_engine::net::{Code, Failure, NodeId, Request, Response, Transport, VolumeCall, Wish};
use quarry_volume::Fence;
use quarry_volume::VolumeId;
use quarry_volume::WrappedKey;
use quarry_volume::head::{Configuration, MAX_MEMBERS};
use quarry_volume::pace::{Limits, Rate};
use quarry_volume::store::{Members, Views};

use self::doubts::Doubts;
use super::groups::{ControlError, Own};
use super::state::BadState;

const PREFIX: u8 = b'V';
const VERSION: u8 = 1;
/// Of one with what only some volumes have: fields behind the others, in the order of their tags.
const FIELDS: u8 = 2;
const KEY_FIELD: u8 = 1;
const SNAPSHOTS_FIELD: u8 = 2;
const LIMITS_FIELD: u8 = 3;
const PARENT_FIELD: u8 = 4;
const RETURNING_FIELD: u8 = 5;
const WANTED_FIELD: u8 = 6;
/// Most snapshots of one volume: its row has them all.
pub(crate) const MAX_SNAPSHOTS: usize = 128;
/// How long a change may take.
const WITHIN: Duration = Duration::from_secs(5);
/// How long what was written may take to be seen here, and the pause between two looks.
const SEEN: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);
/// Pause between two looks for members whose volume is gone.
const SWEEP: Duration = Duration::from_secs(60);

/// A volume that has several members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) id: VolumeId,
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) bytes: u64,
    pub(crate) slice_bytes: u64,
    /// Milliseconds since 1970.
    pub(crate) made: u64,
    /// Of the present head.
    pub(crate) epoch: u64,
    /// Who has it; `None`: nobody had it yet, or it was given back.
    pub(crate) head: Option<NodeId>,
    pub(crate) configuration: Configuration,
    /// Its blocks are encrypted with this.
    pub(crate) key: Option<WrappedKey>,
    /// To which its writes belong: above those of all snapshots that ever were.
    pub(crate) era: u32,
    /// Its snapshots, oldest first.
    pub(crate) snapshots: Vec<SnapshotRow>,
    /// How fast it may be used.
    pub(crate) limits: Limits,
    /// What it is a clone of.
    pub(crate) parent: Option<ParentRow>,
    /// It is on its way back to the snapshot of this era, which whoever attaches it completes.
    pub(crate) returning: Option<u32>,
    /// How many members it shall have; 0: as many as it has. Written when one is to be replaced.
    pub(crate) wanted: u8,
}

/// What a clone comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ParentRow {
    pub(crate) volume: VolumeId,
    /// Of its snapshot.
    pub(crate) era: u32,
    /// The clone's members are being made, by the node that is its head: nobody uses it yet.
    pub(crate) making: bool,
}

/// A snapshot of such a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SnapshotRow {
    /// The last era that it sees.
    pub(crate) era: u32,
    /// Of the volume then.
    pub(crate) bytes: u64,
    /// Milliseconds since 1970.
    pub(crate) made: u64,
    pub(crate) name: String,
}

/// A row, and the version time with which it stands.
pub(crate) type Standing = (Row, u64);

/// Why a volume's row was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RegisterError {
    /// Somebody else was first.
    #[error("somebody else changed the volume at the same time")]
    Changed,
    /// The group does not answer, or its answer is not known.
    #[error("the control group does not answer: {0}")]
    Away(String),
}

fn row_key(id: VolumeId) -> Vec<u8> {
    [&[PREFIX, b'i'][..], &id.0].concat()
}

fn name_key(name: &str) -> Vec<u8> {
    [&[PREFIX, b'n'], name.as_bytes()].concat()
}

/// The id that a text is, in hex.
pub(crate) fn id_of(text: &str) -> Option<VolumeId> {
    let mut id = [0; 16];
    hex::decode_to_slice(text, &mut id).ok()?;
    Some(VolumeId(id))
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_varint(text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn text(r: &mut Reader<'_>) -> Result<String, BadState> {
    let text = std::str::from_utf8(r.prefixed()?).map_err(|_| BadState::Field("text of a volume"))?;
    Ok(text.to_owned())
}

fn devices(r: &mut Reader<'_>) -> Result<Vec<DeviceId>, BadState> {
    let count = r.varint()?;
    if count > MAX_MEMBERS as u64 {
        return Err(BadState::Field("members of a volume"));
    }
    (0..count).map(|_| Ok(DeviceId(r.array()?))).collect()
}

impl Row {
    fn encode(&self) -> Vec<u8> {
        let fields = self.fields();
        let mut out = vec![if fields.is_empty() { VERSION } else { FIELDS }];
        out.extend_from_slice(&self.id.0);
        for number in [self.bytes, self.slice_bytes, self.made, self.epoch] {
            out.put_varint(number);
        }
        // No node has this identity: they are random.
        out.extend_from_slice(&self.head.unwrap_or_default().0);
        out.put_varint(self.configuration.version.into());
        for list in [&self.configuration.members, &self.configuration.joining] {
            out.put_varint(list.len() as u64);
            list.iter().for_each(|device| out.extend_from_slice(&device.0));
        }
        put_text(&mut out, &self.name);
        put_text(&mut out, &self.description);
        for (tag, value) in fields {
            out.push(tag);
            out.put_varint(value.len() as u64);
            out.extend_from_slice(&value);
        }
        out
    }

    fn fields(&self) -> Vec<(u8, Vec<u8>)> {
        let key = self.key.map(|WrappedKey(key)| (KEY_FIELD, key.to_vec()));
        let mut snapshots = Vec::new();
        snapshots.put_varint(self.era.into());
        for SnapshotRow { era, bytes, made, name } in &self.snapshots {
            for number in [u64::from(*era), *bytes, *made] {
                snapshots.put_varint(number);
            }
            put_text(&mut snapshots, name);
        }
        let snapshots = (self.era > 0).then_some((SNAPSHOTS_FIELD, snapshots));
        let limits = (!self.limits.is_free()).then(|| (LIMITS_FIELD, self.encode_limits()));
        let parent = self.parent.map(|ParentRow { volume, era, making }| {
            let mut out = volume.0.to_vec();
            out.put_varint(era.into());
            out.push(making.into());
            (PARENT_FIELD, out)
        });
        let returning = self.returning.map(|era| {
            let mut out = Vec::new();
            out.put_varint(era.into());
            (RETURNING_FIELD, out)
        });
        let wanted = (self.wanted > 0).then(|| (WANTED_FIELD, vec![self.wanted]));
        key.into_iter().chain(snapshots).chain(limits).chain(parent).chain(returning).chain(wanted).collect()
    }

    fn encode_limits(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (which, rate) in (0_u8..).zip(self.limits.0).filter(|(_, rate)| rate.per_second > 0) {
            out.push(which);
            out.put_varint(rate.per_second);
            out.put_varint(rate.burst);
        }
        out
    }

    fn take_limits(&mut self, value: &[u8]) -> Result<(), BadState> {
        let bad = || BadState::Field("limits of a volume");
        let (mut rest, mut next) = (value, 0);
        while !rest.is_empty() {
            let mut r = Reader::new(rest);
            let (which, rate) = (r.u8()?, Rate { per_second: r.varint()?, burst: r.varint()? });
            let place = self.limits.0.get_mut(usize::from(which)).ok_or_else(bad)?;
            if which < next || rate.per_second == 0 {
                return Err(bad());
            }
            (*place, next, rest) = (rate, which + 1, r.rest());
        }
        if next == 0 { Err(bad()) } else { Ok(()) }
    }

    fn take(&mut self, tag: u8, value: &[u8]) -> Result<(), BadState> {
        let bad = || BadState::Field("field of a volume");
        match tag {
            KEY_FIELD => self.key = Some(WrappedKey(value.try_into().map_err(|_| bad())?)),
            SNAPSHOTS_FIELD => self.take_snapshots(value)?,
            LIMITS_FIELD => self.take_limits(value)?,
            PARENT_FIELD => {
                let mut r = Reader::new(value);
                let volume = VolumeId(r.array()?);
                let era = u32::try_from(r.varint()?).map_err(|_| bad())?;
                let making = r.u8()?;
                if making > 1 || !r.rest().is_empty() {
                    return Err(bad());
                }
                self.parent = Some(ParentRow { volume, era, making: making == 1 });
            }
            RETURNING_FIELD => {
                let mut r = Reader::new(value);
                let era = u32::try_from(r.varint()?).map_err(|_| bad())?;
                if !r.rest().is_empty() {
                    return Err(bad());
                }
                self.returning = Some(era);
            }
            WANTED_FIELD => match value {
                [wanted] if (1..=MAX_MEMBERS).contains(&usize::from(*wanted)) => self.wanted = *wanted,
                _ => return Err(bad()),
            },
            _ => return Err(bad()),
        }
        Ok(())
    }

    /// A clone whose members are not there yet.
    pub(crate) fn is_being_made(&self) -> bool {
        self.parent.is_some_and(|parent| parent.making)
    }

    /// The snapshot of a name.
    pub(crate) fn snapshot(&self, name: &str) -> Option<&SnapshotRow> {
        self.snapshots.iter().find(|known| known.name == name)
    }

    fn take_snapshots(&mut self, value: &[u8]) -> Result<(), BadState> {
        let bad = || BadState::Field("snapshots of a volume");
        let era = |r: &mut Reader<'_>| u32::try_from(r.varint()?).map_err(|_| bad());
        let mut r = Reader::new(value);
        self.era = era(&mut r)?;
        let mut rest = r.rest();
        while !rest.is_empty() {
            let mut r = Reader::new(rest);
            let (era, bytes, made) = (era(&mut r)?, r.varint()?, r.varint()?);
            self.snapshots.push(SnapshotRow { era, bytes, made, name: text(&mut r)? });
            rest = r.rest();
        }
        let rising = self.snapshots.is_sorted_by(|a, b| a.era < b.era);
        let below = self.snapshots.last().is_none_or(|last| last.era < self.era);
        let few = self.snapshots.len() <= MAX_SNAPSHOTS;
        if self.era > 0 && rising && below && few { Ok(()) } else { Err(bad()) }
    }

    /// What its heads are told of its snapshots.
    pub(crate) fn views(&self) -> Views {
        Views { era: self.era, snapshots: self.snapshots.iter().map(|one| one.era).collect() }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, BadState> {
        let mut r = Reader::new(bytes);
        let more = match r.u8()? {
            VERSION => false,
            FIELDS => true,
            other => return Err(BadState::Version(other)),
        };
        let id = VolumeId(r.array()?);
        let (bytes, slice_bytes, made, epoch) = (r.varint()?, r.varint()?, r.varint()?, r.varint()?);
        let head = NodeId(r.array()?);
        let version = u32::try_from(r.varint()?).map_err(|_| BadState::Field("version of members"))?;
        let (members, joining) = (devices(&mut r)?, devices(&mut r)?);
        if members.is_empty() {
            return Err(BadState::Field("members of a volume"));
        }
        let configuration = Configuration { version, members, joining };
        let (name, description) = (text(&mut r)?, text(&mut r)?);
        let head = Some(head).filter(|head| *head != NodeId::default());
        let mut row = Self {
            id,
            name,
            description,
            bytes,
            slice_bytes,
            made,
            epoch,
            head,
            configuration,
            key: None,
            era: 0,
            snapshots: Vec::new(),
            limits: Limits::default(),
            parent: None,
            returning: None,
            wanted: 0,
        };
        let (mut rest, mut last) = (r.rest(), 0);
        while !rest.is_empty() {
            let mut r = Reader::new(rest);
            let (tag, value) = (r.u8()?, r.prefixed()?);
            // One way to write a row.
            if tag <= last {
                return Err(BadState::Field("order of a volume's fields"));
            }
            row.take(tag, value)?;
            (rest, last) = (r.rest(), tag);
        }
        if more == (last > 0) { Ok(row) } else { Err(BadState::Field("fields of a volume")) }
    }
}

/// May rows become this? Whoever could not read them would not know what is whose.
fn judge(key: &[u8], value: Option<&[u8]>) -> Result<(), String> {
    match (key.split_at_checked(2), value) {
        (Some(([PREFIX, b'i'], id)), Some(value)) => match Row::decode(value) {
            Ok(row) if row.id.0 == id => Ok(()),
            Ok(_) => Err("the row is another volume's".to_owned()),
            Err(bad) => Err(bad.to_string()),
        },
        (Some(([PREFIX, b'n'], name)), Some(value)) if !name.is_empty() && value.len() == 16 => Ok(()),
        (Some(([PREFIX, b'i' | b'n'], _)), None) => Ok(()),
        (Some(([PREFIX, b'k'], [])), Some(value)) => {
            wrapping::Choice::decode(value).map(drop).map_err(|bad| bad.to_string())
        }
        (Some(([PREFIX, b'w'], [])), Some(value)) => {
            wrapping::judge_spoke(value).map_err(|bad| bad.to_string())
        }
        (Some(([PREFIX, b'h'], node)), value) if node.len() == 16 => value
            .map_or(Ok(()), |value| wrapping::Held::decode(value).map(drop).map_err(|bad| bad.to_string())),
        _ => Err("it is no row of a volume".to_owned()),
    }
}

type Guards = Vec<(Vec<u8>, Option<u64>)>;
/// What is to stand, and what is to be written then.
pub(crate) type Change = (Guards, Rows);
/// What a node knows of a volume, to ask the group whether it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known(Guards);

type Rows = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// A volume is made, unless its name is taken.
pub(crate) fn making(row: &Row, chosen: Option<u64>) -> Change {
    let (key, name) = (row_key(row.id), name_key(&row.name));
    let mut guards = vec![(key.clone(), None), (name.clone(), None)];
    guards.extend(row.key.map(|_| (wrapping::choice_key(), chosen)));
    (guards, vec![(key, Some(row.encode())), (name, Some(row.id.0.to_vec()))])
}

/// A volume's key is wrapped anew: by one that was dropped meanwhile it could be opened nowhere.
pub(crate) fn rewrapping(row: &Row, time: u64, chosen: Option<u64>) -> Change {
    let key = row_key(row.id);
    (vec![(key.clone(), Some(time)), (wrapping::choice_key(), chosen)], vec![(key, Some(row.encode()))])
}

/// Writes rows of volumes, where this node leads.
pub(super) async fn write(
    groups: &Own,
    clock: &Clock,
    guards: Guards,
    rows: Rows,
) -> Result<Result<Response, String>, ControlError> {
    if let Some(why) = rows.iter().find_map(|(key, value)| judge(key, value.as_deref()).err()) {
        return Ok(Err(why));
    }
    let leading = groups.control.barrier().await?;
    if rows.is_empty() {
        return stand(groups, &guards).map(Ok);
    }
    clock.observe(Timestamp(leading.above));
    let guard = |(key, time): (Vec<u8>, Option<u64>)| Guard {
        key,
        expected: time.map_or(Expected::Absent, Expected::Sequence),
    };
    let change = |(key, value)| RowChange { key, sequence: clock.tick().0, value };
    let entry = Entry {
        term: None,
        guards: guards.into_iter().map(guard).collect(),
        rows: rows.into_iter().map(change).collect(),
    };
    Ok(Ok(match groups.control.propose(entry).await? {
        Outcome::Applied => Response::Done,
        Outcome::Refused(_) => changed_meanwhile(),
        _ => Response::Failed(Failure::new(Code::Unavailable, "try again")),
    }))
}

/// Whether rows stand at these times, where everything that was ever acknowledged is applied: nothing need be written to know it.
fn stand(groups: &Own, guards: &Guards) -> Result<Response, ControlError> {
    for (key, time) in guards {
        if groups.control.row(key)?.map(|row| row.sequence) != *time {
            return Ok(changed_meanwhile());
        }
    }
    Ok(Response::Done)
}

fn changed_meanwhile() -> Response {
    Response::Failed(Failure::new(Code::ConditionFailed, "the volume was changed meanwhile"))
}

/// The rows of volumes, as seen from a node.
#[derive(Clone)]
pub(crate) struct Register {
    control: Group,
    net: Arc<dyn Transport>,
    doubts: Arc<Doubts>,
}

impl std::fmt::Debug for Register {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Register")
    }
}

impl Register {
    pub(crate) fn new(control: Group, net: Arc<dyn Transport>) -> Self {
        Self { control, net, doubts: Arc::default() }
    }

    /// This node.
    pub(crate) fn local(&self) -> NodeId {
        self.net.local()
    }

    /// How other nodes are reached.
    pub(crate) fn net(&self) -> &dyn Transport {
        &*self.net
    }

    /// A volume's row, as applied here.
    pub(crate) fn row(&self, id: VolumeId) -> Result<Option<Standing>, RegisterError> {
        let away = |e: String| RegisterError::Away(e);
        let Some(row) = self.control.row(&row_key(id)).map_err(|e| away(e.to_string()))? else {
            return Ok(None);
        };
        let read = Row::decode(&row.value).map_err(|e| away(e.to_string()))?;
        Ok(Some((read, row.sequence)))
    }

    /// The volume of a name, as applied here.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Standing>, RegisterError> {
        let row = self.control.row(&name_key(name)).map_err(|e| RegisterError::Away(e.to_string()))?;
        let id = row.and_then(|row| row.value.as_slice().try_into().ok()).map(VolumeId);
        id.map_or(Ok(None), |id| self.row(id))
    }

    /// Names of volumes that begin so, as applied here.
    pub(crate) fn named(&self, prefix: &str) -> Result<Vec<String>, RegisterError> {
        let away = |e: String| RegisterError::Away(e);
        let rows = self.control.scan(&Range::prefix(&name_key(prefix))).map_err(|e| away(e.to_string()))?;
        let name = |key: &[u8]| String::from_utf8_lossy(key.get(2..).unwrap_or_default()).into_owned();
        rows.map(|pair| pair.map(|(key, _)| name(&key)).map_err(|e| away(e.to_string()))).collect()
    }

    /// All volumes, as applied here.
    pub(crate) fn list(&self) -> Result<Vec<Row>, RegisterError> {
        let range = Range::prefix(&[PREFIX, b'i']);
        let rows = self.control.scan(&range).map_err(|e| RegisterError::Away(e.to_string()))?;
        let mut all = Vec::new();
        for pair in rows {
            let (_, row) = pair.map_err(|e| RegisterError::Away(e.to_string()))?;
            all.push(Row::decode(&row.value).map_err(|e| RegisterError::Away(e.to_string()))?);
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    async fn wish(&self, guards: Guards, rows: Rows) -> Result<(), RegisterError> {
        let wish = Request::Wish(Wish::Volumes { guards, rows });
        match self.net.call(self.net.local(), wish, WITHIN).await {
            Ok(Response::Done) => Ok(()),
            Ok(Response::Failed(failure)) if failure.code == Code::ConditionFailed => {
                Err(RegisterError::Changed)
            }
            Ok(Response::Failed(failure)) => Err(RegisterError::Away(failure.to_string())),
            Ok(_) => Err(RegisterError::Away("another answer came".to_owned())),
            Err(error) => Err(RegisterError::Away(error.to_string())),
        }
    }

    /// Waits until the row is seen here as wanted, or is another one.
    async fn seen(
        &self,
        id: VolumeId,
        good: impl Fn(Option<&Standing>) -> bool,
    ) -> Result<(), RegisterError> {
        let look = async {
            while !good(self.row(id)?.as_ref()) {
                tokio::time::sleep(PAUSE).await;
            }
            Ok(())
        };
        let late = || Err(RegisterError::Away("what was written is not seen here yet".to_owned()));
        tokio::time::timeout(SEEN, look).await.unwrap_or_else(|_| late())
    }

    /// Makes a volume, unless its name is taken; an encrypted one given that the word on which key wraps stood at this time.
    pub(crate) async fn make(&self, row: &Row, chosen: Option<u64>) -> Result<(), RegisterError> {
        let (guards, rows) = making(row, chosen);
        let made = self.wish(guards, rows).await;
        match made {
            Ok(()) => self.seen(row.id, |seen| seen.is_some()).await,
            Err(error) => Err(error),
        }
    }

    /// Makes a clone of a volume whose row stood at this time, unless its name is taken. The parent's row is written anew: who changes it at the
    /// same time, so that there would be no such snapshot, is told so.
    pub(crate) async fn make_clone(&self, row: &Row, of: &Row, time: u64) -> Result<(), RegisterError> {
        let (key, name, parent) = (row_key(row.id), name_key(&row.name), row_key(of.id));
        let guards = vec![(key.clone(), None), (name.clone(), None), (parent.clone(), Some(time))];
        let rows =
            vec![(key, Some(row.encode())), (name, Some(row.id.0.to_vec())), (parent, Some(of.encode()))];
        self.wish(guards, rows).await?;
        self.seen(row.id, |seen| seen.is_some()).await
    }

    /// The clones of a volume, as applied here: read behind the volume's row they are all that there were when it was written.
    pub(crate) fn clones_of(&self, id: VolumeId) -> Result<Vec<(String, ParentRow)>, RegisterError> {
        let all = self.list()?.into_iter();
        let clones = all.filter_map(|row| Some((row.parent.filter(|parent| parent.volume == id)?, row.name)));
        Ok(clones.map(|(parent, name)| (name, parent)).collect())
    }

    /// Tells when something is applied here.
    pub(crate) fn watch(&self) -> StatusWatch {
        self.control.watch()
    }

    /// Changes a row that stood at this time.
    pub(crate) async fn change(&self, row: &Row, time: u64) -> Result<(), RegisterError> {
        let key = row_key(row.id);
        self.wish(vec![(key.clone(), Some(time))], vec![(key, Some(row.encode()))]).await?;
        self.seen(row.id, |seen| seen.is_none_or(|(_, now)| *now != time)).await
    }

    /// Writes a row, that stood at this time, with its key wrapped anew, given that the word on which key wraps stood at that time.
    pub(crate) async fn rewrap(
        &self,
        row: &Row,
        time: u64,
        chosen: Option<u64>,
    ) -> Result<(), RegisterError> {
        let (guards, rows) = rewrapping(row, time, chosen);
        self.wish(guards, rows).await?;
        self.seen(row.id, |seen| seen.is_none_or(|(_, now)| *now != time)).await
    }

    /// Gives a volume that stood at this time another name, unless that is taken.
    pub(crate) async fn rename(&self, row: &Row, time: u64, new: &str) -> Result<(), RegisterError> {
        let (key, old, name) = (row_key(row.id), name_key(&row.name), name_key(new));
        let renamed = Row { name: new.to_owned(), ..row.clone() };
        let guards = vec![(key.clone(), Some(time)), (name.clone(), None)];
        let rows = vec![(key, Some(renamed.encode())), (old, None), (name, Some(row.id.0.to_vec()))];
        self.wish(guards, rows).await?;
        self.seen(row.id, |seen| seen.is_none_or(|(_, now)| *now != time)).await
    }

    /// Removes a volume that stood at this time.
    pub(crate) async fn remove(&self, row: &Row, time: u64) -> Result<(), RegisterError> {
        let (key, name) = (row_key(row.id), name_key(&row.name));
        self.wish(vec![(key.clone(), Some(time))], vec![(key, None), (name, None)]).await?;
        self.seen(row.id, |seen| seen.is_none()).await
    }

    /// Commits another configuration for the head of an epoch, or tells under what another one acts.
    pub(crate) async fn configure(
        &self,
        id: VolumeId,
        epoch: u64,
        wanted: &Configuration,
    ) -> Result<(), Fence> {
        let never = Fence { epoch: u64::MAX, configuration: u32::MAX };
        loop {
            match self.row(id) {
                // It was deleted.
                Ok(None) => return Err(never),
                Ok(Some((row, _))) if row.configuration == *wanted => return Ok(()),
                Ok(Some((row, _))) if row.epoch > epoch || row.configuration.version >= wanted.version => {
                    return Err(Fence { epoch: row.epoch, configuration: row.configuration.version });
                }
                // This node may not have heard of the epoch yet.
                Ok(Some((row, time))) if row.epoch == epoch => {
                    let changed = Row { configuration: wanted.clone(), ..row };
                    if let Err(error) = self.change(&changed, time).await {
                        tracing::debug!(%error, "commit the members of a volume");
                    }
                }
                Ok(_) | Err(_) => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Whether a row certainly stands as it did at this time: it was changed, otherwise.
    pub(crate) async fn stands(&self, id: VolumeId, time: u64) -> Result<(), RegisterError> {
        self.all_stand(Known(vec![(row_key(id), Some(time))])).await
    }

    /// What this node knows of a volume of a name, or of an id in hex.
    pub(crate) fn known(&self, name: &str) -> Result<Known, RegisterError> {
        let named = self.control.row(&name_key(name)).map_err(|e| RegisterError::Away(e.to_string()))?;
        let mut guards = vec![(name_key(name), named.as_ref().map(|row| row.sequence))];
        let id = named.and_then(|row| row.value.as_slice().try_into().ok()).map(VolumeId);
        if let Some(id) = id.or_else(|| id_of(name)) {
            guards.push((row_key(id), self.row(id)?.map(|(_, time)| time)));
        }
        Ok(Known(guards))
    }

    /// Whether all that was known certainly stands still; [`RegisterError::Changed`] says that it is worth a second look.
    pub(crate) async fn all_stand(&self, known: Known) -> Result<(), RegisterError> {
        self.doubts.settle(known.0, |guards| self.wish(guards, Vec::new())).await
    }

    /// Whether there certainly is no such volume.
    pub(crate) async fn is_gone(&self, id: VolumeId) -> bool {
        if !matches!(self.row(id), Ok(None)) {
            return false;
        }
        self.all_stand(Known(vec![(row_key(id), None)])).await.is_ok()
    }
}

/// Ends members whose volume is gone: their disk was away when it was deleted.
pub(crate) async fn sweep(register: Register, members: Arc<Members>) {
    let mut pause = tokio::time::interval(SWEEP);
    loop {
        pause.tick().await;
        for (device, id) in members.list() {
            if register.is_gone(id).await {
                tracing::info!(%device, volume = hex::encode(id.0), "end the member of a volume that is gone");
                members.answer(device, id, Fence::default(), 0, VolumeCall::Delete).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Row {
        Row {
            id: VolumeId([7; 16]),
            name: "vol".to_owned(),
            description: String::new(),
            bytes: 300,
            slice_bytes: 128,
            made: 5,
            epoch: 2,
            head: Some(NodeId([8; 16])),
            configuration: Configuration {
                version: 3,
                members: vec![DeviceId([1; 16]), DeviceId([2; 16])],
                joining: vec![DeviceId([3; 16])],
            },
            key: None,
            era: 0,
            snapshots: Vec::new(),
            limits: Limits::default(),
            parent: None,
            returning: None,
            wanted: 0,
        }
    }

    #[test]
    fn rows_have_these_bytes_for_ever() {
        let of = |byte: &str| byte.repeat(16);
        let expected = format!(
            "01{}ac0280010502{}0302{}{}01{}03{}00",
            of("07"),
            of("08"),
            of("01"),
            of("02"),
            of("03"),
            hex::encode("vol")
        );
        assert_eq!(hex::encode(sample().encode()), expected);
        assert_eq!(hex::encode(row_key(VolumeId([1; 16]))), format!("5669{}", of("01")));
        assert_eq!(hex::encode(name_key("vol")), hex::encode("Vnvol"));
        let alone = Row { head: None, ..sample() };
        let locked = Row { key: Some(WrappedKey([9; 81])), ..sample() };
        assert_eq!(hex::encode(locked.encode()), format!("02{}0151{}", &expected[2..], "09".repeat(81)));
        let snapshot = SnapshotRow { era: 1, bytes: 300, made: 5, name: "s".to_owned() };
        let frozen = Row { era: 3, snapshots: vec![snapshot], ..sample() };
        assert_eq!(hex::encode(frozen.encode()), format!("02{}02070301ac02050173", &expected[2..]));
        let mut limits = Limits::default();
        limits.0[4] = Rate { per_second: 300, burst: 7 };
        let limited = Row { limits, ..sample() };
        assert_eq!(hex::encode(limited.encode()), format!("02{}030404ac0207", &expected[2..]));
        let parent = Some(ParentRow { volume: VolumeId([6; 16]), era: 2, making: true });
        let clone = Row { parent, ..sample() };
        assert_eq!(hex::encode(clone.encode()), format!("02{}0412{}0201", &expected[2..], of("06")));
        let returning = Row { returning: Some(1), ..sample() };
        assert_eq!(hex::encode(returning.encode()), format!("02{}050101", &expected[2..]));
        let replaced = Row { wanted: 3, ..sample() };
        assert_eq!(hex::encode(replaced.encode()), format!("02{}060103", &expected[2..]));
        assert!(Row::decode(&Row { wanted: 6, ..sample() }.encode()).is_err());
        for row in [sample(), alone, locked, frozen, limited, clone, returning, replaced] {
            assert_eq!(Row::decode(&row.encode()), Ok(row.clone()));
            for cut in 0..row.encode().len() {
                assert!(Row::decode(&row.encode()[..cut]).is_err());
            }
        }
    }

    #[test]
    fn nobody_writes_what_is_no_row_of_a_volume() {
        let row = sample();
        assert_eq!(judge(&row_key(row.id), Some(&row.encode())), Ok(()));
        assert!(judge(&row_key(VolumeId([9; 16])), Some(&row.encode())).is_err());
        assert!(judge(&row_key(row.id), Some(&[9])).is_err());
        assert_eq!(judge(&name_key("vol"), Some(&[1; 16])), Ok(()));
        assert!(judge(&name_key(""), Some(&[1; 16])).is_err() && judge(&name_key("v"), Some(&[1])).is_err());
        assert_eq!(judge(&name_key("vol"), None), Ok(()));
        assert!(judge(b"ks", None).is_err() && judge(b"V", None).is_err());
        assert!(judge(&wrapping::choice_key(), None).is_err(), "which key wraps is said once and for all");
        let none = Configuration { version: 1, members: Vec::new(), joining: Vec::new() };
        assert!(judge(&row_key(row.id), Some(&Row { configuration: none, ..row }.encode())).is_err());
    }
}
