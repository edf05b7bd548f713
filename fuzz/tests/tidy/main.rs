//! The tidy test: what no compiler checks about this tree, as tests. Layering, sizes, places of `unsafe`, links.
//!
//! Invariant: it reads the tree and never writes to it.
//! Invariant: every failure names file, line and rule; every rule is shown to fail on a planted breach.
//!
//! It uses nothing but `std`, so that `make tidy` compiles it alone within seconds.

mod layers;
mod sizes;
mod source;
mod text;
mod tree;

use tree::{Breach, Tree};

/// Fails with one line per breach.
fn demand(rule: &str, breaches: &[Breach]) {
    let lines: Vec<String> =
        breaches.iter().map(|b| format!("  {}:{}: {}", b.path, b.line, b.what)).collect();
    assert!(breaches.is_empty(), "{rule}: {} breach(es)\n{}\n", lines.len(), lines.join("\n"));
}

#[test]
fn crates_depend_only_downwards() {
    demand("layering", &layers::manifests(&Tree::load()));
}

#[test]
fn sources_name_only_what_their_layer_may() {
    demand("layering", &layers::sources(&Tree::load()));
}

#[test]
fn unsafe_stays_in_the_io_folder_of_the_engine() {
    demand("unsafe", &layers::unsafe_code(&Tree::load()));
}

#[test]
fn every_dependency_is_central_and_has_a_reason() {
    demand("dependencies", &layers::reasons(&Tree::load()));
}

#[test]
fn top_level_folders_are_the_six() {
    demand("folders", &layers::folders(&Tree::load()));
}

#[test]
fn files_are_not_too_long() {
    let found = sizes::files(&Tree::load());
    for line in &found.wanted {
        println!("warning: {line}");
    }
    demand("file length", &found.breaches);
}

#[test]
fn functions_are_not_too_long() {
    let found = sizes::functions(&Tree::load());
    for line in &found.wanted {
        println!("warning: {line}");
    }
    demand("function length", &found.breaches);
}

#[test]
fn lints_are_expected_with_a_reason_and_never_allowed() {
    demand("lints", &text::allows(&Tree::load()));
}

#[test]
fn source_files_say_what_they_are() {
    demand("opening", &text::openings(&Tree::load()));
}

#[test]
fn secrets_have_a_type_that_hides_them() {
    demand("secrets", &text::secrets(&Tree::load()));
}

#[test]
fn nothing_names_a_path_of_one_machine() {
    demand("machine paths", &text::machine_paths(&Tree::load()));
}

#[test]
fn relative_links_resolve() {
    demand("links", &text::links(&Tree::load()));
}
