//! The thread of a disk: owns its core, its ring and its buffers; and the helper that runs index checkpoints.
//!
//! Invariant: the thread ends only when the disk is closed or every handle is gone.
//! Invariant: a disk whose thread has panicked is out, and says so: nobody takes it for one that was closed.

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, SendError, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::cache::CacheBytes;
use super::catalog::Catalog;
use super::core::{Core, LAZY_FLUSH, Turn};
use super::format::record::DeviceId;
use super::format::superblock::{ClusterId, Superblock};
use super::handle::DiskHandle;
use super::open::{Open, OpenError, Opened, check_device, check_index, open};
use super::recovery::{RecoveryError, Report};
use super::shared::{Request, Shared};
use crate::index::{Index, IndexError, RocksIndex, RocksOptions};
use crate::io::{DeviceError, Disk, OpenOptions, Wait, open_device};

/// Why a disk whose thread panicked is out.
const PANICKED: &str = "its thread panicked; report this, with the line above, and restart";

/// What a disk is made of.
#[derive(Debug, Clone)]
pub struct DiskConfig {
    /// Raw block device or preallocated file.
    pub device: std::path::PathBuf,
    /// How it is opened.
    pub io: OpenOptions,
    /// The index: a directory, best on flash.
    pub index: RocksOptions,
    /// Where the index lives.
    pub index_path: std::path::PathBuf,
    /// Bytes of the read cache.
    pub cache_bytes: CacheBytes,
    /// Refuse a device of another cluster.
    pub cluster: Option<ClusterId>,
}

/// Why a disk could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The superblock, the index, the recovery.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The index.
    #[error(transparent)]
    Index(#[from] crate::index::IndexError),
    /// The operating system gave no thread.
    #[error("start disk thread: {0}")]
    Thread(std::io::Error),
}

/// Opens a device with its index and starts its thread. An index that is missing or stale is made anew from the segments.
pub fn start(
    config: &DiskConfig,
    catalog: Arc<dyn Catalog>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(DiskHandle, Report), StartError> {
    let error = match start_once(config, catalog.clone(), progress) {
        Err(error) => error,
        started => return started,
    };
    let Some(why) = error.wants_rebuild() else { return Err(error) };
    tracing::warn!(device = %config.device.display(), %error, "the index cannot be used; rebuilding it from the segments");
    RocksIndex::destroy(&config.index_path)?;
    let (handle, mut report) = start_once(config, catalog, progress)?;
    report.rebuilt = Some(why);
    Ok((handle, report))
}

impl StartError {
    /// Why the index is to be made anew, if that mends it.
    fn wants_rebuild(&self) -> Option<&'static str> {
        let index = match self {
            Self::Open(OpenError::StaleIndex(why)) => return Some(why),
            Self::Index(index)
            | Self::Open(OpenError::Index(index) | OpenError::Recovery(RecoveryError::Index(index))) => index,
            _ => return None,
        };
        matches!(index, IndexError::Damaged { .. }).then_some("it was damaged")
    }
}

/// Drops the index of a disk that nobody has open, and starts the disk, which makes it anew.
pub fn rebuild_index(
    config: &DiskConfig,
    catalog: Arc<dyn Catalog>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(DiskHandle, Report), StartError> {
    let mut disk = open_device(&config.device, OpenOptions { read_only: true, ..config.io })?;
    let (superblock, _) = check_device(disk.as_mut(), config.cluster)?;
    refuse_other_index(config, &superblock)?;
    RocksIndex::destroy(&config.index_path)?;
    drop(disk);
    start_once(config, catalog, progress)
}

/// Starts a device that was never used where the index of a device that is gone lies. That one is destroyed: it is derivable, if its device
/// comes back.
///
/// # Errors
/// [`OpenError::OtherIndex`], and nothing is touched, if the device was used before: then it is not in the place of the other one, and somebody
/// mistook the index.
pub fn start_in_place_of(
    gone: DeviceId,
    config: &DiskConfig,
    catalog: Arc<dyn Catalog>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(DiskHandle, Report), StartError> {
    let mut disk = open_device(&config.device, OpenOptions { read_only: true, ..config.io })?;
    let (superblock, _) = check_device(disk.as_mut(), config.cluster)?;
    match refuse_other_index(config, &superblock) {
        Err(OpenError::OtherIndex(found)) if found == gone && superblock.epoch == 0 => {}
        Err(error) => return Err(error.into()),
        Ok(()) => return Err(OpenError::OtherIndex(gone).into()),
    }
    tracing::warn!(device = %superblock.device, index = %config.index_path.display(), %gone, "dropping the index of a disk that is gone: a new one is in its place");
    RocksIndex::destroy(&config.index_path)?;
    drop(disk);
    start_once(config, catalog, progress)
}

/// Refuses the index of another disk: a slip of the pen would cost that one hours. What cannot be read is nobody's, but what is open is
/// somebody's.
fn refuse_other_index(config: &DiskConfig, superblock: &Superblock) -> Result<(), OpenError> {
    if !config.index_path.join("CURRENT").exists() {
        return Ok(());
    }
    let index = match RocksIndex::open(&config.index_path, &config.index) {
        Ok(index) => index,
        // RocksDB names its lock file; it tells in no other way.
        Err(open @ IndexError::Store { .. }) if open.to_string().contains("LOCK") => return Err(open.into()),
        Err(_) => return Ok(()),
    };
    match check_index(&index, superblock) {
        Err(refused @ OpenError::OtherIndex(_)) => Err(refused),
        _ => Ok(()),
    }
}

#[expect(clippy::disallowed_methods, reason = "how long it took is for the log alone")]
fn start_once(
    config: &DiskConfig,
    catalog: Arc<dyn Catalog>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(DiskHandle, Report), StartError> {
    let disk = open_device(&config.device, config.io)?;
    let began = Instant::now();
    let index = open_index(&config.index_path, &config.index)?;
    let (index_took, began) = (began.elapsed(), Instant::now());
    let options = Open { cluster: config.cluster, cache_bytes: config.cache_bytes, progress };
    let Opened { core, handle, report } = open(disk, index, catalog, options)?;
    tracing::info!(device = %core.shared.device, ?index_took, log_took = ?began.elapsed(), "index and log are open");
    spawn(core).map_err(StartError::Thread)?;
    Ok((handle, report))
}

fn open_index(path: &Path, options: &RocksOptions) -> Result<Arc<dyn Index>, crate::index::IndexError> {
    Ok(Arc::new(RocksIndex::open(path, options)?))
}

/// Opens any disk with any index and starts its thread: for tests and benches.
pub fn start_on(
    disk: Box<dyn Disk>,
    index: Arc<dyn Index>,
    catalog: Arc<dyn Catalog>,
    options: Open<'_>,
) -> Result<(DiskHandle, Report), StartError> {
    let Opened { core, handle, report } = open(disk, index, catalog, options)?;
    spawn(core).map_err(StartError::Thread)?;
    Ok((handle, report))
}

fn spawn(core: Core) -> std::io::Result<()> {
    let checkpointer = Checkpointer::spawn(&core.shared)?;
    let name = format!("disk-{}", &core.shared.device.to_string()[..8]);
    std::thread::Builder::new().name(name).spawn(move || run(core, checkpointer))?;
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the driver of the core is where time comes in")]
fn run(mut core: Core, checkpointer: Checkpointer) {
    let began = Instant::now();
    // A panic of the core is our bug. Its channel closes with it, so that callers hear of it and none waits for ever.
    let _witness = Witness(Arc::downgrade(&core.shared));
    loop {
        // What is queued is found by the first part of a turn; sleeping is right only when that started nothing.
        let wait = Wait::AtMost(if core.has_lazy_work() { LAZY_FLUSH } else { Duration::from_millis(500) });
        if core.turn(began.elapsed(), wait) == Turn::Closed {
            // First let go of device and index: who is told may open them again, or end the process, and RocksDB
            // must not be taken apart on this thread while C++ takes the process apart on another.
            let farewell = core.farewell.take();
            drop(core);
            checkpointer.end();
            if let Some(farewell) = farewell {
                farewell.say();
            }
            return;
        }
        if core.take_checkpoint() && checkpointer.begin().is_err() {
            core.fail("the checkpoint thread is gone; restart");
        }
    }
}

/// Takes the disk out when its thread panics; dropped before the core, whose end is what callers hear of first. Weak: a share of its own would
/// keep the thread from seeing that every handle is gone.
struct Witness(Weak<Shared>);

impl Drop for Witness {
    fn drop(&mut self) {
        let Some(shared) = self.0.upgrade().filter(|_| std::thread::panicking()) else { return };
        if shared.failed.set(Arc::from(PANICKED)).is_ok() {
            tracing::error!(device = %shared.device, reason = PANICKED, "disk is out");
        }
    }
}

/// Says that a checkpoint failed when its thread panics: the core would wait for it for ever.
struct CheckpointWitness<'a>(&'a Shared);

impl Drop for CheckpointWitness<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let failed = IndexError::Store { verb: "checkpoint", reason: "its thread panicked".to_owned() };
            let _closed = self.0.send(Request::Checkpointed(Err(failed)));
        }
    }
}

/// Pause between two looks at the room that the index has, where there is no checkpoint.
const LOOK_FOR_ROOM: Duration = Duration::from_secs(10);

/// The helper thread that runs index checkpoints: they sync files, which takes long. It looks how much room the index has, too.
struct Checkpointer {
    requests: Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Checkpointer {
    fn spawn(shared: &Arc<Shared>) -> std::io::Result<Self> {
        let (requests, wanted) = channel::<()>();
        // Weak: this thread must not keep the disk's channel open after the last handle has gone.
        let shared = Arc::downgrade(shared);
        let thread = std::thread::Builder::new().name("checkpoint".to_owned()).spawn(move || {
            loop {
                let wanted = wanted.recv_timeout(LOOK_FOR_ROOM);
                if wanted == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
                let Some(shared) = shared.upgrade() else { return };
                if wanted.is_ok() {
                    let _witness = CheckpointWitness(&shared);
                    let result = shared.index.checkpoint();
                    let _closed = shared.send(Request::Checkpointed(result));
                }
                shared.look_for_room();
            }
        })?;
        Ok(Self { requests, thread })
    }

    fn begin(&self) -> Result<(), SendError<()>> {
        self.requests.send(())
    }

    /// Waits until the thread has let go of the index.
    fn end(self) {
        drop(self.requests);
        if self.thread.join().is_err() {
            tracing::error!("the checkpoint thread of a disk panicked; report this");
        }
    }
}
