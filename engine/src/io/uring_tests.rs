//! What the kernel's answers mean, without a kernel; the suite over a real ring stands in `device_tests.rs`.

use std::fs::File;

use super::super::BLOCK;
use super::*;

fn request(moves: Moves) -> Request {
    Request { token: 1, offset: 0, moves, done: 0, retries: 0 }
}

fn writing(len: usize) -> Moves {
    Moves::From(AlignedBuf::zeroed(len).into(), Vectors::default())
}

fn finished(verdict: Verdict) -> Option<io::Result<()>> {
    match verdict {
        Verdict::Again => None,
        Verdict::Finished(result) => Some(result),
    }
}

#[test]
fn a_short_transfer_goes_on_where_it_stopped_and_an_empty_one_fails() {
    let reading = Moves::Into(AlignedBuf::zeroed(8192));
    for (moves, error) in [(reading, io::ErrorKind::UnexpectedEof), (writing(8192), io::ErrorKind::WriteZero)]
    {
        let mut request = request(moves);
        assert!(finished(verdict(&mut request, 4096)).is_none());
        assert_eq!(request.done, 4096);
        assert_eq!(finished(verdict(&mut request, 0)).unwrap().unwrap_err().kind(), error);
        assert!(finished(verdict(&mut request, 4096)).unwrap().is_ok());
    }
}

#[test]
fn interruptions_are_repeated_but_not_for_ever() {
    let mut request = request(writing(4096));
    for _ in 0..RETRIES {
        assert!(finished(verdict(&mut request, -libc::EAGAIN)).is_none());
    }
    let error = finished(verdict(&mut request, -libc::EAGAIN)).unwrap().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
}

#[test]
fn an_error_of_a_flush_is_final() {
    let error = finished(verdict(&mut request(Moves::Nothing), -libc::EIO)).unwrap().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert!(finished(verdict(&mut request(Moves::Nothing), 0)).unwrap().is_ok());
}

#[test]
fn a_wake_up_is_used_once() {
    let wake = EventWake::new().unwrap();
    assert!(wake.fall_asleep());
    assert!(!wake.get_up());
    wake.wake();
    assert!(!wake.fall_asleep());
    assert!(wake.fall_asleep());
    wake.wake();
    assert!(wake.get_up());
}

#[test]
fn a_ring_registers_the_buffers_it_hands_out() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let geometry = Geometry { capacity: 1 << 20, write_through: false };
    let mut disk = match UringDisk::new(Arc::new(file.into()), geometry) {
        Ok(disk) => disk,
        Err(error) => return println!("skipped: io_uring: {error}"),
    };
    let (small, large) = (disk.buffer(4096), disk.buffer(1 << 20));
    if small.registered(&disk.pool).is_none() {
        return println!("skipped: the limit on locked memory allows no registered buffers");
    }
    assert_ne!(small.registered(&disk.pool), large.registered(&disk.pool));
    // Another ring would move other memory under the same index.
    let other = BufferPool::new();
    assert_eq!(large.registered(&other), None);
}

/// A disk in a file, and what its durable writes have told.
fn durable_disk() -> Option<(UringDisk, File, Arc<AtomicU8>)> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let geometry = Geometry { capacity: 1 << 20, write_through: false };
    match UringDisk::new(Arc::new(file.try_clone().unwrap().into()), geometry) {
        Ok(disk) => Some((disk, file, Arc::default())),
        Err(error) => {
            println!("skipped: io_uring: {error}");
            None
        }
    }
}

fn submit_durably(disk: &mut UringDisk, told: &Arc<AtomicU8>, token: Token, fill: u8) {
    let mut data = AlignedBuf::zeroed(BLOCK);
    data.fill(fill);
    let told = Arc::clone(told);
    disk.announce(Box::new(move || {
        told.fetch_add(1, Ordering::Relaxed);
    }));
    disk.submit(Op::WriteDurably { token, offset: 0, data: data.into() });
}

fn first_byte(file: &File) -> u8 {
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut byte, 0).unwrap();
    byte[0]
}

#[test]
fn an_owner_that_would_sleep_writes_to_a_quick_device_itself() {
    let Some((mut disk, file, told)) = durable_disk() else { return };
    let mut out = Vec::new();
    for (n, usual) in [(1, 0), (2, 50_000), (3, 50_000_000)] {
        disk.committer.set_usual(Duration::from_nanos(usual));
        submit_durably(&mut disk, &told, n, u8::try_from(n).unwrap());
        assert_eq!(disk.committer.is_for_the_owner(), n == 2);
        while out.is_empty() {
            disk.reap(Wait::AtMost(Duration::from_secs(10)), &mut out);
        }
        let done = out.pop().unwrap();
        assert_eq!((done.token, done.result.is_ok()), (n, true));
        assert_eq!((u64::from(told.load(Ordering::Relaxed)), u64::from(first_byte(&file))), (n, n));
    }
}

#[test]
fn an_owner_that_has_other_work_leaves_durable_writes_to_the_thread() {
    let Some((mut disk, file, told)) = durable_disk() else { return };
    let mut out = Vec::new();
    disk.committer.set_usual(Duration::from_micros(50));
    // It does not wait.
    submit_durably(&mut disk, &told, 1, 1);
    disk.reap(Wait::Never, &mut out);
    assert!(!disk.committer.is_for_the_owner());
    while out.is_empty() {
        disk.reap(Wait::AtMost(Duration::from_secs(10)), &mut out);
    }
    // A read is out beside.
    disk.committer.set_usual(Duration::from_micros(50));
    let buf = disk.buffer(BLOCK);
    disk.submit(Op::Read { token: 2, offset: 4096, buf });
    submit_durably(&mut disk, &told, 3, 3);
    assert!(disk.busy() && disk.committer.is_for_the_owner());
    while out.len() < 3 {
        disk.reap(Wait::AtMost(Duration::from_secs(10)), &mut out);
    }
    assert_eq!((told.load(Ordering::Relaxed), first_byte(&file)), (2, 3));
    // One that was never sent is carried out before the disk is gone.
    submit_durably(&mut disk, &told, 4, 4);
    drop(disk);
    assert_eq!((told.load(Ordering::Relaxed), first_byte(&file)), (3, 4));
}
