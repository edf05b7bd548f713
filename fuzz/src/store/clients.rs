//! Operations of clients against the real object layer, and what they were told in the model's words.
//!
//! Invariant: every byte and every field that a client sees is compared with what was written, whatever the oracle thinks.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use quarry_engine::clock::Timestamp;
use quarry_engine::io::SplitMix64;
use quarry_engine::object::{
    Deleted, Entry, Error, Headers, IndexPolicy, Listing, Made, ObjectEdit, ObjectInfo, ObjectPath,
    ObjectRow, PutSpec, Store,
};

use super::model::{CONTAINERS, Cell, Line, NAMES, Op, OpId, Outcome, account_name, container_name};

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// In words of the model.
    Said(Outcome),
    /// Refused for want of space: no effect.
    NoSpace,
    /// No answer that says what happened.
    Unavailable(String),
    /// Stored bytes failed verification.
    Corrupt(String),
    /// A client saw what it must never see.
    Broken(String),
}

/// Largest body.
pub const MAX_BODY: usize = (8 << 20) + 17;

/// Where all bodies are cut from, and when each version was written.
#[derive(Debug)]
pub struct Bodies {
    blob: Bytes,
    sizes: RefCell<BTreeMap<OpId, usize>>,
    times: RefCell<BTreeMap<(OpId, bool), Timestamp>>,
}

impl Bodies {
    /// Random bytes from a seed.
    #[must_use]
    pub fn new(seed: u64) -> Rc<Self> {
        let mut blob = vec![0; MAX_BODY + (1 << 16)];
        SplitMix64::new(seed).fill(&mut blob);
        Rc::new(Self { blob: blob.into(), sizes: RefCell::default(), times: RefCell::default() })
    }

    /// The body of a PUT; its first bytes are its number, as far as they fit.
    pub fn make(&self, id: OpId, size: usize) -> Bytes {
        self.sizes.borrow_mut().insert(id, size);
        self.of(id)
    }

    /// The same again.
    #[must_use]
    pub fn of(&self, id: OpId) -> Bytes {
        let size = self.sizes.borrow().get(&id).copied().unwrap_or(0);
        // No two numbers below 2^16 begin at the same place.
        let start = id as usize % (1 << 16);
        self.blob.slice(start..start + size)
    }

    /// The time of a version never changes once it was seen.
    fn time(&self, id: OpId, of_data: bool, seen: Timestamp) -> Result<(), Reply> {
        let known = *self.times.borrow_mut().entry((id, of_data)).or_insert(seen);
        if known == seen { Ok(()) } else { Err(broken(format!("time of {id} was {known:?}, now {seen:?}"))) }
    }
}

fn broken(what: String) -> Reply {
    Reply::Broken(what)
}

fn of_error(error: Error) -> Reply {
    Reply::Said(match error {
        Error::NoAccount => Outcome::NoAccount,
        Error::NoContainer => Outcome::NoContainer,
        Error::NoObject => Outcome::NoObject,
        Error::ConditionFailed => Outcome::ConditionFailed,
        Error::EtagMismatch { .. } => Outcome::EtagMismatch,
        Error::NoSpace => return Reply::NoSpace,
        Error::Unavailable { reason } => return Reply::Unavailable(reason),
        Error::GrantLost { .. } => return Reply::Unavailable(error.to_string()),
        Error::Corrupt { what } => return Reply::Corrupt(what),
        Error::Superseded | Error::Refused(_) | Error::Elsewhere(_) => {
            return broken(format!("unexpected answer: {error}"));
        }
    })
}

fn of_deleted(deleted: Deleted) -> Outcome {
    match deleted {
        Deleted::Gone => Outcome::Gone,
        Deleted::Absent => Outcome::Absent,
        Deleted::NotEmpty => Outcome::NotEmpty,
    }
}

fn writer_of(headers: &Headers, name: &str) -> Result<OpId, Reply> {
    let id = headers.get(name).and_then(|id| id.parse().ok());
    id.ok_or_else(|| broken(format!("header {name} is missing: {headers:?}")))
}

fn headers(pairs: &[(&str, OpId)]) -> Headers {
    pairs.iter().map(|(name, id)| ((*name).to_owned(), id.to_string())).collect()
}

/// Full name of an object of the universe.
#[must_use]
pub fn path(c: usize, o: usize) -> ObjectPath {
    ObjectPath {
        account: account_name(c / CONTAINERS).into(),
        container: container_name(c).into(),
        object: NAMES[o].into(),
    }
}

/// One operation, with what chance decided about how it is carried out.
#[derive(Debug, Clone)]
pub struct Call {
    /// Of containers that it makes.
    pub policy: u16,
    /// The same: what holds while their group has no leader.
    pub index: Option<IndexPolicy>,
    /// Its number.
    pub id: OpId,
    /// What is asked.
    pub op: Op,
    /// When the object shall expire, for PUT and POST.
    pub delete_at: Option<u64>,
    /// For pieces, ranges and hints.
    pub seed: u64,
}

/// Carries out a call.
pub async fn perform(store: Store, bodies: Rc<Bodies>, call: Call) -> Reply {
    let result = match call.op.clone() {
        Op::Put { c, o, .. } => put(&store, &bodies, &call, c, o).await,
        Op::Post { c, o } => post(&store, &bodies, &call, c, o).await,
        Op::Delete { c, o, condition } => {
            store.delete_object(&path(c, o), &condition).await.map(of_deleted).map_err(of_error)
        }
        Op::Get { c, o } => get(&store, &bodies, &call, c, o).await,
        _ => names(&store, &call).await,
    };
    result.map_or_else(|reply| reply, Reply::Said)
}

async fn names(store: &Store, call: &Call) -> Result<Outcome, Reply> {
    let id = call.id;
    Ok(match call.op.clone() {
        Op::PutContainer { c } => {
            let (account, container, policy) = (account_name(c / CONTAINERS), container_name(c), call.policy);
            let edit = |_: Option<&_>| Ok(headers(&[("writer", id)]));
            let made = store.put_container_with(&account, &container, policy, call.index, edit).await;
            Outcome::Made(made.map_err(of_error)? == Made::Created)
        }
        Op::PostContainer { c } => {
            let (account, container) = (account_name(c / CONTAINERS), container_name(c));
            let done = store.post_container(&account, &container, |_| Ok(headers(&[("writer", id)]))).await;
            done.map(|()| Outcome::Done).map_err(of_error)?
        }
        Op::DeleteContainer { c } => {
            let deleted = store.delete_container(&account_name(c / CONTAINERS), &container_name(c)).await;
            of_deleted(deleted.map_err(of_error)?)
        }
        Op::HeadContainer { c } => {
            let found = store.container(&account_name(c / CONTAINERS), &container_name(c)).await;
            match found.map_err(of_error)? {
                Some(found) => {
                    let writer = writer_of(&found.headers, "writer")?;
                    Outcome::Container(Some((writer, found.objects, found.bytes)))
                }
                None => Outcome::Container(None),
            }
        }
        Op::List { c, listing } => {
            let account = account_name(c / CONTAINERS);
            let rows = store.list_objects(&account, &container_name(c), &listing).await;
            let lines: Result<_, _> = rows.map_err(of_error)?.into_iter().map(line).collect();
            Outcome::Lines(lines?)
        }
        Op::HeadAccount { a } => {
            let found = store.account(&account_name(a)).await.map_err(of_error)?;
            Outcome::Account(found.map(|found| (found.containers, found.objects, found.bytes)))
        }
        Op::ListContainers { a } => {
            let listing = Listing { limit: 1000, ..Listing::default() };
            let rows = store.list_containers(&account_name(a), &listing).await.map_err(of_error)?;
            let row = |entry| match entry {
                Entry::Row(row) => {
                    let row: quarry_engine::object::ContainerRow = row;
                    Ok((row.name, row.objects, row.bytes))
                }
                Entry::Subdir(name) => Err(broken(format!("subdir {name} without a delimiter"))),
            };
            Outcome::Containers(rows.into_iter().map(row).collect::<Result<_, _>>()?)
        }
        Op::DeleteAccount { a } => {
            of_deleted(store.delete_account(&account_name(a)).await.map_err(of_error)?)
        }
        Op::Put { .. } | Op::Post { .. } | Op::Delete { .. } | Op::Get { .. } => {
            return Err(broken("harness: not an operation on names".to_owned()));
        }
    })
}

fn content_type(id: OpId) -> String {
    format!("x/{id}")
}

fn line(entry: Entry<ObjectRow>) -> Result<Line, Reply> {
    match entry {
        Entry::Subdir(name) => Ok(Line::Subdir(name)),
        Entry::Row(ObjectRow { name, size, etag, content_type, .. }) => {
            let meta = content_type.strip_prefix("x/").and_then(|id| id.parse().ok());
            let meta = meta.ok_or_else(|| broken(format!("content type {content_type} in a listing")))?;
            Ok(Line::Row { name, size, etag, meta })
        }
    }
}

async fn put(store: &Store, bodies: &Bodies, call: &Call, c: usize, o: usize) -> Result<Outcome, Reply> {
    let Op::Put { condition, wrong_md5, .. } = &call.op else {
        return Err(broken("harness: not a PUT".to_owned()));
    };
    let mut rng = SplitMix64::new(call.seed);
    let body = bodies.of(call.id);
    let hint = rng.chance(700).then_some(body.len() as u64);
    let mut writer = store.writer(&path(c, o), hint).await.map_err(of_error)?;
    let mut rest = body.clone();
    while !rest.is_empty() {
        let most = rest.len().min(700_000);
        let piece = if rng.chance(500) { most } else { 1 + rng.index(most) };
        writer.write(rest.split_to(piece)).await.map_err(of_error)?;
    }
    let spec = PutSpec {
        content_type: content_type(call.id),
        delete_at: call.delete_at,
        headers: headers(&[("data", call.id), ("meta", call.id)]),
        expect_md5: wrong_md5.then_some([0; 16]),
        condition: condition.clone(),
        ..PutSpec::default()
    };
    let committed = writer.commit(spec).await.map_err(of_error)?;
    if committed.size != body.len() as u64 {
        return Err(broken(format!("PUT {} of {} bytes says {committed:?}", call.id, body.len())));
    }
    bodies.time(call.id, true, committed.timestamp)?;
    bodies.time(call.id, false, committed.timestamp)?;
    Ok(Outcome::Done)
}

async fn post(store: &Store, bodies: &Bodies, call: &Call, c: usize, o: usize) -> Result<Outcome, Reply> {
    let (id, delete_at) = (call.id, call.delete_at);
    let edit = move |info: &ObjectInfo| {
        let mut headers = info.headers.clone();
        headers.insert("meta".to_owned(), id.to_string());
        Ok(ObjectEdit { content_type: content_type(id), delete_at, headers, ..ObjectEdit::default() })
    };
    let time = store.post_object(&path(c, o), edit).await.map_err(of_error)?;
    bodies.time(id, false, time)?;
    Ok(Outcome::Done)
}

fn facts(bodies: &Bodies, info: &ObjectInfo) -> Result<Cell, Reply> {
    let cell = Cell { data: writer_of(&info.headers, "data")?, meta: writer_of(&info.headers, "meta")? };
    bodies.time(cell.data, true, info.data_timestamp)?;
    bodies.time(cell.meta, false, info.timestamp)?;
    let body = bodies.of(cell.data);
    if info.size != body.len() as u64 || info.content_type != content_type(cell.meta) {
        return Err(broken(format!("{cell:?} has facts {info:?}")));
    }
    Ok(cell)
}

async fn get(store: &Store, bodies: &Bodies, call: &Call, c: usize, o: usize) -> Result<Outcome, Reply> {
    let mut rng = SplitMix64::new(call.seed);
    if rng.chance(150) {
        let info = store.object(&path(c, o)).await.map_err(of_error)?;
        return Ok(Outcome::Version(info.map(|info| facts(bodies, &info)).transpose()?));
    }
    let Some(reader) = store.open(&path(c, o)).await.map_err(of_error)? else {
        return Ok(Outcome::Version(None));
    };
    let cell = facts(bodies, &reader.info)?;
    let body = bodies.of(cell.data);
    let range = if rng.chance(700) {
        0..body.len()
    } else {
        let start = rng.index(body.len() + 1);
        start..start + rng.index(body.len() - start + 1)
    };
    let mut stream = reader.range(range.start as u64..range.end as u64);
    let mut expected = body.slice(range);
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(of_error)?;
        if piece.len() > expected.len() || piece != expected.split_to(piece.len()) {
            return Err(broken(format!("wrong bytes of {cell:?}")));
        }
    }
    if !expected.is_empty() {
        return Err(broken(format!("{} bytes of {cell:?} are missing", expected.len())));
    }
    Ok(Outcome::Version(Some(cell)))
}
