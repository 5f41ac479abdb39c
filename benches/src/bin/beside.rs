//! Two builds of the service beside each other: `cargo run --release -p benches --bin beside -- --help`.

fn main() -> std::process::ExitCode {
    benches::beside::main()
}
