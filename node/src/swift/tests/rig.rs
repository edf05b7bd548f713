//! A store on a file in a directory of its own, and requests on the API over it.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use quarry_engine::catalog::ObjectCatalog;
use quarry_engine::clock::Clock;
use quarry_engine::disk::{CacheBytes, DiskConfig, DiskHandle, Format, format, start};
use quarry_engine::index::RocksOptions;
use quarry_engine::io::{OpenOptions, open_device};
use quarry_engine::object::{Options, Spread, Store};

use crate::swift::{BoxError, Caller, Limits, SwiftApi, SwiftOptions, timestamp};

/// An API and what it stands on.
pub(crate) struct Rig {
    pub(crate) api: SwiftApi,
    disk: DiskHandle,
    store: Store,
    _dir: tempfile::TempDir,
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// A header's text; empty when it is missing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap_or("?"))
    }
}

/// The owner of `AUTH_name`.
pub(crate) fn owner(name: &str) -> Caller {
    Caller {
        user: format!("{name}:admin"),
        account: format!("AUTH_{name}"),
        groups: vec![name.to_owned(), format!("{name}:admin")],
        owner: true,
        ..Caller::default()
    }
}

impl Rig {
    pub(crate) fn start() -> Self {
        Self::start_as(2)
    }

    /// On a disk with this number.
    pub(crate) fn start_as(n: u8) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = DiskConfig {
            device: dir.path().join("disk"),
            io: OpenOptions::default(),
            index: RocksOptions::default(),
            index_path: dir.path().join("index"),
            cache_bytes: CacheBytes { small: 8 << 20, large: 4 << 20 },
            cluster: None,
        };
        // Sparse: a test needs no steady speed.
        std::fs::File::create(&config.device).unwrap().set_len(208 << 20).unwrap();
        let request = Format {
            cluster: quarry_engine::disk::format::superblock::ClusterId([1; 16]),
            device: quarry_engine::disk::format::record::DeviceId([n; 16]),
            segment_size: None,
            overwrite: false,
        };
        format(open_device(&config.device, config.io).unwrap().as_mut(), &request).unwrap();
        let (disk, _) = start(&config, Arc::new(ObjectCatalog), &mut |_, _| {}).unwrap();
        let clock = Clock::new(Box::new(|| timestamp::now_precise().0));
        let spawn = |work| drop(tokio::spawn(work));
        let placement = Box::new(Spread::over(vec![disk.device()]));
        let options = Options { spawn: Some(Arc::new(spawn)), ..Options::default() };
        let store = Store::start(vec![disk.clone()], placement, clock, options).unwrap();
        let api = SwiftApi::new(store.clone(), Limits::default(), SwiftOptions::default());
        Self { api, disk, store, _dir: dir }
    }

    /// The object layer.
    pub(crate) fn store(&self) -> Store {
        self.store.clone()
    }

    /// The disk under it.
    pub(crate) fn disk(&self) -> DiskHandle {
        self.disk.clone()
    }

    pub(crate) async fn stop(self) {
        self.disk.close().await.unwrap();
    }

    /// Make a container as the owner of `AUTH_a`.
    pub(crate) async fn make(&self, path: &str) {
        assert_eq!(self.ask("PUT", path, &[], "").await.status, 201);
    }

    /// A request of the owner of `AUTH_a`.
    pub(crate) async fn ask(&self, method: &str, uri: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        self.ask_bytes(method, uri, headers, Bytes::copy_from_slice(body.as_bytes())).await
    }

    pub(crate) async fn ask_bytes(
        &self,
        method: &str,
        uri: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Answer {
        self.ask_as(Some(owner("a")), method, uri, headers, body).await
    }

    /// A request of anyone.
    pub(crate) async fn ask_as(
        &self,
        caller: Option<Caller>,
        method: &str,
        uri: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(uri).header("content-length", body.len());
        for (name, value) in headers {
            request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let request = request.body(Full::new(body)).unwrap();
        let (head, body) = self.api.handle(caller, request, "tx1").await.into_parts();
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => panic!("{method} {uri}: {error}"),
        };
        Answer { status: head.status.as_u16(), headers: head.headers, body }
    }

    /// A PUT whose client goes away after `bytes`.
    pub(crate) async fn break_off(&self, uri: &str, bytes: usize) -> u16 {
        let pieces: [Result<Frame<Bytes>, BoxError>; 2] =
            [Ok(Frame::data(Bytes::from(vec![1; bytes]))), Err("gone".into())];
        let body = StreamBody::new(stream::iter(pieces));
        let request = Request::put(uri).header("content-length", bytes * 2).body(body).unwrap();
        self.api.handle(Some(owner("a")), request, "tx1").await.status().as_u16()
    }
}
