//! Bugs planted on purpose: a harness that cannot fail shows nothing.

use std::sync::Arc;

use quarry_engine::catalog::{GroupKey, GroupTag, Head, ObjectCatalog};
use quarry_engine::clock::Timestamp;
use quarry_engine::disk::catalog::{Catalog, Tx};
use quarry_engine::disk::format::record::{DeviceId, Kind, RecordView, StoredRecord};
use quarry_engine::disk::{Class, Durability, Location};
use quarry_engine::index::{Index, IndexError, Table};
use quarry_engine::object::names::{Answer, Ask, Grant, Line, Names, NewLine};
use quarry_engine::object::{BoxFuture, Draft, ObjectPath, Opened, Replica, Result, Store};
use quarry_engine::sync::Synced;
use quarry_engine::work::{Pace, Pruner, Worker};
use quarry_ring::PathHash;

use super::machine::Wall;

/// A bug to plant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Plant {
    /// None: the real thing.
    #[default]
    Nothing,
    /// Writes are acknowledged before they are flushed.
    AckBeforeFlush,
    /// Tombstones go when they are a second old, whoever has not heard of them.
    EarlyReclaim,
    /// A reader takes what the first device has, however old it is.
    StaleReplicaWins,
    /// What a voter has promised is forgotten when its node starts again.
    VoteNotPersisted,
    /// Now and then no device but the coordinator's own takes an object, and the row is written all the same.
    RowWithoutObject,
}

impl Plant {
    /// The catalog of every drive.
    pub(crate) fn catalog(self) -> Arc<dyn Catalog> {
        match self {
            Self::VoteNotPersisted => Arc::new(ForgetsVotes),
            _ => Arc::new(ObjectCatalog),
        }
    }

    /// A node's way to names.
    pub(crate) fn names(self, names: Arc<dyn Names>) -> Arc<dyn Names> {
        match self {
            Self::StaleReplicaWins => Arc::new(Ageless(names)),
            _ => names,
        }
    }

    /// A node's way to a device of another.
    pub(crate) fn replica(self, replica: Arc<dyn Replica>) -> Arc<dyn Replica> {
        match self {
            Self::RowWithoutObject => Arc::new(Hollow(replica)),
            _ => replica,
        }
    }

    /// Further workers of a node.
    pub(crate) fn workers(self, store: &Store, wall: &Wall) -> Vec<(Box<dyn Worker>, Pace)> {
        if self != Self::EarlyReclaim {
            return Vec::new();
        }
        let pruner = |disk: &quarry_engine::disk::DiskHandle| -> (Box<dyn Worker>, Pace) {
            let wall = wall.clone();
            let wall = Arc::new(move || wall.now());
            let synced = Arc::new(Synced::alone(disk.device()));
            let pace = Pace { units_per_second: 20_000, idle_seconds: 1 };
            (Box::new(Pruner::new(disk.clone(), wall, 1, synced)), pace)
        };
        store.disks().iter().map(pruner).collect()
    }
}

/// The real catalog, but that what a voter promised does not get into the index.
struct ForgetsVotes;

/// Whether this is a voter's state that tells of the same log as the one before: then only its promise is new.
fn says_nothing_dead(tx: &Tx<'_>, record: &RecordView<'_>) -> std::result::Result<bool, IndexError> {
    let key = GroupKey::parse(record.key).ok().filter(|key| key.tag == GroupTag::State);
    let Some(key) = key else { return Ok(false) };
    let before = tx.get(Table::System, &[&[1, b'g'], &key.encode()[..]].concat())?;
    let reach = before.as_deref().and_then(|entry| Head::decode(entry).ok()).map(|(_, reach)| reach);
    Ok(reach == Some(record.meta))
}

impl Catalog for ForgetsVotes {
    fn apply(
        &self,
        tx: &mut Tx<'_>,
        record: &RecordView<'_>,
        at: Location,
    ) -> std::result::Result<(), IndexError> {
        if record.kind == Kind::GroupEntry && says_nothing_dead(tx, record)? {
            return Ok(());
        }
        ObjectCatalog.apply(tx, record, at)
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
