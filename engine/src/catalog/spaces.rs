//! Key spaces of groups on a disk: a group that was given up and taken up again has another, so what a rebuild brings back of
//! the old one is told from what stands.
//!
//! Invariant: keys of a space are dropped only whole spaces at a time, and a space that was dropped is never used again.

use super::entry::Head;
use super::keys::{FIRST_GROUP, FIRST_TOTALS, GROUP_TOTALS, GroupId, group_prefix, of_group};
use super::newest::damaged;
use crate::disk::catalog::Tx;
use crate::index::{Index, IndexError, Range, Table, after_prefix};

/// Where the rows of a space lie in their table. The first group's first has all but those with a prefix.
pub(crate) fn row_ranges(space: GroupId) -> Vec<Range> {
    if space != FIRST_GROUP {
        return vec![Range::prefix(&group_prefix(space))];
    }
    let below = Range { from: None, to: Some(b"g".to_vec()), reverse: false };
    let above = Range { from: Some(b"h".to_vec()), to: None, reverse: false };
    vec![below, above]
}

/// Everything that the index has of a space.
fn all_ranges(space: GroupId) -> Vec<(Table, Range)> {
    let tombs = [Table::Rows as u8];
    let grave = |Range { from, to, reverse }: Range| {
        let under = |key: Vec<u8>| [&tombs[..], &key].concat();
        let to = to.map_or_else(|| after_prefix(&tombs), |to| Some(under(to)));
        Range { from: Some(from.map_or_else(|| tombs.to_vec(), under)), to, reverse }
    };
    let mut all: Vec<(Table, Range)> =
        row_ranges(space).into_iter().map(|range| (Table::Rows, range)).collect();
    all.extend(row_ranges(space).into_iter().map(|range| (Table::Graves, grave(range))));
    let totals = FIRST_TOTALS.iter().map(|tag| (Table::System, Range::prefix(&of_group(space, *tag, &[]))));
    all.extend(totals);
    all
}

/// Spaces that have anything in the index.
pub(crate) fn spaces(index: &dyn Index) -> Result<Vec<GroupId>, IndexError> {
    let mut found = Vec::new();
    for (table, range) in all_ranges(FIRST_GROUP) {
        if index.scan(table, range).next().transpose()?.is_some() {
            found.push(FIRST_GROUP);
            break;
        }
    }
    let tombs: &[u8] = &[Table::Rows as u8, b'g'];
    for (table, prefix) in [(Table::Rows, &b"g"[..]), (Table::Graves, tombs), (Table::System, &GROUP_TOTALS)]
    {
        let end = after_prefix(prefix);
        let mut from = prefix.to_vec();
        loop {
            let range = Range { from: Some(from), to: end.clone(), reverse: false };
            let Some(pair) = index.scan(table, range).next() else { break };
            let (key, _) = pair?;
            let Some(space) = key.get(prefix.len()..).and_then(<[u8]>::first_chunk::<4>) else { break };
            let space = u32::from_be_bytes(*space);
            found.push(space);
            let Some(next) = space.checked_add(1) else { break };
            from = [prefix, &next.to_be_bytes()].concat();
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Keys that the index has of a space, some of them.
pub(crate) fn dead_keys(
    index: &dyn Index,
    space: GroupId,
    limit: usize,
) -> Result<Vec<(Table, Vec<u8>)>, IndexError> {
    let mut keys = Vec::new();
    for (table, range) in all_ranges(space) {
        for pair in index.scan(table, range).take(limit.saturating_sub(keys.len())) {
            keys.push((table, pair?.0.into_vec()));
        }
    }
    Ok(keys)
}

/// Takes keys of a space out of the index: nothing needs their records any more.
pub(crate) fn drop_keys(tx: &mut Tx<'_>, keys: Vec<(Table, Vec<u8>)>) -> Result<(), IndexError> {
    for (table, key) in keys {
        let Some(value) = tx.get(table, &key)? else { continue };
        if table != Table::System {
            let (head, _) = Head::decode(&value).map_err(damaged)?;
            tx.died(head.at);
        }
        tx.delete(table, key);
    }
    Ok(())
}
