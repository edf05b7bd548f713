//! Every limit of the coordinator, and how the limits depend on one another.

use std::time::Duration;

use super::CHUNKS_IN_FLIGHT;
use crate::net::limits::MAX_DEADLINE;

/// A device that has not answered for so long is replaced by the next one; when it answers after all, that counts.
pub const STALL: Duration = Duration::from_secs(2);
/// A device that has not answered for so long is not hoped for any more, where nobody is left to take its place.
pub const GIVE_UP: Duration = Duration::from_secs(6);
/// Both, for a device that was known to be down and is asked as a last resort.
pub const LAST_RESORT: Duration = Duration::from_millis(500);
/// A second replica is not asked earlier than this after the first.
pub const HEDGE_FLOOR: Duration = Duration::from_millis(10);
/// A device of the own node that takes so long to answer is no better than another node's.
pub const LOCAL_PACE: Duration = Duration::from_millis(100);
/// Reads that ask a second replica because the first is slow, in a thousand.
pub const HEDGES_PER_THOUSAND: u32 = 30;
/// Hedges that may be saved up.
pub const HEDGE_BURST: u32 = 10;
/// How long a device that failed is not asked first; twice as long after each further failure.
pub const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest such pause.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// Copies that are mended at a time; what is seen beyond these is left to the next reader, the auditor or the replicator.
pub const REPAIRS: usize = 4;
/// Chunks that a slow device of an upload may have in flight before the upload waits for it.
pub const LANE_CHUNKS: usize = 2 * CHUNKS_IN_FLIGHT;
/// Uploads that a device keeps in mind, begun in this life and neither committed nor given up; and as many given up.
pub const UPLOADS: usize = 1 << 16;
/// Uploads given up of which devices that were down are told again later; of more they learn at their next opening.
pub const REMINDERS: usize = 1024;
/// How often they are told, a [`LONGEST_PAUSE`] apart.
pub const REMINDED: usize = 75;

/// How long a group is waited for where an eventual container can do without it: an election may take longer.
pub const SOON: Duration = Duration::from_secs(1);
/// For so long a group that did not answer is not asked again where it is not needed.
pub const AWAY: Duration = Duration::from_secs(4);
/// Eventual containers that a node keeps in mind for the time when their groups are away.
pub const KEPT: usize = 1 << 16;

const _: () = assert!(SOON.as_millis() > HEDGE_FLOOR.as_millis() && KEPT > 0);
const _: () = assert!(HEDGE_FLOOR.as_millis() < STALL.as_millis());
const _: () = assert!(FIRST_PAUSE.as_millis() < LONGEST_PAUSE.as_millis());
const _: () = assert!(LAST_RESORT.as_millis() < STALL.as_millis() && STALL.as_secs() < GIVE_UP.as_secs());
const _: () = assert!(GIVE_UP.as_secs() < MAX_DEADLINE.as_secs());
const _: () = assert!(HEDGES_PER_THOUSAND < 1000 && HEDGE_BURST > 0 && REPAIRS > 0 && UPLOADS > 0);
const _: () = assert!(LANE_CHUNKS >= CHUNKS_IN_FLIGHT);
