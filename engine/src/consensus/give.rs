//! What a voter writes when it applies the entry that gives a range of lines away: the group that takes it over is there from the
//! same group of records on.
//!
//! Invariant: every voter founds the child from the same rows, with the same members and the same floor, all by the log.
//! Invariant: a group that is on this disk already, or was once, is not founded: it has its lines elsewhere, and those here are dead.
//! Invariant: from here on lines of the range are counted apart on this disk, whoever has them.

use super::codec::{Facts, Marker};
use super::machine::row_record;
use super::raft::{Membership, StoredMembership, broken_value, log_id};
use super::store::{Store, record};
use super::territory::Host;
use super::types::RowChange;
use crate::catalog::{
    self, Bound, GivenValue, GroupId, GroupKey, GroupTag, PartValue, Reach, group_prefix, listing_key,
    part_key,
};
use crate::disk::DiskError;
use crate::disk::format::record::NewRecord;
use crate::net::NodeId;

/// What goes with the row of a range.
pub(crate) struct Gave {
    pub(crate) records: Vec<NewRecord>,
    /// The child, if it is founded here.
    pub(crate) made: Option<GroupId>,
}

/// Stamps of the first records of a child.
const RANGE: u64 = 1;
const MARKER: u64 = 2;
const STATE: u64 = 3;

/// The records of a child. `row` is that of the range, `after` the parent's marker as the entry left it.
pub(crate) fn give(store: &Store, node: NodeId, row: &RowChange, after: &Marker) -> Result<Gave, DiskError> {
    let (id, from) = catalog::parse_given(&row.key).map_err(broken_value)?;
    let value = row.value.as_deref().unwrap_or_default();
    let GivenValue { to, group, objects, bytes, of, .. } = GivenValue::decode(value).map_err(broken_value)?;
    let (disk, from) = (&store.disk, from.to_owned());
    let space = store.territory().space_of(&listing_key(id, &from));
    let key = |tag| GroupKey { group, tag, number: 0 };
    let mut records = Vec::new();
    if catalog::group_record(disk.index(), key(GroupTag::Range))?.is_none() {
        let bound = Bound { space, id, from: from.clone(), objects, bytes, over: None };
        records.push(record(disk, key(GroupTag::Range), RANGE, &bound.encode(), Vec::new()));
    }
    let voters: std::collections::BTreeSet<NodeId> = after.membership.voter_ids().collect();
    let known = catalog::group_record(disk.index(), key(GroupTag::State))?.is_some();
    if known || !voters.contains(&node) {
        return Ok(Gave { records, made: None });
    }
    let part = PartValue { from: from.clone(), to: to.clone(), of, shut: None };
    let part_row = [&group_prefix(group)[..], &part_key(id)].concat();
    records.push(row_record(disk, &part_row, row.sequence, Some(&part.encode())));
    let (first, above) = (log_id(0, 0), after.max_sequence);
    let membership = StoredMembership::new(Some(first), Membership::new(vec![voters], ()));
    let marker =
        Marker { applied: Some(first), part: 0, max_sequence: above, term: 0, floor: above, membership };
    records.push(record(disk, key(GroupTag::Marker), MARKER, &[], marker.encode()));
    let host = Some(Host { space, id, from, to });
    let facts = Facts { purged: Some(first), host, ..Facts::default() };
    let reach = Reach { first: 1, ..Reach::default() };
    records.push(record(disk, key(GroupTag::State), STATE, &reach.encode(), facts.encode()));
    Ok(Gave { records, made: Some(group) })
}
