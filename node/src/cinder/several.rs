//! Volumes of the API that have several members: how many their types want, and which node works on one.
//!
//! Such a volume has no node of its own. What is under way with it, or with a snapshot or backup of it, is done by the first that answers
//! of: its head's node, the one that its paper names, the others that have members. So it is shown, attached, frozen and deleted also
//! when the node that made it is gone for ever.
//! Invariant: two nodes that both believe to be it do no harm: the control group takes a change from one of them, and a paper takes one
//! end of a task.
//! Invariant: a head that answers keeps its volume; one that does not is fenced before another node acts in its place.
//! Invariant: how many members a volume has stands in its paper; its type may say something else since.

use quarry_engine::net::NodeId;
use quarry_volume::store::VolumeError;
use serde_json::{Map, Value, json};

use super::fault::Fault;
use super::fields::{map, number, text};
use super::states::{Deed, rule_of};
use super::work::device_name;
use super::{Office, migrate, services, snapshots, volumes};
use crate::cluster::watch::{self, Patience};
use crate::papers::{Paper, PaperError};

/// The extra spec that says how many members volumes of a type have.
const SPEC: &str = "quarry:members";
const MOST: usize = 5;

/// Judges the extra specs that a type is to have.
pub(crate) fn judge(specs: &Map<String, Value>) -> Result<(), Fault> {
    let Some(said) = specs.get(SPEC) else { return Ok(()) };
    match said.as_str().unwrap_or("").parse::<usize>() {
        Ok(1..=MOST) => Ok(()),
        _ => Err(Fault::bad(format!("Invalid extra spec: {SPEC} is a number from 1 to {MOST}."))),
    }
}

/// How many members volumes of a type have.
pub(crate) fn wanted_by(kind: &Paper) -> usize {
    text(&map(kind, "extra_specs"), SPEC).parse().unwrap_or(1).clamp(1, MOST)
}

/// How many members a volume has, or the one that a snapshot or backup is of.
pub(crate) fn members(paper: &Paper) -> usize {
    usize::try_from(number(paper, "members")).unwrap_or(1).max(1)
}

/// Nodes that may do what is under way with a paper, the first that answers does it; `None`: the host that it names, alone.
pub(crate) async fn doers(
    office: &Office,
    drawer: &'static str,
    paper: &Paper,
) -> Result<Option<Vec<NodeId>>, PaperError> {
    let Some(shared) = office.blocks.exports.shared() else { return Ok(None) };
    let of = subject(office, drawer, paper).await?;
    let row = shared.find(&device_name(&of));
    if row.is_none() && members(paper) < 2 {
        return Ok(None);
    }
    let host = services::node_of(text(paper, "host")).parse().ok();
    let named = row.as_ref().and_then(|row| row.head).into_iter().chain(host);
    let nodes = shared.nodes();
    let others = row.map_or_else(|| nodes.clone(), |row| shared.nodes_of(&row));
    Ok(Some(in_order(named.chain(others), &nodes)))
}

/// Whether it is for this node to see to a volume with several members: its head, where that answers, else another one that has a member.
pub(crate) async fn sees_to(office: &Office, name: &str) -> bool {
    let Some((shared, row)) = office.blocks.exports.several(name) else { return false };
    let all = row.head.into_iter().chain(shared.nodes_of(&row));
    is_first(office, &in_order(all, &shared.nodes())).await
}

/// Each once, in this order, of those who are there at all.
fn in_order(wanted: impl Iterator<Item = NodeId>, nodes: &[NodeId]) -> Vec<NodeId> {
    let mut all: Vec<NodeId> = Vec::new();
    for node in wanted {
        if nodes.contains(&node) && !all.contains(&node) {
            all.push(node);
        }
    }
    all
}

/// The volume whose head's node it is to be: what a new volume is made of is read there.
async fn subject(office: &Office, drawer: &'static str, paper: &Paper) -> Result<String, PaperError> {
    if drawer != volumes::DRAWER {
        return Ok(text(paper, "volume_id").to_owned());
    }
    let own = text(paper, "id").to_owned();
    if text(&map(paper, "task"), "do") != rule_of(Deed::Create).name {
        return Ok(own);
    }
    let source = match office.papers.get(snapshots::DRAWER, text(paper, "snapshot_id")).await? {
        Some(snapshot) => text(&snapshot, "volume_id").to_owned(),
        None => text(paper, "source_volid").to_owned(),
    };
    let several = office.blocks.exports.several(&device_name(&source)).is_some();
    Ok(if several { source } else { own })
}

/// Whether this node is the first of some that answers; who only is slow has [`lead`] to say so.
pub(crate) async fn is_first(office: &Office, doers: &[NodeId]) -> bool {
    match office.place.net.as_ref() {
        Some(net) => watch::is_first(&**net, doers, Patience::Short).await,
        None => true,
    }
}

async fn answers(office: &Office, node: NodeId) -> bool {
    match office.place.net.as_ref() {
        Some(net) => watch::answers(&**net, node).await,
        None => false,
    }
}

/// Lets this node be the head of a volume with several members where nobody is, or the one that was does not answer. From then on it knows
/// of the volume, if there is one.
pub(crate) async fn lead(office: &Office, name: &str) -> Result<(), VolumeError> {
    let Some((shared, row)) = office.blocks.exports.several_surely(name).await? else { return Ok(()) };
    let Some(head) = row.head.filter(|head| *head != shared.local()) else { return Ok(()) };
    if shared.nodes().contains(&head) && answers(office, head).await {
        return Err(VolumeError::InUseAt(name.to_owned(), head.to_string()));
    }
    shared.seize(&row).await
}

/// The host that a volume's paper should name: one that has a member, this node first, which is there. `None`: the one that it names.
pub(crate) fn host_of(office: &Office, paper: &Paper) -> Option<String> {
    let (exports, name) = (&office.blocks.exports, device_name(text(paper, "id")));
    let Some((shared, row)) = exports.several(&name) else {
        // One that was read from a volume with several members was made where that has its head.
        let here = exports.volumes().has(&name);
        return here.then(|| services::host_of(&office.place.host));
    };
    let nodes = shared.nodes_of(&row);
    let named = services::node_of(text(paper, "host")).parse().ok();
    let kept = named.filter(|node| nodes.contains(node));
    let node = Some(shared.local()).filter(|local| nodes.contains(local)).or(kept);
    node.or(nodes.first().copied()).map(|node| services::host_of(&node.to_string()))
}

/// Has a volume's paper name a host that is there: this node has just worked on it.
pub(super) async fn take(office: &Office, volume: &str) -> Result<(), PaperError> {
    let Some(paper) = office.papers.get(volumes::DRAWER, volume).await? else { return Ok(()) };
    match host_of(office, &paper) {
        Some(host) => name_host(office, volume, &host).await,
        None => Ok(()),
    }
}

async fn name_host(office: &Office, volume: &str, host: &str) -> Result<(), PaperError> {
    let edit = |paper: &mut Paper| -> Result<(), PaperError> {
        // Where a volume with one member goes, its way says.
        if members(paper) > 1 && !migrate::is_on_its_way(paper) {
            paper.insert("host".to_owned(), json!(host));
        }
        Ok(())
    };
    office.papers.change(volumes::DRAWER, volume, edit).await.map(drop)
}

/// Names another host where the one that a paper names has no member any more.
pub(super) async fn settle(office: &Office, paper: &Paper) -> Result<(), PaperError> {
    let shared = office.blocks.exports.shared().filter(|_| members(paper) > 1);
    let found = shared.and_then(|shared| Some((shared, shared.find(&device_name(text(paper, "id")))?)));
    let Some((shared, row)) = found else { return Ok(()) };
    let nodes = shared.nodes_of(&row);
    let named = services::node_of(text(paper, "host")).parse().ok();
    // One of them says so.
    if nodes.first() != Some(&shared.local()) || named.is_some_and(|node| nodes.contains(&node)) {
        return Ok(());
    }
    name_host(office, text(paper, "id"), &services::host_of(&shared.local().to_string())).await
}

/// Nodes where clients may connect to a volume, the best first; `None`: at its host alone.
async fn doors(office: &Office, volume: &Paper) -> Option<Vec<NodeId>> {
    let shared = office.blocks.exports.shared()?;
    let row = shared.find(&device_name(text(volume, "id")))?;
    let host = services::node_of(text(volume, "host")).parse().ok();
    let nodes = shared.nodes();
    let named = row.head.into_iter().chain(host).chain(shared.nodes_of(&row));
    Some(in_order(named.chain(nodes.iter().copied()), &nodes))
}

/// Where NBD clients connect to a volume: at its host; one with several members is served by any node that answers, its head's first.
pub(crate) async fn address(office: &Office, volume: &Paper) -> Result<Option<String>, PaperError> {
    let own = || office.place.nbd.map(|address| address.to_string());
    let said = async |node: &str| -> Result<Option<String>, PaperError> {
        let known = office.papers.get("nodes", node).await?;
        Ok(known.map(|known| text(&known, "nbd").to_owned()).filter(|address| !address.is_empty()))
    };
    let Some(doors) = doors(office, volume).await else {
        let host = text(volume, "host");
        return if super::work::is_own(office, host) {
            Ok(own())
        } else {
            said(services::node_of(host)).await
        };
    };
    let Some(net) = office.place.net.as_ref() else { return Ok(own()) };
    let (mut nodes, mut addresses) = (Vec::new(), Vec::new());
    for node in doors {
        let address = if net.local() == node { own() } else { said(&node.to_string()).await? };
        if let Some(address) = address {
            nodes.push(node);
            addresses.push(address);
        }
    }
    let found = watch::first(&**net, &nodes, Patience::Short).await;
    let place = found.and_then(|found| nodes.iter().position(|node| *node == found));
    Ok(place.and_then(|place| addresses.into_iter().nth(place)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cinder::fields::paper;

    #[test]
    fn types_want_one_to_five_members() {
        for (said, members) in [("1", 1), ("3", 3), ("5", 5)] {
            let specs = paper(json!({ SPEC: said }));
            assert_eq!(judge(&specs), Ok(()));
            assert_eq!(wanted_by(&paper(json!({ "extra_specs": specs }))), members);
        }
        for bad in ["", "0", "6", "-1", "three", " 3"] {
            assert_eq!(judge(&paper(json!({ SPEC: bad }))).map_err(|fault| fault.status), Err(400), "{bad}");
        }
        assert_eq!((judge(&Map::new()), wanted_by(&Paper::new()), members(&Paper::new())), (Ok(()), 1, 1));
    }

    #[test]
    fn nodes_that_left_are_asked_for_nothing_and_each_is_asked_once() {
        let [a, b, c] = [1, 2, 3].map(|byte| NodeId([byte; 16]));
        assert_eq!(in_order([b, a, b, c].into_iter(), &[a, b]), [b, a]);
        assert!(in_order([c].into_iter(), &[a]).is_empty());
    }
}
