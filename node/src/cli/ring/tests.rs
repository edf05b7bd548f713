//! The commands on real files.

use std::path::Path;

use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(subcommand)]
    command: RingCommand,
}

/// Runs `quarry ring` with a line, in which `D/` is a directory; what it printed.
fn quarry(dir: &Path, line: &str) -> Result<String, String> {
    let words = line.split(' ').map(|word| word.replace("D/", &format!("{}/", dir.display())));
    let line =
        Line::try_parse_from(std::iter::once("ring".to_owned()).chain(words)).map_err(|e| e.to_string())?;
    let mut out = Vec::new();
    run(&line.command, &mut out).map_err(|failure| failure.to_string())?;
    Ok(String::from_utf8(out).unwrap())
}

fn files(dir: &Path) -> Vec<String> {
    let names =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

#[test]
fn a_ring_is_made_changed_and_compared() {
    let dir = tempfile::tempdir().unwrap();
    let run = |line: &str| quarry(dir.path(), line).unwrap();
    run("create D/o.builder --part-power 8 --replicas 3 --policy 2");
    run("add D/o.builder 1.1.1:100:hdd:a/sda 1.1.1:100:hdd:a/sdb 1.2.2:100 1.2.2:100 1.3.3:100");
    let planned = run("rebalance D/o.builder --dry-run");
    assert!(planned.contains("nothing was written"), "{planned}");
    assert_eq!(files(dir.path()), ["o.builder", "o.builder.lock"]);
    let built = run("rebalance D/o.builder");
    assert!(built.contains("768 new") && built.contains("o.ring"), "{built}");
    run("validate D/o.builder");
    std::fs::copy(dir.path().join("o.ring"), dir.path().join("old.ring")).unwrap();
    run("add D/o.builder 1.3.3:100:nvme:c/nvme0");
    run("remove D/o.builder 0");
    let changed = run("rebalance D/o.builder --stored 1T");
    assert!(changed.contains("to move, of 3.00T in all copies"), "{changed}");
    let difference = run("diff D/old.ring D/o.builder");
    assert!(
        difference.contains("added         device 5") && difference.contains("removed       device 0"),
        "{difference}"
    );
    assert_eq!(run("diff D/o.ring D/o.builder").lines().count(), 3);
    let shown = run("show D/o.builder");
    assert!(shown.contains("policy          2") && shown.contains("c/nvme0"), "{shown}");
    let json: serde_json::Value = serde_json::from_str(&run("show D/o.builder --json")).unwrap();
    assert_eq!((&json["version"], json["devices"].as_array().unwrap().len()), (&2.into(), 5));
    let history = run("history D/o.builder --last 3");
    assert!(history.contains("device 0 removed") && !history.contains("created"), "{history}");
    assert!(run("dispersion D/o.builder").contains("in one zone"), "tiers are named");
    run("set D/o.builder --replicas 2.5 --overload unlimited --min-part-hours 1");
    run("set-weight D/o.builder 1=50 2=0");
    assert!(run("history D/o.builder").contains("overload 10.00 % -> unlimited (pending)"));
    run("pretend-min-part-hours D/o.builder");
    assert!(run("rebalance D/o.builder").contains("128 no longer wanted"));
}

#[test]
fn a_lost_ring_file_is_missed_and_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let run = |line: &str| quarry(dir.path(), line);
    run("create D/o.builder --part-power 4 --replicas 1").unwrap();
    run("add D/o.builder 1.1.1:1").unwrap();
    run("rebalance D/o.builder").unwrap();
    std::fs::remove_file(dir.path().join("o.ring")).unwrap();
    assert!(run("validate D/o.builder").unwrap_err().contains("o.ring"));
    assert!(run("rebalance D/o.builder").unwrap().contains("nothing to do"));
    run("validate D/o.builder").unwrap();
}

#[test]
fn refused_commands_write_nothing_and_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |line: &str| quarry(dir.path(), line).unwrap_err();
    assert!(refused("show D/none.builder").contains("none.builder"));
    assert!(refused("create D/x.ring --part-power 4 --replicas 1").contains("name it .builder"));
    assert!(refused("create D/x.builder --part-power 25 --replicas 1").contains("part power 25"));
    quarry(dir.path(), "create D/o.builder --part-power 4 --replicas 3 --class ssd").unwrap();
    let bytes = std::fs::read(dir.path().join("o.builder")).unwrap();
    assert!(refused("create D/o.builder --part-power 4 --replicas 1").contains("there already"));
    assert!(refused("add D/o.builder 1.1.1:1:ssd 1.1.1:1:hdd").contains("ssd only"));
    assert!(refused("remove D/o.builder 7").contains("no device 7"));
    assert!(refused("rebalance D/o.builder").contains("as many devices"));
    assert!(refused("diff D/o.builder D/o.builder").contains("rebalance"));
    assert!(refused("validate D/o.builder").contains("rebalance"));
    assert_eq!(std::fs::read(dir.path().join("o.builder")).unwrap(), bytes);
    let held = store::Editing::open(&dir.path().join("o.builder")).unwrap();
    assert!(refused("add D/o.builder 1.1.1:1:ssd").contains("somebody else"));
    drop(held);
    std::fs::write(dir.path().join("o.builder"), &bytes[..bytes.len() - 1]).unwrap();
    assert!(refused("add D/o.builder 1.1.1:1:ssd").contains("checksum"));
}

#[test]
fn files_of_swift_are_imported() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["small.builder", "small.ring.gz"] {
        let bytes: &[u8] = match name {
            "small.builder" => include_bytes!("../../swift_ring/fixtures/small.builder"),
            _ => include_bytes!("../../swift_ring/fixtures/small.ring.gz"),
        };
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let run = |line: &str| quarry(dir.path(), line);
    run("import D/small.builder D/one.builder --class ssd").unwrap();
    run("import D/small.ring.gz D/two.builder").unwrap();
    assert!(run("diff D/one.builder D/two.builder").unwrap().contains("0 moved"));
    run("rebalance D/one.builder").unwrap();
    run("validate D/one.builder").unwrap();
    assert!(run("import D/one.ring D/three.builder").unwrap_err().contains("neither"));
}
