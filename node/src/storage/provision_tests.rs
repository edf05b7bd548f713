use super::*;
use crate::config::{MIN_DISK, Source};
use crate::node::{self, NodeError};
use crate::storage::Disks;

/// A node with its data in `dir/data`, and with disks that the text lists.
fn config(dir: &Path, text: &str) -> Config {
    let text = format!("[node]\ndata = \"data\"\n{text}");
    Config::parse(Source { file: &dir.join("quarry.toml"), text: &text }).unwrap()
}

/// One that is there already: a device, to the node.
fn disk(name: &str) -> String {
    format!("[[disk]]\npath = \"{name}\"\nindex = \"{name}.index\"\n")
}

fn device(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    preallocate(&path, MIN_DISK, &mut |_| ()).unwrap();
    path
}

fn quiet() -> Progress {
    Box::new(|_, _, _| ())
}

fn prepared(config: &Config) -> Result<ClusterId, String> {
    node::make_private_directory(&config.node.data).unwrap();
    prepare(config, &Known::default(), &mut quiet()).map_err(|e| e.to_string())
}

/// It left an identity that nobody had chosen, and the disk that was then formatted, as its message said, was of another cluster for good.
#[test]
fn a_first_start_that_fails_settles_no_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &disk("sdb"));
    let path = device(dir.path(), "sdb");
    let advice = format!("format it with `quarry disk format {}`", path.display());
    let error = prepared(&config).unwrap_err();
    assert!(error.ends_with(&advice), "{error}");
    assert_eq!(known_cluster(&config.node.data).unwrap(), None);
    let formatted = format_disk(&path, random_cluster(), false).unwrap();
    assert_eq!(prepared(&config), Ok(formatted.cluster));
    assert_eq!(known_cluster(&config.node.data).unwrap(), Some(formatted.cluster));
}

#[test]
fn what_is_said_of_a_disk_names_the_cluster_to_format_it_for() {
    let dir = tempfile::tempdir().unwrap();
    // The one that says which cluster it is comes last.
    let config = config(dir.path(), &format!("{}{}", disk("sdc"), disk("sdb")));
    let (own, other) = (random_cluster(), random_cluster());
    format_disk(&device(dir.path(), "sdb"), own, false).unwrap();
    let path = device(dir.path(), "sdc");
    let error = prepared(&config).unwrap_err();
    assert!(error.contains(&format!("--cluster {}`", cluster_text(own))), "{error}");
    format_disk(&path, other, false).unwrap();
    let error = prepared(&config).unwrap_err();
    assert!(error.contains("list disks of one cluster"), "{error}");
    assert_eq!(known_cluster(&config.node.data).unwrap(), None);
    // The same where the data directory says which cluster it is.
    remember_cluster(&config.node.data, own).unwrap();
    let error = Disks::open(&config, &mut quiet()).unwrap_err().to_string();
    assert!(error.contains(&format!("--cluster {} --overwrite", cluster_text(own))), "{error}");
}

/// After a boot without the file system of the data directory there were other users, other keys, and 401 for everybody.
#[tokio::test]
async fn a_data_directory_that_is_missed_is_not_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let used = config(dir.path(), &disk("sdb"));
    let cluster = format_disk(&device(dir.path(), "sdb"), random_cluster(), false).unwrap().cluster;
    node::users(&used, false).unwrap();
    Disks::open(&used, &mut quiet()).unwrap().close().await;
    std::fs::rename(dir.path().join("data"), dir.path().join("elsewhere")).unwrap();
    let error = node::users(&used, false).unwrap_err().to_string();
    assert!(error.contains("has used it (1 starts)") && error.contains("mount its file system"), "{error}");
    assert!(!used.node.data.join("users.toml").exists());
    // Whoever wants it so says so.
    remember_cluster(&used.node.data, cluster).unwrap();
    node::users(&used, false).unwrap();
    Disks::open(&used, &mut quiet()).unwrap().close().await;
}

/// It made a disk file in a cluster of its own, and could not join any more.
#[test]
fn a_node_that_has_not_joined_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let text = "[cluster]\nlisten = \"127.0.0.1:0\"\n[[disk]]\npath = \"disk0\"\nindex = \"index0\"\nsize = \"256M\"\n";
    let config = config(dir.path(), text);
    let error = node::users(&config, false).unwrap_err();
    assert!(matches!(error, NodeError::Member(_)) && error.to_string().contains("quarry join"), "{error}");
    assert!(prepared(&config).is_err());
    assert!(!dir.path().join("disk0").exists());
    assert_eq!(known_cluster(&config.node.data).unwrap(), None);
}

/// A device that was gone, or a slip of the pen, became a file in memory.
#[test]
fn no_file_is_made_where_a_device_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let gone = dir.path().join("gone");
    std::os::unix::fs::symlink("/dev/disk/by-id/no-such-disk", &gone).unwrap();
    let far =
        dir.path().join("..").join("..").join("..").join("..").join("..").join("dev").join("no-such-disk");
    for path in [Path::new("/dev/no-such-disk"), &gone, &far] {
        let error = make_disk_file(path, MIN_DISK, random_cluster(), &mut quiet()).unwrap_err().to_string();
        assert!(error.contains("the device is missing"), "{}: {error}", path.display());
        assert!(!path.exists());
    }
    assert!(refuse_missing_device(Path::new("/dev/shm/disk0")).is_ok(), "it is made for files");
    assert!(refuse_missing_device(&dir.path().join("disk0")).is_ok());
}
