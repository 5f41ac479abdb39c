//! A sealed import of many meters: `cargo run --release -p benches --bin import -- --help`.

fn main() -> std::process::ExitCode {
    benches::sealed::main()
}
