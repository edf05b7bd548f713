//! Opens raw block devices and preallocated files as disks, and makes such files.
//!
//! Invariant: an open device is locked against every other opener of Quarry, and a mounted block device is refused.
//! Invariant: opening writes nothing; `preallocate` never touches an existing file and leaves no half-made one.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FallocateFlags, FlockOperation, OFlags};

use super::buffer::AlignedBuf;
use super::pool::PoolDisk;
use super::uring::UringDisk;
use super::{BLOCK, Disk, Geometry};

/// Which body of the seam carries the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// io_uring where the kernel permits it, threads otherwise.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// Threads with pread and pwrite.
    Pread,
}

/// How to open a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenOptions {
    /// The body to use.
    pub backend: Backend,
    /// Refuse what holds fewer bytes than this.
    pub minimum: u64,
    /// How long to wait for a device in use. The kernel takes down a killed process's ring, and with it the lock, a moment
    /// after the process is gone: a restart at once would find its own disk busy.
    pub lock_wait: Duration,
    /// Open for reading only: writes complete with an error. The lock is taken all the same.
    pub read_only: bool,
}

/// Why a device could not be opened or made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There is nothing at the path.
    #[error("{}: no such file or device", path.display())]
    Missing {
        /// As given.
        path: PathBuf,
    },
    /// Locked by another process, or a mounted or otherwise claimed block device.
    #[error("{}: in use by another process, or mounted", path.display())]
    Busy {
        /// As given.
        path: PathBuf,
    },
    /// A directory, character device, pipe or socket.
    #[error("{}: neither a block device nor a regular file", path.display())]
    NotADevice {
        /// As given.
        path: PathBuf,
    },
    /// Holds less than the caller needs.
    #[error("{}: {capacity} bytes is too small, {minimum} are needed", path.display())]
    TooSmall {
        /// As given.
        path: PathBuf,
        /// What it holds.
        capacity: u64,
        /// What is needed.
        minimum: u64,
    },
    /// `preallocate` found something at the path.
    #[error("{}: exists already", path.display())]
    Exists {
        /// As given.
        path: PathBuf,
    },
    /// The file system cannot hold a file of the size asked for.
    #[error("{}: no space for {needed} bytes on its file system", path.display())]
    NoSpace {
        /// As given.
        path: PathBuf,
        /// Bytes asked for.
        needed: u64,
    },
    /// A size for `preallocate` that is zero or no multiple of [`BLOCK`].
    #[error("{}: {bytes} bytes is not a positive multiple of {BLOCK}", path.display())]
    Ragged {
        /// As given.
        path: PathBuf,
        /// Bytes asked for.
        bytes: u64,
    },
    /// The drive's sectors are larger than [`BLOCK`].
    #[error("{}: sectors of {sector} bytes are not supported, at most {BLOCK}", path.display())]
    SectorTooLarge {
        /// As given.
        path: PathBuf,
        /// Its logical sector size.
        sector: u32,
    },
    /// The operating system refused.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// As given.
        path: PathBuf,
        /// What was attempted: verb and object.
        action: &'static str,
        /// What it said.
        source: io::Error,
    },
}

impl DeviceError {
    /// Sorts an operating-system error into the variant that says what the operator can do.
    fn from_io(path: &Path, action: &'static str, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENXIO | libc::ENODEV | libc::ENOTDIR) => Self::Missing { path },
            Some(libc::EBUSY | libc::EWOULDBLOCK) => Self::Busy { path },
            Some(libc::EISDIR) => Self::NotADevice { path },
            Some(libc::EEXIST) => Self::Exists { path },
            _ => Self::Io { path, action, source },
        }
    }
}

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// A raw block device.
    Block,
    /// A regular file.
    File,
}

/// What `quarry disk info` shows of the device below the format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// As given.
    pub path: PathBuf,
    /// Block device or file.
    pub kind: DeviceKind,
    /// Usable bytes.
    pub capacity: u64,
    /// Bytes of a logical sector.
    pub logical_sector: u32,
    /// Bytes of a physical sector.
    pub physical_sector: u32,
    /// The drive's cache is write-through. Files never claim it.
    pub write_through: bool,
    /// A spinning disk, where the kernel knows.
    pub rotational: Option<bool>,
    /// Transfers bypass the page cache.
    pub direct: bool,
    /// Bytes of a file that its file system has allocated; the capacity of a block device.
    pub allocated: u64,
}

/// An open device. Its lock goes with it, and does not wait for the last copy of the file's descriptor: a process that is just being
/// forked holds one until it becomes another program, and the kernel one for a request that it has completed but not yet forgotten.
///
/// The claim on a block device has no such early end (`open(2)`, `O_EXCL`): there [`OpenOptions::lock_wait`] helps.
#[derive(Debug)]
pub(super) struct DeviceFile(File);

impl From<File> for DeviceFile {
    fn from(file: File) -> Self {
        Self(file)
    }
}

impl Deref for DeviceFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for DeviceFile {
    fn drop(&mut self) {
        // What fails here has held no lock.
        let _ = rustix::fs::flock(&self.0, FlockOperation::NonBlockingUnlock);
    }
}

/// Open a block device or a preallocated file, lock it and start a body over it.
pub fn open_device(path: &Path, options: OpenOptions) -> Result<Box<dyn Disk>, DeviceError> {
    let (file, info) = wait_for_lock(path, options)?;
    if info.capacity < options.minimum.max(BLOCK as u64) {
        let minimum = options.minimum.max(BLOCK as u64);
        return Err(DeviceError::TooSmall { path: info.path, capacity: info.capacity, minimum });
    }
    if info.kind == DeviceKind::File && info.allocated < info.capacity {
        tracing::warn!(path = %path.display(), "file is sparse: flushes will wait for its file system's journal");
    }
    let geometry = Geometry { capacity: info.capacity, write_through: info.write_through };
    let disk = start(file, geometry, options.backend).map_err(|source| DeviceError::Io {
        path: path.to_path_buf(),
        action: "start disk I/O",
        source,
    })?;
    tracing::info!(
        path = %path.display(), body = disk.name(), direct = info.direct, capacity = info.capacity,
        write_through = info.write_through, "device opened"
    );
    Ok(disk)
}

/// Look at a device without keeping it open. A device in use elsewhere is [`DeviceError::Busy`].
pub fn inspect_device(path: &Path) -> Result<DeviceInfo, DeviceError> {
    open_locked(path, true).map(|(_, info)| info)
}

fn start(file: DeviceFile, geometry: Geometry, backend: Backend) -> io::Result<Box<dyn Disk>> {
    let file = Arc::new(file);
    if backend == Backend::Pread {
        return Ok(Box::new(PoolDisk::new(&file, geometry)?));
    }
    match UringDisk::new(Arc::clone(&file), geometry) {
        Ok(disk) => Ok(Box::new(disk)),
        Err(error) if backend == Backend::Auto => {
            tracing::warn!(%error, "io_uring is refused here, using threads with pread and pwrite");
            Ok(Box::new(PoolDisk::new(&file, geometry)?))
        }
        Err(error) => Err(error),
    }
}

/// Opens the device, and tries again while it is in use, as long as the caller is ready to wait.
#[expect(clippy::disallowed_methods, reason = "waiting for another process needs a sleep")]
fn wait_for_lock(path: &Path, options: OpenOptions) -> Result<(DeviceFile, DeviceInfo), DeviceError> {
    const STEP: Duration = Duration::from_millis(20);
    let mut left = options.lock_wait;
    loop {
        match open_locked(path, options.read_only) {
            Err(DeviceError::Busy { .. }) if !left.is_zero() => {
                std::thread::sleep(STEP);
                left = left.saturating_sub(STEP);
            }
            result => return result,
        }
    }
}

fn open_locked(path: &Path, read_only: bool) -> Result<(DeviceFile, DeviceInfo), DeviceError> {
    let fail = |action| move |error: io::Error| DeviceError::from_io(path, action, error);
    // Looked at before it is opened: opening a pipe would block, opening a tape would rewind it.
    let kind = match path.metadata().map_err(fail("inspect device"))?.file_type() {
        kind if kind.is_block_device() => DeviceKind::Block,
        kind if kind.is_file() => DeviceKind::File,
        _ => return Err(DeviceError::NotADevice { path: path.to_path_buf() }),
    };
    // On a block device O_EXCL without O_CREAT claims it, which fails while it is mounted or claimed.
    let claim = if kind == DeviceKind::Block { libc::O_EXCL } else { 0 };
    let open = |direct| {
        let flags = claim | libc::O_CLOEXEC | libc::O_NONBLOCK | direct;
        std::fs::OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(path)
    };
    let (file, mut direct) = match open(libc::O_DIRECT) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            (open(0).map_err(fail("open device"))?, false)
        }
        opened => (opened.map_err(fail("open device"))?, true),
    };
    let file = DeviceFile(file);
    if kind == DeviceKind::File {
        rustix::fs::flock(&*file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| fail("lock device")(error.into()))?;
    }
    // O_NONBLOCK was for the open alone.
    direct = direct && accepts_direct(&file);
    let flags = if direct { OFlags::DIRECT } else { OFlags::empty() };
    rustix::fs::fcntl_setfl(&*file, flags).map_err(|error| fail("set device flags")(error.into()))?;
    if !direct {
        tracing::warn!(path = %path.display(), "O_DIRECT is refused here: transfers go through the page cache");
    }
    let info = measure(path, &file, kind, direct)?;
    Ok((file, info))
}

/// Some file systems take the flag at open and refuse the transfer.
fn accepts_direct(file: &File) -> bool {
    let mut probe = AlignedBuf::zeroed(BLOCK);
    !matches!(file.read_at(&mut probe, 0), Err(error) if error.raw_os_error() == Some(libc::EINVAL))
}

fn measure(path: &Path, file: &File, kind: DeviceKind, direct: bool) -> Result<DeviceInfo, DeviceError> {
    let fail = |error| DeviceError::from_io(path, "measure device", error);
    let meta = file.metadata().map_err(fail)?;
    let mut info = DeviceInfo {
        path: path.to_path_buf(),
        kind,
        capacity: meta.len(),
        logical_sector: 512,
        physical_sector: 512,
        write_through: false,
        rotational: None,
        direct,
        allocated: meta.blocks().saturating_mul(512),
    };
    if kind == DeviceKind::Block {
        info.capacity = block_device_bytes(file).map_err(fail)?;
        info.allocated = info.capacity;
        info.logical_sector = rustix::fs::ioctl_blksszget(file).map_err(|error| fail(error.into()))?;
        info.physical_sector = rustix::fs::ioctl_blkpbszget(file).map_err(|error| fail(error.into()))?;
        info.write_through = queue_attribute(meta.rdev(), "write_cache").as_deref() == Some("write through");
        info.rotational = queue_attribute(meta.rdev(), "rotational").map(|value| value == "1");
    }
    info.capacity -= info.capacity % BLOCK as u64;
    if info.logical_sector as usize > BLOCK {
        return Err(DeviceError::SectorTooLarge { path: info.path, sector: info.logical_sector });
    }
    Ok(info)
}

fn block_device_bytes(file: &File) -> io::Result<u64> {
    // linux/fs.h: BLKGETSIZE64 is _IOR(0x12, 114, size_t), and stores a u64.
    const BLKGETSIZE64: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<usize>(0x12, 114);
    // SAFETY: the request is called on an open descriptor and stores exactly one u64 through its argument.
    let bytes = unsafe { rustix::ioctl::ioctl(file, rustix::ioctl::Getter::<BLKGETSIZE64, u64>::new())? };
    Ok(bytes)
}

/// One line of the block layer's queue directory; a partition's queue is that of the disk around it.
fn queue_attribute(rdev: u64, name: &str) -> Option<String> {
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let disk = if device.join("partition").exists() { device.join("..") } else { device };
    let value = std::fs::read_to_string(disk.join("queue").join(name)).ok()?;
    Some(value.trim().to_owned())
}

/// Bytes of one write of `preallocate`.
const FILL: usize = 4 << 20;

/// Make a file of `bytes` and write every byte of it once, so that later flushes do not wait for a journal.
///
/// `progress` hears how many bytes are written so far. Refuses to overwrite; removes the file again on failure.
pub fn preallocate(path: &Path, bytes: u64, progress: &mut dyn FnMut(u64)) -> Result<(), DeviceError> {
    if bytes == 0 || !bytes.is_multiple_of(BLOCK as u64) {
        return Err(DeviceError::Ragged { path: path.to_path_buf(), bytes });
    }
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_CLOEXEC)
        .open(path)
        .map_err(|error| DeviceError::from_io(path, "create file", error))?;
    let file = DeviceFile(file);
    let made = fill(path, &file, bytes, progress).and_then(|()| sync_parent(path));
    if made.is_err()
        && let Err(error) = std::fs::remove_file(path)
    {
        tracing::error!(path = %path.display(), %error, "remove half-made file");
    }
    made
}

fn fill(path: &Path, file: &File, bytes: u64, progress: &mut dyn FnMut(u64)) -> Result<(), DeviceError> {
    let fail = |action| {
        move |error: io::Error| match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => {
                DeviceError::NoSpace { path: path.to_path_buf(), needed: bytes }
            }
            _ => DeviceError::from_io(path, action, error),
        }
    };
    // Asks for everything at once: contiguous where possible, and a full file system says so before hours of work.
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
        Err(error) => return Err(fail("allocate file")(error.into())),
    }
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|error| fail("lock file")(error.into()))?;
    if rustix::fs::fcntl_setfl(file, OFlags::DIRECT).is_ok() && !accepts_direct(file) {
        rustix::fs::fcntl_setfl(file, OFlags::empty())
            .map_err(|error| fail("set file flags")(error.into()))?;
    }
    let zeros = AlignedBuf::zeroed(FILL);
    let mut written = 0;
    while written < bytes {
        let step = usize::try_from(bytes - written).unwrap_or(FILL).min(FILL);
        file.write_all_at(&zeros[..step], written).map_err(fail("write file"))?;
        written += step as u64;
        progress(written);
    }
    file.sync_all().map_err(fail("flush file"))
}

fn sync_parent(path: &Path) -> Result<(), DeviceError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let synced = File::open(parent).and_then(|directory| directory.sync_all());
    synced.map_err(|error| DeviceError::from_io(path, "flush directory", error))
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
