//! All figures in one table: `cargo run --release -p benches --bin report -- --help`.

fn main() -> std::process::ExitCode {
    benches::report::main()
}
