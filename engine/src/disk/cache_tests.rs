use super::*;
use crate::disk::format::record::{DeviceId, Kind, NewRecord, Parts};

const DEVICE: DeviceId = DeviceId([7; 16]);

fn record(key: &[u8], data: usize) -> StoredRecord {
    let data = vec![key[0]; data].into();
    let parts = Parts { kind: Kind::Chunk, deleted: false, sequence: 1, number: 0, key, meta: &[], data };
    let new = NewRecord::new(DEVICE, parts);
    let bytes = [new.head_bytes(), new.data()].concat();
    StoredRecord::verify(DEVICE, bytes.into()).unwrap()
}

fn at(offset: u32, record: &StoredRecord) -> Location {
    Location { segment: 3, offset, len: u32::try_from(record.weight()).unwrap() }
}

#[test]
fn a_small_record_is_kept_at_once_and_only_for_its_use_of_the_segment() {
    let cache = Cache::new(CacheBytes { small: 1 << 20, large: 1 << 20 });
    let small = record(b"a", 4096);
    let at = at(0, &small);
    cache.put(9, at, &small);
    assert_eq!(cache.get(9, at).unwrap().data(), small.data());
    assert!(cache.get(10, at).is_none(), "the segment was used anew");
}

#[test]
fn a_large_record_is_kept_when_it_is_read_again() {
    let cache = Cache::new(CacheBytes { small: 1 << 20, large: 8 << 20 });
    let large = record(b"a", 1 << 20);
    let at = at(0, &large);
    cache.put(9, at, &large);
    assert!(cache.get(9, at).is_none());
    cache.put(9, at, &large);
    let kept = cache.get(9, at).unwrap();
    assert_eq!(kept.data(), large.data());
    assert_ne!(kept.data().as_ptr(), large.data().as_ptr(), "the buffer of the read is not held");
}

#[test]
fn one_pass_over_large_records_pushes_nothing_out() {
    let cache = Cache::new(CacheBytes { small: 1 << 20, large: 4 << 20 });
    let kept = record(b"k", 1 << 20);
    let place = at(0, &kept);
    for _ in 0..2 {
        cache.put(9, place, &kept);
    }
    for n in 1..100 {
        let other = record(b"o", 1 << 20);
        cache.put(9, at(n * 8, &other), &other);
    }
    assert!(cache.get(9, place).is_some());
}

#[test]
fn large_records_stay_within_their_bound() {
    let cache = Cache::new(CacheBytes { small: 0, large: 4 << 20 });
    for n in 0..50 {
        let other = record(b"o", 1 << 20);
        for _ in 0..2 {
            cache.put(9, at(n * 8, &other), &other);
        }
    }
    assert!(cache.large.weight() <= 4 << 20);
    assert!(cache.large.len() >= 2);
}

#[test]
fn without_a_bound_nothing_large_is_kept() {
    let cache = Cache::new(CacheBytes::small(1 << 20));
    let large = record(b"a", 1 << 20);
    let at = at(0, &large);
    for _ in 0..3 {
        cache.put(9, at, &large);
    }
    assert!(cache.get(9, at).is_none());
}
