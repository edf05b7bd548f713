//! Devices: ranges of any alignment, discards, snapshots, names.

use bytes::Bytes;
use quarry_engine::block::{VolumeId, audit};
use quarry_engine::disk::DiskError;
use quarry_engine::io::SplitMix64;

use super::rig::{Rig, SEGMENT, SEGMENTS, VOLUME, label};
use crate::member::Refusal;
use crate::nbd::{Command, Context, Errno, Extent, Outcome, Part};
use crate::store::{Device, Stretch, VolumeError};

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    SplitMix64::new(seed).fill(&mut bytes);
    bytes
}

fn write(rig: &mut Rig, device: &Device, offset: u64, bytes: &[u8]) {
    rig.run(device.write_through(offset, Bytes::copy_from_slice(bytes))).unwrap();
}

#[test]
fn ranges_of_any_alignment_agree_with_a_model() {
    let mut rig = Rig::new(1);
    rig.create("vol", 1);
    let device = rig.attach("vol");
    let (base, span) = ((1 << 20) - 40_000, 200_000_usize);
    let mut model = vec![0; span];
    let mut rng = SplitMix64::new(1);
    for step in 0..300 {
        let length = [1, 511, 4096, 1 + rng.index(60_000)][rng.index(4)];
        let at = rng.index(span - length);
        let offset = base + at as u64;
        let range = at..at + length;
        match rng.below(6) {
            0 | 1 => {
                let bytes = noise(step, length);
                write(&mut rig, &device, offset, &bytes);
                model[range].copy_from_slice(&bytes);
            }
            2 => {
                rig.run(device.zero(offset, length as u64, rng.chance(500))).unwrap();
                model[range].fill(0);
            }
            3 => {
                rig.run(device.discard(offset, length as u64)).unwrap();
                let inner = offset.next_multiple_of(4096)..(offset + length as u64) / 4096 * 4096;
                for byte in inner {
                    model[usize::try_from(byte - base).unwrap()] = 0;
                }
            }
            _ => assert_eq!(rig.read(&device, offset, length as u64), model[range], "step {step}"),
        }
    }
    assert_eq!(rig.read(&device, base, span as u64), model);
}

/// XFS over four connections lost parts of its log: each connection's device had a lock of its own around reading a block,
/// changing it and writing it, so that two of them wrote halves of one block over one another.
#[test]
fn halves_of_a_block_by_two_devices_are_both_there() {
    let mut rig = Rig::new(8);
    rig.create("vol", 1);
    let devices = [rig.attach("vol"), rig.attach("vol")];
    for round in 1..40 {
        let mut futures: Vec<std::pin::Pin<Box<dyn Future<Output = _>>>> = Vec::new();
        for (half, device) in (0..).zip(&devices) {
            let data = Bytes::from(vec![round; 2048]);
            futures.push(Box::pin(device.write(half * 2048, data)));
        }
        for result in rig.sim.as_mut().unwrap().run_all(futures) {
            result.unwrap();
        }
        assert_eq!(rig.read(&devices[0], 0, 4096), vec![round; 4096], "round {round}");
    }
}

#[test]
fn what_was_never_written_takes_no_space_and_a_discard_gives_it_back() {
    let mut rig = Rig::new(2);
    rig.create("vol", 1);
    let device = rig.attach("vol");
    let empty = rig.handle().usage().live;
    let stretches = |rig: &mut Rig, offset, length| rig.run(device.stretches(offset, length, 1000)).unwrap();
    assert_eq!(stretches(&mut rig, 0, VOLUME), [Stretch { bytes: VOLUME, hole: true }]);
    write(&mut rig, &device, 1 << 20, &noise(1, 2 << 20));
    let hole = |bytes| Stretch { bytes, hole: true };
    let data = |bytes| Stretch { bytes, hole: false };
    assert_eq!(stretches(&mut rig, 0, VOLUME), [hole(1 << 20), data(2 << 20), hole(VOLUME - (3 << 20))]);
    assert_eq!(stretches(&mut rig, (1 << 20) + 5, 10), [data(10)]);
    assert!(rig.handle().usage().live > empty + (2 << 20));
    rig.run(device.discard(0, VOLUME)).unwrap();
    assert_eq!(stretches(&mut rig, 0, VOLUME), [hole(VOLUME)]);
    assert!(rig.handle().usage().live < empty + 10_000, "{}", rig.handle().usage().live - empty);
    assert_eq!(rig.read(&device, 1 << 20, 2 << 20), vec![0; 2 << 20]);
    rig.run(device.zero(0, 8192, true)).unwrap();
    assert_eq!(
        stretches(&mut rig, 0, VOLUME),
        [data(8192), hole(VOLUME - 8192)],
        "zeroes that take their space"
    );
}

#[test]
fn overwriting_gives_space_back_and_the_cleaner_moves_blocks() {
    let mut rig = Rig::new(3);
    rig.create("vol", 1);
    let device = rig.attach("vol");
    let mut rng = SplitMix64::new(3);
    let mut model: Vec<u64> = vec![0; 1024];
    for round in 1..400 {
        let first = rng.index(1024 - 64);
        let count = 1 + rng.index(64);
        let bytes: Vec<u8> = (0..count).flat_map(|n| noise(round << 16 | (first + n) as u64, 4096)).collect();
        write(&mut rig, &device, first as u64 * 4096, &bytes);
        model[first..first + count].fill(round);
        let handle = rig.handle();
        while handle.usage().free < 5 * SEGMENT {
            let victim = handle.victim(&[]).expect("something can be cleaned");
            rig.run(handle.clean(victim)).unwrap();
            rig.run(handle.checkpoint()).unwrap();
        }
    }
    let check = |rig: &mut Rig, device: &Device| {
        for (block, round) in model.iter().enumerate() {
            let expected = if *round == 0 { vec![0; 4096] } else { noise(round << 16 | block as u64, 4096) };
            assert_eq!(rig.read(device, block as u64 * 4096, 4096), expected, "block {block}");
        }
    };
    check(&mut rig, &device);
    let live = rig.handle().usage().live;
    drop(device);
    rig.crash(false);
    let device = rig.attach("vol");
    check(&mut rig, &device);
    let rebuilt = rig.handle().usage().live;
    assert!(rebuilt.abs_diff(live) < 4096, "a rebuild counts the same: {rebuilt} and {live}");
}

#[test]
fn snapshots_are_frozen_for_ever() {
    let mut rig = Rig::new(4);
    rig.create("vol", 1);
    let device = rig.attach("vol");
    let volumes = rig.volumes();
    write(&mut rig, &device, 0, &noise(1, 8192));
    rig.run(volumes.snapshot("vol", "one", 7)).unwrap();
    write(&mut rig, &device, 4096, &noise(2, 8192));
    rig.run(volumes.snapshot("vol", "two", 8)).unwrap();
    rig.run(device.discard(0, VOLUME)).unwrap();
    drop(device);
    let look = |rig: &mut Rig| {
        let volumes = rig.volumes();
        let one = volumes.view("vol", "one").unwrap();
        let two = volumes.view("vol", "two").unwrap();
        let now = rig.attach("vol");
        assert_eq!(rig.read(&one, 0, 12_288), [noise(1, 8192), vec![0; 4096]].concat());
        assert_eq!(rig.read(&two, 0, 12_288), [noise(1, 8192)[..4096].to_vec(), noise(2, 8192)].concat());
        assert_eq!(rig.read(&now, 0, 12_288), vec![0; 12_288]);
        assert!(matches!(
            rig.run(one.write(0, Bytes::from(vec![1; 4096]))),
            Err(VolumeError::Refused(Refusal::NotPromised))
        ));
        let names: Vec<String> =
            volumes.find("vol").unwrap().snapshots().into_iter().map(|s| s.label.name).collect();
        assert_eq!(names, ["one", "two"]);
    };
    look(&mut rig);
    rig.crash(true);
    look(&mut rig);
    rig.crash(false);
    look(&mut rig);
    let volumes = rig.volumes();
    assert!(matches!(rig.run(volumes.snapshot("vol", "one", 9)), Err(VolumeError::Taken(_))));
    rig.run(volumes.forget_snapshot("vol", "two")).unwrap();
    assert!(matches!(volumes.view("vol", "two"), Err(VolumeError::NoSnapshot(..))));
    rig.crash(true);
    let volumes = rig.volumes();
    assert!(matches!(volumes.view("vol", "two"), Err(VolumeError::NoSnapshot(..))));
    let third = rig.run(volumes.snapshot("vol", "three", 9)).unwrap();
    assert_eq!(third.era, 2, "an era is not given twice");
}

#[test]
fn volumes_are_made_listed_extended_and_deleted() {
    let mut rig = Rig::new(5);
    let handle = rig.handle();
    let before = handle.usage().live;
    rig.create("b", 1);
    rig.create("a", 2);
    let volumes = rig.volumes();
    let create = |rig: &mut Rig, name: &str, bytes| {
        rig.run(volumes.create(VolumeId([9; 16]), crate::store::Label { bytes, ..label(name) })).map(drop)
    };
    assert!(matches!(create(&mut rig, "a", VOLUME), Err(VolumeError::Taken(_))));
    assert!(matches!(create(&mut rig, "a b", VOLUME), Err(VolumeError::Name(_))));
    assert!(matches!(create(&mut rig, "a@b", VOLUME), Err(VolumeError::Name(_))));
    assert!(matches!(create(&mut rig, "c", 0), Err(VolumeError::Geometry(_))));
    assert!(matches!(create(&mut rig, "c", 4097), Err(VolumeError::Geometry(_))));
    let names: Vec<String> = volumes.list().into_iter().map(|volume| volume.label.name).collect();
    assert_eq!(names, ["a", "b"]);
    assert!(matches!(rig.run(volumes.extend("a", VOLUME - 4096)), Err(VolumeError::Shrink(..))));
    rig.run(volumes.extend("a", 2 * VOLUME)).unwrap();
    let device = rig.attach("a");
    assert_eq!(device.bytes(), 2 * VOLUME);
    write(&mut rig, &device, 2 * VOLUME - 4096, &noise(1, 4096));
    write(&mut rig, &device, 0, &noise(2, 1 << 20));
    rig.run(volumes.delete("a")).unwrap();
    assert!(matches!(
        rig.run(device.write(0, Bytes::from(vec![1; 4096]))),
        Err(VolumeError::Refused(Refusal::Out))
    ));
    assert!(matches!(rig.run(device.read(0, 4096)), Err(VolumeError::Refused(Refusal::Out))));
    drop((device, volumes));
    // Also what a restart finds is reaped, from an index that was made anew.
    rig.crash(false);
    let volumes = rig.volumes();
    while rig.run(volumes.reap()).unwrap() {}
    rig.run(volumes.delete("b")).unwrap();
    while rig.run(volumes.reap()).unwrap() {}
    assert!(volumes.list().is_empty());
    let live = rig.handle().usage().live;
    assert!(live < before + 2000, "only notes are left: {live} bytes");
    rig.crash(true);
    assert!(rig.volumes().list().is_empty());
}

#[test]
fn a_flipped_bit_is_an_error_and_its_neighbours_are_read() {
    let mut rig = Rig::new(6);
    rig.create("vol", 1);
    let device = rig.attach("vol");
    let bytes = noise(1, 3 * 4096);
    write(&mut rig, &device, 0, &bytes);
    let needle = &bytes[4096 + 100..4096 + 132];
    let at = (0..SEGMENTS * SEGMENT)
        .step_by(1 << 20)
        .find_map(|from| {
            let window = rig.image.peek(from, (1 << 20) + 32);
            window.windows(32).position(|found| found == needle).map(|place| from + place as u64)
        })
        .expect("the block is on the device");
    let handle = rig.handle();
    let sound = rig.run(audit(&handle, b"", 1000)).unwrap();
    assert_eq!((sound.rows, sound.bytes, sound.wrong.len()), (3, 3 * 4096, 0));
    rig.image.flip(at, 1);
    let damaged = rig.run(audit(&handle, b"", 1000)).unwrap();
    assert!(damaged.wrong.len() == 1 && damaged.wrong[0].contains("slice 0, chunk 0"), "{:?}", damaged.wrong);
    assert_eq!(rig.run(audit(&handle, &damaged.last.unwrap(), 1000)).unwrap().last, None, "that was all");
    assert!(matches!(rig.run(device.read(4096, 4096)), Err(VolumeError::Disk(DiskError::Corrupt { .. }))));
    assert_eq!(rig.read(&device, 0, 4096), bytes[..4096]);
    assert_eq!(rig.read(&device, 8192, 4096), bytes[8192..]);
}

/// Promises were logged as clients' writes are, which a full disk refuses: nobody could attach to make room.
#[test]
fn a_full_disk_is_attached_read_discarded_and_written_again() {
    let mut rig = Rig::new(9);
    let volumes = rig.volumes();
    let big = crate::store::Label { bytes: 512 << 20, ..label("vol") };
    rig.run(volumes.create(VolumeId([1; 16]), big)).unwrap();
    let device = rig.attach("vol");
    let data = Bytes::from(noise(1, 1 << 20));
    let full = (0..512).find(|n| {
        let result = rig.run(device.write(n << 20, data.clone()));
        assert!(matches!(result, Ok(()) | Err(VolumeError::Disk(DiskError::NoSpace))), "{result:?}");
        result.is_err()
    });
    let full = full.expect("the disk is smaller than the volume");
    assert!(full > 100, "{full} MiB were written");
    drop((device, volumes));
    rig.crash(true);
    let device = rig.attach("vol");
    assert!(rig.run(device.write(0, data.clone())).is_err(), "still full");
    assert_eq!(rig.read(&device, (full - 1) << 20, 1 << 20), data);
    rig.run(device.discard(0, (full - 20) << 20)).unwrap();
    let handle = rig.handle();
    while handle.usage().free < 6 * SEGMENT {
        let victim = handle.victim(&[]).expect("something can be cleaned");
        rig.run(handle.clean(victim)).unwrap();
        rig.run(handle.checkpoint()).unwrap();
    }
    rig.run(device.write(0, data.clone())).unwrap();
    assert_eq!(rig.read(&device, 0, 2 << 20), [data.to_vec(), vec![0; 1 << 20]].concat());
    assert_eq!(rig.read(&device, (full - 1) << 20, 1 << 20), data);
}

#[test]
fn commands_of_clients_have_their_outcomes() {
    let mut rig = Rig::new(7);
    rig.create("vol", 1);
    let device = rig.attach("vol");
    let mut run = |command| rig.run(device.carry_out(command));
    let data = Bytes::from(noise(1, 4096));
    let write = Command::Write { offset: 4096, data: data.clone(), durable: true };
    assert_eq!(run(write), Outcome::Done);
    let read = Command::Read { offset: 0, length: 12_288 };
    assert_eq!(run(read), Outcome::Data(vec![Part::Hole(4096), Part::Data(data), Part::Hole(4096)]));
    assert_eq!(run(Command::Flush), Outcome::Done);
    assert_eq!(run(Command::Cache { offset: 0, length: 5 }), Outcome::Done);
    let zeroes = |offset, allocate, fast| Command::WriteZeroes {
        offset,
        length: 4096,
        durable: false,
        allocate,
        fast,
    };
    assert_eq!(run(zeroes(4096, true, true)), Outcome::Failed(Errno::Unsupported));
    assert_eq!(run(zeroes(5, false, true)), Outcome::Failed(Errno::Unsupported));
    let status =
        || Command::BlockStatus { offset: 0, length: 8192, contexts: vec![Context::Allocation], one: false };
    let hole = |length| Extent { length, status: 3 };
    assert_eq!(run(status()), Outcome::Status(vec![vec![hole(4096), Extent { length: 4096, status: 0 }]]));
    assert_eq!(run(zeroes(4096, false, true)), Outcome::Done);
    assert_eq!(run(status()), Outcome::Status(vec![vec![hole(8192)]]));
    assert_eq!(run(Command::Trim { offset: 0, length: 8192, durable: true }), Outcome::Done);
}

/// As files behind nbdfuse are punched: fsx compares every byte.
#[test]
fn a_trim_of_parts_of_blocks_leaves_zeroes_and_no_other_byte() {
    let mut rig = Rig::new(7);
    rig.create("vol", 1);
    let device = rig.attach("vol");
    let data = noise(1, 16_384);
    rig.run(device.write(0, Bytes::from(data.clone()))).unwrap();
    for (offset, length) in [(5000_u32, 100_u32), (4000, 200), (6000, 8000)] {
        rig.run(device.write(0, Bytes::from(data.clone()))).unwrap();
        let trim = Command::Trim { offset: offset.into(), length: length.into(), durable: false };
        assert_eq!(rig.run(device.carry_out(trim)), Outcome::Done);
        let mut expected = data.clone();
        expected[offset as usize..(offset + length) as usize].fill(0);
        assert_eq!(rig.read(&device, 0, 16_384), expected, "{length} at {offset}");
    }
}

/// Workers make room for clients that they see.
#[test]
fn reads_and_writes_are_counted_for_background_work() {
    let mut rig = Rig::new(9);
    rig.create("vol", 1);
    let device = rig.attach("vol");
    let calls = |rig: &Rig| rig.handle().counters().block_calls.load(std::sync::atomic::Ordering::Relaxed);
    let before = calls(&rig);
    rig.run(device.write(0, Bytes::from(vec![1; 4096]))).unwrap();
    assert_eq!(calls(&rig), before + 1);
    rig.read(&device, 0, 4096);
    assert_eq!(calls(&rig), before + 2);
}
