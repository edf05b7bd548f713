use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};

use quarry_engine::consensus::Group;
use quarry_engine::disk::Report;
use quarry_engine::net::NodeId;
use tokio::runtime::Runtime;

use super::super::{Disks, Progress};
use super::*;
use crate::cluster::identity::Files;
use crate::config::{Config, MIN_DISK, Source};

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
        self.start_and(disks, |_| ())
    }

    fn start_and(
        &self,
        disks: &[&str],
        act: impl FnOnce(&Disks),
    ) -> Result<(Vec<DeviceId>, Vec<Missing>), String> {
        let mut quiet: Progress = Box::new(|_, _, _| ());
        let _inside = self.runtime.enter();
        let disks = Disks::open(&self.config(disks), &mut quiet).map_err(|e| e.to_string())?;
        let open = disks.handles().iter().map(|disk| disk.device()).collect();
        disks.remember().unwrap();
        act(&disks);
        self.runtime.block_on(disks.close());
        Ok((open, disks.missing()))
    }

    /// Writes something durable to a disk.
    fn write(&self, disks: &Disks, device: DeviceId, group: u32) {
        let disk = disks.handles().into_iter().find(|disk| disk.device() == device).unwrap();
        let voters = BTreeSet::from([NodeId([1; 16])]);
        self.runtime.block_on(Group::found(&disk, group, voters, 0)).unwrap();
    }

    fn copy(&self, from: &str, to: &str) {
        std::fs::copy(self.path(from), self.path(to)).unwrap();
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
}

/// A disk that was taken out of the list, or swapped in its place, was forgotten with its index groups and the names of its volumes.
#[test]
fn a_disk_that_is_listed_no_more_is_missing_until_the_cluster_has_it_out() {
    let rig = Rig::new();
    let all = rig.start(&["a", "b"]).unwrap().0;
    let path = rig.path("b");
    let misses = |disks: &[&str], why: &str| {
        let (open, missing) = rig.start(disks).unwrap();
        assert!(open.contains(&all[0]) && !open.contains(&all[1]));
        let [missing] = &missing[..] else { panic!("{missing:?}") };
        assert_eq!((missing.device, &missing.path), (all[1], &path));
        assert!(missing.why.contains(why), "{}", missing.why);
        open
    };
    misses(&["a"], "lists it no more");
    misses(&["a"], "lists it no more");
    assert_eq!(rig.start(&["a", "b"]), Ok((all.clone(), Vec::new())));
    // Another one in its place, with its index.
    std::fs::rename(&path, rig.path("b.aside")).unwrap();
    let mut quiet: Progress = Box::new(|_, _, _| ());
    let cluster = provision::known_cluster(rig.dir.path()).unwrap().unwrap();
    let fresh = provision::make_disk_file(&path, MIN_DISK, cluster, &mut quiet).unwrap().device;
    assert_eq!(misses(&["a", "b"], "another disk is in its place"), [all[0], fresh]);
    assert_eq!(misses(&["a", "b"], "another disk is in its place"), [all[0], fresh]);
    // It is back, at another place; the new one, which was used, keeps its index.
    std::fs::rename(rig.path("b.aside"), rig.path("c")).unwrap();
    assert_eq!(rig.start(&["a", "b", "c"]), Ok((vec![all[0], fresh, all[1]], Vec::new())));
    let error = rig.start(&["a", "c"]).map(|(_, missing)| missing);
    assert!(matches!(&error, Ok(missing) if missing.len() == 1 && missing[0].device == fresh), "{error:?}");
    // The cluster has the new one out, and then the other one.
    let out = |devices: &[DeviceId]| {
        let out = devices.iter().copied().collect();
        rig.start_and(&["a", "c"], |disks| disks.known().note(&disks.handles(), Some(&out)).unwrap())
            .unwrap();
    };
    out(&[fresh]);
    assert_eq!(rig.start(&["a", "c"]), Ok((all.clone(), Vec::new())));
    out(&[fresh, all[1]]);
    assert_eq!(rig.start(&["a"]), Ok((all[..1].to_vec(), Vec::new())));
    assert_eq!(rig.start(&["a"]), Ok((all[..1].to_vec(), Vec::new())));
    // What is gone for good is not there where it was.
    std::fs::rename(rig.path("c"), rig.path("c.aside")).unwrap();
    let error = rig.start(&["a", "c"]).unwrap_err();
    assert!(error.contains("it was here before and is gone"), "{error}");
    std::fs::rename(rig.path("c.aside"), rig.path("c")).unwrap();
    assert_eq!(rig.start(&["a", "c"]), Ok((all, Vec::new())), "it may come back");
}

#[test]
fn a_disk_that_is_out_and_listed_is_done_without_and_one_that_has_its_share_again_is_missed() {
    let rig = Rig::new();
    let all = rig.start(&["a", "b"]).unwrap().0;
    let note = |out: &[DeviceId]| {
        let out = out.iter().copied().collect();
        rig.start_and(&["a", "b"], |disks| disks.known().note(&disks.handles(), Some(&out)).unwrap()).unwrap()
    };
    std::fs::rename(rig.path("b"), rig.path("b.aside")).unwrap();
    assert_eq!(note(&[all[1]]).1.len(), 1, "listed still");
    assert_eq!(note(&[]).1.len(), 1, "listed still");
    assert_eq!(rig.start(&["a"]).unwrap().1.len(), 1, "it has its share again");
}

/// An older copy of a disk voted as if nothing had been promised since.
#[test]
fn an_older_copy_of_a_disk_is_missing_also_at_later_starts_and_the_disk_itself_is_taken() {
    let rig = Rig::new();
    let all = rig.start(&["a", "b"]).unwrap().0;
    rig.copy("b", "b.older");
    rig.copy("a", "a.older");
    let wrote =
        rig.start_and(&["a", "b"], |disks| all.iter().for_each(|device| rig.write(disks, *device, 7)));
    assert_eq!(wrote, Ok((all.clone(), Vec::new())));
    std::fs::rename(rig.path("b"), rig.path("b.newest")).unwrap();
    rig.copy("b.older", "b");
    for start in ["once", "and again"] {
        let (open, missing) = rig.start(&["a", "b"]).unwrap();
        assert_eq!(open, all[..1], "{start}");
        let [missing] = &missing[..] else { panic!("{missing:?}") };
        assert_eq!((missing.device, &missing.path), (all[1], &rig.path("b")), "{start}");
        assert!(missing.why.contains("an older copy of itself"), "{start}: {}", missing.why);
    }
    // Both listed: it is said which one is to go.
    let error = rig.start(&["a", "b", "b.newest"]).unwrap_err();
    assert!(error.contains("an older copy") && error.contains("list only that one"), "{error}");
    std::fs::rename(rig.path("b.newest"), rig.path("b")).unwrap();
    assert_eq!(rig.start(&["a", "b"]), Ok((all.clone(), Vec::new())));
    // The first one has the votes.
    std::fs::rename(rig.path("a"), rig.path("a.newest")).unwrap();
    rig.copy("a.older", "a");
    let error = rig.start(&["a", "b"]).unwrap_err();
    assert!(error.contains("an older copy of itself") && error.contains("--replace"), "{error}");
    // The cluster has it out: it may have seats still, until others have them.
    std::fs::rename(rig.path("b"), rig.path("b.newest")).unwrap();
    rig.copy("b.older", "b");
    std::fs::rename(rig.path("a"), rig.path("a.older")).unwrap();
    std::fs::rename(rig.path("a.newest"), rig.path("a")).unwrap();
    let note = |out: &[DeviceId]| {
        let out = out.iter().copied().collect();
        rig.start_and(&["a", "b"], |disks| disks.known().note(&disks.handles(), Some(&out)).unwrap())
            .unwrap()
            .1
    };
    assert_eq!((note(&[all[1]]).len(), note(&[all[1]]).len(), note(&[]).len()), (1, 1, 1));
    assert_eq!(rig.start(&["a", "b"]).unwrap().1.len(), 1, "it has its share again, and is as old as before");
    // Out, and not listed for a while.
    note(&[all[1]]);
    assert_eq!(rig.start(&["a"]), Ok((all[..1].to_vec(), Vec::new())));
    assert_eq!(rig.start(&["a", "b"]).unwrap().1.len(), 1, "it is as old as before still");
    std::fs::rename(rig.path("b.newest"), rig.path("b")).unwrap();
    std::fs::rename(rig.path("a.older"), rig.path("a")).unwrap();
    // Who has nothing newer gives up what it lacks.
    let file = Files::of(rig.dir.path()).devices;
    let text = std::fs::read_to_string(&file).unwrap();
    let kept: Vec<_> = text.lines().filter(|line| !line.starts_with(&hex::encode(all[0].0))).collect();
    std::fs::write(&file, kept.join("\n")).unwrap();
    assert_eq!(rig.start(&["a", "b"]), Ok((all, Vec::new())));
}

/// The loss is found by one opening, and by no later one.
#[test]
fn a_disk_that_lost_what_nobody_can_name_stays_missing() {
    let rig = Rig::new();
    let all = rig.start(&["a", "b"]).unwrap().0;
    let lost = Report { lost: std::iter::once(7..9).collect(), nameless: true, ..Report::default() };
    let doubted = |report: &Report| {
        let mut why = None;
        let missing = rig.start_and(&["a", "b"], |disks| {
            let handles = disks.handles();
            let disk = handles.iter().find(|disk| disk.device() == all[1]);
            why = disk.and_then(|disk| disks.known().doubt(disk, report).unwrap());
        });
        (why, missing.unwrap().1.len())
    };
    let named = Report { nameless: false, ..lost.clone() };
    assert_eq!(doubted(&named), (None, 0), "who looks for one of them is told");
    let (why, missing) = doubted(&lost);
    assert!(missing == 0 && why.as_ref().is_some_and(|why| why.contains("[7..9]")), "{why:?}");
    for start in ["once", "and again"] {
        let missing = rig.start(&["a", "b"]).unwrap().1;
        assert!(
            missing.len() == 1 && missing[0].why.contains("of which nobody can say"),
            "{start}: {missing:?}"
        );
    }
}

/// The index of a disk that was in use was dropped, and then the node did not start all the same.
#[test]
fn the_index_of_a_disk_that_is_listed_elsewhere_is_not_a_new_one_s() {
    let rig = Rig::new();
    let all = rig.start(&["a", "b"]).unwrap().0;
    let mut quiet: Progress = Box::new(|_, _, _| ());
    let cluster = provision::known_cluster(rig.dir.path()).unwrap().unwrap();
    provision::make_disk_file(&rig.path("c"), MIN_DISK, cluster, &mut quiet).unwrap();
    // The new one is listed with the index of `b`, and `b` with a new one.
    std::fs::rename(rig.path("index-b"), rig.path("index-c")).unwrap();
    std::fs::rename(rig.path("b"), rig.path("b.aside")).unwrap();
    let error = rig.start(&["a", "c", "b"]).unwrap_err();
    assert!(error.contains("index belongs to device"), "{error}");
    std::fs::rename(rig.path("b.aside"), rig.path("b")).unwrap();
    std::fs::rename(rig.path("index-c"), rig.path("index-b")).unwrap();
    assert_eq!(rig.start(&["a", "b"]), Ok((all, Vec::new())));
}

#[test]
fn a_disk_with_an_older_version_s_line_is_known_and_a_damaged_list_is_refused() {
    let rig = Rig::new();
    let all = rig.start(&["a", "b"]).unwrap().0;
    let file = Files::of(rig.dir.path()).devices;
    let line = |at: usize, disk: &str| format!("{} {}\n", hex::encode(all[at].0), rig.path(disk).display());
    std::fs::write(&file, line(0, "a") + &line(1, "b")).unwrap();
    assert_eq!(rig.start(&["a"]).unwrap().1.len(), 1);
    for bad in ["x", "00 /dev/x", &format!("{} away 0 /dev/x", hex::encode(all[0].0))] {
        std::fs::write(&file, bad).unwrap();
        assert!(rig.start(&["a"]).unwrap_err().contains("restore it"), "{bad}");
    }
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
