//! What two sites cost: `cargo run --release -p benches --bin sites -- --help`.

fn main() -> std::process::ExitCode {
    benches::two_sites::main()
}
