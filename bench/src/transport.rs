//! Calls to another node over QUIC and over TCP with TLS, and to the own node, beside plain TCP on the same loopback.
//!
//! Both nodes live in this process, the called one on a thread of its own. A call carries a payload there and brings a short
//! answer back, as an append to a replica does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quarry_engine::io::SplitMix64;
use quarry_engine::net::{NodeId, Request, Response, Router, Service, Transport};
use quarry_engine::object::BoxFuture;
use quarry_node::cluster::{
    AddressBook, Identity, Keeper, Parts, Quic, spawn, start_tcp, temporary_cluster, timer,
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use crate::args::Options;
use crate::failure::Failure;
use crate::load::{Limit, Pass, as_f64, closed_loop, median};
use crate::machine::cpu_us;
use crate::report::{Beside, Report, Scenario, details, round, size_text};

/// Payloads.
const SIZES: [u64; 2] = [4 << 10, 1 << 20];
/// Passes of each kind; `--rounds` at most.
const ROUNDS: u32 = 5;
const CALLER: NodeId = NodeId([1; 16]);
const CALLED: NodeId = NodeId([2; 16]);
/// No call of the bench comes near it.
const WITHIN: Duration = Duration::from_secs(60);

/// What calls go over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Quic,
    Tcp,
    Own,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
            Self::Own => "own",
        }
    }
}

/// Takes payloads and answers shortly.
struct Sink;

impl Service for Sink {
    fn handle(&self, _: NodeId, _: Request) -> BoxFuture<'static, Response> {
        Box::pin(std::future::ready(Response::Done))
    }
}

/// Every way, payload and depth.
pub(crate) fn run(options: &Options, report: &mut Report) -> Result<(), Failure> {
    let (caller, called) = (runtime("caller")?, runtime("called")?);
    let raw = called.block_on(listen_raw())?;
    for way in [Way::Quic, Way::Tcp, Way::Own] {
        let net = start(way, &caller, &called)?;
        for size in SIZES {
            for in_flight in &options.in_flight {
                let bench = Bench { options, way, size, in_flight: *in_flight, raw };
                report.add(bench.scenario(&caller, &net)?)?;
            }
        }
    }
    Ok(())
}

fn runtime(name: &str) -> Result<Runtime, Failure> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).thread_name(name).enable_all().build();
    runtime.map_err(Failure::io("start runtime"))
}

/// Two nodes that know each other; the caller's transport.
fn start(way: Way, caller: &Runtime, called: &Runtime) -> Result<Arc<dyn Transport>, Failure> {
    let made = temporary_cluster(&[CALLER, CALLED]).map_err(|e| Failure::Other(e.to_string()))?;
    let [own, peer] =
        <[Identity; 2]>::try_from(made).map_err(|_| Failure::Other("two identities".to_owned()))?;
    let book = Arc::new(AddressBook::default());
    let parts = |identity| Parts {
        keeper: Arc::new(Keeper::new(identity)),
        book: Arc::clone(&book),
        service: Arc::new(Sink),
    };
    let (own, peer) = (parts(own), parts(peer));
    let (net, _) = body(way, caller, own)?;
    let (_called, address) = body(way, called, peer)?;
    book.set(CALLED, address);
    let _inside = caller.enter();
    Ok(Arc::new(Router::new(net, Arc::new(Sink), timer(), spawn())))
}

fn body(way: Way, runtime: &Runtime, parts: Parts) -> Result<(Arc<dyn Transport>, SocketAddr), Failure> {
    let _inside = runtime.enter();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let failed = Failure::io("start transport");
    let started = match way {
        Way::Quic | Way::Own => Quic::start(parts, any).and_then(|quic| {
            let address = quic.address()?;
            Ok((Arc::new(quic) as Arc<dyn Transport>, address))
        }),
        Way::Tcp => {
            start_tcp(parts, any).map(|(tcp, address)| (Arc::new(tcp) as Arc<dyn Transport>, address))
        }
    };
    started.map_err(failed)
}

struct Bench<'a> {
    options: &'a Options,
    way: Way,
    size: u64,
    in_flight: usize,
    raw: SocketAddr,
}

impl Bench<'_> {
    fn payload(&self) -> Bytes {
        let mut bytes = vec![0; usize::try_from(self.size).unwrap_or(0)];
        SplitMix64::new(self.size).fill(&mut bytes);
        bytes.into()
    }

    fn pass(
        &self,
        runtime: &Runtime,
        net: &Arc<dyn Transport>,
        time: Duration,
    ) -> Result<(Pass, u64), Failure> {
        let (payload, before) = (self.payload(), cpu_us("self", |_| true));
        let to = if self.way == Way::Own { CALLER } else { CALLED };
        let op = async |(): &mut (), _| {
            let request = Request::Ping { payload: payload.clone() };
            match net.call(to, request, WITHIN).await {
                Ok(_) => Ok(()),
                Err(error) => Err(Failure::Other(error.to_string())),
            }
        };
        let limit = Limit { time, ops: u64::MAX };
        let (pass, _) = runtime.block_on(closed_loop(vec![(); self.in_flight], limit, op))?;
        Ok((pass, cpu_us("self", |_| true) - before))
    }

    /// The same payloads over plain TCP, a connection for each call in flight.
    fn raw_pass(&self, runtime: &Runtime, time: Duration) -> Result<Pass, Failure> {
        let payload = self.payload();
        runtime.block_on(async {
            let mut streams = Vec::new();
            for _ in 0..self.in_flight {
                let stream = TcpStream::connect(self.raw).await.map_err(Failure::io("connect"))?;
                stream.set_nodelay(true).map_err(Failure::io("set TCP_NODELAY"))?;
                streams.push(stream);
            }
            let op = async |stream: &mut TcpStream, _| {
                let len = u32::try_from(payload.len()).unwrap_or(0).to_le_bytes();
                let sent = async {
                    stream.write_all(&len).await?;
                    stream.write_all(&payload).await?;
                    stream.read_u8().await
                };
                sent.await.map(drop).map_err(Failure::io("call over plain TCP"))
            };
            let limit = Limit { time, ops: u64::MAX };
            Ok(closed_loop(streams, limit, op).await?.0)
        })
    }

    fn scenario(&self, runtime: &Runtime, net: &Arc<dyn Transport>) -> Result<Scenario, Failure> {
        let time = self.options.pass();
        self.pass(runtime, net, time / 4)?;
        let (mut done, mut rounds) = (Vec::new(), Vec::new());
        for _ in 0..self.options.rounds.min(ROUNDS) {
            let alone = self.raw_pass(runtime, time)?;
            let ours = self.pass(runtime, net, time)?;
            rounds.push((ours.0.rate(), alone.rate()));
            done.push(ours);
        }
        let what = "plain TCP on the loopback without TLS, a connection for each call in flight";
        let raw = (self.way != Way::Own).then(|| Beside::new(what, "calls/s", &rounds));
        let mid = |figure: &dyn Fn(&(Pass, u64)) -> f64| {
            json!(round(median(&done.iter().map(figure).collect::<Vec<_>>())))
        };
        let mib = as_f64(self.size) / 1_048_576.0;
        let details = details([
            ("payload_mib_per_s", mid(&|(pass, _)| pass.rate() * mib)),
            ("p50_us", mid(&|(pass, _)| pass.percentile(50))),
            ("p99_us", mid(&|(pass, _)| pass.percentile(99))),
            ("cpu_us_per_call", mid(&|(pass, cpu)| as_f64(*cpu) / as_f64(pass.ops.max(1)))),
        ]);
        let name = format!("transport/{}/{}/{}", self.way.name(), size_text(self.size), self.in_flight);
        let figures = done.iter().map(|(pass, _)| pass.rate()).collect();
        Ok(Scenario { name, unit: "calls/s", figures, raw, wanted: None, details })
    }
}

/// Swallows payloads behind their length and answers each with a byte.
async fn listen_raw() -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(Failure::io("listen"))?;
    let address = listener.local_addr().map_err(Failure::io("listen"))?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 1 << 20];
                while let Ok(len) = stream.read_u32_le().await {
                    let swallowed = async {
                        stream.read_exact(&mut buffer[..len as usize]).await?;
                        stream.write_u8(1).await
                    };
                    if swallowed.await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(address)
}
