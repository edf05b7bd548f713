//! Tests of the configuration: defaults, and errors that name file, line and key.

use super::*;

const DISK: &str = "[[disk]]\npath = \"d\"\nindex = \"i\"\n";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Source { file: Path::new("etc/quarry.toml"), text })
}

/// The error of a text that must be refused, as it is printed.
fn refused(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn the_example_shows_the_defaults() {
    let example = parse(EXAMPLE).unwrap();
    let bare = parse(&format!("[node]\ndata = \"data\"\n{DISK}")).unwrap();
    assert_eq!(format!("{:?}", example.limits), format!("{:?}", bare.limits));
    assert_eq!(format!("{:?}", example.log), format!("{:?}", bare.log));
    assert_eq!(format!("{:?}", example.work), format!("{:?}", bare.work));
    assert_eq!(format!("{:?}", example.listen), format!("{:?}", bare.listen));
    assert_eq!(format!("{:?}", example.auth), format!("{:?}", bare.auth));
    assert!(
        example.cluster.is_none() && bare.cluster.is_none(),
        "a node is alone unless it is told otherwise"
    );
    assert_eq!(example.node.region, bare.node.region);
    assert!(example.auth.is_empty(), "no user may have a default");
}

#[test]
fn relative_paths_start_at_the_file() {
    let config = parse(&format!("[node]\ndata = \"data\"\n{DISK}")).unwrap();
    assert_eq!(config.node.data, Path::new("etc/data"));
    assert_eq!(config.disks[0].path.get_ref(), Path::new("etc/d"));
}

#[test]
fn a_value_out_of_bounds_names_line_key_found_and_allowed() {
    let text = format!("[node]\ndata = \"data\"\n[limits]\nconnections = 0\n{DISK}");
    assert_eq!(
        refused(&text),
        "etc/quarry.toml:4: limits.connections: found 0; allowed: a whole number from 1 to 65536"
    );
}

#[test]
fn an_unknown_key_names_the_known_ones() {
    let error = refused(&format!("[node]\ndata = \"data\"\nregoin = \"x\"\n{DISK}"));
    assert!(error.starts_with("etc/quarry.toml:3: node.regoin: unknown field `regoin`"), "{error}");
    assert!(error.contains("`region`"), "{error}");
}

#[test]
fn wrong_types_and_notations_are_explained() {
    for (line, expected) in [
        (
            "[listen]\nobject = \"8080\"",
            "etc/quarry.toml:4: listen.object: found \"8080\"; allowed: an IP address",
        ),
        (
            "[limits]\nread_cache = \"1X\"",
            "etc/quarry.toml:4: limits.read_cache: found \"1X\"; allowed: a size",
        ),
        ("[limits]\ndrain = 20", "etc/quarry.toml:4: limits.drain: found 20; allowed: a length of time"),
        ("[log]\nlevel = \"loud\"", "etc/quarry.toml:4: log.level: unknown variant `loud`"),
        ("[limits]\nheaders = true", "etc/quarry.toml:4: limits.headers: invalid type: boolean"),
    ] {
        let error = refused(&format!("[node]\ndata = \"data\"\n{line}\n{DISK}"));
        assert!(error.starts_with(expected), "{error}\nwanted {expected}");
    }
}

#[test]
fn syntax_errors_have_a_line() {
    let error = refused("[node]\ndata = \n");
    assert!(error.starts_with("etc/quarry.toml:2: "), "{error}");
}

#[test]
fn a_node_without_disks_or_with_one_twice_is_refused() {
    assert!(refused("[node]\ndata = \"data\"\n").contains("at least one"));
    let error = refused(&format!("[node]\ndata = \"data\"\n{DISK}[[disk]]\npath = \"e\"\nindex = \"d\"\n"));
    assert!(
        error.starts_with("etc/quarry.toml:8: disk.index: found \"d\", which is already the path"),
        "{error}"
    );
}

#[test]
fn listeners_need_addresses_of_their_own() {
    let error = refused(&format!("[node]\ndata = \"d\"\n[listen]\nadmin = \"127.0.0.1:8080\"\n{DISK}"));
    assert!(error.starts_with("etc/quarry.toml:3: listen: found two"), "{error}");
    let free = "[listen]\nobject = \"127.0.0.1:0\"\nidentity = \"127.0.0.1:0\"\nvolume = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
    assert!(parse(&format!("[node]\ndata = \"data\"\n{free}{DISK}")).is_ok());
}

#[test]
fn users_are_checked() {
    let v1 = |account: &str, key: &str| {
        format!(
            "[node]\ndata = \"data\"\n{DISK}[[auth.v1_user]]\naccount = \"{account}\"\nuser = \"u\"\nkey = \"{key}\"\n"
        )
    };
    assert!(parse(&v1("test", "secret")).is_ok());
    assert!(
        refused(&v1("te:st", "secret"))
            .starts_with("etc/quarry.toml:7: auth.v1_user.account: found \"te:st\"")
    );
    let error = refused(&v1("test", ""));
    assert!(error.starts_with("etc/quarry.toml:9: auth.v1_user.key: found 0 characters"), "{error}");
    let twice =
        format!("{}[[auth.v1_user]]\naccount = \"test\"\nuser = \"u\"\nkey = \"k\"\n", v1("test", "secret"));
    assert!(refused(&twice).contains("found \"u\" twice"), "{}", refused(&twice));
    let user = "[[auth.project]]\nname = \"demo\"\n[[auth.user]]\nname = \"u\"\npassword = \"p\"\nroles = { dmeo = [\"admin\"] }\n";
    let error = refused(&format!("[node]\ndata = \"data\"\n{DISK}{user}"));
    assert!(
        error.contains("auth.user.roles: found \"dmeo\"; allowed: the name of an [[auth.project]] (demo)"),
        "{error}"
    );
}

#[test]
fn a_refused_key_is_not_printed() {
    let text = format!(
        "[node]\ndata = \"data\"\n{DISK}[[auth.v1_user]]\naccount = \"a\"\nuser = \"u\"\nkey = \"top secret\"\n"
    );
    assert!(!refused(&text).contains("top secret"), "{}", refused(&text));
}

#[test]
fn the_example_of_a_cluster_is_valid() {
    let commented = EXAMPLE.split_once("# [cluster]").unwrap().1.split_once("\n\n").unwrap().0;
    let section: String = commented
        .lines()
        .map(|line| line.trim_start_matches("# ").trim_start_matches('#'))
        .fold("[cluster]".to_owned(), |text, line| text + line + "\n");
    let config = parse(&format!("[node]\ndata = \"data\"\n{DISK}{section}")).unwrap();
    let cluster = config.cluster.unwrap();
    assert_eq!((cluster.transport, cluster.peers.len()), (Carrier::Quic, 1));
    let bound = cluster.listen.0;
    assert_eq!(cluster.reached_at(bound), Some("198.51.100.1:7000".parse().unwrap()));
}

#[test]
fn a_cluster_section_is_checked() {
    let peer =
        |node: &str, address: &str| format!("[[cluster.peer]]\nnode = \"{node}\"\naddress = \"{address}\"\n");
    let (one, two) = ("0".repeat(32), "1".repeat(32));
    let good = peer(&one, "192.0.2.2:7000");
    for (section, expected) in [
        (String::new(), "etc/quarry.toml:6: cluster: missing field `listen`"),
        (
            "listen = \"host:7000\"\n".to_owned(),
            "etc/quarry.toml:7: cluster.listen: found \"host:7000\"; allowed: an IP address",
        ),
        (
            "listen = \"127.0.0.1:8080\"\n".to_owned(),
            "etc/quarry.toml:6: cluster: found 127.0.0.1:8080 for the cluster",
        ),
        (
            "listen = \"127.0.0.1:7\"\ntransport = \"sctp\"\n".to_owned(),
            "etc/quarry.toml:8: cluster.transport: unknown variant `sctp`",
        ),
        (
            "listen = \"127.0.0.1:7\"\nadvertise = \"0.0.0.0:7\"\n".to_owned(),
            "etc/quarry.toml:8: cluster.advertise: found 0.0.0.0:7; allowed",
        ),
        (
            format!("listen = \"127.0.0.1:7\"\n{}", peer("xyz", "192.0.2.2:7")),
            "etc/quarry.toml:9: cluster.peer.node: found \"xyz\"; allowed: 32 hex digits",
        ),
        (
            format!("listen = \"127.0.0.1:7\"\n{}", peer(&one, "192.0.2.2:0")),
            "etc/quarry.toml:10: cluster.peer.address: found 192.0.2.2:0; allowed",
        ),
        (
            format!("listen = \"127.0.0.1:7\"\n{good}{}", peer(&one, "192.0.2.3:7000")),
            "etc/quarry.toml:12: cluster.peer.node: found 00000000000000000000000000000000 twice",
        ),
        (
            format!("listen = \"127.0.0.1:7\"\n{good}{}", peer(&two, "192.0.2.2:7000")),
            "etc/quarry.toml:13: cluster.peer.address: found 192.0.2.2:7000 twice",
        ),
    ] {
        let error = refused(&format!("[node]\ndata = \"data\"\n{DISK}[cluster]\n{section}"));
        assert!(error.starts_with(expected), "{error}\nwanted {expected}");
    }
}

#[test]
fn another_keystone_is_reached_in_the_clear_or_by_an_authority() {
    let parse = |external: &str| {
        let text = format!(
            "[node]\ndata = \"d\"\n[identity]\nexternal = {{ {external}, user = \"u\", password = \"p\", project = \"s\" }}\n[[disk]]\npath = \"a\"\nindex = \"b\"\nsize = \"1G\"\n"
        );
        Config::parse(Source { file: Path::new("x/quarry.toml"), text: &text })
            .map_err(|error| error.to_string())
    };
    let external =
        parse("url = \"https://k:5000/v3\", authority = \"ca.pem\"").unwrap().identity.external.unwrap();
    assert_eq!(
        (external.authority.unwrap().as_path(), external.user_domain.as_str()),
        (Path::new("x/ca.pem"), "Default")
    );
    assert!(parse("url = \"http://k:5000\"").is_ok());
    for bad in ["https://k:5000", "ftp://k", "http://", "k:5000"] {
        assert!(parse(&format!("url = \"{bad}\"")).unwrap_err().contains("authority"), "{bad}");
    }
}

#[test]
fn an_image_service_is_reached_in_the_clear_or_by_an_authority() {
    let parse = |service: &str| {
        let text = format!(
            "[node]\ndata = \"d\"\n[volumes]\nimage_service = {{ {service} }}\n[[disk]]\npath = \"a\"\nindex = \"b\"\nsize = \"1G\"\n"
        );
        Config::parse(Source { file: Path::new("x/quarry.toml"), text: &text })
            .map(|config| config.volumes.image_service)
            .map_err(|error| error.to_string())
    };
    let service = parse("url = \"https://i:9292/image\", authority = \"ca.pem\"").unwrap();
    assert_eq!(service.authority.unwrap(), Path::new("x/ca.pem"));
    assert!(parse("url = \"http://i:9292\"").is_ok() && parse("").unwrap().url.is_none());
    for bad in ["https://i:9292", "ftp://i", "http://", "i:9292"] {
        assert!(parse(&format!("url = \"{bad}\"")).unwrap_err().contains("authority"), "{bad}");
    }
}
