//! Deciding where the group is led: reads behind its barrier, changes under claims.
//!
//! Invariant: existence, emptiness and deletion are judged under the claim that the change is made under.
//! Invariant: a permit is held until the change that it covers is applied, also when the caller stops waiting.
//! Invariant: a line that comes late is not made where a greater version time may have been granted for its name since by somebody who
//! did not know of it, and whose own line was not made: a version of that time may lie on a device with the body from before, or by
//! a condition that held before, and would take the place of what was acknowledged.

use std::sync::Arc;

use super::grown::Growing;
use super::service::used;
use super::{Answer, Ask, Elsewhere, Grant, Hold, Line, Names, NewLine, Page, Standing, leads, parts};
use crate::catalog::{
    self, AccountValue, ContainerValue, ListingValue, Row, Share, Totals, account_key, container_key,
    containers_prefix, listing_key, listing_prefix,
};
use crate::clock::{Clock, Timestamp};
use crate::consensus::Part;
use crate::disk::Class;
use crate::index::{Range, after_prefix};
use crate::net::NodeId;
use crate::object::finish::Finisher;
use crate::object::group::{IndexGroup, TotalsOf};
use crate::object::listing::{Sorted, page};
use crate::object::locks::{Claim, Permit};
use crate::object::replica::{BoxFuture, Draft};
use crate::object::{
    Account, Container, ContainerRow, Entry, Error, IndexPolicy, Listing, ObjectPath, ObjectRow, Result,
};

/// A voter that asks from another node, and the term in which it follows this one, as it said with its question.
pub(super) type Asker = Option<(NodeId, u64)>;

/// The times of a granted line: that of the version, and that of the row.
struct Made {
    at: Timestamp,
    row: Timestamp,
}

/// Decides for one index group; clones share everything.
#[derive(Clone)]
pub(crate) struct Decider {
    pub(crate) group: Arc<dyn IndexGroup>,
    pub(crate) clock: Arc<Clock>,
    finisher: Finisher,
    pub(super) growing: Arc<Growing>,
}

impl Decider {
    pub(crate) fn new(group: Arc<dyn IndexGroup>, clock: Arc<Clock>, finisher: Finisher) -> Self {
        Self { group, clock, finisher, growing: Arc::default() }
    }

    /// A version time for a change, reserved before it is given out. It is greater than `given`, which a caller wants.
    pub(super) async fn time(&self, given: Option<Timestamp>) -> Result<Timestamp> {
        self.clock.observe(given.unwrap_or_default());
        let at = self.clock.tick();
        if at > self.group.ceiling() {
            self.group.raise(at).await?;
        }
        Ok(at)
    }

    pub(super) async fn behind_barrier(&self) -> Result<()> {
        self.behind_barrier_for(None).await
    }

    /// The same for whoever asked.
    pub(super) async fn behind_barrier_for(&self, asker: Asker) -> Result<()> {
        let barrier = match asker {
            Some((follower, term)) => self.group.barrier_with(follower, term),
            None => self.group.barrier(),
        };
        match barrier {
            Some(barrier) => barrier.await,
            None => Ok(()),
        }
    }

    /// Makes changes of rows durable, and then lets go of the permit.
    pub(super) async fn commit(&self, rows: Vec<Draft>, class: Class, permit: Permit) -> Result<()> {
        self.commit_line(rows, class, permit, None).await
    }

    /// The same of a line of this version time.
    async fn commit_line(
        &self,
        rows: Vec<Draft>,
        class: Class,
        mut permit: Permit,
        line: Option<Made>,
    ) -> Result<()> {
        for row in &rows {
            row.check()?;
        }
        let group = Arc::clone(&self.group);
        let work = async move {
            let appended = group.append(rows, class, permit.term).await;
            match (&appended, line) {
                (_, None) => {}
                (Ok(()), Some(line)) => permit.listed(line.at),
                (Err(_), Some(line)) => group.abandon(line.row),
            }
            drop(permit);
            appended
        };
        self.finisher.finish(work).await
    }

    /// A grant of this node has ended, and whoever holds it does not know.
    pub(super) fn ran_out(&self, grant: &Grant) {
        if let Hold::Own { row, .. } = &grant.hold {
            self.group.abandon(*row);
        }
    }

    pub(super) fn account_row(&self, account: &str) -> Result<Option<(Row, AccountValue)>> {
        let Some(row) = self.group.row(&account_key(account))? else { return Ok(None) };
        let value = AccountValue::decode(&row.value)?;
        Ok(Some((row, value)))
    }

    pub(super) fn container_row(
        &self,
        account: &str,
        container: &str,
    ) -> Result<Option<(Row, ContainerValue)>> {
        let Some(row) = self.group.row(&container_key(account, container))? else { return Ok(None) };
        let value = ContainerValue::decode(&row.value)?;
        Ok(Some((row, value)))
    }

    pub(super) fn account(&self, name: &str) -> Result<Option<Account>> {
        let Some((row, value)) = self.account_row(name)? else { return Ok(None) };
        let totals = self.group.totals(TotalsOf::Account(name))?;
        Ok(Some(Account {
            created: Timestamp(value.created),
            changed: Timestamp(row.sequence),
            deleted: value.marked,
            containers: totals.containers,
            objects: totals.objects,
            bytes: totals.bytes,
            policies: shares(totals),
            headers: value.headers,
        }))
    }

    fn container(&self, account: &str, container: &str) -> Result<Option<Container>> {
        let Some((row, value)) = self.container_row(account, container)? else { return Ok(None) };
        let totals = self.group.totals(TotalsOf::Container(value.id))?;
        Ok(Some(Container {
            created: Timestamp(value.id),
            changed: Timestamp(row.sequence),
            policy: value.policy,
            index: value.index,
            objects: totals.objects,
            bytes: totals.bytes,
            headers: value.headers,
        }))
    }

    fn standing(&self, path: &ObjectPath) -> Result<Option<Standing>> {
        if let Some(Part { id, value, .. }) = self.open_part(&path.account, &path.container)? {
            let behind = value.to.as_ref().is_some_and(|to| **to <= *path.object);
            if *path.object < *value.from || behind {
                return Err(Elsewhere::Unknown.into());
            }
            // What is eventual is never divided.
            return Ok(Some(Standing { id, policy: value.of.policy, index: IndexPolicy::Strict }));
        }
        let found = self.container_row(&path.account, &path.container)?;
        Ok(found.map(|(_, value)| Standing { id: value.id, policy: value.policy, index: value.index }))
    }

    /// What stands of an object's name.
    fn line(&self, path: &ObjectPath) -> Result<Line> {
        let container = self.standing(path)?;
        let Some(Standing { id, .. }) = container.filter(|_| !path.object.is_empty()) else {
            return Ok(Line { container, ..Line::default() });
        };
        let row = self.group.row(&listing_key(id, &path.object))?;
        let Some(row) = row else { return Ok(Line { container, ..Line::default() }) };
        let value = ListingValue::decode(&row.value)?;
        let at = Some(Timestamp(value.version.unwrap_or(row.sequence)));
        Ok(Line { container, at, key: value.key })
    }

    /// What the rows of this node say.
    pub(crate) fn read(&self, ask: Ask) -> Result<Answer> {
        Ok(match ask {
            Ask::Account { account } => {
                parts::with(Answer::Account(self.account(&account)?), self.children_of(&account)?)
            }
            Ask::Container { account, container } => {
                let found = self.container(&account, &container)?;
                let children = found.as_ref().map(|found| self.children(found.created.0)).unwrap_or_default();
                parts::with(Answer::Container(found), children)
            }
            Ask::Holding { account, container } => Answer::Holding(self.holding(&account, &container)?),
            Ask::Line { path } => Answer::Line(self.line(&path)?),
            Ask::MarkedAccounts { marker, limit } => {
                Answer::Accounts(self.group.marked_accounts(&marker, limit as usize)?)
            }
            Ask::Accounts { marker, limit } => Answer::Accounts(self.accounts(&marker, limit as usize)?),
            Ask::Containers { account, listing, marked } => {
                let standing = self.account_row(&account)?.is_some_and(|(_, value)| marked || !value.marked);
                if !standing {
                    return Err(Error::NoAccount);
                }
                let children = self.children_of(&account)?;
                parts::with(Answer::Containers(whole(self.containers(&account, &listing)?)), children)
            }
            Ask::Objects { account, container, listing } => {
                let id = match self.own_part(&account, &container)? {
                    Some(part) => part.id,
                    None => self.container_row(&account, &container)?.ok_or(Error::NoContainer)?.1.id,
                };
                parts::with(Answer::Objects(whole(self.objects(id, &listing)?)), self.children(id))
            }
            Ask::PutAccount { .. }
            | Ask::MarkAccount { .. }
            | Ask::RemoveMarked { .. }
            | Ask::PutContainer { .. }
            | Ask::DeleteContainer { .. }
            | Ask::Shut { .. }
            | Ask::Open { .. }
            | Ask::DeleteShut { .. } => {
                return Err(Error::Refused("a change is no question".to_owned()));
            }
        })
    }

    fn accounts(&self, marker: &str, limit: usize) -> Result<Vec<String>> {
        let from = if marker.is_empty() { account_key("") } else { account_key(&format!("{marker}\0")) };
        let range = Range { from: Some(from), to: after_prefix(&account_key("")), reverse: false };
        let name = |pair: Result<(Box<[u8]>, Row)>| Ok(catalog::row_name(&pair?.0)?);
        self.group.scan(range).take(limit).map(name).collect()
    }

    fn containers(&self, account: &str, listing: &Listing) -> Result<Vec<Entry<ContainerRow>>> {
        let decode = |name: String, row: Row| {
            let value = ContainerValue::decode(&row.value)?;
            let totals = self.group.totals(TotalsOf::Container(value.id))?;
            let changed = Timestamp(value.put);
            let (objects, bytes) = (totals.objects, totals.bytes);
            Ok(ContainerRow { name, objects, bytes, changed, policy: value.policy })
        };
        page(&Prefixed { group: &*self.group, prefix: containers_prefix(account), decode }, listing)
    }

    fn objects(&self, id: u64, listing: &Listing) -> Result<Vec<Entry<ObjectRow>>> {
        let decode = |name: String, row: Row| {
            let value = ListingValue::decode(&row.value)?;
            let size = value.listed();
            let ListingValue { etag, content_type, version, .. } = value;
            let timestamp = Timestamp(version.unwrap_or(row.sequence));
            Ok(ObjectRow { name, size, etag: etag.into_text(), content_type, timestamp })
        };
        page(&Prefixed { group: &*self.group, prefix: listing_prefix(id), decode }, listing)
    }

    /// As [`Names::begin`], for whoever asked.
    pub(super) async fn grant(
        &self,
        path: ObjectPath,
        given: Option<Timestamp>,
        asker: Asker,
    ) -> Result<Grant> {
        let mut permit = self.group.claim(Claim::Object(&path)).await;
        self.behind_barrier_for(asker).await?;
        let container = self.standing(&path)?;
        let line = match self.group.home() {
            // One disk holds both: the device knows better than the line, which need not be looked for.
            Some(_) if container.is_none_or(|standing| standing.policy == 0) => {
                Line { container, ..Line::default() }
            }
            _ => self.line(&path)?,
        };
        // Greater than the line's also where another node with a clock ahead of ours granted that.
        self.clock.observe(line.at.unwrap_or_default());
        let row = self.time(given).await?;
        let at = given.unwrap_or(row);
        permit.grant(at);
        let hold = Hold::Own { permit, row, home: self.group.home() };
        Ok(Grant { path, line, at, group: 0, hold })
    }

    async fn write_line(&self, grant: Grant, line: NewLine, class: Class) -> Result<()> {
        let Hold::Own { permit, row, .. } = grant.hold else {
            return Err(Error::Unavailable { reason: "this grant was given by another node".to_owned() });
        };
        let term = permit.term;
        self.growing.note(&grant.path, &line);
        let draft = line.row(&grant.path, row)?;
        let made = Made { at: line.at, row };
        match self.commit_line(vec![draft], class, permit, Some(made)).await {
            // This node led, did not, and leads again: others may have decided meanwhile.
            Err(Error::Unavailable { .. }) if self.changed_term(term) => {
                match self.settle_late(&grant.path, grant.line.at, line, class).await {
                    // It may have been made before it moved: whoever goes on there would not know.
                    Err(Error::Elsewhere(_)) => Err(Error::GrantLost { unused: false }),
                    settled => settled.map_err(used),
                }
            }
            Err(Error::GrantLost { .. }) if self.changed_term(term) => {
                self.settle_late(&grant.path, grant.line.at, line, class).await
            }
            settled => settled,
        }
    }

    /// Whether this node leads in a later term than this.
    pub(super) fn changed_term(&self, term: u64) -> bool {
        leads(&*self.group) && self.group.term() != term
    }

    /// Whether this node does not lead any more as it did in this term.
    pub(super) fn moved(&self, term: u64) -> bool {
        !leads(&*self.group) || self.group.term() != term
    }

    /// Makes a line whose grant is not known any more: it ran out, or another node gave it. `before` is what stood when it
    /// was given.
    pub(super) async fn settle_late(
        &self,
        path: &ObjectPath,
        before: Option<Timestamp>,
        line: NewLine,
        class: Class,
    ) -> Result<()> {
        let permit = self.group.claim(Claim::Object(path)).await;
        self.behind_barrier().await?;
        let now = self.line(path)?;
        if now.container.is_none_or(|standing| standing.id != line.container) {
            return if line.value.is_some() { Err(Error::NoContainer) } else { Ok(()) };
        }
        // What is removed is overtaken by nothing: a version without a line gets none.
        let overtaken =
            line.value.is_some() && (permit.is_overtaken(line.at) || self.group.overtaken(line.at));
        // A reader makes it, too, but not where nothing stood; and its writer was not told so where it was overtaken.
        if overtaken && now.at == Some(line.at) && before.is_some() {
            return Err(Error::GrantLost { unused: false });
        }
        if now.at == Some(line.at) || (line.value.is_none() && now.at.is_none()) {
            return Ok(());
        }
        match now.at {
            Some(at) if before == Some(at) || at < line.at && !line.conditional => {
                if overtaken {
                    return Err(Error::GrantLost { unused: false });
                }
            }
            // Nothing stood that could have been removed, and what was made since is nothing of it.
            Some(_) if line.value.is_none() && !line.conditional && before.is_none() => return Ok(()),
            // It may have been made and have gone again, by a DELETE that was acknowledged; nobody can tell. And what stands
            // may be a change of headers that kept a body from before ours, or a PUT on the condition of one: after a DELETE neither
            // would have been. But where there was no line, nobody but its writer makes one.
            _ => return Err(Error::GrantLost { unused: before.is_none() }),
        }
        let row = self.time(None).await?;
        self.commit(vec![line.row(path, row)?], class, permit).await
    }
}

/// What is in which policy: the first one has what the others have not.
fn shares(totals: Totals) -> Vec<(u16, Share)> {
    let mut first = Share { containers: totals.containers, objects: totals.objects, bytes: totals.bytes };
    for share in totals.policies.values() {
        first.containers = first.containers.saturating_sub(share.containers);
        first.objects = first.objects.saturating_sub(share.objects);
        first.bytes = first.bytes.saturating_sub(share.bytes);
    }
    let first = Some((0, first)).filter(|(_, share)| *share != Share::default());
    first.into_iter().chain(totals.policies).collect()
}

fn whole<R>(entries: Vec<Entry<R>>) -> Page<R> {
    Page { entries, cut: false }
}

impl Decider {
    /// As [`Names::ask`], for whoever asked.
    pub(super) async fn ask_for(&self, ask: Ask, asker: Asker) -> Result<Answer> {
        match ask {
            Ask::PutAccount { .. }
            | Ask::MarkAccount { .. }
            | Ask::RemoveMarked { .. }
            | Ask::PutContainer { .. }
            | Ask::DeleteContainer { .. } => self.change(ask).await,
            Ask::Shut { .. } | Ask::Open { .. } | Ask::DeleteShut { .. } => self.change_parts(ask).await,
            question => {
                self.behind_barrier_for(asker).await?;
                self.read(question)
            }
        }
    }
}

impl Names for Decider {
    fn ask(&self, ask: Ask) -> BoxFuture<'static, Result<Answer>> {
        let this = self.clone();
        Box::pin(async move { this.ask_for(ask, None).await })
    }

    fn begin(&self, path: ObjectPath, given: Option<Timestamp>) -> BoxFuture<'static, Result<Grant>> {
        let this = self.clone();
        Box::pin(async move { this.grant(path, given, None).await })
    }

    fn settle(&self, grant: Grant, line: NewLine, class: Class) -> BoxFuture<'static, Result<()>> {
        let this = self.clone();
        Box::pin(async move { this.write_line(grant, line, class).await })
    }

    fn lines_count(&self) -> bool {
        self.group.home().is_none()
    }

    fn here(&self) -> bool {
        leads(&*self.group)
    }
}

/// Rows whose keys begin with a prefix, by what follows it.
struct Prefixed<'a, F> {
    group: &'a dyn IndexGroup,
    prefix: Vec<u8>,
    decode: F,
}

impl<R, F: Fn(String, Row) -> Result<R>> Sorted for Prefixed<'_, F> {
    type Row = R;

    fn scan(&self, range: Range) -> Box<dyn Iterator<Item = Result<(String, R)>> + '_> {
        let key = |name: Vec<u8>| [self.prefix.as_slice(), &name].concat();
        let to = range.to.map_or_else(|| after_prefix(&self.prefix), |to| Some(key(to)));
        let range = Range { from: range.from.map(key), to, reverse: range.reverse };
        Box::new(self.group.scan(range).map(|pair| {
            let (key, row) = pair?;
            let name = key.get(self.prefix.len()..).unwrap_or_default().to_vec();
            let name = String::from_utf8(name).map_err(|_| catalog::BadValue::Field("name"))?;
            Ok((name.clone(), (self.decode)(name, row)?))
        }))
    }
}
