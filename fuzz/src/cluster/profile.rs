//! What a history is like, and what its clients do: drawn from the seed.

use std::time::Duration;

use quarry_engine::io::SplitMix64;
use quarry_engine::net::SimFaults;
use quarry_engine::object::{Code, Condition, EtagMatch, Listing};

use super::oracle::{Name, Oracle};
use crate::store::model::{OBJECTS, Op};

/// Containers that stay, all of one account.
pub(crate) const CONTAINERS: usize = 2;
/// These and the one that comes and goes, which is of an account of its own.
pub(crate) const ALL: usize = CONTAINERS + 1;
/// The one whose objects are kept in fragments, where there is a code; or that is eventual.
pub(crate) const CODED: usize = 1;
/// Writes of a name, under way or unanswered, at which it is only read for a while: each makes many more worlds possible.
pub(super) const MANY_WRITES: usize = 4;

/// Longest pause between two tries to split, and how many pauses of a client that is at most: a history ends after so many operations.
const SPLIT: Duration = Duration::from_secs(3);
const SPLIT_AFTER: u32 = 10;

/// The shape of a history.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Profile {
    pub(crate) machines: usize,
    /// On each machine.
    pub(crate) drives: usize,
    /// On each drive.
    pub(crate) segments: u64,
    pub(crate) clients: usize,
    /// Of clients, in the safety phase.
    pub(crate) operations: u32,
    /// Longest pause of a client.
    pub(crate) think: Duration,
    /// Longest pause between two troubles; none: there is no trouble.
    pub(crate) trouble: Option<Duration>,
    /// What the network is like when nothing is wrong with it.
    pub(crate) net: SimFaults,
    /// Longest pause between two tries to give half of a group's lines of a container to a group of its own; none: nobody tries.
    pub(crate) splits: Option<Duration>,
    /// Out of a thousand PUTs, how many are of several chunks.
    pub(crate) large: u32,
    /// How objects of the second container are kept, when not in copies.
    pub(crate) code: Option<Code>,
    /// Whether the second container is eventual.
    pub(crate) eventual: bool,
    /// Members of the volume, if there is one.
    pub(crate) volume: Option<usize>,
}

/// Of which all fragments have a device also while a machine is emptied.
fn code(machines: usize, drives: usize, rng: &mut SplitMix64) -> Option<Code> {
    let devices = drives * if machines > 3 { machines - 1 } else { machines };
    let codes = [(2, 1), (2, 2), (3, 2)].map(|(data, parity)| Code::new(data, parity));
    let fitting: Vec<Code> = codes.into_iter().flatten().filter(|code| code.n() <= devices).collect();
    let code = fitting[rng.index(fitting.len())];
    rng.chance(600).then_some(code)
}

impl Profile {
    pub(crate) fn draw(rng: &mut SplitMix64) -> Self {
        let machines = [3, 3, 4, 5][rng.index(4)];
        let drives = if rng.chance(200) { 2 } else { 1 };
        let trouble = [None, Some(8), Some(4), Some(4), Some(2)][rng.index(5)].map(Duration::from_secs);
        let think = Duration::from_millis([20, 100, 400][rng.index(3)]);
        let loss = if trouble.is_some() { [0, 0, 5, 20][rng.index(4)] } else { 0 };
        let net = SimFaults { loss, duplication: [0, 20][rng.index(2)], ..SimFaults::NONE };
        let clients = 2 + rng.index(4);
        let code = code(machines, drives, rng);
        // Only a line names a body that is kept in fragments: such a container is strict.
        let eventual = code.is_none() && rng.chance(750);
        Self {
            machines,
            drives,
            segments: 12,
            clients,
            splits: clients.is_multiple_of(2).then_some(SPLIT.min(think * SPLIT_AFTER)),
            operations: 250,
            think,
            trouble,
            net,
            large: 40,
            code,
            eventual,
            volume: None,
        }
    }

    /// The same, with a volume in half of all.
    pub(crate) fn with_volume(self, rng: &mut SplitMix64) -> Self {
        let volume = rng.chance(500).then(|| 1 + rng.index(self.machines));
        // Its writes are answered early where there is room.
        Self { volume, segments: if volume.is_some() { 2 * self.segments } else { self.segments }, ..self }
    }
}

pub(super) fn condition(rng: &mut SplitMix64, etag: &str) -> Condition {
    let one = || Some(EtagMatch::OneOf(vec![etag.to_owned()]));
    let any = || Some(EtagMatch::Any);
    match rng.below(20) {
        0 => Condition { if_match: any(), if_none_match: None },
        1 | 2 => Condition { if_match: None, if_none_match: any() },
        3 => Condition { if_match: one(), if_none_match: None },
        _ => Condition::default(),
    }
}

fn name(rng: &mut SplitMix64, eventual: bool) -> Name {
    if eventual && rng.chance(600) {
        return (CODED, rng.index(3));
    }
    if rng.chance(600) { (0, rng.index(3)) } else { (rng.index(CONTAINERS), rng.index(OBJECTS)) }
}

/// The next operation.
pub(crate) fn draw(rng: &mut SplitMix64, oracle: &Oracle, eventual: bool) -> Op {
    let (c, o) = name(rng, eventual);
    let what = rng.below(100);
    if what < 60 && oracle.writes((c, o)) >= MANY_WRITES {
        return Op::Get { c, o };
    }
    let etag = || {
        let cells = oracle.cells((c, o)).unwrap_or_default();
        cells.last().map_or(String::new(), |cell| oracle.book[cell.data as usize].etag.clone())
    };
    match what {
        0..35 => Op::Put { c, o, condition: condition(rng, &etag()), wrong_md5: false },
        35..50 => Op::Delete { c, o, condition: condition(rng, &etag()) },
        // A POST keeps the body that it saw, which in an eventual container need not be the last: the oracle knows no such write.
        50..60 if eventual && c == CODED => Op::Get { c, o },
        50..60 => Op::Post { c, o },
        60..88 => Op::Get { c, o },
        88..95 => Op::List { c, listing: everything() },
        _ => Op::HeadContainer { c },
    }
}

pub(crate) fn everything() -> Listing {
    Listing { limit: 1000, ..Listing::default() }
}

/// Bytes of the next body.
pub(crate) fn size(rng: &mut SplitMix64, profile: &Profile) -> usize {
    if rng.chance(profile.large) {
        return (1 << 20) + rng.index(2 << 20);
    }
    match rng.below(10) {
        0 => 0,
        1 => 60_000 + rng.index(60_000),
        _ => rng.index(6000),
    }
}
