//! Which key wraps those of the cluster's volumes, and which nodes have it, as rows beside the volumes' (node/FORMAT-control.md).
//! Keys have names here, and are nowhere in the log.
//!
//! Invariant: a volume's key is wrapped by what the row says: who makes a volume names the version with which the row stands. So once a
//! newer key wraps, no volume is made that names the older one, however late the wish for it comes.
//! So does who wraps the key of one anew.
//! Invariant: a key wraps only when each node has said that it has it, durably. Who says something writes a row that is the same for all,
//! too: by its version what all said is named, however many they are.
//! Invariant: what was dropped never wraps again.

use std::collections::BTreeMap;

use quarry_engine::disk::format::bytes::{Put, Reader};
use quarry_engine::index::Range;
use quarry_engine::net::NodeId;
use quarry_volume::KeyName;

use super::{BadState, Change, PAUSE, PREFIX, Register, RegisterError, SEEN};

const VERSION: u8 = 1;
/// Most names in a row.
pub(crate) const MAX_NAMES: usize = 64;

/// Which key wraps, and which are to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) wraps: KeyName,
    /// Newest last.
    pub(crate) dropped: Vec<KeyName>,
}

/// What a node has: keys, and how many volumes on its own disks each of them wrapped. One that it has not may be among these.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) keys: Vec<KeyName>,
    pub(crate) volumes: BTreeMap<KeyName, u64>,
}

fn names(r: &mut Reader<'_>) -> Result<Vec<KeyName>, BadState> {
    let count = r.varint()?;
    if count > MAX_NAMES as u64 {
        return Err(BadState::Field("names of keys"));
    }
    (0..count).map(|_| Ok(KeyName(r.array()?))).collect()
}

fn put_names(out: &mut Vec<u8>, names: &[KeyName]) {
    out.put_varint(names.len() as u64);
    names.iter().for_each(|name| out.extend_from_slice(&name.0));
}

fn begin(bytes: &[u8]) -> Result<Reader<'_>, BadState> {
    let mut r = Reader::new(bytes);
    match r.u8()? {
        VERSION => Ok(r),
        other => Err(BadState::Version(other)),
    }
}

fn end<T>(r: &Reader<'_>, value: T) -> Result<T, BadState> {
    if r.rest().is_empty() { Ok(value) } else { Err(BadState::Field("end of a row about keys")) }
}

impl Choice {
    fn encode(&self) -> Vec<u8> {
        let mut out = [&[VERSION][..], &self.wraps.0].concat();
        put_names(&mut out, &self.dropped);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, BadState> {
        let mut r = begin(bytes)?;
        let (wraps, dropped) = (KeyName(r.array()?), names(&mut r)?);
        if dropped.contains(&wraps) {
            return Err(BadState::Field("a key that was dropped"));
        }
        end(&r, Self { wraps, dropped })
    }
}

impl Held {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        put_names(&mut out, &self.keys);
        out.put_varint(self.volumes.len().min(MAX_NAMES) as u64);
        for (name, count) in self.volumes.iter().take(MAX_NAMES) {
            out.extend_from_slice(&name.0);
            out.put_varint(*count);
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, BadState> {
        let mut r = begin(bytes)?;
        let (keys, count) = (names(&mut r)?, r.varint()?);
        if count > MAX_NAMES as u64 {
            return Err(BadState::Field("names of keys"));
        }
        let pair = |_| Ok((KeyName(r.array()?), r.varint()?));
        let volumes = (0..count).map(pair).collect::<Result<_, BadState>>()?;
        end(&r, Self { keys, volumes })
    }
}

pub(crate) fn choice_key() -> Vec<u8> {
    vec![PREFIX, b'k']
}

/// Of the row that who says something writes.
pub(crate) fn spoke_key() -> Vec<u8> {
    vec![PREFIX, b'w']
}

fn spoke(node: NodeId) -> (Vec<u8>, Option<Vec<u8>>) {
    (spoke_key(), Some([&[VERSION][..], &node.0].concat()))
}

pub(super) fn judge_spoke(value: &[u8]) -> Result<(), BadState> {
    let mut r = begin(value)?;
    let _node: [u8; 16] = r.array()?;
    end(&r, ())
}

/// A node says what it has.
pub(crate) fn holding(node: NodeId, held: &Held, before: Option<u64>) -> Change {
    let key = held_key(node);
    (vec![(key.clone(), before)], vec![(key, Some(held.encode())), spoke(node)])
}

/// What a node said that has left is taken back by another one.
pub(crate) fn unsaying(by: NodeId, node: NodeId, time: u64) -> Change {
    (vec![(held_key(node), Some(time))], vec![(held_key(node), None), spoke(by)])
}

/// A key wraps, or is dropped, given that the row stands as it was read, and all that was said: as that of the row for all of it.
pub(crate) fn choosing(choice: &Choice, before: Option<u64>, spoke: Option<u64>) -> Change {
    let guards = vec![(choice_key(), before), (spoke_key(), spoke)];
    (guards, vec![(choice_key(), Some(choice.encode()))])
}

fn held_key(node: NodeId) -> Vec<u8> {
    [&[PREFIX, b'h'][..], &node.0].concat()
}

/// What nodes have said, and the version time of each word.
pub(crate) type Holders = BTreeMap<NodeId, (Held, u64)>;

impl Register {
    /// Which key wraps, as applied here, and the version time of the row; without one, that of the files is first.
    pub(crate) fn choice(&self) -> Result<(Option<Choice>, Option<u64>), RegisterError> {
        let away = |e: String| RegisterError::Away(e);
        let row = self.control.row(&choice_key()).map_err(|e| away(e.to_string()))?;
        let read = row.as_ref().map(|row| Choice::decode(&row.value)).transpose();
        Ok((read.map_err(|e| away(e.to_string()))?, row.map(|row| row.sequence)))
    }

    /// What nodes have, as applied here.
    pub(crate) fn holders(&self) -> Result<Holders, RegisterError> {
        let away = |e: String| RegisterError::Away(e);
        let mut all = Holders::new();
        for pair in self.control.scan(&Range::prefix(&[PREFIX, b'h'])).map_err(|e| away(e.to_string()))? {
            let (key, row) = pair.map_err(|e| away(e.to_string()))?;
            let Some(Ok(node)) = key.get(2..).map(TryInto::try_into) else { continue };
            let held = Held::decode(&row.value).map_err(|e| away(e.to_string()))?;
            all.insert(NodeId(node), (held, row.sequence));
        }
        Ok(all)
    }

    /// Says what this node has.
    pub(crate) async fn hold(&self, held: &Held, before: Option<u64>) -> Result<(), RegisterError> {
        let (guards, rows) = holding(self.local(), held, before);
        self.wish(guards, rows).await
    }

    /// Takes back what a node said that has left, given that it has not said anything else since.
    pub(crate) async fn unsay(&self, node: NodeId, time: u64) -> Result<(), RegisterError> {
        let (guards, rows) = unsaying(self.local(), node, time);
        self.wish(guards, rows).await
    }

    /// The version time of what was said last, as applied here: to be read before what was said.
    pub(crate) fn spoke(&self) -> Result<Option<u64>, RegisterError> {
        let row = self.control.row(&spoke_key()).map_err(|e| RegisterError::Away(e.to_string()))?;
        Ok(row.map(|row| row.sequence))
    }

    /// Has a key wrap, or be dropped, given that all stands as it was read.
    pub(crate) async fn choose(
        &self,
        choice: &Choice,
        before: Option<u64>,
        spoke: Option<u64>,
    ) -> Result<(), RegisterError> {
        let (guards, rows) = choosing(choice, before, spoke);
        self.wish(guards, rows).await?;
        let seen = async {
            while self.choice()?.1 == before {
                tokio::time::sleep(PAUSE).await;
            }
            Ok(())
        };
        let late = || Err(RegisterError::Away("what was written is not seen here yet".to_owned()));
        tokio::time::timeout(SEEN, seen).await.unwrap_or_else(|_| late())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_about_keys_are_what_was_written_or_refused() {
        let [a, b] = [1, 2].map(|byte| KeyName([byte; 8]));
        let choice = Choice { wraps: a, dropped: vec![b] };
        let held = Held { keys: vec![a, b], volumes: BTreeMap::from([(a, 300), (b, 0)]) };
        assert_eq!(Choice::decode(&choice.encode()), Ok(choice.clone()));
        assert_eq!(Held::decode(&held.encode()), Ok(held.clone()));
        assert_eq!(Held::decode(&Held::default().encode()), Ok(Held::default()));
        assert!(Choice::decode(&Choice { wraps: b, ..choice.clone() }.encode()).is_err(), "it was dropped");
        fn whole_or_nothing<T>(row: &[u8], decode: impl Fn(&[u8]) -> Result<T, BadState>) {
            for cut in 0..row.len() {
                assert!(decode(&row[..cut]).is_err(), "cut at {cut}");
            }
            assert!(decode(&[row, &[0]].concat()).is_err());
        }
        let word = held_key(NodeId([1; 16]));
        assert_eq!(super::super::judge(&word, Some(&held.encode())), Ok(()));
        assert_eq!(super::super::judge(&word, None), Ok(()), "it left");
        let (key, value) = spoke(NodeId([1; 16]));
        assert_eq!(super::super::judge(&key, value.as_deref()), Ok(()));
        assert!(
            super::super::judge(&key, Some(&[VERSION])).is_err() && super::super::judge(&key, None).is_err()
        );
        assert!(
            super::super::judge(&word, Some(&[])).is_err() && super::super::judge(&word[..9], None).is_err()
        );
        whole_or_nothing(&choice.encode(), Choice::decode);
        whole_or_nothing(&held.encode(), Held::decode);
    }
}
