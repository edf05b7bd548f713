//! Lines of what an audit has read: whether listings say what the disk has.
//!
//! They are asked for together, since most of a question is its message. Where nobody answers (a group without a leader, a node that is
//! starting) the disk is read on, and those lines are asked for again later; at the end of a pass for about a minute. What is
//! left then comes with the next pass: readers bring lines up to date as well.
//!
//! Invariant: what waits is bounded ([`MOST`]).

use std::collections::VecDeque;

use futures_util::future::join_all;

use crate::catalog::ObjectMeta;
use crate::clock::Timestamp;
use crate::object::{Error, ObjectPath, Store};

/// Lines that are asked for together.
const TOGETHER: usize = 64;
/// Lines that wait, and so: objects that are read before somebody is asked again who did not answer.
const MOST: usize = 1024;
/// How often lines are asked for at the end of a pass: the pauses between come to a minute.
const TRIES: u32 = 6;

const _: () = assert!(MOST >= TOGETHER);

/// An object that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    path: ObjectPath,
    key: Vec<u8>,
    sequence: u64,
    /// When its body was written, if that has a key of its own, under which no line may stand.
    body: Option<Timestamp>,
}

impl Named {
    pub(super) fn of(meta: &ObjectMeta, key: &[u8], sequence: u64) -> Self {
        let body = meta.fragment.is_some().then_some(meta.info.timestamp);
        Self { path: meta.path.clone(), key: key.to_vec(), sequence, body }
    }
}

/// What the answers were.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) findings: Vec<String>,
    /// Why nobody answered, if nobody did.
    pub(super) failed: Option<String>,
}

/// Lines that are to be asked for.
pub(super) struct Lines {
    store: Store,
    waiting: VecDeque<Named>,
    /// Nobody answered the last time.
    silent: bool,
    /// How often so at the end of this pass.
    tries: u32,
}

impl Lines {
    pub(super) fn new(store: Store) -> Self {
        Self { store, waiting: VecDeque::new(), silent: false, tries: 0 }
    }

    pub(super) fn push(&mut self, named: Named) {
        self.waiting.push_back(named);
    }

    /// Whether to ask now.
    pub(super) fn are_due(&self, all: bool) -> bool {
        let least = match (all, self.silent) {
            (true, _) => 1,
            (false, true) => MOST,
            (false, false) => TOGETHER,
        };
        self.waiting.len() >= least
    }

    /// Asks for some. `last`: it is the end of a pass.
    pub(super) async fn ask(&mut self, last: bool) -> Asked {
        let some: Vec<Named> = self.waiting.drain(..TOGETHER.min(self.waiting.len())).collect();
        let asking: Vec<_> = some.iter().map(|named| check(&self.store, named)).collect();
        let answers = join_all(asking).await;
        let (mut asked, mut unanswered) = (Asked::default(), Vec::new());
        for (named, answer) in some.into_iter().zip(answers) {
            match answer {
                Ok(finding) => asked.findings.extend(finding),
                Err(Error::Corrupt { what }) => asked.findings.push(what),
                Err(error) => {
                    asked.failed = Some(format!("ask what is listed: {error}"));
                    unanswered.push(named);
                }
            }
        }
        self.silent = asked.failed.is_some();
        // Asked for twice without an answer, it waits for the next pass, unless there is room.
        let room = (MOST - TOGETHER).saturating_sub(self.waiting.len());
        self.waiting.extend(unanswered.into_iter().take(room));
        self.tries = if last && self.silent { self.tries + 1 } else { 0 };
        if self.tries >= TRIES {
            tracing::warn!(
                lines = self.waiting.len(),
                "lines were not asked for in this pass: nobody answers"
            );
            (self.waiting, self.tries, asked.failed) = (VecDeque::new(), 0, None);
        }
        asked
    }
}

/// What was found of an object's line, and set right.
async fn check(store: &Store, named: &Named) -> Result<Option<String>, Error> {
    let Named { path, key, sequence, body } = named;
    if let Some(body) = body
        && store.inner.bury_orphan(path, key, *body).await?
    {
        return Ok(Some(format!("body of {path} that nothing names; buried")));
    }
    let relisted = store.inner.relist_found(path, key, *sequence).await?;
    Ok(relisted.then(|| format!("line of {path} was missing in its listing; listed again")))
}
