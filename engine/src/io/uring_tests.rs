//! What the kernel's answers mean, without a kernel; the suite over a real ring stands in `device_tests.rs`.

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
    let mut disk = match UringDisk::new(file, geometry) {
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
