//! PUT and GET through a real node, beside the raw loop with one object a write.

mod client;
mod node;

use std::path::Path;

use quarry_engine::io::{SplitMix64, preallocate};
use serde_json::json;

use crate::args::Options;
use crate::failure::Failure;
use crate::load::{Limit, Pass, as_f64, closed_loop, median};
use crate::machine::{cpu_us, resident_kib};
use crate::raw::{Raw, Target};
use crate::report::{Beside, Report, Scenario, details, round, say, size_text};
use crate::rig::runtime;
use client::Client;
use node::Node;

/// Sizes of the objects.
const SIZES: [u64; 2] = [4 << 10, 1 << 20];
/// Passes of each kind; the engine suite's `--rounds` at most.
const ROUNDS: u32 = 3;

/// Every size, every number of clients, PUT and then GET.
pub(crate) fn run(options: &Options, scratch: &Path, report: &mut Report) -> Result<(), Failure> {
    let data = scratch.join("node");
    let path = scratch.join("raw");
    say("starting a node; it writes its disk file once");
    let node = Node::start(options, &data, options.engine_bytes())?;
    preallocate(&path, options.raw_bytes(), &mut |_| {})?;
    let target = Target { path: path.clone(), start: 0, len: options.raw_bytes(), shared: false };
    let mut raw = Raw::open(target)?;
    let runtime = runtime()?;
    let session = runtime.block_on(Session::open(&node))?;
    for size in SIZES {
        let mut stored = 0;
        for clients in &options.clients {
            let mut bench =
                Bench { options, session: &session, size, clients: *clients, node: node.id(), stored };
            report.add(bench.scenario(&runtime, &mut raw, Verb::Put)?)?;
            stored = bench.stored;
        }
        for clients in &options.clients {
            let mut bench =
                Bench { options, session: &session, size, clients: *clients, node: node.id(), stored };
            report.add(bench.scenario(&runtime, &mut raw, Verb::Get)?)?;
        }
    }
    node.stop()?;
    drop(raw);
    std::fs::remove_file(&path).map_err(Failure::io("remove scratch file"))?;
    std::fs::remove_dir_all(&data).map_err(Failure::io("remove node's directory"))
}

/// A logged-in user and a container.
struct Session {
    address: String,
    /// Path of the container.
    container: String,
    /// Header line.
    token: String,
}

impl Session {
    async fn open(node: &Node) -> Result<Self, Failure> {
        let url = node.variable("QUARRY_OBJECT_URL")?;
        let address = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/').to_owned();
        let login = format!(
            "X-Auth-User: {}\r\nX-Auth-Key: {}\r\n",
            node.variable("ST_USER")?,
            node.variable("ST_KEY")?
        );
        let mut client = Client::connect(&address).await?;
        let answer = client.request("GET", "/auth/v1.0", &login, b"").await?;
        let (Some(token), Some(storage)) = (answer.header("x-auth-token"), answer.header("x-storage-url"))
        else {
            return Err(Failure::Other(format!("the node refused the login with {}", answer.status)));
        };
        let path = storage.splitn(4, '/').nth(3).unwrap_or_default();
        let session = Self {
            container: format!("/{path}/bench"),
            token: format!("X-Auth-Token: {token}\r\n"),
            address,
        };
        let made = client.request("PUT", &session.container, &session.token, b"").await?;
        expect(made.status, 201, "PUT of the container")?;
        Ok(session)
    }
}

fn expect(status: u16, wanted: u16, what: &str) -> Result<(), Failure> {
    if status == wanted { Ok(()) } else { Err(Failure::Other(format!("{what} was answered with {status}"))) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Put,
    Get,
}

struct Bench<'a> {
    options: &'a Options,
    session: &'a Session,
    size: u64,
    clients: usize,
    node: String,
    /// Objects of this size that are there.
    stored: u64,
}

struct Measured {
    pass: Pass,
    node_us: u64,
    bench_us: u64,
}

impl Bench<'_> {
    fn scenario(
        &mut self,
        runtime: &tokio::runtime::Runtime,
        raw: &mut Raw,
        verb: Verb,
    ) -> Result<Scenario, Failure> {
        let rounds = self.options.rounds.min(ROUNDS);
        // Half of the node's disk for each size, shared by all passes of that size.
        let passes = (u64::from(rounds) + 1) * self.options.clients.len() as u64;
        let share = self.options.engine_bytes() / 3 / passes;
        let limit = match verb {
            Verb::Put => Limit::new(self.options.pass(), share, self.size),
            Verb::Get => Limit { time: self.options.pass(), ops: u64::MAX },
        };
        self.pass(runtime, verb, Limit { time: limit.time / 4, ..limit })?;
        let len = usize::try_from(self.size).unwrap_or(usize::MAX);
        let (mut done, mut beside) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let alone = match verb {
                Verb::Put => raw.write_pass(len, limit)?,
                Verb::Get => raw.read_pass(len, self.clients, self.stored * self.size, limit)?,
            };
            let ours = self.pass(runtime, verb, limit)?;
            beside.push((ours.pass.rate(), alone.rate()));
            done.push(ours);
        }
        let (name, unit, what) = match verb {
            Verb::Put => {
                ("put", "PUTs/s", "sequential O_DIRECT writes of one object, an fdatasync after each")
            }
            Verb::Get => ("get", "GETs/s", "random O_DIRECT reads of one object at the same depth"),
        };
        let mid = |figure: &dyn Fn(&Measured) -> f64| {
            json!(round(median(&done.iter().map(figure).collect::<Vec<_>>())))
        };
        let each = |spent: u64, one: &Measured| as_f64(spent) / as_f64(one.pass.ops.max(1));
        let details = details([
            ("payload_mib_per_s", mid(&|one| one.pass.rate() * as_f64(self.size) / 1_048_576.0)),
            ("p50_us", mid(&|one| one.pass.percentile(50))),
            ("p99_us", mid(&|one| one.pass.percentile(99))),
            ("node_us_per_op", mid(&|one| each(one.node_us, one))),
            ("client_us_per_op", mid(&|one| each(one.bench_us, one))),
            ("node_rss_mib", json!(resident_kib(&self.node) / 1024)),
        ]);
        Ok(Scenario {
            name: format!("http/{name}/{}/{}", size_text(self.size), self.clients),
            unit,
            figures: done.iter().map(|one| one.pass.rate()).collect(),
            raw: Some(Beside::new(what, "ops/s", &beside)),
            wanted: None,
            details,
        })
    }

    fn pass(
        &mut self,
        runtime: &tokio::runtime::Runtime,
        verb: Verb,
        limit: Limit,
    ) -> Result<Measured, Failure> {
        let mut body = vec![0; usize::try_from(self.size).unwrap_or(usize::MAX)];
        let mut random = SplitMix64::new(self.stored + 7);
        random.fill(&mut body);
        let (session, stored, size) = (self.session, self.stored, self.size);
        let path = |number: u64| format!("{}/{size}/{number:09}", session.container);
        let (pass, node_us, bench_us) = runtime.block_on(async {
            let mut workers = Vec::new();
            for _ in 0..self.clients {
                workers.push((Client::connect(&session.address).await?, random.split()));
            }
            let (node, bench) = (cpu_us(&self.node, |_| true), cpu_us("self", |_| true));
            let op = async |(client, random): &mut (Client, SplitMix64), number| {
                let (verb, number, body, wanted) = match verb {
                    Verb::Put => ("PUT", stored + number, body.as_slice(), 201),
                    Verb::Get => ("GET", random.below(stored), &[][..], 200),
                };
                let answer = client.request(verb, &path(number), &session.token, body).await?;
                if verb == "GET" && answer.body != size {
                    return Err(Failure::Other("a GET returned another length".to_owned()));
                }
                expect(answer.status, wanted, verb)
            };
            let (pass, _) = closed_loop(workers, limit, op).await?;
            let spent = |before: u64, now: u64| now.saturating_sub(before);
            let node = spent(node, cpu_us(&self.node, |_| true));
            Ok::<_, Failure>((pass, node, spent(bench, cpu_us("self", |_| true))))
        })?;
        if verb == Verb::Put {
            self.stored += pass.ops;
        }
        Ok(Measured { pass, node_us, bench_us })
    }
}
