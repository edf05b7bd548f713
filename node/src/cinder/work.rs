//! What is under way: tasks of papers, done by the node that has the volume.
//!
//! A task is in the paper, beside its state; doing it again does no harm. So a node that was killed in the middle goes on with it
//! when it starts, and a volume is never `creating` for ever: the table in `states` says how each one ends.
//! Invariant: one task of a paper is under way at a time, in one process; it ends in the state of its row, done or failed. What has
//! several members may have two nodes at it (`several`), and one end.
//! Invariant: a task that was replaced by another one (a forced delete) changes nothing when it ends.
//! Invariant: when papers cannot be read or written a task stays, and is tried again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quarry_engine::net::NodeId;
use quarry_volume::VolumeId;
use quarry_volume::head::Failure;
use quarry_volume::store::{Attached, Label, VolumeError};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::copy::{self, CopyError};
use super::fault::Fault;
use super::fields::{flag, map, now, number, text};
use super::images::ImageError;
use super::messages::{self, Event};
use super::states::{Deed, SAME, rule_of};
use super::volume_view::is_encrypted;
use super::{
    Cinder, Office, attachments, backups, drain, images, manage, migrate, passing, qos, services, several,
    snapshots, volumes,
};
use crate::panics::caught;
use crate::papers::{Paper, PaperError};
use crate::storage::{random_bytes, wall_clock};

const GIB: u64 = 1 << 30;
/// Tasks at a time.
const AT_ONCE: usize = 8;
/// How long until it is looked for tasks again, without a kick: those that failed to write, and other nodes' requests.
const AGAIN: Duration = Duration::from_secs(10);
const AGAIN_IN_CLUSTER: Duration = Duration::from_secs(1);

/// Why a task did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// It cannot be done.
    #[error(transparent)]
    Failed(CopyError),
    /// It cannot be done now, or not here: another node has the volume, its disk is away, or it is not known what the cluster says of it.
    #[error(transparent)]
    Again(VolumeError),
    /// Nothing can be said now.
    #[error(transparent)]
    Later(#[from] PaperError),
    /// A volume that is to go without its snapshots has some.
    #[error("it has snapshots")]
    Frozen,
    /// There is no node for it.
    #[error("no node fits")]
    Nowhere,
}

impl From<VolumeError> for Trouble {
    fn from(error: VolumeError) -> Self {
        match error {
            VolumeError::InUseAt(..)
            | VolumeError::BeingMade(_)
            | VolumeError::Away(..)
            | VolumeError::Register(_)
            | VolumeError::Head(Failure::Fenced(_) | Failure::HandedOver) => Self::Again(error),
            VolumeError::TooFewNodes(_) => Self::Nowhere,
            error => Self::Failed(error.into()),
        }
    }
}

impl From<CopyError> for Trouble {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Volume(error) => error.into(),
            CopyError::Paper(error) => Self::Later(error),
            error => Self::Failed(error),
        }
    }
}

/// A volume's name in the volume layer.
pub(crate) fn device_name(id: &str) -> String {
    format!("volume-{id}")
}

pub(crate) fn snapshot_name(id: &str) -> String {
    format!("snapshot-{id}")
}

/// Whether volumes of a host are this node's.
pub(crate) fn is_own(office: &Office, host: &str) -> bool {
    office.place.alone || services::node_of(host) == office.place.host
}

impl Cinder {
    /// Does what is to be done until the node stops.
    pub(crate) fn work(&self, tasks: &mut JoinSet<()>, mut stopped: watch::Receiver<bool>) {
        let office = Arc::clone(&self.office);
        tasks.spawn(async move {
            let mut running = JoinSet::new();
            loop {
                let looked =
                    Box::pin(caught("look for tasks of volumes", round(&office, &mut running))).await;
                if let Some(Err(error)) = looked {
                    tracing::debug!(%error, "look for tasks of volumes");
                }
                let pause = if office.place.alone { AGAIN } else { AGAIN_IN_CLUSTER };
                let ended = tokio::select! {
                    () = office.kick.notified() => Ok(()),
                    Some(ended) = running.join_next() => ended,
                    () = tokio::time::sleep(pause) => Ok(()),
                    _ = stopped.wait_for(|stopped| *stopped) => break,
                };
                if let Err(error) = ended {
                    // It panicked, and may do so each time: it is begun anew, but not at once.
                    tracing::error!(%error, "do task of a volume; it is tried again");
                    tokio::time::sleep(AGAIN_IN_CLUSTER).await;
                }
            }
            // What is under way stays written down.
            running.shutdown().await;
        });
    }
}

/// A paper whose task is under way here. It is let go however the task ends: one that panics or is stopped must not keep the paper from
/// every later round.
struct Busy {
    office: Arc<Office>,
    id: String,
}

impl Busy {
    /// `None`: it is under way already.
    fn begin(office: &Arc<Office>, id: &str) -> Option<Self> {
        let begun = office.busy(|busy| busy.insert(id.to_owned()));
        begun.then(|| Self { office: Arc::clone(office), id: id.to_owned() })
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.office.busy(|busy| busy.remove(&self.id));
    }
}

/// Begins the tasks that are there and not under way.
pub(super) async fn round(office: &Arc<Office>, running: &mut JoinSet<()>) -> Result<(), PaperError> {
    services::say(office).await?;
    qos::hold(office).await?;
    messages::sweep(office).await?;
    Box::pin(migrate::sweep(office)).await?;
    Box::pin(passing::sweep(office, &mut *office.swept.lock().await)).await?;
    Box::pin(drain::step(office)).await?;
    for drawer in [volumes::DRAWER, snapshots::DRAWER, backups::DRAWER, drain::MOVES] {
        for paper in office.papers.all(drawer).await? {
            let due = paper.get("task").is_some_and(Value::is_object);
            if drawer == volumes::DRAWER && !due {
                several::settle(office, &paper).await?;
            }
            if !due || running.len() >= AT_ONCE {
                continue;
            }
            let doers = if migrate::is_for_its_host(&paper) {
                None
            } else {
                several::doers(office, drawer, &paper).await?
            };
            if !may_do(office, &paper, doers.as_deref()) {
                continue;
            }
            let id = text(&paper, "id").to_owned();
            let image = if images::is_moved_by(&map(&paper, "task")) {
                // The others wait for the end of one.
                let Ok(permit) = Arc::clone(&office.images).try_acquire_owned() else { continue };
                Some(permit)
            } else {
                None
            };
            let Some(busy) = Busy::begin(office, &id) else { continue };
            let office = Arc::clone(office);
            running.spawn(async move {
                let _busy = busy;
                let first = match &doers {
                    Some(doers) => several::is_first(&office, doers).await,
                    None => true,
                };
                if !first {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                } else if let Err(error) = perform_found(&office, drawer, &paper).await {
                    tracing::warn!(drawer, id, %error, "do task of a volume; it is tried again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                drop(image);
            });
        }
    }
    Ok(())
}

/// Whether this node may be one to do what is under way.
fn may_do(office: &Office, paper: &Paper, doers: Option<&[NodeId]>) -> bool {
    match (doers, &office.place.net) {
        (Some(doers), Some(net)) => doers.contains(&net.local()),
        _ => {
            let doer = migrate::doer(paper);
            // What no node fits, every node can say.
            doer.is_empty() || is_own(office, &doer)
        }
    }
}

/// Does a task that a round found, unless it went on before it was kept from others: what is done already would be done again.
pub(super) async fn perform_found(
    office: &Office,
    drawer: &'static str,
    found: &Paper,
) -> Result<(), PaperError> {
    match office.papers.get(drawer, text(found, "id")).await? {
        Some(paper) if paper.get("task") == found.get("task") => perform(office, drawer, &paper).await,
        Some(_) | None => Ok(()),
    }
}

/// Does a paper's task, and writes how it ended.
pub(super) async fn perform(office: &Office, drawer: &'static str, paper: &Paper) -> Result<(), PaperError> {
    if matches!(drawer, volumes::DRAWER | drain::MOVES) && migrate::is_on_its_way(paper) {
        return Box::pin(migrate::perform(office, paper)).await;
    }
    let task = map(paper, "task");
    let (id, what) = (text(paper, "id"), text(&task, "do"));
    let (deed, event) = match (drawer, what) {
        (volumes::DRAWER, "create") if images::is_moved_by(&task) => (Deed::Create, Event::Image),
        (volumes::DRAWER, "create") => (Deed::Create, Event::Create),
        (volumes::DRAWER, "upload") => (Deed::Upload, Event::Upload),
        (volumes::DRAWER, "delete") => (Deed::Delete, Event::Delete),
        (volumes::DRAWER, "extend") => (Deed::Extend, Event::Extend),
        (volumes::DRAWER, "revert") => (Deed::Revert, Event::Revert),
        (volumes::DRAWER, "restore") => (Deed::Restore, Event::Restore),
        (volumes::DRAWER, "manage") => (Deed::Manage, Event::Manage),
        (volumes::DRAWER, "backup") => return after_backup(office, paper).await,
        (snapshots::DRAWER, "create") => (Deed::CreateSnapshot, Event::Snapshot),
        (snapshots::DRAWER, "manage") => (Deed::ManageSnapshot, Event::Manage),
        (snapshots::DRAWER, _) => (Deed::DeleteSnapshot, Event::Delete),
        (backups::DRAWER, "create") => (Deed::CreateBackup, Event::Backup),
        _ => (Deed::DeleteBackup, Event::Delete),
    };
    let done = Box::pin(act(office, deed, paper)).await;
    let rule = rule_of(deed);
    let before = text(&task, "before");
    let (state, why, event) = match done {
        Ok(()) if rule.done == "deleted" => {
            office.papers.remove(drawer, id).await?;
            return Ok(());
        }
        Ok(()) => (rule.done, None, event),
        Err(Trouble::Later(error)) => return Err(error),
        Err(Trouble::Again(error)) => {
            tracing::debug!(id, what, %error, "a task of a volume is tried again");
            tokio::time::sleep(Duration::from_secs(1)).await;
            return Ok(());
        }
        Err(trouble) => {
            tracing::warn!(id, what, error = %trouble, "task of a volume failed");
            let event = match &trouble {
                Trouble::Nowhere => Event::NoBackend,
                Trouble::Failed(CopyError::Service(ImageError::Token)) if deed == Deed::Upload => {
                    Event::UploadToken
                }
                Trouble::Failed(CopyError::Service(ImageError::Token)) => Event::ImageToken,
                _ => event,
            };
            (rule.failed, Some(trouble.to_string()), event)
        }
    };
    let state = if state == SAME { before } else { state };
    let ended = finish(office, drawer, paper, state, why.as_deref()).await?;
    if ended && why.is_some() {
        let kind = match drawer {
            volumes::DRAWER => "VOLUME",
            snapshots::DRAWER => "VOLUME_SNAPSHOT",
            _ => "VOLUME_BACKUP",
        };
        messages::say(office, event, kind, paper).await?;
    }
    Ok(())
}

/// Writes the end of a task, unless another one replaced it or another node was first; false: it did.
async fn finish(
    office: &Office,
    drawer: &'static str,
    paper: &Paper,
    state: &str,
    why: Option<&str>,
) -> Result<bool, PaperError> {
    let task = paper.get("task").cloned();
    let size = map(paper, "task").get("size").cloned().filter(|_| why.is_none());
    let ended = AtomicBool::new(false);
    let host = several::host_of(office, paper).filter(|_| drawer == volumes::DRAWER);
    // Who used a volume may have detached it meanwhile: what is left of its attachments says what it is then.
    let detached = match drawer {
        volumes::DRAWER if state == "in-use" => {
            let (made, _) = attachments::made_by(office, text(paper, "id")).await?;
            if made == "in-use" { "available" } else { made }
        }
        _ => state,
    };
    let edit = |now_there: &mut Paper| -> Result<(), PaperError> {
        let ours = now_there.get("task") == task.as_ref();
        ended.store(ours, Ordering::Relaxed);
        if !ours {
            return Ok(());
        }
        now_there.remove("task");
        let used = text(now_there, "attach_status") == "attached";
        now_there.insert("status".to_owned(), json!(if used { state } else { detached }));
        now_there.insert("updated_at".to_owned(), json!(now()));
        if let Some(host) = &host {
            now_there.insert("host".to_owned(), json!(host));
        }
        if let Some(size) = &size {
            now_there.insert("size".to_owned(), size.clone());
        }
        if drawer == snapshots::DRAWER && why.is_none() {
            now_there.insert("progress".to_owned(), json!("100%"));
        }
        if drawer == backups::DRAWER {
            now_there.insert("fail_reason".to_owned(), why.map_or(Value::Null, |why| json!(why)));
        }
        Ok(())
    };
    // First: who sees that it is ended must not find a host that is gone.
    if matches!(drawer, snapshots::DRAWER | backups::DRAWER) && several::members(paper) > 1 {
        several::take(office, text(paper, "volume_id")).await?;
    }
    office.papers.change(drawer, text(paper, "id"), edit).await?;
    if drawer == backups::DRAWER {
        office.kick.notify_one();
    }
    Ok(ended.into_inner())
}

async fn act(office: &Office, deed: Deed, paper: &Paper) -> Result<(), Trouble> {
    let (exports, id) = (&office.blocks.exports, text(paper, "id"));
    match deed {
        Deed::Create => make(office, paper).await,
        Deed::Delete => delete(office, paper, flag(&map(paper, "task"), "cascade")).await,
        Deed::Extend => {
            let (size, name) = (number(&map(paper, "task"), "size"), device_name(id));
            Ok(exports.certainly(|| exports.extend(&name, bytes_of(size))).await?)
        }
        Deed::Revert => {
            let task = map(paper, "task");
            let (name, snapshot) = (device_name(id), snapshot_name(text(&task, "snapshot")));
            several::lead(office, &name).await?;
            Ok(exports.certainly(|| exports.revert(&name, &snapshot)).await?)
        }
        Deed::Manage => Ok(manage::take_over(office, volumes::DRAWER, paper).await?),
        Deed::ManageSnapshot => Ok(manage::take_over(office, snapshots::DRAWER, paper).await?),
        Deed::Restore => restore(office, text(&map(paper, "task"), "backup"), id).await,
        Deed::CreateSnapshot => {
            let name = device_name(text(paper, "volume_id"));
            passing::freeze(office, &name, &snapshot_name(id)).await
        }
        Deed::DeleteSnapshot => {
            let name = device_name(text(paper, "volume_id"));
            passing::thaw(office, &name, &snapshot_name(id)).await
        }
        Deed::CreateBackup => back_up(office, paper).await,
        Deed::Upload => upload(office, paper).await,
        _ => {
            let all = office.papers.all(backups::DRAWER).await?;
            if !backups::shares(paper, &all) {
                copy::forget(&office.store, &backups::shelf_of(paper)).await?;
            }
            Ok(())
        }
    }
}

/// What no volume can have is the volume layer's to refuse.
pub(crate) fn bytes_of(gib: i64) -> u64 {
    u64::try_from(gib).unwrap_or(0).saturating_mul(GIB)
}

/// The device of a volume: who uses it at another node is left alone.
async fn attach(office: &Office, name: &str) -> Result<Attached, VolumeError> {
    several::lead(office, name).await?;
    office.blocks.exports.attach(name).await
}

/// A volume that is to be.
struct New {
    id: VolumeId,
    label: Label,
    members: usize,
}

async fn make(office: &Office, paper: &Paper) -> Result<(), Trouble> {
    let id = text(paper, "id");
    if text(paper, "host").is_empty() {
        return Err(Trouble::Nowhere);
    }
    let (exports, name) = (&office.blocks.exports, device_name(id));
    let mut identity = [0; 16];
    hex::decode_to_slice(id.replace('-', ""), &mut identity)
        .map_err(|_| CopyError::Backup("its id is none"))?;
    let label = Label {
        name: name.clone(),
        bytes: bytes_of(number(paper, "size")),
        made: wall_clock() / 1000,
        limits: qos::limits_for(office, paper).await?,
        key: is_encrypted(paper).then(|| exports.volumes().wrap(&random_bytes())).transpose()?,
        ..Label::default()
    };
    let new = New { id: VolumeId(identity), label, members: several::members(paper) };
    let (snapshot, source, backup) =
        (text(paper, "snapshot_id"), text(paper, "source_volid"), text(paper, "backup_id"));
    if !snapshot.is_empty() {
        let of = office.papers.get(snapshots::DRAWER, snapshot).await?;
        let of = of.ok_or(CopyError::Backup("the snapshot is gone"))?;
        let of = device_name(text(&of, "volume_id"));
        return make_of(office, new, &of, &snapshot_name(snapshot)).await;
    }
    if !source.is_empty() {
        let from = device_name(source);
        return passing::while_kept(office, &from, id, async |kept| make_of(office, new, &from, kept).await)
            .await;
    }
    exports.hear_of(&name).await?;
    let begun = exports.has(&name);
    there(exports.create(new.id, new.label, new.members).await)?;
    if images::is_moved_by(&map(paper, "task")) {
        let target = attach(office, &name).await?;
        return Ok(images::write_out(office, paper, &target, begun).await?);
    }
    if backup.is_empty() { Ok(()) } else { restore(office, backup, id).await }
}

/// That it is there already is good.
fn there(made: Result<(), VolumeError>) -> Result<(), Trouble> {
    match made {
        Ok(()) | Err(VolumeError::Taken(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Makes a volume of what was frozen: at no cost where it has as many members as the other one has, unless one of the two is encrypted and
/// the other is not.
async fn make_of(office: &Office, new: New, of: &str, frozen: &str) -> Result<(), Trouble> {
    let (exports, name) = (&office.blocks.exports, new.label.name.clone());
    exports.hear_of(of).await?;
    exports.hear_of(&name).await?;
    let alike = exports.is_encrypted(of)? == new.label.key.is_some() && exports.members_of(of) == new.members;
    // One that is there and no clone was being copied when the node was killed.
    if alike && !exports.is_no_clone(&name) {
        several::lead(office, of).await?;
        let made = exports.certainly(|| exports.clone_snapshot(new.id, new.label.clone(), of, frozen)).await;
        return there(made);
    }
    there(exports.create(new.id, new.label, new.members).await)?;
    let (source, target) = (passing::view(office, of, frozen).await?, attach(office, &name).await?);
    Ok(copy::into_new(&source, &target).await?)
}

/// Deletes a volume and what is of it; with `cascade` also its snapshots.
async fn delete(office: &Office, paper: &Paper, cascade: bool) -> Result<(), Trouble> {
    let id = text(paper, "id");
    let goes = |snapshot: &Paper| cascade || text(snapshot, "status") == rule_of(Deed::DeleteSnapshot).during;
    let frozen = office.papers.all(snapshots::DRAWER).await?;
    // One that was accepted after it was found that there are none.
    if frozen.iter().any(|snapshot| text(snapshot, "volume_id") == id && !goes(snapshot)) {
        return Err(Trouble::Frozen);
    }
    let source = text(paper, "source_volid");
    if !source.is_empty() {
        passing::thaw(office, &device_name(source), &passing::name_for(id)).await?;
    }
    let name = device_name(id);
    several::lead(office, &name).await?;
    match office.blocks.exports.let_go(&name).await {
        // That is certain: it was looked for above.
        Ok(()) | Err(VolumeError::NoVolume(_)) => {}
        Err(error) => return Err(error.into()),
    }
    for drawer in [snapshots::DRAWER, attachments::DRAWER, "transfers"] {
        for beside in office.papers.all(drawer).await? {
            // One that was accepted in the last moment stays, and ends in `error`: nobody is told that it is gone.
            if text(&beside, "volume_id") == id && (drawer != snapshots::DRAWER || goes(&beside)) {
                office.papers.remove(drawer, text(&beside, "id")).await?;
            }
        }
    }
    Ok(())
}

/// Deletes a volume of this node without a word in its paper: the disks are full.
pub(crate) async fn delete_at_once(office: &Office, id: &str, cascade: bool) -> Result<(), Fault> {
    let volume = office.papers.get(volumes::DRAWER, id).await?;
    let may = |volume: &Paper| is_own(office, text(volume, "host")) || several::members(volume) > 1;
    let volume = volume.filter(|volume| may(volume));
    let volume =
        volume.ok_or_else(|| Fault::other(503, "The disks are full; ask the node that has the volume."))?;
    delete(office, &volume, cascade).await.map_err(|trouble| Fault::other(503, trouble.to_string()))?;
    office.papers.remove(volumes::DRAWER, id).await?;
    Ok(())
}

async fn restore(office: &Office, backup: &str, volume: &str) -> Result<(), Trouble> {
    let found = office.papers.get(backups::DRAWER, backup).await?;
    let found = found.ok_or(CopyError::Backup("it is gone"))?;
    let shelves = backups::shelves_of(&found, &office.papers.all(backups::DRAWER).await?);
    let target = attach(office, &device_name(volume)).await?;
    Ok(copy::restore(&office.store, &backups::shelf_of(&found), &shelves, &target).await?)
}

async fn back_up(office: &Office, paper: &Paper) -> Result<(), Trouble> {
    let id = text(paper, "id");
    let (name, snapshot) = (device_name(text(paper, "volume_id")), text(paper, "snapshot_id"));
    let built_on = text(paper, "parent_id");
    let parent = match office.papers.get(backups::DRAWER, built_on).await? {
        Some(parent) => copy::index_of(&office.store, &backups::shelf_of(&parent)).await?,
        None => copy::Index::new(),
    };
    let write = async |frozen: &str| -> Result<usize, Trouble> {
        let frozen = passing::view(office, &name, frozen).await?;
        Ok(copy::back_up(&office.store, &frozen, &backups::shelf_of(paper), id, &parent).await?)
    };
    let made = if snapshot.is_empty() {
        passing::while_kept(office, &name, id, write).await?
    } else {
        write(&snapshot_name(snapshot)).await?
    };
    // One that builds on nothing of another one is whole whatever became of that one.
    if !parent.is_empty() && !backups::stands(office, built_on).await? {
        return Err(CopyError::Backup("the one that it builds on is gone").into());
    }
    let count = |backup: &mut Paper| -> Result<(), PaperError> {
        backup.insert("object_count".to_owned(), json!(made));
        Ok(())
    };
    office.papers.change(backups::DRAWER, id, count).await?;
    Ok(())
}

/// Makes an image of a volume as it is now.
async fn upload(office: &Office, paper: &Paper) -> Result<(), Trouble> {
    let name = device_name(text(paper, "id"));
    let send = async |frozen: &str| -> Result<(), Trouble> {
        let frozen = passing::view(office, &name, frozen).await?;
        Ok(images::send(office, paper, frozen).await?)
    };
    let sent = passing::while_kept(office, &name, &passing::image_of(paper), send).await;
    if matches!(sent, Err(Trouble::Failed(_))) {
        images::give_up(office, paper).await;
    }
    sent
}

/// A volume goes back to what it was when its backup has come to an end.
async fn after_backup(office: &Office, volume: &Paper) -> Result<(), PaperError> {
    let task = map(volume, "task");
    let named = text(&task, "backup");
    let mut backup = office.papers.get(backups::DRAWER, named).await?;
    if backup.is_none() {
        // Its paper is written a moment after the volume's.
        tokio::time::sleep(Duration::from_secs(1)).await;
        backup = office.papers.get(backups::DRAWER, named).await?;
    }
    if backup.is_some_and(|backup| backup.contains_key("task")) {
        // Its end kicks.
        tokio::time::sleep(Duration::from_millis(50)).await;
        return Ok(());
    }
    finish(office, volumes::DRAWER, volume, text(&task, "before"), None).await.map(drop)
}
