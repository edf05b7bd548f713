//! How much memory there is for this process.

use std::path::{Path, PathBuf};

const KIB: u64 = 1024;
/// Taken where nothing can be read.
const LEAST: u64 = 1 << 30;

/// Bytes of the machine's memory, or of the control groups that the process is in (a container's limit, a unit's `MemoryMax`), if that is less.
pub(crate) fn total() -> u64 {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let groups = limits(&read(Path::new("/proc/self/cgroup")));
    let limit = groups.iter().filter_map(|path| read(path).trim().parse().ok()).min();
    machine(&read(Path::new("/proc/meminfo"))).unwrap_or(LEAST).min(limit.unwrap_or(u64::MAX))
}

/// Where the limits of a process are that is in these groups (cgroups(7), `/proc/PID/cgroup`): each group has its own, and those above it hold too.
fn limits(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            v1 if v1.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let path = Path::new(path.trim_start_matches('/'));
        files.extend(path.ancestors().map(|group| Path::new(root).join(group).join(file)));
    }
    files
}

/// `MemTotal` of `/proc/meminfo` (proc(5)), in bytes.
fn machine(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(KIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_found_in_meminfo() {
        let text = "MemFree:  12 kB\nMemTotal:       24683428 kB\nBuffers: 1 kB\n";
        assert_eq!(machine(text), Some(24_683_428 * 1024));
        assert_eq!(machine("MemTotal: many kB"), None);
        assert_eq!(machine(""), None);
    }

    /// A limit of the service was not seen, and the cache of large bodies took a quarter of the machine.
    #[test]
    fn the_limits_of_all_groups_above_the_process_count() {
        let unified = limits("0::/system.slice/quarry.service\n");
        let names = ["system.slice/quarry.service/", "system.slice/", ""];
        let wanted: Vec<_> =
            names.map(|name| PathBuf::from(format!("/sys/fs/cgroup/{name}memory.max"))).into();
        assert_eq!(unified, wanted);
        let first = limits("12:cpu,cpuacct:/a\n4:memory:/a\n1:name=systemd:/a\nodd\n");
        let wanted = ["a/", ""]
            .map(|name| PathBuf::from(format!("/sys/fs/cgroup/memory/{name}memory.limit_in_bytes")));
        assert_eq!(first, wanted);
        assert_eq!(limits("0::/\n"), [PathBuf::from("/sys/fs/cgroup/memory.max")]);
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(total() >= 64 << 20);
    }
}
