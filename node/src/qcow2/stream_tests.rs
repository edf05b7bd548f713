//! Images whose parts lie in any order, fed in pieces of any length: what comes of them is what a reader of the whole image finds.

use std::collections::HashMap;
use std::io::Write;

use quarry_engine::io::SplitMix64;

use super::super::Step;
use super::*;

const CLUSTER_BITS: u32 = 12;
const CLUSTER: usize = 1 << CLUSTER_BITS;

/// What lies in an image.
#[derive(Clone)]
enum Part {
    First,
    Second(usize),
    Data(usize),
    Other,
}

fn content(cluster: usize) -> Vec<u8> {
    (0..CLUSTER).map(|at| u8::try_from((cluster * 31 + at / 100) % 255 + 1).unwrap()).collect()
}

/// Makes an image.
#[derive(Default)]
struct Made {
    image: Vec<u8>,
    /// Entries of the second tables, by the cluster of the disk.
    entries: HashMap<usize, u64>,
    first: usize,
    seconds: HashMap<usize, usize>,
    /// Behind what was compressed last there is room.
    room: Option<usize>,
}

impl Made {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.image[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Room for a cluster.
    fn grow(&mut self) -> usize {
        self.image.resize(self.image.len() + CLUSTER, 0);
        self.image.len() - CLUSTER
    }

    fn add(&mut self, part: &Part, packed: &dyn Fn(usize) -> bool) {
        match part {
            Part::First => self.first = self.grow(),
            Part::Second(nth) => {
                let at = self.grow();
                self.seconds.insert(*nth, at);
            }
            Part::Other => {
                let at = self.grow();
                self.put(at, &[0xee; CLUSTER]);
            }
            Part::Data(cluster) if packed(*cluster) => self.pack(*cluster),
            Part::Data(cluster) => {
                let at = self.grow();
                self.put(at, &content(*cluster));
                self.entries.insert(*cluster, 1 << 63 | at as u64);
            }
        }
    }

    /// Compresses a cluster; many begin in the sector where the one before ends.
    fn pack(&mut self, cluster: usize) {
        let mut packer = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        packer.write_all(&content(cluster)).unwrap();
        let bytes = packer.finish().unwrap();
        let at = self.room.take().unwrap_or_else(|| self.grow());
        self.put(at, &bytes);
        let end = at + bytes.len();
        self.room = Some(end).filter(|end| end % CLUSTER < CLUSTER / 2);
        let sectors = (end - 1) / 512 - at / 512;
        self.entries.insert(cluster, 1 << 62 | (sectors as u64) << (62 - (CLUSTER_BITS - 8)) | at as u64);
    }
}

/// An image of a disk with so many clusters, some of them compressed, whose parts lie in this order.
fn image(clusters: usize, parts: &[Part], packed: &dyn Fn(usize) -> bool) -> Vec<u8> {
    let (mut made, per_table) = (Made::default(), CLUSTER / 8);
    made.grow();
    parts.iter().for_each(|part| made.add(part, packed));
    for (nth, at) in made.seconds.clone() {
        made.put(made.first + nth * 8, &(1 << 63 | at as u64).to_be_bytes());
        for slot in 0..per_table {
            let entry = made.entries.get(&(nth * per_table + slot)).copied().unwrap_or(0);
            made.put(at + slot * 8, &entry.to_be_bytes());
        }
    }
    made.put(0, b"QFI\xfb\0\0\0\x03");
    made.put(20, &CLUSTER_BITS.to_be_bytes());
    made.put(24, &((clusters * CLUSTER) as u64).to_be_bytes());
    made.put(36, &u32::try_from(clusters.div_ceil(per_table)).unwrap().to_be_bytes());
    made.put(40, &(made.first as u64).to_be_bytes());
    made.image
}

/// What came of an image.
struct Came {
    /// Pieces of the disk.
    disk: BTreeMap<u64, Bytes>,
    /// How many bytes were kept.
    kept: usize,
    /// The most that the window had.
    window: usize,
}

fn enter(disk: &mut BTreeMap<u64, Bytes>, piece: &Piece, bytes: Bytes) -> Result<(), BadImage> {
    let bytes = piece.made_of(bytes)?;
    for (cluster, bytes) in bytes.chunks(CLUSTER).enumerate() {
        let at = piece.at + (cluster * CLUSTER) as u64;
        assert!(disk.insert(at, Bytes::copy_from_slice(bytes)).is_none(), "{at} is written twice");
    }
    Ok(())
}

/// Feeds an image in pieces of at most so many bytes. Only what was kept is there at the end.
fn streamed(image: &[u8], most: usize, rng: &mut SplitMix64) -> Result<Came, BadImage> {
    let mut stream = Stream::new(image.len() as u64);
    let (mut memory, mut there) = (vec![0; image.len()], vec![false; image.len()]);
    let mut came = Came { disk: BTreeMap::new(), kept: 0, window: 0 };
    let mut left = image;
    while !left.is_empty() {
        let (now, rest) = left.split_at(left.len().min(1 + rng.index(most)));
        left = rest;
        stream.feed(now)?;
        while let Some(act) = stream.act()? {
            match act {
                Act::Write(piece, bytes) => enter(&mut came.disk, &piece, bytes)?,
                Act::Keep(at, bytes) => {
                    let at = usize::try_from(at).unwrap();
                    assert_eq!(image[at..at + bytes.len()], bytes);
                    memory[at..at + bytes.len()].copy_from_slice(&bytes);
                    there[at..at + bytes.len()].fill(true);
                    came.kept += bytes.len();
                }
            }
        }
        came.window = came.window.max(stream.window.len());
    }
    let mut reader = stream.end()?;
    let part = |span: Span| {
        let at = usize::try_from(span.at).unwrap();
        let bytes = usize::try_from(span.bytes).unwrap();
        let whole = there[at..at + bytes].iter().all(|there| *there);
        whole.then(|| Bytes::copy_from_slice(&memory[at..at + bytes])).ok_or(BadImage("it was not kept"))
    };
    while let Some(step) = reader.step()? {
        match step {
            Step::Want(span) => reader.told(part(span)?),
            Step::Write(piece) => enter(&mut came.disk, &piece, part(piece.from)?)?,
        }
    }
    Ok(came)
}

/// What a reader of the whole image finds.
fn read(image: &[u8]) -> Result<BTreeMap<u64, Bytes>, BadImage> {
    let part = |span: Span| {
        let at = usize::try_from(span.at).unwrap();
        Bytes::copy_from_slice(&image[at..at + usize::try_from(span.bytes).unwrap()])
    };
    let mut reader = Reader::new(&image[..image.len().min(HEADER)], image.len() as u64)?;
    let mut disk = BTreeMap::new();
    while let Some(step) = reader.step()? {
        match step {
            Step::Want(span) => reader.told(part(span)),
            Step::Write(piece) => enter(&mut disk, &piece, part(piece.from))?,
        }
    }
    Ok(disk)
}

fn expected(clusters: impl Iterator<Item = usize>) -> BTreeMap<u64, Bytes> {
    clusters.map(|cluster| ((cluster * CLUSTER) as u64, content(cluster).into())).collect()
}

/// As `qemu-img convert` writes one: each table before what it tells of. Of 20 MiB only what no table tells of is kept.
#[test]
fn what_lies_behind_its_table_is_never_kept() {
    let clusters = 10 * CLUSTER / 8;
    let mut parts = vec![Part::Other, Part::Other, Part::First];
    for nth in 0..10 {
        parts.push(Part::Second(nth));
        parts.extend((0..CLUSTER / 8).map(|slot| Part::Data(nth * CLUSTER / 8 + slot)));
        parts.push(Part::Other);
    }
    let image = image(clusters, &parts, &|_| false);
    let came = streamed(&image, 100_000, &mut SplitMix64::new(1)).unwrap();
    assert!(came.disk == expected(0..clusters));
    assert!(came.kept <= 13 * CLUSTER, "{} bytes were kept", came.kept);
    assert!(came.window <= 6 << 20, "{} bytes were in memory", came.window);
}

/// The first table of a disk that has grown lies at the end of its image.
#[test]
fn what_lies_before_its_table_is_kept_and_taken_last() {
    let clusters = 10 * CLUSTER / 8;
    let data = || (0..clusters).map(Part::Data);
    let seconds = || (0..10).map(Part::Second);
    let orders: [Vec<Part>; 3] = [
        data().chain(seconds()).chain([Part::First]).collect(),
        [Part::First].into_iter().chain(data()).chain(seconds()).collect(),
        seconds().chain(data()).chain([Part::First]).collect(),
    ];
    for parts in orders {
        let image = image(clusters, &parts, &|cluster| cluster % 3 == 0);
        let came = streamed(&image, 300_000, &mut SplitMix64::new(2)).unwrap();
        assert!(came.disk == expected(0..clusters));
        assert!(came.kept > 4 << 20 && came.window <= 6 << 20, "{} {}", came.kept, came.window);
    }
}

#[test]
fn an_image_in_any_order_and_in_pieces_of_any_length_is_the_same_disk() {
    for seed in 0..60 {
        let mut rng = SplitMix64::new(seed);
        let tables = 1 + rng.index(6);
        let clusters = tables * CLUSTER / 8;
        let share = 1 + rng.index(4);
        let used: Vec<usize> = (0..clusters).filter(|_| rng.index(4) < share).collect();
        let mut parts: Vec<Part> =
            (0..tables).map(Part::Second).chain(used.iter().copied().map(Part::Data)).collect();
        parts.push(Part::First);
        parts.extend((0..rng.index(20)).map(|_| Part::Other));
        // Anything from almost in order to none at all.
        let swaps = rng.index(parts.len());
        for _ in 0..swaps {
            let (a, b) = (rng.index(parts.len()), rng.index(parts.len()));
            parts.swap(a, b);
        }
        let every = 1 + rng.index(4);
        let image = image(clusters, &parts, &|cluster| cluster % every == 0);
        let most = [1 << 10, 1 << 16, 8 << 20][rng.index(3)];
        let came = streamed(&image, most, &mut rng).unwrap();
        assert!(came.disk == expected(used.into_iter()), "seed {seed}");
        assert!(came.window <= (6 << 20) + most, "seed {seed}: {}", came.window);
    }
}

/// Whatever an image says of itself, the end is an error, or the disk that it is of.
#[test]
fn a_broken_image_is_an_error_or_the_same_disk() {
    let (mut same, mut refused) = (0, 0);
    for seed in 0..400 {
        let mut rng = SplitMix64::new(seed);
        let clusters = 2 * CLUSTER / 8;
        let mut parts: Vec<Part> = [Part::First, Part::Second(0), Part::Second(1)].into();
        parts.extend((0..clusters).filter(|cluster| cluster % 5 == 0).map(Part::Data));
        for _ in 0..rng.index(8) {
            let (a, b) = (rng.index(parts.len()), rng.index(parts.len()));
            parts.swap(a, b);
        }
        let mut image = image(clusters, &parts, &|cluster| cluster % 10 == 0);
        for _ in 0..1 + rng.index(6) {
            // Mostly in the tables.
            let place = [0, CLUSTER, 2 * CLUSTER, 3 * CLUSTER, rng.index(image.len())][rng.index(5)];
            let at = (place + rng.index(CLUSTER)).min(image.len() - 1);
            image[at] = u8::try_from(rng.below(256)).unwrap();
        }
        if rng.index(8) == 0 {
            image.truncate(rng.index(image.len()));
        }
        match (streamed(&image, 70_000, &mut rng), read(&image)) {
            (Ok(came), Ok(disk)) => {
                assert!(came.disk == disk, "seed {seed}");
                same += 1;
            }
            (Ok(_), Err(error)) => panic!("seed {seed}: a reader finds that {error}"),
            // Clusters that lie over one another may be refused.
            (Err(_), _) => refused += 1,
        }
    }
    assert!(same > 50 && refused > 50, "{same} are the same, {refused} are refused");
}

/// All entries of all tables name one cluster, or one table: no more is in memory, or kept, than of another image.
#[test]
fn tables_that_all_say_the_same_take_no_more_memory() {
    let clusters = 200 * CLUSTER / 8;
    let mut parts = vec![Part::First, Part::Second(0), Part::Data(0)];
    parts.extend((0..3000).map(|_| Part::Other));
    let mut image = image(clusters, &parts, &|_| false);
    for nth in 0..200 {
        image.copy_within(CLUSTER..CLUSTER + 8, CLUSTER + nth * 8);
    }
    for slot in 0..CLUSTER / 8 {
        image.copy_within(2 * CLUSTER..2 * CLUSTER + 8, 2 * CLUSTER + slot * 8);
    }
    let mut stream = Stream::new(image.len() as u64);
    let (mut written, mut kept) = (0, 0);
    for part in image.chunks(50_000) {
        stream.feed(part).unwrap();
        while let Some(act) = stream.act().unwrap() {
            match act {
                Act::Write(_, bytes) => written += bytes.len() / CLUSTER,
                Act::Keep(_, bytes) => kept += bytes.len(),
            }
            assert!(
                stream.wants.len() <= MOST_WANTS && stream.told.len() <= MOST_TOLD && stream.acts.len() < 10
            );
        }
        assert!(stream.window.len() <= 6 << 20);
    }
    assert_eq!((written, kept), (clusters, 0));
    assert!(stream.end().unwrap().step().unwrap().is_none());
}
