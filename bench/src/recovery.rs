//! A crash with a million objects: time to open, memory, and bytes of index.
//!
//! The engine runs in a child, which is killed with SIGKILL while writes are in flight; a second child opens what it
//! left, so that both begin with a process of their own.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child as Process, Command, Stdio};
use std::time::Duration;

use quarry_engine::io::{DeviceError, preallocate};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::args::{Act, Child, Options};
use crate::failure::Failure;
use crate::load::{Limit, as_f64, closed_loop, now};
use crate::machine::resident_kib;
use crate::report::{Report, Scenario, details, round};
use crate::rig::{Layer, Place, Rig, runtime};

/// Bytes of a small object.
const SMALL: usize = 100;
/// Puts in flight while filling.
const FILLERS: usize = 512;
/// Longest wait for the lock of the killed process.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// Index bytes on disk that a small object may take.
const WANTED_INDEX_BYTES: f64 = 100.0;
/// Seconds that opening after a crash may take.
const WANTED_SECONDS: f64 = 10.0;

/// What the filling child has to say before it is killed.
#[derive(Debug, Serialize, Deserialize)]
struct Filled {
    seconds: f64,
    records: u64,
    log_bytes: u64,
    rss_before_kib: u64,
    rss_after_kib: u64,
    index_memory: u64,
}

/// What the opening child has to say.
#[derive(Debug, Serialize, Deserialize)]
struct Opened {
    seconds: f64,
    /// Until the killed process's lock was gone; not in `seconds`.
    lock_seconds: f64,
    replayed_batches: u64,
    replayed_records: u64,
    lost: usize,
    torn_tail: bool,
    rss_kib: u64,
    index_memory: u64,
    index_disk: u64,
    index_keys: u64,
}

/// Kills and reaps its process at the end, whatever happened.
struct Killed(Process);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself; reaping it is what matters.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Fills, kills, opens, opens again.
pub(crate) fn run(options: &Options, scratch: &Path, report: &mut Report) -> Result<(), Failure> {
    let (disk, index) = (scratch.join("recovery"), scratch.join("recovery-index"));
    // An object of 100 bytes takes some 600 in the log with its row, and a quarter more is put before the kill.
    let bytes = (options.objects * 1280 + (512 << 20)).next_multiple_of(1 << 20);
    if bytes > options.budget {
        return Err(Failure::Other("--objects: too many for --budget".to_owned()));
    }
    preallocate(&disk, bytes, &mut |_| {})?;
    let (filled, child) = start::<Filled>("fill", options, &disk, &index)?;
    // The filler goes on putting: the kill comes in the middle of a batch.
    std::thread::sleep(Duration::from_millis(300));
    drop(child);
    let (crashed, child) = start::<Opened>("open", options, &disk, &index)?;
    finish(child)?;
    let (clean, child) = start::<Opened>("open", options, &disk, &index)?;
    finish(child)?;
    lines(options, &filled, &crashed, &clean).into_iter().try_for_each(|line| report.add(line))?;
    std::fs::remove_file(&disk).map_err(Failure::io("remove scratch file"))?;
    std::fs::remove_dir_all(&index).map_err(Failure::io("remove index"))
}

fn lines(options: &Options, filled: &Filled, crashed: &Opened, clean: &Opened) -> [Scenario; 3] {
    let millions = as_f64(filled.records) / 1e6;
    let grown = as_f64(filled.rss_after_kib.saturating_sub(filled.rss_before_kib)) / 1024.0;
    let per_object = as_f64(clean.index_disk) / as_f64(filled.records.max(1));
    let scenario = |what: &str, unit, figure, wanted, details| Scenario {
        name: format!("recovery/{what}/{}", options.objects),
        unit,
        figures: vec![figure],
        raw: None,
        wanted,
        details,
    };
    let open = details([
        ("lock_wait_seconds", json!(round(crashed.lock_seconds))),
        ("replayed_batches", json!(crashed.replayed_batches)),
        ("replayed_records", json!(crashed.replayed_records)),
        ("lost", json!(crashed.lost)),
        ("torn_tail", json!(crashed.torn_tail)),
        ("clean_open_seconds", json!(round(clean.seconds))),
    ]);
    let memory = details([
        ("rss_before_mib", json!(filled.rss_before_kib / 1024)),
        ("rss_after_mib", json!(filled.rss_after_kib / 1024)),
        ("index_memory_mib_filled", json!(filled.index_memory >> 20)),
        ("rss_after_open_mib", json!(crashed.rss_kib / 1024)),
        ("index_memory_mib_after_open", json!(crashed.index_memory >> 20)),
        ("fill_puts_per_s", json!(round(as_f64(filled.records) / filled.seconds))),
        ("log_bytes_per_object", json!(round(as_f64(filled.log_bytes) / as_f64(filled.records.max(1))))),
    ]);
    let index =
        details([("index_disk_mib", json!(clean.index_disk >> 20)), ("index_keys", json!(clean.index_keys))]);
    let opens = crashed.seconds < WANTED_SECONDS && crashed.lost == 0;
    let opens = Some((format!("< {WANTED_SECONDS} s, nothing lost"), opens));
    let small = Some((format!("<= {WANTED_INDEX_BYTES} B"), per_object <= WANTED_INDEX_BYTES));
    [
        scenario("open", "s", crashed.seconds, opens, open),
        scenario("memory", "MiB/M", grown / millions.max(1e-9), None, memory),
        scenario("index", "B/object", per_object, small, index),
    ]
}

/// Starts a child and waits for its line.
fn start<T: for<'a> Deserialize<'a>>(
    act: &str,
    options: &Options,
    disk: &Path,
    index: &Path,
) -> Result<(T, Killed), Failure> {
    let program = std::env::current_exe().map_err(Failure::io("find own program"))?;
    let mut process = Command::new(program)
        .args(["child", act, "--objects", &options.objects.to_string()])
        .arg("--disk")
        .arg(disk)
        .arg("--index")
        .arg(index)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(Failure::io("start child"))?;
    let out = process.stdout.take();
    let child = Killed(process);
    let mut line = String::new();
    if let Some(out) = out {
        BufReader::new(out).read_line(&mut line).map_err(Failure::io("read child's line"))?;
    }
    let said = serde_json::from_str(&line);
    Ok((said.map_err(|e| Failure::Other(format!("the child that was to {act} failed: {e}")))?, child))
}

fn finish(mut child: Killed) -> Result<(), Failure> {
    let status = child.0.wait().map_err(Failure::io("wait for child"))?;
    if status.success() { Ok(()) } else { Err(Failure::Other(format!("a child ended with {status}"))) }
}

/// The child's whole life.
pub(crate) fn child(child: &Child, options: &Options) -> Result<(), Failure> {
    let place = Place { disk: child.disk.clone(), bytes: 0, index: child.index.clone() };
    match child.act {
        Act::Fill => fill(&place, options.objects),
        Act::Open => open(&place),
    }
}

fn fill(place: &Place, objects: u64) -> Result<(), Failure> {
    let rig = Rig::fresh(place, Layer::Object)?;
    let rss_before_kib = resident_kib("self");
    let forever = Limit { time: Duration::MAX, ops: objects };
    let put = async |(): &mut (), _| rig.put(SMALL).await;
    let runtime = runtime()?;
    let (pass, _) = runtime.block_on(closed_loop(vec![(); FILLERS], forever, put))?;
    say(&Filled {
        seconds: pass.seconds,
        records: pass.ops,
        log_bytes: rig.counts().written,
        rss_before_kib,
        rss_after_kib: resident_kib("self"),
        index_memory: rig.handle.index().stats().memory_bytes,
    })?;
    // Until it is killed, or until its parent was and nobody does it: a minute is plenty.
    let more = Limit { time: Duration::from_secs(60), ops: objects / 4 };
    runtime.block_on(closed_loop(vec![(); FILLERS], more, put))?;
    Ok(())
}

fn open(place: &Place) -> Result<(), Failure> {
    let killed = now();
    let (began, (rig, report)) = loop {
        let began = now();
        match Rig::open(place, Layer::Object) {
            // The kernel takes the ring of a killed process apart after the process is gone, and its lock with it.
            Err(Failure::Device(DeviceError::Busy { .. })) if killed.elapsed() < LOCK_WAIT => {
                std::thread::sleep(Duration::from_millis(1));
            }
            opened => break (began, opened?),
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    let lock_seconds = (began - killed).as_secs_f64();
    let rss_kib = resident_kib("self");
    let memory = rig.handle.index().stats();
    // What is still in memory counts as index too: have it on disk.
    runtime()?.block_on(rig.handle.checkpoint())?;
    let stats = rig.handle.index().stats();
    rig.close()?;
    say(&Opened {
        seconds,
        lock_seconds,
        replayed_batches: report.batches,
        replayed_records: report.records,
        lost: report.lost.len(),
        torn_tail: report.torn_tail,
        rss_kib,
        index_memory: memory.memory_bytes,
        index_disk: stats.disk_bytes,
        index_keys: stats.keys,
    })
}

fn say(what: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(what).map_err(|e| Failure::io("write output")(e.into()))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(Failure::io("write output"))
}
