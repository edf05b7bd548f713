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

async fn entered(exports: Arc<Exports>) -> DuplexStream {
    let (ours, mut theirs) = tokio::io::duplex(1 << 10);
    let (stop, stopped) = watch::channel(false);
    let host = Host { exports, tls: Tls::Off, acceptor: None, stopped };
    tokio::spawn(async move {
        // As TLS does: it says that it has taken all, and sends the end of it when it is flushed.
        let wire = BufStream::with_capacity(64 << 10, 64 << 10, ours);
        serve(Box::new(wire), host).await.unwrap();
        drop(stop);
    });
    let mut greeting = [0; 18];
    theirs.read_exact(&mut greeting).await.unwrap();
    theirs.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x03vol").await.unwrap();
    let mut answer = [0; 10];
    theirs.read_exact(&mut answer).await.unwrap();
    theirs
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
