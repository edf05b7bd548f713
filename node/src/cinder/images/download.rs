//! An image's bytes, on their way into a new volume.
//!
//! A raw image is written as it comes, and so is one in qcow2 as far as its tables lie before what they tell of (`unpack`).
//!
//! Invariant: what a try before this one wrote (the node was killed, the service was another one then) is zeroed before the first byte comes.
//! Invariant: an image has no more bytes than twice its volume and [`BESIDES`]: it cannot fill the disk beyond its owner's quota.

use bytes::{Bytes, BytesMut};
use md5::Md5;
use quarry_volume::store::{Attached, VolumeError};
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};

use super::service::Download;
use super::{service_for, unpack, while_wanted};
use crate::cinder::Office;
use crate::cinder::copy::CopyError;
use crate::cinder::fields::{map, text};
use crate::cinder::volumes::DRAWER;
use crate::papers::{Paper, PaperError};

/// Bytes that are written at once.
const PIECE: usize = 1 << 20;
/// Bytes that are zeroed at once.
const ZEROED: u64 = 1 << 30;
/// What an image may have besides the bytes of its disk, and as many again for its own snapshots.
const BESIDES: u64 = 64 << 20;

/// Hashes what comes, and compares it with what the service says.
pub(super) enum Hash {
    Sha512(Box<Sha512>, String),
    Sha256(Box<Sha256>, String),
    Md5(Box<Md5>, String),
    /// It says nothing.
    Unknown,
}

impl Hash {
    pub(super) fn of(image: &Paper) -> Self {
        let (hash, sum) = (text(image, "hash").to_owned(), text(image, "checksum").to_owned());
        match text(image, "algorithm") {
            "sha512" if !hash.is_empty() => Self::Sha512(Box::default(), hash),
            "sha256" if !hash.is_empty() => Self::Sha256(Box::default(), hash),
            _ if !sum.is_empty() => Self::Md5(Box::default(), sum),
            _ => Self::Unknown,
        }
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha512(hash, _) => hash.update(bytes),
            Self::Sha256(hash, _) => hash.update(bytes),
            Self::Md5(hash, _) => hash.update(bytes),
            Self::Unknown => {}
        }
    }

    fn matches(self) -> bool {
        match self {
            Self::Sha512(hash, wanted) => hex::encode(hash.finalize()) == wanted,
            Self::Sha256(hash, wanted) => hex::encode(hash.finalize()) == wanted,
            Self::Md5(hash, wanted) => hex::encode(hash.finalize()) == wanted,
            Self::Unknown => true,
        }
    }
}

/// Writes a volume that reads as zeroes, from its beginning on.
struct Pour<'a> {
    target: &'a Attached,
    at: u64,
    kept: BytesMut,
}

impl Pour<'_> {
    async fn add(&mut self, bytes: &[u8]) -> Result<(), CopyError> {
        self.kept.extend_from_slice(bytes);
        while self.kept.len() >= PIECE {
            let piece = self.kept.split_to(PIECE).freeze();
            self.put(piece).await?;
        }
        Ok(())
    }

    async fn put(&mut self, piece: Bytes) -> Result<(), CopyError> {
        let end = self.at + piece.len() as u64;
        if end > self.target.bytes() {
            return Err(CopyError::Image("it is larger than the volume"));
        }
        write(self.target, self.at, piece).await?;
        self.at = end;
        Ok(())
    }

    /// How many bytes it was.
    async fn end(mut self) -> Result<u64, CopyError> {
        let rest = self.kept.split().freeze();
        self.put(rest).await?;
        Ok(self.at)
    }
}

/// What is all zeroes need not be written to what reads as zeroes.
pub(super) async fn write(target: &Attached, at: u64, piece: Bytes) -> Result<(), VolumeError> {
    if piece.iter().all(|byte| *byte == 0) { Ok(()) } else { target.write(at, piece).await }
}

/// Writes the image of a volume's task into it; `begun`: another try was here before.
pub(crate) async fn write_out(
    office: &Office,
    volume: &Paper,
    target: &Attached,
    begun: bool,
) -> Result<(), CopyError> {
    let image = map(&map(volume, "task"), "image");
    let images = service_for(office, &image)?;
    let size = image.get("size").and_then(Value::as_u64).unwrap_or(0);
    if size > 2 * target.bytes() + BESIDES {
        return Err(CopyError::Image("it is much larger than the volume"));
    }
    if begun {
        clear(target).await?;
    }
    say(office, volume, "downloading").await?;
    let from = images.download(text(&image, "id")).await?;
    let job = Job { office, volume, image: &image, size };
    if text(&image, "format") == "qcow2" {
        unpack::unpack(&job, from, target).await?;
    } else {
        while_wanted(office, volume, Box::pin(job.pour(from, target))).await?;
    }
    Ok(target.flush().await?)
}

async fn clear(target: &Attached) -> Result<(), VolumeError> {
    let mut at = 0;
    while at < target.bytes() {
        let length = ZEROED.min(target.bytes() - at);
        target.zero(at, length).await?;
        at += length;
    }
    Ok(())
}

/// Shows what is done with a volume, while its task is this one.
async fn say(office: &Office, volume: &Paper, status: &str) -> Result<(), PaperError> {
    let edit = |there: &mut Paper| -> Result<(), PaperError> {
        if there.get("task") == volume.get("task") {
            there.insert("status".to_owned(), json!(status));
        }
        Ok(())
    };
    office.papers.change(DRAWER, text(volume, "id"), edit).await.map(drop)
}

/// One download.
pub(super) struct Job<'a> {
    pub(super) office: &'a Office,
    pub(super) volume: &'a Paper,
    pub(super) image: &'a Paper,
    pub(super) size: u64,
}

impl Job<'_> {
    async fn pour(&self, mut from: Download, target: &Attached) -> Result<(), CopyError> {
        let mut hash = Hash::of(self.image);
        let mut pour = Pour { target, at: 0, kept: BytesMut::new() };
        while let Some(bytes) = from.next().await? {
            hash.add(&bytes);
            pour.add(&bytes).await?;
        }
        self.judge(pour.end().await?, hash)
    }

    /// Whether what came, so many bytes with this hash, is the image.
    pub(super) fn judge(&self, bytes: u64, hash: Hash) -> Result<(), CopyError> {
        if bytes == self.size && hash.matches() {
            Ok(())
        } else {
            Err(CopyError::Image("what came is not what the image service says"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cinder::fields::paper;

    #[test]
    fn what_came_has_the_hash_that_the_service_says() {
        let good = |said: Value| {
            let mut hash = Hash::of(&paper(said));
            hash.add(b"ab");
            hash.add(b"c");
            hash.matches()
        };
        let (sha, md5) = (hex::encode(Sha512::digest(b"abc")), "900150983cd24fb0d6963f7d28e17f72");
        assert!(good(json!({ "algorithm": "sha512", "hash": sha, "checksum": "wrong" })));
        assert!(!good(json!({ "algorithm": "sha512", "hash": "00", "checksum": md5 })));
        assert!(good(json!({ "algorithm": "sha256", "hash": hex::encode(Sha256::digest(b"abc")) })));
        assert!(!good(json!({ "algorithm": "sha256", "hash": sha })));
        assert!(good(json!({ "algorithm": "new", "hash": "00", "checksum": md5 })));
        assert!(good(json!({ "checksum": md5 })) && good(json!({})));
        assert!(!good(json!({ "checksum": "00" })));
    }
}
