//! Volumes of images and images of volumes, at a service that lies, breaks off and comes back: it speaks as Glance does, over a socket.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha512};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::*;
use crate::cinder::fields::{map, paper};

const ID: &str = "0d4b4f0e-3c0f-4f3a-9a57-000000000001";
const TOKEN: &str = "the caller's";

/// An image as the service has it.
#[derive(Clone)]
struct Image {
    known: Value,
    bytes: Vec<u8>,
    /// Bytes after which it waits for a permit of `gate`.
    pause: usize,
    /// Bytes after which it breaks off.
    cut: usize,
}

impl Image {
    fn new(format: &str, bytes: Vec<u8>) -> Self {
        let known = json!({
            "id": ID, "name": "small", "status": "active", "disk_format": format, "container_format": "bare", "size": bytes.len(),
            "os_hash_algo": "sha512", "os_hash_value": hex::encode(Sha512::digest(&bytes)), "min_disk": 0, "hw_disk_bus": "virtio",
        });
        Self { known, pause: bytes.len(), cut: bytes.len(), bytes }
    }

    fn saying(mut self, key: &str, value: Value) -> Self {
        self.known[key] = value;
        self
    }
}

async fn say(stream: &mut TcpStream, status: &str, body: &[u8]) {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
    let _closed = stream.write_all(&[head.as_bytes(), body].concat()).await;
}

struct Glance {
    url: String,
    images: Mutex<HashMap<String, Image>>,
    /// The id of the next image that is made.
    next: Mutex<String>,
    gate: Semaphore,
    asked: Semaphore,
    /// It waits for `gate` before it takes bytes.
    held: AtomicBool,
    /// It keeps other bytes than it was sent.
    lies: AtomicBool,
    /// It takes no token for bytes.
    refuses: AtomicBool,
}

impl Glance {
    fn at(url: String) -> Self {
        let (gate, asked) = (Semaphore::new(0), Semaphore::new(0));
        let (held, lies) = (AtomicBool::new(false), AtomicBool::new(false));
        let next = Mutex::new(ID.to_owned());
        let refuses = AtomicBool::new(false);
        Self { url, images: Mutex::default(), next, gate, asked, held, lies, refuses }
    }

    async fn start(image: Image) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/image", listener.local_addr().unwrap());
        let images = Mutex::new(HashMap::from([(ID.to_owned(), image)]));
        let it = Arc::new(Self { images, ..Self::at(url) });
        let served = Arc::clone(&it);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let served = Arc::clone(&served);
                tokio::spawn(async move { served.answer(stream).await });
            }
        });
        it
    }

    fn put(&self, image: Image) {
        let id = image.known["id"].as_str().unwrap().to_owned();
        self.images.lock().unwrap().insert(id, image);
    }

    async fn answer(&self, mut stream: TcpStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        assert!(head.contains(&format!("\r\nx-auth-token: {TOKEN}\r\n")), "{head}");
        let (method, rest) = head.split_once(' ').unwrap();
        let path = rest.split(' ').next().unwrap().strip_prefix("/image/v2/images").unwrap();
        let id = path.trim_start_matches('/').trim_end_matches("/file");
        let image = self.images.lock().unwrap().get(id).cloned();
        match (method, image) {
            _ if path.ends_with("/file") && self.refuses.load(Ordering::Relaxed) => {
                say(&mut stream, "401 Unauthorized", b"").await;
            }
            ("get", Some(image)) => self.give(stream, image, path.ends_with("/file")).await,
            ("post", _) => {
                let known = paper(serde_json::from_slice(&self.take(&mut stream, &head).await).unwrap());
                let id = self.next.lock().unwrap().clone();
                let made = json!({ "id": id, "status": "queued" });
                let made = Image { known: made, ..Image::new("raw", Vec::new()) };
                let made = known.into_iter().fold(made, |made, (key, value)| made.saying(&key, value));
                let text = made.known.to_string();
                self.put(made);
                say(&mut stream, "201 Created", text.as_bytes()).await;
            }
            ("put", Some(image)) if image.known["status"] == "queued" => {
                self.asked.add_permits(1);
                let Some(mut bytes) = self.take_whole(&mut stream, &head).await else { return };
                if self.lies.load(Ordering::Relaxed) {
                    bytes[0] ^= 1;
                }
                let kept = Image::new("raw", bytes);
                let kept =
                    paper(image.known).into_iter().fold(kept, |kept, (key, value)| kept.saying(&key, value));
                self.put(kept.saying("status", json!("active")));
                say(&mut stream, "204 No Content", b"").await;
            }
            ("delete", Some(_)) => {
                self.images.lock().unwrap().remove(id);
                say(&mut stream, "204 No Content", b"").await;
            }
            (_, Some(_)) => say(&mut stream, "409 Conflict", b"").await,
            _ => say(&mut stream, "404 Not Found", b"").await,
        }
    }

    async fn take(&self, stream: &mut TcpStream, head: &str) -> Vec<u8> {
        self.take_whole(stream, head).await.unwrap()
    }

    /// The body of a request; nothing of one that breaks off.
    async fn take_whole(&self, stream: &mut TcpStream, head: &str) -> Option<Vec<u8>> {
        let length = head.split("content-length: ").nth(1).unwrap().split('\r').next().unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        if head.starts_with("put") && self.held.load(Ordering::Relaxed) {
            self.gate.acquire().await.unwrap().forget();
        }
        stream.read_exact(&mut body).await.is_ok().then_some(body)
    }

    async fn give(&self, mut stream: TcpStream, image: Image, is_file: bool) {
        let text = image.known.to_string().into_bytes();
        if !is_file {
            return say(&mut stream, "200 OK", &text).await;
        }
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", image.bytes.len());
        let (before, behind) = image.bytes[..image.cut].split_at(image.pause.min(image.cut));
        // Who does not want it any more closes.
        let _closed = stream.write_all(&[head.as_bytes(), before].concat()).await;
        self.asked.add_permits(1);
        if !behind.is_empty() {
            self.gate.acquire().await.unwrap().forget();
            let _closed = stream.write_all(behind).await;
        }
    }

    /// A request for a volume, where the service is known.
    async fn ask(&self, office: &Arc<Office>, said: Value) -> (u16, Value) {
        self.post(office, "volumes", json!({ "volume": said })).await
    }

    async fn post(&self, office: &Arc<Office>, what: &str, body: Value) -> (u16, Value) {
        let ask = Ask {
            method: Method::POST,
            query: Vec::new(),
            minor: NEWEST,
            caller: caller("p", false),
            base: "http://n:8776/v3".to_owned(),
            path: format!("/v3/{what}"),
            body: body.into(),
            id: "req-1".to_owned(),
            token: TOKEN.to_owned().into(),
            images: Some(self.url.clone()),
            image_authority: None,
        };
        match Box::pin(route::answer(office, &ask)).await {
            Ok(answer) => (answer.status, answer.body.0.unwrap()),
            Err(fault) => (fault.status, fault.body()),
        }
    }

    async fn make(&self, office: &Arc<Office>, size: i64) -> String {
        let (status, body) = self.ask(office, json!({ "size": size, "imageRef": ID })).await;
        assert_eq!((status, &body["volume"]["status"]), (202, &json!("creating")), "{body}");
        body["volume"]["id"].as_str().unwrap().to_owned()
    }
}

/// 3 MiB: zeroes, and bytes in the middle.
fn disk() -> Vec<u8> {
    let mut disk = vec![0; 3 << 20];
    disk[1 << 20..2 << 20].fill(7);
    disk
}

async fn shown(office: &Arc<Office>, id: &str) -> Paper {
    let (_, body) = ask(office, &caller("p", false), 0, &format!("GET volumes/{id}"), Value::Null).await;
    map(&paper(body), "volume")
}

/// That no volume is left but those of clients.
fn nothing_is_on_its_way(office: &Office) {
    let left = office.blocks.exports.volumes().named(|name| !name.starts_with("volume-"));
    assert!(left.is_empty(), "{left:?}");
}

async fn holds_the_disk(office: &Office, id: &str) {
    assert_eq!((read(office, id, 1 << 20).await, read(office, id, (2 << 20) - 8192).await), (7, 7));
    assert_eq!((read(office, id, 0).await, read(office, id, 2 << 20).await), (0, 0));
}

#[tokio::test]
async fn a_volume_of_an_image_holds_its_bytes_and_tells_of_it() {
    let rig = Rig::start();
    let office = office(&rig);
    let glance = Glance::start(Image::new("raw", disk())).await;
    let id = glance.make(&office, 1).await;
    settle(&office).await;
    let volume = shown(&office, &id).await;
    assert_eq!((&volume["status"], &volume["bootable"]), (&json!("available"), &json!("true")));
    let told = &volume["volume_image_metadata"];
    assert_eq!((&told["image_id"], &told["image_name"]), (&json!(ID), &json!("small")));
    assert_eq!((&told["hw_disk_bus"], &told["size"]), (&json!("virtio"), &json!("3145728")));
    holds_the_disk(&office, &id).await;
    // A volume of the volume tells the same.
    let copy = make(&office, &caller("p", false), json!({ "source_volid": id })).await;
    settle(&office).await;
    assert_eq!(shown(&office, &copy).await["volume_image_metadata"], *told);
    rig.stop().await;
}

#[tokio::test]
async fn an_image_that_is_none_or_does_not_fit_is_refused_before_a_volume_is_made() {
    let rig = Rig::start();
    let office = office(&rig);
    let good = Image::new("raw", disk());
    let glance = Glance::start(good.clone()).await;
    let other = "0d4b4f0e-3c0f-4f3a-9a57-000000000002";
    for said in [
        json!({ "size": 1, "imageRef": other }),
        json!({ "size": 1, "imageRef": "small" }),
        json!({ "size": 1, "imageRef": "../../etc" }),
        json!({ "imageRef": ID }),
    ] {
        assert_eq!(glance.ask(&office, said.clone()).await.0, 400, "{said}");
    }
    for (key, value) in [
        ("status", json!("queued")),
        ("disk_format", json!("vmdk")),
        ("container_format", json!("ova")),
        ("min_disk", json!(2)),
        ("size", json!((1_i64 << 30) + 1)),
    ] {
        glance.put(good.clone().saying(key, value));
        assert_eq!(glance.ask(&office, json!({ "size": 1, "imageRef": ID })).await.0, 400, "{key}");
    }
    let said = json!({ "volume": { "size": 1, "imageRef": ID } });
    let (status, body) = ask(&office, &caller("p", false), 0, "POST volumes", said).await;
    assert!(status == 400 && body.to_string().contains("no image service"), "{body}");
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let gone = Glance::at(format!("http://{gone}"));
    assert_eq!(gone.ask(&office, json!({ "size": 1, "imageRef": ID })).await.0, 503);
    assert!(office.papers.all("volumes").await.unwrap().is_empty());
    rig.stop().await;
}

#[tokio::test]
async fn other_bytes_than_the_service_says_or_fewer_end_in_error() {
    let rig = Rig::start();
    let office = office(&rig);
    let good = Image::new("raw", disk());
    let glance = Glance::start(good.clone()).await;
    let mut lied = good.clone();
    lied.bytes[5] ^= 1;
    let cut = Image { cut: 2 << 20, ..good.clone() };
    let torn = Image::new("qcow2", packed()[..3 << 16].to_vec()).saying("virtual_size", json!(1));
    let larger = Image::new("qcow2", packed()).saying("virtual_size", json!(1));
    let huge = Image::new("qcow2", packed()).saying("size", json!(1_i64 << 40));
    for (image, size) in [(lied, 1), (cut, 1), (torn, 1), (larger.clone(), 1), (huge, 1)] {
        glance.put(image);
        let id = glance.make(&office, size).await;
        settle(&office).await;
        assert_eq!(shown(&office, &id).await["status"], "error");
        nothing_is_on_its_way(&office);
    }
    let (_, said) = ask(&office, &caller("p", false), 3, "GET messages", Value::Null).await;
    let events: Vec<_> = said["messages"].as_array().unwrap().iter().map(|one| &one["event_id"]).collect();
    assert_eq!(events, [&json!("VOLUME_VOLUME_005_001"); 5]);
    rig.stop().await;
}

/// A disk of 1.5 GiB in qcow2: at 64 KiB a cluster as it is, at 192 KiB one that is compressed, zeroes elsewhere.
fn packed() -> Vec<u8> {
    let mut image = vec![0; 5 << 16];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb\0\0\0\x03");
    put(20, &16_u32.to_be_bytes());
    put(24, &(3_u64 << 29).to_be_bytes());
    put(36, &3_u32.to_be_bytes());
    put(40, &(1_u64 << 16).to_be_bytes());
    put(1 << 16, &((1_u64 << 63) + (2 << 16)).to_be_bytes());
    put((2 << 16) + 8, &((1_u64 << 63) + (3 << 16)).to_be_bytes());
    put(3 << 16, &[7; 1 << 16]);
    let mut packer = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut packer, &[9; 1 << 16]).unwrap();
    let small = packer.finish().unwrap();
    put((2 << 16) + 24, &((1_u64 << 62) + (4 << 16) + 100).to_be_bytes());
    put((4 << 16) + 100, &small);
    image
}

#[tokio::test]
async fn an_image_in_qcow2_is_unpacked_and_leaves_nothing_behind() {
    let rig = Rig::start();
    let office = office(&rig);
    let image = Image::new("qcow2", packed()).saying("virtual_size", json!(3_i64 << 29));
    let glance = Glance::start(image).await;
    assert_eq!(
        glance.ask(&office, json!({ "size": 1, "imageRef": ID })).await.0,
        400,
        "its disk has 1.5 GiB"
    );
    let id = glance.make(&office, 2).await;
    settle(&office).await;
    assert_eq!(shown(&office, &id).await["status"], "available");
    for (at, byte) in [(0, 0), (1 << 16, 7), ((2 << 16) - 8192, 7), (2 << 16, 0), (3 << 16, 9), (4 << 16, 0)]
    {
        assert_eq!(read(&office, &id, at).await, byte, "{at}");
    }
    nothing_is_on_its_way(&office);
    rig.stop().await;
}

/// Clusters of the disk below that are there.
const USED: usize = 320;

fn byte_of(cluster: usize) -> u8 {
    u8::try_from(cluster % 250 + 1).unwrap()
}

/// A disk of 1 GiB whose first 20 MiB are there, in qcow2: its tables lie before what they tell of, or behind it.
fn with_tables(before: bool) -> Vec<u8> {
    let place = |nth: usize| (nth as u64) << 16;
    let (first, second, data) = if before { (1, 2, 3) } else { (USED + 2, USED + 1, 1) };
    let mut image = vec![0; (USED + 3) << 16];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb\0\0\0\x03");
    put(20, &16_u32.to_be_bytes());
    put(24, &(1_u64 << 30).to_be_bytes());
    put(36, &2_u32.to_be_bytes());
    put(40, &place(first).to_be_bytes());
    put(first << 16, &((1_u64 << 63) + place(second)).to_be_bytes());
    for cluster in 0..USED {
        put((second << 16) + cluster * 8, &((1_u64 << 63) + place(data + cluster)).to_be_bytes());
        put((data + cluster) << 16, &[byte_of(cluster); 1 << 16]);
    }
    image
}

/// The volume took twice the time of its download, for the image was written to a volume of its own first, and from there to its disk.
#[tokio::test]
async fn an_image_in_qcow2_is_written_while_it_comes_and_once() {
    let rig = Rig::start();
    let office = office(&rig);
    let image = Image { pause: (USED - 2) << 16, ..Image::new("qcow2", with_tables(true)) };
    let glance = Glance::start(image.saying("virtual_size", json!(1 << 30))).await;
    let id = glance.make(&office, 1).await;
    let mut running = JoinSet::new();
    work::round(&office, &mut running).await.unwrap();
    glance.asked.acquire().await.unwrap().forget();
    // Some of the image has not come yet, and what came first is there.
    while read(&office, &id, 300 << 16).await != byte_of(300) {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(shown(&office, &id).await["status"], "downloading");
    nothing_is_on_its_way(&office);
    glance.gate.add_permits(1);
    while running.join_next().await.is_some() {}
    settle(&office).await;
    assert_eq!(shown(&office, &id).await["status"], "available");
    for cluster in 0..USED {
        assert_eq!(read(&office, &id, (cluster as u64) << 16).await, byte_of(cluster));
    }
    assert_eq!(read(&office, &id, (USED as u64) << 16).await, 0);
    nothing_is_on_its_way(&office);
    rig.stop().await;
}

/// More is kept of it than memory is for; a node that is killed meanwhile leaves a volume, which the next try deletes.
#[tokio::test]
async fn an_image_whose_tables_come_last_is_kept_until_they_have() {
    let rig = Rig::start();
    let first = office(&rig);
    let image = Image { pause: (USED - 2) << 16, ..Image::new("qcow2", with_tables(false)) };
    let glance = Glance::start(image.saying("virtual_size", json!(1 << 30))).await;
    let id = glance.make(&first, 1).await;
    let mut running = JoinSet::new();
    work::round(&first, &mut running).await.unwrap();
    glance.asked.acquire().await.unwrap().forget();
    while first.blocks.exports.volumes().list().len() < 2 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    running.shutdown().await;
    drop(first);
    let second = office(&rig);
    glance.gate.add_permits(2);
    settle(&second).await;
    assert_eq!(shown(&second, &id).await["status"], "available");
    for cluster in 0..USED {
        assert_eq!(read(&second, &id, (cluster as u64) << 16).await, byte_of(cluster));
    }
    nothing_is_on_its_way(&second);
    rig.stop().await;
}

/// What a killed node had written of an image that was another one then (or bytes that were damaged) stood where the image has zeroes.
#[tokio::test]
async fn a_download_that_a_kill_cut_off_begins_anew_on_zeroes() {
    for format in ["raw", "qcow2"] {
        let rig = Rig::start();
        let first = office(&rig);
        let image = if format == "raw" { disk() } else { packed() };
        let half = Image { pause: 1 << 16, ..Image::new(format, image) };
        let glance = Glance::start(half.saying("virtual_size", json!(1 << 20))).await;
        let id = glance.make(&first, 2).await;
        let mut running = JoinSet::new();
        work::round(&first, &mut running).await.unwrap();
        glance.asked.acquire().await.unwrap().forget();
        assert_eq!(shown(&first, &id).await["status"], "downloading");
        running.shutdown().await;
        write(&first, &id, 0, 5).await;
        write(&first, &id, 2 << 20, 5).await;
        drop(first);
        let second = office(&rig);
        glance.gate.add_permits(2);
        settle(&second).await;
        assert_eq!(shown(&second, &id).await["status"], "available");
        assert_eq!((read(&second, &id, 0).await, read(&second, &id, 2 << 20).await), (0, 0), "{format}");
        nothing_is_on_its_way(&second);
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_download_that_nobody_waits_for_ends() {
    let rig = Rig::start();
    let office = office(&rig);
    let glance = Glance::start(Image { pause: 1 << 20, ..Image::new("raw", disk()) }).await;
    let id = glance.make(&office, 1).await;
    let mut running = JoinSet::new();
    work::round(&office, &mut running).await.unwrap();
    glance.asked.acquire().await.unwrap().forget();
    let force = json!({ "os-force_delete": {} });
    let deleted = ask(&office, &caller("p", true), 0, &format!("POST volumes/{id}/action"), force).await;
    assert_eq!(deleted.0, 202, "{deleted:?}");
    // The rest never comes; a service that says nothing is given up after a minute.
    let ended = tokio::time::timeout(std::time::Duration::from_secs(50), running.join_all()).await;
    assert!(ended.is_ok(), "it waits on");
    settle(&office).await;
    assert!(office.papers.all("volumes").await.unwrap().is_empty());
    assert!(!office.blocks.exports.has(&work::device_name(&id)));
    nothing_is_on_its_way(&office);
    rig.stop().await;
}

/// Long downloads of many volumes held up whatever else there was to do.
#[tokio::test]
async fn images_leave_room_for_other_tasks() {
    let rig = Rig::start();
    let office = office(&rig);
    let glance = Glance::start(Image { pause: 0, ..Image::new("raw", disk()) }).await;
    for _ in 0..9 {
        glance.make(&office, 1).await;
    }
    let other = make(&office, &caller("p", false), json!({ "size": 1 })).await;
    let mut running = JoinSet::new();
    while status(&office, &caller("p", false), &format!("volumes/{other}")).await != "available" {
        work::round(&office, &mut running).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(office.images.available_permits(), 0);
    glance.gate.add_permits(9);
    running.join_all().await;
    settle(&office).await;
    for volume in office.papers.all("volumes").await.unwrap() {
        assert_eq!(volume["status"], "available");
    }
    rig.stop().await;
}

/// A volume that holds something at its beginning, in its middle and at its end, and an image that is to be made of it.
async fn volume_to_image(office: &Arc<Office>, glance: &Glance) -> String {
    let id = make(office, &caller("p", false), json!({ "size": 1 })).await;
    settle(office).await;
    for (at, byte) in [(0, 3), (600 << 20, 4), ((1 << 30) - 8192, 5)] {
        write(office, &id, at, byte).await;
    }
    let said = json!({ "os-volume_upload_image": { "image_name": "mine", "disk_format": "qcow2" } });
    let (status, body) = glance.post(office, &format!("volumes/{id}/action"), said).await;
    let told = &body["os-volume_upload_image"];
    assert_eq!(
        (status, &told["status"], &told["image_id"]),
        (202, &json!("uploading"), &json!(ID)),
        "{body}"
    );
    id
}

#[tokio::test]
async fn an_image_of_a_volume_makes_the_same_volume() {
    let rig = Rig::start();
    let office = office(&rig);
    let glance = Glance::start(Image::new("raw", Vec::new())).await;
    let id = volume_to_image(&office, &glance).await;
    settle(&office).await;
    assert_eq!(shown(&office, &id).await["status"], "available");
    let known = glance.images.lock().unwrap()[ID].clone();
    assert_eq!((&known.known["status"], &known.known["disk_format"]), (&json!("active"), &json!("qcow2")));
    assert!(known.bytes.len() < 1 << 20, "{} bytes of 24 KiB", known.bytes.len());
    let copy = glance.make(&office, 1).await;
    settle(&office).await;
    assert_eq!(shown(&office, &copy).await["status"], "available");
    for (at, byte) in [(0, 3), (8192, 0), (600 << 20, 4), (700 << 20, 0), ((1 << 30) - 8192, 5)] {
        assert_eq!(read(&office, &copy, at).await, byte, "{at}");
    }
    let volume = office.blocks.exports.volumes().find(&work::device_name(&id)).unwrap();
    assert!(volume.snapshots().is_empty(), "what was frozen is let go");
    rig.stop().await;
}

#[tokio::test]
async fn an_image_that_is_not_what_was_sent_is_deleted() {
    let rig = Rig::start();
    let office = office(&rig);
    let glance = Glance::start(Image::new("raw", Vec::new())).await;
    glance.lies.store(true, Ordering::Relaxed);
    let id = volume_to_image(&office, &glance).await;
    settle(&office).await;
    assert_eq!(shown(&office, &id).await["status"], "available");
    assert!(glance.images.lock().unwrap().is_empty());
    let (_, said) = ask(&office, &caller("p", false), 3, "GET messages", Value::Null).await;
    assert_eq!(said["messages"][0]["event_id"], "VOLUME_VOLUME_003_001");
    rig.stop().await;
}

/// A volume whose image was being sent, by a node that was killed then.
async fn cut_off(first: &Arc<Office>, glance: &Glance) -> String {
    glance.held.store(true, Ordering::Relaxed);
    let id = volume_to_image(first, glance).await;
    let mut running = JoinSet::new();
    work::round(first, &mut running).await.unwrap();
    glance.asked.acquire().await.unwrap().forget();
    running.shutdown().await;
    glance.held.store(false, Ordering::Relaxed);
    id
}

#[tokio::test]
async fn an_upload_that_a_kill_cut_off_sends_what_was_frozen_then() {
    let rig = Rig::start();
    let first = office(&rig);
    let glance = Glance::start(Image::new("raw", Vec::new())).await;
    let id = cut_off(&first, &glance).await;
    write(&first, &id, 0, 9).await;
    drop(first);
    let second = office(&rig);
    settle(&second).await;
    assert_eq!(shown(&second, &id).await["status"], "available");
    let copy = glance.make(&second, 1).await;
    settle(&second).await;
    assert_eq!((read(&second, &copy, 0).await, read(&second, &id, 0).await), (3, 9));
    rig.stop().await;
}

#[tokio::test]
async fn an_image_of_a_volume_that_may_have_none_is_refused() {
    let rig = Rig::start();
    let office = office(&rig);
    let glance = Glance::start(Image::new("raw", Vec::new())).await;
    let id = make(&office, &caller("p", false), json!({ "size": 1 })).await;
    settle(&office).await;
    for (key, value, expected) in [
        ("image_name", json!(""), 400),
        ("disk_format", json!("vmdk"), 400),
        ("container_format", json!("ova"), 400),
        ("visibility", json!("nobody"), 400),
        ("visibility", json!("public"), 403),
        ("force", json!("perhaps"), 400),
    ] {
        let mut said = json!({ "image_name": "mine" });
        said[key] = value;
        let said = json!({ "os-volume_upload_image": said });
        assert_eq!(glance.post(&office, &format!("volumes/{id}/action"), said).await.0, expected, "{key}");
    }
    let said = json!({ "os-volume_upload_image": { "image_name": "mine" } });
    let (status, body) =
        ask(&office, &caller("p", false), 0, &format!("POST volumes/{id}/action"), said).await;
    assert!(status == 400 && body.to_string().contains("no image service"), "{body}");
    assert_eq!(shown(&office, &id).await["status"], "available");
    rig.stop().await;
}

/// A node was killed in the middle of an upload, and its volume's state set by hand: what had been frozen stayed for ever, and the next image of the
/// volume was of that moment.
#[tokio::test]
async fn an_image_is_never_of_what_was_kept_for_an_earlier_one() {
    let rig = Rig::start();
    let first = office(&rig);
    let glance = Glance::start(Image::new("raw", Vec::new())).await;
    let id = cut_off(&first, &glance).await;
    let frozen = |office: &Office| {
        office.blocks.exports.volumes().find(&work::device_name(&id)).unwrap().snapshots().len()
    };
    assert_eq!(frozen(&first), 1);
    let reset = json!({ "os-reset_status": { "status": "available" } });
    assert_eq!(ask(&first, &caller("p", true), 0, &format!("POST volumes/{id}/action"), reset).await.0, 202);
    write(&first, &id, 0, 9).await;
    drop(first);
    let second = office(&rig);
    let other = "0d4b4f0e-3c0f-4f3a-9a57-000000000009";
    *glance.next.lock().unwrap() = other.to_owned();
    let said = json!({ "os-volume_upload_image": { "image_name": "mine" } });
    assert_eq!(glance.post(&second, &format!("volumes/{id}/action"), said).await.0, 202);
    settle(&second).await;
    let sent = glance.images.lock().unwrap()[other].bytes[..8192].to_vec();
    assert_eq!(sent, [9; 8192]);
    assert_eq!(frozen(&second), 0, "what no task names is let go");
    rig.stop().await;
}

/// Of what another Keystone gave out nothing is renewed.
#[tokio::test]
async fn a_task_whose_token_is_not_good_any_more_ends_and_says_so() {
    let rig = Rig::start();
    let office = office(&rig);
    let glance = Glance::start(Image::new("raw", disk())).await;
    let id = glance.make(&office, 1).await;
    glance.refuses.store(true, Ordering::Relaxed);
    settle(&office).await;
    assert_eq!(shown(&office, &id).await["status"], "error");
    let sent = volume_to_image(&office, &glance).await;
    settle(&office).await;
    assert_eq!(shown(&office, &sent).await["status"], "available");
    let (_, said) = ask(&office, &caller("p", false), 3, "GET messages", Value::Null).await;
    let messages = said["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 2, "{said}");
    for message in messages {
        let words = message["user_message"].as_str().unwrap();
        assert!(words.contains("token") && !words.contains(TOKEN), "{words}");
    }
    for volume in office.papers.all("volumes").await.unwrap() {
        assert!(!Value::Object((*volume).clone()).to_string().contains(TOKEN), "it goes with its task");
    }
    rig.stop().await;
}
