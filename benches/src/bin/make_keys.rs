//! Keys made in the token: `cargo run --release -p benches --bin make-keys -- --help`.

fn main() -> std::process::ExitCode {
    benches::making::main()
}
