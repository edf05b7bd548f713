//! Key spaces of groups on a disk: a group that was given up and taken up again has another, so what a rebuild brings back of
//! the old one is told from what stands.
//!
//! A group that took a range over from another has the lines of it in the other's space. They stay when that space is dropped.
//!
//! Invariant: keys of a space are dropped only whole spaces at a time, but for ranges that other groups have in it; or whole ranges,
//! when the group that had it there is gone. What was dropped is never used again.

use super::counters::{self, has_ranges};
use super::entry::Head;
use super::group::is_over;
use super::keys::{
    FIRST_GROUP, FIRST_TOTALS, GROUP_TOTALS, GroupId, RowKey, group_prefix, is_container, of_group,
    split_group,
};
use super::newest::damaged;
use super::ranges::{Bound, Over, lines};
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

/// What is left of ranges without others, in order.
pub(crate) fn without(ranges: Vec<Range>, holes: &[Range]) -> Vec<Range> {
    let cut =
        |ranges: Vec<Range>, hole: &Range| ranges.into_iter().flat_map(|range| around(range, hole)).collect();
    holes.iter().fold(ranges, cut)
}

/// What is left of a range without another, before that and behind it.
fn around(range: Range, hole: &Range) -> impl Iterator<Item = Range> + use<> {
    let low = |range: &Range| range.from.clone().unwrap_or_default();
    let ends_by = |to: &Option<Vec<u8>>, key: &[u8]| to.as_ref().is_some_and(|to| to.as_slice() <= key);
    let apart = ends_by(&range.to, &low(hole)) || ends_by(&hole.to, &low(&range));
    let pieces = if apart {
        [Some(range), None]
    } else {
        let before = (low(hole) > low(&range)).then(|| Range { to: hole.from.clone(), ..range.clone() });
        let rest = hole.to.clone().filter(|end| !ends_by(&range.to, end));
        [before, rest.map(|end| Range { from: Some(end), ..range })]
    };
    pieces.into_iter().flatten()
}

/// Everything that the index has of a space, but for these ranges of its rows.
fn all_ranges(space: GroupId, keep: &[Range]) -> Vec<(Table, Range)> {
    let rows = without(row_ranges(space), keep);
    let mut all: Vec<(Table, Range)> = rows.iter().map(|range| (Table::Rows, range.clone())).collect();
    all.extend(rows.into_iter().map(|range| (Table::Graves, graves(range))));
    let totals = FIRST_TOTALS.iter().map(|tag| (Table::System, Range::prefix(&of_group(space, *tag, &[]))));
    all.extend(totals);
    all
}

/// Where the tombstones of rows lie.
fn graves(Range { from, to, reverse }: Range) -> Range {
    let tombs = [Table::Rows as u8];
    let under = |key: Vec<u8>| [&tombs[..], &key].concat();
    let to = to.map_or_else(|| after_prefix(&tombs), |to| Some(under(to)));
    Range { from: Some(from.map_or_else(|| tombs.to_vec(), under)), to, reverse }
}

/// Spaces that have anything in the index.
pub(crate) fn spaces(index: &dyn Index) -> Result<Vec<GroupId>, IndexError> {
    let mut found = Vec::new();
    for (table, range) in all_ranges(FIRST_GROUP, &[]) {
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

/// Keys that the index has of a space, some of them; `keep`: ranges of its rows that other groups have there.
pub(crate) fn dead_keys(
    index: &dyn Index,
    space: GroupId,
    keep: &[Range],
    limit: usize,
) -> Result<Vec<(Table, Vec<u8>)>, IndexError> {
    some(index, all_ranges(space, keep), limit)
}

/// Keys that the index has of lines whose group is gone, some of them.
pub(crate) fn dead_lines(
    index: &dyn Index,
    lines: Range,
    limit: usize,
) -> Result<Vec<(Table, Vec<u8>)>, IndexError> {
    some(index, vec![(Table::Rows, lines.clone()), (Table::Graves, graves(lines))], limit)
}

fn some(
    index: &dyn Index,
    ranges: Vec<(Table, Range)>,
    limit: usize,
) -> Result<Vec<(Table, Vec<u8>)>, IndexError> {
    let mut keys = Vec::new();
    for (table, range) in ranges {
        for pair in index.scan(table, range) {
            if keys.len() == limit {
                return Ok(keys);
            }
            let (key, value) = pair?;
            // Ranges are counted in the totals of the container that they were taken from.
            let counts = table == Table::System && is_container(&key) && has_ranges(&value)?;
            if !counts {
                keys.push((table, key.into_vec()));
            }
        }
    }
    Ok(keys)
}

/// Takes keys of lines whose group is gone out of the index, unless their range was taken back meanwhile: then they may be others'.
pub(crate) fn drop_lines(
    tx: &mut Tx<'_>,
    group: GroupId,
    keys: Vec<(Table, Vec<u8>)>,
) -> Result<(), IndexError> {
    if is_over(tx, group)? { Ok(()) } else { drop_keys(tx, keys) }
}

/// Keys of the lines of a range in a space, from a name on.
pub(crate) fn lines_in(space: GroupId, id: u64, from: &str, to: Option<&str>) -> Range {
    let prefix = group_prefix(space);
    let keys = lines(id, from, to);
    let within = |key: Option<Vec<u8>>| key.map(|key| [&prefix[..], &key].concat());
    Range { from: within(keys.from), to: within(keys.to), reverse: false }
}

/// Takes lines of a range that was taken back out of the index, those that its group made.
pub(super) fn drop_dead(tx: &mut Tx<'_>, bound: &Bound, over: &Over) -> Result<(), IndexError> {
    let Bound { space, id, from, .. } = bound;
    let mut dead = Vec::new();
    for pair in tx.stored(Table::Rows, lines_in(*space, *id, from, over.to.as_deref())) {
        let (key, value) = pair?;
        if Head::decode(&value).map_err(damaged)?.0.sequence <= over.floor {
            dead.push(key);
        }
    }
    for key in dead {
        let Some(value) = tx.get(Table::Rows, &key)? else { continue };
        let (head, payload) = Head::decode(&value).map_err(damaged)?;
        let (space, row) = split_group(&key).map_err(damaged)?;
        tx.died(head.at);
        counters::row_changed(tx, space, &RowKey::parse(row).map_err(damaged)?, Some(payload), None)?;
        tx.delete(Table::Rows, key.clone());
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn range(from: &str, to: &str) -> Range {
        let bound = |text: &str| (!text.is_empty()).then(|| text.as_bytes().to_vec());
        Range { from: bound(from), to: bound(to), reverse: false }
    }

    type Bounds = (Option<Vec<u8>>, Option<Vec<u8>>);

    fn left(ranges: &[(&str, &str)], holes: &[(&str, &str)]) -> Vec<Bounds> {
        let of = |all: &[(&str, &str)]| all.iter().map(|(from, to)| range(from, to)).collect::<Vec<_>>();
        without(of(ranges), &of(holes)).into_iter().map(|range| (range.from, range.to)).collect()
    }

    #[test]
    fn what_is_left_of_a_range_is_before_and_behind_the_hole() {
        let of = |from: &str, to: &str| (range(from, to).from, range(from, to).to);
        assert_eq!(left(&[("", "")], &[("c", "f")]), [of("", "c"), of("f", "")]);
        assert_eq!(left(&[("b", "h")], &[("c", "")]), [of("b", "c")]);
        assert_eq!(left(&[("b", "h")], &[("b", "h")]), []);
        assert_eq!(left(&[("b", "h")], &[("a", "c")]), [of("c", "h")]);
        assert_eq!(left(&[("b", "h")], &[("h", "k")]), [of("b", "h")]);
        assert_eq!(left(&[("b", "h")], &[("a", "b")]), [of("b", "h")]);
        assert_eq!(left(&[("b", "h")], &[("", "")]), []);
        assert_eq!(
            left(&[("", "g"), ("h", "")], &[("c", "d"), ("e", "i")]),
            [of("", "c"), of("d", "e"), of("i", "")]
        );
    }
}
