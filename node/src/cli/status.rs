//! `quarry status`: asks a running node and prints a table.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::Failure;
use crate::config::size_text;
use crate::status::{
    ChildReport, ClusterStatus, DeviceStatus, GroupReport, MemberStatus, RangeReport, Status,
};

/// The admin listener when nothing else is said.
const DEFAULT_URL: &str = "http://127.0.0.1:6000";

/// Longest time that any step of asking may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Largest answer that is read: a difference of a volume may have millions of ranges.
const MAX_ANSWER: u64 = 1 << 30;

/// Prints the state of the node at `url`.
pub(super) fn run(url: Option<&str>, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    let url = admin_url(url);
    let text = ask(&url, "GET", "/status", "")?;
    if json {
        writeln!(out, "{text}")?;
        return Ok(());
    }
    print(&parse(&url, &text)?, out)?;
    Ok(())
}

/// Prints what the node at `url` knows of its cluster.
pub(super) fn run_cluster(url: Option<&str>, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    let url = admin_url(url);
    let cluster = cluster_of(&url)?;
    if json {
        let text = serde_json::to_string_pretty(&cluster).map_err(|e| Failure::new("show cluster", e))?;
        writeln!(out, "{text}")?;
        return Ok(());
    }
    // A node of an earlier version does not tell.
    let answers = ask(&url, "GET", "/cluster/nodes", "").ok();
    let answers = answers.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    print_cluster(&cluster, &answers, out)?;
    writeln!(out)?;
    // What is known is shown before the rest is waited for.
    out.flush()?;
    writeln!(out, "{}", super::compare::of(&url)?.summary())?;
    Ok(())
}

/// What the node at `url` knows of its cluster.
pub(super) fn cluster_of(url: &str) -> Result<ClusterStatus, Failure> {
    let none = || Failure::new("show cluster", "the node is in none; see `quarry cluster init`");
    parse(url, &ask(url, "GET", "/status", "")?)?.cluster.ok_or_else(none)
}

/// The admin listener to be asked.
pub(super) fn admin_url(url: Option<&str>) -> String {
    let url = url.map(str::to_owned).or_else(|| std::env::var("QUARRY_ADMIN_URL").ok());
    url.unwrap_or_else(|| DEFAULT_URL.to_owned())
}

/// Asks an admin listener, which is to answer 200.
pub(super) fn ask(url: &str, method: &str, path: &str, body: &str) -> Result<String, Failure> {
    ask_within(Some(PATIENCE), url, method, path, body)
}

/// As [`ask`], for what takes long: waits so long for the answer, or as long as the node lives.
pub(super) fn ask_within(
    patience: Option<Duration>,
    url: &str,
    method: &str,
    path: &str,
    body: &str,
) -> Result<String, Failure> {
    ask_certainly(patience, url, method, path, body).map_err(|unanswered| unanswered.failure)
}

/// What was asked was not answered as it should be.
pub(super) struct Unanswered {
    pub(super) failure: Failure,
    /// The node has not done it; otherwise it may have.
    pub(super) refused: bool,
}

/// As [`ask_within`], for changes: says whether the change may have been made all the same.
pub(super) fn ask_certainly(
    patience: Option<Duration>,
    url: &str,
    method: &str,
    path: &str,
    body: &str,
) -> Result<String, Unanswered> {
    let failed = |reason: String, advice: &str| Failure::new(format!("ask {url}"), reason + advice);
    match request(patience, url, method, path, body) {
        Ok((200, body)) => Ok(body),
        Ok((status, body)) => {
            let failure = failed(format!("it answers {status}: {}", body.trim()), "");
            // A conflict may be one of several rows.
            Err(Unanswered { failure, refused: matches!(status, 400..=408) })
        }
        Err(reason) => {
            let failure = failed(reason, "; is the node running, and is this its admin listener?");
            Err(Unanswered { failure, refused: false })
        }
    }
}

fn parse(url: &str, text: &str) -> Result<Status, Failure> {
    serde_json::from_str(text).map_err(|e| Failure::new(format!("read status of {url}"), e))
}

fn print_cluster(
    cluster: &ClusterStatus,
    answers: &BTreeMap<String, bool>,
    out: &mut impl Write,
) -> std::io::Result<()> {
    let ClusterStatus { node, ring_version, replicas, partitions, groups, members, devices } = cluster;
    writeln!(
        out,
        "seen from node {node}: ring version {ring_version}, {partitions} partitions x {replicas}"
    )?;
    writeln!(out)?;
    writeln!(
        out,
        "{:<11} {:<32} {:>6} {:>6} {:>8} {:>10} {:>10}",
        "GROUP", "LEADER", "TERM", "VOTERS", "LEARNERS", "LAST", "APPLIED"
    )?;
    for group in groups {
        let leader =
            group.leader.as_deref().unwrap_or(if group.here { "none" } else { "(not at this node)" });
        let GroupReport { name, term, voters, learners, last, applied, .. } = group;
        writeln!(
            out,
            "{name:<11} {leader:<32} {term:>6} {voters:>6} {learners:>8} {last:>10} {applied:>10}"
        )?;
    }
    print_children(groups, out)?;
    writeln!(out)?;
    writeln!(out, "{:<32} {:<22} {:<8} {:<5} ANSWERS", "NODE", "ADDRESS", "STATE", "VOTES")?;
    for MemberStatus { node, address, state, votes } in members {
        let votes = if *votes { "yes" } else { "no" };
        let answers = match answers.get(node) {
            Some(true) => "yes",
            Some(false) => "no",
            None => "?",
        };
        writeln!(out, "{node:<32} {address:<22} {state:<8} {votes:<5} {answers}")?;
    }
    writeln!(out)?;
    writeln!(
        out,
        "{:<32} {:<32} {:>4} {:<8} {:>9} {:>8} {:>8}",
        "DISK", "NODE", "ZONE", "STATE", "SIZE", "REPLICAS", "SHARE"
    )?;
    for device in devices {
        let DeviceStatus { device, node, zone, bytes, state, replicas, share } = device;
        let size = short_size(*bytes);
        writeln!(out, "{device:<32} {node:<32} {zone:>4} {state:<8} {size:>9} {replicas:>8} {share:>8}")?;
    }
    Ok(())
}

/// Which index groups took which lines of which containers over.
fn print_children(groups: &[GroupReport], out: &mut impl Write) -> std::io::Result<()> {
    let mut children =
        groups.iter().filter_map(|group| Some((&group.name, group.child.as_ref()?))).peekable();
    if children.peek().is_none() {
        return Ok(());
    }
    writeln!(out)?;
    writeln!(out, "{:<11} {:>6}  CONTAINER, NAMES", "CHILD", "OF")?;
    for (name, ChildReport { parent, range }) in children {
        let Some(RangeReport { account, container, from, to }) = range else {
            writeln!(out, "{name:<11} {parent:>6}  (not at this node)")?;
            continue;
        };
        let to = to.as_ref().map_or_else(|| "the end".to_owned(), |to| format!("before {to:?}"));
        writeln!(out, "{name:<11} {parent:>6}  {account}/{container}, {from:?} to {to}")?;
    }
    Ok(())
}

fn print(status: &Status, out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "quarry {}, up for {} s", status.version, status.uptime_seconds)?;
    writeln!(out)?;
    writeln!(out, "{:<41} {:<8} {:>10} {:>10} {:>10}", "DISK", "STATE", "CAPACITY", "USED", "LIVE")?;
    for disk in &status.disks {
        let sizes = [disk.capacity, disk.used, disk.live].map(short_size);
        let full = if disk.refuses { ", full" } else { "" };
        writeln!(
            out,
            "{:<41} {:<8} {:>10} {:>10} {:>10}",
            disk.path,
            disk.state.clone() + full,
            sizes[0],
            sizes[1],
            sizes[2]
        )?;
    }
    if status.workers.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    writeln!(out, "{:<41} {:<8} {:>10} {:>8} {:>8}  PROGRESS", "WORKER", "STATE", "DONE", "ERRORS", "ETA")?;
    for worker in &status.workers {
        let eta = worker.eta_seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds}s"));
        writeln!(
            out,
            "{:<41} {:<8} {:>10} {:>8} {:>8}  {}",
            worker.name, worker.state, worker.done, worker.errors, eta, worker.progress
        )?;
    }
    Ok(())
}

/// About three digits: `9.31G`.
fn short_size(bytes: u64) -> String {
    for (shift, unit) in [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')] {
        let whole = 1u64 << shift;
        if bytes >= whole && !bytes.is_multiple_of(whole) {
            let hundredths = u128::from(bytes) * 100 / u128::from(whole);
            return format!("{}.{:02}{unit}", hundredths / 100, hundredths % 100);
        }
        if bytes >= whole {
            break;
        }
    }
    size_text(bytes)
}

/// One HTTP/1.0 request; status and body of its answer, whole.
fn request(
    patience: Option<Duration>,
    url: &str,
    method: &str,
    path: &str,
    body: &str,
) -> Result<(u16, String), String> {
    let host = url.strip_prefix("http://").ok_or("not an http:// URL")?.trim_end_matches('/');
    let mut stream = connect(host)?;
    stream.set_read_timeout(patience).map_err(|e| e.to_string())?;
    let length = body.len();
    let request =
        format!("{method} {path} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).map_err(|e| e.to_string())?;
    let mut answer = String::new();
    let read = stream.take(MAX_ANSWER).read_to_string(&mut answer).map_err(|e| told(&e, patience))?;
    if read as u64 == MAX_ANSWER {
        return Err(format!("its answer is larger than {}", size_text(MAX_ANSWER)));
    }
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("its answer is not HTTP, or was cut")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let mut headers = head.lines().filter_map(|line| line.split_once(':'));
    let length = headers.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    if let Some(said) = length.and_then(|(_, said)| said.trim().parse::<usize>().ok())
        && said != body.len()
    {
        return Err(format!("its answer was cut: {} of {said} bytes", body.len()));
    }
    Ok((status.ok_or("its answer is not HTTP")?, body.to_owned()))
}

/// A connection to the first address of a host that takes one: a name may stand for some where nobody listens.
fn connect(host: &str) -> Result<TcpStream, String> {
    let mut reason = "no such host".to_owned();
    for address in host.to_socket_addrs().map_err(|e| e.to_string())? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) => reason = told(&error, Some(PATIENCE)),
        }
    }
    Err(reason)
}

/// What the operating system says of waiting is that a resource is unavailable.
fn told(error: &std::io::Error, patience: Option<Duration>) -> String {
    match (error.kind(), patience) {
        (ErrorKind::WouldBlock | ErrorKind::TimedOut, Some(patience)) => {
            format!("no answer within {} s", patience.as_secs_f64())
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{DiskStatus, WorkerStatus};

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in
            [(0, "0"), (1023, "1023"), (1 << 30, "1G"), (10_000_000_000, "9.31G"), (1536, "1.50K")]
        {
            assert_eq!(short_size(bytes), text);
        }
    }

    /// Answers one request with these bytes; `hold`: and keeps the connection.
    fn answering(answer: &'static str, hold: bool) -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 4096];
            let _some = stream.read(&mut asked).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            if hold {
                // Until the other side has given up.
                let _end = stream.read(&mut asked);
            }
        });
        url
    }

    /// An answer that was cut was printed as if it were whole, and one that took too long was a resource that is unavailable.
    #[test]
    fn an_answer_is_whole_or_none() {
        let ask = |answer, hold| {
            let asked =
                ask_certainly(Some(Duration::from_millis(200)), &answering(answer, hold), "GET", "/", "");
            asked.map_err(|unanswered| (unanswered.failure.to_string(), unanswered.refused))
        };
        assert_eq!(ask("HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nfour", false).unwrap(), "four");
        assert_eq!(ask("HTTP/1.0 200 OK\r\n\r\nfour", false).unwrap(), "four");
        for (answer, hold, words, refused) in [
            ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nfour", false, "4 of 5 bytes", false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\n", true, "no answer within 0.2 s", false),
            ("HTTP/1.0 200 OK\r\nContent", false, "was cut", false),
            ("HTTP/1.0 403 Forbidden\r\nContent-Length: 3\r\n\r\nno\n", false, "it answers 403: no", true),
            ("HTTP/1.0 503 Gone\r\n\r\nlater", false, "it answers 503: later", false),
        ] {
            let (why, sure) = ask(answer, hold).unwrap_err();
            assert!(why.contains(words), "{why}");
            assert_eq!(sure, refused, "{why}");
        }
    }

    #[test]
    fn nodes_are_listed_with_whether_they_answer() {
        let member = |node: &str| MemberStatus { node: node.to_owned(), ..MemberStatus::default() };
        let members = vec![member("n1"), member("n2"), member("n3")];
        let cluster = ClusterStatus { members, ..ClusterStatus::default() };
        let answers = BTreeMap::from([("n1".to_owned(), true), ("n2".to_owned(), false)]);
        let mut out = Vec::new();
        print_cluster(&cluster, &answers, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        for (node, answers) in [("n1", "yes"), ("n2", "no"), ("n3", "?")] {
            let line = text.lines().find(|line| line.starts_with(node)).unwrap();
            assert!(line.ends_with(&format!("no    {answers}")), "{line}");
        }
    }

    #[test]
    fn children_are_listed_with_their_names() {
        let range = RangeReport {
            account: "AUTH_a".to_owned(),
            container: "c".to_owned(),
            from: "m".to_owned(),
            to: None,
        };
        let group =
            |name: &str, child| GroupReport { name: name.to_owned(), child, ..GroupReport::default() };
        let mut groups = vec![group("control", None), group("index 1", None)];
        let text = |groups: &[GroupReport]| {
            let mut out = Vec::new();
            print_children(groups, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(text(&groups), "");
        groups.push(group("index 1025", Some(ChildReport { parent: 1, range: Some(range) })));
        groups.push(group("index 1026", Some(ChildReport { parent: 1025, range: None })));
        let text = text(&groups);
        assert!(text.contains("index 1025       1  AUTH_a/c, \"m\" to the end\n"), "{text}");
        assert!(text.contains("index 1026    1025  (not at this node)\n"), "{text}");
    }

    #[test]
    fn a_status_is_a_table() {
        let disk = DiskStatus {
            path: "/d0".to_owned(),
            state: "ok".to_owned(),
            capacity: 1 << 30,
            ..DiskStatus::default()
        };
        let worker = WorkerStatus {
            name: "auditor".to_owned(),
            state: "busy".to_owned(),
            done: 7,
            ..WorkerStatus::default()
        };
        let status = Status {
            version: "1".to_owned(),
            uptime_seconds: 5,
            disks: vec![disk],
            workers: vec![worker],
            cluster: None,
        };
        let mut out = Vec::new();
        print(&status, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("/d0") && text.contains("1G") && text.contains("auditor"), "{text}");
    }
}
