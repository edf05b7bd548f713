//! Clients on several threads, on a disk with a thread of its own.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use bytes::Bytes;
use quarry_engine::block::VolumeId;
use quarry_engine::catalog::ObjectCatalog;
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::disk::format::superblock::ClusterId;
use quarry_engine::disk::{CacheBytes, Format, Open, format, start_on};
use quarry_engine::index::MemoryIndex;
use quarry_engine::io::SimImage;

use super::rig::{SEGMENT, SEGMENTS, label};
use crate::store::Volumes;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
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

/// File systems over NBD found a device that failed: a flush that came while another thread had taken its sequence, and was still
/// computing checksums, saw a write that was neither durable nor under way, and took the disk for out.
#[test]
fn a_flush_waits_for_a_write_that_another_thread_is_placing() {
    let image = SimImage::new(SEGMENTS * SEGMENT, 1);
    let request = Format {
        cluster: ClusterId([7; 16]),
        device: DeviceId([9; 16]),
        segment_size: Some(SEGMENT),
        overwrite: false,
    };
    format(&mut image.open(), &request).unwrap();
    let options = Open {
        cluster: None,
        cache_bytes: CacheBytes { small: 1 << 20, large: 1 << 20 },
        progress: &mut |_, _| {},
    };
    let (disk, _) =
        start_on(Box::new(image.open()), Arc::new(MemoryIndex::new()), Arc::new(ObjectCatalog), options)
            .unwrap();
    let volumes = Arc::new(Volumes::open(vec![disk.clone()]).unwrap());
    run(volumes.create(VolumeId([1; 16]), label("vol"))).unwrap();
    let device = run(volumes.attach("vol")).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let device = device.clone();
            scope.spawn(move || {
                for round in 0..400_u64 {
                    if thread % 2 == 0 {
                        let data = Bytes::from(vec![thread; 64 << 10]);
                        run(device.write((round % 16) << 16, data)).unwrap();
                    } else {
                        run(device.flush()).unwrap();
                        run(device.read(0, 4096)).unwrap();
                    }
                }
            });
        }
    });
    run(device.flush()).unwrap();
    run(disk.close()).unwrap();
}
