//! `quarry serve`, and the runtime that both `serve` and `dev` run in.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use super::Failure;
use crate::config::Config;
use crate::node::{self, Node, StopSignal};

/// Runs a node until a signal.
pub(super) fn run(file: &Path) -> Result<(), Failure> {
    let config = super::config::load(file)?;
    crate::logging::start(&config.log);
    let _own = node::claim_data(&config.node.data)?;
    let users = node::users(&config, false)?;
    run_node(&config, &users, |_| writeln!(std::io::stdout(), "ready"))
}

/// Runs a node until a signal; `announce` is called when it serves.
pub(super) fn run_node(
    config: &Config,
    users: &crate::auth::Listed,
    announce: impl FnOnce(&Node) -> std::io::Result<()>,
) -> Result<(), Failure> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = config.node.threads {
        builder.worker_threads(threads.get());
    }
    let runtime =
        builder.enable_all().thread_name("serve").build().map_err(|e| Failure::new("start threads", e))?;
    let done = runtime.block_on(async {
        let mut signal = StopSignal::catch().map_err(|e| Failure::new("catch signals", e))?;
        let mut node = tokio::select! {
            started = Node::start(config, users, super::progress::bar()) => started?,
            () = signal.wait() => {
                tracing::info!("told to stop before the node was ready; the next start goes on");
                return Ok(());
            }
        };
        let mut served = announce(&node).map_err(|e| Failure::new("say that the node is ready", e));
        if served.is_ok() {
            served = tokio::select! {
                () = signal.wait() => Ok(()),
                error = node.broken() => Err(error.into()),
            };
        }
        node.stop().await;
        served
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    done
}
