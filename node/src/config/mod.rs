//! The configuration of a node: one TOML file, validated once, here.
//!
//! Invariant: a [`Config`] that exists is valid; no later code checks a setting again.
//! Invariant: unknown keys are errors; every error names file, line, key, what was found and what is allowed.
//! Invariant: nothing has a default password or key.

mod cluster;
mod identity;
mod located;
mod nbd;
mod value;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

pub use cluster::{Carrier, Cluster, Peer};
pub use identity::{External, Identity};
pub use located::{ConfigError, Source};
pub use nbd::{ImageService, Nbd, TlsMode, Volumes};
pub(crate) use value::parse_span;
pub use value::{Address, BackendName, Count, NodeName, Secret, Size, Span, parse_size, size_text};

/// What `quarry config example` prints; a test holds that it parses and shows the defaults.
pub const EXAMPLE: &str = include_str!("example.toml");

/// The largest configuration or users file that is read.
const MAX_FILE: u64 = 4 << 20;

/// Smallest disk file: room for superblocks, tables and a few segments.
pub const MIN_DISK: u64 = 256 << 20;

/// Everything a node is told.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who the node is.
    pub node: Node,
    /// Where it listens.
    #[serde(default)]
    pub listen: Listen,
    /// Bounds on what it takes on.
    #[serde(default)]
    pub limits: Limits,
    /// What it logs.
    #[serde(default)]
    pub log: Log,
    /// Background work.
    #[serde(default)]
    pub work: Work,
    /// Tokens and users.
    #[serde(default)]
    pub auth: Auth,
    /// Whose tokens are good besides.
    #[serde(default)]
    pub identity: Identity,
    /// Clients of block volumes.
    #[serde(default)]
    pub nbd: Nbd,
    /// What the volume API says of this node's volumes.
    #[serde(default)]
    pub volumes: Volumes,
    /// Other nodes; a node alone when absent.
    pub cluster: Option<Cluster>,
    /// The disks, at least one.
    #[serde(default, rename = "disk")]
    pub disks: Vec<Disk>,
}

/// `[node]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Where token keys, generated users and revocations are kept.
    pub data: PathBuf,
    /// Region in the service catalog.
    #[serde(default = "default_region")]
    pub region: String,
    /// Threads that serve requests; as many as there are cores when absent.
    pub threads: Option<Count<1, 256, 1>>,
}

fn default_region() -> String {
    "RegionOne".to_owned()
}

/// `[listen]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// Swift API and v1 auth.
    pub object: Address,
    /// Keystone v3.
    pub identity: Address,
    /// The volume API (Cinder v3).
    pub volume: Address,
    /// Metrics and status: for operators, not for clients.
    pub admin: Address,
    /// How clients reach the object API, when that is not the Host they named (a proxy in front): `https://objects.example`.
    pub object_url: Option<Spanned<String>>,
    /// The same for the identity API, without `/v3`.
    pub identity_url: Option<Spanned<String>>,
    /// The same for the volume API, without `/v3`.
    pub volume_url: Option<Spanned<String>>,
}

impl Default for Listen {
    fn default() -> Self {
        let local = |port| Address(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
        Self {
            object: local(8080),
            identity: local(5000),
            volume: local(8776),
            admin: local(6000),
            object_url: None,
            identity_url: None,
            volume_url: None,
        }
    }
}

/// `[limits]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections served at once by a listener; further ones wait to be accepted.
    pub connections: Count<1, 65_536, 4096>,
    /// Header lines of one request (Swift allows 90 metadata headers and 32 others).
    pub headers: Count<64, 1024, 256>,
    /// Bytes of one request's line and headers.
    pub header_bytes: Size<16_384, 1_048_576, 131_072>,
    /// A connection that has not sent a whole request head after this is closed, also between requests.
    pub header_timeout: Span<1000, 600_000, 60_000>,
    /// A request body of which nothing arrives for so long is given up, and so is a connection whose client takes nothing of an answer.
    pub body_timeout: Span<1000, 600_000, 60_000>,
    /// How long requests in flight may go on after SIGTERM.
    pub drain: Span<0, 600_000, 20_000>,
    /// Verified records of up to 64 KiB kept in memory for reads.
    pub read_cache: Size<0, 1_099_511_627_776, 268_435_456>,
    /// The same for chunks of larger bodies; absent: a quarter of the memory.
    pub body_cache: Option<Size<0, 1_099_511_627_776, 0>>,
    /// Validated tokens kept in memory.
    pub token_cache: Count<16, 1_000_000, 10_000>,
}

/// `[log]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Least severe level that is written.
    pub level: Level,
    /// Text for people, or one JSON object a line.
    pub format: Format,
    /// Requests that take longer are logged at info.
    pub slow: Span<1, 3_600_000, 5000>,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: Level::Info, format: Format::Text, slow: Span::default() }
    }
}

/// Severity of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names of the levels say it")]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Shape of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[work]`: how hard background work goes; it always yields to clients.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Work {
    /// Bytes a second that the auditor reads from each disk; 0: none.
    pub audit_rate: Size<0, 10_737_418_240, 4_194_304>,
    /// Bytes a second that the replicator of each disk copies, while no clients are served; with them it takes a quarter of the time.
    pub replicate_rate: Size<1_048_576, 107_374_182_400, 268_435_456>,
    /// Pause between two looks for expired objects.
    pub expire_every: Span<1000, 86_400_000, 5000>,
    /// How long an object that has expired, which nobody sees, is kept before it is removed.
    pub keep_expired: Span<0, 31_536_000_000, 60_000>,
    /// Pause between two looks for deleted accounts and containers.
    pub reap_every: Span<1000, 86_400_000, 10_000>,
    /// How long it is remembered that an object was deleted.
    pub reclaim_age: Span<3_600_000, 31_536_000_000, 604_800_000>,
}

/// `[auth]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// How long a token is good for.
    pub token_life: Span<60_000, 2_592_000_000, 86_400_000>,
    /// `[[auth.v1_user]]`: users of `/auth/v1.0`.
    #[serde(rename = "v1_user")]
    pub v1_users: Vec<V1User>,
    /// `[[auth.project]]`: Keystone projects.
    #[serde(rename = "project")]
    pub projects: Vec<Project>,
    /// `[[auth.user]]`: Keystone users.
    #[serde(rename = "user")]
    pub users: Vec<User>,
}

impl Auth {
    /// No user of either kind is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v1_users.is_empty() && self.users.is_empty() && self.projects.is_empty()
    }
}

/// A user of v1 auth.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct V1User {
    /// Account without its reseller prefix: `test` owns `AUTH_test`.
    pub account: Spanned<String>,
    /// User name within the account.
    pub user: Spanned<String>,
    /// Key.
    pub key: Secret,
    /// `.admin` (of the account), `.reseller_admin`, `.reseller_reader`, `service`, or names that ACLs use.
    #[serde(default)]
    pub groups: Vec<Spanned<String>>,
}

/// A Keystone project: a Swift account `AUTH_<id>`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Project {
    /// Name, unique.
    pub name: Spanned<String>,
    /// Id; derived from the name when absent.
    pub id: Option<Spanned<String>>,
}

/// A Keystone user of the domain Default.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// Name, unique.
    pub name: Spanned<String>,
    /// Id; derived from the name when absent.
    pub id: Option<Spanned<String>>,
    /// Password.
    pub password: Secret,
    /// Project of tokens that are asked for without a scope.
    pub default_project: Option<Spanned<String>>,
    /// Roles by project name: `{ demo = ["admin"] }`.
    #[serde(default)]
    pub roles: BTreeMap<Spanned<String>, Vec<String>>,
}

/// `[[disk]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// A block device, or a file that is made once with `size`.
    pub path: Spanned<PathBuf>,
    /// Directory of its index, best on flash.
    pub index: Spanned<PathBuf>,
    /// Size of the file; not for block devices.
    pub size: Option<Size<MIN_DISK, 1_125_899_906_842_624, 10_737_418_240>>,
}

/// What can go wrong with a configuration file.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It could not be read.
    #[error("{}: {reason}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// Its content was refused.
    #[error(transparent)]
    Refused(#[from] ConfigError),
}

impl Config {
    /// Reads and validates a file.
    pub fn load(file: &Path) -> Result<Self, LoadError> {
        let text = read_bounded(file)?;
        Ok(Self::parse(Source { file, text: &text })?)
    }

    /// Reads and validates a text. Relative paths are taken from the file's directory.
    pub fn parse(source: Source<'_>) -> Result<Self, ConfigError> {
        let mut config: Self = source.parse()?;
        validate_listen(&source, &config.listen)?;
        validate_disks(&source, &config.disks)?;
        validate_auth(&source, &config.auth)?;
        config.nbd.validate(&source)?;
        config.volumes.validate(&source)?;
        config.identity.validate(&source)?;
        if let Some(cluster) = &config.cluster {
            cluster.validate(&source, &config.listen)?;
        }
        let base = source.file.parent().unwrap_or(Path::new(""));
        config.node.data = base.join(&config.node.data);
        config.nbd.locate(base);
        config.volumes.locate(base);
        config.identity.locate(base);
        for disk in &mut config.disks {
            *disk.path.get_mut() = base.join(disk.path.get_ref());
            *disk.index.get_mut() = base.join(disk.index.get_ref());
        }
        Ok(config)
    }
}

impl Auth {
    /// Reads and validates a file that holds users alone, as the node generates it.
    pub fn load(file: &Path) -> Result<Self, LoadError> {
        let text = read_bounded(file)?;
        Ok(Self::parse(Source { file, text: &text })?)
    }

    /// Reads and validates a text that holds users alone.
    pub fn parse(source: Source<'_>) -> Result<Self, ConfigError> {
        let auth: Self = source.parse()?;
        validate_auth(&source, &auth)?;
        Ok(auth)
    }
}

fn read_bounded(file: &Path) -> Result<String, LoadError> {
    let failed = |reason: String| LoadError::Read { file: file.to_owned(), reason };
    let length = std::fs::metadata(file).map_err(|e| failed(e.to_string()))?.len();
    if length > MAX_FILE {
        return Err(failed(format!("{length} bytes; allowed: at most {MAX_FILE}")));
    }
    std::fs::read_to_string(file).map_err(|e| failed(e.to_string()))
}

fn validate_listen(source: &Source<'_>, listen: &Listen) -> Result<(), ConfigError> {
    for url in [&listen.object_url, &listen.identity_url, &listen.volume_url].into_iter().flatten() {
        let text = url.get_ref();
        let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        if host.is_none_or(|host| host.is_empty() || host.contains(['/', ' ', '"'])) {
            let problem = format!("found {text:?}; allowed: http:// or https://, a host and a port, no path");
            return Err(source.error(url.span(), problem));
        }
    }
    let addresses = [listen.object, listen.identity, listen.volume, listen.admin];
    let fixed: Vec<_> = addresses.iter().filter(|address| address.0.port() != 0).collect();
    let distinct: HashSet<_> = fixed.iter().map(|address| address.0).collect();
    if distinct.len() != fixed.len() {
        let at = source.text.find("[listen]").unwrap_or(0);
        let problem = "found two of object, identity, volume and admin on one address; allowed: a port for each \
                       (defaults: 8080, 5000, 8776 and 6000 on 127.0.0.1)";
        return Err(source.error(at..at, problem));
    }
    Ok(())
}

fn validate_disks(source: &Source<'_>, disks: &[Disk]) -> Result<(), ConfigError> {
    if disks.is_empty() {
        return Err(source.error(0..0, "found no [[disk]]; allowed: at least one, with path and index"));
    }
    let mut seen: HashMap<&Path, &str> = HashMap::new();
    for disk in disks {
        for (path, what) in [(&disk.path, "path"), (&disk.index, "index")] {
            if path.get_ref().as_os_str().is_empty() {
                return Err(
                    source.error(path.span(), "found an empty path; allowed: a file, device or directory")
                );
            }
            if let Some(other) = seen.insert(path.get_ref(), what) {
                let problem = format!(
                    "found {:?}, which is already the {other} of a disk; allowed: a path of its own",
                    path.get_ref().display().to_string()
                );
                return Err(source.error(path.span(), problem));
            }
        }
    }
    Ok(())
}

fn validate_auth(source: &Source<'_>, auth: &Auth) -> Result<(), ConfigError> {
    let mut seen = HashSet::new();
    for user in &auth.v1_users {
        for name in [&user.account, &user.user] {
            check_name(source, name.get_ref(), name.span(), ":/")?;
        }
        for group in &user.groups {
            check_name(source, group.get_ref(), group.span(), ",/")?;
        }
        if !seen.insert((user.account.get_ref(), user.user.get_ref())) {
            let problem = format!("found {:?} twice; allowed: once in its account", user.user.get_ref());
            return Err(source.error(user.user.span(), problem));
        }
    }
    let mut projects = HashSet::new();
    let mut ids = HashSet::new();
    for project in &auth.projects {
        unique(source, &project.name, &mut projects)?;
        if let Some(id) = &project.id {
            unique(source, id, &mut ids)?;
        }
    }
    let mut users = HashSet::new();
    let mut ids = HashSet::new();
    for user in &auth.users {
        unique(source, &user.name, &mut users)?;
        if let Some(id) = &user.id {
            unique(source, id, &mut ids)?;
        }
        for project in user.roles.keys().chain(&user.default_project) {
            if !projects.contains(project.get_ref().as_str()) {
                let mut names: Vec<_> = projects.iter().copied().collect();
                names.sort_unstable();
                let problem = format!(
                    "found {:?}; allowed: the name of an [[auth.project]] ({})",
                    project.get_ref(),
                    names.join(", ")
                );
                return Err(source.error(project.span(), problem));
            }
        }
    }
    Ok(())
}

fn unique<'a>(
    source: &Source<'_>,
    name: &'a Spanned<String>,
    seen: &mut HashSet<&'a str>,
) -> Result<(), ConfigError> {
    check_name(source, name.get_ref(), name.span(), "/")?;
    if !seen.insert(name.get_ref()) {
        return Err(source.error(name.span(), format!("found {:?} twice; allowed: once", name.get_ref())));
    }
    Ok(())
}

fn check_name(source: &Source<'_>, name: &str, span: Range<usize>, banned: &str) -> Result<(), ConfigError> {
    let bad =
        name.is_empty() || name.len() > 128 || name.contains(|c: char| c.is_control() || banned.contains(c));
    if bad {
        let problem = format!(
            "found {name:?}; allowed: 1 to 128 bytes without control characters and none of {banned:?}"
        );
        return Err(source.error(span, problem));
    }
    Ok(())
}
