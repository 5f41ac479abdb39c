//! Keys staged for many meters: `cargo run --release -p benches --bin rotate -- --help`.

fn main() -> std::process::ExitCode {
    benches::rotating::main()
}
