//! A snapshot of a volume with several members that is read at another node: where its head is.
//!
//! Invariant: it is only read; and an answer that makes no sense is an error, never bytes.

use bytes::Bytes;
use quarry_engine::object::BoxFuture;

use super::device::{Piece, Stretch, length_of};
use super::error::VolumeError;
use super::serve::{extent, part};
use crate::geometry::SplitError;
use crate::head::Failure;
use crate::nbd::limits::MAX_EXTENTS;
use crate::nbd::{Command, Context, Errno, Outcome};

/// A snapshot that is read at another node.
pub trait Elsewhere: std::fmt::Debug + Send + Sync {
    /// Its size.
    fn bytes(&self) -> u64;
    /// The first data from a byte on, and where it begins; none before `upto`: that, and no data. It may end anywhere.
    fn data_from(&self, from: u64, upto: u64) -> BoxFuture<'_, Result<(u64, Bytes), VolumeError>>;
}

impl dyn Elsewhere {
    /// The bytes of a range, in pieces that cover it in order.
    pub(super) async fn read(&self, offset: u64, length: u64) -> Result<Vec<Piece>, VolumeError> {
        let end = offset.checked_add(length).filter(|end| *end <= self.bytes());
        let end = end.ok_or(SplitError::PastEnd { offset, length, volume_bytes: self.bytes() })?;
        let (mut at, mut pieces) = (offset, Vec::new());
        while at < end {
            let (begins, mut data) = self.data_from(at, end).await?;
            let begins = begins.clamp(at, end);
            if begins > at {
                pieces.push(Piece::Zeroes(begins - at));
            }
            data.truncate(length_of(end - begins));
            at = begins + data.len() as u64;
            if begins < end && data.is_empty() {
                return Err(Failure::Unreadable.into());
            }
            if !data.is_empty() {
                pieces.push(Piece::Data(data));
            }
        }
        Ok(pieces)
    }

    /// What takes space in a range, from its beginning on.
    pub(super) async fn stretches(
        &self,
        offset: u64,
        length: u64,
        most: usize,
    ) -> Result<Vec<Stretch>, VolumeError> {
        // As much as one answer tells: the bytes come with it.
        let (at, data) = self.data_from(offset, offset.saturating_add(length)).await?;
        let pieces = [(at.saturating_sub(offset).min(length), true), (data.len() as u64, false)];
        let mut left = length;
        let mut all = Vec::new();
        for (bytes, hole) in pieces {
            let bytes = bytes.min(left);
            left -= bytes;
            if bytes > 0 {
                all.push(Stretch { bytes, hole });
            }
        }
        all.truncate(most);
        if all.is_empty() {
            return Err(Failure::Unreadable.into());
        }
        Ok(all)
    }

    pub(super) async fn attempt(&self, command: Command) -> Result<Outcome, VolumeError> {
        Ok(match command {
            Command::Read { offset, length } => {
                Outcome::Data(self.read(offset, length.into()).await?.into_iter().map(part).collect())
            }
            Command::Flush | Command::Cache { .. } => Outcome::Done,
            Command::BlockStatus { offset, length, contexts, one: _ } => {
                let mut all = Vec::with_capacity(contexts.len());
                for context in &contexts {
                    if matches!(context, Context::Difference(_)) {
                        return Ok(Outcome::Failed(Errno::Invalid));
                    }
                    let stretches = self.stretches(offset, length, MAX_EXTENTS).await?;
                    all.push(stretches.into_iter().map(|stretch| extent(context, stretch)).collect());
                }
                Outcome::Status(all)
            }
            Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. } => {
                Outcome::Failed(Errno::Permission)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;

    use super::*;
    use crate::nbd::Part;
    use crate::store::Attached;

    /// Data at 10 to 20 and 30 to 34, told in pieces of at most 6; with a fault: always that there is more, and none of it.
    #[derive(Debug)]
    struct Snapshot {
        faulty: bool,
    }

    fn byte(at: u64) -> u8 {
        u8::try_from(at).unwrap()
    }

    impl Elsewhere for Snapshot {
        fn bytes(&self) -> u64 {
            50
        }

        fn data_from(&self, from: u64, upto: u64) -> BoxFuture<'_, Result<(u64, Bytes), VolumeError>> {
            if self.faulty {
                return Box::pin(std::future::ready(Ok((from, Bytes::new()))));
            }
            let data = (from..upto).filter(|at| (10..20).contains(at) || (30..34).contains(at));
            let begins = data.clone().next().unwrap_or(upto);
            let bytes: Vec<u8> =
                data.zip(begins..begins + 6).filter(|(at, n)| at == n).map(|(at, _)| byte(at)).collect();
            Box::pin(std::future::ready(Ok((begins, bytes.into()))))
        }
    }

    fn done(snapshot: &Attached, command: Command) -> Outcome {
        snapshot.carry_out(command).now_or_never().expect("nothing waits")
    }

    #[test]
    fn what_is_read_elsewhere_covers_what_was_asked_for() {
        let snapshot = Attached::Elsewhere(Arc::new(Snapshot { faulty: false }));
        let at = |at: u64| if (10..20).contains(&at) || (30..34).contains(&at) { byte(at) } else { 0 };
        for (offset, length) in [(0, 50), (0, 10), (12, 3), (15, 17), (33, 17), (49, 1)] {
            let whole = snapshot.read_whole(offset, length).now_or_never().unwrap().unwrap();
            assert_eq!(whole, (offset..offset + length).map(at).collect::<Vec<u8>>(), "{offset} {length}");
        }
        assert!(snapshot.read(45, 6).now_or_never().unwrap().is_err(), "past its end");
        let Outcome::Data(parts) = done(&snapshot, Command::Read { offset: 8, length: 4 }) else { panic!() };
        assert!(matches!(&parts[..], [Part::Hole(2), Part::Data(data)] if data[..] == [10, 11]));
        let status = |offset, length| {
            let contexts = vec![Context::Allocation];
            match done(&snapshot, Command::BlockStatus { offset, length, contexts, one: false }) {
                Outcome::Status(all) => all[0].iter().map(|extent| (extent.length, extent.status)).collect(),
                other => panic!("{other:?}"),
            }
        };
        let told: [Vec<(u64, u32)>; 3] = [status(0, 50), status(12, 3), status(40, 10)];
        assert_eq!(told, [vec![(10, 3), (6, 0)], vec![(3, 0)], vec![(10, 3)]]);
        let write = Command::Write { offset: 0, data: Bytes::from_static(b"x"), durable: false };
        assert!(matches!(done(&snapshot, write), Outcome::Failed(Errno::Permission)));
    }

    #[test]
    fn an_answer_without_bytes_is_no_zeroes() {
        let snapshot = Attached::Elsewhere(Arc::new(Snapshot { faulty: true }));
        let read = done(&snapshot, Command::Read { offset: 0, length: 4 });
        assert!(matches!(read, Outcome::Failed(Errno::Io)), "{read:?}");
        let (contexts, one) = (vec![Context::Allocation], false);
        let status = done(&snapshot, Command::BlockStatus { offset: 0, length: 4, contexts, one });
        assert!(matches!(status, Outcome::Failed(Errno::Io)), "{status:?}");
    }
}
