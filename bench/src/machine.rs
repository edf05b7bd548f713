//! What a line says of the machine and of the state of the code, read from the kernel and from git.
//!
//! Invariant: a fact that cannot be read is "unknown" or zero; it never ends a run.

use std::path::Path;
use std::process::Command;

use serde::Serialize;

/// Where and what was measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    /// Commit of the working directory, with `-dirty` when it has changes.
    pub(crate) commit: String,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    /// The disk below the scratch directory: name, model, kind.
    pub(crate) disk: String,
    pub(crate) file_system: String,
    /// One-minute load before the run: on a shared machine the figures are what was left over.
    pub(crate) load_before: f64,
}

impl Machine {
    /// Facts of this machine and of the disk under `dir`.
    pub(crate) fn of(dir: &Path) -> Self {
        let first = |file: &str, key: &str| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
            line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let memory = first("/proc/meminfo", "MemTotal");
        let kib = memory.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        let (disk, file_system) = disk_below(dir);
        Self {
            commit: commit(),
            cpu: first("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: kib / 1024,
            kernel: read("/proc/sys/kernel/osrelease"),
            disk,
            file_system,
            load_before: load(),
        }
    }
}

/// One-minute load average.
pub(crate) fn load() -> f64 {
    read("/proc/loadavg").split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0.0)
}

/// Resident KiB of a process (`self` or a number).
pub(crate) fn resident_kib(process: &str) -> u64 {
    status_kib(process, "VmRSS:")
}

/// Most KiB that this process ever had.
pub(crate) fn peak_kib() -> u64 {
    status_kib("self", "VmHWM:")
}

fn status_kib(process: &str, key: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Processor microseconds of the threads of a process (`self` or a number) whose name `counts`.
pub(crate) fn cpu_us(process: &str, counts: impl Fn(&str) -> bool) -> u64 {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{process}/task")) else { return 0 };
    let of = |task: std::fs::DirEntry| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        let spent = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        let nanos = spent.split(' ').next()?.parse::<u64>().ok()?;
        Some(if counts(name.trim()) { nanos / 1000 } else { 0 })
    };
    tasks.flatten().filter_map(of).sum()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

fn git(args: &[&str]) -> Option<String> {
    let out = Command::new("git").args(args).output().ok().filter(|out| out.status.success())?;
    Some(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

fn commit() -> String {
    let Some(head) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if changes.is_empty() => head,
        _ => format!("{head}-dirty"),
    }
}

/// The block device and the file system that hold `dir`.
fn disk_below(dir: &Path) -> (String, String) {
    let unknown = || "unknown".to_owned();
    let Ok(stat) = rustix::fs::stat(dir) else { return (unknown(), unknown()) };
    let id = format!("{}:{}", rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some(&id)).unwrap_or_default();
    let kind = mount.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next()).unwrap_or("unknown");
    let node = Path::new("/sys/dev/block").join(&id);
    let Ok(node) = node.canonicalize() else { return (unknown(), kind.to_owned()) };
    let whole = if node.join("partition").exists() { node.join("..") } else { node.clone() };
    let attribute = |name: &str| {
        std::fs::read_to_string(whole.join(name)).map(|text| text.trim().to_owned()).unwrap_or_default()
    };
    let name = node.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let spins = if attribute("queue/rotational") == "1" { "rotational" } else { "solid state" };
    let cache = attribute("queue/write_cache");
    let disk = format!("{name} {} ({spins}, {cache})", attribute("device/model"));
    (disk.replace("  ", " "), kind.to_owned())
}
