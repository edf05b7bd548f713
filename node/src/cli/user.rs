//! `quarry user list|set|remove`: who may use a running cluster. On a machine of one of its nodes.

use std::io::{BufRead, Write};

use clap::{Args, Subcommand};

use super::Failure;
use super::status::{self, Unanswered};
use crate::control::roster::{Edit, Shown};
use crate::storage::random_bytes;

/// Where the admin listener has users.
const PATH: &str = "/cluster/users";

#[derive(Debug, Subcommand)]
pub(super) enum UserCommand {
    /// Show all users with their groups, or their roles by project.
    List(Admin),
    /// Make a user, or change what is given of one. A new user gets a random key, which is printed.
    Set(SetArgs),
    /// Remove a user; its tokens end within a second, its account stays.
    Remove {
        /// `ACCOUNT:USER` of v1 auth, or a Keystone user's name.
        name: String,
        #[command(flatten)]
        admin: Admin,
    },
}

/// `quarry user set`
#[derive(Debug, Args)]
pub(super) struct SetArgs {
    /// `ACCOUNT:USER` of v1 auth, or a Keystone user's name.
    name: String,
    /// Groups of a v1 user, such as .admin.
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// Project of a Keystone user; made when there is none.
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// Roles in the project, such as admin; default: member.
    #[arg(long = "role", value_name = "ROLE", requires = "project")]
    roles: Vec<String>,
    /// Read the key or password from the first line of standard input.
    #[arg(long)]
    secret_stdin: bool,
    /// Give a new random key, and print it.
    #[arg(long, conflicts_with = "secret_stdin")]
    new_secret: bool,
    #[command(flatten)]
    admin: Admin,
}

/// Whom to ask.
#[derive(Debug, Args)]
pub(super) struct Admin {
    /// Admin listener of this machine's node; default: $QUARRY_ADMIN_URL, else http://127.0.0.1:6000.
    #[arg(long = "admin-url", value_name = "URL")]
    url: Option<String>,
}

impl Admin {
    fn url(&self) -> String {
        status::admin_url(self.url.as_deref())
    }
}

/// Runs `quarry user`.
pub(super) fn run(command: &UserCommand, out: &mut impl Write) -> Result<(), Failure> {
    match command {
        UserCommand::List(admin) => {
            for user in list(&admin.url())? {
                let roles =
                    user.roles.iter().map(|(project, roles)| format!("{project}: {}", roles.join(", ")));
                let of = if user.name.contains(':') {
                    user.groups.join(", ")
                } else {
                    roles.collect::<Vec<_>>().join("; ")
                };
                writeln!(out, "{:<32} {of}", user.name)?;
            }
            Ok(())
        }
        UserCommand::Set(args) => set(args, out),
        UserCommand::Remove { name, admin } => {
            tell(&admin.url(), &Edit::Remove { name: name.clone() })?;
            writeln!(out, "{name} is removed")?;
            Ok(())
        }
    }
}

fn set(args: &SetArgs, out: &mut impl Write) -> Result<(), Failure> {
    let url = args.admin.url();
    let known = list(&url)?.iter().any(|user| user.name == args.name);
    let generated =
        (args.new_secret || !known && !args.secret_stdin).then(|| hex::encode(random_bytes::<24>()));
    let secret = match &generated {
        Some(secret) => Some(secret.clone()),
        None if args.secret_stdin => {
            let mut line = String::new();
            let read = std::io::stdin().lock().read_line(&mut line);
            read.map_err(|e| Failure::new("read key from standard input", e))?;
            Some(line.trim_end_matches(['\r', '\n']).to_owned())
        }
        None => None,
    };
    let given = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    let edit = Edit::Set {
        name: args.name.clone(),
        secret: secret.map(Into::into),
        groups: given(&args.groups),
        project: args.project.clone(),
        roles: given(&args.roles),
    };
    if let Err(Unanswered { failure, refused }) = try_tell(&url, &edit)? {
        if let Some(secret) = generated.filter(|_| !refused) {
            writeln!(out, "if {} was set all the same, it has the key {secret}", args.name)?;
        }
        return Err(failure);
    }
    match generated {
        Some(secret) => writeln!(out, "{} has the key {secret}", args.name)?,
        None => writeln!(out, "{} is set", args.name)?,
    }
    Ok(())
}

fn list(url: &str) -> Result<Vec<Shown>, Failure> {
    let text = status::ask(url, "GET", PATH, "")?;
    serde_json::from_str(&text).map_err(|e| Failure::new(format!("read users of {url}"), e))
}

fn tell(url: &str, edit: &Edit) -> Result<(), Failure> {
    try_tell(url, edit)?.map_err(|unanswered| unanswered.failure)
}

/// The same; without an answer the change may be made.
fn try_tell(url: &str, edit: &Edit) -> Result<Result<(), Unanswered>, Failure> {
    let body = serde_json::to_string(edit).map_err(|e| Failure::new("write change", e))?;
    Ok(status::ask_certainly(Some(status::PATIENCE), url, "POST", PATH, &body).map(drop))
}
