//! A real file and a real RocksDB: what the simulation cannot show.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use super::rig::{bytes, path};
use crate::catalog::ObjectCatalog;
use crate::clock::Clock;
use crate::disk::format::record::DeviceId;
use crate::disk::format::superblock::ClusterId;
use crate::disk::{CacheBytes, DiskConfig, DiskHandle, Format, format, start};
use crate::index::RocksOptions;
use crate::io::{OpenOptions, open_device, preallocate};
use crate::object::{Options, PutSpec, Spread, Store};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits without any runtime.
fn wait<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::park();
    }
}

fn config(dir: &std::path::Path) -> DiskConfig {
    DiskConfig {
        device: dir.join("disk"),
        io: OpenOptions::default(),
        index: RocksOptions::default(),
        index_path: dir.join("index"),
        cache_bytes: CacheBytes { small: 16 << 20, large: 16 << 20 },
        cluster: None,
    }
}

fn open(config: &DiskConfig) -> (DiskHandle, Store) {
    let (disk, _) = start(config, Arc::new(ObjectCatalog), &mut |_, _| {}).unwrap();
    let time = std::sync::atomic::AtomicU64::new(super::rig::START * 1_000_000);
    let clock = Clock::new(Box::new(move || time.fetch_add(1, std::sync::atomic::Ordering::Relaxed)));
    let placement = Box::new(Spread::over(vec![disk.device()]));
    let store = Store::start(vec![disk.clone()], placement, clock, Options::default()).unwrap();
    (disk, store)
}

fn make(dir: &std::path::Path) -> DiskConfig {
    let config = config(dir);
    preallocate(&config.device, 256 << 20, &mut |_| {}).unwrap();
    let request = Format {
        cluster: ClusterId([1; 16]),
        device: DeviceId([2; 16]),
        segment_size: None,
        overwrite: false,
    };
    format(open_device(&config.device, config.io).unwrap().as_mut(), &request).unwrap();
    config
}

async fn put(store: &Store, name: &str, body: bytes::Bytes) {
    let mut writer = store.writer(&path(name), Some(body.len() as u64)).await.unwrap();
    writer.write(body).await.unwrap();
    writer.commit(PutSpec::default()).await.unwrap();
}

async fn get(store: &Store, name: &str) -> Vec<u8> {
    let reader = store.open(&path(name)).await.unwrap().unwrap();
    let mut range = reader.range(0..reader.info.size);
    let mut out = Vec::new();
    while let Some(piece) = range.next().await {
        out.extend_from_slice(&piece.unwrap());
    }
    out
}

#[test]
fn objects_come_back_after_a_reopening_and_after_the_index_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = make(dir.path());
    for round in 0..3 {
        let (disk, store) = open(&config);
        if round == 0 {
            wait(store.put_container("AUTH_a", "c", 0, |_| Ok(Default::default()))).unwrap();
            for n in 0..50 {
                wait(put(&store, &format!("o{n}"), bytes(n, 3000)));
            }
            wait(put(&store, "large", bytes(99, 9 << 20)));
        }
        let container = wait(store.container("AUTH_a", "c")).unwrap().unwrap();
        assert_eq!((container.objects, container.bytes), (51, 50 * 3000 + (9 << 20)));
        for n in 0..50 {
            assert_eq!(wait(get(&store, &format!("o{n}"))), bytes(n, 3000));
        }
        assert!(wait(get(&store, "large")) == bytes(99, 9 << 20));
        wait(disk.close()).unwrap();
        drop((disk, store));
        if round == 1 {
            config.index_path = dir.path().join("another index");
        }
    }
}

/// RocksDB refused to read, for ever: the disk did not open, and its node did not start.
#[test]
fn an_index_that_is_damaged_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let config = make(dir.path());
    for damaged in [false, true, false] {
        if damaged {
            let files = std::fs::read_dir(&config.index_path).unwrap().map(|entry| entry.unwrap().path());
            for table in files.filter(|file| file.extension().is_some_and(|extension| extension == "sst")) {
                let mut bytes = std::fs::read(&table).unwrap();
                bytes.iter_mut().take(100).for_each(|byte| *byte ^= 0x5a);
                std::fs::write(table, bytes).unwrap();
            }
        }
        let (disk, report) = start(&config, Arc::new(ObjectCatalog), &mut |_, _| {}).unwrap();
        assert_eq!(report.rebuilt, damaged.then_some("it was damaged"));
        wait(disk.close()).unwrap();
        drop(disk);
        let (disk, store) = open(&config);
        if !damaged && wait(store.container("AUTH_a", "c")).unwrap().is_none() {
            wait(store.put_container("AUTH_a", "c", 0, |_| Ok(Default::default()))).unwrap();
            wait(put(&store, "o", bytes(1, 3000)));
        }
        assert_eq!(wait(get(&store, "o")), bytes(1, 3000));
        wait(disk.close()).unwrap();
    }
}

/// The close of a disk was answered while its threads still held device and index. Opening it again failed then; and a
/// process that ended in that moment was aborted ("pthread lock: Invalid argument"), because RocksDB was taken apart
/// on the disk's thread while the process was being taken apart on the main one.
#[test]
fn a_disk_whose_close_was_answered_has_been_let_go_of() {
    let dir = tempfile::tempdir().unwrap();
    let config = make(dir.path());
    for round in 0..20 {
        let (disk, store) = open(&config);
        wait(store.put_container("AUTH_a", &format!("c{round}"), 0, |_| Ok(Default::default()))).unwrap();
        wait(disk.close()).unwrap();
    }
}

/// Nanoseconds that this thread has run.
fn cpu() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}

/// What a PUT of 4 KiB costs the caller's thread, hashing included: run by hand, alone on the machine.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_small_put() {
    let dir = tempfile::tempdir().unwrap();
    let config = make(dir.path());
    let (disk, store) = open(&config);
    wait(store.put_container("AUTH_a", "c", 0, |_| Ok(Default::default()))).unwrap();
    let body = bytes(1, 4096);
    let (mut least, rounds) = (u64::MAX, 500);
    for round in 0..5 {
        let before = cpu();
        for n in 0..rounds {
            wait(put(&store, &format!("o{round}-{n}"), body.clone()));
        }
        least = least.min((cpu() - before) / rounds);
    }
    println!("PUT of 4 KiB: {:.1} us of the caller's CPU", least as f64 / 1000.0);
    wait(disk.close()).unwrap();
}
