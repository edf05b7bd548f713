//! What requests that are under way will use of a project's quota, so that two nodes together do not give out more than there is.
//!
//! A request counts and compares, and only then writes its paper; another one, at another node, may do the same in between. So
//! before its paper it writes a note of what it wants into the project's own paper here, and takes the note back afterwards.
//! Invariant: a note is written upon the version of the notes that was read before the count, and no two versions are equal: each has
//! a higher turn. So of two requests the later one has counted the other's paper or has seen its note, and
//! `used + noted + wanted <= limit` holds whenever a note is written.
//! Invariant: a note is taken back when what it is for is written or never will be, also if whoever asked has gone away.
//! Invariant: none stays for ever: those of a node that was killed count for [`LAPSE`] and no longer.
//! Invariant: nobody is refused for a note alone while it may still be taken back: it is waited for, up to [`PATIENCE`].
//!
//! What is left: a node that stands still for longer than `LAPSE` between its note and its paper uses what others were given since.
//! A node that is alone needs no notes: its requests take turns.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, sleep};

use super::fault::Fault;
use super::quotas::{self, Need, Numbers};
use super::{Office, backups, fields, groups, snapshots, volumes};
use crate::papers::{Cabinet, Paper, PaperError};
use crate::storage::wall_clock;

const DRAWER: &str = "reserved";
/// How long a note counts that nobody takes back: far longer than a paper takes to be written.
const LAPSE: Duration = Duration::from_secs(120);
/// How long notes of others are waited for.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);
/// How often it is tried to take a note back.
const TRIES: u32 = 5;

/// What a request may use; held until its paper is written.
#[derive(Debug)]
pub(super) struct Reserved {
    _note: Option<Note>,
    _turn: OwnedMutexGuard<()>,
}

/// A note that was written.
#[derive(Debug)]
struct Note {
    papers: Arc<Cabinet>,
    project: String,
    id: String,
}

impl Drop for Note {
    fn drop(&mut self) {
        let (papers, project, id) = (Arc::clone(&self.papers), self.project.clone(), self.id.clone());
        drop(tokio::spawn(async move { take_back(&papers, &project, &id).await }));
    }
}

/// Takes a share of a project's quota, or refuses what is above it.
pub(super) async fn reserve(office: &Office, need: Need<'_>) -> Result<Reserved, Fault> {
    let began = Instant::now();
    loop {
        let turn = Arc::clone(&office.counting).lock_owned().await;
        if office.place.alone || need.project.is_empty() {
            quotas::check(office, need, &Numbers::new()).await?;
            return Ok(Reserved { _note: None, _turn: turn });
        }
        // Before the count: who is not among these has written its paper, or finds another version of them.
        let seen = office.papers.get(DRAWER, need.project).await?;
        let mut notes = standing(seen.as_deref());
        match quotas::check(office, need, &sum(&notes)).await {
            Ok(()) => {
                let id = fields::fresh_id();
                notes.insert(id.clone(), note(need));
                // Made before it is written: a caller that goes away meanwhile leaves nothing behind.
                let papers = Arc::clone(&office.papers);
                let note = Note { papers, project: need.project.to_owned(), id };
                if write(&office.papers, need.project, seen.as_deref(), &notes).await? {
                    return Ok(Reserved { _note: Some(note), _turn: turn });
                }
            }
            Err(fault) if fault.status != 413 || notes.is_empty() => return Err(fault),
            Err(fault) if began.elapsed() >= PATIENCE => return Err(fault),
            Err(_) => {}
        }
        drop(turn);
        sleep(PAUSE).await;
    }
}

fn note(need: Need<'_>) -> Value {
    let wants = quotas::named(need).map(|(name, wanted)| (name, json!(wanted)));
    json!({ "at": wall_clock(), "wants": wants.collect::<Map<_, _>>() })
}

/// The notes that count.
fn standing(seen: Option<&Paper>) -> Paper {
    let notes = seen.and_then(|paper| paper.get("notes")?.as_object());
    let now = wall_clock();
    let counts = |note: &Value| {
        let at = note.get("at").and_then(Value::as_u64).unwrap_or(0);
        u128::from(now.abs_diff(at)) < LAPSE.as_micros()
    };
    let standing = notes.into_iter().flatten().filter(|(_, note)| counts(note));
    standing.map(|(id, note)| (id.clone(), note.clone())).collect()
}

/// What notes want together.
fn sum(notes: &Paper) -> Numbers {
    let mut all: Numbers = BTreeMap::new();
    for wants in notes.values().filter_map(|note| note.get("wants")?.as_object()) {
        for (name, wanted) in wants {
            let sum = all.entry(name.clone()).or_default();
            *sum = sum.saturating_add(wanted.as_i64().unwrap_or(0).max(0));
        }
    }
    all
}

/// Writes notes upon the version that was seen; false: others wrote since.
async fn write(
    papers: &Cabinet,
    project: &str,
    seen: Option<&Paper>,
    notes: &Paper,
) -> Result<bool, PaperError> {
    /// Why not.
    enum Not {
        Moved,
        Failed(PaperError),
    }
    impl From<PaperError> for Not {
        fn from(error: PaperError) -> Self {
            Self::Failed(error)
        }
    }
    // What came and went between is told by the turn alone.
    let turn = seen.and_then(|paper| paper.get("turn")?.as_u64()).unwrap_or(0) + 1;
    let next = fields::paper(json!({ "turn": turn, "notes": notes }));
    let Some(seen) = seen else {
        return match papers.add(DRAWER, project, next).await {
            Err(PaperError::Taken) => Ok(false),
            done => done.map(|_| true),
        };
    };
    let edit = |paper: &mut Paper| {
        if paper != seen {
            return Err(Not::Moved);
        }
        paper.clone_from(&next);
        Ok(())
    };
    match papers.change(DRAWER, project, edit).await {
        Ok(written) => Ok(written.is_some()),
        Err(Not::Moved) => Ok(false),
        Err(Not::Failed(error)) => Err(error),
    }
}

/// Takes a note back once nothing is being written that it may be for.
async fn take_back(papers: &Cabinet, project: &str, id: &str) {
    for drawer in [volumes::DRAWER, snapshots::DRAWER, backups::DRAWER, groups::DRAWER, DRAWER] {
        papers.settled(drawer).await;
    }
    for again in 1..=TRIES {
        let without = |paper: &mut Paper| -> Result<(), PaperError> {
            if let Some(notes) = paper.get_mut("notes").and_then(Value::as_object_mut) {
                notes.remove(id);
            }
            Ok(())
        };
        match papers.change(DRAWER, project, without).await {
            Ok(_) => return,
            Err(error) if again == TRIES => {
                tracing::warn!(%error, project, "take back what was reserved of a quota; it lapses");
            }
            Err(_) => sleep(PAUSE * 10 * again).await,
        }
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// A note of a node that was killed, written so long ago.
    pub(in crate::cinder) async fn leave(office: &Office, need: Need<'_>, ago: Duration) {
        let mut note = note(need);
        note["at"] = json!(wall_clock() - u64::try_from(ago.as_micros()).unwrap());
        let notes = Paper::from_iter([("left".to_owned(), note)]);
        assert!(write(&office.papers, need.project, None, &notes).await.unwrap());
    }

    /// Reads the notes at one node, has the other reserve and let go, and writes upon what was read: that is refused.
    pub(in crate::cinder) async fn aba(one: &Office, other: &Office, need: Need<'_>) {
        drop(reserve(one, need).await.unwrap());
        while notes(one, need.project).await > 0 {
            sleep(PAUSE).await;
        }
        let seen = one.papers.get(DRAWER, need.project).await.unwrap().unwrap();
        drop(reserve(other, need).await.unwrap());
        while notes(one, need.project).await > 0 {
            sleep(PAUSE).await;
        }
        assert!(!write(&one.papers, need.project, Some(&seen), &Paper::new()).await.unwrap());
        let seen = one.papers.get(DRAWER, need.project).await.unwrap().unwrap();
        assert!(write(&one.papers, need.project, Some(&seen), &Paper::new()).await.unwrap());
    }

    /// How many notes there are of a project.
    pub(in crate::cinder) async fn notes(office: &Office, project: &str) -> usize {
        office
            .papers
            .get(DRAWER, project)
            .await
            .unwrap()
            .map_or(0, |paper| paper["notes"].as_object().unwrap().len())
    }
}
