//! `quarry volume key`: what wraps the keys of encrypted volumes.

use std::io::Write;

use clap::Subcommand;

use super::{Admin, Failure, Show, answer, print_json};
use crate::block::{KeyWish, ShownKey, Wanted};

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Show the keys, what they wrap, and which nodes have them.
    List(Show),
    /// Make a key in this node's `volumes.key`, behind the others, and print its name. It wraps nothing yet.
    New {
        #[command(flatten)]
        admin: Admin,
    },
    /// Have a key wrap, when all nodes have it; volumes' keys are wrapped anew by it from then on, volume by volume.
    Use {
        /// Its name.
        name: String,
        #[command(flatten)]
        admin: Admin,
    },
    /// Have all nodes forget a key that wraps nothing any more.
    Drop {
        /// Its name.
        name: String,
        #[command(flatten)]
        admin: Admin,
    },
}

pub(super) fn run(command: &KeyCommand, out: &mut impl Write) -> Result<(), Failure> {
    match command {
        KeyCommand::List(show) => list(show, out),
        KeyCommand::New { admin } => {
            Ok(writeln!(out, "{}", answer(admin, &Wanted::Key(KeyWish::New))?.trim())?)
        }
        KeyCommand::Use { name, admin } => answer(admin, &Wanted::Key(KeyWish::Use(name.clone()))).map(drop),
        KeyCommand::Drop { name, admin } => {
            answer(admin, &Wanted::Key(KeyWish::Drop(name.clone()))).map(drop)
        }
    }
}

fn list(show: &Show, out: &mut impl Write) -> Result<(), Failure> {
    let text = answer(&show.admin, &Wanted::Key(KeyWish::List))?;
    let keys: Vec<ShownKey> = serde_json::from_str(&text).map_err(|e| Failure::new("read the keys", e))?;
    if show.json {
        return print_json(&keys, out);
    }
    writeln!(out, "{:<16}  {:<7}  {:>7}  nodes", "key", "state", "volumes")?;
    for ShownKey { name, wraps, dropped, volumes, nodes, lacking } in &keys {
        let state = match (wraps, dropped) {
            (true, _) => "wraps",
            (false, true) => "dropped",
            (false, false) => "",
        };
        let nodes = match lacking.as_slice() {
            [] => "all".to_owned(),
            lacking => {
                format!("{} of {}, not {}", nodes.len(), nodes.len() + lacking.len(), lacking.join(", "))
            }
        };
        writeln!(out, "{name:<16}  {state:<7}  {volumes:>7}  {nodes}")?;
    }
    Ok(())
}
