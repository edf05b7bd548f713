//! Bugs planted on purpose: a harness that cannot fail shows nothing.

use std::sync::Arc;

use quarry_engine::catalog::{GroupKey, GroupTag, Head, ObjectCatalog, tally, weight};
use quarry_engine::clock::Timestamp;
use quarry_engine::disk::catalog::{Catalog, Tx};
use quarry_engine::disk::format::record::{DeviceId, Kind, NewRecord, RecordView, StoredRecord};
use quarry_engine::disk::{Class, Durability, Group, Location};
use quarry_engine::index::{Index, IndexError, Table};
use quarry_engine::net::{NodeId, Request, Response, Service};
use quarry_engine::object::names::{
    Answer, Ask, AskedFor, Grant, Holding, Line, Names, NamesAnswer, NamesRequest, NewLine,
};
use quarry_engine::object::{BoxFuture, Draft, ObjectPath, Opened, Replica, Result};
use quarry_ring::PathHash;

/// A bug to plant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Plant {
    /// None: the real thing.
    #[default]
    Nothing,
    /// Writes are acknowledged before they are flushed.
    AckBeforeFlush,
    /// Tombstones go as soon as they are there, whoever has not heard of them.
    EarlyReclaim,
    /// A reader takes what the first device has, however old it is.
    StaleReplicaWins,
    /// What a voter has promised is forgotten when its node starts again.
    VoteNotPersisted,
    /// Now and then no device but the coordinator's own takes an object, and the row is written all the same.
    RowWithoutObject,
    /// Devices forget at once which versions the listing is yet to be told of.
    IntentForgotten,
    /// Whoever takes lines back does not know how new those are that were deleted.
    FloorLeftOut,
    /// A DELETE is acknowledged when its tombstone is there: the line stays.
    LineKept,
    /// Whoever leads forgets at once which names other nodes hold.
    ClaimDropped,
    /// Whoever leads removes the container and marks the account that stands, whichever a DELETE meant.
    DeleteUnnamed,
    /// A group that took lines over says that it has none, when their container is about to be deleted.
    LinesUncounted,
}

impl Plant {
    /// The catalog of every drive.
    pub(crate) fn catalog(self) -> Arc<dyn Catalog> {
        match self {
            Self::VoteNotPersisted | Self::EarlyReclaim | Self::IntentForgotten => Arc::new(Faulty(self)),
            _ => Arc::new(ObjectCatalog),
        }
    }

    /// A node's way to names.
    pub(crate) fn names(self, names: Arc<dyn Names>) -> Arc<dyn Names> {
        match self {
            Self::StaleReplicaWins => Arc::new(Ageless(names)),
            Self::LineKept => Arc::new(Keeping(names)),
            _ => names,
        }
    }

    /// What answers other nodes.
    pub(crate) fn service(self, service: Arc<dyn Service>) -> Arc<dyn Service> {
        match self {
            Self::FloorLeftOut => Arc::new(Floorless(service)),
            Self::ClaimDropped => Arc::new(Forgetful(service)),
            Self::DeleteUnnamed => Arc::new(Hasty(service)),
            Self::LinesUncounted => Arc::new(Blind(service)),
            _ => service,
        }
    }

    /// A node's way to a device of another.
    pub(crate) fn replica(self, replica: Arc<dyn Replica>) -> Arc<dyn Replica> {
        match self {
            Self::RowWithoutObject => Arc::new(Hollow(replica)),
            _ => replica,
        }
    }
}

/// The real catalog, but for one bug.
struct Faulty(Plant);

/// Drops the tombstone of an object that was just entered, with its part of the sums.
fn reclaim(tx: &mut Tx<'_>, record: &RecordView<'_>, at: Location) -> std::result::Result<(), IndexError> {
    let key = [&[Table::Objects as u8], record.key].concat();
    let Ok(hash) = PathHash::try_from(record.key) else { return Ok(()) };
    if tx.get(Table::Graves, &key)?.is_some() {
        let weight = weight(&hash, record.sequence, true);
        tx.shift(tally(&hash), 0_u128.wrapping_sub(weight));
        tx.died(at);
        tx.delete(Table::Graves, key);
    }
    Ok(())
}

/// Whether this is a voter's state that tells of the same log as the one before: then only its promise is new.
fn says_nothing_dead(tx: &Tx<'_>, record: &RecordView<'_>) -> std::result::Result<bool, IndexError> {
    let key = GroupKey::parse(record.key).ok().filter(|key| key.tag == GroupTag::State);
    let Some(key) = key else { return Ok(false) };
    let before = tx.get(Table::System, &[&[1, b'g'], &key.encode()[..]].concat())?;
    let reach = before.as_deref().and_then(|entry| Head::decode(entry).ok()).map(|(_, reach)| reach);
    Ok(reach == Some(record.meta))
}

impl Catalog for Faulty {
    fn apply(
        &self,
        tx: &mut Tx<'_>,
        record: &RecordView<'_>,
        at: Location,
    ) -> std::result::Result<(), IndexError> {
        let forgets = self.0 == Plant::VoteNotPersisted && record.kind == Kind::GroupEntry;
        if forgets && says_nothing_dead(tx, record)? {
            return Ok(());
        }
        ObjectCatalog.apply(tx, record, at)?;
        if self.0 == Plant::EarlyReclaim && record.kind == Kind::Object && record.deleted {
            reclaim(tx, record, at)?;
        }
        if self.0 == Plant::IntentForgotten && record.kind == Kind::Object {
            tx.delete(Table::System, [&[1, b'i'], record.key].concat());
        }
        Ok(())
    }

    fn relocate(
        &self,
        tx: &mut Tx<'_>,
        record: &RecordView<'_>,
        from: Location,
        to: Location,
    ) -> std::result::Result<bool, IndexError> {
        ObjectCatalog.relocate(tx, record, from, to)
    }

    fn group(&self, table: Table, key: &[u8]) -> Option<Group> {
        ObjectCatalog.group(table, key)
    }

    fn is_live(
        &self,
        index: &dyn Index,
        record: &RecordView<'_>,
        at: Location,
    ) -> std::result::Result<bool, IndexError> {
        ObjectCatalog.is_live(index, record, at)
    }

    fn forget(&self, tx: &mut Tx<'_>, record: &RecordView<'_>) -> std::result::Result<(), IndexError> {
        ObjectCatalog.forget(tx, record)
    }

    fn remains(
        &self,
        index: &dyn Index,
        device: DeviceId,
        record: &StoredRecord,
        at: Location,
    ) -> std::result::Result<Option<Vec<NewRecord>>, IndexError> {
        ObjectCatalog.remains(index, device, record, at)
    }

    fn rebuilt(&self, tx: &mut Tx<'_>) -> std::result::Result<(), IndexError> {
        ObjectCatalog.rebuilt(tx)
    }
}

/// Names whose lines say that there is an object, and not how new it is.
struct Ageless(Arc<dyn Names>);

fn ageless(line: Line) -> Line {
    Line { at: line.at.map(|_| Timestamp(0)), ..line }
}

impl Names for Ageless {
    fn ask(&self, ask: Ask) -> BoxFuture<'static, Result<Answer>> {
        let answer = self.0.ask(ask);
        Box::pin(async move {
            Ok(match answer.await? {
                Answer::Line(line) => Answer::Line(ageless(line)),
                other => other,
            })
        })
    }

    fn begin(&self, path: ObjectPath, given: Option<Timestamp>) -> BoxFuture<'static, Result<Grant>> {
        self.0.begin(path, given)
    }

    fn settle(&self, grant: Grant, line: NewLine, class: Class) -> BoxFuture<'static, Result<()>> {
        self.0.settle(grant, line, class)
    }

    fn lines_count(&self) -> bool {
        self.0.lines_count()
    }

    fn here(&self) -> bool {
        self.0.here()
    }
}

/// Names that say of a line that it was removed, and leave it.
struct Keeping(Arc<dyn Names>);

impl Names for Keeping {
    fn ask(&self, ask: Ask) -> BoxFuture<'static, Result<Answer>> {
        self.0.ask(ask)
    }

    fn begin(&self, path: ObjectPath, given: Option<Timestamp>) -> BoxFuture<'static, Result<Grant>> {
        self.0.begin(path, given)
    }

    fn settle(&self, grant: Grant, line: NewLine, class: Class) -> BoxFuture<'static, Result<()>> {
        if line.value.is_none() {
            return Box::pin(std::future::ready(Ok(())));
        }
        self.0.settle(grant, line, class)
    }

    fn lines_count(&self) -> bool {
        self.0.lines_count()
    }

    fn here(&self) -> bool {
        self.0.here()
    }
}

/// A node that has given a grant back as soon as it gave it.
struct Forgetful(Arc<dyn Service>);

impl Service for Forgetful {
    fn handle(&self, from: NodeId, request: Request) -> BoxFuture<'static, Response> {
        let release = match &request {
            Request::Names(NamesRequest { group, what: AskedFor::Begin { lease, .. }, .. }) => {
                let what = AskedFor::Release { lease: *lease };
                Some(Request::Names(NamesRequest { group: *group, follows: None, what }))
            }
            _ => None,
        };
        let (answer, service) = (self.0.handle(from, request), self.0.clone());
        Box::pin(async move {
            let answer = answer.await;
            if let Some(release) = release {
                service.handle(from, release).await;
            }
            answer
        })
    }
}

/// A node that does not look at which container or account a DELETE means.
struct Hasty(Arc<dyn Service>);

impl Service for Hasty {
    fn handle(&self, from: NodeId, request: Request) -> BoxFuture<'static, Response> {
        let service = self.0.clone();
        let Request::Names(NamesRequest { group, what: AskedFor::Ask(ask), .. }) = &request else {
            return service.handle(from, request);
        };
        let group = *group;
        let names =
            move |ask| Request::Names(NamesRequest { group, follows: None, what: AskedFor::Ask(ask) });
        match ask.clone() {
            Ask::DeleteContainer { account, container, .. } => Box::pin(async move {
                let look = Ask::Container { account: account.clone(), container: container.clone() };
                match made(service.handle(from, names(look)).await) {
                    Some(created) => {
                        let delete = Ask::DeleteContainer { account, container, created };
                        service.handle(from, names(delete)).await
                    }
                    None => service.handle(from, request).await,
                }
            }),
            Ask::MarkAccount { account, .. } => Box::pin(async move {
                let look = Ask::Account { account: account.clone() };
                match made(service.handle(from, names(look)).await) {
                    Some(created) => service.handle(from, names(Ask::MarkAccount { account, created })).await,
                    None => service.handle(from, request).await,
                }
            }),
            _ => service.handle(from, request),
        }
    }
}

/// When the container or account was made that an answer tells of.
fn made(response: Response) -> Option<Timestamp> {
    let Response::Names(NamesAnswer::Answer(answer)) = response else { return None };
    let answer = match answer {
        Answer::Split { answer, .. } => *answer,
        whole => whole,
    };
    match answer {
        Answer::Container(found) => found.map(|found| found.created),
        Answer::Account(found) => found.map(|found| found.created),
        _ => None,
    }
}

/// A node whose groups have nothing of a container that they are asked to shut.
struct Blind(Arc<dyn Service>);

impl Service for Blind {
    fn handle(&self, from: NodeId, request: Request) -> BoxFuture<'static, Response> {
        let shuts = matches!(
            &request,
            Request::Names(NamesRequest { what: AskedFor::Ask(Ask::Shut { at: Some(_), .. }), .. })
        );
        let answer = self.0.handle(from, request);
        Box::pin(async move {
            match answer.await {
                Response::Names(NamesAnswer::Answer(Answer::Holding(holding))) if shuts => {
                    let holding = Holding { objects: 0, ..holding };
                    Response::Names(NamesAnswer::Answer(Answer::Holding(holding)))
                }
                other => other,
            }
        })
    }
}

/// A node that says of a group that it never gave a version time.
struct Floorless(Arc<dyn Service>);

impl Service for Floorless {
    fn handle(&self, from: NodeId, request: Request) -> BoxFuture<'static, Response> {
        let answer = self.0.handle(from, request);
        Box::pin(async move {
            match answer.await {
                Response::Names(NamesAnswer::Answer(Answer::Holding(holding))) => {
                    let holding = Holding { above: Timestamp(0), ..holding };
                    Response::Names(NamesAnswer::Answer(Answer::Holding(holding)))
                }
                other => other,
            }
        })
    }
}

/// A device that says it has an object, and one time in eight has dropped it.
struct Hollow(Arc<dyn Replica>);

impl Replica for Hollow {
    fn device(&self) -> DeviceId {
        self.0.device()
    }

    fn append(
        &self,
        group: Vec<Draft>,
        durability: Durability,
        class: Class,
    ) -> BoxFuture<'static, Result<()>> {
        // Of one version either all lose it or none does.
        let lost = |draft: &Draft| draft.kind == Kind::Object && !draft.deleted && draft.sequence % 8 == 3;
        if class == Class::Client && group.iter().any(lost) {
            return Box::pin(std::future::ready(Ok(())));
        }
        self.0.append(group, durability, class)
    }

    fn abandon(&self, upload: quarry_engine::catalog::DataId, sequence: u64) {
        self.0.abandon(upload, sequence);
    }

    fn version(&self, hash: PathHash) -> BoxFuture<'static, Result<Option<quarry_engine::catalog::Version>>> {
        self.0.version(hash)
    }

    fn open(&self, hash: PathHash) -> BoxFuture<'static, Result<Option<Opened>>> {
        self.0.open(hash)
    }

    fn read(&self, at: Location) -> BoxFuture<'static, Result<StoredRecord>> {
        self.0.read(at)
    }

    fn ask(&self, ask: quarry_engine::sync::Ask) -> BoxFuture<'static, Result<quarry_engine::sync::Answer>> {
        self.0.ask(ask)
    }
}
