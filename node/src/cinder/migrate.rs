//! A volume goes to another node, becomes an encrypted or a plain one, or gets more or fewer members: its bytes are written anew.
//!
//! ```text
//! phase     done by             what
//! leave     the volume's node   it gets a name that no client finds; nobody may be using it
//! copy      where it goes       a new volume gets its bytes; then the paper says that it is there
//! arrive    where it went       the new volume gets its name, and the paper its type
//! back      the volume's node   it gets its name back: it cannot go
//! ```
//!
//! Invariant: the old volume is whole until the paper says that the new one is the volume, and the new one is durable before that.
//! Invariant: a phase that is done twice does no harm; each ends with a change of the task that began it, or changes nothing.
//! Invariant: what is left over (the old volume, a copy that came to nothing) goes when the paper says that it is not the volume, also
//! where an admin reset the volume's state in between; it is judged by a paper that was read while no phase can be under way here.
//! Invariant: whether the volume is one with several members, known to the cluster, or has its one member at a node, its paper says.

use std::time::Duration;

use quarry_engine::block::Fence;
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::{NodeId, Request, Response, VolumeAnswer, VolumeCall};
use quarry_volume::VolumeId;
use quarry_volume::store::{Attached, Label, VolumeError};
use serde_json::{Map, Value, json};

use super::ask::{Answer, Ask, Reply};
use super::copy::{self, CopyError};
use super::fault::Fault;
use super::fields::{given_flag, map, now, number, text, value};
use super::messages::{self, Event};
use super::states::{Deed, rule_of};
use super::work::{bytes_of, device_name, is_own};
use super::{Office, actions, attachments, drain, groups, services, several, snapshots};
use crate::block::Said;
use crate::block::moving::{End, end_of};
use crate::papers::{Paper, PaperError};
use crate::storage::{random_bytes, wall_clock};

const DRAWER: &str = super::volumes::DRAWER;
/// How long the other node has for an answer, how often it is asked, and the pause in between.
const WITHIN: Duration = Duration::from_secs(10);
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_secs(1);

/// Why a phase did not come to its end.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    /// The volume cannot go.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The same.
    #[error("{0}")]
    Not(String),
    /// The same.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// Nothing can be said now.
    #[error(transparent)]
    Later(#[from] PaperError),
}

/// What a volume becomes.
pub(crate) struct Way {
    /// The host that it has afterwards.
    pub(crate) to: String,
    /// Its type afterwards; none: as it is.
    pub(crate) kind: Option<(String, bool)>,
    /// What `encryption` says afterwards.
    pub(crate) encryption: Value,
    /// How many members it has afterwards.
    pub(crate) members: usize,
}

/// `os-migrate_volume`.
pub(crate) async fn migrate(office: &Office, ask: &Ask, volume: &Paper, given: &Map<String, Value>) -> Reply {
    ask.admin("volume_extension:volume_admin_actions:migrate_volume")?;
    for key in ["force_host_copy", "lock_volume"] {
        given_flag(given.get(key).unwrap_or(&json!(false)), key)?;
    }
    if given.get("cluster").is_some_and(|cluster| !cluster.is_null()) {
        return Err(Fault::bad("Invalid host: there are no clusters of services; name a host."));
    }
    if several::members(volume) > 1 {
        return Err(Fault::bad("Invalid host: the volume has several members, at several hosts already."));
    }
    let host = given.get("host").and_then(Value::as_str).unwrap_or("");
    let pools = services::pools(office).await?;
    let named = |pool: &&services::Pool| pool.name == host || pool.name.split('#').next() == Some(host);
    let pool = pools.iter().find(named);
    let pool = pool.ok_or_else(|| Fault::bad(format!("Invalid host: No available service named {host}.")))?;
    if pool.name == text(volume, "host") {
        return Err(Fault::bad("Invalid host: Destination host must be different from the current host."));
    }
    if !pool.up || pool.disabled || !pool.roomy {
        return Err(Fault::bad(format!("Invalid host: {host} takes no volumes now.")));
    }
    let way = Way { to: pool.name.clone(), kind: None, encryption: value(volume, "encryption"), members: 1 };
    begin(office, volume, Deed::Migrate, way).await?;
    Answer::bare(202)
}

/// Lets a volume go, if it may: nobody has it, and it has no snapshots.
pub(crate) async fn begin(office: &Office, volume: &Paper, deed: Deed, way: Way) -> Result<(), Fault> {
    let id = text(volume, "id");
    let of = |paper: &Paper| text(paper, "volume_id") == id;
    let frozen = office.papers.all(snapshots::DRAWER).await?.iter().any(|snapshot| of(snapshot));
    let held = office.papers.all(attachments::DRAWER).await?.iter().any(|attachment| of(attachment));
    let grouped = groups::is_held(volume, groups::left_by(office, volume).await?);
    if text(volume, "status") != "available" || frozen || held || grouped {
        return Err(Fault::state(
            "Volume status must be available, and it must not be attached, migrating, part of a group or have snapshots.",
        ));
    }
    if office.blocks.exports.users_of(&device_name(id)) > 0 {
        return Err(Fault::state("Volume is in use: an NBD client is connected."));
    }
    let Way { to, kind, encryption, members } = way;
    let task =
        json!({ "phase": "leave", "to": to, "kind": kind, "encryption": encryption, "members": members });
    actions::begin_with(office, id, deed, &task, &json!({ "migration_status": "migrating" })).await
}

/// Where a paper is: an operator's volume that goes to another node has one of its own.
fn drawer_of(paper: &Paper) -> &'static str {
    if paper.contains_key("device") { drain::MOVES } else { DRAWER }
}

/// What clients call the volume.
fn name_of(paper: &Paper) -> String {
    let device = text(paper, "device");
    if device.is_empty() { device_name(text(paper, "id")) } else { device.to_owned() }
}

/// What the volume is to have, at its other end.
fn label_of(paper: &Paper) -> Label {
    let bytes = paper.get("bytes").and_then(Value::as_u64);
    let limits = paper.get("limits").cloned().and_then(|limits| serde_json::from_value::<Said>(limits).ok());
    Label {
        bytes: bytes.unwrap_or_else(|| bytes_of(number(paper, "size"))),
        description: text(paper, "description").to_owned(),
        limits: limits.map(|Said(limits)| limits).unwrap_or_default(),
        made: wall_clock() / 1000,
        ..Label::default()
    }
}

/// Whether a paper's volume is on its way.
pub(crate) fn is_on_its_way(paper: &Paper) -> bool {
    let task = map(paper, "task");
    [Deed::Migrate, Deed::Retype].iter().any(|deed| text(&task, "do") == rule_of(*deed).name)
}

/// Whether the host that a paper names, or the one where its volume goes, does what is next, and no other node: what a volume with several
/// members is to leave, or is given back, any of those that have one may do.
pub(crate) fn is_for_its_host(paper: &Paper) -> bool {
    let task = map(paper, "task");
    let anywhere = matches!(text(&task, "phase"), "leave" | "back") && several::members(paper) > 1;
    is_on_its_way(paper) && !anywhere
}

/// The host that does what is next; the volume's, unless it is on its way.
pub(crate) fn doer(paper: &Paper) -> String {
    let task = map(paper, "task");
    let there = is_on_its_way(paper) && text(&task, "phase") == "copy";
    text(if there { &task } else { paper }, if there { "to" } else { "host" }).to_owned()
}

/// Does the phase that is next.
pub(crate) async fn perform(office: &Office, paper: &Paper) -> Result<(), PaperError> {
    let task = map(paper, "task");
    let phase = text(&task, "phase").to_owned();
    let done = match phase.as_str() {
        "leave" => leave(office, paper, &task).await,
        "copy" => copy(office, paper, &task).await,
        "arrive" => arrive(office, paper, &task).await,
        _ => go_back(office, paper, &task).await,
    };
    match done {
        Ok(()) => Ok(()),
        Err(Trouble::Later(error)) => Err(error),
        Err(why) => {
            tracing::warn!(id = text(paper, "id"), phase, %why, "volume does not go to where it should");
            if phase == "leave" || phase == "copy" {
                return go_on(office, paper, |_, task| drop(task.insert("phase".to_owned(), json!("back"))))
                    .await;
            }
            tokio::time::sleep(PAUSE).await;
            Ok(())
        }
    }
}

/// Writes what follows from a phase, unless another task replaced it.
async fn go_on(
    office: &Office,
    paper: &Paper,
    edit: impl Fn(&mut Paper, &mut Map<String, Value>) + Send + Sync,
) -> Result<(), PaperError> {
    let before = paper.get("task");
    let change = |there: &mut Paper| -> Result<(), PaperError> {
        if there.get("task") == before {
            let mut task = map(there, "task");
            edit(there, &mut task);
            let over = task.is_empty();
            there.insert("task".to_owned(), Value::Object(task));
            if over {
                there.remove("task");
            }
            there.insert("updated_at".to_owned(), json!(now()));
        }
        Ok(())
    };
    office.papers.change(drawer_of(paper), text(paper, "id"), change).await?;
    office.kick.notify_one();
    Ok(())
}

async fn leave(office: &Office, paper: &Paper, task: &Paper) -> Result<(), Trouble> {
    let (exports, id) = (&office.blocks.exports, text(paper, "id"));
    let (name, leaving) = (name_of(paper), End::Leaving.name_of(id));
    if text(task, "before") != "available" {
        return Err(Trouble::Not("it is not available".to_owned()));
    }
    exports.hear_of(&name).await?;
    if exports.has(&name) {
        if exports.is_frozen(&name)? {
            return Err(Trouble::Not("it has snapshots".to_owned()));
        }
        let source = exports.id_of(&name)?;
        several::lead(office, &name).await?;
        several::lead(office, &leaving).await?;
        // Where it has the name already, this node heard late of what it had done itself; another one is of an earlier way.
        if !exports.has(&leaving) || exports.id_of(&leaving)? != source {
            give_up(office, &leaving).await?;
            exports.rename(&name, &leaving).await?;
        }
    }
    exports.hear_of(&leaving).await?;
    let source = exports.id_of(&leaving)?;
    let next = |_: &mut Paper, task: &mut Paper| {
        task.insert("phase".to_owned(), json!("copy"));
        task.insert("source".to_owned(), json!(hex::encode(source.0)));
    };
    Ok(go_on(office, paper, next).await?)
}

async fn copy(office: &Office, paper: &Paper, task: &Paper) -> Result<(), Trouble> {
    let (exports, id) = (&office.blocks.exports, text(paper, "id"));
    let (arriving, leaving) = (End::Arriving.name_of(id), End::Leaving.name_of(id));
    // Begun in another life; and what is left of the time when the volume was here before.
    give_up(office, &arriving).await?;
    let here = is_own(office, text(paper, "host")) || several::members(paper) > 1;
    if !here && exports.volumes().has(&leaving) {
        exports.volumes().let_go(&leaving).await?;
    }
    exports.hear_of(&name_of(paper)).await?;
    if !is_own(office, text(paper, "host")) && exports.has(&name_of(paper)) {
        return Err(Trouble::Not("a volume of its name is there".to_owned()));
    }
    let encrypted = value(task, "encryption").is_object();
    let key = encrypted.then(|| exports.volumes().wrap(&random_bytes())).transpose()?;
    let label = Label { name: arriving.clone(), key, ..label_of(paper) };
    let members = several::members(task);
    exports.create(VolumeId(random_bytes()), label, members).await?;
    let target = exports.attach(&arriving).await?;
    if several::members(paper) > 1 {
        copy::into_new(&exports.attach(&leaving).await?, &target).await?;
    } else {
        let mut source = [0; 16];
        hex::decode_to_slice(text(task, "source"), &mut source)
            .map_err(|_| Trouble::Not("its source has no id".to_owned()))?;
        pull(office, text(paper, "host"), VolumeId(source), &target).await?;
    }
    target.flush().await?;
    let to = text(task, "to").to_owned();
    let next = move |paper: &mut Paper, task: &mut Paper| {
        paper.insert("host".to_owned(), json!(to));
        paper.insert("members".to_owned(), json!(members));
        task.insert("phase".to_owned(), json!("arrive"));
    };
    Ok(go_on(office, paper, next).await?)
}

/// Writes what a volume holds into a new one, which reads as zeroes.
async fn pull(office: &Office, host: &str, source: VolumeId, target: &Attached) -> Result<(), Trouble> {
    let mut from = 0;
    while from < target.bytes() {
        let (at, data) = ask(office, host, source, from).await?;
        let next = at.saturating_add(data.len() as u64);
        if data.is_empty() {
            break;
        }
        if at < from || next > target.bytes() {
            return Err(Trouble::Not("its node tells of bytes that it does not have".to_owned()));
        }
        target.write(at, data).await?;
        from = next;
    }
    Ok(())
}

/// The first data from a byte on, from the node of `host`, which may be this one.
async fn ask(
    office: &Office,
    host: &str,
    volume: VolumeId,
    from: u64,
) -> Result<(u64, bytes::Bytes), Trouble> {
    let Some(net) = office.place.net.as_ref() else {
        return told(crate::block::moving::tell(office.blocks.exports.volumes(), volume, from).await);
    };
    let node: NodeId = services::node_of(host)
        .parse()
        .map_err(|_| Trouble::Not(format!("{host} names no node of this cluster")))?;
    let mut why = String::new();
    for _ in 0..TRIES {
        let request = Request::Volume {
            device: DeviceId([0; 16]),
            volume,
            fence: Fence::default(),
            session: 0,
            call: VolumeCall::Copy { from },
        };
        match net.call(node, request, WITHIN).await {
            Ok(Response::Volume(answer)) => return told(answer),
            Ok(_) => why = "another answer than the one asked for".to_owned(),
            Err(error) => why = error.to_string(),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(Trouble::Not(why))
}

fn told(answer: VolumeAnswer) -> Result<(u64, bytes::Bytes), Trouble> {
    match answer {
        VolumeAnswer::Copied { at, data } => Ok((at, data)),
        _ => Err(Trouble::Not("its node cannot read it".to_owned())),
    }
}

/// Deletes a volume that is none: of an earlier way, or a copy that came to nothing.
async fn give_up(office: &Office, name: &str) -> Result<(), VolumeError> {
    several::lead(office, name).await?;
    if !office.blocks.exports.has(name) {
        return Ok(());
    }
    office.blocks.exports.let_go(name).await
}

/// Has a volume found by its name, from which it was kept; done before, perhaps. An operator may have given the name of his to another one
/// meanwhile: then it waits.
async fn give_name(office: &Office, paper: &Paper, end: &str) -> Result<(), VolumeError> {
    let (exports, name) = (&office.blocks.exports, name_of(paper));
    exports.hear_of(end).await?;
    exports.hear_of(&name).await?;
    let waits = drawer_of(paper) == drain::MOVES && exports.has(end);
    if waits || !exports.has(&name) { exports.rename(end, &name).await } else { Ok(()) }
}

async fn arrive(office: &Office, paper: &Paper, task: &Paper) -> Result<(), Trouble> {
    let id = text(paper, "id");
    give_name(office, paper, &End::Arriving.name_of(id)).await?;
    if drawer_of(paper) == drain::MOVES {
        return Ok(office.papers.remove(drain::MOVES, id).await.map(drop)?);
    }
    let before = text(task, "before").to_owned();
    let over = move |paper: &mut Paper, task: &mut Paper| {
        if let Some([kind, multiattach]) = task.get("kind").and_then(Value::as_array).map(Vec::as_slice) {
            paper.insert("volume_type_id".to_owned(), kind.clone());
            paper.insert("multiattach".to_owned(), multiattach.clone());
        }
        paper.insert("encryption".to_owned(), value(task, "encryption"));
        paper.insert("migration_status".to_owned(), json!("success"));
        paper.insert("status".to_owned(), json!(before));
        task.clear();
    };
    Ok(go_on(office, paper, over).await?)
}

async fn go_back(office: &Office, paper: &Paper, task: &Paper) -> Result<(), Trouble> {
    let id = text(paper, "id");
    give_name(office, paper, &End::Leaving.name_of(id)).await?;
    if drawer_of(paper) == DRAWER {
        messages::say(office, Event::Migrate, "VOLUME", paper).await?;
    }
    let before = text(task, "before").to_owned();
    let over = move |paper: &mut Paper, task: &mut Paper| {
        paper.insert("migration_status".to_owned(), json!("error"));
        paper.insert("status".to_owned(), json!(before));
        task.clear();
    };
    Ok(go_on(office, paper, over).await?)
}

/// Deletes what is left of volumes that went, and gives names back to those whose way was ended by hand.
pub(crate) async fn sweep(office: &Office) -> Result<(), PaperError> {
    let exports = &office.blocks.exports;
    let own = exports.volumes().named(|name| end_of(name).is_some());
    let own = own.into_iter().map(|volume| (volume.label.name, false));
    let rows = exports.shared().map(|shared| shared.on_their_way()).unwrap_or_default();
    let rows = rows.into_iter().map(|name| (name, true));
    for (name, several) in own.chain(rows) {
        let Some((end, id)) = end_of(&name) else { continue };
        if !office.busy(|busy| busy.insert(id.to_owned())) {
            continue;
        }
        let judged =
            if several { judge_several(office, end, id).await } else { judge(office, end, id).await };
        office.busy(|busy| busy.remove(id));
        match judged {
            Ok(()) => {}
            Err(Trouble::Later(error)) => return Err(error),
            Err(error) => tracing::warn!(id, ?end, %error, "give up what is left of a volume that went"),
        }
    }
    Ok(())
}

async fn judge(office: &Office, end: End, id: &str) -> Result<(), Trouble> {
    let (volumes, own) = (office.blocks.exports.volumes(), end.name_of(id));
    let found = match office.papers.get(DRAWER, id).await? {
        None => office.papers.get(drain::MOVES, id).await?,
        found => found,
    };
    let Some(paper) = found else {
        return Ok(volumes.let_go(&own).await?);
    };
    let name = name_of(&paper);
    let here = is_own(office, text(&paper, "host"));
    let needed = match end {
        End::Leaving => here,
        End::Arriving => is_own(office, text(&map(&paper, "task"), "to")),
    };
    if is_on_its_way(&paper) && needed {
        return Ok(());
    }
    // A copy beside what it was made of may not be whole; one that is alone here is the volume.
    let copied = end == End::Arriving && volumes.has(&End::Leaving.name_of(id));
    let is_kind = several::members(&paper) < 2;
    if is_kind && here && !copied && volumes.find(&name).is_err() {
        return Ok(volumes.rename(&own, &name).await.map(drop)?);
    }
    Ok(volumes.let_go(&own).await?)
}

/// The same of what the cluster knows: each node looks, and one of them acts.
async fn judge_several(office: &Office, end: End, id: &str) -> Result<(), Trouble> {
    let (exports, own, name) = (&office.blocks.exports, end.name_of(id), device_name(id));
    let Some((shared, row)) = exports.several(&own) else { return Ok(()) };
    let paper = office.papers.get(DRAWER, id).await?;
    if paper.as_ref().is_some_and(|paper| is_on_its_way(paper)) {
        return Ok(());
    }
    // Where its bytes were read it has a head.
    let there = shared.nodes();
    let mut nodes: Vec<_> = row.head.into_iter().filter(|head| there.contains(head)).collect();
    nodes.extend(shared.nodes_of(&row));
    nodes.extend(there);
    if !several::is_first(office, &nodes).await {
        return Ok(());
    }
    let is_kind = paper.is_some_and(|paper| several::members(&paper) > 1);
    let leaving = exports.several_surely(&End::Leaving.name_of(id)).await?;
    let copied = end == End::Arriving && leaving.is_some();
    if is_kind && !copied && exports.several_surely(&name).await?.is_none() {
        return Ok(exports.rename(&own, &name).await?);
    }
    Ok(give_up(office, &own).await?)
}
