use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};

use tokio::runtime::Runtime;

use super::super::{Disks, Progress};
use super::*;
use crate::config::{MIN_DISK, Source};

/// A data directory of a cluster, and disks beside it.
struct Rig {
    dir: tempfile::TempDir,
    runtime: Runtime,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("cluster")).unwrap();
        provision::remember_cluster(dir.path(), provision::random_cluster()).unwrap();
        Self { dir, runtime: Runtime::new().unwrap() }
    }

    fn path(&self, disk: &str) -> PathBuf {
        self.dir.path().join(disk)
    }

    fn config(&self, disks: &[&str]) -> Config {
        let data = self.dir.path().display();
        let mut text = format!("[node]\ndata = \"{data}\"\n[cluster]\nlisten = \"127.0.0.1:0\"\n");
        for disk in disks {
            text.push_str(&format!(
                "[[disk]]\npath = \"{data}/{disk}\"\nindex = \"{data}/index-{disk}\"\nsize = \"256M\"\n"
            ));
        }
        Config::parse(Source { file: &self.path("quarry.toml"), text: &text }).unwrap()
    }

    /// Which disks are open and which are missing after a start, which is remembered.
    fn start(&self, disks: &[&str]) -> Result<(Vec<DeviceId>, Vec<Missing>), String> {
        let mut quiet: Progress = Box::new(|_, _, _| ());
        let config = self.config(disks);
        let disks = Disks::open(&config, &mut quiet).map_err(|e| e.to_string())?;
        let open = disks.handles().iter().map(|disk| disk.device()).collect();
        disks.remember(&config).unwrap();
        self.runtime.block_on(disks.close());
        Ok((open, disks.missing()))
    }

    /// Writes zeroes over what lies at the beginning of a disk; what lay there.
    fn zero(&self, disk: &str, bytes: usize) -> Vec<u8> {
        let mut file = OpenOptions::new().read(true).write(true).open(self.path(disk)).unwrap();
        let mut was = vec![0; bytes];
        file.read_exact(&mut was).unwrap();
        self.put(disk, &vec![0; bytes]);
        was
    }

    fn put(&self, disk: &str, bytes: &[u8]) {
        let mut file = OpenOptions::new().write(true).open(self.path(disk)).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(bytes).unwrap();
        file.sync_all().unwrap();
    }
}

/// One dead disk of twelve kept the node of a cluster from starting.
#[test]
fn a_node_of_a_cluster_starts_without_a_disk_that_it_had_and_with_it_when_it_is_back() {
    let rig = Rig::new();
    let all = rig.start(&["a", "b"]).unwrap().0;
    let (gone, aside) = (rig.path("b"), rig.path("b.aside"));
    let without_it = |what: &str, why: &str| {
        for start in ["once", "and again"] {
            let (open, missing) = rig.start(&["a", "b"]).unwrap();
            assert_eq!(open, all[..1], "{what} {start}");
            let [missing] = &missing[..] else { panic!("{what}: {missing:?}") };
            assert_eq!((missing.device, &missing.path), (all[1], &gone), "{what} {start}");
            assert!(missing.why.contains(why), "{what} {start}: {}", missing.why);
        }
    };
    let with_it = |what: &str| assert_eq!(rig.start(&["a", "b"]), Ok((all.clone(), Vec::new())), "{what}");

    std::fs::rename(&gone, &aside).unwrap();
    without_it("gone", "no such file");
    assert!(!gone.exists(), "nothing is made in its place");
    std::fs::rename(&aside, &gone).unwrap();
    with_it("gone");

    let was = rig.zero("b", 4 << 20);
    without_it("empty", "not a Quarry device");
    rig.put("b", &was);
    with_it("empty");

    std::fs::rename(&gone, &aside).unwrap();
    std::fs::write(&gone, "").unwrap();
    without_it("without bytes", "too small");
    std::fs::rename(&aside, &gone).unwrap();
    with_it("without bytes");

    let (index, index_aside) = (rig.path("index-b"), rig.path("index-b.aside"));
    std::fs::rename(&index, &index_aside).unwrap();
    std::fs::write(&index, "no directory").unwrap();
    without_it("without an index that opens", "index");
    std::fs::remove_file(&index).unwrap();
    std::fs::rename(&index_aside, &index).unwrap();
    with_it("without an index that opens");
}

#[test]
fn slips_and_disks_that_were_never_open_are_no_dead_disks() {
    let rig = Rig::new();
    let all = rig.start(&["a", "b"]).unwrap().0;
    let (path, aside) = (rig.path("b"), rig.path("b.aside"));
    let refused = |disks: &[&str], why: &str| {
        let error = rig.start(disks).unwrap_err();
        assert!(error.contains(why), "{disks:?}: {error}");
    };
    // In use.
    let lock = OpenOptions::new().write(true).open(&path).unwrap();
    lock.lock().unwrap();
    refused(&["a", "b"], "in use");
    drop(lock);
    // Of another cluster.
    std::fs::rename(&path, &aside).unwrap();
    let mut quiet: Progress = Box::new(|_, _, _| ());
    provision::make_disk_file(&path, MIN_DISK, provision::random_cluster(), &mut quiet).unwrap();
    refused(&["a", "b"], "belongs to cluster");
    // One that was just listed.
    std::fs::rename(&path, rig.path("c")).unwrap();
    std::fs::rename(&aside, &path).unwrap();
    rig.zero("c", 4 << 20);
    refused(&["a", "b", "c"], "not a Quarry device");
    // The first one has the votes; and without any there is no node.
    std::fs::rename(rig.path("a"), rig.path("a.aside")).unwrap();
    refused(&["a", "b"], "--replace");
    std::fs::rename(&path, &aside).unwrap();
    refused(&["a", "b"], "no such file");
    std::fs::rename(rig.path("a.aside"), rig.path("a")).unwrap();
    // Of a version that did not remember its disks.
    let devices = Files::of(rig.dir.path()).devices;
    let known = std::fs::read(&devices).unwrap();
    std::fs::remove_file(&devices).unwrap();
    refused(&["a", "b"], "it was here before and is gone");
    std::fs::write(&devices, known).unwrap();
    assert_eq!(rig.start(&["a", "b"]).unwrap().0, all[..1]);
    // Who takes it out of the configuration says that it is over.
    rig.start(&["a"]).unwrap();
    refused(&["a", "b"], "it was here before and is gone");
    std::fs::rename(&aside, &path).unwrap();
    assert_eq!(rig.start(&["a", "b"]), Ok((all, Vec::new())));
}

/// A rescued copy was listed beside the original: some wrote to one of them, and others to the other.
#[test]
fn of_a_disk_and_its_copy_only_one_is_opened() {
    let rig = Rig::new();
    let all = rig.start(&["a", "b"]).unwrap().0;
    std::fs::copy(rig.path("b"), rig.path("c")).unwrap();
    let error = rig.start(&["a", "b", "c"]).unwrap_err();
    assert!(error.contains("one is a copy of the other"), "{error}");
    assert_eq!(rig.start(&["a", "b"]), Ok((all, Vec::new())));
}

#[test]
fn a_disk_that_is_missing_fails_whatever_it_is_asked_and_says_why() {
    let rig = Rig::new();
    let missing = [Missing { path: "/dev/sdx".into(), device: DeviceId([1; 16]), why: "burnt".to_owned() }];
    for (device, said) in [(1, "disk /dev/sdx"), (2, "is not at this node")] {
        let absent = Absent::new(DeviceId([device; 16]), &missing);
        assert_eq!(absent.device(), DeviceId([device; 16]));
        let error = rig.runtime.block_on(absent.version([0; 16])).unwrap_err();
        assert!(matches!(&error, Error::Unavailable { reason } if reason.contains(said)), "{error}");
        assert!(rig.runtime.block_on(absent.open([0; 16])).is_err());
    }
}
