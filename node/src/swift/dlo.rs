//! Dynamic large objects: an object whose `X-Object-Manifest` names a container and a prefix stands for the
//! concatenation of what the listing shows there.
//!
//! Invariant: listing and reading the segments needs the rights that listing their container needs.

use std::sync::Arc;

use md5::{Digest, Md5};
use percent_encoding::percent_decode_str;
use quarry_engine::object::{Entry, Listing, ObjectInfo, ObjectPath, ObjectRow};

use super::authorize::{Subject, Verb, authorize};
use super::error::{Result, SwiftError};
use super::listing::split_etag;
use super::object::get::{Fetched, Nature, Whole, deliver};
use super::object::pieces::{Piece, Segment};
use super::{Api, Call};

/// Read the object that a manifest header stands for.
pub(crate) async fn fetch(
    api: &Arc<Api>,
    call: &Call,
    path: &ObjectPath,
    info: ObjectInfo,
    head: bool,
) -> Result<Fetched> {
    let header = info.headers.get("x-object-manifest").map_or("", String::as_str);
    let target = percent_decode_str(header).decode_utf8().map_err(|_| SwiftError::status(409))?;
    let (container, prefix) = target.split_once('/').ok_or_else(|| SwiftError::status(409))?;
    if container.is_empty() {
        return Err(SwiftError::status(409));
    }
    authorize(api, call, Subject::container(&path.account, container), Verb::Read).await?;
    let rows = list(api, &path.account, container, prefix).await?;

    let mut md5 = Md5::new();
    for row in &rows {
        md5.update(split_etag(&row.etag).0.trim_matches('"'));
    }
    let etag = format!("\"{}\"", hex::encode(md5.finalize()));
    let length = rows.iter().try_fold(0_u64, |sum, row| sum.checked_add(row.size));
    let length = length.ok_or_else(|| SwiftError::status(409))?;
    let container: Arc<str> = container.into();
    let pieces = rows.into_iter().map(|row| {
        let path = ObjectPath {
            account: Arc::clone(&path.account),
            container: Arc::clone(&container),
            object: row.name.into(),
        };
        Piece::Segment(Arc::new(Segment { path, expected: None }), 0..row.size)
    });
    let pieces = (!head).then(|| pieces.collect());
    let whole = Whole { etag, length, pieces, one_range_only: true, ..Whole::of(info, Nature::Dynamic) };
    deliver(api, call, whole).await
}

/// All segments in order.
async fn list(api: &Api, account: &str, container: &str, prefix: &str) -> Result<Vec<ObjectRow>> {
    let mut rows = Vec::new();
    let mut listing = Listing {
        prefix: prefix.to_owned(),
        limit: api.limits.container_listing_limit,
        ..Listing::default()
    };
    loop {
        let page = api.store.list_objects(account, container, &listing).await?;
        let full = page.len() >= listing.limit;
        rows.extend(page.into_iter().filter_map(|entry| match entry {
            Entry::Row(row) => Some(row),
            Entry::Subdir(_) => None,
        }));
        if rows.len() > api.limits.max_pieces {
            return Err(SwiftError::status(409));
        }
        match rows.last() {
            Some(last) if full => listing.marker.clone_from(&last.name),
            _ => return Ok(rows),
        }
    }
}
