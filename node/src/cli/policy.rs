//! `quarry policy list|add|set`: the storage policies of a running cluster.

use std::io::Write;

use clap::{Args, Subcommand};

use super::{Failure, status};
use crate::control::policy_edit::{Edit, Shown, parse_kind};

/// Where the admin listener has policies.
const PATH: &str = "/cluster/policies";

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Show all policies.
    List(Admin),
    /// Make a policy; containers get it by X-Storage-Policy. It has a ring as soon as there are enough disks.
    Add {
        /// What clients call it.
        name: String,
        /// A number of copies, or K+M: K fragments of each object and M more, any M of which may be lost.
        #[arg(value_name = "COPIES|K+M", value_parser = keeps)]
        keeps: String,
        #[command(flatten)]
        change: Change,
    },
    /// Change the names of a policy, and whether new containers have it.
    Set {
        /// Any of its names.
        name: String,
        /// What it is called from now on.
        #[arg(long, value_name = "NAME")]
        rename: Option<String>,
        /// New containers cannot have it any more.
        #[arg(long)]
        deprecate: bool,
        /// New containers can have it again.
        #[arg(long, conflicts_with = "deprecate")]
        offer: bool,
        #[command(flatten)]
        change: Change,
    },
}

/// What can be said of new policies and of old ones.
#[derive(Debug, Args)]
pub(super) struct Change {
    /// Other names, all of them.
    #[arg(long = "alias", value_name = "NAME")]
    aliases: Vec<String>,
    /// New containers have it unless they ask for another.
    #[arg(long)]
    default: bool,
    #[command(flatten)]
    admin: Admin,
}

/// Whom to ask.
#[derive(Debug, Args)]
pub(super) struct Admin {
    /// Admin listener: of any node to look, of this machine's node to change something; default: $QUARRY_ADMIN_URL, else http://127.0.0.1:6000.
    #[arg(long = "admin-url", value_name = "URL")]
    url: Option<String>,
}

fn keeps(text: &str) -> Result<String, String> {
    parse_kind(text).map(|_| text.to_owned())
}

/// Runs `quarry policy`.
pub(super) fn run(command: &PolicyCommand, out: &mut impl Write) -> Result<(), Failure> {
    let edit = match command {
        PolicyCommand::List(admin) => return list(admin, out),
        PolicyCommand::Add { name, keeps, .. } => {
            Edit { name: name.clone(), keeps: Some(keeps.clone()), ..Edit::default() }
        }
        PolicyCommand::Set { name, rename, deprecate, offer, .. } => {
            let deprecated = (*deprecate || *offer).then_some(*deprecate);
            Edit { name: name.clone(), rename: rename.clone(), deprecated, ..Edit::default() }
        }
    };
    let (PolicyCommand::Add { change, .. } | PolicyCommand::Set { change, .. }) = command else {
        return Ok(());
    };
    let aliases = (!change.aliases.is_empty()).then(|| change.aliases.clone());
    let edit = Edit { aliases, default: change.default, ..edit };
    let body = serde_json::to_string(&edit).map_err(|e| Failure::new("write change", e))?;
    status::ask(&status::admin_url(change.admin.url.as_deref()), "POST", PATH, &body)?;
    list(&change.admin, out)
}

fn list(admin: &Admin, out: &mut impl Write) -> Result<(), Failure> {
    let url = status::admin_url(admin.url.as_deref());
    let text = status::ask(&url, "GET", PATH, "")?;
    let all: Vec<Shown> =
        serde_json::from_str(&text).map_err(|e| Failure::new(format!("read policies of {url}"), e))?;
    for policy in all {
        let names = std::iter::once(policy.name).chain(policy.aliases).collect::<Vec<_>>().join(", ");
        let ring =
            policy.ring.map_or_else(|| "too few disks".to_owned(), |version| format!("ring {version}"));
        let marks = [(policy.default, "default"), (policy.deprecated, "deprecated")];
        let marks: Vec<&str> = marks.iter().filter(|(set, _)| *set).map(|(_, word)| *word).collect();
        writeln!(
            out,
            "{:>2}  {names:<32} {:<10} {ring:<14} {}",
            policy.index,
            policy.keeps,
            marks.join(" ")
        )?;
    }
    Ok(())
}
