//! Tests of the node over real sockets: logins, limits, draining, metrics.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::{Config, Source};
use crate::node::{self, Node};

/// A node on free ports with its data in `dir`, with the suites' users.
async fn started(dir: &Path, limits: &str) -> Node {
    let text = format!(
        "[node]\ndata = \"data\"\n[listen]\nobject = \"127.0.0.1:0\"\nidentity = \"127.0.0.1:0\"\nvolume = \"127.0.0.1:0\"\n\
         admin = \"127.0.0.1:0\"\n[limits]\n{limits}\n[[disk]]\npath = \"disk0\"\nindex = \"index0\"\nsize = \"256M\"\n"
    );
    let config = Config::parse(Source { file: &dir.join("quarry.toml"), text: &text }).unwrap();
    let users = node::users(&config, true).unwrap();
    Node::start(&config, &users, Box::new(|_, _, _| ())).await.unwrap()
}

/// Sends bytes and reads until the server closes.
async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A refused head may end in a reset after the answer.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

async fn get(address: SocketAddr, path: &str, headers: &str) -> String {
    exchange(
        address,
        &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n"),
    )
    .await
}

fn header<'a>(answer: &'a str, name: &str) -> &'a str {
    let line = answer.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}: ")));
    line.unwrap_or_else(|| panic!("no {name} in {answer}")).split_once(": ").unwrap().1
}

#[tokio::test]
async fn a_v1_login_gives_a_token_that_the_object_api_takes() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path(), "").await;
    let health = get(node.object, "/healthcheck", "").await;
    assert!(health.starts_with("HTTP/1.1 200 OK") && health.ends_with("\r\n\r\nOK"), "{health}");
    assert!(header(&health, "x-trans-id").starts_with("tx"));
    let wrong = get(node.object, "/auth/v1.0", "X-Auth-User: test:tester\r\nX-Auth-Key: wrong\r\n").await;
    assert!(wrong.starts_with("HTTP/1.1 401"), "{wrong}");
    let granted = get(node.object, "/auth/v1.0", "X-Auth-User: test:tester\r\nX-Auth-Key: testing\r\n").await;
    assert!(granted.starts_with("HTTP/1.1 200"), "{granted}");
    assert_eq!(header(&granted, "x-storage-url"), format!("http://{}/v1/AUTH_test", node.object));
    assert_eq!(header(&granted, "x-auth-token-expires"), "86400");
    let token = header(&granted, "x-auth-token");
    assert_eq!(token, header(&granted, "x-storage-token"));
    let bad = get(node.object, "/v1/AUTH_test", &format!("X-Auth-Token: {token}x\r\n")).await;
    assert!(bad.starts_with("HTTP/1.1 401"), "{bad}");
    let good = get(node.object, "/v1/AUTH_test", &format!("X-Auth-Token: {token}\r\n")).await;
    assert!(!good.starts_with("HTTP/1.1 401") && !good.starts_with("HTTP/1.1 403"), "{good}");
    node.stop().await;
}

#[tokio::test]
async fn metrics_and_status_are_on_the_admin_listener_alone() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path(), "").await;
    get(node.object, "/healthcheck", "").await;
    let metrics = get(node.admin, "/metrics", "").await;
    let line = "quarry_http_requests_total{api=\"object\",method=\"GET\",status=\"200\"} 1";
    assert!(metrics.contains(line), "{metrics}");
    let status = get(node.admin, "/status", "").await;
    let status: crate::status::Status =
        serde_json::from_str(status.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!((status.disks.len(), status.disks[0].state.as_str()), (1, "ok"));
    for address in [node.object, node.identity] {
        assert!(
            !get(address, "/metrics", "").await.contains("quarry_http"),
            "operators' figures are not for clients"
        );
    }
    node.stop().await;
}

/// A page in a browser of the node's machine could send what it liked to the admin listener.
#[tokio::test]
async fn pages_change_nothing_by_the_admin_listener() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path(), "").await;
    let post = async |path: &str, headers: &str| {
        let head = format!("POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", node.admin);
        exchange(node.admin, &format!("{head}{headers}Content-Length: 2\r\n\r\n{{}}")).await
    };
    for path in ["/volumes", "/cluster/wish", "/cluster/users", "/cluster/policies"] {
        let page = post(path, "Origin: http://example.org\r\n").await;
        assert!(page.starts_with("HTTP/1.1 403") && page.contains("browsers"), "{path}: {page}");
        let program = post(path, "").await;
        assert!(
            program.starts_with("HTTP/1.1 40") && !program.starts_with("HTTP/1.1 403"),
            "{path}: {program}"
        );
    }
    node.stop().await;
}

#[tokio::test]
async fn heads_over_the_limits_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path(), "headers = 64\nheader_bytes = \"16K\"\nheader_timeout = \"1s\"").await;
    let many: String = (0..65).map(|at| format!("X-H{at}: 1\r\n")).collect();
    assert!(get(node.object, "/healthcheck", &many).await.starts_with("HTTP/1.1 431"));
    let long = format!("X-Long: {}\r\n", "x".repeat(17 << 10));
    assert!(get(node.object, "/healthcheck", &long).await.starts_with("HTTP/1.1 431"));
    let begun = std::time::Instant::now();
    let slow = exchange(node.object, "GET /healthcheck HTTP/1.1\r\n").await;
    assert!(begun.elapsed() >= Duration::from_millis(900) && !slow.contains("200"), "{slow}");
    node.stop().await;
}

#[tokio::test]
async fn a_target_that_is_not_utf8_reaches_the_api_also_on_a_reused_connection() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path(), "").await;
    let mut stream = TcpStream::connect(node.object).await.unwrap();
    stream.write_all(b"GET /healthcheck HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 1024];
    let length = stream.read(&mut answer).await.unwrap();
    assert!(String::from_utf8_lossy(&answer[..length]).ends_with("OK"));
    stream
        .write_all(b"GET /v1/AUTH_test/\xff\xfe\xfd\xfc HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 412"), "{answer}");
    node.stop().await;
}

#[tokio::test]
async fn a_full_listener_makes_the_next_wait() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path(), "connections = 1").await;
    let held = TcpStream::connect(node.object).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let next = tokio::spawn(get(node.object, "/healthcheck", ""));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!next.is_finished(), "it waits while the only place is taken");
    drop(held);
    assert!(next.await.unwrap().ends_with("OK"));
    node.stop().await;
}

#[tokio::test]
async fn a_request_in_flight_ends_well_when_the_node_stops() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path(), "").await;
    let (object, identity) = (node.object, node.identity);
    let mut stream = TcpStream::connect(identity).await.unwrap();
    let body = "{\"auth\": {}}";
    let head = format!("POST /v3/auth/tokens HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let stopping = tokio::spawn(node.stop());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!stopping.is_finished(), "the request is still in flight");
    assert!(TcpStream::connect(object).await.is_err(), "nothing new is accepted");
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    stopping.await.unwrap();
}

#[tokio::test]
async fn a_body_that_stalls_is_given_up_and_the_drain_time_ends_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path(), "body_timeout = \"3s\"\ndrain = \"300ms\"").await;
    let stalled =
        "POST /v3/auth/tokens HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nConnection: close\r\n\r\n";
    let answer = exchange(node.identity, stalled).await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    let mut stream = TcpStream::connect(node.identity).await.unwrap();
    stream.write_all(stalled.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = std::time::Instant::now();
    node.stop().await;
    // Closing takes its time on a busy machine.
    assert!(begun.elapsed() < Duration::from_millis(2500), "cut at the drain time");
}

/// A byte now and then kept a place of the identity API for hours, without a login.
#[tokio::test]
async fn a_document_that_comes_byte_by_byte_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path(), "body_timeout = \"1s\"").await;
    let mut stream = TcpStream::connect(node.identity).await.unwrap();
    let head =
        "POST /v3/auth/tokens HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut answers, mut asks) = stream.into_split();
    let sends = async {
        while asks.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let mut answer = [0; 64];
    tokio::select! {
        length = answers.read(&mut answer) => assert!(answer.starts_with(b"HTTP/1.1 4"), "{length:?}"),
        () = sends => {}
        () = tokio::time::sleep(Duration::from_secs(20)) => panic!("it is still listened to"),
    }
    node.stop().await;
}

/// Whoever began to read an object and took nothing more kept the segments that it lies in from being used again, for ever.
#[tokio::test]
async fn a_client_that_takes_no_answers_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path(), "body_timeout = \"1s\"").await;
    let mut stream = TcpStream::connect(node.object).await.unwrap();
    let asked = b"GET /healthcheck HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    let asks = async { while stream.write_all(&asked).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(60), asks).await.expect("it is waited for");
    node.stop().await;
}

#[tokio::test]
async fn test_users_are_refused_where_others_could_reach_them() {
    let dir = tempfile::tempdir().unwrap();
    let text = "[node]\ndata = \"data\"\n[listen]\nobject = \"0.0.0.0:0\"\nvolume = \"127.0.0.1:0\"\n[[disk]]\npath = \"d\"\nindex = \"i\"\n";
    let config = Config::parse(Source { file: &dir.path().join("quarry.toml"), text }).unwrap();
    assert!(matches!(node::users(&config, true), Err(node::NodeError::TestUsersExposed(_))));
    assert!(node::users(&config, false).is_ok());
}

/// Requests on a kept connection.
struct Kept(TcpStream);

impl Kept {
    async fn open(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    /// The answer to one request, whose body ends it; empty when the server has closed.
    async fn ask(&mut self) -> String {
        self.0.write_all(b"GET /healthcheck HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = vec![0; 1024];
        let length = self.0.read(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }
}

/// A node that stopped closed kept connections under a client that was just sending: its request was lost, not refused.
#[tokio::test]
async fn a_node_that_stops_tells_clients_that_keep_a_connection_before_it_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path(), "").await;
    let address = node.object;
    let (mut busy, mut idle) = (Kept::open(address).await, Kept::open(address).await);
    for kept in [&mut busy, &mut idle] {
        let answer = kept.ask().await.to_ascii_lowercase();
        assert!(answer.ends_with("ok") && !answer.contains("connection: close"), "{answer}");
    }
    let begun = std::time::Instant::now();
    let stopping = tokio::spawn(node.stop());
    tokio::time::timeout(Duration::from_secs(5), async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    let last = busy.ask().await.to_ascii_lowercase();
    assert!(last.ends_with("ok") && last.contains("connection: close"), "{last}");
    let mut rest = [0; 16];
    assert_eq!(busy.0.read(&mut rest).await.unwrap(), 0, "it was the last one");
    assert_eq!(idle.0.read(&mut rest).await.unwrap(), 0, "an idle one ends cleanly");
    assert!(begun.elapsed() >= Duration::from_millis(900), "and not before its client had time to ask");
    stopping.await.unwrap();
}

/// Files below `directory` that others can open: not those in a directory that is its owner's alone.
fn open_to_others(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let others = std::fs::metadata(&path).unwrap().permissions().mode() & 0o077;
        match (others, path.is_dir()) {
            (0, _) => {}
            (_, true) => found.extend(open_to_others(&path)),
            (_, false) => found.push(path),
        }
    }
    found
}

/// The index lay beside the data directory, and was everybody's: tokens' keys and users' verifiers are rows of it.
#[tokio::test]
async fn no_file_of_a_node_is_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path(), "").await;
    get(node.object, "/auth/v1.0", "X-Auth-User: test:tester\r\nX-Auth-Key: testing\r\n").await;
    node.stop().await;
    assert!(dir.path().join("index0").is_dir() && dir.path().join("data").is_dir());
    assert_eq!(open_to_others(dir.path()), Vec::<PathBuf>::new());
}
