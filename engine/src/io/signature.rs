//! Recognises what other systems left on a device, so that formatting never destroys it unasked.
//!
//! Invariant: pure; looks at bytes only, accepts any length, never panics.
//! Magic numbers and offsets are facts from each format's own documentation: the kernel's
//! Documentation/filesystems (ext4, XFS, btrfs "on-disk format", squashfs, ISO 9660 = ECMA-119) and uapi headers (swap,
//! md_p.h, bcache), the LVM2 and cryptsetup LUKS format documents, the UEFI specification (GPT), the ZFS on-disk format
//! document, Microsoft's FAT and NTFS descriptions, and Ceph's BlueStore label.

/// Bytes from the start, and from the end, of a device that hold every signature known here.
pub const SIGNATURE_SPAN: usize = 128 << 10;

/// One magic number at a fixed offset.
struct Magic {
    name: &'static str,
    offset: usize,
    bytes: &'static [u8],
}

const fn magic(name: &'static str, offset: usize, bytes: &'static [u8]) -> Magic {
    Magic { name, offset, bytes }
}

/// Order matters where formats nest: a volume manager before what lies inside it, a boot sector last.
const MAGICS: &[Magic] = &[
    magic("Ceph BlueStore", 0, b"bluestore block device"),
    magic("LUKS", 0, b"LUKS\xba\xbe"),
    magic("LUKS (second header)", 16 << 10, b"SKUL\xba\xbe"),
    magic("LVM2 physical volume", 0, b"LABELONE"),
    magic("LVM2 physical volume", 512, b"LABELONE"),
    magic("LVM2 physical volume", 1024, b"LABELONE"),
    magic("LVM2 physical volume", 1536, b"LABELONE"),
    magic("VDO volume", 0, b"dmvdo001"),
    magic("Linux MD RAID", 0, &MD),
    magic("Linux MD RAID", 4096, &MD),
    magic("bcache", 4096 + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
    magic("bcachefs", 4096 + 24, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"),
    magic("XFS", 0, b"XFSB"),
    magic("btrfs", (64 << 10) + 64, b"_BHRfS_M"),
    magic("squashfs", 0, b"hsqs"),
    magic("F2FS", 1024, b"\x10\x20\xf5\xf2"),
    magic("EROFS", 1024, b"\xe2\xe1\xf5\xe0"),
    magic("JFS", 32 << 10, b"JFS1"),
    magic("ReiserFS", (64 << 10) + 52, b"ReIsEr"),
    magic("ISO 9660", (32 << 10) + 1, b"CD001"),
    magic("Linux swap", 4096 - 10, b"SWAPSPACE2"),
    magic("Linux swap", 4096 - 10, b"SWAP-SPACE"),
    magic("Linux swap", (16 << 10) - 10, b"SWAPSPACE2"),
    magic("Linux swap", (64 << 10) - 10, b"SWAPSPACE2"),
    magic("NTFS", 3, b"NTFS    "),
    magic("exFAT", 3, b"EXFAT   "),
    magic("GPT partition table", 512, b"EFI PART"),
    magic("GPT partition table", 4096, b"EFI PART"),
    magic("FAT", 54, b"FAT12   "),
    magic("FAT", 54, b"FAT16   "),
    magic("FAT", 54, b"FAT     "),
    magic("FAT", 82, b"FAT32   "),
    magic("MBR partition table or boot sector", 510, b"\x55\xaa"),
];

/// 0xa92b4efc, little-endian (0.90 is native-endian; big-endian machines are out of scope).
const MD: [u8; 4] = 0xa92b_4efc_u32.to_le_bytes();
const ZFS_UBERBLOCK: u64 = 0x00ba_b10c;

/// What the first and last [`SIGNATURE_SPAN`] bytes of a device show, if anything. `tail` ends where the device ends.
///
/// Meant for a device without a superblock of ours: what clients store can look like anything, at the tail above all.
#[must_use]
pub fn foreign_signature(head: &[u8], tail: &[u8]) -> Option<&'static str> {
    ext(head)
        .or_else(|| zfs_label(head).then_some("ZFS"))
        .or_else(|| MAGICS.iter().find(|magic| has(head, magic.offset, magic.bytes)).map(|magic| magic.name))
        .or_else(|| in_tail(tail))
}

fn has(bytes: &[u8], offset: usize, wanted: &[u8]) -> bool {
    bytes.get(offset..offset + wanted.len()) == Some(wanted)
}

fn le16(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|raw| u16::from_le_bytes(*raw))
}

fn le32(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|raw| u32::from_le_bytes(*raw))
}

/// The superblock at 1024: magic at 0x38, compatible features at 0x5C, incompatible ones at 0x60.
fn ext(head: &[u8]) -> Option<&'static str> {
    const MAGIC: u16 = 0xef53;
    const HAS_JOURNAL: u32 = 0x4;
    const EXTENTS_64BIT_FLEX: u32 = 0x40 | 0x80 | 0x200;
    if le16(head, 1024 + 0x38)? != MAGIC {
        return None;
    }
    let (compatible, incompatible) = (le32(head, 1024 + 0x5c)?, le32(head, 1024 + 0x60)?);
    Some(if incompatible & EXTENTS_64BIT_FLEX != 0 {
        "ext4"
    } else if compatible & HAS_JOURNAL != 0 {
        "ext3"
    } else {
        "ext2"
    })
}

/// The first label's name-value list starts at 16 KiB: XDR encoding, then keys in clear text.
fn zfs_label(head: &[u8]) -> bool {
    let Some(list) = head.get(16 << 10..) else { return false };
    list.first() == Some(&1) && list.windows(9).any(|window| window == b"pool_guid")
}

/// Formats that (also) sign the end: MD 0.90 and 1.0, the GPT's second copy, the fourth ZFS label.
fn in_tail(tail: &[u8]) -> Option<&'static str> {
    let md = |block: &[u8]| has(block, 0, &MD) && le32(block, 4).is_some_and(|major| major <= 1);
    if tail.rchunks_exact(4096).any(md) {
        return Some("Linux MD RAID");
    }
    let gpt = |sector: &[u8]| has(sector, 0, b"EFI PART");
    if tail.rchunks_exact(512).next().is_some_and(gpt) || tail.rchunks_exact(4096).next().is_some_and(gpt) {
        return Some("GPT partition table (second copy)");
    }
    let uberblock = |block: &[u8]| {
        has(block, 0, &ZFS_UBERBLOCK.to_le_bytes()) || has(block, 0, &ZFS_UBERBLOCK.to_be_bytes())
    };
    tail.rchunks_exact(1024).any(uberblock).then_some("ZFS")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn empty_short_and_zero_devices_are_nobodys() {
        let zeros = vec![0; SIGNATURE_SPAN];
        assert_eq!(foreign_signature(&zeros, &zeros), None);
        for len in [0, 1, 511, 512, 1081, 4096] {
            assert_eq!(foreign_signature(&zeros[..len], &zeros[..len]), None);
        }
    }

    #[test]
    fn every_magic_is_found_where_it_belongs_and_nowhere_else() {
        let zeros = vec![0; SIGNATURE_SPAN];
        for magic in MAGICS {
            let mut head = zeros.clone();
            head[magic.offset..][..magic.bytes.len()].copy_from_slice(magic.bytes);
            assert_eq!(foreign_signature(&head, &zeros), Some(magic.name));
            head.rotate_right(1);
            assert_eq!(foreign_signature(&head, &zeros), None, "{} one byte off", magic.name);
            assert!(magic.offset + magic.bytes.len() <= SIGNATURE_SPAN);
        }
    }

    #[test]
    fn ext_versions_are_told_apart_by_their_features() {
        for (compatible, incompatible, name) in [(0, 0, "ext2"), (4, 2, "ext3"), (4, 0x42, "ext4")] {
            let mut head = vec![0; 4096];
            head[1080..1082].copy_from_slice(&[0x53, 0xef]);
            head[1024 + 0x5c] = compatible;
            head[1024 + 0x60] = incompatible;
            assert_eq!(foreign_signature(&head, &[]), Some(name));
        }
    }

    #[test]
    fn zfs_and_the_formats_that_sign_the_end_are_found() {
        let zeros = vec![0; SIGNATURE_SPAN];
        let mut head = zeros.clone();
        head[16 << 10] = 1;
        head[(16 << 10) + 100..][..9].copy_from_slice(b"pool_guid");
        assert_eq!(foreign_signature(&head, &zeros), Some("ZFS"));

        let planted = |offset_from_end: usize, bytes: &[u8]| {
            let mut tail = zeros.clone();
            tail[SIGNATURE_SPAN - offset_from_end..][..bytes.len()].copy_from_slice(bytes);
            foreign_signature(&zeros, &tail)
        };
        assert_eq!(planted(8192, &[0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0]), Some("Linux MD RAID"));
        assert_eq!(planted(65536, &[0xfc, 0x4e, 0x2b, 0xa9, 0, 0, 0, 0]), Some("Linux MD RAID"));
        assert_eq!(planted(512, b"EFI PART"), Some("GPT partition table (second copy)"));
        assert_eq!(planted(3072, &0x00ba_b10c_u64.to_le_bytes()), Some("ZFS"));
    }

    /// Real images by real tools; a tool that is not installed is skipped, and says so.
    #[test]
    fn images_made_by_the_real_tools_are_recognised() {
        let cases: [(&[&str], &str); 9] = [
            (&["mkfs.ext4", "-q", "-F"], "ext4"),
            (&["mkfs.ext3", "-q", "-F"], "ext3"),
            (&["mkfs.ext2", "-q", "-F"], "ext2"),
            (&["mkfs.xfs", "-q", "-f"], "XFS"),
            (&["mkswap", "-q"], "Linux swap"),
            (&["mkfs.btrfs", "-q", "-f"], "btrfs"),
            (&["mkfs.vfat"], "FAT"),
            (&["mkfs.ntfs", "-q", "-F", "-Q"], "NTFS"),
            (&["cryptsetup", "luksFormat", "-q", "--key-file=/dev/urandom", "--keyfile-size=16"], "LUKS"),
        ];
        let dir = tempfile::tempdir().unwrap();
        for (command, name) in cases {
            let path = dir.path().join("image");
            std::fs::write(&path, b"").unwrap();
            std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(400 << 20).unwrap();
            let ran = Command::new(command[0]).args(&command[1..]).arg(&path).output();
            if !ran.as_ref().is_ok_and(|output| output.status.success()) {
                println!("skipped: {} is not usable here", command[0]);
                continue;
            }
            let image = std::fs::read(&path).unwrap();
            let (head, tail) = (&image[..SIGNATURE_SPAN], &image[image.len() - SIGNATURE_SPAN..]);
            assert_eq!(foreign_signature(head, tail), Some(name), "{command:?}");
        }
    }
}
