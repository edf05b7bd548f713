//! `quarry volume`: block volumes of a running node.

use std::io::Write;

use clap::{Args, Subcommand};

use super::{Failure, size, status};
use crate::block::{Shown, Wanted};
use crate::config::size_text;

#[derive(Debug, Subcommand)]
pub(super) enum VolumeCommand {
    /// Make a volume. It takes no space before it is written.
    Create {
        /// Its name.
        name: String,
        /// Its size, a multiple of 4096 bytes: `10G`.
        #[arg(value_parser = size)]
        size: u64,
        /// For people.
        #[arg(long, default_value = "")]
        description: String,
        #[command(flatten)]
        admin: Admin,
    },
    /// List the volumes.
    List(Show),
    /// Show a volume and its snapshots.
    Show {
        /// Its name.
        name: String,
        #[command(flatten)]
        show: Show,
    },
    /// Make a volume larger; clients see it when they connect anew. Volumes do not shrink.
    Extend {
        /// Its name.
        name: String,
        /// Its new size.
        #[arg(value_parser = size)]
        size: u64,
        #[command(flatten)]
        admin: Admin,
    },
    /// Freeze a volume as it is, in use or not: `name@snapshot` is an export that is only read.
    Snapshot {
        /// The volume.
        name: String,
        /// The snapshot's name.
        snapshot: String,
        /// Forget the snapshot instead.
        #[arg(long)]
        delete: bool,
        #[command(flatten)]
        admin: Admin,
    },
    /// Delete a volume with its snapshots. Nobody may be using it.
    Delete {
        /// Its name.
        name: String,
        #[command(flatten)]
        admin: Admin,
    },
}

/// Whom to ask, and how to print.
#[derive(Debug, Args)]
pub(super) struct Show {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: Admin,
}

/// Whom to tell.
#[derive(Debug, Args)]
pub(super) struct Admin {
    /// Admin listener of the node; default: $QUARRY_ADMIN_URL, else http://127.0.0.1:6000.
    #[arg(long = "admin-url", value_name = "URL")]
    url: Option<String>,
}

/// Runs `quarry volume`.
pub(super) fn run(command: &VolumeCommand, out: &mut impl Write) -> Result<(), Failure> {
    match command {
        VolumeCommand::Create { name, size, description, admin } => {
            let (name, description) = (name.clone(), description.clone());
            tell(admin, &Wanted::Create { name, bytes: *size, description })
        }
        VolumeCommand::Extend { name, size, admin } => {
            tell(admin, &Wanted::Extend { name: name.clone(), bytes: *size })
        }
        VolumeCommand::Delete { name, admin } => tell(admin, &Wanted::Delete { name: name.clone() }),
        VolumeCommand::Snapshot { name, snapshot, delete, admin } => {
            let (name, snapshot) = (name.clone(), snapshot.clone());
            if *delete {
                tell(admin, &Wanted::ForgetSnapshot { name, snapshot })
            } else {
                tell(admin, &Wanted::Snapshot { name, snapshot })
            }
        }
        VolumeCommand::List(show) => list(show, out),
        VolumeCommand::Show { name, show } => show_one(name, show, out),
    }
}

fn tell(admin: &Admin, wanted: &Wanted) -> Result<(), Failure> {
    let url = status::admin_url(admin.url.as_deref());
    let body = serde_json::to_string(wanted).map_err(|e| Failure::new("write change", e))?;
    status::ask(&url, "POST", "/volumes", &body).map(drop)
}

fn known(admin: &Admin) -> Result<Vec<Shown>, Failure> {
    let url = status::admin_url(admin.url.as_deref());
    let text = status::ask(&url, "GET", "/volumes", "")?;
    serde_json::from_str(&text).map_err(|e| Failure::new(format!("read volumes of {url}"), e))
}

fn print_json(value: &impl serde::Serialize, out: &mut impl Write) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::new("show volumes", e))?;
    Ok(writeln!(out, "{text}")?)
}

fn list(show: &Show, out: &mut impl Write) -> Result<(), Failure> {
    let volumes = known(&show.admin)?;
    if show.json {
        return print_json(&volumes, out);
    }
    writeln!(out, "{:<24} {:>8} {:>9} {:>6}  description", "name", "size", "snapshots", "users")?;
    for Shown { name, bytes, snapshots, users, description, .. } in &volumes {
        let (size, snapshots) = (size_text(*bytes), snapshots.len());
        writeln!(out, "{name:<24} {size:>8} {snapshots:>9} {users:>6}  {description}")?;
    }
    Ok(())
}

fn show_one(name: &str, show: &Show, out: &mut impl Write) -> Result<(), Failure> {
    let volumes = known(&show.admin)?;
    let found = volumes.into_iter().find(|volume| volume.name == name);
    let volume = found.ok_or_else(|| Failure::new("show volume", format!("there is no volume `{name}`")))?;
    if show.json {
        return print_json(&volume, out);
    }
    writeln!(out, "name         {}", volume.name)?;
    writeln!(out, "id           {}", volume.id)?;
    writeln!(out, "size         {} ({} bytes)", size_text(volume.bytes), volume.bytes)?;
    writeln!(out, "description  {}", volume.description)?;
    writeln!(out, "connections  {}", volume.users)?;
    for snapshot in &volume.snapshots {
        writeln!(out, "snapshot     {}@{} ({} bytes)", volume.name, snapshot.name, snapshot.bytes)?;
    }
    Ok(())
}
