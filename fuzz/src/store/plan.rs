//! What clients will do: operations drawn from a seed, by a profile that the seed chooses too.

use quarry_engine::io::SplitMix64;
use quarry_engine::object::{Condition, EtagMatch, Listing};

use super::clients::MAX_BODY;
use super::model::{ACCOUNTS, ALL_CONTAINERS, Book, NAMES, OBJECTS, Op, State};

/// What a history is like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Profile {
    pub(crate) segments: u64,
    pub(crate) clients: usize,
    pub(crate) operations: u32,
    /// Out of a thousand PUTs, how many are of many chunks.
    pub(crate) large: u32,
    /// Larger bodies are of about this size.
    pub(crate) body: usize,
    /// Out of a hundred thousand ticks, how many bring a crash or a fault.
    pub(crate) faults: u64,
    /// Out of a thousand operations, how many delete an object.
    pub(crate) deletes: u32,
}

impl Profile {
    pub(crate) fn draw(rng: &mut SplitMix64) -> Self {
        let clients = 1 + rng.index(5);
        let faults = [0, 40, 100, 250][rng.index(4)];
        let deletes = [60, 150][rng.index(2)];
        let small =
            Self { segments: 12, clients, operations: 500, large: 15, body: 1 << 20, faults, deletes };
        match rng.below(8) {
            // Enough to go round the log: cleaning.
            0 | 1 => Self { operations: 320, large: 600, body: 2 << 20, faults: faults / 2, ..small },
            // Enough to fill the disk.
            2 => {
                Self { operations: 220, large: 900, body: MAX_BODY, faults: faults / 2, deletes: 30, ..small }
            }
            _ => small,
        }
    }
}

fn condition(rng: &mut SplitMix64, etag: &str) -> Condition {
    let one = || Some(EtagMatch::OneOf(vec!["0".repeat(32), etag.to_owned()]));
    let any = || Some(EtagMatch::Any);
    match rng.below(20) {
        0 => Condition { if_match: any(), if_none_match: None },
        1 | 2 => Condition { if_match: None, if_none_match: any() },
        3 | 4 => Condition { if_match: one(), if_none_match: None },
        5 => Condition { if_match: None, if_none_match: one() },
        _ => Condition::default(),
    }
}

fn listing(rng: &mut SplitMix64) -> Listing {
    let mut listing = Listing { limit: 1000, ..Listing::default() };
    if rng.chance(500) {
        return listing;
    }
    if rng.chance(300) {
        listing.prefix = ["a", "a/", "b", "q"][rng.index(4)].to_owned();
    }
    if rng.chance(300) {
        listing.delimiter = "/".to_owned();
    } else {
        let name = |rng: &mut SplitMix64| {
            if rng.chance(500) { NAMES[rng.index(OBJECTS)].to_owned() } else { String::new() }
        };
        listing.marker = name(rng);
        listing.end_marker = name(rng);
    }
    listing.reverse = rng.chance(300);
    if rng.chance(300) {
        listing.limit = 1 + rng.index(4);
    }
    listing
}

/// The next operation.
pub(crate) fn draw(rng: &mut SplitMix64, profile: &Profile, guess: &State, book: &Book) -> Op {
    let hot = rng.chance(500);
    let c = if hot { 0 } else { rng.index(ALL_CONTAINERS) };
    let o = if hot { rng.index(3) } else { rng.index(OBJECTS) };
    let etag = book[guess.cell(c, o).data as usize].etag.clone();
    if rng.chance(profile.deletes) {
        return Op::Delete { c, o, condition: condition(rng, &etag) };
    }
    match rng.below(100) {
        0..38 => Op::Put { c, o, condition: condition(rng, &etag), wrong_md5: rng.chance(20) },
        38..60 => Op::Get { c, o },
        60..70 => Op::Post { c, o },
        70..75 => Op::PutContainer { c },
        75..79 => Op::DeleteContainer { c },
        79..81 => Op::PostContainer { c },
        81..86 => Op::HeadContainer { c },
        86..94 => Op::List { c, listing: listing(rng) },
        94..97 => Op::HeadAccount { a: rng.index(ACCOUNTS) },
        _ => Op::ListContainers { a: rng.index(ACCOUNTS) },
    }
}

/// Bytes of the next body.
pub(crate) fn size(rng: &mut SplitMix64, profile: &Profile) -> usize {
    if rng.chance(profile.large) {
        let size = profile.body / 2 + rng.index(profile.body / 2 + 1);
        // Whole chunks, one byte more, one byte less.
        return if rng.chance(200) { (size >> 20 << 20) + rng.index(3) } else { size }.min(MAX_BODY);
    }
    match rng.below(10) {
        0 => 0,
        1 => 1 + rng.index(8),
        2 => 60_000 + rng.index(60_000),
        _ => rng.index(9000),
    }
}

/// Everything that a client can look at, once.
pub(crate) fn sweep() -> Vec<Op> {
    let mut all = Vec::new();
    for a in 0..ACCOUNTS {
        all.extend([Op::HeadAccount { a }, Op::ListContainers { a }]);
    }
    for c in 0..ALL_CONTAINERS {
        let listing = Listing { limit: 1000, ..Listing::default() };
        all.extend([Op::HeadContainer { c }, Op::List { c, listing }]);
        all.extend((0..OBJECTS).map(|o| Op::Get { c, o }));
    }
    all
}
