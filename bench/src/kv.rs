//! The smallest catalog there is, so that the engine is measured and nothing above it: a row of 20 bytes for each
//! key, last writer wins.

use quarry_engine::disk::Location;
use quarry_engine::disk::catalog::{Catalog, Tx};
use quarry_engine::disk::format::record::RecordView;
use quarry_engine::index::{Index, IndexError, Table};

const ENTRY: usize = 20;

#[derive(Debug)]
pub(crate) struct Kv;

fn encode(sequence: u64, at: Location) -> Vec<u8> {
    let mut out = Vec::with_capacity(ENTRY);
    out.extend_from_slice(&sequence.to_be_bytes());
    for part in [at.segment, at.offset, at.len] {
        out.extend_from_slice(&part.to_be_bytes());
    }
    out
}

fn decode(bytes: &[u8]) -> Option<(u64, Location)> {
    let (sequence, rest) = bytes.split_first_chunk::<8>()?;
    let (segment, rest) = rest.split_first_chunk::<4>()?;
    let (offset, rest) = rest.split_first_chunk::<4>()?;
    let len = rest.first_chunk::<4>()?;
    let [segment, offset, len] = [segment, offset, len].map(|part| u32::from_be_bytes(*part));
    Some((u64::from_be_bytes(*sequence), Location { segment, offset, len }))
}

/// Where the newest record of a key lies.
pub(crate) fn find(index: &dyn Index, key: &[u8]) -> Result<Option<Location>, IndexError> {
    let row = index.get(Table::Objects, key)?;
    Ok(row.and_then(|row| decode(&row)).map(|(_, at)| at))
}

impl Catalog for Kv {
    fn apply(&self, tx: &mut Tx<'_>, record: &RecordView<'_>, at: Location) -> Result<(), IndexError> {
        let old = tx.get(Table::Objects, record.key)?.and_then(|row| decode(&row));
        if old.is_some_and(|old| old >= (record.sequence, at)) {
            return Ok(());
        }
        if let Some((_, old)) = old {
            tx.died(old);
        }
        tx.born(at);
        tx.put(Table::Objects, record.key, encode(record.sequence, at));
        Ok(())
    }

    fn relocate(
        &self,
        tx: &mut Tx<'_>,
        record: &RecordView<'_>,
        from: Location,
        to: Location,
    ) -> Result<bool, IndexError> {
        let old = tx.get(Table::Objects, record.key)?.and_then(|row| decode(&row));
        let Some((sequence, _)) = old.filter(|(_, at)| *at == from) else { return Ok(false) };
        tx.died(from);
        tx.born(to);
        tx.put(Table::Objects, record.key, encode(sequence, to));
        Ok(true)
    }

    fn is_live(&self, index: &dyn Index, record: &RecordView<'_>, at: Location) -> Result<bool, IndexError> {
        Ok(find(index, record.key)? == Some(at))
    }

    fn forget(&self, _: &mut Tx<'_>, _: &RecordView<'_>) -> Result<(), IndexError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_survives_its_encoding() {
        let at = Location { segment: 7, offset: 4096, len: 4200 };
        let row = encode(u64::MAX - 1, at);
        assert_eq!(row.len(), ENTRY);
        assert_eq!(decode(&row), Some((u64::MAX - 1, at)));
        assert_eq!(decode(&row[..ENTRY - 1]), None);
    }
}
