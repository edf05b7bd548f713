//! Rules about text: lint attributes, openings of files, paths of one machine, links of the documents.

use crate::source::blank;
use crate::tree::{Breach, Tree};

/// Names of drawers where things get lost.
const DRAWERS: [&str; 6] = ["util", "utils", "common", "helpers", "helper", "misc"];

pub(crate) fn allows(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for file in tree.rust() {
        for (index, line) in blank(&file.text).lines().enumerate() {
            if line.contains("#[allow(") || line.contains("#![allow(") {
                breaches.push(file.breach(index + 1, "use #[expect(.., reason = \"..\")] instead of allow"));
            }
        }
    }
    breaches
}

/// A source file begins with `//!` and is not called a drawer. A file of tests may leave the words to its subject.
pub(crate) fn openings(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for file in tree.rust() {
        let first = file.text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!["));
        if !file.is_test() && !first.is_some_and(|line| line.starts_with("//!")) {
            breaches.push(file.breach(1, "a file opens with `//!`: what it is"));
        }
        let parts = file.path.trim_end_matches(".rs").split('/');
        for drawer in parts.filter(|part| DRAWERS.contains(part)) {
            breaches.push(file.breach(1, format!("no `{drawer}` drawer: name what it does")));
        }
    }
    breaches
}

/// Fields of `node` that hold a secret have a type that does not show it. A bare text under such a name was one `{:?}` from the log.
pub(crate) fn secrets(tree: &Tree) -> Vec<Breach> {
    const NAMES: [&str; 7] =
        ["token", "secret", "password", "auth_key", "passphrase", "private_key", "v1_key"];
    const BARE: [&str; 6] = ["String,", "Option<String>,", "Box<str>,", "Vec<u8>,", "[u8; 32],", "Value,"];
    let mut breaches = Vec::new();
    for file in tree.rust().filter(|file| file.path.starts_with("node/src/") && !file.is_test()) {
        for (index, line) in blank(&file.text).lines().enumerate() {
            let line = line.trim().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
            let Some((name, kind)) = line.trim_start_matches("pub(super) ").split_once(": ") else {
                continue;
            };
            if NAMES.contains(&name) && BARE.contains(&kind) {
                breaches.push(
                    file.breach(index + 1, format!("`{name}` is a secret: Hidden<…> keeps it out of logs")),
                );
            }
        }
    }
    breaches
}

pub(crate) fn machine_paths(tree: &Tree) -> Vec<Breach> {
    // Put together, so that this file does not name them.
    let roots = [concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/wo", "rk/"), concat!("/Us", "ers/")];
    let mut breaches = Vec::new();
    for file in &tree.files {
        for (index, line) in file.text.lines().enumerate() {
            for root in roots {
                let begins = line.match_indices(root).any(|(at, _)| {
                    // Inside a longer path or a URL it is somebody else's folder of that name.
                    let before = line[..at].chars().next_back();
                    !before.is_some_and(|c| c.is_alphanumeric() || "/_-.}$~*".contains(c))
                });
                if begins {
                    breaches.push(file.breach(index + 1, format!("names a path below {root}")));
                }
            }
        }
    }
    breaches
}

pub(crate) fn links(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for file in tree.files.iter().filter(|file| file.path.ends_with(".md")) {
        let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (line, target) in link_targets(&file.text) {
            let path = target.split('#').next().unwrap_or("");
            let outside = target.contains("://") || target.starts_with("mailto:");
            if !outside && !path.is_empty() && !tree.root.join(folder).join(path).exists() {
                breaches.push(file.breach(line, format!("link to `{target}` leads nowhere")));
            }
        }
    }
    breaches
}

/// `(line, target)` of every `[text](target)` outside code.
fn link_targets(markdown: &str) -> Vec<(usize, String)> {
    let mut fenced = false;
    let mut targets = Vec::new();
    for (index, line) in markdown.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced || line.starts_with("    ") {
            continue;
        }
        // Odd pieces between backticks are code.
        let prose: String =
            line.split('`').enumerate().map(|(i, piece)| if i % 2 == 0 { piece } else { "code" }).collect();
        for (at, _) in prose.match_indices("](") {
            let target: String = prose[at + 2..].chars().take_while(|&c| c != ')' && c != ' ').collect();
            targets.push((index + 1, target));
        }
    }
    targets
}

#[test]
fn planted_breaches_of_text_are_found() {
    let home = concat!("see /ho", "me/me/x and https://host/ho", "me/y");
    let tree = Tree::planted(&[
        ("node/src/util.rs", "#[allow(dead_code)]\nfn f() {}\n"),
        ("node/src/ok.rs", "//! What it is: #[allow(.\n"),
        ("README.md", "[a](gone.md) `[b](gone.md)` [c](https://host/x) [d](#here)\n```\n[e](gone.md)\n```\n"),
        ("node/x.toml", home),
        (
            "node/src/a.rs",
            "//! A.\nstruct A {\n    pub(crate) token: String,\n    secret: Hidden,\n}\nstruct B {\n    password: Option<String>,\n}\n",
        ),
    ]);
    assert_eq!(allows(&tree).len(), 1);
    assert_eq!(openings(&tree).len(), 2, "no opening, and a drawer");
    assert_eq!(
        links(&tree),
        [Breach { path: "README.md".into(), line: 1, what: "link to `gone.md` leads nowhere".into() }]
    );
    assert_eq!(machine_paths(&tree).len(), 1);
    assert_eq!(secrets(&tree).iter().map(|breach| breach.line).collect::<Vec<_>>(), [3, 7]);
}
