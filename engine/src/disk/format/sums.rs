//! CRCs of the blocks of some data, taken once. The CRC of any run of these blocks, whatever comes before it, follows from them: a write
//! of a volume has its checksums by block and by span, and to go through a mebibyte costs as much processor as to write it.
//!
//! Invariant: what follows from the CRCs of blocks is the CRC of the bytes themselves.

use std::ops::Range;

use crate::io::BLOCK;

/// What a block of zeroes behind some bytes makes of their CRC, by its four bytes.
const BEHIND: [[u32; 256]; 4] = behind();

/// `a` times `b` modulo the polynomial of CRC-32 (IEEE), whose highest power is the lowest bit.
const fn times(a: u32, mut b: u32) -> u32 {
    let (mut product, mut bit) = (0, 1 << 31);
    while bit > 0 {
        if a & bit > 0 {
            product ^= b;
        }
        b = if b & 1 > 0 { (b >> 1) ^ 0xedb8_8320 } else { b >> 1 };
        bit >>= 1;
    }
    product
}

const fn behind() -> [[u32; 256]; 4] {
    // x, and squared until it stands for the bits of a block.
    let (mut power, mut bits) = (1 << 30, 1);
    while bits < BLOCK * 8 {
        power = times(power, power);
        bits *= 2;
    }
    let mut table = [[0; 256]; 4];
    let mut byte: u32 = 0;
    while byte < 256 {
        let mut place = 0;
        while place < 4 {
            table[place][byte as usize] = times(power, byte << (8 * place));
            place += 1;
        }
        byte += 1;
    }
    table
}

const _: () = assert!(BLOCK.is_power_of_two());

/// The CRC-32 of each block of some data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sums(Vec<u32>);

impl Sums {
    /// Of whole blocks. Panics where there are others: our bug.
    #[must_use]
    pub fn of(data: &[u8]) -> Self {
        let (blocks, rest) = data.as_chunks::<BLOCK>();
        assert!(rest.is_empty(), "{} bytes that are no whole blocks", data.len());
        Self(blocks.iter().map(|block| crc32fast::hash(block)).collect())
    }

    /// How many blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.0.len()
    }

    /// The CRC of bytes whose own is `before`, and of a run of blocks behind them.
    #[must_use]
    pub fn behind(&self, before: u32, blocks: Range<usize>) -> u32 {
        self.0[blocks].iter().fold(before, |crc, sum| {
            let bytes = crc.to_le_bytes().into_iter().zip(&BEHIND);
            bytes.fold(*sum, |all, (byte, table)| all ^ table[usize::from(byte)])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::SplitMix64;

    #[test]
    fn what_follows_from_the_sums_is_the_sum_of_the_bytes() {
        let mut data = vec![0; 21 * BLOCK];
        SplitMix64::new(3).fill(&mut data);
        // Zeroes have the sums that are most easily wrong.
        data[2 * BLOCK..4 * BLOCK].fill(0);
        let sums = Sums::of(&data);
        assert_eq!(sums.blocks(), 21);
        for before in [&b""[..], b"x", b"what comes before"] {
            for (from, to) in [(0, 0), (0, 1), (3, 4), (2, 18), (0, 21), (20, 21)] {
                let whole = [before, &data[from * BLOCK..to * BLOCK]].concat();
                let crc = sums.behind(crc32fast::hash(before), from..to);
                assert_eq!(crc, crc32fast::hash(&whole), "{from}..{to}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "no whole blocks")]
    fn a_part_of_a_block_is_our_bug() {
        let _ = Sums::of(&[0; BLOCK + 1]);
    }
}
