//! Which crate may know which, where `unsafe` may stand, and what a manifest must say.
//!
//! Invariant: arrows point down only: node, volume, engine, ring; bench and fuzz use them all.

use crate::source::{blank, lines_with_word, use_paths};
use crate::tree::{Breach, File, Tree};

/// The top-level folders, each a crate.
const FOLDERS: [&str; 6] = ["bench", "engine", "fuzz", "node", "ring", "volume"];

/// The files at the top.
const TOP_FILES: [&str; 11] = [
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "Makefile",
    "README.md",
    "clippy.toml",
    "deny.toml",
    "rustfmt.toml",
];

/// Crates that speak HTTP or serve it.
const HTTP: [&str; 13] = [
    "http",
    "http-body",
    "http-body-util",
    "httparse",
    "httpdate",
    "hyper",
    "hyper-util",
    "h2",
    "axum",
    "tower",
    "reqwest",
    "ureq",
    "quick-xml",
];
/// Crates of the wire between nodes and of block clients.
const WIRE: [&str; 4] = ["quinn", "quinn-proto", "rustls", "nbd"];
/// Crates of consensus: the engine's groups of rows alone know them, and hide them from all above.
const CONSENSUS: [&str; 1] = ["openraft"];

/// One layer: its folder and what it may know.
struct Layer {
    folder: &'static str,
    /// Crates of this workspace, without `quarry-`.
    knows: &'static [&'static str],
    /// Third-party crates that it may not have, not even for tests.
    never: &'static [&'static [&'static str]],
    /// Paths that its sources may not name.
    never_paths: &'static [&'static str],
}

const LAYERS: [Layer; 6] = [
    Layer {
        folder: "ring",
        knows: &[],
        never: &[&HTTP, &WIRE, &CONSENSUS, &["tokio", "rocksdb", "rustix", "io-uring", "libc"]],
        never_paths: &["std::net", "std::fs", "std::thread", "std::process"],
    },
    Layer {
        folder: "engine",
        knows: &["ring"],
        never: &[&HTTP, &WIRE],
        never_paths: &["tokio::net", "std::net"],
    },
    Layer { folder: "volume", knows: &["engine", "ring"], never: &[&HTTP, &CONSENSUS], never_paths: &[] },
    Layer { folder: "node", knows: &["engine", "ring", "volume"], never: &[&CONSENSUS], never_paths: &[] },
    Layer { folder: "bench", knows: &["engine", "ring", "volume", "node"], never: &[], never_paths: &[] },
    Layer { folder: "fuzz", knows: &["engine", "ring", "volume", "node"], never: &[], never_paths: &[] },
];

fn layer_of(file: &File) -> Option<&'static Layer> {
    LAYERS.iter().find(|layer| layer.folder == file.folder())
}

/// A dependency line of a manifest.
struct Dependency<'a> {
    line: usize,
    name: &'a str,
    /// The whole line, comment included.
    text: &'a str,
    section: &'a str,
}

/// Every dependency of a manifest; `[dependencies.NAME]` counts as a line of its own.
fn dependencies(manifest: &str) -> Vec<Dependency<'_>> {
    let mut section = "";
    let mut found = Vec::new();
    for (index, text) in manifest.lines().enumerate() {
        let (line, trimmed) = (index + 1, text.trim());
        if let Some(header) = trimmed.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            section = header;
            if let Some((_, name)) = header.split_once("dependencies.") {
                found.push(Dependency { line, name, text, section });
            }
        } else if section.ends_with("dependencies") && !trimmed.is_empty() && !trimmed.starts_with('#') {
            let name = trimmed.split(['=', '.', ' ']).next().unwrap_or("").trim_matches('"');
            found.push(Dependency { line, name, text, section });
        }
    }
    found
}

fn manifests_of(tree: &Tree) -> impl Iterator<Item = (&File, &'static Layer)> {
    tree.files
        .iter()
        .filter(|file| file.path.ends_with("/Cargo.toml") && file.path.matches('/').count() == 1)
        .filter_map(|file| Some((file, layer_of(file)?)))
}

pub(crate) fn manifests(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for (file, layer) in manifests_of(tree) {
        for dependency in dependencies(&file.text) {
            let name = dependency.name;
            let own = name.strip_prefix("quarry-");
            if own.is_some_and(|own| own != layer.folder && !layer.knows.contains(&own)) {
                breaches.push(file.breach(dependency.line, format!("{} may not know {name}", layer.folder)));
            }
            if layer.never.iter().any(|crates| crates.contains(&name)) {
                breaches
                    .push(file.breach(dependency.line, format!("{} may not depend on {name}", layer.folder)));
            }
        }
    }
    breaches
}

pub(crate) fn sources(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for file in tree.rust() {
        let Some(layer) = layer_of(file) else { continue };
        let code = blank(&file.text);
        for other in FOLDERS.iter().filter(|&&other| other != layer.folder && !layer.knows.contains(&other)) {
            for line in lines_with_word(&code, &format!("quarry_{other}")) {
                breaches.push(file.breach(line, format!("{} may not know quarry_{other}", layer.folder)));
            }
        }
        for banned in layer.never_paths {
            let inline = lines_with_word(&code, banned);
            let used = use_paths(&code).into_iter().filter(|(_, path)| {
                path.strip_prefix(banned)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with("::") || rest.starts_with("as"))
            });
            let mut lines: Vec<usize> = inline.into_iter().chain(used.map(|(line, _)| line)).collect();
            lines.sort_unstable();
            lines.dedup();
            breaches.extend(
                lines
                    .into_iter()
                    .map(|line| file.breach(line, format!("{} may not name {banned}", layer.folder))),
            );
        }
    }
    breaches
}

pub(crate) fn unsafe_code(tree: &Tree) -> Vec<Breach> {
    tree.rust()
        .filter(|file| !file.path.starts_with("engine/src/io/"))
        .flat_map(|file| {
            let lines = lines_with_word(&blank(&file.text), "unsafe");
            lines.into_iter().map(|line| file.breach(line, "`unsafe` belongs in engine/src/io only"))
        })
        .collect()
}

pub(crate) fn reasons(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for file in tree.files.iter().filter(|file| file.path == "Cargo.toml") {
        for dependency in dependencies(&file.text) {
            let own = dependency.name.starts_with("quarry-");
            let reason = dependency.text.split_once(" # ").map_or("", |(_, reason)| reason.trim());
            if dependency.section == "workspace.dependencies" && !own && reason.len() < 8 {
                breaches.push(file.breach(dependency.line, format!("{} without a reason", dependency.name)));
            }
        }
    }
    for (file, _) in manifests_of(tree) {
        for dependency in dependencies(&file.text) {
            if !dependency.text.contains("workspace = true") {
                let what =
                    format!("{}: versions stand in the root's [workspace.dependencies]", dependency.name);
                breaches.push(file.breach(dependency.line, what));
            }
        }
    }
    breaches
}

pub(crate) fn folders(tree: &Tree) -> Vec<Breach> {
    let is_stray = |file: &&File| !file.path.contains('/') && !TOP_FILES.contains(&file.path.as_str());
    let stray = tree.files.iter().filter(is_stray);
    let mut breaches: Vec<Breach> = stray
        .map(|file| file.breach(1, "a file at the top that none of the house's tools wants there"))
        .collect();
    let mut seen: Vec<&str> = Vec::new();
    for file in tree.files.iter().filter(|file| file.path.contains('/') && !file.path.starts_with('.')) {
        let folder = file.folder();
        if !seen.contains(&folder) {
            seen.push(folder);
            if !FOLDERS.contains(&folder) {
                breaches.push(file.breach(1, format!("top-level folder `{folder}` is none of the six")));
            }
        }
    }
    for folder in FOLDERS.iter().filter(|folder| !seen.contains(folder)) {
        breaches.push(Breach {
            path: (*folder).to_owned(),
            line: 1,
            what: "top-level folder is missing".into(),
        });
    }
    breaches
}

#[test]
fn planted_breaches_of_layering_are_found() {
    let tree = Tree::planted(&[
        ("ring/Cargo.toml", "[dependencies]\nquarry-engine.workspace = true\n"),
        (
            "engine/Cargo.toml",
            "[dependencies]\nhyper.workspace = true\n[dev-dependencies.quarry-node]\nworkspace = true\n",
        ),
        ("volume/Cargo.toml", "[target.'cfg(unix)'.dependencies]\nhttp = \"1\"\n"),
        ("ring/src/lib.rs", "use std::{fs, fmt};\n"),
        (
            "engine/src/a.rs",
            "use tokio::{sync, net::TcpStream};\nfn f() { quarry_node::start(); }\n// quarry_node\n",
        ),
        ("engine/src/io/ok.rs", "unsafe fn f() {}\n"),
        ("node/src/a.rs", "fn f() { unsafe { x() } } // unsafe_op\n"),
    ]);
    assert_eq!(manifests(&tree).len(), 4);
    let lines: Vec<(String, usize)> = sources(&tree).into_iter().map(|b| (b.path, b.line)).collect();
    let expected = [("ring/src/lib.rs", 1), ("engine/src/a.rs", 2), ("engine/src/a.rs", 1)];
    assert_eq!(lines, expected.map(|(path, line)| (path.to_owned(), line)));
    assert_eq!(unsafe_code(&tree).len(), 1);
}

#[test]
fn planted_breaches_of_manifests_and_folders_are_found() {
    let root = "[workspace.dependencies]\nquarry-ring = { path = \"ring\" }\nhex = \"0.4\" # ETags in text\nlibc = \"0.2\"\n";
    let tree = Tree::planted(&[
        ("Cargo.toml", root),
        ("node/Cargo.toml", "[dependencies]\nhex = \"0.4\"\n"),
        ("docs/a.md", ""),
        ("left-by-a-tool.state", ""),
    ]);
    assert_eq!(reasons(&tree).len(), 2);
    assert_eq!(folders(&tree).len(), 2 + 5, "docs and the state file are foreign; all but node are missing");
}
