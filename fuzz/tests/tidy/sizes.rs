//! Lengths: of files, code and tests apart, and of functions.

use crate::source;
use crate::tree::{Breach, Tree};

const FILE_WANTED: usize = 500;
const FILE_MOST: usize = 800;
const FUNCTION_WANTED: usize = 70;
const FUNCTION_MOST: usize = 100;

const _: () =
    assert!(FILE_WANTED < FILE_MOST && FUNCTION_WANTED < FUNCTION_MOST && FUNCTION_MOST < FILE_WANTED);

/// What is too long, and what is longer than wanted.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) breaches: Vec<Breach>,
    pub(crate) wanted: Vec<String>,
}

pub(crate) fn files(tree: &Tree) -> Found {
    let mut found = Found::default();
    for file in tree.rust() {
        let all = file.text.lines().count();
        let inline: usize =
            source::test_modules(&source::blank(&file.text)).iter().map(source::Span::lines).sum();
        let (code, tests) = if file.is_test() { (0, all) } else { (all - inline, inline) };
        for (kind, lines) in [("code", code), ("tests", tests)] {
            if lines > FILE_MOST {
                found.breaches.push(file.breach(1, format!("{lines} lines of {kind}, at most {FILE_MOST}")));
            } else if lines > FILE_WANTED {
                found.wanted.push(format!("{}: {lines} lines of {kind}, wanted {FILE_WANTED}", file.path));
            }
        }
    }
    found
}

pub(crate) fn functions(tree: &Tree) -> Found {
    let mut found = Found::default();
    for file in tree.rust() {
        for function in source::functions(&source::blank(&file.text)) {
            let (name, first, lines) = (&function.name, function.first, function.lines());
            if lines > FUNCTION_MOST {
                found
                    .breaches
                    .push(file.breach(first, format!("fn {name}: {lines} lines, at most {FUNCTION_MOST}")));
            } else if lines > FUNCTION_WANTED {
                let path = &file.path;
                found
                    .wanted
                    .push(format!("{path}:{first}: fn {name}: {lines} lines, wanted {FUNCTION_WANTED}"));
            }
        }
    }
    found
}

#[test]
fn a_long_file_and_a_long_function_are_found() {
    let body = "    x();\n".repeat(FUNCTION_MOST);
    let long = format!("fn f() {{\n{body}}}\n");
    let tree =
        Tree::planted(&[("engine/src/a.rs", &long), ("engine/src/b.rs", &"//\n".repeat(FILE_MOST + 1))]);
    assert_eq!(functions(&tree).breaches.len(), 1);
    assert_eq!(files(&tree).breaches.len(), 1);
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "//\n".repeat(FILE_WANTED));
    let tree = Tree::planted(&[("engine/src/a.rs", &format!("{}{tests}", "//\n".repeat(FILE_WANTED)))]);
    assert_eq!(files(&tree).breaches, [], "code and tests count apart");
}
