//! `quarry volume`: block volumes of a running node.

mod image;
mod key;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use quarry_volume::pace::{Limits, Rate};

use super::{Failure, size, status};
use crate::block::{Compared, NAMED, Said, Several, Shown, Wanted};
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
        /// Encrypt its blocks at rest (AES-256-XTS, with a key of its own). Clients see no difference.
        #[arg(long)]
        encrypted: bool,
        /// How many nodes of the cluster have it; 2 to 5 bear the loss of the lesser half. 1: this node alone.
        #[arg(long, default_value = "1", value_parser = clap::value_parser!(u8).range(1..=5))]
        members: u8,
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
    /// Make a volume that begins as a snapshot is. It takes no space before it is written.
    Clone {
        /// The snapshot: `volume@snapshot`.
        source: String,
        /// The new volume's name.
        name: String,
        /// Its size, if it shall be larger.
        #[arg(long, value_parser = size, default_value = "0")]
        size: u64,
        /// For people.
        #[arg(long, default_value = "")]
        description: String,
        #[command(flatten)]
        admin: Admin,
    },
    /// Limit how fast a volume may be used, also by those who use it now; without options: not at all.
    Qos {
        /// Its name.
        name: String,
        /// Requests a second.
        #[arg(long, value_name = "N", default_value = "0")]
        iops: u64,
        /// Bytes a second: `100M`.
        #[arg(long, value_name = "BYTES", value_parser = size, default_value = "0")]
        bandwidth: u64,
        /// For how long, in seconds' worth, more may come after a pause.
        #[arg(long, value_name = "SECONDS", default_value = "1")]
        burst: u64,
        #[command(flatten)]
        admin: Admin,
    },
    /// Make a clone independent of the snapshot that it came from, while it is in use or not.
    Flatten {
        /// The clone.
        name: String,
        #[command(flatten)]
        admin: Admin,
    },
    /// Make a volume what one of its snapshots is. Nobody may be using it; all its snapshots stay.
    Revert {
        /// The snapshot: `volume@snapshot`.
        snapshot: String,
        #[command(flatten)]
        admin: Admin,
    },
    /// Print what was written since a snapshot: offset and length of each range, in bytes.
    Diff {
        /// The snapshot: `volume@snapshot`.
        from: String,
        /// A later snapshot of the volume, instead of now.
        to: Option<String>,
        #[command(flatten)]
        admin: Admin,
    },
    /// Bring a newer key in place of the one that wraps encrypted volumes' keys: `new`, bring the file to all nodes, `use`, `drop`.
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Make a volume from a file, by `qemu-img`.
    Import {
        /// The new volume's name.
        name: String,
        /// The file.
        file: PathBuf,
        /// What the file is.
        #[arg(long, default_value = "raw")]
        format: FileFormat,
        #[command(flatten)]
        over: Over,
    },
    /// Write a volume or a snapshot to a file, by `qemu-img`.
    Export {
        /// `volume`, or `volume@snapshot`.
        name: String,
        /// The file; it must not exist.
        file: PathBuf,
        /// What the file shall be.
        #[arg(long, default_value = "raw")]
        format: FileFormat,
        #[command(flatten)]
        over: Over,
    },
    /// Make this node the head of a volume with several members. A client that connects does the same.
    Attach {
        /// Its name.
        name: String,
        /// Of any volume: print the NBD export that is only read. Writes to it are refused (EPERM).
        #[arg(long)]
        read_only: bool,
        #[command(flatten)]
        admin: Admin,
    },
    /// Take a volume with several members from whoever is its head; what was written is flushed.
    Detach {
        /// Its name.
        name: String,
        #[command(flatten)]
        admin: Admin,
    },
    /// Decide which member is the volume, when members have lost what was acknowledged. What the others have is void.
    Decide {
        /// Its name.
        name: String,
        /// The member's device, as `show` has it; `show` also tells what each of them has.
        device: String,
        #[command(flatten)]
        admin: Admin,
    },
    /// Compare what the members of a volume have. Its head ends.
    Compare {
        /// Its name.
        name: String,
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

/// Whom to ask, and how to print. No group of its own: there is a command of that name.
#[derive(Debug, Args)]
#[group(skip)]
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

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum FileFormat {
    /// Bytes as they are.
    Raw,
    /// As QEMU keeps disks.
    Qcow2,
}

impl FileFormat {
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// How content comes and goes.
#[derive(Debug, Args)]
pub(super) struct Over {
    /// Where the node serves NBD clients; default: $QUARRY_NBD_URL, else nbd://127.0.0.1:10809.
    #[arg(long, value_name = "URL")]
    nbd_url: Option<String>,
    #[command(flatten)]
    admin: Admin,
}

/// Runs `quarry volume`.
pub(super) fn run(command: &VolumeCommand, out: &mut impl Write) -> Result<(), Failure> {
    match command {
        VolumeCommand::Create { name, size, description, encrypted, members, admin } => {
            let (name, description, encrypted) = (name.clone(), description.clone(), *encrypted);
            let members = usize::from(*members);
            tell(admin, &Wanted::Create { name, bytes: *size, description, encrypted, members })
        }
        VolumeCommand::Extend { name, size, admin } => {
            tell(admin, &Wanted::Extend { name: name.clone(), bytes: *size })
        }
        VolumeCommand::Attach { name, read_only, admin } => attach(name, *read_only, admin, out),
        VolumeCommand::Detach { name, admin } => tell(admin, &Wanted::Detach { name: name.clone() }),
        VolumeCommand::Decide { name, device, admin } => {
            tell(admin, &Wanted::Decide { name: name.clone(), device: device.clone() })
        }
        VolumeCommand::Compare { name, admin } => compare(name, admin, out),
        VolumeCommand::Delete { name, admin } => tell(admin, &Wanted::Delete { name: name.clone() }),
        VolumeCommand::Snapshot { name, snapshot, delete, admin } => {
            let (name, snapshot) = (name.clone(), snapshot.clone());
            if *delete {
                tell(admin, &Wanted::ForgetSnapshot { name, snapshot })
            } else {
                tell(admin, &Wanted::Snapshot { name, snapshot })
            }
        }
        VolumeCommand::Clone { source, name, size, description, admin } => {
            let (volume, snapshot) = parted(source)?;
            let (name, description) = (name.clone(), description.clone());
            tell(admin, &Wanted::Clone { name, volume, snapshot, bytes: *size, description })
        }
        VolumeCommand::Qos { name, iops, bandwidth, burst, admin } => {
            let rate = |per_second: u64| Rate { per_second, burst: per_second.saturating_mul(*burst) };
            let mut limits = Limits::default();
            (limits.0[0], limits.0[3]) = (rate(*iops), rate(*bandwidth));
            tell(admin, &Wanted::Qos { name: name.clone(), limits: Said(limits) })
        }
        VolumeCommand::Flatten { name, admin } => tell(admin, &Wanted::Flatten { name: name.clone() }),
        VolumeCommand::Revert { snapshot, admin } => {
            let (name, snapshot) = parted(snapshot)?;
            tell(admin, &Wanted::Revert { name, snapshot })
        }
        VolumeCommand::Diff { from, to, admin } => diff(from, to.clone(), admin, out),
        VolumeCommand::Import { name, file, format, over } => image::import(name, file, *format, over),
        VolumeCommand::Export { name, file, format, over } => image::export(name, file, *format, over),
        VolumeCommand::Key(command) => key::run(command, out),
        VolumeCommand::List(show) => list(show, out),
        VolumeCommand::Show { name, show } => show_one(name, show, out),
    }
}

fn tell(admin: &Admin, wanted: &Wanted) -> Result<(), Failure> {
    answer(admin, wanted).map(drop)
}

fn answer(admin: &Admin, wanted: &Wanted) -> Result<String, Failure> {
    let url = status::admin_url(admin.url.as_deref());
    let body = serde_json::to_string(wanted).map_err(|e| Failure::new("write change", e))?;
    // Some changes copy what a volume holds.
    status::ask_within(None, &url, "POST", "/volumes", &body)
}

fn attach(name: &str, read_only: bool, admin: &Admin, out: &mut impl Write) -> Result<(), Failure> {
    let export = answer(admin, &Wanted::Attach { name: name.to_owned(), read_only })?;
    if read_only {
        writeln!(out, "{export}")?;
    }
    Ok(())
}

/// The two names in `volume@snapshot`.
fn parted(name: &str) -> Result<(String, String), Failure> {
    match name.split_once('@') {
        Some((volume, snapshot)) => Ok((volume.to_owned(), snapshot.to_owned())),
        None => Err(Failure::new(format!("find `{name}`"), "this is no snapshot: give `volume@snapshot`")),
    }
}

fn diff(from: &str, to: Option<String>, admin: &Admin, out: &mut impl Write) -> Result<(), Failure> {
    let (name, from) = parted(from)?;
    let answer = answer(admin, &Wanted::Diff { name, from, to })?;
    let ranges: Vec<(u64, u64)> =
        serde_json::from_str(&answer).map_err(|e| Failure::new("read the difference", e))?;
    for (offset, bytes) in ranges {
        writeln!(out, "{offset} {bytes}")?;
    }
    Ok(())
}

fn compare(name: &str, admin: &Admin, out: &mut impl Write) -> Result<(), Failure> {
    let answer = answer(admin, &Wanted::Compare { name: name.to_owned() })?;
    let Compared { members, blocks, different } =
        serde_json::from_str(&answer).map_err(|e| Failure::new("read the comparison", e))?;
    if different > 0 {
        let why = format!("{different} of {blocks} blocks differ");
        return Err(Failure::new(format!("compare {members} members of {name}"), why));
    }
    Ok(writeln!(out, "{members} members have the same {blocks} blocks")?)
}

/// The volumes, or the one of a name.
fn known(admin: &Admin, name: Option<&str>) -> Result<Vec<Shown>, Failure> {
    let url = status::admin_url(admin.url.as_deref());
    let query = name.map(|name| format!("?{NAMED}{}", utf8_percent_encode(name, NON_ALPHANUMERIC)));
    let text = status::ask(&url, "GET", &format!("/volumes{}", query.unwrap_or_default()), "")?;
    serde_json::from_str(&text).map_err(|e| Failure::new(format!("read volumes of {url}"), e))
}

fn print_json(value: &impl serde::Serialize, out: &mut impl Write) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::new("show volumes", e))?;
    Ok(writeln!(out, "{text}")?)
}

fn list(show: &Show, out: &mut impl Write) -> Result<(), Failure> {
    let volumes = known(&show.admin, None)?;
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
    let volumes = known(&show.admin, Some(name))?;
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
    for (limit, number) in BTreeMap::from(volume.limits.clone()) {
        writeln!(out, "limit        {limit} {number}")?;
    }
    if volume.encrypted {
        writeln!(out, "encrypted    at rest, AES-256-XTS")?;
    }
    if let Some(Several { epoch, head, configuration, members }) = &volume.several {
        writeln!(out, "head         {} (epoch {epoch})", head.as_deref().unwrap_or("none"))?;
        for member in members {
            let state = member.state.as_deref().unwrap_or("known at the head's node");
            let counts = if member.counts { "" } else { ", joining" };
            writeln!(out, "member       {}: {state}{counts} (configuration {configuration})", member.device)?;
        }
    }
    if let Some(parent) = &volume.parent {
        writeln!(out, "clone of     {parent}")?;
    }
    for snapshot in &volume.snapshots {
        writeln!(out, "snapshot     {}@{} ({} bytes)", volume.name, snapshot.name, snapshot.bytes)?;
    }
    Ok(())
}
