//! The table of benches/README.md, as `make bench` prints it.

fn main() -> std::process::ExitCode {
    benches::report::main()
}
