//! Clients that take their time, and wires that keep what they took.

use std::task::Waker;
use std::time::Duration;

use quarry_volume::VolumeId;
use quarry_volume::store::{Label, Volumes};
use tokio::io::{BufStream, DuplexStream};

use super::*;
use crate::block::Blocks;
use crate::swift::testing::Rig;

const PATIENCE: Duration = Duration::from_secs(30);

async fn exports(rig: &Rig) -> Arc<Exports> {
    let exports = Blocks::of(Arc::new(Volumes::open(vec![rig.disk()]).unwrap())).exports;
    let label = Label { name: "vol".into(), bytes: 1 << 30, ..Label::default() };
    exports.create(VolumeId([1; 16]), label, 1).await.unwrap();
    exports
}

/// In simple replies.
fn request(kind: u16, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([7; 8]);
    bytes.extend([0; 8]);
    bytes.extend(length.to_be_bytes());
    bytes
}

/// Comes to a node, and is greeted.
async fn greeted(exports: &Arc<Exports>, admission: &Arc<Admission>) -> DuplexStream {
    let (ours, mut theirs) = tokio::io::duplex(1 << 10);
    let (stop, stopped) = watch::channel(false);
    let (exports, admission) = (Arc::clone(exports), Arc::clone(admission));
    let host = Host { exports, tls: Tls::Off, acceptor: None, admission, stopped };
    tokio::spawn(async move {
        // As TLS does: it says that it has taken all, and sends the end of it when it is flushed.
        let wire = BufStream::with_capacity(64 << 10, 64 << 10, ours);
        let _ended = serve(Box::new(wire), host).await;
        drop(stop);
    });
    let mut greeting = [0; 18];
    theirs.read_exact(&mut greeting).await.unwrap();
    theirs
}

/// Asks for the volume; whether the node agrees.
async fn enters(client: &mut DuplexStream) -> bool {
    client.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x03vol").await.unwrap();
    client.read_exact(&mut [0; 10]).await.is_ok()
}

async fn entered(exports: Arc<Exports>) -> DuplexStream {
    let mut client = greeted(&exports, &Arc::new(Admission::new(1))).await;
    assert!(enters(&mut client).await);
    client
}

/// They shared the places, so that a few hundred who said nothing kept everybody out for a minute.
#[tokio::test]
async fn who_has_not_agreed_takes_no_place() {
    let rig = Rig::start();
    let exports = exports(&rig).await;
    let admission = Arc::new(Admission::new(1));
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(greeted(&exports, &admission).await);
    }
    let mut first = greeted(&exports, &admission).await;
    assert!(enters(&mut first).await);
    assert!(!enters(&mut silent[0]).await, "there is one place");
    let mut other = silent.remove(2);
    // The command to end, and its answer, which is the end.
    first.write_all(&request(2, 0)).await.unwrap();
    assert!(first.read_exact(&mut [0; 1]).await.is_err());
    // NBD_OPT_GO for what is not there, with no wishes: refused, and the haggling goes on.
    other.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\x04nope\0\0").await.unwrap();
    let mut refused = [0; 20];
    other.read_exact(&mut refused).await.unwrap();
    assert_eq!(refused[12..16], [0x80, 0, 0, 6], "NBD_REP_ERR_UNKNOWN");
    assert!(enters(&mut silent[1]).await, "who was refused keeps no place");
}

/// Whatever came while it was flushed broke that off, and nobody flushed again until there was another reply.
#[tokio::test]
async fn a_reply_is_sent_to_its_end_whatever_comes_meanwhile() {
    let rig = Rig::start();
    let mut client = entered(exports(&rig).await).await;
    client.write_all(&request(0, 32 << 10)).await.unwrap();
    let mut begin = [0; 16];
    client.read_exact(&mut begin).await.unwrap();
    // The beginning of a write, whose rest does not come before the read is answered.
    client.write_all(&[request(1, 4096), vec![1; 100]].concat()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut rest = vec![1; 32 << 10];
    tokio::time::timeout(PATIENCE, client.read_exact(&mut rest)).await.expect("its end is not sent").unwrap();
    assert!(rest.iter().all(|byte| *byte == 0));
    client.write_all(&[1; 4096 - 100]).await.unwrap();
    client.read_exact(&mut begin).await.unwrap();
    drop(client);
}

/// Dropped between what it asks of the log and the answer, it put the volume out until the node was started again.
#[tokio::test]
async fn an_attachment_is_made_to_its_end_also_when_nobody_waits_for_it() {
    let rig = Rig::start();
    let exports = exports(&rig).await;
    {
        let mut attaching = Box::pin(exports.attach("vol"));
        for _ in 0..3 {
            let begun = attaching.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            if begun.is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let attached = tokio::time::timeout(PATIENCE, exports.attach("vol")).await.unwrap();
    assert_eq!(attached.unwrap().read_whole(0, 4096).await.unwrap(), vec![0; 4096]);
}
