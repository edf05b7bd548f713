//! Real files of Swift, and what becomes of damaged ones.

use super::*;

const SMALL_BUILDER: &[u8] = include_bytes!("fixtures/small.builder");
const SMALL_RING: &[u8] = include_bytes!("fixtures/small.ring.gz");
const HOLE_BUILDER: &[u8] = include_bytes!("fixtures/hole.builder");
const HOLE_RING: &[u8] = include_bytes!("fixtures/hole.ring.gz");
const HOUR: u32 = 500_000;

fn imported(bytes: &[u8]) -> Builder {
    import(bytes, Class::Ssd, HOUR).unwrap()
}

/// The table by device ids, a line for each replica, as Swift printed it.
fn table(builder: &Builder) -> String {
    let id = |entry: &u16| builder.members()[usize::from(*entry)].device.id.to_string();
    let row = |row: &Vec<u16>| row.iter().map(id).collect::<Vec<_>>().join(" ") + "\n";
    builder.parts().rows.iter().map(row).collect()
}

#[test]
fn a_builder_keeps_its_table_settings_and_pending_changes() {
    let mut builder = imported(SMALL_BUILDER);
    assert_eq!(table(&builder), include_str!("fixtures/small.txt"));
    let settings = builder.settings();
    assert_eq!((settings.part_power, settings.replicas.hundredths()), (5, 250));
    assert_eq!((settings.min_part_hours, settings.overload.hundredths()), (3, 1500));
    let weights: Vec<_> = builder.members().iter().map(|member| member.device.weight).collect();
    assert_eq!(weights, [10050, 5025, 10050, 0, 10050, 10050], "hundredths, the least that are whole");
    assert_eq!(builder.members()[4].label, "10.0.0.3:6200/sd1");
    let removed: Vec<_> = builder.members().iter().map(|member| member.removed).collect();
    assert_eq!(removed, [false, false, false, true, false, false]);
    assert_eq!(builder.pending().count(), 1);
    let nodes: Vec<_> = builder.members().iter().map(|member| member.device.node).collect();
    assert_eq!(nodes, [0, 0, 1, 1, 2, 2]);
    let done = builder.rebalance(HOUR).unwrap();
    assert_eq!(builder.members().len(), 5);
    assert!(done.moved > 0 && done.after.crowded == 0);
}

#[test]
fn a_ring_file_gives_the_same_table() {
    let builder = imported(SMALL_RING);
    assert_eq!(table(&builder), include_str!("fixtures/small.txt"));
    assert_eq!(builder.settings().replicas.hundredths(), 250);
    assert!(builder.members().iter().all(|member| member.device.class == Class::Ssd));
    let ring = builder.ring().unwrap().expect("it has a table");
    assert_eq!((ring.part_power(), ring.lookup(31).count()), (5, 2));
}

#[test]
fn missing_ids_stay_missing() {
    for bytes in [HOLE_BUILDER, HOLE_RING] {
        let mut builder = imported(bytes);
        assert_eq!(table(&builder), include_str!("fixtures/hole.txt"));
        let ids: Vec<_> = builder.members().iter().map(|member| member.device.id).collect();
        assert_eq!(ids, [0, 1, 3, 4, 5, 6]);
        assert_eq!(builder.members()[5].label, "fd00::1:6200/nvme0");
        let device = builder.members()[0].device.clone();
        assert_eq!(builder.add(&device, "", HOUR), Ok(7));
        builder.rebalance(HOUR).unwrap();
    }
}

#[test]
fn hours_of_the_last_moves_are_kept() {
    let builder = imported(SMALL_BUILDER);
    let moved: Vec<_> = builder.last_moved().iter().copied().filter(|&hour| hour > 0).collect();
    assert!(moved.iter().all(|&hour| (400_000..600_000).contains(&hour)), "{moved:?}");
    assert!(!moved.is_empty());
}

#[test]
fn a_builder_without_a_table_is_one_without_a_ring() {
    let builder = imported(include_bytes!("fixtures/empty.builder"));
    assert_eq!((builder.version(), builder.ring().unwrap()), (0, None));
}

#[test]
fn what_is_not_read_is_said() {
    let import = |bytes: &[u8]| import(bytes, Class::Hdd, HOUR).unwrap_err();
    assert_eq!(import(include_bytes!("fixtures/hole-v2.ring.gz")), GzipError::Version(2).into());
    assert_eq!(import(b"QRYRING\n"), ImportError::Unknown);
    assert_eq!(import(b""), ImportError::Unknown);
    assert_eq!(import(&SMALL_RING[..100]), GzipError::Damaged.into());
    assert!(matches!(import(&SMALL_BUILDER[..900]), ImportError::Pickle(_)));
}

#[test]
fn damage_never_panics_and_never_passes_the_checksum_of_gzip() {
    let sound = imported(SMALL_RING);
    for at in 0..SMALL_RING.len() {
        for bit in 0..8 {
            let mut damaged = SMALL_RING.to_vec();
            damaged[at] ^= 1 << bit;
            // Not every bit of gzip carries content: times, hints and codes that are not used do not.
            if let Ok(builder) = import(&damaged, Class::Ssd, HOUR) {
                assert_eq!(builder, sound, "byte {at} bit {bit}");
            }
        }
    }
    for at in 0..SMALL_BUILDER.len() {
        for value in [0, 1, 0x28, 0x2e, 0x52, 0x5d, 0x68, 0x7d, 0x7f, 0x80, 0xff] {
            let mut damaged = SMALL_BUILDER.to_vec();
            damaged[at] = value;
            if let Ok(mut builder) = import(&damaged, Class::Ssd, HOUR) {
                let _result = builder.rebalance(HOUR);
            }
        }
    }
}
