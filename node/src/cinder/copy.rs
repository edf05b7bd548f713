//! Bytes of volumes on their way: into another volume, into a backup, and back.
//!
//! A backup is pieces of the volume as objects in the project's own account, and an index object: for each piece that is not all
//! zeroes its number, its BLAKE3 and the backup that has its bytes (an incremental one names its parent for what did not change).
//!
//! ```text
//! index  u8 version = 1 | per piece: u64 number | 32 bytes BLAKE3 | 36 bytes id of the backup that has it    (little-endian)
//! ```
//!
//! Invariant: a piece that is restored has the hash that was written down for it, or the restore fails.
//! Invariant: nothing is written into a volume before it is known that all pieces of its backup are there and fit.
//! Invariant: the index is written last: a backup without one is none.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use quarry_engine::object::{Condition, Entry, Error, Listing, ObjectPath, PutSpec, Store};
use quarry_volume::store::{Attached, Piece, VolumeError};

use super::images::ImageError;
use crate::papers::PaperError;
use crate::qcow2::BadImage;

/// Bytes of a piece of a backup.
const PIECE: u64 = 4 << 20;
/// Bytes read from a volume at once.
const READ: u64 = 1 << 20;
const VERSION: u8 = 1;
const ENTRY: usize = 8 + 32 + 36;

/// Why bytes could not be moved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// The volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The object layer.
    #[error(transparent)]
    Store(#[from] Error),
    /// The image service.
    #[error(transparent)]
    Service(#[from] ImageError),
    /// An image.
    #[error(transparent)]
    Format(#[from] BadImage),
    /// What came of one.
    #[error("the image cannot be used: {0}")]
    Image(&'static str),
    /// Papers.
    #[error(transparent)]
    Paper(#[from] PaperError),
    /// The backup.
    #[error("a backup is damaged or not whole: {0}")]
    Backup(&'static str),
}

const GONE: CopyError = CopyError::Backup("an object of it is gone");

/// The name of a piece.
fn name_of(number: u64) -> String {
    format!("{number:08}")
}

/// Makes a new volume, which reads as zeroes, equal to the beginning that `source` is.
pub(crate) async fn into_new(source: &Attached, target: &Attached) -> Result<(), CopyError> {
    let (mut at, end) = (0, source.bytes().min(target.bytes()));
    while at < end {
        let length = READ.min(end - at);
        let mut offset = at;
        for piece in source.read(at, length).await? {
            match piece {
                Piece::Data(data) => {
                    let bytes = data.len() as u64;
                    if data.iter().any(|byte| *byte != 0) {
                        target.write(offset, data).await?;
                    }
                    offset += bytes;
                }
                Piece::Zeroes(bytes) => offset += bytes,
            }
        }
        at += length;
    }
    Ok(target.flush().await?)
}

/// Where a backup's objects are.
#[derive(Debug, Clone)]
pub(crate) struct Shelf {
    pub(crate) account: String,
    pub(crate) container: String,
    /// `volume_ID/backup_ID`.
    pub(crate) prefix: String,
}

impl Shelf {
    fn path(&self, name: &str) -> ObjectPath {
        ObjectPath {
            account: self.account.as_str().into(),
            container: self.container.as_str().into(),
            object: format!("{}/{name}", self.prefix).into(),
        }
    }

    /// The shelf of another backup of the same volume.
    fn beside(&self, backup: &str) -> Self {
        let volume = self.prefix.split('/').next().unwrap_or("");
        Self { prefix: format!("{volume}/backup_{backup}"), ..self.clone() }
    }
}

/// Where backups are, by their ids.
pub(crate) type Shelves = BTreeMap<String, Shelf>;

/// What an index says: hash and backup, by the number of the piece.
pub(crate) type Index = BTreeMap<u64, ([u8; 32], String)>;

fn encode(index: &Index) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + index.len() * ENTRY);
    out.extend_from_slice(&[VERSION]);
    for (number, (hash, backup)) in index {
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(hash);
        out.extend_from_slice(backup.as_bytes());
    }
    out.freeze()
}

fn decode(bytes: &[u8]) -> Result<Index, CopyError> {
    let bad = || CopyError::Backup("its index is unreadable");
    let (version, mut rest) = bytes.split_first().ok_or_else(bad)?;
    if *version != VERSION || rest.len() % ENTRY != 0 {
        return Err(bad());
    }
    let mut index = Index::new();
    while let Some((number, after)) = rest.split_first_chunk::<8>() {
        let (hash, after) = after.split_first_chunk::<32>().ok_or_else(bad)?;
        let (backup, after) = after.split_first_chunk::<36>().ok_or_else(bad)?;
        let backup = std::str::from_utf8(backup).map_err(|_| bad())?;
        index.insert(u64::from_le_bytes(*number), (*hash, backup.to_owned()));
        rest = after;
    }
    Ok(index)
}

/// Writes a volume's bytes as the backup `id`; of `parent` what did not change is kept. How many objects it made.
pub(crate) async fn back_up(
    store: &Store,
    source: &Attached,
    shelf: &Shelf,
    id: &str,
    parent: &Index,
) -> Result<usize, CopyError> {
    store
        .put_container(&shelf.account, &shelf.container, 0, |known| {
            Ok(known.map(|known| known.headers.clone()).unwrap_or_default())
        })
        .await?;
    let mut index = Index::new();
    let (mut at, mut number, mut made, end) = (0, 0_u64, 0, source.bytes());
    while at < end {
        let length = PIECE.min(end - at);
        let pieces = source.read(at, length).await?;
        let empty = pieces.iter().all(|piece| matches!(piece, Piece::Zeroes(_)));
        if !empty {
            let whole = source.read_whole(at, length).await?.freeze();
            let hash = *blake3::hash(&whole).as_bytes();
            match parent.get(&number) {
                Some((known, backup)) if *known == hash => {
                    index.insert(number, (hash, backup.clone()));
                }
                _ if whole.iter().all(|byte| *byte == 0) => {}
                _ => {
                    put(store, &shelf.path(&name_of(number)), whole).await?;
                    index.insert(number, (hash, id.to_owned()));
                    made += 1;
                }
            }
        }
        (at, number) = (at + length, number + 1);
    }
    put(store, &shelf.path("index"), encode(&index)).await?;
    Ok(made + 1)
}

/// The index of a backup.
pub(crate) async fn index_of(store: &Store, shelf: &Shelf) -> Result<Index, CopyError> {
    decode(&get(store, &shelf.path("index")).await?)
}

/// Makes a volume equal to a backup. `shelves`: where that one and those that it builds on are.
pub(crate) async fn restore(
    store: &Store,
    shelf: &Shelf,
    shelves: &Shelves,
    target: &Attached,
) -> Result<(), CopyError> {
    let index = index_of(store, shelf).await?;
    // One whose record was never imported lies beside those that build on it.
    let place = |backup: &str| shelves.get(backup).cloned().unwrap_or_else(|| shelf.beside(backup));
    look_through(store, &index, place, target.bytes()).await?;
    let (mut at, mut number, end) = (0, 0_u64, target.bytes());
    while at < end {
        let length = PIECE.min(end - at);
        match index.get(&number) {
            Some((hash, backup)) => {
                let piece = get(store, &place(backup).path(&name_of(number))).await?;
                let bytes = piece.len() as u64;
                if bytes > length || blake3::hash(&piece).as_bytes() != hash {
                    return Err(CopyError::Backup("a piece is another than it was"));
                }
                target.write(at, piece).await?;
                // The last piece of a volume of an odd length is short, and what is restored into may be longer.
                if bytes < length {
                    target.zero(at + bytes, length - bytes).await?;
                }
            }
            None => target.zero(at, length).await?,
        }
        (at, number) = (at + length, number + 1);
    }
    Ok(target.flush().await?)
}

/// Refuses a backup that is not all there, or does not fit into a volume of `end` bytes, while nothing is written yet: a volume keeps what
/// it has when its backup cannot come back.
async fn look_through(
    store: &Store,
    index: &Index,
    place: impl Fn(&str) -> Shelf,
    end: u64,
) -> Result<(), CopyError> {
    const TOO_SMALL: CopyError = CopyError::Backup("the volume is smaller than what it is of");
    // Of each backup the names of the pieces that are needed, and how much there is room for.
    let mut wanted: BTreeMap<&str, BTreeMap<String, u64>> = BTreeMap::new();
    for (number, (_, backup)) in index {
        let at = number.checked_mul(PIECE).filter(|at| *at < end).ok_or(TOO_SMALL)?;
        wanted.entry(backup).or_default().insert(name_of(*number), PIECE.min(end - at));
    }
    for (backup, mut pieces) in wanted {
        let shelf = place(backup);
        let mut listing = Listing { prefix: format!("{}/", shelf.prefix), limit: 1000, ..Listing::default() };
        loop {
            let some = match store.list_objects(&shelf.account, &shelf.container, &listing).await {
                Err(Error::NoContainer | Error::NoAccount) => Vec::new(),
                some => some?,
            };
            let many = some.len();
            for entry in some {
                let Entry::Row(row) = entry else { continue };
                let name = row.name.strip_prefix(&listing.prefix).unwrap_or("");
                if pieces.remove(name).is_some_and(|room| row.size > room) {
                    return Err(TOO_SMALL);
                }
                listing.marker = row.name;
            }
            if many < listing.limit {
                break;
            }
        }
        if !pieces.is_empty() {
            return Err(GONE);
        }
    }
    Ok(())
}

/// Takes a backup's objects away, also of one that is not whole.
pub(crate) async fn forget(store: &Store, shelf: &Shelf) -> Result<(), CopyError> {
    let listing = Listing { prefix: format!("{}/", shelf.prefix), limit: 1000, ..Listing::default() };
    loop {
        let some = match store.list_objects(&shelf.account, &shelf.container, &listing).await {
            Err(Error::NoContainer | Error::NoAccount) => return Ok(()),
            some => some?,
        };
        if some.is_empty() {
            return Ok(());
        }
        for entry in some {
            if let Entry::Row(row) = entry {
                let name = row.name.strip_prefix(&listing.prefix).unwrap_or(&row.name);
                store.delete_object(&shelf.path(name), &Condition::default()).await?;
            }
        }
    }
}

async fn put(store: &Store, path: &ObjectPath, body: Bytes) -> Result<(), CopyError> {
    let mut writer = store.writer(path, Some(body.len() as u64)).await?;
    writer.write(body).await?;
    let spec = PutSpec { content_type: "application/octet-stream".to_owned(), ..PutSpec::default() };
    writer.commit(spec).await?;
    Ok(())
}

async fn get(store: &Store, path: &ObjectPath) -> Result<Bytes, CopyError> {
    let open = store.open(path).await?.ok_or(GONE)?;
    if open.info.size > 1 << 30 {
        return Err(CopyError::Backup("an object of it is too large"));
    }
    let mut whole = BytesMut::new();
    let mut pieces = open.range(0..open.info.size);
    while let Some(piece) = pieces.next().await {
        whole.extend_from_slice(&piece?);
    }
    Ok(whole.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_have_these_bytes_for_ever() {
        let id = "00000000-0000-4000-8000-000000000001";
        let index = Index::from([(3, ([7; 32], id.to_owned()))]);
        let bytes = encode(&index);
        assert_eq!(hex::encode(&bytes), format!("010300000000000000{}{}", "07".repeat(32), hex::encode(id)));
        assert_eq!(decode(&bytes).unwrap(), index);
        assert!(decode(&bytes[..bytes.len() - 1]).is_err() && decode(&[2]).is_err() && decode(&[]).is_err());
        assert!(decode(&[1]).unwrap().is_empty());
    }
}
