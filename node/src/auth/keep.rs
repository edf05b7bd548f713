//! What the identity API is told, kept as papers: one drawer, a paper for each thing, named by kind and id.
//!
//! Invariant: a change is answered when it is durable and every session that it ends has ended at this node; other nodes hear of it
//! within [`Auth::refresh`]'s next turn.
//! Invariant: until the papers were read once, nobody is known but who is listed.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::Auth;
use super::directory::Directory;
use super::roll::text;
use crate::papers::{Cabinet, Paper, PaperError};

/// Account of the papers: no API reaches it, because it has no reseller prefix.
pub(crate) const ACCOUNT: &str = ".identity";
const DRAWER: &str = "roll";
/// How often it is looked for what other nodes were told.
const LOOK: Duration = Duration::from_secs(1);

fn name(kind: &str, id: &str) -> String {
    format!("{kind} {id}")
}

impl Auth {
    /// From now on the identity API can be told things, which `cabinet` keeps.
    pub(crate) fn keep_in(&self, cabinet: Cabinet) {
        self.cabinet.get_or_init(|| cabinet);
    }

    /// Reads what is kept, first and, in a cluster, again and again.
    pub(crate) async fn follow(self: Arc<Self>, alone: bool) {
        let mut said = false;
        loop {
            match self.refresh().await {
                Ok(_) if alone => return,
                Ok(_) => said = false,
                Err(error) if !said => {
                    tracing::warn!(%error, "read who uses the identity API; it is tried again");
                    said = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Takes over what is kept; true: it is something else than before.
    pub(crate) async fn refresh(&self) -> Result<bool, PaperError> {
        let Some(cabinet) = self.cabinet.get() else { return Ok(false) };
        let papers = cabinet.all(DRAWER).await?;
        let same = {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            let same = told.len() == papers.len() && told.iter().zip(&papers).all(|(a, b)| Arc::ptr_eq(a, b));
            *told = papers;
            same
        };
        if !same {
            self.rebuild();
            self.changes.fetch_add(1, Ordering::AcqRel);
        }
        Ok(!same)
    }

    /// Makes the directory anew of what is listed, what the cluster has, and what was told.
    pub(super) fn rebuild(&self) {
        let people = self.people.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let lists: Vec<_> = self.listed.lists().collect();
        let directory = match &people {
            Some(people) => Ok(Directory::shared(self.listed.test.as_ref(), people, &self.listed.own)),
            None => Directory::new(&lists),
        };
        match directory {
            Ok(directory) => {
                let before = self.directory();
                let directory = directory.told(&self.region, &told, Some(&before));
                *self.directory.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(directory);
            }
            Err(error) => tracing::error!(%error, "list users anew"),
        }
    }

    /// Whether the identity API can be told things.
    fn cabinet(&self) -> Result<&Cabinet, PaperError> {
        let none = || quarry_engine::object::Error::Unavailable { reason: "nothing is kept here".to_owned() };
        self.cabinet.get().ok_or_else(|| none().into())
    }

    /// Keeps something new.
    pub(super) async fn add(&self, kind: &str, id: &str, mut paper: Paper) -> Result<(), PaperError> {
        paper.insert("kind".to_owned(), kind.into());
        paper.insert("id".to_owned(), id.into());
        self.cabinet()?.add(DRAWER, &name(kind, id), paper).await?;
        self.refresh().await.map(drop)
    }

    /// Changes something; what is only listed is kept from then on.
    pub(super) async fn edit(
        &self,
        kind: &str,
        id: &str,
        edit: impl Fn(&mut Paper) + Send + Sync,
    ) -> Result<Option<Arc<Paper>>, PaperError> {
        let cabinet = self.cabinet()?;
        let change = |paper: &mut Paper| -> Result<(), PaperError> {
            edit(paper);
            Ok(())
        };
        if cabinet.change(DRAWER, &name(kind, id), change).await?.is_none() {
            let directory = self.directory();
            let Some(listed) = directory.roll().get(kind, id) else { return Ok(None) };
            let mut paper = (**listed).clone();
            edit(&mut paper);
            return self.add(kind, id, paper).await.map(|()| self.directory().roll().get(kind, id).cloned());
        }
        self.refresh().await?;
        Ok(self.directory().roll().get(kind, id).cloned())
    }

    /// Drops something; false: it was not kept.
    pub(super) async fn drop_paper(&self, kind: &str, id: &str) -> Result<bool, PaperError> {
        let gone = self.cabinet()?.remove(DRAWER, &name(kind, id)).await?;
        self.refresh().await?;
        Ok(gone)
    }

    /// Drops all papers of a kind that `of` chooses.
    pub(super) async fn drop_all(
        &self,
        kind: &str,
        of: impl Fn(&Paper) -> bool + Send,
    ) -> Result<(), PaperError> {
        let directory = self.directory();
        for paper in directory.roll().all(kind).filter(|paper| of(paper)) {
            self.cabinet()?.remove(DRAWER, &name(kind, text(paper, "id"))).await?;
        }
        self.refresh().await.map(drop)
    }
}
