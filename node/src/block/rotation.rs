//! A newer key in place of the one that wraps volumes' keys: `quarry volume key`.
//!
//! ```text
//! new     behind the others in the file of the node that has the authority's key; it wraps nothing
//!         the operator brings the file to the other nodes; each reads it again, and says what it has
//! use     refused until each node has said that it has the key; from then on it wraps, by one row of the control group
//!         each node wraps the labels on its own disks anew, one of them the rows of volumes with several members
//! drop    refused while the key wraps something; each node forgets it then, when it sees nothing that it wraps
//! ```
//!
//! A node alone has no rows: the first key of its file wraps, and `drop` forgets at once.
//!
//! Invariant: a node forgets a key only after the cluster dropped it, and sees then no row that names it, nor a label on its disks; no
//! row comes later (`control/volumes/wrapping.rs`), and a label that was on its way is refused when it is written.
//! Invariant: what is next follows from the rows and the file: who was killed at any point goes on, and each step may come twice.
//! Invariant: volumes' own keys never change: heads, snapshots, clones and bytes know nothing of all this.
//!
//! What may go wrong: a node is away: `use` waits for it, `drop` goes on, and it forgets the key when it is back and has wrapped its labels
//! anew. A node loses its file: it says which key it lacks, and keeps what it has. A disk that was taken out before a rotation and is
//! brought back after `drop`: its labels need the old key, which is in the copy of the old file.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quarry_engine::net::NodeId;
use quarry_volume::KeyName;
use quarry_volume::store::{VolumeError, Volumes};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::keys::{KeyError, Keys};
use super::shared::Shared;
use crate::cluster::watch::{Patience, is_first};
use crate::control::volumes::wrapping::{Choice, Held, Holders, MAX_NAMES};
use crate::control::volumes::{RegisterError, Row};

/// Pause between two looks.
const EVERY: Duration = Duration::from_secs(2);

/// What an operator asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KeyWish {
    List,
    New,
    /// By its name in hex.
    Use(String),
    Drop(String),
}

/// A key as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShownKey {
    pub(crate) name: String,
    /// It wraps what is made now.
    pub(crate) wraps: bool,
    /// Nodes forget it.
    pub(crate) dropped: bool,
    /// How many volumes' keys it wraps.
    pub(crate) volumes: u64,
    pub(crate) nodes: Vec<String>,
    /// Nodes that have not said that they have it.
    pub(crate) lacking: Vec<String>,
}

/// Why a key does not come or go.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RotationError {
    #[error("`{0}` is no key's name: 16 hex digits, as `quarry volume key list` shows them")]
    Name(String),
    #[error("no node has the key {0}")]
    Unknown(KeyName),
    #[error("make it on the machine with the authority's key: machines that join are told its file")]
    Elsewhere,
    #[error("not every node has the key {0}: bring volumes.key to {nodes}", nodes = list(.1))]
    Lacking(KeyName, Vec<NodeId>),
    #[error("the key {0} was dropped")]
    Dropped(KeyName),
    #[error("the key {0} wraps: have another one do so first")]
    Wraps(KeyName),
    #[error("say first which key wraps: `quarry volume key use`")]
    NotChosen,
    #[error("the key {0} wraps those of {1} volumes yet")]
    Needed(KeyName, u64),
    #[error("what these nodes have is not known yet: {nodes}", nodes = list(.0))]
    Unheard(Vec<NodeId>),
    #[error("too many keys were dropped that nodes have yet")]
    TooMany,
    #[error("somebody else did something with keys at the same time; try again")]
    Changed,
    #[error(transparent)]
    Register(RegisterError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl From<RegisterError> for RotationError {
    fn from(error: RegisterError) -> Self {
        if error == RegisterError::Changed { Self::Changed } else { Self::Register(error) }
    }
}

fn list(nodes: &[NodeId]) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// All that decides what may be done.
#[derive(Debug, Clone)]
struct Known {
    choice: Option<Choice>,
    nodes: Vec<NodeId>,
    holders: Holders,
    /// Volumes with several members, by the key that wrapped theirs.
    rows: BTreeMap<KeyName, u64>,
}

impl Known {
    fn has(&self, node: NodeId, name: KeyName) -> bool {
        self.holders.get(&node).is_some_and(|(held, _)| held.keys.contains(&name))
    }

    fn lacking(&self, name: KeyName) -> Vec<NodeId> {
        self.nodes.iter().copied().filter(|node| !self.has(*node, name)).collect()
    }

    /// Those of nodes that take part.
    fn held(&self) -> impl Iterator<Item = &Held> {
        self.nodes.iter().filter_map(|node| Some(&self.holders.get(node)?.0))
    }

    fn wrapped_by(&self, name: KeyName) -> u64 {
        let here = |volumes: &BTreeMap<KeyName, u64>| volumes.get(&name).copied().unwrap_or(0);
        here(&self.rows) + self.held().map(|held| here(&held.volumes)).sum::<u64>()
    }

    /// What is to be written so that a key wraps; nothing where it does.
    fn using(&self, name: KeyName) -> Result<Option<Choice>, RotationError> {
        let dropped = match &self.choice {
            Some(choice) if choice.wraps == name => return Ok(None),
            Some(choice) if choice.dropped.contains(&name) => return Err(RotationError::Dropped(name)),
            Some(choice) => choice.dropped.clone(),
            None => Vec::new(),
        };
        let lacking = self.lacking(name);
        // Also where no node is known yet.
        if lacking.len() == self.nodes.len() {
            return Err(RotationError::Unknown(name));
        }
        if lacking.is_empty() {
            Ok(Some(Choice { wraps: name, dropped }))
        } else {
            Err(RotationError::Lacking(name, lacking))
        }
    }

    /// What is to be written so that a key is forgotten; nothing where that was written.
    fn dropping(&self, name: KeyName) -> Result<Option<Choice>, RotationError> {
        let choice = self.choice.clone().ok_or(RotationError::NotChosen)?;
        if choice.wraps == name {
            return Err(RotationError::Wraps(name));
        }
        if choice.dropped.contains(&name) {
            return Ok(None);
        }
        let silent = |node: &&NodeId| !self.holders.contains_key(*node);
        let unheard: Vec<NodeId> = self.nodes.iter().filter(silent).copied().collect();
        if !unheard.is_empty() {
            return Err(RotationError::Unheard(unheard));
        }
        if !self.held().any(|held| held.keys.contains(&name)) {
            return Err(RotationError::Unknown(name));
        }
        let needed = self.wrapped_by(name);
        if needed > 0 {
            return Err(RotationError::Needed(name, needed));
        }
        // Of those that nobody has any more nothing needs to be said.
        let Choice { wraps, mut dropped } = choice;
        dropped.retain(|old| self.held().any(|held| held.keys.contains(old)));
        dropped.push(name);
        if dropped.len() > MAX_NAMES {
            Err(RotationError::TooMany)
        } else {
            Ok(Some(Choice { wraps, dropped }))
        }
    }

    /// Keys that a node is to forget that has these: they were dropped, and nothing that is known names one.
    fn forgotten(&self, own: &Held) -> Vec<KeyName> {
        let dropped = self.choice.iter().flat_map(|choice| &choice.dropped).copied();
        let needed = |name: &KeyName| self.rows.contains_key(name) || own.volumes.contains_key(name);
        dropped.filter(|name| own.keys.contains(name) && !needed(name)).collect()
    }

    fn shown(&self) -> Vec<ShownKey> {
        let held = self.held().flat_map(|held| held.keys.iter().chain(held.volumes.keys())).copied();
        let wraps = self.choice.as_ref().map(|choice| choice.wraps);
        let all: BTreeSet<KeyName> = held.chain(self.rows.keys().copied()).chain(wraps).collect();
        let texts = |nodes: Vec<NodeId>| nodes.iter().map(ToString::to_string).collect();
        let shown = |name: KeyName| ShownKey {
            name: name.to_string(),
            wraps: wraps == Some(name),
            dropped: self.choice.as_ref().is_some_and(|choice| choice.dropped.contains(&name)),
            volumes: self.wrapped_by(name),
            nodes: texts(self.nodes.iter().copied().filter(|node| self.has(*node, name)).collect()),
            lacking: texts(self.lacking(name)),
        };
        all.into_iter().map(shown).collect()
    }
}

/// Version times of what decides, as they were when it was read.
#[derive(Debug, Clone, Copy, Default)]
struct Times {
    chosen: Option<u64>,
    spoke: Option<u64>,
}

/// Keys that come and go.
#[derive(Debug)]
pub(crate) struct Rotation {
    keys: Keys,
    volumes: Arc<Volumes>,
    shared: Option<Arc<Shared>>,
    /// One step at a time.
    turn: tokio::sync::Mutex<()>,
    more: Notify,
    /// Keys of which it was said that they are not here.
    missed: Mutex<BTreeSet<KeyName>>,
}

impl Rotation {
    pub(crate) fn new(keys: Keys, volumes: Arc<Volumes>, shared: Option<Arc<Shared>>) -> Self {
        let (turn, more, missed) = Default::default();
        Self { keys, volumes, shared, turn, more, missed }
    }

    fn own(&self) -> Held {
        Held { keys: self.keys.ring().names(), volumes: self.volumes.wrapped_by() }
    }

    /// What is known here, and the version times of the choice and of what was said.
    fn known(&self) -> Result<(Known, Times), RotationError> {
        let Some(shared) = &self.shared else {
            let (own, node) = (self.own(), NodeId::default());
            let choice = own.keys.first().map(|wraps| Choice { wraps: *wraps, dropped: Vec::new() });
            let (nodes, holders) = (vec![node], Holders::from([(node, (own, 0))]));
            return Ok((Known { choice, nodes, holders, rows: BTreeMap::new() }, Times::default()));
        };
        let spoke = shared.register.spoke()?;
        // The rows behind the choice: a key that does not wrap any more gets no row that is not among these.
        let (choice, time) = shared.register.choice()?;
        let nodes = shared.nodes();
        let mut holders = shared.register.holders()?;
        holders.retain(|node, _| nodes.contains(node));
        let mut rows = BTreeMap::new();
        for key in shared.register.list()?.into_iter().filter_map(|row| row.key) {
            *rows.entry(key.wrapped_by()).or_default() += 1;
        }
        Ok((Known { choice, nodes, holders, rows }, Times { chosen: time, spoke }))
    }

    /// Does what an operator asks.
    pub(super) async fn act(&self, wish: &KeyWish) -> Result<String, RotationError> {
        // Who looks on waits for nobody.
        let _turn = if *wish == KeyWish::List { None } else { Some(self.turn.lock().await) };
        let name = |text: &str| {
            let mut name = [0; 8];
            let read = hex::decode_to_slice(text, &mut name);
            read.map(|()| KeyName(name)).map_err(|_| RotationError::Name(text.to_owned()))
        };
        let (known, Times { chosen, spoke }) = self.known()?;
        let done = match wish {
            KeyWish::List => serde_json::to_string(&known.shown()).unwrap_or_default(),
            KeyWish::New if !self.keys.makes() => return Err(RotationError::Elsewhere),
            KeyWish::New => self.keys.make()?.to_string(),
            KeyWish::Use(text) => {
                let name = name(text)?;
                match (known.using(name)?, &self.shared) {
                    (Some(choice), Some(shared)) => {
                        shared.register.choose(&choice, chosen, spoke).await?;
                    }
                    (Some(_), None) => self.keys.prefer(name)?,
                    (None, _) => {}
                }
                "Done.".to_owned()
            }
            KeyWish::Drop(text) => {
                let name = name(text)?;
                match (known.dropping(name)?, &self.shared) {
                    (Some(choice), Some(shared)) => {
                        shared.register.choose(&choice, chosen, spoke).await?;
                    }
                    (Some(_), None) => {
                        self.forget(name, &known).await?;
                        // A volume was made meanwhile.
                        if self.has(name) {
                            return Err(RotationError::Needed(name, 1));
                        }
                    }
                    (None, _) => {}
                }
                "Done.".to_owned()
            }
        };
        self.more.notify_one();
        Ok(done)
    }

    /// Goes on with what is to be done, for ever.
    pub(super) async fn go_on(&self) {
        let mut last = None;
        loop {
            let failed = match self.round().await {
                // Who leads is others' to say.
                Ok(()) | Err(RotationError::Register(_) | RotationError::Changed) => None,
                Err(error) => Some(error.to_string()),
            };
            if let Some(error) = failed.as_ref().filter(|_| failed != last) {
                tracing::error!(error, "look after the keys of encrypted volumes");
            }
            last = failed;
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = self.more.notified() => {}
            }
        }
    }

    /// One look: what was brought here is read, what another key wrapped is wrapped anew, what was dropped is forgotten.
    async fn round(&self) -> Result<(), RotationError> {
        let _turn = self.turn.lock().await;
        self.keys.read_again()?;
        let (known, Times { chosen, .. }) = self.known()?;
        self.miss(&known);
        if let Some(choice) = known.choice.as_ref().filter(|choice| self.has(choice.wraps)) {
            self.keys.prefer(choice.wraps)?;
            let own = self.volumes.rewrap(choice.wraps).await;
            let rows = self.rewrap_rows(choice.wraps, chosen, &known).await;
            let (own, rows) = (own?, rows?);
            if own + rows > 0 {
                tracing::info!(volumes = own + rows, key = %choice.wraps, "wrap volumes' keys anew");
            }
            for name in known.forgotten(&self.own()) {
                self.forget(name, &known).await?;
            }
        }
        self.tell(&known).await?;
        self.unsay(&known).await
    }

    fn has(&self, name: KeyName) -> bool {
        self.keys.ring().names().contains(&name)
    }

    /// Says, once, which keys are wanted here and are not.
    fn miss(&self, known: &Known) {
        let labels = self.volumes.wrapped_by();
        let wraps = known.choice.as_ref().map(|choice| choice.wraps);
        let wanted = labels.keys().chain(known.rows.keys()).copied().chain(wraps);
        let missed: BTreeSet<KeyName> = wanted.filter(|name| !self.has(*name)).collect();
        let mut said = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        if missed != *said && !missed.is_empty() {
            let keys = missed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            tracing::error!(
                keys,
                "this node has not the keys of encrypted volumes: bring volumes.key from a node that has them"
            );
        }
        *said = missed;
    }

    /// Wraps the keys of volumes with several members anew, if this node is the one to do it.
    async fn rewrap_rows(
        &self,
        by: KeyName,
        chosen: Option<u64>,
        known: &Known,
    ) -> Result<usize, RotationError> {
        let Some(shared) = &self.shared else { return Ok(0) };
        let (mut done, mut first) = (0, BTreeMap::new());
        for row in shared.list() {
            let Some(old) = row.key.filter(|key| key.wrapped_by() != by) else { continue };
            let Ok(new) = self.keys.ring().rewrap(by, &old) else { continue };
            let name = old.wrapped_by();
            if let Entry::Vacant(unknown) = first.entry(name) {
                let able = |node: &NodeId| known.has(*node, by) && known.has(*node, name);
                let able: Vec<NodeId> = known.nodes.iter().copied().filter(able).collect();
                unknown.insert(is_first(shared.net(), &able, Patience::Short).await);
            }
            if !first[&name] {
                continue;
            }
            let Some((now, time)) = shared.register.row(row.id)?.filter(|(now, _)| now.key == Some(old))
            else {
                continue;
            };
            match shared.register.rewrap(&Row { key: Some(new), ..now }, time, chosen).await {
                Ok(()) => done += 1,
                // The volume, or which key wraps: the next round looks again.
                Err(RegisterError::Changed) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }

    /// Forgets a key that was dropped, unless something needs it here.
    async fn forget(&self, name: KeyName, known: &Known) -> Result<(), RotationError> {
        if known.rows.contains_key(&name) {
            return Ok(());
        }
        if self.volumes.unless_wrapped(name, || self.keys.forget(name)).await? {
            tracing::info!(key = %name, "forget a key that wraps nothing any more");
        }
        Ok(())
    }

    /// Says what this node has, when that changed.
    async fn tell(&self, known: &Known) -> Result<(), RotationError> {
        let Some(shared) = &self.shared else { return Ok(()) };
        let (own, said) = (self.own(), known.holders.get(&shared.local()));
        if said.is_some_and(|(said, _)| *said == own) || shared.has_left(shared.local()) {
            return Ok(());
        }
        // Also one that has left and comes back has said something.
        let before = shared.register.holders()?.get(&shared.local()).map(|(_, time)| *time);
        Ok(shared.register.hold(&own, before).await?)
    }

    /// Takes back what nodes said that have left, if this node is the one to do it. One that comes back says it again.
    async fn unsay(&self, known: &Known) -> Result<(), RotationError> {
        let Some(shared) = &self.shared else { return Ok(()) };
        let gone = gone(&shared.register.holders()?, |node| shared.has_left(node));
        if gone.is_empty() || !is_first(shared.net(), &known.nodes, Patience::Short).await {
            return Ok(());
        }
        for (node, time) in gone {
            shared.register.unsay(node, time).await?;
        }
        Ok(())
    }
}

/// Of what was said, and with which version time, by nodes that have left.
fn gone(holders: &Holders, has_left: impl Fn(NodeId) -> bool) -> Vec<(NodeId, u64)> {
    holders.iter().filter(|(node, _)| has_left(**node)).map(|(node, (_, time))| (*node, *time)).collect()
}

#[cfg(test)]
#[path = "rotation_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "rotation_model.rs"]
mod model;
