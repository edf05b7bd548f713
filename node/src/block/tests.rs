//! Volumes over real sockets: made by `/volumes`, used by a small NBD client, found again after a restart.

use std::net::SocketAddr;
use std::path::Path;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::BlockListeners;
use crate::config::{Config, Source};
use crate::node::{self, Node};

const SIZE: u64 = 1 << 30;

fn config(dir: &Path, nbd: &str) -> Config {
    let text = format!(
        "[node]\ndata = \"data\"\n[listen]\nobject = \"127.0.0.1:0\"\nidentity = \"127.0.0.1:0\"\nvolume = \"127.0.0.1:0\"\n\
         admin = \"127.0.0.1:0\"\n[nbd]\n{nbd}\n[[disk]]\npath = \"disk0\"\nindex = \"index0\"\nsize = \"256M\"\n"
    );
    Config::parse(Source { file: &dir.join("quarry.toml"), text: &text }).unwrap()
}

async fn started(dir: &Path) -> Node {
    let config = config(dir, "listen = \"127.0.0.1:0\"\nsocket = \"nbd.socket\"");
    let users = node::users(&config, true).unwrap();
    Node::start(&config, &users, Box::new(|_, _, _| ())).await.unwrap()
}

/// A slip of the pen in the configuration removed the file that it named.
#[tokio::test]
async fn what_is_no_socket_is_not_removed_for_one() {
    let dir = tempfile::tempdir().unwrap();
    let nbd = config(dir.path(), "socket = \"nbd.socket\"").nbd;
    let path = dir.path().join("nbd.socket");
    std::fs::write(&path, "a file").unwrap();
    let error = BlockListeners::bind(&nbd).await.unwrap_err().to_string();
    assert!(error.contains("no socket") && error.contains("another path"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "a file");
    std::fs::remove_file(&path).unwrap();
    // One that a dead node left is replaced.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    BlockListeners::bind(&nbd).await.unwrap();
}

/// Asks the admin listener: status and body.
async fn ask(address: SocketAddr, body: &str) -> (u16, String) {
    let method = if body.is_empty() { "GET" } else { "POST" };
    let length = body.len();
    let request = format!(
        "{method} /volumes HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.trim_end().to_owned())
}

/// A client that has entered an export with simple replies.
struct Client<S>(S);

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    async fn enter(mut stream: S, name: &str) -> Option<Self> {
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
        let mut bytes = 3_u32.to_be_bytes().to_vec();
        bytes.extend(b"IHAVEOPT\0\0\0\x01");
        bytes.extend(u32::try_from(name.len()).unwrap().to_be_bytes());
        bytes.extend(name.as_bytes());
        stream.write_all(&bytes).await.unwrap();
        let mut answer = [0; 10];
        stream.read_exact(&mut answer).await.ok()?;
        Some(Self(stream))
    }

    async fn request(&mut self, kind: u16, offset: u64, length: u32, data: &[u8]) -> (u32, Vec<u8>) {
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(kind.to_be_bytes());
        bytes.extend(7_u64.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(data);
        self.0.write_all(&bytes).await.unwrap();
        let mut head = [0; 16];
        self.0.read_exact(&mut head).await.unwrap();
        let errno = u32::from_be_bytes(head[4..8].try_into().unwrap());
        let mut read = vec![0; if kind == 0 && errno == 0 { length as usize } else { 0 }];
        self.0.read_exact(&mut read).await.unwrap();
        (errno, read)
    }

    async fn write(&mut self, offset: u64, data: &[u8]) {
        let length = u32::try_from(data.len()).unwrap();
        assert_eq!(self.request(1, offset, length, data).await.0, 0);
    }

    async fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        let (errno, data) = self.request(0, offset, length, b"").await;
        assert_eq!(errno, 0);
        data
    }
}

async fn tcp(node: &Node, name: &str) -> Option<Client<TcpStream>> {
    Client::enter(TcpStream::connect(node.nbd.unwrap()).await.unwrap(), name).await
}

#[tokio::test]
async fn a_volume_is_made_used_frozen_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path()).await;
    assert_eq!(ask(node.admin, "").await, (200, "[]".into()));
    let create = format!(r#"{{"create":{{"name":"vol","bytes":{SIZE}}}}}"#);
    assert_eq!(ask(node.admin, &create).await, (200, "Done.".into()));
    assert_eq!(ask(node.admin, &create).await.0, 409);
    assert!(tcp(&node, "none").await.is_none());
    let mut client = tcp(&node, "vol").await.unwrap();
    client.write(100, b"hello").await;
    // Larger than what one read of the socket takes.
    let large: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    client.write(1 << 20, &large).await;
    let snapshot = r#"{"snapshot":{"name":"vol","snapshot":"first"}}"#;
    assert_eq!(ask(node.admin, snapshot).await.0, 200);
    client.write(100, b"world").await;
    // Another connection, by the other socket, of the only volume there is.
    let stream = UnixStream::connect(dir.path().join("nbd.socket")).await.unwrap();
    let mut other = Client::enter(stream, "").await.unwrap();
    assert_eq!(other.read(98, 9).await, b"\0\0world\0\0");
    assert_eq!(ask(node.admin, r#"{"delete":{"name":"vol"}}"#).await.0, 409, "it is in use");
    let mut frozen = tcp(&node, "vol@first").await.unwrap();
    assert_eq!(frozen.read(100, 5).await, b"hello");
    assert_eq!(frozen.request(1, 0, 1, b"x").await.0, 1, "a snapshot is not written");
    drop((client, other, frozen));
    node.stop().await;
    assert!(!dir.path().join("nbd.socket").exists());

    let node = started(dir.path()).await;
    let (_, shown) = ask(node.admin, "").await;
    assert!(shown.contains("\"name\":\"vol\"") && shown.contains("\"name\":\"first\""), "{shown}");
    let mut client = tcp(&node, "vol").await.unwrap();
    assert_eq!(client.read(100, 5).await, b"world");
    assert_eq!(client.read(1 << 20, u32::try_from(large.len()).unwrap()).await, large);
    assert_eq!(
        ask(node.admin, &format!(r#"{{"extend":{{"name":"vol","bytes":{}}}}}"#, 2 * SIZE)).await.0,
        200
    );
    assert_eq!(client.request(0, SIZE, 512, b"").await.0, 22, "its client sees it when it connects anew");
    drop(client);
    let mut client = tcp(&node, "vol").await.unwrap();
    assert_eq!(client.read(SIZE, 512).await, vec![0; 512]);
    drop(client);
    let delete = r#"{"delete":{"name":"vol"}}"#;
    let mut status = 409;
    for _ in 0..100 {
        // The connection's end is noticed a moment later.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        status = ask(node.admin, delete).await.0;
        if status != 409 {
            break;
        }
    }
    assert_eq!(status, 200);
    assert_eq!(ask(node.admin, delete).await.0, 404);
    assert!(tcp(&node, "vol").await.is_none());
    node.stop().await;
}

#[tokio::test]
async fn a_stopping_node_lets_idle_clients_go() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path()).await;
    let create = format!(r#"{{"create":{{"name":"vol","bytes":{SIZE}}}}}"#);
    assert_eq!(ask(node.admin, &create).await.0, 200);
    let mut client = tcp(&node, "vol").await.unwrap();
    let haggling = TcpStream::connect(node.nbd.unwrap()).await.unwrap();
    client.write(0, b"x").await;
    tokio::time::timeout(std::time::Duration::from_secs(20), node.stop()).await.unwrap();
    let mut end = [0];
    assert!(matches!(client.0.read(&mut end).await, Ok(0) | Err(_)));
    drop(haggling);
}

/// It kept the node from stopping for as long as its connection was there.
#[tokio::test]
async fn a_stopping_node_lets_clients_go_that_take_no_replies() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path()).await;
    let create = format!(r#"{{"create":{{"name":"vol","bytes":{SIZE}}}}}"#);
    assert_eq!(ask(node.admin, &create).await.0, 200);
    let mut client = tcp(&node, "vol").await.unwrap();
    client.write(0, &vec![1; 1 << 20]).await;
    let mut read = 0x2560_9513_u32.to_be_bytes().to_vec();
    read.extend([0; 4]);
    read.extend(7_u64.to_be_bytes());
    read.extend(0_u64.to_be_bytes());
    read.extend((1_u32 << 20).to_be_bytes());
    client.0.write_all(&read.repeat(64)).await.unwrap();
    let mut head = [0; 16];
    client.0.read_exact(&mut head).await.unwrap();
    tokio::time::timeout(std::time::Duration::from_secs(40), node.stop()).await.unwrap();
}

#[test]
fn nobody_beyond_this_machine_is_served_without_certificates() {
    let dir = Path::new("d");
    let text = |nbd: &str| {
        format!("[node]\ndata = \"data\"\n[nbd]\n{nbd}\n[[disk]]\npath = \"disk0\"\nindex = \"index0\"\n")
    };
    let refused = |nbd: &str| {
        let error = Config::parse(Source { file: &dir.join("quarry.toml"), text: &text(nbd) }).unwrap_err();
        error.to_string()
    };
    assert!(refused("listen = \"0.0.0.0:10809\"").contains("other machines reach"));
    let pair = "certificate = \"c\"\nkey = \"k\"\n";
    assert!(
        refused(&format!("listen = \"192.0.2.1:10809\"\ntls = \"required\"\n{pair}")).contains("clients")
    );
    assert!(refused("tls = \"offered\"").contains("certificate and key"));
    let all = format!("listen = \"192.0.2.1:10809\"\ntls = \"required\"\n{pair}clients = \"a\"");
    let config = Config::parse(Source { file: &dir.join("quarry.toml"), text: &text(&all) }).unwrap();
    assert_eq!(config.nbd.clients.unwrap(), Path::new("d/a"));
}

/// 64 requests at 100 a second, from two clients: more than a third of a second, and no more than the rate.
#[tokio::test]
async fn a_volume_is_used_no_faster_than_its_limits_say_also_when_they_change() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path()).await;
    let create = format!(r#"{{"create":{{"name":"vol","bytes":{SIZE}}}}}"#);
    assert_eq!(ask(node.admin, &create).await.0, 200);
    let mut clients = [tcp(&node, "vol").await.unwrap(), tcp(&node, "vol").await.unwrap()];
    let qos = |iops: u32| {
        format!(r#"{{"qos":{{"name":"vol","limits":{{"total_iops_sec":{iops},"total_iops_sec_max":0}}}}}}"#)
    };
    assert_eq!(ask(node.admin, r#"{"qos":{"name":"vol","limits":{"iops":1}}}"#).await.0, 400);
    assert_eq!(ask(node.admin, &qos(100)).await.0, 200);
    let began = std::time::Instant::now();
    for n in 0..32 {
        for client in &mut clients {
            client.write(n * 4096, &[1; 4096]).await;
        }
    }
    let took = began.elapsed();
    assert!(took >= std::time::Duration::from_millis(620), "64 requests took {took:?}");
    let (_, shown) = ask(node.admin, "").await;
    assert!(shown.contains(r#""total_iops_sec":100"#), "{shown}");
    // One that waits for hours goes on when the limit goes.
    assert_eq!(ask(node.admin, r#"{"qos":{"name":"vol","limits":{"write_bytes_sec":1}}}"#).await.0, 200);
    clients[0].write(0, &[2; 4096]).await;
    let [first, _] = &mut clients;
    let waits =
        tokio::time::timeout(std::time::Duration::from_millis(100), first.request(1, 0, 4096, &[3; 4096]));
    assert!(waits.await.is_err());
    assert_eq!(ask(node.admin, r#"{"qos":{"name":"vol","limits":{}}}"#).await.0, 200);
    let answer = tokio::time::timeout(std::time::Duration::from_secs(60), clients[1].read(0, 4096));
    answer.await.unwrap();
    node.stop().await;
}

/// Reads of a volume with one member go to the disk from the client's own thread. One that its limit had held back was asked for there
/// and never begun, until the client sent something else.
#[tokio::test]
async fn reads_that_a_limit_holds_back_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path()).await;
    let create = format!(r#"{{"create":{{"name":"vol","bytes":{SIZE}}}}}"#);
    assert_eq!(ask(node.admin, &create).await.0, 200);
    let mut client = tcp(&node, "vol").await.unwrap();
    client.write(0, &[1; 40 << 10]).await;
    // Durable and in the index: what is late is read from memory.
    assert_eq!(client.request(3, 0, 0, b"").await.0, 0);
    let qos = r#"{"qos":{"name":"vol","limits":{"total_iops_sec":20,"total_iops_sec_max":0}}}"#;
    assert_eq!(ask(node.admin, qos).await.0, 200);
    for n in 0..10 {
        let read = tokio::time::timeout(std::time::Duration::from_secs(20), client.read(n * 4096, 4096));
        assert_eq!(read.await.unwrap_or_else(|_| panic!("read {n} waits for ever")), [1; 4096]);
    }
    node.stop().await;
}

#[tokio::test]
async fn who_attaches_only_to_read_sees_what_others_write_and_changes_nothing() {
    const EPERM: u32 = 1;
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path()).await;
    let create = format!(r#"{{"create":{{"name":"vol","bytes":{SIZE}}}}}"#);
    assert_eq!(ask(node.admin, &create).await.0, 200);
    let attach = |name: &str| format!(r#"{{"attach":{{"name":"{name}","read_only":true}}}}"#);
    assert_eq!(ask(node.admin, &attach("none")).await.0, 404);
    let (code, export) = ask(node.admin, &attach("vol")).await;
    assert_eq!((code, export.as_str()), (200, "vol/ro"));
    let mut writer = tcp(&node, "vol").await.unwrap();
    writer.write(100, b"hello").await;
    let mut reader = tcp(&node, &export).await.unwrap();
    assert_eq!(reader.read(100, 5).await, b"hello");
    // Write, trim, zeroes.
    assert_eq!(reader.request(1, 100, 5, b"wrong").await.0, EPERM);
    assert_eq!(reader.request(4, 0, 4096, b"").await.0, EPERM);
    assert_eq!(reader.request(6, 0, 4096, b"").await.0, EPERM);
    assert_eq!(reader.request(3, 0, 0, b"").await.0, 0, "a flush changes nothing");
    writer.write(100, b"world").await;
    assert_eq!(reader.read(100, 5).await, b"world");
    assert!(tcp(&node, "none/ro").await.is_none());
    assert_eq!(ask(node.admin, r#"{"snapshot":{"name":"vol","snapshot":"s"}}"#).await.0, 200);
    assert_eq!(tcp(&node, "vol@s/ro").await.unwrap().read(100, 5).await, b"world");
    drop(writer);
    assert_eq!(ask(node.admin, r#"{"delete":{"name":"vol"}}"#).await.0, 409, "it is in use");
    drop(reader);
    node.stop().await;
}
