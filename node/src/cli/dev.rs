//! `quarry dev`: a node in one directory, with generated credentials and a file of variables for clients.
//!
//! Invariant: listens on 127.0.0.1 alone.
//! Invariant: `client.env` is mode 600, whole, and names the ports that are really bound.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;

use toml::Spanned;

use super::{DevArgs, Failure, Ports};
use crate::auth::Listed;
use crate::config::{Address, Config, MIN_DISK, Secret, size_text};
use crate::durable_file;
use crate::node::{self, Node};

/// Size of the disk file when none is given.
const DEFAULT_SIZE: u64 = 10 << 30;

/// Where NBD clients look when they are told no port.
const NBD_PORT: u16 = 10_809;

/// Name of the configuration in the directory.
const CONFIG_FILE: &str = "quarry.toml";

/// Runs a node in a directory until a signal.
pub(super) fn run(args: &DevArgs) -> Result<(), Failure> {
    let data = &args.data;
    super::make_private_directory(data)?;
    let data =
        data.canonicalize().map_err(|e| Failure::new(format!("find directory {}", data.display()), e))?;
    let config = config_of(args, &data)?;
    crate::logging::start(&config.log);
    let _own = node::claim_data(&config.node.data)?;
    let users = node::users(&config, args.test_users)?;
    let client = Client::of(&users)?;
    super::serve::run_node(&config, &users, |node| {
        let file = data.join("client.env");
        durable_file::replace(&file, client.variables(node, &config).as_bytes(), durable_file::PRIVATE)?;
        announce(&mut io::stdout().lock(), node, &client, &file, args.test_users)
    })
}

/// The directory's configuration, written at the first start.
fn config_of(args: &DevArgs, data: &Path) -> Result<Config, Failure> {
    let file = data.join(CONFIG_FILE);
    let known = file.try_exists().map_err(|e| Failure::new(format!("read {}", file.display()), e))?;
    if !known {
        let size = args.size.unwrap_or(DEFAULT_SIZE);
        if size < MIN_DISK {
            let reason = format!("{} is too small; give {} or more", size_text(size), size_text(MIN_DISK));
            return Err(Failure::new("make disk file", reason));
        }
        let text = first_config(size);
        durable_file::replace(&file, text.as_bytes(), durable_file::PRIVATE)
            .map_err(|e| Failure::new(format!("write {}", file.display()), e))?;
    }
    let mut config = super::config::load(&file)?;
    let size = config.disks.first().and_then(|disk| disk.size).map(|size| size.0);
    if let (true, Some(wanted)) = (known, args.size)
        && size != Some(wanted)
    {
        // A first start that found no room made no disk, and may be given another size.
        let made = config.disks.first().is_none_or(|disk| disk.path.get_ref().exists());
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        if !made && size.is_some_and(|size| text == first_config(size)) {
            std::fs::remove_file(&file).map_err(|e| Failure::new(format!("remove {}", file.display()), e))?;
            return config_of(args, data);
        }
        let reason = "its size was given at the first start; leave --size out, or use another directory";
        return Err(Failure::new(format!("resize disk file in {}", data.display()), reason));
    }
    if config.nbd.listen.is_none() {
        let address = SocketAddr::new(config.listen.object.0.ip(), NBD_PORT);
        config.nbd.listen = Some(Spanned::new(0..0, Address(address)));
    }
    if args.ports == Ports::Auto {
        let listen = &mut config.listen;
        for address in [&mut listen.object, &mut listen.identity, &mut listen.volume, &mut listen.admin] {
            address.0.set_port(0);
        }
        if let Some(address) = &mut config.nbd.listen {
            address.get_mut().0.set_port(0);
        }
    }
    Ok(config)
}

fn first_config(size: u64) -> String {
    let size = size_text(size);
    format!(
        "# Made by `quarry dev`; `quarry config example` prints every setting.\n\
         [node]\ndata = \".\"\n\n[[disk]]\npath = \"disk0\"\nindex = \"index0\"\nsize = \"{size}\"\n"
    )
}

/// What clients log in with.
#[derive(Debug)]
struct Client {
    v1_user: String,
    v1_key: Secret,
    keystone: Option<Keystone>,
}

#[derive(Debug)]
struct Keystone {
    user: String,
    password: Secret,
    project: String,
}

impl Client {
    /// The first user of each kind.
    fn of(users: &Listed) -> Result<Self, Failure> {
        let first = users.told().flat_map(|list| &list.v1_users).next();
        let first =
            first.ok_or_else(|| Failure::new("choose a client", "no [[v1_user]] is listed; add one"))?;
        let keystone = users.told().flat_map(|list| &list.users).next().and_then(|user| {
            let project = user.default_project.as_ref().or_else(|| user.roles.keys().next())?;
            Some(Keystone {
                user: user.name.get_ref().clone(),
                password: user.password.clone(),
                project: project.get_ref().clone(),
            })
        });
        let v1_user = format!("{}:{}", first.account.get_ref(), first.user.get_ref());
        Ok(Self { v1_user, v1_key: first.key.clone(), keystone })
    }

    /// Shell variables, one `export` a line.
    fn variables(&self, node: &Node, config: &Config) -> String {
        let mut variables = vec![
            ("QUARRY_OBJECT_URL", format!("http://{}", node.object)),
            ("QUARRY_VOLUME_URL", format!("http://{}/v3", node.volume)),
            ("QUARRY_ADMIN_URL", format!("http://{}", node.admin)),
            ("ST_AUTH", format!("http://{}/auth/v1.0", node.object)),
            ("ST_USER", self.v1_user.clone()),
            ("ST_KEY", self.v1_key.0.clone()),
        ];
        if let Some(nbd) = node.nbd {
            variables.push(("QUARRY_NBD_URL", format!("nbd://{nbd}")));
        }
        if let Some(keystone) = &self.keystone {
            variables.extend([
                ("OS_AUTH_URL", format!("http://{}/v3", node.identity)),
                ("OS_USERNAME", keystone.user.clone()),
                ("OS_PASSWORD", keystone.password.0.clone()),
                ("OS_PROJECT_NAME", keystone.project.clone()),
                ("OS_USER_DOMAIN_NAME", "Default".to_owned()),
                ("OS_PROJECT_DOMAIN_NAME", "Default".to_owned()),
                ("OS_REGION_NAME", config.node.region.clone()),
            ]);
        }
        variables.iter().map(|(name, value)| format!("export {name}={}\n", quoted(value))).collect()
    }
}

/// A word that any POSIX shell reads as `text`.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn announce(
    out: &mut impl Write,
    node: &Node,
    client: &Client,
    env: &Path,
    test_users: bool,
) -> io::Result<()> {
    writeln!(out, "quarry {} serves {}", env!("CARGO_PKG_VERSION"), env.parent().unwrap_or(env).display())?;
    writeln!(out)?;
    writeln!(out, "  object API    http://{}/v1     v1 auth http://{}/auth/v1.0", node.object, node.object)?;
    writeln!(out, "  identity API  http://{}/v3", node.identity)?;
    writeln!(out, "  volume API    http://{}/v3", node.volume)?;
    writeln!(out, "  operator      http://{}/metrics, /status", node.admin)?;
    if let Some(nbd) = node.nbd {
        writeln!(out, "  volumes       nbd://{nbd}/NAME, made by quarry volume create NAME SIZE")?;
    }
    writeln!(out, "  v1 user       {} key {}", client.v1_user, client.v1_key.0)?;
    if let Some(keystone) = &client.keystone {
        writeln!(
            out,
            "  keystone      {} password {} project {}",
            keystone.user, keystone.password.0, keystone.project
        )?;
    }
    if test_users {
        writeln!(out)?;
        writeln!(
            out,
            "  WARNING: the test suites' users are on, and everybody knows their keys: test:tester/testing,"
        )?;
        writeln!(
            out,
            "  test:tester2/testing2, test:tester3/testing3, test2:tester2/testing2, test5:tester5/testing5,"
        )?;
        writeln!(out, "  admin:admin/admin, admin:auditor/admin_ro. Only this machine can reach them.")?;
    }
    let env = quoted(&env.display().to_string());
    writeln!(out)?;
    writeln!(out, "Paste into another shell:")?;
    writeln!(out)?;
    writeln!(out, "  python3 -m venv ~/.quarry-clients")?;
    writeln!(
        out,
        "  ~/.quarry-clients/bin/pip install -q python-swiftclient python-keystoneclient python-openstackclient"
    )?;
    writeln!(out, "  export PATH=~/.quarry-clients/bin:$PATH")?;
    if let Ok(program) = std::env::current_exe() {
        writeln!(out, "  alias quarry={}", quoted(&program.display().to_string()))?;
    }
    writeln!(out, "  . {env}")?;
    writeln!(out, "  swift upload --changed docs /usr/share/doc && swift list docs | tail")?;
    writeln!(out, "  openstack container create photos && openstack container list")?;
    writeln!(out)?;
    writeln!(out, "ready")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    #[test]
    fn shell_words_survive_quotes() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
    }

    /// Where 10 GiB had no room, a smaller size was refused, for a disk that was not there.
    #[test]
    fn a_size_may_be_given_again_until_there_is_a_disk() {
        let dir = tempfile::tempdir().unwrap();
        let of = |size| {
            let args = DevArgs { data: dir.path().to_owned(), ports: Ports::Auto, size, test_users: false };
            config_of(&args, dir.path())
                .map(|config| config.disks[0].size.unwrap().0)
                .map_err(|e| e.to_string())
        };
        assert_eq!(of(None), Ok(DEFAULT_SIZE));
        assert_eq!(of(Some(2 << 30)), Ok(2 << 30));
        assert_eq!(of(None), Ok(2 << 30));
        std::fs::write(dir.path().join("disk0"), "").unwrap();
        assert!(of(Some(1 << 30)).unwrap_err().contains("use another directory"));
        std::fs::remove_file(dir.path().join("disk0")).unwrap();
        let mut edited = std::fs::read_to_string(dir.path().join(CONFIG_FILE)).unwrap();
        edited.push_str("# mine\n");
        std::fs::write(dir.path().join(CONFIG_FILE), edited).unwrap();
        assert!(of(Some(1 << 30)).is_err(), "what somebody wrote is not written over");
    }

    #[test]
    fn the_first_configuration_is_valid_and_local() {
        let config =
            Config::parse(Source { file: Path::new("d/quarry.toml"), text: &first_config(1 << 30) }).unwrap();
        assert_eq!(config.disks[0].path.get_ref(), Path::new("d/disk0"));
        assert_eq!(config.disks[0].size.unwrap().0, 1 << 30);
        for address in [config.listen.object, config.listen.identity, config.listen.admin] {
            assert!(address.0.ip().is_loopback());
        }
    }
}
