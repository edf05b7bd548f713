//! Devices of every kind that this machine offers, and the suite over each real body.

use std::os::fd::BorrowedFd;
use std::process::Command;

use super::super::conformance::{self, CAPACITY};
use super::super::{Op, SIGNATURE_SPAN, Wait, foreign_signature};
use super::*;

const BACKENDS: [Backend; 2] = [Backend::Uring, Backend::Pread];

fn with(backend: Backend) -> OpenOptions {
    OpenOptions { backend, ..OpenOptions::default() }
}

fn image(dir: &tempfile::TempDir) -> PathBuf {
    let path = dir.path().join("disk");
    preallocate(&path, CAPACITY, &mut |_| {}).unwrap();
    path
}

/// None, with the reason printed, where the sandbox refuses io_uring.
fn open(path: &Path, backend: Backend) -> Option<Box<dyn Disk>> {
    match open_device(path, with(backend)) {
        Err(error @ DeviceError::Io { action: "start disk I/O", .. }) if backend == Backend::Uring => {
            println!("skipped: {error}");
            None
        }
        opened => Some(opened.unwrap()),
    }
}

#[test]
fn both_bodies_keep_the_contract_on_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir);
    for backend in BACKENDS {
        if let Some(mut disk) = open(&path, backend) {
            conformance::check_disk(&mut *disk, true);
        }
    }
}

#[test]
fn both_bodies_work_through_the_page_cache_where_o_direct_is_refused() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        println!("skipped: no tmpfs");
        return;
    };
    let path = image(&dir);
    for backend in BACKENDS {
        if let Some(mut disk) = open(&path, backend) {
            conformance::check_disk(&mut *disk, true);
        }
    }
}

#[test]
fn dropping_a_disk_carries_out_what_is_in_flight_and_frees_the_lock_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir);
    for (salt, backend) in (1..).zip(BACKENDS) {
        for round in 0..10 {
            let Some(mut disk) = open(&path, backend) else { break };
            for token in 0..500 {
                let op = conformance::write(&mut *disk, token, token * BLOCK as u64, BLOCK, salt + round);
                disk.submit(op);
            }
            disk.reap(Wait::Never, &mut Vec::new());
            drop(disk);
            let mut disk = open(&path, Backend::Pread).unwrap();
            for token in 0..500 {
                conformance::expect(&mut *disk, token * BLOCK as u64, BLOCK, salt + round);
            }
        }
    }
}

/// A process that is being forked holds a copy of each descriptor until it becomes another program: under load that took longer than
/// the next opener was ready to wait.
#[test]
fn copies_of_its_descriptor_keep_no_disk_locked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let mut copies = Vec::new();
    preallocate(&path, CAPACITY, &mut |_| copies = copies_of_descriptors(&path)).unwrap();
    for backend in BACKENDS {
        assert!(!copies.is_empty(), "a disk that is made or open has a descriptor");
        let Some(disk) = open(&path, backend) else { continue };
        copies = copies_of_descriptors(&path);
        assert!(matches!(inspect_device(&path), Err(DeviceError::Busy { .. })));
        drop(disk);
        assert!(open(&path, Backend::Pread).is_some());
    }
}

fn copies_of_descriptors(path: &Path) -> Vec<File> {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap());
    let ours = open.filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|to| to == path));
    let number = |entry: std::fs::DirEntry| entry.file_name().to_str().unwrap().parse().unwrap();
    // SAFETY: the disk that owns them is open for as long as this takes.
    let borrowed = ours.map(|entry| unsafe { BorrowedFd::borrow_raw(number(entry)) });
    borrowed.map(|descriptor| descriptor.try_clone_to_owned().unwrap().into()).collect()
}

#[test]
fn a_device_opens_once_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir);
    let first = open_device(&path, OpenOptions::default()).unwrap();
    for backend in BACKENDS {
        assert!(matches!(open_device(&path, with(backend)), Err(DeviceError::Busy { .. })));
    }
    assert!(matches!(inspect_device(&path), Err(DeviceError::Busy { .. })));
    drop(first);
    assert_eq!(inspect_device(&path).unwrap().capacity, CAPACITY);
}

#[test]
fn what_is_no_device_is_refused_by_kind() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path| open_device(path, OpenOptions::default()).map(|disk| disk.name()).unwrap_err();
    assert!(matches!(open(&dir.path().join("absent")), DeviceError::Missing { .. }));
    assert!(matches!(open(dir.path()), DeviceError::NotADevice { .. }));
    assert!(matches!(open(Path::new("/dev/null")), DeviceError::NotADevice { .. }));
    let path = dir.path().join("file");
    std::fs::write(&path, [1; BLOCK - 1]).unwrap();
    assert!(matches!(open(&path), DeviceError::TooSmall { capacity: 0, minimum: 4096, .. }));
    std::fs::write(&path, [1; 3 * BLOCK + 5]).unwrap();
    assert_eq!(inspect_device(&path).unwrap().capacity, 3 * BLOCK as u64);
    let options = OpenOptions { minimum: 4 * BLOCK as u64, ..OpenOptions::default() };
    assert!(matches!(open_device(&path, options), Err(DeviceError::TooSmall { capacity: 12288, .. })));
    assert_eq!(std::fs::read(&path).unwrap(), [1; 3 * BLOCK + 5], "a refusal touches nothing");
}

#[test]
fn a_read_only_device_refuses_writes() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir);
    for backend in BACKENDS {
        let options = OpenOptions { read_only: true, ..with(backend) };
        let Ok(mut disk) = open_device(&path, options) else { continue };
        let buf = AlignedBuf::zeroed(BLOCK);
        let done = conformance::run(&mut *disk, vec![Op::Write { token: 1, offset: 0, data: buf.into() }]);
        assert_eq!(done[&1].result.as_ref().unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}

#[test]
fn preallocation_writes_every_byte_reports_and_never_overwrites() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let bytes = 9 * (1 << 20) + BLOCK as u64;
    let mut heard = Vec::new();
    preallocate(&path, bytes, &mut |written| heard.push(written)).unwrap();
    assert_eq!(heard, [4 << 20, 8 << 20, bytes]);
    let info = inspect_device(&path).unwrap();
    assert_eq!((info.kind, info.capacity), (DeviceKind::File, bytes));
    assert!(info.allocated >= bytes && !info.write_through);
    assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == 0));

    std::fs::write(&path, b"precious").unwrap();
    assert!(matches!(preallocate(&path, bytes, &mut |_| {}), Err(DeviceError::Exists { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_failed_preallocation_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    for bytes in [0, 4095] {
        assert!(matches!(preallocate(&path, bytes, &mut |_| {}), Err(DeviceError::Ragged { .. })));
    }
    let exabyte = 1 << 60;
    assert!(matches!(preallocate(&path, exabyte, &mut |_| {}), Err(DeviceError::NoSpace { .. })));
    assert!(!path.exists());
    let missing = dir.path().join("absent").join("disk");
    assert!(matches!(preallocate(&missing, 4096, &mut |_| {}), Err(DeviceError::Missing { .. })));
}

/// A loop device that detaches itself.
struct Loop(String);

impl Loop {
    fn attach(file: &Path) -> Option<Self> {
        let ran = Command::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(file).output();
        match ran {
            Ok(output) if output.status.success() => {
                Some(Self(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
            }
            refused => {
                println!("skipped: losetup is not usable here: {refused:?}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn both_bodies_keep_the_contract_on_a_block_device() {
    let dir = tempfile::tempdir().unwrap();
    let file = image(&dir);
    let Some(device) = Loop::attach(&file) else { return };
    let path = Path::new(&device.0);
    let info = inspect_device(path).unwrap();
    assert_eq!((info.kind, info.capacity), (DeviceKind::Block, CAPACITY));
    assert!(info.direct && info.rotational.is_some(), "{info:?}");
    for backend in BACKENDS {
        for _ in 0..5 {
            let Some(mut disk) = open(path, backend) else { break };
            assert!(matches!(open_device(path, with(backend)), Err(DeviceError::Busy { .. })));
            conformance::check_disk(&mut *disk, true);
        }
    }
}

#[test]
fn a_mounted_block_device_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = image(&dir);
    let Some(device) = Loop::attach(&file) else { return };
    let mount = dir.path().join("mount");
    std::fs::create_dir(&mount).unwrap();
    let ran = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
    if !ran(Command::new("mkfs.ext4").args(["-q", &device.0]))
        || !ran(Command::new("mount").arg(&device.0).arg(&mount))
    {
        println!("skipped: mkfs.ext4 and mount are not usable here");
        return;
    }
    let opened = open_device(Path::new(&device.0), OpenOptions::default()).map(|disk| disk.name());
    assert!(ran(Command::new("umount").arg(&mount)));
    assert!(matches!(opened, Err(DeviceError::Busy { .. })), "{opened:?}");
    let head = std::fs::read(&file).unwrap();
    assert_eq!(foreign_signature(&head[..SIGNATURE_SPAN], &[]), Some("ext4"));
}
