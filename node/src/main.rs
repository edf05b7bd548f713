//! The `quarry` program.

fn main() -> std::process::ExitCode {
    quarry_node::cli::main()
}
