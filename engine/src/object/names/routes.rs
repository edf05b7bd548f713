//! The way to lines of a container that is in several groups.
//!
//! What a group took over is remembered by name ranges; whoever is asked in vain says where to go on.
//!
//! Invariant: what is remembered is a hint: every group judges by its own rows whether it decides.
//! Invariant: lines are gathered group by group in name order, so a page ends where the next begins, whichever groups they lie in.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::divided::Divided;
use super::remote::{Doubt, Routed};
use super::{Answer, Ask, Child, Elsewhere, Grant, Holding, Names, NewLine, Page};
use crate::clock::Timestamp;
use crate::disk::Class;
use crate::object::replica::BoxFuture;
use crate::object::{
    Account, Container, ContainerRow, Deleted, Entry, Error, Listing, ObjectPath, ObjectRow, Result, Share,
    odd,
};

/// How often one question follows where it is sent, or waits.
const STEPS: u32 = 200;
/// Pause before a container that is about to go is looked at again, and how long it may be so before that is ended.
const PAUSE: Duration = Duration::from_millis(20);
const SHUT: Duration = Duration::from_secs(1);
/// How often a question to several groups begins anew.
const AGAIN: u32 = 20;
/// Containers of which is remembered where their lines are.
const REMEMBERED: usize = 4096;

/// Where lines of containers are, as far as is known.
#[derive(Debug, Default)]
pub(super) struct Known {
    ranges: Mutex<HashMap<(String, String), Vec<Span>>>,
}

/// A range, and who has it.
#[derive(Debug, Clone)]
struct Span {
    from: String,
    to: Option<String>,
    group: u32,
}

impl Known {
    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), Vec<Span>>> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who has a line; `None`: the account's group, as far as is known. Of ranges that lie in one another the innermost.
    fn of(&self, path: &ObjectPath) -> Option<u32> {
        let guard = self.lock();
        if guard.is_empty() {
            return None;
        }
        let known = guard.get(&(path.account.to_string(), path.container.to_string()))?;
        let within = |range: &&Span| {
            *range.from <= *path.object && range.to.as_ref().is_none_or(|to| *path.object < **to)
        };
        known.iter().filter(within).max_by(|one, other| one.from.cmp(&other.from)).map(|range| range.group)
    }

    fn learn(&self, path: &ObjectPath, group: u32, from: String, to: Option<String>) {
        let mut guard = self.lock();
        if guard.len() >= REMEMBERED {
            guard.clear();
        }
        let known = guard.entry((path.account.to_string(), path.container.to_string())).or_default();
        known.retain(|range| range.group != group);
        known.push(Span { from, to, group });
    }

    fn forget(&self, path: &ObjectPath) {
        self.lock().remove(&(path.account.to_string(), path.container.to_string()));
    }
}

fn busy(reason: &str) -> Error {
    Error::Unavailable { reason: reason.to_owned() }
}

/// A question about a container.
fn of(account: &str, container: &str) -> (String, String) {
    (account.to_owned(), container.to_owned())
}

impl Divided {
    /// Asks whoever has the line until somebody decides.
    pub(super) async fn ask_about<T>(
        &self,
        path: &ObjectPath,
        ask: impl Fn(&Routed) -> BoxFuture<'static, Result<T>> + Send + Sync,
    ) -> Result<T> {
        let mut waited = Duration::ZERO;
        for _ in 0..STEPS {
            let routed = match self.known().of(path) {
                Some(group) => self.child(&path.account, group)?,
                None => self.of(&path.account)?,
            };
            match ask(&routed).await {
                Err(Error::Elsewhere(Elsewhere::Moved { group, from, to })) => {
                    self.known().learn(path, group, from, to);
                }
                Err(Error::Elsewhere(Elsewhere::Unknown)) => self.known().forget(path),
                Err(Error::Elsewhere(Elsewhere::Shut { at })) => {
                    self.until_open(path, at, &mut waited).await?;
                }
                decided => return decided,
            }
        }
        Err(busy("the lines are being moved, or their container deleted, again and again"))
    }

    /// A delete of the container has shut a part of it: waits for its end, and ends it when whoever began it is lost.
    async fn until_open(&self, path: &ObjectPath, at: Timestamp, waited: &mut Duration) -> Result<()> {
        let parent = self.of(&path.account)?;
        let alone = ObjectPath { object: "".into(), ..path.clone() };
        let Answer::Line(line) = parent.ask(Ask::Line { path: alone }).await? else {
            return Err(busy("an answer to another question"));
        };
        // If it was made anew, other groups have its lines.
        self.known().forget(path);
        if line.container.is_none() {
            return Ok(());
        }
        if *waited >= SHUT {
            self.open_all(&path.account, &path.container, at).await?;
        }
        *waited += PAUSE;
        self.pause(PAUSE).await;
        Ok(())
    }

    /// Ends an attempt to delete a container: first where it is remembered, then in every group that it may have shut.
    pub(super) async fn open_all(&self, account: &str, container: &str, at: Timestamp) -> Result<()> {
        let open = |routed: Routed| {
            let (account, container) = of(account, container);
            async move {
                match routed.ask(Ask::Open { account, container, at }).await? {
                    Answer::Holding(holding) => Ok(holding),
                    other => odd(other),
                }
            }
        };
        let mut children = match open(self.of(account)?).await {
            Ok(holding) => holding.children,
            // It is gone: then nothing shall be opened.
            Err(Error::NoContainer) => return Ok(()),
            Err(error) => return Err(error),
        };
        while let Some(child) = children.pop() {
            match open(self.child(account, child.group)?).await {
                Ok(holding) => children.extend(holding.children),
                // Its lines were just taken back.
                Err(Error::Elsewhere(Elsewhere::Unknown)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Shuts a group that has something of a container; without a time, what the account's group remembers as an attempt.
    pub(super) async fn shut(
        routed: Routed,
        account: &str,
        container: &str,
        at: Option<Timestamp>,
    ) -> Result<Holding> {
        let (account, container) = of(account, container);
        match routed.ask(Ask::Shut { account, container, at }).await? {
            Answer::Holding(holding) => Ok(holding),
            other => odd(other),
        }
    }

    /// Makes a line where its name is decided now.
    pub(super) async fn settle_anywhere(&self, grant: Grant, line: NewLine, class: Class) -> Result<()> {
        let (path, before, group) = (grant.path.clone(), grant.line.at, grant.group);
        let routed = match self.base(&path.account) {
            Ok(base) if base != group && group != 0 => self.child(&path.account, group)?,
            _ => self.of(&path.account)?,
        };
        // Whoever gave the grant may have made the line before it moved: not, where nobody was asked whose answer is missing.
        let doubt = Doubt::default();
        match routed.settle_in_doubt(grant, line.clone(), class, doubt.clone()).await {
            Err(Error::Elsewhere(_)) => {}
            settled => return settled,
        }
        let name = path.clone();
        let late = move |routed: &Routed| -> BoxFuture<'static, Result<()>> {
            let (routed, name, line, doubt) = (routed.clone(), name.clone(), line.clone(), doubt.clone());
            Box::pin(async move { routed.settle_late(name, before, line, class, doubt).await })
        };
        self.ask_about(&path, late).await
    }

    /// What a question says that is put to the account's group, with what its children add. Lines may be taken back while it walks
    /// from group to group: then it begins anew.
    pub(super) async fn ask_all(&self, ask: Ask) -> Result<Answer> {
        for _ in 0..AGAIN {
            match self.ask_once(ask.clone()).await {
                Err(Error::Elsewhere(_)) => self.pause(PAUSE).await,
                answer => return answer,
            }
        }
        Err(busy("lines of the container are being moved again and again"))
    }

    async fn ask_once(&self, ask: Ask) -> Result<Answer> {
        let account = ask.account().unwrap_or_default().to_owned();
        match ask {
            Ask::Objects { account, container, listing } => self.objects(&account, &container, listing).await,
            Ask::DeleteContainer { account, container, created } => {
                let whole =
                    Ask::DeleteContainer { account: account.clone(), container: container.clone(), created };
                match self.of(&account)?.ask(whole).await? {
                    Answer::Split { .. } => {
                        self.delete_split(&account, &container, created).await.map(Answer::Deleted)
                    }
                    whole => Ok(whole),
                }
            }
            ask => match self.of(&account)?.ask(ask).await? {
                Answer::Split { answer, children } => self.add(&account, *answer, children).await,
                whole => Ok(whole),
            },
        }
    }

    /// What a child and its children have of a container.
    async fn holding(&self, account: &str, child: Child) -> Result<Holding> {
        let mut sum = Holding::default();
        let mut children = vec![child];
        while let Some(Child { container, group, .. }) = children.pop() {
            let ask = Ask::Holding { account: account.to_owned(), container };
            match self.child(account, group)?.ask(ask).await? {
                Answer::Holding(holding) => {
                    sum.objects += holding.objects;
                    sum.bytes = sum.bytes.saturating_add(holding.bytes);
                    children.extend(holding.children);
                }
                other => return odd(other),
            }
        }
        Ok(sum)
    }

    async fn add(&self, account: &str, mut answer: Answer, children: Vec<Child>) -> Result<Answer> {
        for child in children {
            let wanted = match &answer {
                Answer::Containers(page) => row_of(page, &child.container).is_some(),
                _ => true,
            };
            if wanted {
                let (container, policy) = (child.container.clone(), child.policy);
                add_to(&mut answer, &container, policy, &self.holding(account, child).await?);
            }
        }
        Ok(answer)
    }

    /// A page of objects, gathered from the groups of the container in the order of its names.
    async fn objects(&self, account: &str, container: &str, listing: Listing) -> Result<Answer> {
        let mut page = Gathering { entries: Vec::new(), listing, cut: false };
        let base = self.base(account)?;
        let mut walk = vec![base];
        let (mut seen, mut asked) = (HashSet::new(), false);
        while let Some(group) = walk.pop() {
            if page.is_full() && asked {
                break;
            }
            asked = true;
            let routed = if group == base { self.of(account)? } else { self.child(account, group)? };
            let (account, container) = of(account, container);
            let listing = page.listing.clone();
            let (own, children) = match routed.ask(Ask::Objects { account, container, listing }).await? {
                Answer::Split { answer, children } => (*answer, children),
                whole => (whole, Vec::new()),
            };
            let Answer::Objects(own) = own else { return odd(own) };
            let fresh: Vec<u32> =
                children.into_iter().map(|child| child.group).filter(|group| seen.insert(*group)).collect();
            if !page.listing.reverse {
                page.take(own);
                walk.extend(fresh.into_iter().rev());
            } else if fresh.is_empty() {
                page.take(own);
            } else {
                // What others have comes first; then it is asked again, who may have taken more of it.
                walk.push(group);
                walk.extend(fresh);
            }
        }
        Ok(Answer::Objects(Page { entries: page.entries, cut: page.cut }))
    }

    /// When the container that stands was made.
    async fn made(&self, account: &str, container: &str) -> Result<Option<Timestamp>> {
        let (name, container) = of(account, container);
        match self.of(account)?.ask(Ask::Container { account: name, container }).await? {
            Answer::Split { answer, .. } => match *answer {
                Answer::Container(found) => Ok(found.map(|found| found.created)),
                other => odd(other),
            },
            Answer::Container(found) => Ok(found.map(|found| found.created)),
            other => odd(other),
        }
    }

    /// Removes a container of which other groups have something, if nothing is in it.
    async fn delete_split(&self, account: &str, container: &str, created: Timestamp) -> Result<Deleted> {
        let shut = |routed, at| Self::shut(routed, account, container, at);
        let holding = match shut(self.of(account)?, None).await {
            Err(Error::NoContainer) => return Ok(Deleted::Absent),
            holding => holding?,
        };
        let Some(at) = holding.at else { return Err(busy("an attempt without a time")) };
        let deleted = async {
            // If it is the one that was meant now, it was so when the attempt began: a number does not come again.
            if self.made(account, container).await? != Some(created) {
                return Ok(Deleted::Absent);
            }
            let (mut objects, mut children) = (holding.objects, holding.children);
            while let Some(child) = children.pop().filter(|_| objects == 0) {
                let holding = shut(self.child(account, child.group)?, Some(at)).await?;
                if holding.at != Some(at) {
                    return Err(busy("somebody else deletes the container; try again"));
                }
                objects += holding.objects;
                children.extend(holding.children);
            }
            if objects > 0 {
                return Ok(Deleted::NotEmpty);
            }
            let (account, container) = of(account, container);
            match self.of(&account)?.ask(Ask::DeleteShut { account, container, at }).await? {
                Answer::Deleted(deleted) => Ok(deleted),
                other => odd(other),
            }
        }
        .await;
        if !matches!(deleted, Ok(Deleted::Gone)) {
            self.open_all(account, container, at).await?;
        }
        deleted
    }
}

/// A page that grows from group to group.
struct Gathering {
    entries: Vec<Entry<ObjectRow>>,
    /// What is still wanted.
    listing: Listing,
    cut: bool,
}

impl Gathering {
    fn is_full(&self) -> bool {
        self.cut || self.listing.limit == 0
    }

    /// The next group goes on behind the last entry, as a client would ask.
    fn take(&mut self, page: Page<ObjectRow>) {
        self.listing.limit = self.listing.limit.saturating_sub(page.entries.len());
        match page.entries.last() {
            Some(Entry::Row(row)) => self.listing.marker.clone_from(&row.name),
            Some(Entry::Subdir(name)) => self.listing.marker.clone_from(name),
            None => {}
        }
        self.cut = page.cut;
        self.entries.extend(page.entries);
    }
}

fn row_of<'a>(page: &'a Page<ContainerRow>, name: &str) -> Option<&'a ContainerRow> {
    page.entries.iter().find_map(|entry| match entry {
        Entry::Row(row) if row.name == name => Some(row),
        _ => None,
    })
}

/// Adds what a child has to what its parent has.
fn add_to(answer: &mut Answer, container: &str, policy: u16, more: &Holding) {
    match answer {
        Answer::Account(Some(account)) => {
            let Account { objects, bytes, policies, .. } = account;
            *objects += more.objects;
            *bytes = bytes.saturating_add(more.bytes);
            match policies.iter_mut().find(|(known, _)| *known == policy) {
                Some((_, share)) => {
                    share.objects += more.objects;
                    share.bytes = share.bytes.saturating_add(more.bytes);
                }
                None => {
                    policies
                        .push((policy, Share { containers: 0, objects: more.objects, bytes: more.bytes }));
                    policies.sort_by_key(|(policy, _)| *policy);
                }
            }
        }
        Answer::Container(Some(Container { objects, bytes, .. })) => {
            *objects += more.objects;
            *bytes = bytes.saturating_add(more.bytes);
        }
        Answer::Containers(page) => {
            for entry in &mut page.entries {
                if let Entry::Row(row) = entry
                    && row.name == container
                {
                    row.objects += more.objects;
                    row.bytes = row.bytes.saturating_add(more.bytes);
                }
            }
        }
        _ => {}
    }
}
