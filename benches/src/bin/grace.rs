//! Decryption in the grace of a rotation: `cargo run --release -p benches --bin grace -- --help`.

fn main() -> std::process::ExitCode {
    benches::grace::main()
}
