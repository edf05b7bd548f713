//! Stripes cut into fragments, and put together again from any k of them. Pure.
//!
//! A stripe is a chunk of the body; its first k fragments are its bytes in order, the last ones filled up with zeroes, and m more
//! are made from these.
//!
//! Invariant: any k different fragments give the stripe; fewer give nothing.
//! Invariant: the bytes of a fragment never change: they lie on disks, and others are made from them.

use bytes::{Bytes, BytesMut};
use quarry_ring::PathHash;

use super::policy::Code;
use super::{Error, Result};
use crate::catalog::{DataId, ObjectMeta};

/// What of a version lies on a device, where its policy keeps fragments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// How the body was cut.
    pub code: Code,
    /// Which fragment of each stripe is here.
    pub index: u8,
    /// Names the body; the last byte is 0.
    pub body: DataId,
}

impl Fragment {
    /// Key of the chunks that hold it.
    #[must_use]
    pub fn data_id(&self) -> DataId {
        let mut id = self.body;
        id[id.len() - 1] = self.index;
        id
    }

    /// Whether the device has the whole body, where that is small enough to lie in the record: m + 1 devices have it.
    #[must_use]
    pub fn has_small(&self) -> bool {
        self.index <= self.code.parity
    }
}

/// Bytes of each fragment of a stripe.
pub(crate) fn fragment_len(code: Code, stripe: u64) -> u64 {
    stripe.div_ceil(u64::from(code.data)).next_multiple_of(2)
}

fn broken(e: impl std::fmt::Display) -> Error {
    Error::Corrupt { what: format!("fragments: {e}") }
}

/// All fragments of a stripe.
pub(crate) fn cut(code: Code, stripe: &Bytes) -> Result<Vec<Bytes>> {
    let len = usize::try_from(fragment_len(code, stripe.len() as u64)).map_err(broken)?;
    let mut fragments: Vec<Bytes> = (0..code.k())
        .map(|n| {
            let (from, to) = ((n * len).min(stripe.len()), ((n + 1) * len).min(stripe.len()));
            let part = stripe.slice(from..to);
            if part.len() == len {
                return part;
            }
            let mut filled = BytesMut::zeroed(len);
            filled[..part.len()].copy_from_slice(&part);
            filled.freeze()
        })
        .collect();
    let more = reed_solomon_simd::encode(code.k(), code.n() - code.k(), &fragments).map_err(broken)?;
    fragments.extend(more.into_iter().map(Bytes::from));
    Ok(fragments)
}

/// A stripe of so many bytes, from k different fragments of it with their numbers.
pub(crate) fn join(code: Code, stripe: u64, parts: &[(u8, Bytes)]) -> Result<Bytes> {
    let stripe = usize::try_from(stripe).map_err(broken)?;
    let mut data: Vec<Option<&Bytes>> = vec![None; code.k()];
    for (index, part) in parts {
        if let Some(slot) = data.get_mut(usize::from(*index)) {
            *slot = Some(part);
        }
    }
    let mut out = BytesMut::with_capacity(stripe + 2 * code.k());
    if data.iter().all(Option::is_some) {
        data.into_iter().flatten().for_each(|part| out.extend_from_slice(part));
    } else {
        let at = |index: &u8| usize::from(*index);
        let own =
            parts.iter().filter(|(index, _)| at(index) < code.k()).map(|(index, part)| (at(index), part));
        let made = parts.iter().filter(|(index, _)| (code.k()..code.n()).contains(&at(index)));
        let made = made.map(|(index, part)| (at(index) - code.k(), part));
        let found = reed_solomon_simd::decode(code.k(), code.n() - code.k(), own, made).map_err(broken)?;
        for (n, part) in data.into_iter().enumerate() {
            match part {
                Some(part) => out.extend_from_slice(part),
                None => out.extend_from_slice(found.get(&n).ok_or_else(|| broken("too few"))?),
            }
        }
    }
    if out.len() < stripe {
        return Err(broken("too short"));
    }
    out.truncate(stripe);
    Ok(out.freeze())
}

/// Bytes of a stripe of a version.
pub(crate) fn stripe_len(meta: &ObjectMeta, number: u64) -> u64 {
    let size = u64::from(meta.chunk_size);
    meta.info.size.saturating_sub(number.saturating_mul(size)).min(size)
}

/// A version as another device has it: with another fragment.
pub(crate) fn with_index(meta: &ObjectMeta, index: u8) -> ObjectMeta {
    let mut meta = meta.clone();
    if let Some(fragment) = &mut meta.fragment {
        fragment.index = index;
        if let Some(chunked) = &mut meta.chunked {
            chunked.data_id = fragment.data_id();
        }
    }
    meta
}

/// Whether two devices have fragments of one body.
pub(crate) fn same_body(one: &ObjectMeta, other: &ObjectMeta) -> bool {
    let of = |meta: &ObjectMeta| {
        let fragment = meta.fragment.map(|fragment| (fragment.code, fragment.body));
        (fragment, meta.chunked.map(|chunked| chunked.count), meta.chunk_size, meta.info.size)
    };
    of(one) == of(other)
}

/// Whether a version lies under this key: that of its path, or of its body.
pub(crate) fn is_key_of(meta: &ObjectMeta, key: &PathHash) -> bool {
    let policy = crate::catalog::policy_of(key);
    super::key_of(&meta.path, policy, meta.fragment.as_ref().map(|fragment| &fragment.body)) == *key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::SplitMix64;

    fn bytes(len: usize) -> Bytes {
        let mut out = vec![0; len];
        SplitMix64::new(len as u64).fill(&mut out);
        out.into()
    }

    /// Every subset of k of k+m fragments.
    fn subsets(code: Code) -> impl Iterator<Item = Vec<u8>> {
        let n = u32::try_from(code.n()).unwrap();
        let k = u32::from(code.data);
        (0..1_u32 << n).filter(move |bits| bits.count_ones() == k).map(move |bits| {
            (0..n).filter(|i| bits >> i & 1 == 1).map(|i| u8::try_from(i).unwrap()).collect()
        })
    }

    #[test]
    fn any_k_fragments_give_the_stripe() {
        for (data, parity) in [(1, 1), (2, 1), (3, 2), (4, 2), (5, 5), (8, 3)] {
            let code = Code::new(data, parity).unwrap();
            for len in [1, 2, 7, 100, 4097] {
                let stripe = bytes(len);
                let all = cut(code, &stripe).unwrap();
                let each = fragment_len(code, len as u64);
                assert!(all.len() == code.n() && all.iter().all(|part| part.len() as u64 == each));
                for subset in subsets(code) {
                    let parts: Vec<_> = subset.iter().map(|i| (*i, all[usize::from(*i)].clone())).collect();
                    assert!(join(code, len as u64, &parts).unwrap() == stripe, "{code:?} {len} {subset:?}");
                }
            }
        }
    }

    #[test]
    fn fewer_than_k_fragments_give_nothing() {
        let code = Code::new(4, 2).unwrap();
        let all = cut(code, &bytes(1000)).unwrap();
        for parts in [vec![(0, all[0].clone()), (5, all[5].clone()), (4, all[4].clone())], vec![]] {
            assert!(join(code, 1000, &parts).is_err());
        }
    }

    #[test]
    fn fragments_have_these_bytes_for_ever() {
        let code = Code::new(4, 2).unwrap();
        let hashes: Vec<String> = cut(code, &bytes(1 << 20))
            .unwrap()
            .iter()
            .map(|part| hex::encode(&blake3::hash(part).as_bytes()[..4]))
            .collect();
        assert_eq!(hashes, GOLDEN);
    }

    const GOLDEN: [&str; 6] = ["0e6975d5", "3b526847", "5506f35e", "8edf585e", "644f9c4d", "772b5058"];
}
