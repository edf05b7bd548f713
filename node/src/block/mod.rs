//! Block volumes on this node: who serves them to NBD clients, and what operators do with them.
//!
//! Invariant: the protocol and the volumes' rules are `quarry_volume`'s; this is sockets, names and answers.
//! Invariant: a volume that a client uses is not deleted.

mod admin;
mod admission;
mod connection;
mod decide;
mod door;
mod either;
mod elsewhere;
mod exports;
pub(crate) mod keys;
mod lineage;
mod linger;
pub(crate) mod listed;
mod listener;
pub(crate) mod moving;
mod news;
mod only_read;
mod pace;
mod roll;
mod rotation;
mod shared;
mod threads;
mod tls;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quarry_engine::disk::DiskError;
use quarry_volume::store::{Members, VolumeError, Volumes};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub(crate) use admin::{NAMED, Several, Shown, Wanted};
pub(crate) use door::{Door, OwnVolumes};
pub(crate) use exports::Exports;
pub(crate) use listener::{BlockListeners, ListenError};
pub(crate) use only_read::only_read;
pub(crate) use pace::{Said, limits_of};
pub(crate) use rotation::{KeyWish, ShownKey};

use keys::Keys;
use rotation::Rotation;
pub(crate) use shared::Compared;
use shared::Shared;

use crate::control::member::Member;
use crate::panics;
use crate::storage::Disks;

/// How long deleted volumes wait to be looked for again.
const REAP_EVERY: Duration = Duration::from_secs(10);
/// Pause between two looks for members that are to be replaced.
const REPLACE_EVERY: Duration = Duration::from_secs(2);

/// The volumes of a node.
#[derive(Debug, Clone)]
pub(crate) struct Blocks {
    pub(crate) exports: Arc<Exports>,
    keys: Arc<Rotation>,
}

impl Blocks {
    /// What the disks hold; `keys` wrap those of encrypted volumes, and a node of a cluster remembers in `data` what there is.
    pub(crate) async fn open(
        disks: &Disks,
        keys: Keys,
        member: Option<&Member>,
        data: &Path,
    ) -> Result<Self, VolumeError> {
        let ring = keys.ring().clone();
        let shared = member.map(|member| Arc::new(Shared::new(member, ring.clone())));
        let mut volumes = Volumes::open(disks.handles())?.with_keys(ring);
        if member.is_some() {
            let file = roll::File::of(data);
            let rolled = file.read(&disks.missing())?;
            let away = roll::away(&rolled, &disks.missing());
            volumes = volumes.with_roll(Arc::new(file), away);
            // What is on its way is no export, and stays none.
            volumes.part_namesakes(&rolled, |name| moving::end_of(name).is_none()).await;
            volumes.note().await?;
        }
        let volumes = Arc::new(volumes);
        let keys = Arc::new(Rotation::new(keys, Arc::clone(&volumes), shared.clone()));
        let exports = Arc::new(Exports::new(volumes, shared));
        if let Some(member) = member {
            // Set once: a node opens its volumes once.
            let _ = member.own.set(Arc::downgrade(&exports));
        }
        Ok(Self { exports, keys })
    }

    /// Looks after the keys of encrypted volumes until the node stops.
    pub(crate) fn look_after_keys(&self, tasks: &mut JoinSet<()>, mut stopped: watch::Receiver<bool>) {
        let keys = Arc::clone(&self.keys);
        tasks.spawn(async move {
            let looks = async { while panics::caught("look after keys", keys.go_on()).await.is_none() {} };
            tokio::select! {
                () = looks => {}
                () = listener::told(&mut stopped) => {}
            }
        });
    }

    /// Replaces members of volumes whose disks are to be empty, lets heads rest, and has volumes come back to their snapshots, until the node
    /// stops.
    pub(crate) fn replace(&self, tasks: &mut JoinSet<()>, mut stopped: watch::Receiver<bool>) {
        let Some(shared) = self.exports.shared().cloned() else { return };
        tasks.spawn(async move {
            let rounds = async {
                let mut returning = HashMap::new();
                loop {
                    let _panicked = panics::caught("replace members of volumes", shared.replace()).await;
                    let _panicked = panics::caught("let heads of volumes rest", shared.let_go()).await;
                    shared.complete(&mut returning);
                    tokio::time::sleep(REPLACE_EVERY).await;
                }
            };
            tokio::select! {
                () = rounds => {}
                () = listener::told(&mut stopped) => {}
            }
        });
    }

    /// Gives back the space of deleted snapshots, volumes and members until the node stops.
    pub(crate) fn reap(
        &self,
        members: Option<Arc<Members>>,
        tasks: &mut JoinSet<()>,
        mut stopped: watch::Receiver<bool>,
    ) {
        self.follow(tasks, stopped.clone());
        let volumes = Arc::clone(self.exports.volumes());
        tasks.spawn(async move {
            loop {
                let members = members.as_deref();
                let pause = match panics::caught("reap volumes", reap_one(&volumes, members)).await {
                    Some(Ok(true)) => Duration::from_millis(1),
                    Some(Ok(false)) | None => REAP_EVERY,
                    Some(Err(error)) => {
                        tracing::error!(%error, "reap deleted volumes and snapshots");
                        REAP_EVERY
                    }
                };
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = volumes.to_reap() => {}
                    () = listener::told(&mut stopped) => return,
                }
            }
        });
    }
}

#[cfg(test)]
impl Blocks {
    /// Of volumes without a file of keys.
    pub(crate) fn of(volumes: Arc<Volumes>) -> Self {
        let keys = Arc::new(Rotation::new(Keys::nowhere(), Arc::clone(&volumes), None));
        Self { exports: Arc::new(Exports::new(volumes, None)), keys }
    }
}

impl Blocks {
    /// Holds volumes with several members to what their rows say, and takes clones away that were not completed.
    fn follow(&self, tasks: &mut JoinSet<()>, mut stopped: watch::Receiver<bool>) {
        let Some(shared) = self.exports.shared().cloned() else { return };
        let exports = Arc::clone(&self.exports);
        tasks.spawn(async move {
            let (mut status, mut applied) = (shared.watch(), None);
            let mut look = tokio::time::interval(REAP_EVERY);
            loop {
                tokio::select! {
                    _ = look.tick() => shared.tidy().await,
                    Some(_) = status.changed() => {}
                    () = listener::told(&mut stopped) => return,
                }
                let now = status.now().applied;
                if std::mem::replace(&mut applied, now) != now {
                    exports.hold();
                }
            }
        });
    }
}

/// One step; false: there is nothing left.
async fn reap_one(volumes: &Volumes, members: Option<&Members>) -> Result<bool, DiskError> {
    let own = volumes.reap().await?;
    let of_others = match members {
        Some(members) => members.reap().await?,
        None => false,
    };
    let more = own || of_others;
    if !more && let Err(error) = volumes.note().await {
        tracing::warn!(%error, "remember which volumes there are");
    }
    Ok(more)
}

#[cfg(test)]
mod tests;
