//! From names to partitions.

/// What decides where an object lies.
pub type PathHash = [u8; 16];

/// Sets these hashes apart from every other use of BLAKE3. Never change it: every stored object moves.
const DOMAIN: &[u8] = b"quarry path hash v1\0";

/// Hash of an object's full name: BLAKE3 over the domain and the three parts, each after its length (64-bit,
/// little-endian), cut to 16 bytes. Lengths go first so that no two paths spell the same input.
#[must_use]
pub fn path_hash(account: &str, container: &str, object: &str) -> PathHash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(DOMAIN);
    for part in [account, container, object] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let mut hash = [0; 16];
    hasher.finalize_xof().fill(&mut hash);
    hash
}

/// The partition of a hash: its `part_power` top bits, at most 32.
#[must_use]
pub fn partition_of(hash: &PathHash, part_power: u8) -> u32 {
    assert!(part_power <= 32, "a partition has 32 bits");
    let top = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
    top.checked_shr(32 - u32::from(part_power)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_hash_never_changes() {
        let golden = path_hash("AUTH_test", "photos", "2026/a.jpg");
        let expected = [6, 48, 63, 117, 239, 231, 251, 126, 187, 159, 106, 129, 179, 226, 151, 213];
        assert_eq!(golden, expected);
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        assert_ne!(path_hash("a", "bc", "d"), path_hash("ab", "c", "d"));
        assert_ne!(path_hash("a", "b", "cd"), path_hash("a", "bc", "d"));
        assert_ne!(path_hash("a", "", "b"), path_hash("a", "b", ""));
    }

    #[test]
    fn a_partition_is_the_top_bits() {
        let mut hash = [0xff; 16];
        hash[..4].copy_from_slice(&0xa5c3_0001_u32.to_be_bytes());
        assert_eq!(partition_of(&hash, 0), 0);
        assert_eq!(partition_of(&hash, 1), 1);
        assert_eq!(partition_of(&hash, 8), 0xa5);
        assert_eq!(partition_of(&hash, 16), 0xa5c3);
        assert_eq!(partition_of(&hash, 32), 0xa5c3_0001);
    }
}
