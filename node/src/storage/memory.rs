//! How much memory there is for this process.

use std::path::Path;

const KIB: u64 = 1024;
/// Taken where nothing can be read.
const LEAST: u64 = 1 << 30;

/// Bytes of the machine's memory, or of the control group that the process is in (a container's limit), if that is less.
pub(crate) fn total() -> u64 {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).unwrap_or_default();
    let groups = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit = groups.iter().filter_map(|path| read(path).trim().parse().ok()).min();
    machine(&read("/proc/meminfo")).unwrap_or(LEAST).min(limit.unwrap_or(u64::MAX))
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

    #[test]
    fn this_machine_has_memory() {
        assert!(total() >= 64 << 20);
    }
}
