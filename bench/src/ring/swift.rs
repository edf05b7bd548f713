//! swift-ring-builder's own library, in a Python of its own: builds, changes, and leaves a builder file after each step.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use quarry_node::swift_ring::import;
use quarry_ring::{Builder, Class};
use serde::Deserialize;
use serde_json::json;

use super::cluster::{Cluster, Step};
use crate::args::Options;
use crate::failure::Failure;

/// Takes a cluster as JSON, prints the seconds of each step as JSON, and saves `DIR/STEP.builder`.
const SCRIPT: &str = r#"
import json, sys, time
from swift.common.ring import RingBuilder

plan = json.loads(sys.argv[1])
builder = RingBuilder(plan["part_power"], plan["replicas"], 0)
builder.set_overload(plan["overload"])

def add(place):
    region, zone, node, weight = place
    builder.add_dev({"region": region, "zone": zone, "ip": "10.%d.%d.%d" % (region, zone, node), "port": 6200,
                     "device": "d%d" % len(builder.devs), "weight": float(weight)})


seconds = []
for place in plan["devices"]:
    add(place)
for step, device in plan["steps"]:
    if step == "add":
        add(plan["devices"][device])
    elif step == "remove":
        builder.remove_dev(device)
    elif step == "weight":
        builder.set_dev_weight(device, builder.devs[device]["weight"] * 1.5)
    if step != "build":
        builder.pretend_min_part_hours_passed()
    began = time.perf_counter()
    builder.rebalance(seed=1)
    seconds.append(time.perf_counter() - began)
    builder.save("%s/%s.builder" % (plan["dir"], step))
print(json.dumps(seconds))
"#;

/// What Swift did in one step.
#[derive(Debug)]
pub(super) struct Theirs {
    pub(super) seconds: f64,
    pub(super) builder: Builder,
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Seconds(Vec<f64>);

/// The Python of the environment that was given, or of the one on PATH; none where Swift is not installed.
pub(super) fn python(options: &Options) -> Result<Option<PathBuf>, Failure> {
    if let Some(given) = &options.swift {
        let python = given.join("bin/python");
        let error = || Failure::Other(format!("--swift: no bin/python in {}", given.display()));
        return python.exists().then_some(Some(python)).ok_or_else(error);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders =
        std::env::split_paths(&path).filter(|folder| folder.join("swift-ring-builder").exists());
    Ok(folders.next().map(|folder| folder.join("python")).filter(|python| python.exists()))
}

/// Run all steps there.
pub(super) fn run(python: &Path, cluster: &Cluster, scratch: &Path) -> Result<Vec<Theirs>, Failure> {
    let devices = cluster.devices();
    let steps = Step::ALL.map(|step| json!([step.name(), step.device(devices.len())]));
    let plan = json!({
        "part_power": cluster.part_power,
        "replicas": f64::from(cluster.replicas) / 100.0,
        "overload": f64::from(cluster.overload) / 10_000.0,
        "devices": devices,
        "steps": steps,
        "dir": scratch,
    });
    let mut command = Command::new(python);
    command.args(["-c", SCRIPT, &plan.to_string()]).stdin(Stdio::null()).stderr(Stdio::inherit());
    let out = command.output().map_err(Failure::io("start Swift's Python"))?;
    let broken = || Failure::Other("swift-ring-builder did not do its part".to_owned());
    let Seconds(seconds) = serde_json::from_slice(&out.stdout).map_err(|_| broken())?;
    let mut done = Vec::new();
    for (step, seconds) in Step::ALL.into_iter().zip(seconds) {
        let bytes = std::fs::read(scratch.join(format!("{}.builder", step.name())));
        let bytes = bytes.map_err(Failure::io("read Swift's builder"))?;
        let builder = import(&bytes, Class::Hdd, 1).map_err(|error| Failure::Other(error.to_string()))?;
        done.push(Theirs { seconds, builder });
    }
    if done.len() == Step::ALL.len() { Ok(done) } else { Err(broken()) }
}
