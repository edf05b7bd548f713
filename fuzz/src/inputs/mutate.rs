//! Changes of an input: bits, bytes, numbers, pieces of another input, words.

use quarry_engine::io::SplitMix64;

/// No input grows beyond this.
const MAX_INPUT: usize = 256 << 10;

/// Numbers at which parsers stumble.
fn number(rng: &mut SplitMix64, len: usize) -> u64 {
    let len = len as u64;
    match rng.below(8) {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << rng.below(64),
        3 => (1 << rng.below(64)) - 1,
        4 => len,
        5 => len.wrapping_add(rng.below(17)).wrapping_sub(8),
        6 => rng.below(300),
        _ => rng.next_u64(),
    }
}

fn span(rng: &mut SplitMix64, len: usize, most: usize) -> std::ops::Range<usize> {
    let start = rng.index(len + 1);
    let take = rng.index((len - start).min(most) + 1);
    start..start + take
}

/// One change.
pub(super) fn change(rng: &mut SplitMix64, input: &mut Vec<u8>, other: &[u8], words: &[&str]) {
    if input.is_empty() {
        input.push(0);
    }
    let len = input.len();
    match rng.below(if words.is_empty() { 9 } else { 13 }) {
        0 => input[rng.index(len)] ^= 1 << rng.below(8),
        1 => input[rng.index(len)] = rng.next_u64().to_le_bytes()[0],
        2 | 3 => {
            let width = [1, 2, 4, 8][rng.index(4)].min(len);
            // Fields lie near the front and on their own multiples.
            let reach = if rng.chance(700) { len.min(160) } else { len };
            let at = (rng.index(reach) / width * width).min(len - width);
            let bytes = number(rng, len).to_le_bytes();
            input[at..at + width].copy_from_slice(&bytes[..width]);
        }
        4 => {
            let width = [2, 4][rng.index(2)].min(len);
            let at = rng.index(len.min(160)).min(len - width);
            let step = [1, 0xff][rng.index(2)];
            input[at] = input[at].wrapping_add(step);
        }
        5 => input.truncate(rng.index(len + 1)),
        6 => {
            input.drain(span(rng, len, 64));
        }
        7 => {
            let piece = other[span(rng, other.len(), 4096)].to_vec();
            let at = span(rng, len, piece.len());
            input.splice(at, piece);
        }
        8 => {
            let piece = input[span(rng, len, 512)].to_vec();
            let at = rng.index(len + 1);
            input.splice(at..at, piece);
        }
        _ => {
            let word = words[rng.index(words.len())].as_bytes().to_vec();
            let most = if rng.chance(500) { 0 } else { 12 };
            let at = span(rng, len, most);
            input.splice(at, word);
        }
    }
    input.truncate(MAX_INPUT);
}
