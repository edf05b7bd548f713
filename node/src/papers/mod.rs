//! Papers: the small documents of the volume and identity APIs (volumes, types, quotas, users, roles), kept as objects.
//!
//! A cabinet is an account of the object layer that no API reaches, because its name has no reseller prefix; a drawer is a
//! container of it, a paper an object. So papers are as durable as objects are, on one machine and in a cluster with the same code,
//! and what is written is seen by every node that looks afterwards.
//! Invariant: a change is decided on the paper that it replaces (If-Match), or on none being there (If-None-Match): two nodes
//! that change one paper do not lose either change.
//! Invariant: where a node is alone it reads each paper once. In a cluster one paper is asked for by its name, however many there are;
//! a look at all of them asks for the drawer's lines, and reads what changed.
//! Invariant: what is held says what is there, also after a change whose caller went away before its end.
//! Invariant: only cabinets write into their account.

mod layout;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use quarry_engine::object::{Condition, Entry, Error, EtagMatch, Listing, ObjectPath, PutSpec, Store};
use serde_json::{Map, Value};
use tokio::sync::{Mutex, oneshot};
use tokio::task::JoinHandle;

use crate::hidden::Hidden;
pub(crate) use layout::BadPaper;

/// Largest paper.
const MAX_PAPER: usize = 1 << 20;
/// Lines asked for at once.
const LINES: usize = 10_000;
/// How often a change is decided anew because others changed the same paper.
const TRIES: usize = 16;
const CONTENT_TYPE: &str = "application/vnd.quarry.paper";

/// What a paper says.
pub(crate) type Paper = Map<String, Value>;

/// Why papers could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PaperError {
    /// The object layer.
    #[error(transparent)]
    Store(#[from] Error),
    /// Bytes that are no paper.
    #[error(transparent)]
    Bad(#[from] BadPaper),
    /// It is there already.
    #[error("a paper of this name is there already")]
    Taken,
    /// Others changed it again and again.
    #[error("too many changes of one paper at the same time; try again")]
    Contended,
    /// Larger than a paper may be.
    #[error("the description is too large")]
    TooLarge,
}

/// A paper, and the version that was read.
#[derive(Debug, Clone)]
struct Kept {
    etag: String,
    /// Tokens of tasks and EC2 keys are in some.
    paper: Hidden<Arc<Paper>>,
}

#[derive(Debug, Default)]
struct Drawer {
    /// The container is there, and everything was read once.
    opened: bool,
    papers: BTreeMap<String, Kept>,
    /// A change whose caller may have gone away.
    under_way: Option<JoinHandle<()>>,
}

impl Drawer {
    /// Does something to its end, also when whoever waits for it goes away. Until it is known how it ended, nothing that is held counts.
    async fn finish<T: Send + 'static>(
        &mut self,
        what: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let opened = std::mem::take(&mut self.opened);
        let (tell, told) = oneshot::channel();
        self.under_way = Some(tokio::spawn(async move { drop(tell.send(what.await)) }));
        self.settle().await;
        let lost = |_| Error::Unavailable { reason: "a change of a paper broke off".to_owned() };
        let done = told.await.map_err(lost)??;
        self.opened = opened;
        Ok(done)
    }

    /// Waits for the change that is under way.
    async fn settle(&mut self) {
        if let Some(task) = &mut self.under_way {
            // How it ended is told elsewhere, or nobody asks.
            let _ended = task.await;
            self.under_way = None;
        }
    }
}

/// An account full of papers.
#[derive(Debug)]
pub(crate) struct Cabinet {
    store: Store,
    account: Arc<str>,
    /// Nobody else writes.
    alone: bool,
    drawers: Mutex<HashMap<&'static str, Arc<Mutex<Drawer>>>>,
}

impl Cabinet {
    /// The papers in `account`; `alone`: no other node writes there.
    pub(crate) fn new(store: Store, account: &str, alone: bool) -> Self {
        Self { store, account: account.into(), alone, drawers: Mutex::default() }
    }

    fn path(&self, drawer: &str, name: &str) -> ObjectPath {
        ObjectPath { account: Arc::clone(&self.account), container: drawer.into(), object: name.into() }
    }

    async fn drawer(&self, name: &'static str) -> Arc<Mutex<Drawer>> {
        Arc::clone(self.drawers.lock().await.entry(name).or_default())
    }

    /// All papers of a drawer, by name.
    pub(crate) async fn all(&self, drawer: &'static str) -> Result<Vec<Arc<Paper>>, PaperError> {
        let held = self.drawer(drawer).await;
        let mut held = held.lock().await;
        self.look(drawer, &mut held).await?;
        Ok(held.papers.values().map(|kept| Arc::clone(&*kept.paper)).collect())
    }

    /// Names of all papers of a drawer.
    pub(crate) async fn names(&self, drawer: &'static str) -> Result<Vec<String>, PaperError> {
        let held = self.drawer(drawer).await;
        let mut held = held.lock().await;
        self.look(drawer, &mut held).await?;
        Ok(held.papers.keys().cloned().collect())
    }

    /// One paper.
    pub(crate) async fn get(
        &self,
        drawer: &'static str,
        name: &str,
    ) -> Result<Option<Arc<Paper>>, PaperError> {
        if name.is_empty() {
            return Ok(None);
        }
        let held = self.drawer(drawer).await;
        let mut held = held.lock().await;
        self.look_at(drawer, name, &mut held).await?;
        Ok(held.papers.get(name).map(|kept| Arc::clone(&*kept.paper)))
    }

    /// Writes a paper that is not there yet.
    pub(crate) async fn add(
        &self,
        drawer: &'static str,
        name: &str,
        paper: Paper,
    ) -> Result<Arc<Paper>, PaperError> {
        let held = self.drawer(drawer).await;
        let mut held = held.lock().await;
        held.settle().await;
        let condition = || Condition { if_none_match: Some(EtagMatch::Any), ..Condition::default() };
        let written = match self.write(drawer, name, paper.clone(), condition(), &mut held).await {
            Err(PaperError::Store(Error::NoContainer | Error::NoAccount)) => {
                self.store.put_container(&self.account, drawer, 0, |_| Ok(BTreeMap::new())).await?;
                self.write(drawer, name, paper, condition(), &mut held).await
            }
            written => written,
        };
        match written {
            Err(PaperError::Store(Error::ConditionFailed)) => Err(PaperError::Taken),
            done => done,
        }
    }

    /// Changes a paper; `None` when it is not there. `edit` may be called again with what others wrote, and refuses with its own error.
    pub(crate) async fn change<E: From<PaperError>>(
        &self,
        drawer: &'static str,
        name: &str,
        mut edit: impl FnMut(&mut Paper) -> Result<(), E> + Send,
    ) -> Result<Option<Arc<Paper>>, E> {
        if name.is_empty() {
            return Ok(None);
        }
        let held = self.drawer(drawer).await;
        let mut held = held.lock().await;
        self.look_at(drawer, name, &mut held).await?;
        for _ in 0..TRIES {
            let Some(Kept { etag, paper }) = held.papers.get(name).cloned() else { return Ok(None) };
            let mut changed = (**paper).clone();
            edit(&mut changed)?;
            if changed == **paper {
                return Ok(Some(paper.0));
            }
            let condition =
                Condition { if_match: Some(EtagMatch::OneOf(vec![etag])), ..Condition::default() };
            match self.write(drawer, name, changed, condition, &mut held).await {
                Err(PaperError::Store(Error::ConditionFailed)) => {
                    self.read(drawer, name, &mut held).await?;
                }
                done => return Ok(done.map(Some)?),
            }
        }
        Err(PaperError::Contended.into())
    }

    /// Waits for a change of a drawer that is under way, also for one whose caller went away.
    pub(crate) async fn settled(&self, drawer: &'static str) {
        self.drawer(drawer).await.lock().await.settle().await;
    }

    /// Takes a paper away; false: it was not there.
    pub(crate) async fn remove(&self, drawer: &'static str, name: &str) -> Result<bool, PaperError> {
        if name.is_empty() {
            return Ok(false);
        }
        let held = self.drawer(drawer).await;
        let mut held = held.lock().await;
        self.look_at(drawer, name, &mut held).await?;
        if !held.papers.contains_key(name) {
            return Ok(false);
        }
        let (store, path) = (self.store.clone(), self.path(drawer, name));
        held.finish(async move { store.delete_object(&path, &Condition::default()).await }).await?;
        held.papers.remove(name);
        Ok(true)
    }

    async fn write(
        &self,
        drawer: &'static str,
        name: &str,
        paper: Paper,
        condition: Condition,
        held: &mut Drawer,
    ) -> Result<Arc<Paper>, PaperError> {
        let bytes = Bytes::from(layout::encode(&paper)?);
        if bytes.len() > MAX_PAPER {
            return Err(PaperError::TooLarge);
        }
        let (store, path) = (self.store.clone(), self.path(drawer, name));
        let spec = PutSpec { content_type: CONTENT_TYPE.to_owned(), condition, ..PutSpec::default() };
        let put = async move {
            let mut writer = store.writer(&path, Some(bytes.len() as u64)).await?;
            writer.write(bytes).await?;
            writer.commit(spec).await
        };
        let committed = match held.finish(put).await {
            Ok(committed) => committed,
            Err(error) => {
                // What became of it is not known: the next look reads it anew.
                held.papers.remove(name);
                return Err(error.into());
            }
        };
        let kept = Kept { etag: hex::encode(committed.md5), paper: Arc::new(paper).into() };
        let paper = Arc::clone(&*kept.paper);
        held.papers.insert(name.to_owned(), kept);
        Ok(paper)
    }

    /// Makes what is held of one paper equal to what is there; where others write too, the rest of the drawer is not looked at.
    async fn look_at(&self, drawer: &'static str, name: &str, held: &mut Drawer) -> Result<(), PaperError> {
        if self.alone {
            return self.look(drawer, held).await;
        }
        held.settle().await;
        self.read(drawer, name, held).await
    }

    /// Makes what is held equal to what is there.
    async fn look(&self, drawer: &'static str, held: &mut Drawer) -> Result<(), PaperError> {
        held.settle().await;
        if self.alone && held.opened {
            return Ok(());
        }
        let lines = match self.lines(drawer).await {
            Err(PaperError::Store(Error::NoContainer | Error::NoAccount)) => {
                self.store.put_container(&self.account, drawer, 0, |_| Ok(BTreeMap::new())).await?;
                self.lines(drawer).await?
            }
            lines => lines?,
        };
        held.papers.retain(|name, kept| lines.get(name) == Some(&kept.etag));
        for name in lines.keys() {
            if !held.papers.contains_key(name) {
                self.read(drawer, name, held).await?;
            }
        }
        held.opened = true;
        Ok(())
    }

    /// ETags by name.
    async fn lines(&self, drawer: &str) -> Result<BTreeMap<String, String>, PaperError> {
        let mut lines = BTreeMap::new();
        let mut listing = Listing { limit: LINES, ..Listing::default() };
        loop {
            let some = self.store.list_objects(&self.account, drawer, &listing).await?;
            let many = some.len();
            for entry in some {
                if let Entry::Row(row) = entry {
                    listing.marker.clone_from(&row.name);
                    lines.insert(row.name, row.etag);
                }
            }
            if many < LINES {
                return Ok(lines);
            }
        }
    }

    /// Reads one paper, which may be gone.
    async fn read(&self, drawer: &'static str, name: &str, held: &mut Drawer) -> Result<(), PaperError> {
        held.papers.remove(name);
        let open = match self.store.open(&self.path(drawer, name)).await {
            Ok(Some(open)) => open,
            Ok(None) | Err(Error::NoContainer | Error::NoAccount) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let size = open.info.size;
        if usize::try_from(size).is_ok_and(|size| size > MAX_PAPER) {
            return Err(PaperError::TooLarge);
        }
        let mut bytes = Vec::new();
        let mut pieces = open.range(0..size);
        while let Some(piece) = pieces.next().await {
            bytes.extend_from_slice(&piece?);
        }
        let kept = Kept { etag: hex::encode(open.info.md5), paper: Arc::new(layout::decode(&bytes)?).into() };
        held.papers.insert(name.to_owned(), kept);
        Ok(())
    }
}
